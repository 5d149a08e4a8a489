"""Relay messages: vectors of every format, the rules of a cell's body, and any bytes."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import LocalProtocolError, WireError
from backrooms.wire.cell import BODY_SIZE, CELL_SIZE
from backrooms.wire.relay import (
    ACK_PADDING,
    CIRCUIT_COMMANDS,
    INITIAL_CREDIT,
    MAX_DATA,
    MAX_DATA_ACK,
    MAX_MESSAGES,
    SENDME_CELLS,
    Answer,
    Begin,
    Connected,
    Credit,
    End,
    EndReason,
    Extend,
    RelayCommand,
    Resolve,
    Resolved,
    pack_message,
    parse_messages,
)

VECTORS: list[tuple[Any, str]] = [
    (Begin("example.org", 443, Begin.IPV6_OK), "01 01bb 0b 6578616d706c652e6f7267"),
    (Begin("::1", 80, Begin.IPV4_NOT_OK | Begin.IPV6_PREFERRED), "06 0050 03 3a3a31"),
    (Connected("192.0.2.7", 60), "04 c0000207 0000003c"),
    (Connected("2001:db8::1", 1), "10 20010db8000000000000000000000001 00000001"),
    (Connected("", 0), "00 00000000"),
    (End(EndReason.DONE), "06"),
    (End(200), "c8"),
    (Credit(65536), "00010000"),
    (Credit(0xFFFFFFFF), "ffffffff"),
    (Resolve("a.example", False), "00 09 612e6578616d706c65"),
    (Resolve("192.0.2.7", True), "01 09 3139322e302e322e37"),
    (Resolved(()), "00 0000"),
    (Resolved((), again=True), "01 0000"),
    (
        Resolved((Answer("192.0.2.7", 60), Answer("b.example", 1))),
        "00 0002 09 3139322e302e322e37 0000003c 09 622e6578616d706c65 00000001",
    ),
    (Extend(bytes(range(32)), b"\xaa\xbb"), bytes(range(32)).hex() + "0002 aabb"),
]
FORMATS = [Begin, Connected, End, Credit, Resolve, Resolved, Extend]

ADDRESSES = st.one_of(st.just(""), st.ip_addresses().map(str))
HOSTS = st.text(min_size=1, max_size=63)
U32 = st.integers(0, 2**32 - 1)
VALUES = st.one_of(
    st.builds(Begin, HOSTS, st.integers(1, 65535), st.integers(0, 255)),
    st.builds(Connected, ADDRESSES, U32),
    st.builds(End, st.integers(0, 255)),
    st.builds(Credit, st.integers(1, 2**32 - 1)),
    st.builds(Resolve, HOSTS, st.booleans()),
    st.builds(Resolved, st.lists(st.builds(Answer, st.text(max_size=63), U32), max_size=16).map(tuple), st.booleans()),
    st.builds(Extend, st.binary(min_size=32, max_size=32), st.binary(max_size=2000)),
)
COMMAND = st.integers(1, 255)


def body(*messages: bytes) -> bytes:
    """A cell's body."""
    return b"".join(messages).ljust(BODY_SIZE, b"\0")


def test_frozen_numbers() -> None:
    assert [command.name for command in RelayCommand] == [
        "END_OF_CELL",
        "BEGIN",
        "CONNECTED",
        "DATA",
        "END",
        "CREDIT",
        "RESOLVE",
        "RESOLVED",
        "SENDME",
        "EXTEND",
        "EXTENDED",
        "BEGIN_DIR",
    ]
    assert [int(command) for command in RelayCommand] == list(range(12))
    assert [int(reason) for reason in EndReason] == list(range(1, 15))
    assert (EndReason.DONE, EndReason.EXITPOLICY, EndReason.NOTDIRECTORY) == (6, 4, 14)
    assert {int(command) for command in CIRCUIT_COMMANDS} == {8, 9, 10}
    assert (MAX_MESSAGES, ACK_PADDING, INITIAL_CREDIT) == (16, 16, 65536)
    assert SENDME_CELLS * CELL_SIZE == 65536
    assert (MAX_DATA, MAX_DATA_ACK) == (4067, 4050)


@pytest.mark.parametrize(("value", "text"), VECTORS)
def test_vector(value: Any, text: str) -> None:
    data = bytes.fromhex(text)
    assert value.encode() == data
    assert type(value).decode(data) == value


@pytest.mark.parametrize(("value", "text"), VECTORS)
def test_every_cut_and_every_addition_is_refused(value: Any, text: str) -> None:
    data = bytes.fromhex(text)
    for size in range(len(data)):
        with pytest.raises(WireError):
            type(value).decode(data[:size])
    with pytest.raises(WireError):
        type(value).decode(data + b"\0")


@given(VALUES)
def test_round_trip(value: Any) -> None:
    assert type(value).decode(value.encode()) == value


@given(st.sampled_from(FORMATS), st.binary(max_size=60))
def test_any_bytes_give_a_message_or_a_wire_error(kind: Any, data: bytes) -> None:
    try:
        value = kind.decode(data)
    except WireError:
        return
    assert value.encode() == data


@pytest.mark.parametrize(
    ("decode", "text"),
    [
        (Begin.decode, "00 0000 01 61"),
        (Begin.decode, "00 0050 00"),
        (Begin.decode, "00 0050 01 ff"),
        (Connected.decode, "05 c000020700 00000000"),
        (Credit.decode, "00000000"),
        (Resolve.decode, "02 01 61"),
        (Resolve.decode, "00 00"),
        (Resolved.decode, "02 0000"),
        (Resolved.decode, "00 0011" + "00 00000000" * 17),
    ],
)
def test_wrong_values_are_refused(decode: Callable[[bytes], Any], text: str) -> None:
    with pytest.raises(WireError):
        decode(bytes.fromhex(text))


def test_what_does_not_fit_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError):
        Begin("a" * 256, 80).encode()
    with pytest.raises(LocalProtocolError):
        Credit(2**32).encode()


@given(st.ip_addresses())
def test_connected_says_addresses_in_canonical_form(address: ipaddress.IPv4Address) -> None:
    assert Connected.decode(Connected(str(address), 5).encode()).address == str(address)


# A cell's body


def test_message_vector() -> None:
    data = pack_message(RelayCommand.DATA, 0x1234, b"hi")
    assert data == bytes.fromhex("03 1234 0002 6869")
    ack = pack_message(RelayCommand.SENDME, 0, bytes(16))
    assert ack == bytes.fromhex("08 0000 0010") + bytes(16)
    assert parse_messages(body(ack, data)) == [(8, 0, bytes(16)), (3, 0x1234, b"hi")]


def test_nothing_behind_the_end_is_read() -> None:
    assert parse_messages(body()) == []
    assert parse_messages(body(pack_message(3, 1, b"a"), b"\0", b"\xff" * 100)) == [(3, 1, b"a")]
    assert parse_messages(b"\0" + b"\xff" * (BODY_SIZE - 1)) == []


def test_a_message_may_fill_the_body_to_the_last_byte() -> None:
    data = bytes(range(256)) * 16
    assert parse_messages(pack_message(3, 1, data[:MAX_DATA])) == [(3, 1, data[:MAX_DATA])]
    with pytest.raises(WireError, match="past the cell"):
        parse_messages(pack_message(3, 1, data[: MAX_DATA + 1])[:BODY_SIZE])


@pytest.mark.parametrize("left", [1, 2, 3, 4])
def test_a_header_that_runs_past_the_body_is_refused(left: int) -> None:
    filler = pack_message(3, 1, bytes(MAX_DATA - left))
    assert parse_messages(filler + bytes(left)) == [(3, 1, bytes(MAX_DATA - left))]
    with pytest.raises(WireError, match="header runs past"):
        parse_messages(filler + b"\x03" + bytes(left - 1))


@given(st.lists(st.tuples(COMMAND, st.integers(0, 65535), st.binary(max_size=200)), max_size=16))
def test_messages_round_trip_or_break_a_rule(messages: list[tuple[int, int, bytes]]) -> None:
    known = [m for m in messages if m[0] < 0x80]
    lawful = all((m[1] == 0) == (m[0] in CIRCUIT_COMMANDS) for m in known)
    lawful = lawful and sum(m[0] == RelayCommand.EXTEND for m in known) <= 1
    packed = body(*[pack_message(*m) for m in messages])
    if lawful:
        assert parse_messages(packed) == known
    else:
        with pytest.raises(WireError):
            parse_messages(packed)


@given(st.binary(max_size=BODY_SIZE))
def test_any_body_gives_messages_or_a_wire_error(data: bytes) -> None:
    try:
        messages = parse_messages(data.ljust(BODY_SIZE, b"\0"))
    except WireError:
        return
    assert len(messages) <= MAX_MESSAGES
    assert all(0 < command < 0x80 for command, _, _ in messages)
    packed = b"".join(pack_message(*message) for message in messages)
    assert len(packed) <= BODY_SIZE


@pytest.mark.parametrize("command", range(1, 0x80))
def test_stream_id_zero_is_for_the_circuits_own_messages_only(command: int) -> None:
    own, other = (0, 7) if command in CIRCUIT_COMMANDS else (7, 0)
    assert parse_messages(body(pack_message(command, own, b""))) == [(command, own, b"")]
    with pytest.raises(WireError, match="stream id"):
        parse_messages(body(pack_message(command, other, b"")))


@pytest.mark.parametrize("command", [0x80, 0x81, 0xC3, 0xFF])
@pytest.mark.parametrize("stream_id", [0, 1, 65535])
def test_unknown_commands_from_0x80_on_are_ignored(command: int, stream_id: int) -> None:
    data = pack_message(3, 1, b"a")
    assert parse_messages(body(data, pack_message(command, stream_id, bytes(50)), data)) == [(3, 1, b"a")] * 2
    with pytest.raises(WireError, match="past the cell"):
        parse_messages(body(data, pack_message(command, stream_id, b"")[:3] + b"\xff\xff"))


@pytest.mark.parametrize("command", [RelayCommand.DATA, 0x80])
def test_sixteen_messages_and_no_more(command: int) -> None:
    message = pack_message(command, 1, b"x")
    assert len(parse_messages(body(message * 15, pack_message(3, 1, b"")))) == (1 if command == 0x80 else 16)
    with pytest.raises(WireError, match="too many"):
        parse_messages(body(message * 17))


def test_one_extend_and_no_more() -> None:
    extend = pack_message(RelayCommand.EXTEND, 0, Extend(bytes(32), b"hello").encode())
    assert len(parse_messages(body(extend))) == 1
    with pytest.raises(WireError, match="two EXTENDs"):
        parse_messages(body(extend, pack_message(3, 1, b"a"), extend))
