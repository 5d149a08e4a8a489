"""Link messages: their bytes, and what becomes of other people's bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import LocalProtocolError, WireError
from backrooms.wire.cell import CELL_SIZE, HEADER_SIZE, PAYLOAD_SIZE, CellCommand, unpack_cell
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.extensions import encode_extensions
from backrooms.wire.link import (
    FRAGMENT_SIZE,
    MAX_HANDSHAKE_MESSAGE,
    MAX_MESSAGE,
    MAX_VERSIONS,
    Hello,
    LinkMessageType,
    LinkOk,
    Ping,
    Pong,
    Proof,
    Reassembler,
    encode_message,
    fragment,
    split_message,
)

KINDS = {one.TYPE: one for one in (Hello, Proof, LinkOk, Ping, Pong)}

ids = st.binary(min_size=32, max_size=32)
u64 = st.integers(0, 2**64 - 1)
hellos = st.builds(Hello, st.lists(st.integers(1, 65535), min_size=1, max_size=MAX_VERSIONS).map(tuple), ids, ids, ids)
short = st.binary(max_size=600)
proofs = st.builds(Proof, st.integers(0, 65535), short, u64, short, short, short)
messages = st.one_of(hellos, proofs, st.just(LinkOk()), st.builds(Ping, u64), st.builds(Pong, u64))


def join(cells: list[bytes], limit: int = MAX_MESSAGE) -> list[bytes]:
    """The messages in whole cells."""
    reassembler = Reassembler(limit)
    found = [reassembler.feed(cell[HEADER_SIZE:]) for cell in cells]
    return [message for message in found if message is not None]


def test_the_bytes_of_hello() -> None:
    hello = Hello((1, 2), b"R" * 32, b"I" * 32, b"k" * 32)
    expected = b"\x01" + b"\x00\x02\x00\x01\x00\x02" + b"R" * 32 + b"I" * 32 + b"k" * 32
    assert encode_message(hello) == expected


def test_the_bytes_of_proof() -> None:
    proof = Proof(1, b"keys", 60, b"ed", b"dsa", b"")
    expected = b"\x02\x00\x01\x00\x04keys" + (60).to_bytes(8, "big") + b"\x00\x02ed\x00\x03dsa\x00\x00"
    assert encode_message(proof) == expected


def test_the_bytes_of_the_short_ones() -> None:
    assert encode_message(LinkOk()) == b"\x03"
    assert encode_message(Ping(258)) == b"\x04" + bytes(6) + b"\x01\x02"
    assert encode_message(Pong(258)) == b"\x05" + bytes(6) + b"\x01\x02"


def test_the_bytes_of_a_message_cell() -> None:
    (cell,) = fragment(b"\x10hello")
    assert cell == (b"\0\0\0\0\x06\0\0\0" + b"\x01\x00\x06" + b"\x10hello").ljust(CELL_SIZE, b"\0")


@given(messages)
def test_round_trip(message: Hello | Proof | LinkOk | Ping | Pong) -> None:
    kind, payload = split_message(encode_message(message))
    assert KINDS[kind].decode(Reader(payload)) == message


# Not parametrized: pytest-twisted would wrap hypothesis's inner test once more for each parameter.
@given(st.sampled_from(list(KINDS.values())), st.binary(max_size=300))
def test_any_bytes(kind: type[Hello], data: bytes) -> None:
    try:
        message = kind.decode(Reader(data))
    except WireError:
        return
    again = Writer()
    message.encode(again)
    # Extensions from 0x80 on are skipped, so what is encoded again may be shorter, never different.
    assert data.startswith(again.done())


@pytest.mark.parametrize("kind", [Hello, LinkOk])
def test_extensions_follow_the_rule(kind: type[Hello] | type[LinkOk]) -> None:
    message = Hello((1,), bytes(32), bytes(32), bytes(32)) if kind is Hello else LinkOk()
    payload = encode_message(message)[1:]
    assert kind.decode(Reader(payload + encode_extensions({0x80: b"x", 0xFF: b""}))) == message
    with pytest.raises(WireError, match="unknown extension 1"):
        kind.decode(Reader(payload + encode_extensions({1: b""})))
    with pytest.raises(WireError, match="extension 128 after extension 129"):
        kind.decode(Reader(payload + b"\x81\0\0\x80\0\0"))


@pytest.mark.parametrize("message", [Proof(1, b"", 0, b"", b"", b""), Ping(1), Pong(1)])
def test_trailing_bytes_are_an_error(message: Proof | Ping | Pong) -> None:
    with pytest.raises(WireError, match="trailing"):
        type(message).decode(Reader(encode_message(message)[1:] + b"\x80\0\0"))


@pytest.mark.parametrize("versions", [(), (0,), (1, 0), tuple(range(1, MAX_VERSIONS + 2))])
def test_versions_that_are_refused(versions: tuple[int, ...]) -> None:
    payload = encode_message(Hello(versions, bytes(32), bytes(32), bytes(32)))[1:]
    with pytest.raises(WireError):
        Hello.decode(Reader(payload))


def test_secrets_are_not_shown() -> None:
    assert "k" * 32 not in repr(Hello((1,), bytes(32), bytes(32), b"k" * 32))
    assert "sig" not in repr(Proof(1, b"keys", 0, b"sig", b"sig", b"sig"))


@given(st.lists(st.integers(1, 3 * FRAGMENT_SIZE), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_fragments_join_again(sizes: list[int], rng: object) -> None:
    sent = [rng.randbytes(size) for size in sizes]  # type: ignore[attr-defined]
    cells = [cell for message in sent for cell in fragment(message)]
    for cell in cells:
        circuit_id, command, _ = unpack_cell(cell)
        assert (circuit_id, command) == (0, CellCommand.MESSAGE)
    assert join(cells) == sent
    assert len(cells) == sum(-(-size // FRAGMENT_SIZE) for size in sizes)


@pytest.mark.parametrize("size", [1, FRAGMENT_SIZE - 1, FRAGMENT_SIZE, FRAGMENT_SIZE + 1, MAX_MESSAGE])
def test_sizes_at_the_edge(size: int) -> None:
    assert join(fragment(b"x" * size)) == [b"x" * size]


@pytest.mark.parametrize("size", [0, MAX_MESSAGE + 1])
def test_we_send_no_message_of_a_wrong_size(size: int) -> None:
    with pytest.raises(LocalProtocolError):
        fragment(bytes(size))


@pytest.mark.parametrize("limit", [MAX_HANDSHAKE_MESSAGE, MAX_MESSAGE])
def test_a_message_cannot_grow_beyond_the_limit(limit: int) -> None:
    reassembler = Reassembler(limit)
    endless = (b"\0" + FRAGMENT_SIZE.to_bytes(2, "big")).ljust(PAYLOAD_SIZE, b"x")
    for _ in range(limit // FRAGMENT_SIZE):
        assert reassembler.feed(endless) is None
    with pytest.raises(WireError, match=f"more than {limit} bytes"):
        reassembler.feed(endless)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x02\x00\x01x",  # a flag that nobody knows
        b"\xff\x00\x01x",
        b"\x01\x00\x00",  # empty, or it could go on for ever
        b"\x00\x00\x00",
        b"\x01\xff\xff",  # longer than its cell
        b"\x01" + (FRAGMENT_SIZE + 1).to_bytes(2, "big"),
        b"\x01\x00\x01xy",  # something behind the end
    ],
)
def test_bad_fragments(payload: bytes) -> None:
    with pytest.raises(WireError):
        Reassembler().feed(payload.ljust(PAYLOAD_SIZE, b"\0"))


@given(st.lists(st.binary(min_size=PAYLOAD_SIZE, max_size=PAYLOAD_SIZE) | st.binary(max_size=40), max_size=6))
def test_any_fragments(payloads: list[bytes]) -> None:
    reassembler = Reassembler()
    for payload in payloads:
        try:
            message = reassembler.feed(payload)
        except WireError:
            return
        assert message is None or 0 < len(message) <= MAX_MESSAGE


def test_an_empty_message_has_no_type() -> None:
    with pytest.raises(WireError):
        split_message(b"")


def test_types_are_below_the_directory() -> None:
    assert max(LinkMessageType) < 16
