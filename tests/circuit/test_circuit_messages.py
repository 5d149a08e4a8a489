"""SENDME, EXTEND and CREATED that are forged or out of place; limits; what is ignored; any messages at all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backrooms.circuit.events import ExtendRequested
from backrooms.circuit.hop import MAX_STREAMS
from backrooms.circuit.stream import Stream
from backrooms.wire.cell import CellCommand, DestroyReason
from backrooms.wire.relay import (
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
from tests.circuit.harness import Path, connect, drain, joined, message

R = RelayCommand
DONE, ERROR = End(EndReason.DONE), End(EndReason.CONNRESET)
BEGIN, CONNECTED = Begin("a.example", 80), Connected("192.0.2.9", 5)
SOME = Extend(bytes(32), b"handshake")


# SENDME


@pytest.mark.parametrize("down", [True, False])
@pytest.mark.parametrize("change", [0, 7, 64, 127, "shorter", "longer", "empty", "other", "again"])
def test_a_forged_sendme(down: bool, change: int | str) -> None:
    path, near, far = joined(2)
    sender, edge = (far, path.exit.edge) if down else (near, path.client.edge)
    sender.receive(bytes(100_000), 0.0)
    while not edge.vegas._awaited:
        edge.fill(1)  # and lose it
    real = edge.vegas._awaited[0][0]
    number = int.from_bytes(real, "big")
    tags = {"shorter": real[:15], "longer": real + b"\0", "empty": b"", "other": bytes(16), "again": real}
    tag = tags[change] if isinstance(change, str) else (number ^ 1 << change).to_bytes(16, "big")
    cell = [message(R.SENDME, 0, tag)] * (2 if change == "again" else 1)
    (path.client_sends if down else path.relay_sends)(*cell)
    for name in ("client>0", "0>1") if down else ("1>0", "0>client"):
        wire = path.wire(name)
        (one,) = wire.mux.pop(1)
        wire.handler(CellCommand.RELAY, one, 0)
    who, reason, text = path.fault()
    assert (who, reason) == ("1" if down else "client", DestroyReason.PROTOCOL)
    assert text == ("SENDME that nothing was sent for" if change == "again" else "SENDME with a wrong tag")


# EXTEND


@pytest.mark.parametrize("hop", [0, 1])
def test_a_second_extend_reaches_the_manager_which_refuses_it(hop: int) -> None:
    """The relay's machine says truly that it is extended; `node.relay` ends the circuit then (tests/node)."""
    path = Path(3)
    path.build()
    assert [relay.extended for relay in path.relays] == [True, True, False]
    path.client_sends(message(R.EXTEND, 0, Extend(path.ids[2], b"x")), hop=hop, command=CellCommand.RELAY_EARLY)
    path.settle()
    assert [type(event) for event in path.relay_events[hop]] == [ExtendRequested] * 2


@pytest.mark.parametrize("hop", [0, 1, 2])
def test_an_extend_outside_relay_early(hop: int) -> None:
    path = Path(3)
    path.build()
    path.client_sends(message(R.EXTEND, 0, SOME), hop=hop)
    path.settle()
    assert path.fault() == (str(hop), DestroyReason.PROTOCOL, "EXTEND outside RELAY_EARLY")


def test_relay_early_holds_for_its_own_cell_only() -> None:
    path = Path(1)
    path.build()
    path.client_sends(message(R.BEGIN, 1, BEGIN), command=CellCommand.RELAY_EARLY)
    path.client_sends(message(R.EXTEND, 0, SOME))
    path.settle()
    assert path.fault() == ("0", DestroyReason.PROTOCOL, "EXTEND outside RELAY_EARLY")


@pytest.mark.parametrize(
    "answer", [b"", b"\0\0", b"\0\3abc", b"\0\1", b"\0\0\0", (1200).to_bytes(2, "big") + bytes(1200)]
)
def test_an_extended_that_does_not_verify(answer: bytes) -> None:
    """A relay that makes up an answer, or a next relay that has other keys."""
    path = Path(1)
    path.client.path = (*path.client.path, path.client.path[0])
    path.client.start()
    path.wire("client>0").mux.pop(1)  # the EXTEND never arrives
    path.relay_sends(message(R.EXTENDED, 0, answer))
    path.settle()
    who, reason, _ = path.fault()
    assert (who, reason) == ("client", DestroyReason.PROTOCOL)
    assert len(path.client_events) == 2, "one hop, and the end"


@pytest.mark.parametrize("reply", [b"", b"x", bytes(1200)])
def test_a_created_that_does_not_verify_and_a_second_one(reply: bytes) -> None:
    path = Path(1)
    path.client._create = lambda handshake: None
    path.client.start()
    path.client.created(reply)
    assert path.fault()[:2] == ("client", DestroyReason.PROTOCOL)
    good, near, _ = joined(1)
    good.client.created(reply)
    assert good.fault() == ("client", DestroyReason.PROTOCOL, "second CREATED")
    assert near.closed


# Limits, and what is ignored


def test_an_exit_has_a_limit_of_streams() -> None:
    path = Path(1)
    path.build()
    for start in range(1, MAX_STREAMS + 1, 16):
        path.client_sends(*[message(R.BEGIN, start + i, BEGIN) for i in range(16)])
        path.settle()
    assert path.faults == []
    assert len(path.exit.edge.streams) == MAX_STREAMS
    stream = Stream()
    path.client.edge.add(stream, MAX_STREAMS + 1)
    path.client_sends(message(R.BEGIN, MAX_STREAMS + 1, BEGIN))
    path.settle()
    assert path.faults == []
    assert stream.ended == EndReason.RESOURCELIMIT
    assert len(path.exit.edge.streams) == MAX_STREAMS


def test_unknown_messages_from_0x80_on_and_padding_cells_are_ignored() -> None:
    path, near, far = joined(2)
    path.client_sends(message(0x80, 0, b"new"), message(0xFF, 77), message(R.DATA, 1, b"old"))
    path.client_sends()
    path.relay_sends(message(0x90, 1, bytes(4000)))
    path.relay_sends()
    path.settle()
    assert path.faults == []
    assert far.output() == b"old"
    near.receive(b"goes on", 0.0)
    far.receive(b"as before", 0.0)
    path.settle()
    assert (far.output(), near.output()) == (b"goes on", b"as before")


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=80)), min_size=1, max_size=6))
def test_any_body_is_read_or_ends_the_circuit(cells: list[tuple[bool, bytes]]) -> None:
    path, near, far = joined(1)
    connect(path)
    for to_exit, body in cells:
        (path.client_sends if to_exit else path.relay_sends)(body)
        path.settle()
        if path.faults:
            break
    if path.faults:
        assert path.fault()[1] == DestroyReason.PROTOCOL
        assert near.closed
        assert far.closed
    else:
        drain(path, near)


COMMANDS = st.sampled_from([*[int(c) for c in R if c], 0x7F, 0x80])
VALUES: list[Any] = [DONE, ERROR, Credit(1), Credit(65536), BEGIN, CONNECTED, SOME, Resolved(()), Resolve("a", False)]
PAYLOADS = st.one_of(st.binary(max_size=12), st.sampled_from([value.encode() for value in VALUES]))
MESSAGES = st.lists(st.tuples(COMMANDS, st.sampled_from([0, 1, 2, 3]), PAYLOADS), min_size=1, max_size=4)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.booleans(), MESSAGES), min_size=1, max_size=6))
def test_any_messages_are_read_or_end_the_circuit(cells: list[tuple[bool, list[tuple[int, int, bytes]]]]) -> None:
    path, _near, _far = joined(1)
    connect(path)
    for to_exit, messages in cells:
        (path.client_sends if to_exit else path.relay_sends)(*[message(*one) for one in messages])
        path.settle()
        if path.faults:
            assert path.fault()[1] == DestroyReason.PROTOCOL
            return
