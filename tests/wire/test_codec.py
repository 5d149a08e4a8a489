"""Reader and Writer: fields in wire order, short reads and trailing bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import LocalProtocolError, WireError
from backrooms.wire.codec import Reader, Writer

FIELDS: list[tuple[str, st.SearchStrategy[Any]]] = [
    ("u8", st.integers(0, 2**8 - 1)),
    ("u16", st.integers(0, 2**16 - 1)),
    ("u32", st.integers(0, 2**32 - 1)),
    ("u64", st.integers(0, 2**64 - 1)),
    ("bytes8", st.binary(max_size=255)),
    ("bytes16", st.binary(max_size=300)),
    ("text8", st.text(max_size=60)),
]
FIELD = st.one_of([st.tuples(st.just(name), values) for name, values in FIELDS])


def test_vector() -> None:
    written = Writer().u8(1).u16(0x0203).u32(0x04050607).u64(8).bytes(b"raw").bytes8(b"ab").bytes16(b"cd").text8("é")
    assert written.done() == bytes.fromhex("01 0203 04050607 0000000000000008 726177 026162 00026364 02c3a9")


@given(st.lists(FIELD, max_size=12))
def test_round_trip(fields: list[tuple[str, Any]]) -> None:
    writer = Writer()
    for name, value in fields:
        getattr(writer, name)(value)
    reader = Reader(writer.done())
    assert [getattr(reader, name)() for name, _ in fields] == [value for _, value in fields]
    assert reader.remaining == 0
    reader.end()


@given(st.binary(max_size=40), st.lists(st.sampled_from([name for name, _ in FIELDS]), max_size=12))
def test_any_bytes_give_values_or_a_wire_error(data: bytes, names: list[str]) -> None:
    reader = Reader(data)
    try:
        for name in names:
            getattr(reader, name)()
        reader.end()
    except WireError:
        assert reader.remaining <= len(data)
    else:
        assert reader.remaining == 0


@given(st.lists(FIELD, min_size=1, max_size=6), st.data())
def test_every_cut_is_an_error(fields: list[tuple[str, Any]], data: st.DataObject) -> None:
    writer = Writer()
    for name, value in fields:
        getattr(writer, name)(value)
    whole = writer.done()
    reader = Reader(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(WireError, match="short read"):
        [getattr(reader, name)() for name, _ in fields]


def test_trailing_bytes_are_an_error() -> None:
    reader = Reader(b"\x01\x02\x03")
    assert reader.u8() == 1
    with pytest.raises(WireError, match="2 trailing bytes"):
        reader.end()
    assert reader.rest() == b"\x02\x03"
    reader.end()


def test_a_failed_read_takes_nothing() -> None:
    reader = Reader(b"\x01\x02\x03")
    with pytest.raises(WireError):
        reader.u32()
    assert reader.rest() == b"\x01\x02\x03"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_reads_from_every_kind_of_buffer(kind: Callable[[bytes], Any]) -> None:
    buffer = kind(b"\x02abrest")
    reader = Reader(buffer)
    assert (reader.bytes8(), reader.rest()) == (b"ab", b"rest")


@pytest.mark.parametrize(
    ("field", "value"),
    [("u8", 256), ("u16", 65536), ("u32", 2**32), ("u64", 2**64), ("u8", -1), ("bytes8", bytes(256))],
)
def test_what_does_not_fit_is_our_bug(field: str, value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        getattr(Writer(), field)(value)


@given(st.lists(st.binary(max_size=5), max_size=8))
def test_vector_round_trip(items: list[bytes]) -> None:
    data = Writer().vector(items, lambda writer, item: writer.bytes8(item)).done()
    reader = Reader(data)
    assert reader.vector(Reader.bytes8, limit=8) == items
    reader.end()


def test_vector_longer_than_its_limit() -> None:
    data = Writer().vector([b"a"] * 4, lambda writer, item: writer.bytes8(item)).done()
    assert Reader(data).vector(Reader.bytes8, limit=4) == [b"a"] * 4
    with pytest.raises(WireError, match="4 items where at most 3"):
        Reader(data).vector(Reader.bytes8, limit=3)
    with pytest.raises(WireError, match="short read"):
        Reader(b"\xff\xff").vector(Reader.bytes8, limit=65535)
