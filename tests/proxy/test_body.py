"""Where bodies end, and chunks."""

from __future__ import annotations

from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import WireError
from backrooms.proxy.body import LAST_CHUNK, MAX_CHUNK, MAX_LINE, MAX_TRAILERS, Body, Chunked, Counted, Endless, chunks


def drive(body: Body, pieces: list[bytes]) -> tuple[bytes, bytes, bool]:
    """The payload, what lies behind the body, and whether the body is whole."""
    payload = b""
    for index, piece in enumerate(pieces):
        taken, rest = body.take(piece)
        payload += taken
        if body.done:
            return payload, rest + b"".join(pieces[index + 1 :]), True
        assert rest == b""
    return payload, b"", False


def trickle(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def test_counted() -> None:
    data = b"hello, and what follows"
    for pieces in ([data], trickle(data)):
        assert drive(Counted(5), pieces) == (b"hello", b", and what follows", True)
    assert drive(Counted(500), [data]) == (data, b"", False)
    assert Counted(0).done


def test_a_counted_body_is_not_copied() -> None:
    data = bytes(1000)
    assert Counted(1000).take(data)[0] is data
    assert Endless().take(data)[0] is data


def test_endless() -> None:
    assert drive(Endless(), [b"a", b"b"]) == (b"ab", b"", False)


GOOD = {
    "empty": (b"0\r\n\r\n", b""),
    "two": (b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world"),
    "hexadecimal": (b"1A\r\n" + b"x" * 26 + b"\r\n0A\r\n" + b"y" * 10 + b"\r\n000\r\n\r\n", b"x" * 26 + b"y" * 10),
    "extensions": (b'3;a=b;c="d e"\r\nabc\r\n0;last\r\n\r\n', b"abc"),
    "blanks": (b"3  \r\nabc\r\n0\t\r\n\r\n", b"abc"),
    "trailers": (b"1\r\na\r\n0\r\nDigest: x\r\nY: z\r\n\r\n", b"a"),
    "looks like chunks": (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
}

BAD = {
    "no number": b"hello\r\n",
    "sign": b"+5\r\nhello\r\n",
    "prefix": b"0x5\r\nhello\r\n",
    "nothing": b"\r\n",
    "blank first": b" 5\r\nhello\r\n",
    "bare newline": b"5\nhello\r\n",
    "bare return": b"5\r5\r\nhello\r\n",
    "too big": b"1" * 16 + b"\r\n",
    "longer than its size": b"4\r\nhello\r\n",
    "not ended": b"5\r\nhello0\r\n",
    "ended by a newline": b"5\r\nhello\n0\r\n\r\n",
    "control byte in an extension": b"5;a\x00b\r\nhello\r\n",
    "endless extension": b"5;" + b"a" * MAX_LINE,
    "endless trailers": b"0\r\n" + b"A: b\r\n" * (MAX_TRAILERS // 6 + 1),
    "endless trailer": b"0\r\n" + b"A" * (MAX_TRAILERS + 2),
    "newline in the trailers": b"0\r\n\n",
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("behind", [b"", b"GET http://next/ HTTP/1.1\r\n\r\n"])
def test_good_chunks(name: str, behind: bytes) -> None:
    data, expected = GOOD[name]
    for pieces in ([data + behind], trickle(data + behind)):
        assert drive(Chunked(), pieces) == (expected, behind, True)
    for size in range(len(data)):
        assert not drive(Chunked(), [data[:size]])[2]


@pytest.mark.parametrize("name", BAD)
def test_bad_chunks(name: str) -> None:
    for pieces in ([BAD[name]], trickle(BAD[name])):
        with pytest.raises(WireError):
            drive(Chunked(), pieces)


@given(st.lists(st.binary(min_size=1, max_size=70), max_size=6), st.binary(max_size=20), st.data())
def test_any_pieces(parts: list[bytes], behind: bytes, data: st.DataObject) -> None:
    sent = b"".join(b"".join(chunks(part)) for part in parts) + LAST_CHUNK + behind
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=5)))
    pieces = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    assert drive(Chunked(), pieces) == (b"".join(parts), behind, True)


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    def outcome(pieces: list[bytes]) -> Any:
        try:
            return drive(Chunked(), pieces)
        except WireError:
            return None

    assert outcome([data]) == outcome(trickle(data))


@given(st.text("0123456789aAfF;=x \t\r\n", max_size=40))
def test_what_we_take_h11_takes_for_the_same(text: str) -> None:
    """Nobody reads another body than we do out of what passes."""
    data = text.encode()
    try:
        payload, rest, whole = drive(Chunked(), [data])
    except WireError:
        return
    if whole:
        other = h11.Connection(h11.SERVER)
        other.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
        assert isinstance(other.next_event(), h11.Request)
        read = b""
        while isinstance(event := other.next_event(), h11.Data):
            read += event.data
        assert isinstance(event, h11.EndOfMessage)
        assert (read, other.trailing_data[0]) == (payload, rest)


def test_chunks_that_we_write() -> None:
    assert chunks(b"") == []
    assert chunks(b"hello") == [b"5\r\nhello\r\n"]
    written = chunks(bytes(65536))
    assert len(written) == 2
    assert all(len(chunk) <= 65536 for chunk in written)
    assert drive(Chunked(), [*written, LAST_CHUNK]) == (bytes(65536), b"", True)
    assert len(chunks(bytes(MAX_CHUNK))) == 1
