"""What either end of a circuit refuses: the circuit ends with its reason, whatever the peer had the keys for."""

from __future__ import annotations

import pytest

from backrooms.circuit.events import CircuitClosed
from backrooms.wire.cell import BODY_SIZE, DestroyReason
from backrooms.wire.relay import (
    INITIAL_CREDIT,
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
)
from tests.circuit.harness import joined, message

R = RelayCommand
DONE, ERROR = End(EndReason.DONE), End(EndReason.CONNRESET)
BEGIN, CONNECTED = Begin("a.example", 80), Connected("192.0.2.9", 5)
SOME = Extend(bytes(32), b"handshake")


def data(stream_id: int, size: int) -> bytes:
    return message(R.DATA, stream_id, bytes(size))


# Cells, one after the other, of messages to stream 1, which is connected; "unknown" is stream 2.
BOTH: dict[str, tuple[list[list[bytes]], str]] = {
    "data unknown": ([[data(2, 5)]], "message for a stream that does not exist"),
    "data on stream 0": ([[data(0, 5)]], "message for a stream that does not exist"),
    "data on stream 0, packed": (
        [[message(R.CREDIT, 1, Credit(1)), data(0, 5)]],
        "relay message with the wrong kind of",
    ),
    "data after end": ([[message(R.END, 1, DONE), data(1, 5)]], "DATA after END"),
    "data after end, next cell": ([[message(R.END, 1, DONE)], [data(1, 5)]], "DATA after END"),
    "data after error end": ([[message(R.END, 1, ERROR), data(1, 5)]], "message for a stream that does not exist"),
    "data beyond credit": ([[data(1, 4000)]] * 17, "more DATA than the stream's credit allows"),
    "one byte beyond credit": (
        [*[[data(1, 4000)]] * 16, [data(1, INITIAL_CREDIT - 64_000), data(1, 1)]],
        "more DATA than the stream's credit allows",
    ),
    "end unknown": ([[message(R.END, 2, DONE)]], "message for a stream that does not exist"),
    "second end": ([[message(R.END, 1, DONE), message(R.END, 1, DONE)]], "second END"),
    "end on stream 0": ([[message(R.END, 0, DONE)]], "relay message with the wrong kind of stream id"),
    "end without a reason": ([[message(R.END, 1)]], "short read: 1 bytes wanted, 0 there"),
    "end with more": ([[message(R.END, 1, b"\6\0")]], "1 trailing bytes"),
    "credit unknown": ([[message(R.CREDIT, 2, Credit(1))]], "message for a stream that does not exist"),
    "credit of nothing": ([[message(R.CREDIT, 1, bytes(4))]], "CREDIT of nothing"),
    "credit overflow": ([[message(R.CREDIT, 1, Credit(0xFFFFFFFF))]], "stream credit overflows"),
    "credit overflow in steps": ([[message(R.CREDIT, 1, Credit(0x80000000))]] * 2, "stream credit overflows"),
    "sendme unasked": ([[message(R.SENDME, 0, bytes(16))]], "SENDME that nothing was sent for"),
    "sendme on a stream": ([[message(R.SENDME, 1, bytes(16))]], "relay message with the wrong kind of stream id"),
    "unknown command": ([[message(0x7F, 1)]], "unexpected relay message 127"),
    "unknown circuit command": ([[message(0x40, 0)]], "relay message with the wrong kind of stream id"),
    "seventeen messages": ([[data(1, 1) * 17]], "too many relay messages in one cell"),
    "past the cell": ([[b"\x03\x00\x01" + (BODY_SIZE - 4).to_bytes(2, "big")]], "relay message runs past the cell"),
}
TO_EXIT: dict[str, tuple[list[list[bytes]], str]] = {
    "begin twice": ([[message(R.BEGIN, 1, BEGIN)]], "stream id is in use"),
    "begin twice in a cell": ([[message(R.BEGIN, 2, BEGIN), message(R.BEGIN, 2, BEGIN)]], "stream id is in use"),
    "begin after half close": ([[message(R.END, 1, DONE), message(R.BEGIN, 1, BEGIN)]], "stream id is in use"),
    "begin and resolve": (
        [[message(R.RESOLVE, 2, Resolve("a", False)), message(R.BEGIN, 2, BEGIN)]],
        "stream id is in use",
    ),
    "resolve twice": ([[message(R.RESOLVE, 2, Resolve("a", False))] * 2], "stream id is in use"),
    "data on a look-up": (
        [[message(R.RESOLVE, 2, Resolve("a", False)), data(2, 1)]],
        "message for a stream that does not exist",
    ),
    "begin_dir with an id in use": ([[message(R.BEGIN_DIR, 1)]], "stream id is in use"),
    "begin_dir twice in a cell": ([[message(R.BEGIN_DIR, 2), message(R.BEGIN_DIR, 2)]], "stream id is in use"),
    "begin_dir with data": ([[message(R.BEGIN_DIR, 2, b"x")]], "BEGIN_DIR with data"),
    "begin_dir on stream 0": (
        [[data(1, 1), message(R.BEGIN_DIR, 0)]],
        "relay message with the wrong kind of stream id",
    ),
    "begin without port": ([[message(R.BEGIN, 2, Begin("a", 0))]], "BEGIN without a host or a port"),
    "connected": ([[message(R.CONNECTED, 1, CONNECTED)]], "unexpected relay message 2"),
    "resolved": ([[message(R.RESOLVED, 1, Resolved(()))]], "unexpected relay message 7"),
    "extended": ([[message(R.EXTENDED, 0, b"\0\0")]], "unexpected relay message 10"),
    "extend late": ([[message(R.EXTEND, 0, SOME)]], "EXTEND outside RELAY_EARLY"),
}
TO_CLIENT: dict[str, tuple[list[list[bytes]], str]] = {
    "begin": ([[message(R.BEGIN, 2, BEGIN)]], "unexpected relay message 1"),
    "begin_dir": ([[message(R.BEGIN_DIR, 2)]], "unexpected relay message 11"),
    "resolve": ([[message(R.RESOLVE, 2, Resolve("a", False))]], "unexpected relay message 6"),
    "extend": ([[message(R.EXTEND, 0, SOME)]], "unexpected relay message 9"),
    "connected twice": ([[message(R.CONNECTED, 1, CONNECTED)]], "second CONNECTED"),
    "connected unknown": ([[message(R.CONNECTED, 2, CONNECTED)]], "message for a stream that does not exist"),
    "connected malformed": (
        [[message(R.CONNECTED, 1, b"\3abc\0\0\0\0")]],
        "CONNECTED with an address of the wrong length",
    ),
    "resolved unasked": ([[message(R.RESOLVED, 2, Resolved((Answer("a", 1),)))]], "RESOLVED that nobody asked for"),
    "resolved on a stream": ([[message(R.RESOLVED, 1, Resolved(()))]], "RESOLVED that nobody asked for"),
    "extended unasked": ([[message(R.EXTENDED, 0, b"\0\1x")]], "answer to a handshake that was not asked for"),
}


@pytest.mark.parametrize("name", [*BOTH, *TO_EXIT])
def test_the_exit_refuses(name: str) -> None:
    cells, text = {**BOTH, **TO_EXIT}[name]
    path, _near, far = joined(2)
    for cell in cells:
        path.client_sends(*cell)
    path.settle()
    who, reason, said = path.fault()
    assert (who, reason) == ("1", DestroyReason.PROTOCOL)
    assert said.startswith(text)
    assert far.closed
    assert len(path.faults) == 1


@pytest.mark.parametrize("name", [*BOTH, *TO_CLIENT])
def test_the_client_refuses(name: str) -> None:
    cells, text = {**BOTH, **TO_CLIENT}[name]
    path, near, _far = joined(2)
    for cell in cells:
        path.relay_sends(*cell)
    path.settle()
    who, reason, said = path.fault()
    assert (who, reason) == ("client", DestroyReason.PROTOCOL)
    assert said.startswith(text)
    assert near.closed
    assert len(path.faults) == 1


@pytest.mark.parametrize("name", [*BOTH, *TO_CLIENT])
def test_a_relay_in_the_middle_has_nothing_to_say(name: str) -> None:
    """The leaky pipe is shut: a recognised cell of any hop but the last ends the circuit, before it is parsed."""
    cells, _ = {**BOTH, **TO_CLIENT}[name]
    path, near, _far = joined(3)
    path.relay_sends(*cells[0], hop=1)
    path.settle()
    assert path.fault() == ("client", DestroyReason.PROTOCOL, "a cell from a hop that has nothing to say")
    assert near.output() == b""


def test_data_from_a_relay_in_the_middle_is_not_delivered() -> None:
    for hop in (0, 1):
        path, near, _ = joined(3)
        path.relay_sends(message(R.DATA, near.stream_id, b"injected"), hop=hop)
        path.settle()
        assert path.fault()[2] == "a cell from a hop that has nothing to say"
        assert near.output() == b""


def test_nothing_behind_the_fault_is_read() -> None:
    """Not in the same cell, and not in the cells behind it."""
    path, _near, far = joined(2)
    before = len(path.relay_events[1])
    path.client_sends(
        message(R.DATA, 1, b"good"),
        message(R.CREDIT, 9, Credit(1)),
        message(R.DATA, 1, b"bad"),
        message(R.BEGIN, 3, BEGIN),
    )
    path.client_sends(message(R.DATA, 1, b"worse"), message(R.BEGIN, 5, BEGIN))
    path.settle()
    assert far.output() == b"good"
    assert [type(event) for event in path.relay_events[1][before:]] == [CircuitClosed]
