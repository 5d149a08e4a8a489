"""The messages of gossip: bytes to values and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import LocalProtocolError, WireError
from backrooms.wire.cell import PAYLOAD_SIZE
from backrooms.wire.documents import MAX_LIST_ENTRIES, ListEntry
from backrooms.wire.gossip import (
    BITMAP_SIZE,
    BUCKET_DIGEST,
    BUCKETS,
    GOSSIP_MESSAGES,
    AnyGossipMessage,
    Buckets,
    News,
    Offer,
    Summary,
    revision_of,
)
from backrooms.wire.link import fragment, is_handed_on
from tests.wire.forms import check_any_bytes, check_cut_and_addition

ids = st.binary(min_size=32, max_size=32)
entries = st.lists(st.builds(ListEntry, ids, ids, st.integers(0, 2**64 - 1)), max_size=5, unique_by=lambda one: one.id)
rising = entries.map(lambda some: tuple(sorted(some, key=lambda one: one.id)))
news = st.builds(News, ids, st.binary(min_size=43, max_size=60), st.binary(max_size=20))
messages: st.SearchStrategy[AnyGossipMessage] = st.one_of(
    st.builds(
        Summary,
        ids,
        st.sampled_from([b"", bytes(BUCKETS * BUCKET_DIGEST)]),
        st.lists(news, max_size=3).map(tuple),
    ),
    rising.map(lambda some: Buckets.of(sorted({one.id[0] for one in some} | {7}), some)),
    rising.filter(bool).map(Offer),
)
RECORD = b"\0\x29\1" + bytes(range(32)) + bytes(7) + b"\x05" + b"rest"
ENTRY = ListEntry(b"\x07" + bytes(31), b"\1" * 32, 9)

VECTORS: list[tuple[AnyGossipMessage, bytes]] = [
    (Summary(b"\2" * 32), b"\2" * 32 + b"\0\0" + b"\0\0"),
    (
        Summary(b"\2" * 32, b"\3" * 3072, (News(b"\4" * 32, RECORD, b"cert"),)),
        b"\2" * 32 + b"\x0c\0" + b"\3" * 3072 + b"\0\1" + b"\4" * 32 + b"\0\4cert" + b"\0\x2f" + RECORD,
    ),
    (Buckets.of([7], (ENTRY,)), b"\1" + bytes(31) + b"\0\1" + b"\7" + bytes(31) + b"\1" * 32 + bytes(7) + b"\x09"),
    (Buckets.of([0, 255], ()), b"\x80" + bytes(30) + b"\1" + b"\0\0"),
    (Offer((ENTRY,)), b"\0\1" + b"\7" + bytes(31) + b"\1" * 32 + bytes(7) + b"\x09"),
]


@pytest.mark.parametrize(("message", "payload"), VECTORS, ids=[str(n) for n in range(len(VECTORS))])
def test_vectors(message: AnyGossipMessage, payload: bytes) -> None:
    assert message.encode() == payload
    assert type(message).decode(payload) == message


def test_types_and_sizes() -> None:
    assert sorted(GOSSIP_MESSAGES) == [22, 23, 24]
    assert all(is_handed_on(kind) for kind in GOSSIP_MESSAGES)
    whole = bytes([Summary.TYPE]) + Summary(bytes(32), bytes(BUCKETS * BUCKET_DIGEST)).encode()
    assert len(fragment(whole)) == 1, "a summary is one cell"
    assert len(whole) < PAYLOAD_SIZE - 900, "with room for some news"
    most = Buckets.of(list(range(256)), tuple(ListEntry(n.to_bytes(32, "big"), bytes(32), 1) for n in range(800)))
    assert Buckets.decode(most.encode()) == most


def test_what_the_bytes_of_a_record_say() -> None:
    one = News(bytes(32), RECORD)
    assert (one.id, one.revision, revision_of(RECORD)) == (bytes(range(32)), 5, 5)


@given(messages)
def test_round_trip(message: AnyGossipMessage) -> None:
    assert type(message).decode(message.encode()) == message


@given(st.sampled_from(sorted(GOSSIP_MESSAGES)), st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_wire_error(kind: int, data: bytes) -> None:
    check_any_bytes(GOSSIP_MESSAGES[kind].decode, data)


@given(messages, st.data())
def test_every_cut_and_every_addition_is_a_wire_error(message: AnyGossipMessage, data: st.DataObject) -> None:
    payload = message.encode()
    cut = data.draw(st.integers(0, len(payload) - 1))
    check_cut_and_addition(type(message).decode, payload, cut)


@pytest.mark.parametrize(
    ("kind", "payload", "reason"),
    [
        (Summary, bytes(32) + b"\0\1\0" + b"\0\0", "1 bytes of digests"),
        (Summary, bytes(32) + b"\0\0" + b"\0\1" + bytes(32) + b"\0\0" + b"\0\x2a" + bytes(42), "record of 42 bytes"),
        (Summary, bytes(32) + b"\0\0" + b"\0\1" + bytes(32) + b"\0\0" + b"\x1f\x41" + bytes(8001), "record of 8001"),
        (Summary, bytes(32) + b"\0\0" + b"\0\1" + bytes(32) + b"\x2e\xe1" + bytes(12001) + b"\0\0", "of 12001 bytes"),
        (Summary, bytes(32) + b"\0\0" + b"\0\x41", "65 items"),
        (Summary, bytes(60_001), "60000 are allowed"),
        (Buckets, bytes(BITMAP_SIZE) + b"\0\0", "BUCKETS of nothing"),
        (Buckets, b"\x80" + bytes(31) + b"\0\1" + b"\1" + bytes(71), "another bucket"),
        (Buckets, b"\x80" + bytes(31) + b"\0\2" + bytes(144), "rising order"),
        (Buckets, b"\x80" + bytes(31) + (MAX_LIST_ENTRIES + 1).to_bytes(2, "big"), "801 items"),
        (Offer, b"\0\0", "OFFER of nothing"),
        (Offer, b"\0\2" + bytes(144), "rising order"),
    ],
)
def test_hostile(kind: type[Any], payload: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        kind.decode(payload)


def test_our_own_mistakes_are_told() -> None:
    with pytest.raises(LocalProtocolError):
        Summary(bytes(32), b"", tuple(News(bytes(32), bytes(8000)) for _ in range(8))).encode()
