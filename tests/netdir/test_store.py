"""The saved list as bytes: what was written is read, and damage shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import WireError
from backrooms.netdir import store
from backrooms.netdir.certificate import IdentityCertificate, ShelfError, shelf_check
from backrooms.netdir.descriptor import Descriptor, make_revocation
from backrooms.netdir.policy import ExitPolicy
from backrooms.wire.admission import Admission
from tests.keys import NETWORK_ID, NOW, descriptor, identity


class Box:
    """A shelf in memory."""

    def __init__(self) -> None:
        self.data = b""

    def put(self, relay: Descriptor) -> Descriptor:
        raw = relay.certificate.raw
        relay.certificate.shelve(self, len(self.data), len(raw), shelf_check(raw))
        self.data += raw
        return relay

    def read(self, place: int, size: int, check: bytes) -> bytes:
        data = self.data[place : place + size]
        if shelf_check(data) != check:
            raise ShelfError
        return data


HEAD = store.Head(NETWORK_ID, store.rules_of(()), 7)


def saved(box: Box) -> tuple[bytes, list[store.Row]]:
    keys = identity(1)
    relays = [
        descriptor(0, exit_policy=ExitPolicy.reduced(), family=(bytes(range(32)),), operator="somebody"),
        make_revocation(keys.sign, keys.public, NETWORK_ID, NOW),
    ]
    rows = [(box.put(relay), 1000 + number) for number, relay in enumerate(relays)]
    return store.encode_index(HEAD, [store.encode_row(row) for row in rows]), rows


def test_what_was_written_is_read() -> None:
    box = Box()
    data, rows = saved(box)
    assert store.decode_head(data) == HEAD
    found = list(store.decode_rows(data, box, len(box.data)))
    assert found == rows
    for (relay, _), (before, _) in zip(found, rows, strict=True):
        assert relay.certificate.facts == before.certificate.facts
        assert relay.certificate.identity == before.certificate.identity
        assert relay.expires == before.expires
    assert found[1][0].revoked


def test_facts_are_those_of_the_body() -> None:
    relay = descriptor(0, family=(bytes(32),), operator="me")
    body, facts = relay.certificate.body, relay.certificate.facts
    for name in ("ed25519", "created", "expires", "family", "operator", "contact"):
        assert getattr(facts, name) == getattr(body, name)
    assert facts.admitted == 0
    admitted = replace(body, admission=Admission(bytes(32), 99, bytes(64)))
    assert IdentityCertificate(relay.identity, admitted, frozenset(), b"", b"").facts.admitted == 99


def test_what_is_behind_the_end_of_the_certificates_is_left_out() -> None:
    box = Box()
    data, rows = saved(box)
    assert [relay.id for relay, _ in store.decode_rows(data, box, len(box.data) - 1)] == [rows[0][0].id]


def test_every_damage_shows() -> None:
    data, _ = saved(Box())
    for at in range(0, len(data), 7):
        broken = bytearray(data)
        broken[at] ^= 1
        with pytest.raises(WireError):
            store.decode_head(bytes(broken))
        with pytest.raises(WireError):
            store.decode_head(data[:at])
    with pytest.raises(WireError):
        store.decode_head(data + b"\0")


def test_a_damaged_certificate_shows_when_it_is_read() -> None:
    box = Box()
    relay = box.put(descriptor(0))
    raw = relay.certificate.raw
    assert relay.certificate.has_bytes(raw)
    box.data = b"\0" + raw[1:]
    assert relay.certificate.has_bytes(raw), "no need to look"
    assert not relay.certificate.has_bytes(box.data)
    with pytest.raises(ShelfError):
        _ = relay.certificate.raw
    assert relay.family == ()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_wire_error(data: bytes) -> None:
    for start in (b"", b"backrooms-relays-2\n", b"backrooms-directory-1\n"):
        with pytest.raises(WireError):
            store.decode_head(start + data)
    if data != bytes(4):
        with pytest.raises(WireError):
            list(store.decode_first_form(b"backrooms-directory-1\n" + data))
