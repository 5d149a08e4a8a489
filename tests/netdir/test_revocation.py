"""Revocations: the last word of a relay, whatever comes before or after it."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import replace

import pytest

from backrooms.crypto.keys import ED25519, labelled
from backrooms.errors import CryptoError, RemoteProtocolError, WireError
from backrooms.netdir import directory as directory_module
from backrooms.netdir.certificate import CERTIFICATE_LIFE, CLOCK_TOLERANCE, REVOCATION_LIFE, DocumentTimeError
from backrooms.netdir.descriptor import Descriptor, make_certificate, make_revocation
from backrooms.netdir.directory import Directory
from backrooms.wire.codec import Writer
from backrooms.wire.documents import DirListRequest
from backrooms.wire.records import REVOKED, ContactRecord
from tests.keys import NETWORK_ID, NOW, descriptor, identity

DAY = 86400
KEYS = identity(0)
RELAY = descriptor(0)
LAST = make_revocation(KEYS.sign, KEYS.public, NETWORK_ID, NOW + 10, certificate=RELAY.certificate)
YEARS = CERTIFICATE_LIFE + REVOCATION_LIFE


def add(directory: Directory, relay: Descriptor, now: float) -> Descriptor:
    return directory.add(relay.certificate.raw, relay.record_raw, now)


def test_it_says_nothing_else() -> None:
    assert LAST.revoked
    assert LAST.record == ContactRecord.decode(LAST.record.encode())
    assert (LAST.record.revision, LAST.record.expires) == (REVOKED, REVOKED)
    assert LAST.addresses == ()
    for change in ({"addresses": RELAY.addresses}, {"capacity": 1}, {"expires": REVOKED - 1}, {"onion_key": b"x" * 32}):
        with pytest.raises(WireError):
            ContactRecord.decode(replace(LAST.record, **change).encode())
    with pytest.raises(WireError):
        ContactRecord.decode(replace(LAST.record, revision=REVOKED - 1).encode())


def test_a_thief_cannot_come_back_in_any_order() -> None:
    """Newer records, newer certificates, at once or half a year later: the relay stays revoked."""
    now = NOW + 100
    thief = [
        descriptor(0, now=now, certificate=RELAY.certificate, onion_key=b"\7" * 32),
        descriptor(0, now=now + 1, operator="thief"),
        descriptor(0, now=now + 2, certificate=RELAY.certificate, after=int(now) + CLOCK_TOLERANCE - 60),
    ]
    for order in itertools.permutations([RELAY, LAST, *thief]):
        directory = Directory(NETWORK_ID, NOW)
        for relay in order:
            add(directory, relay, now + 3)
        assert directory.is_revoked(RELAY.id)
        assert RELAY.id not in directory
        assert directory.get(RELAY.id) is None
        assert len(directory) == len(directory.relays()) == 0
        held = directory.held(RELAY.id)
        assert held is not None
        assert held.record_raw == LAST.record_raw
        assert held.certificate.facts.operator == "thief", "the newest, so that all hold the same"
        assert directory.seen == {}


def test_it_stays_as_long_as_a_certificate_can_be_valid() -> None:
    directory = Directory(NETWORK_ID, NOW)
    add(directory, RELAY, NOW)
    add(directory, LAST, NOW + 10)
    for later in (3 * DAY, CERTIFICATE_LIFE + 2 * DAY, YEARS):
        assert directory.expire(NOW + later) == []
        if later < CERTIFICATE_LIFE:
            add(directory, descriptor(0, now=NOW + later, certificate=RELAY.certificate), NOW + later)
        assert directory.is_revoked(RELAY.id)
    assert len(directory.expire(NOW + YEARS + CLOCK_TOLERANCE + 1)) == 1
    assert not directory.is_revoked(RELAY.id)


def test_who_comes_late_takes_it_under_an_expired_certificate() -> None:
    late = Directory(NETWORK_ID, NOW)
    add(late, LAST, NOW + CERTIFICATE_LIFE + 100 * DAY)
    assert late.is_revoked(RELAY.id)
    with pytest.raises(DocumentTimeError):
        add(Directory(NETWORK_ID, NOW), LAST, NOW + YEARS + DAY)


def test_it_is_passed_on_by_the_ordinary_documents() -> None:
    server, client = Directory(NETWORK_ID, NOW), Directory(NETWORK_ID, NOW)
    for directory in (server, client):
        add(directory, RELAY, NOW)
    add(server, LAST, NOW + 10)
    heard: list[tuple[bytes, Descriptor | None]] = []
    client.on_change.append(lambda relay_id, relay: heard.append((relay_id, relay)))
    entries = server.answer_list(DirListRequest()).entries
    assert [entry.revision for entry in entries] == [REVOKED]
    requests = client.wanted(entries)
    for request in requests:
        for documents in server.answer_fetch(request).documents:
            client.add(documents.certificate, documents.record, NOW + 11)
    assert client.is_revoked(RELAY.id)
    assert heard == [(RELAY.id, client.held(RELAY.id))]
    assert client.wanted(server.entries()) == server.wanted(client.entries()) == []


def test_two_words_for_one_end_are_no_equivocation() -> None:
    other = make_revocation(KEYS.sign, KEYS.public, NETWORK_ID, NOW, nickname="other", certificate=RELAY.certificate)
    directory = Directory(NETWORK_ID, NOW)
    add(directory, LAST, NOW + 10)
    assert add(directory, other, NOW + 10).record_raw == LAST.record_raw


def test_nobody_else_can_revoke() -> None:
    body = LAST.record.encode()
    thief = identity(1)
    signed = thief.sign(labelled("backrooms-contact-record-1", NETWORK_ID + body), (ED25519,))[ED25519]
    directory = Directory(NETWORK_ID, NOW)
    add(directory, RELAY, NOW)
    forged = Writer().bytes16(body).bytes(signed).done()
    with pytest.raises(CryptoError):
        directory.add(None, forged, NOW)
    with pytest.raises(CryptoError):
        directory.add(descriptor(1, now=NOW + 5).certificate.raw, forged, NOW + 5)
    with pytest.raises(RemoteProtocolError):
        Directory(NETWORK_ID, NOW).add(None, LAST.record_raw, NOW)
    assert RELAY.id in directory


def test_made_up_relays_that_are_revoked_crowd_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "MAX_REVOKED", 2)
    monkeypatch.setattr(directory_module, "MAX_RELAYS", 1)
    directory = Directory(NETWORK_ID, NOW)
    add(directory, RELAY, NOW)
    for number in (1, 2, 3):
        keys = identity(number)
        certificate = make_certificate(keys.sign, keys.public, NETWORK_ID, NOW + number)
        last = make_revocation(keys.sign, keys.public, NETWORK_ID, NOW + number, certificate=certificate)
        add(directory, last, NOW + 10)
    assert [relay.id for relay in directory.relays()] == [RELAY.id]
    revoked = {relay.id for relay in directory.everything() if relay.revoked}
    assert revoked == {identity(2).public.id, identity(3).public.id}, "the first to end went"
    add(directory, LAST, NOW + 10)
    assert directory.is_revoked(RELAY.id)


def test_made_up_relays_that_are_revoked_do_not_bring_a_stolen_key_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither at once, however late their certificates end and if they were in the list, nor after a restart."""
    monkeypatch.setattr(directory_module, "MAX_REVOKED", 2)
    directory = Directory(NETWORK_ID, NOW)
    add(directory, RELAY, NOW)
    add(directory, LAST, NOW + DAY)
    for number in range(1, 9):
        keys = identity(number)
        now = NOW + DAY + number
        certificate = make_certificate(keys.sign, keys.public, NETWORK_ID, now)
        if number % 2:
            add(directory, descriptor(number, now=now, certificate=certificate), now)
        last = make_revocation(keys.sign, keys.public, NETWORK_ID, now, certificate=certificate)
        with suppress(RemoteProtocolError):  # worth less than all that are there
            add(directory, last, now + 60)
        assert len(directory.snapshot()) == 2
        if number == 4:
            times, held = directory.times(), directory.snapshot()
            directory = Directory(NETWORK_ID, now + 60)
            directory.restore([(one, times[one.id]) for one in held], now + 60)
    assert directory.is_revoked(RELAY.id)
    thief = descriptor(0, now=NOW + DAY + 100, certificate=RELAY.certificate, onion_key=b"\7" * 32)
    add(directory, thief, NOW + DAY + 100)
    assert RELAY.id not in directory
    assert directory.times().keys() == {one.id for one in directory.snapshot()}


def test_what_is_worth_less_than_all_that_is_revoked_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "MAX_REVOKED", 1)
    directory = Directory(NETWORK_ID, NOW)
    add(directory, RELAY, NOW)
    add(directory, LAST, NOW + DAY)
    keys = identity(1)
    certificate = make_certificate(keys.sign, keys.public, NETWORK_ID, NOW)
    with pytest.raises(RemoteProtocolError, match="takes no more"):
        add(directory, make_revocation(keys.sign, keys.public, NETWORK_ID, NOW, certificate=certificate), NOW + DAY)
    assert directory.is_revoked(RELAY.id)
