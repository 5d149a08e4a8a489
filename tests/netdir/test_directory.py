"""The list of relays: newest wins, nothing unverified gets in, and it survives being saved."""

from __future__ import annotations

import pytest

from backrooms.errors import ConfigError, CryptoError, RemoteProtocolError, WireError
from backrooms.netdir import directory as directory_module
from backrooms.netdir.descriptor import (
    CERTIFICATE_LIFE,
    CLOCK_TOLERANCE,
    RECORD_LIFE,
    Descriptor,
    DocumentTimeError,
)
from backrooms.netdir.directory import Directory
from backrooms.wire.documents import (
    MAX_FETCH_IDS,
    MAX_LIST_ENTRIES,
    MAX_MESSAGE,
    ZERO_ID,
    DirFetch,
    DirListRequest,
    ListEntry,
    Parts,
)
from tests.keys import NETWORK_ID, NOW, descriptor, fake_relay

DAY = 86400
RELAYS = [descriptor(number) for number in range(3)]


def filled() -> Directory:
    directory = Directory(NETWORK_ID, NOW)
    for relay in RELAYS:
        directory.add(relay.certificate.raw, relay.record_raw, NOW)
    return directory


def test_add_and_find() -> None:
    directory = filled()
    one = RELAYS[1]
    assert len(directory) == 3
    assert one.id in directory
    assert directory.get(one.id) == one
    assert directory.get(bytes(32)) is None
    assert [relay.id for relay in directory.relays()] == sorted(relay.id for relay in RELAYS)
    assert directory.revision == 3
    assert directory.relays() is directory.relays()


def test_known_documents_change_nothing() -> None:
    directory = filled()
    before = directory.relays()
    kept = directory.add(RELAYS[0].certificate.raw, RELAYS[0].record_raw, NOW + 5)
    assert kept is directory.get(RELAYS[0].id)
    assert directory.add(None, RELAYS[0].record_raw, NOW + 5) is kept
    assert (directory.revision, directory.changed_at) == (3, NOW)
    assert directory.relays() is before


def test_newest_record_wins_in_any_order() -> None:
    old = RELAYS[0]
    new = descriptor(0, now=NOW + DAY, certificate=old.certificate, onion_key=b"\7" * 32)
    for order in ((old, new), (new, old), (new, old, new)):
        directory = Directory(NETWORK_ID, NOW)
        for relay in order:
            directory.add(relay.certificate.raw, relay.record_raw, NOW + DAY)
        kept = directory.get(old.id)
        assert kept is not None
        assert kept.onion_key == b"\7" * 32


def test_newest_certificate_wins_whatever_the_record() -> None:
    old = RELAYS[0]
    new = descriptor(0, now=NOW + DAY, operator="new")
    for order in ((old, new), (new, old)):
        directory = Directory(NETWORK_ID, NOW)
        for relay in order:
            directory.add(relay.certificate.raw, relay.record_raw, NOW + DAY)
        kept = directory.get(old.id)
        assert kept is not None
        assert kept.certificate.body.operator == "new"
        assert kept.record == new.record
    directory = Directory(NETWORK_ID, NOW)
    directory.add(new.certificate.raw, new.record_raw, NOW + DAY)
    later = descriptor(0, now=NOW + DAY, after=new.record.revision, certificate=old.certificate)
    directory.add(old.certificate.raw, later.record_raw, NOW + DAY)
    kept = directory.get(old.id)
    assert kept is not None
    assert (kept.certificate.body.operator, kept.record) == ("new", later.record)


def test_new_certificate_under_the_old_record() -> None:
    directory = filled()
    new = descriptor(0, now=NOW + 10, operator="new")
    kept = directory.add(new.certificate.raw, RELAYS[0].record_raw, NOW + 10)
    assert (kept.certificate.body.operator, kept.record) == ("new", RELAYS[0].record)
    assert directory.revision == 4


def test_inserts_that_crossed_in_threads_keep_the_newest_of_both() -> None:
    directory = filled()
    newer_record = descriptor(0, now=NOW + 5, certificate=RELAYS[0].certificate)
    newer_certificate = descriptor(0, now=NOW + 3, operator="new")
    one = directory.verify(None, newer_record.record_raw, NOW + 5)
    two = directory.verify(newer_certificate.certificate.raw, newer_certificate.record_raw, NOW + 5)
    directory.insert(one, NOW + 5)
    directory.insert(two, NOW + 5)
    kept = directory.get(one.id)
    assert kept is not None
    assert (kept.record, kept.certificate.body.operator) == (newer_record.record, "new")
    revision = directory.revision
    assert directory.insert(one, NOW + 6) is kept
    assert directory.revision == revision


def test_record_without_a_certificate() -> None:
    with pytest.raises(RemoteProtocolError, match="without an identity certificate"):
        Directory(NETWORK_ID, NOW).add(None, RELAYS[0].record_raw, NOW)
    with pytest.raises(RemoteProtocolError, match="without an identity certificate"):
        Directory(NETWORK_ID, NOW).add(b"", RELAYS[0].record_raw, NOW)


def test_certificate_of_another_relay() -> None:
    for directory in (filled(), Directory(NETWORK_ID, NOW)):
        before = directory.revision
        other = descriptor(1, now=NOW + 5)
        newer = descriptor(0, now=NOW + 5)
        for record in (RELAYS[0].record_raw, newer.record_raw):
            with pytest.raises(CryptoError, match="different relays"):
                directory.add(other.certificate.raw, record, NOW + 5)
        assert directory.revision == before


def test_two_records_of_one_revision_are_told_and_the_first_stays() -> None:
    directory = filled()
    twin = descriptor(0, onion_key=b"\7" * 32, certificate=RELAYS[0].certificate)
    with pytest.raises(RemoteProtocolError, match="two contact records of one revision"):
        directory.add(None, twin.record_raw, NOW)
    assert directory.get(twin.id) == RELAYS[0]
    forged = bytearray(twin.record_raw)
    forged[-1] ^= 1
    with pytest.raises(CryptoError):  # nobody is accused of two records by a forger
        directory.add(None, bytes(forged), NOW)


def test_two_certificates_of_one_time() -> None:
    directory = filled()
    twin = descriptor(0, operator="twin")
    with pytest.raises(RemoteProtocolError, match="two identity certificates"):
        directory.add(twin.certificate.raw, twin.record_raw, NOW)


def test_bad_signatures_and_times_change_nothing() -> None:
    directory = filled()
    new = descriptor(0, now=NOW + 5)
    broken = new.record_raw[:-1] + bytes([new.record_raw[-1] ^ 1])
    with pytest.raises(CryptoError):
        directory.add(new.certificate.raw, broken, NOW + 5)
    future = descriptor(0, now=NOW + CLOCK_TOLERANCE + 100)
    with pytest.raises(DocumentTimeError):
        directory.add(future.certificate.raw, future.record_raw, NOW)
    with pytest.raises(WireError):
        directory.add(b"x", b"y", NOW)
    assert directory.revision == 3
    assert directory.get(new.id) == RELAYS[0]


def test_expire() -> None:
    directory = filled()
    assert directory.expire(NOW + RECORD_LIFE + CLOCK_TOLERANCE) == []
    late = descriptor(0, now=NOW + DAY, certificate=RELAYS[0].certificate)
    directory.add(None, late.record_raw, NOW + DAY)
    revision = directory.revision
    now = NOW + RECORD_LIFE + CLOCK_TOLERANCE + 1
    gone = directory.expire(now)
    assert {relay.id for relay in gone} == {RELAYS[1].id, RELAYS[2].id}
    assert [relay.id for relay in directory.relays()] == [late.id]
    assert directory.revision == revision + 1
    assert directory.changed_at == now


def test_what_was_taken_in_while_the_clock_was_ahead_goes_when_it_is_set() -> None:
    directory = filled()
    ahead = descriptor(0, now=NOW + DAY)
    directory.add(ahead.certificate.raw, ahead.record_raw, NOW + DAY)
    assert {relay.id for relay in directory.expire(NOW)} == {RELAYS[0].id}
    directory.insert(RELAYS[0], NOW)
    assert directory.expire(NOW) == []


def test_a_relay_goes_with_its_certificate() -> None:
    """A record that outlives the certificate does not keep the relay in the list."""
    directory = Directory(NETWORK_ID, NOW)
    end = NOW + CERTIFICATE_LIFE
    last = descriptor(0, now=end - 10, certificate=RELAYS[0].certificate)
    directory.add(last.certificate.raw, last.record_raw, end - 10)
    assert len(directory.expire(end + CLOCK_TOLERANCE + 1)) == 1


def test_full_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "MAX_RELAYS", 3)
    directory = filled()
    with pytest.raises(RemoteProtocolError, match="takes no more"):
        directory.insert(fake_relay(1), NOW)
    new = descriptor(0, now=NOW + 5)
    assert directory.add(new.certificate.raw, new.record_raw, NOW + 5) == new


def test_network_id_has_32_bytes() -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        Directory(b"short", NOW)


# --- lists and documents between nodes


def crowd(count: int) -> Directory:
    directory = Directory(NETWORK_ID, NOW)
    for number in range(count):
        relay = fake_relay(number)
        directory._relays[relay.id] = relay
    return directory


def test_pages_give_the_whole_list() -> None:
    directory = crowd(MAX_LIST_ENTRIES * 2 + 5)
    seen: list[ListEntry] = []
    after = ZERO_ID
    for _ in range(4):
        page = directory.answer_list(DirListRequest(after))
        assert len(page.encode()) <= MAX_MESSAGE
        seen += page.entries
        if not page.more:
            break
        after = page.entries[-1].id
    assert seen == directory.entries()
    assert len(seen) == len(directory)
    assert not directory.answer_list(DirListRequest(b"\xff" * 32)).entries
    assert directory.answer_list(DirListRequest()).more
    assert not crowd(MAX_LIST_ENTRIES).answer_list(DirListRequest()).more


def test_one_node_learns_all_from_another() -> None:
    """The loop that a client runs: list, what is wanted, fetch until nothing is."""
    server, client = filled(), Directory(NETWORK_ID, NOW)
    for request in client.wanted(server.answer_list(DirListRequest()).entries):
        for documents in server.answer_fetch(request).documents:
            client.add(documents.certificate, documents.record, NOW)
    assert list(client.relays()) == list(server.relays())
    assert client.wanted(server.entries()) == []


def test_only_what_is_new_is_wanted() -> None:
    server, client = filled(), filled()
    record = descriptor(0, now=NOW + 5, certificate=RELAYS[0].certificate)
    both = descriptor(1, now=NOW + 5, operator="new")
    server.add(None, record.record_raw, NOW + 5)
    server.add(both.certificate.raw, both.record_raw, NOW + 5)
    assert server.wanted(client.entries()) == []
    assert client.wanted(server.entries()) == [
        DirFetch((both.id,), Parts.BOTH),
        DirFetch((record.id,), Parts.RECORD),
    ]
    answer = server.answer_fetch(DirFetch((record.id,), Parts.RECORD)).documents[0]
    assert (answer.certificate, answer.record) == (b"", record.record_raw)
    only = server.answer_fetch(DirFetch((record.id,), Parts.CERTIFICATE)).documents[0]
    assert (only.certificate, only.record) == (record.certificate.raw, b"")


def test_wanted_asks_in_bounded_rising_portions() -> None:
    requests = Directory(NETWORK_ID, NOW).wanted(crowd(MAX_FETCH_IDS + 3).entries())
    assert [len(request.ids) for request in requests] == [MAX_FETCH_IDS, 3]
    for request in requests:
        assert DirFetch.decode(request.encode()) == request


def test_fetch_answers_a_first_part_that_fits() -> None:
    directory = Directory(NETWORK_ID, NOW)
    for number in range(30):
        fake = fake_relay(number)
        fake.certificate._raw = bytes(6000)
        directory._relays[fake.id] = Descriptor(fake.certificate, fake.record, bytes(500))
    ids = tuple(relay.id for relay in directory.relays())
    answer = directory.answer_fetch(DirFetch(ids))
    assert 0 < len(answer.documents) < 30
    assert tuple(one.id for one in answer.documents) == ids[: len(answer.documents)]
    assert MAX_MESSAGE - 6600 < len(answer.encode()) <= MAX_MESSAGE
    unknown = directory.answer_fetch(DirFetch((bytes(32),))).documents
    assert [(one.certificate, one.record) for one in unknown] == [(b"", b"")]
