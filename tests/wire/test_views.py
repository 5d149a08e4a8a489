"""The messages about changes and views, and the frames they travel in on streams."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import LocalProtocolError, WireError
from backrooms.wire.documents import MAX_MESSAGE
from backrooms.wire.frames import Unframer, frame
from backrooms.wire.views import (
    BUCKETS,
    MAX_CHANGES,
    MAX_IDS,
    BucketsRequest,
    Change,
    Changes,
    ChangesRequest,
    IdsRequest,
    ViewBuckets,
    ViewIds,
    ViewRequest,
    ViewRoot,
)

ids32 = st.binary(min_size=32, max_size=32)
short = st.binary(min_size=16, max_size=16)
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
id_lists = st.lists(ids32, max_size=6, unique=True).map(lambda ids: tuple(sorted(ids)))
changes = st.lists(st.builds(Change, ids32, u64, short, short), max_size=6, unique_by=lambda one: one.id).map(
    lambda found: tuple(sorted(found, key=lambda one: one.id))
)


def pages(changed: tuple[Change, ...], gone: tuple[bytes, ...], more: bool, instance: bytes, at: int) -> Changes:
    return Changes(instance, at, changed, gone, more and bool(changed or gone))


messages: st.SearchStrategy[Any] = st.one_of(
    st.builds(ChangesRequest, short, u64),
    st.builds(pages, changes, id_lists, st.booleans(), short, u64),
    st.builds(lambda instance, at: Changes(instance, at, anew=True), short, u64),
    st.builds(ViewRequest, u32),
    st.builds(ViewRoot, u32, st.booleans(), st.integers(0, 1_000_000), ids32),
    st.builds(BucketsRequest, u32),
    st.builds(ViewBuckets, u32, st.just(()) | st.lists(short, min_size=BUCKETS, max_size=BUCKETS).map(tuple)),
    st.builds(IdsRequest, u32, st.frozensets(st.integers(0, 255)), ids32),
    st.builds(lambda epoch, ids, more: ViewIds(epoch, ids, more and bool(ids)), u32, id_lists, st.booleans()),
)
KINDS = (ChangesRequest, Changes, ViewRequest, ViewRoot, BucketsRequest, ViewBuckets, IdsRequest, ViewIds)


@given(messages)
def test_round_trip(message: Any) -> None:
    assert type(message).decode(message.encode()) == message


@given(st.sampled_from(KINDS), st.binary(max_size=300))
def test_any_bytes_are_a_value_or_an_error(kind: Any, data: bytes) -> None:
    try:
        message = kind.decode(data)
    except WireError:
        return
    assert kind.decode(message.encode()) == message


def test_the_types_are_these() -> None:
    assert [kind.TYPE for kind in KINDS] == list(range(32, 40))


def test_vectors() -> None:
    change = Change(b"\1" * 32, 7, b"\2" * 16, b"\3" * 16)
    assert ChangesRequest(b"\4" * 16, 9).encode().hex() == "04" * 16 + "0000000000000009"
    expected = "04" * 16 + "000000000000000a" + "01" + "0001" + "01" * 32 + "0000000000000007" + "02" * 16 + "03" * 16
    assert Changes(b"\4" * 16, 10, (change,), (b"\5" * 32,), True).encode().hex() == expected + "0001" + "05" * 32
    assert ViewRoot(3, True, 2, b"\6" * 32).encode().hex() == "00000003" + "01" + "00000002" + "06" * 32
    asked = IdsRequest(3, frozenset({0, 255}), b"\7" * 32).encode().hex()
    assert asked == "00000003" + "80" + "00" * 30 + "01" + "07" * 32
    assert ViewIds(3, (b"\1" * 32,), True).encode().hex() == "00000003" + "01" + "0001" + "01" * 32


def test_full_pages_fit_a_message() -> None:
    change = Change(b"\1" * 32, 7, b"\2" * 16, b"\3" * 16)
    ids = tuple(number.to_bytes(32, "big") for number in range(MAX_IDS))
    assert len(Changes(bytes(16), 1, (change,) * MAX_CHANGES, ids[:MAX_CHANGES]).encode()) <= MAX_MESSAGE
    assert len(ViewIds(1, ids).encode()) <= MAX_MESSAGE


@pytest.mark.parametrize(
    ("kind", "payload", "why"),
    [
        (Changes, bytes(16) + bytes(8) + b"\4" + bytes(4), "unknown flags"),
        (Changes, bytes(16) + bytes(8) + b"\1" + bytes(4), "promises more"),
        (Changes, bytes(16) + bytes(8) + b"\3" + bytes(4), "anew"),
        (Changes, bytes(16) + bytes(8) + b"\0" + b"\0\0" + b"\0\2" + b"\2" * 32 + b"\1" * 32, "rising"),
        (Changes, bytes(16) + bytes(8) + b"\0" + b"\0\2" + b"\1" * 144 + b"\0\0", "rising"),
        (Changes, bytes(16) + bytes(8) + b"\0" + b"\xff\xff", "items"),
        (ViewRoot, bytes(4) + b"\2" + bytes(36), "flags"),
        (ViewRoot, bytes(4) + b"\1" + b"\xff" * 4 + bytes(32), "relays"),
        (ViewBuckets, bytes(4) + b"\0\1" + bytes(16), "digests"),
        (ViewIds, bytes(4) + b"\1" + bytes(2), "promises more"),
        (ViewIds, bytes(4) + b"\0" + b"\xff\xff", "items"),
        (ViewIds, bytes(MAX_MESSAGE + 1), "allowed"),
        (ChangesRequest, bytes(25), "trailing"),
    ],
)
def test_what_breaks_the_rules(kind: Any, payload: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        kind.decode(payload)


# frames


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=50)), max_size=8), st.integers(1, 60))
def test_frames_come_out_as_they_went_in(sent: list[tuple[int, bytes]], step: int) -> None:
    data = b"".join(frame(kind, payload) for kind, payload in sent)
    frames, got = Unframer(), []
    for start in range(0, len(data), step):
        frames.feed(data[start : start + step])
        while (message := frames.next()) is not None:
            got.append(message)
    assert got == sent
    assert len(frames) == 0


def test_one_byte_at_a_time() -> None:
    frames = Unframer()
    for byte in frame(17, b"payload"):
        assert frames.next() is None
        frames.feed(bytes([byte]))
    assert frames.next() == (17, b"payload")


def test_a_frame_that_is_too_long_is_refused_by_its_header() -> None:
    frames = Unframer(100)
    frames.feed(b"\x10\x00\x65")
    with pytest.raises(WireError, match="101 bytes, 100 are allowed"):
        frames.next()
    with pytest.raises(LocalProtocolError):
        frame(1, bytes(MAX_MESSAGE + 1))
