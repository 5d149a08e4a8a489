"""An open link: circuits, ids, messages and keep-alive."""

from __future__ import annotations

import random
from typing import Any

import pytest

from backrooms.channel.circuits import TOP_BIT
from backrooms.channel.machine import (
    DEAD_SECONDS,
    PING_SECONDS,
    Create,
    Created,
    Destroyed,
    LinkMessage,
)
from backrooms.errors import CircuitError, LocalProtocolError, RemoteProtocolError
from backrooms.interfaces import Machine
from backrooms.wire.cell import (
    CELL_SIZE,
    CellCommand,
    DestroyReason,
    pack_cell,
)
from backrooms.wire.link import MAX_MESSAGE, Pong, encode_message, fragment
from tests.channel.links import (
    NOW,
    OURS,
    THEIRS,
    cells,
    circuit,
    create_cell,
    destroy_cell,
    initiator,
    opened,
    relay,
    relay_cell,
    said,
    talk,
)


def test_it_is_a_machine() -> None:
    machine: Machine = initiator().channel
    assert machine.events() == []


@pytest.mark.parametrize("chunk", [0, 1, 5, CELL_SIZE - 1, CELL_SIZE, CELL_SIZE + 1, 3 * CELL_SIZE + 7])
def test_a_circuit_from_create_to_destroy(chunk: int) -> None:
    a, b = opened()
    forward: list[tuple[int, bytes]] = []
    backward: list[tuple[int, bytes]] = []
    circuit_id = a.channel.new_circuit_id()
    a.channel.create(circuit_id, b"hello")
    talk(a, b, chunk)
    assert b.found(Create) == [Create(circuit_id, b"hello")]
    b.channel.handlers[circuit_id] = relay(forward)
    a.channel.handlers[circuit_id] = relay(backward)
    assert b.channel.created(circuit_id, b"welcome")
    talk(a, b, chunk)
    assert a.found(Created) == [Created(circuit_id, b"welcome")]
    out, back = a.channel.mux.open(circuit_id), b.channel.mux.open(circuit_id)
    for number in range(100):
        command = CellCommand.RELAY_EARLY if number < 16 else CellCommand.RELAY
        out.append(relay_cell(circuit_id, b"%04d" % number, command))
        back.append(relay_cell(circuit_id, b"%04d" % -number))
    talk(a, b, chunk)
    assert forward == [(2 if number < 16 else 1, b"%04d" % number) for number in range(100)]
    assert backward == [(1, b"%04d" % -number) for number in range(100)]
    out.append(relay_cell(circuit_id))  # dropped: nothing goes out behind a DESTROY
    assert a.channel.destroy(circuit_id, DestroyReason.FINISHED)
    assert a.channel.circuits == 1
    talk(a, b, chunk)
    assert b.found(Destroyed) == [Destroyed(circuit_id, DestroyReason.NONE)]  # a client does not say why
    assert a.found(Destroyed) == []
    for one in (a, b):
        assert one.channel.circuits == 0
        assert one.channel.handlers == {}
        assert not one.channel.mux.pending
        assert one.channel.counts == {}


def test_output_is_at_most_64_kib_and_whole_cells() -> None:
    a, b = opened()
    circuit_id = circuit(a, b)
    queue = a.channel.mux.open(circuit_id)
    for _ in range(2 * 65536 // CELL_SIZE + 6):
        queue.append(relay_cell(circuit_id))
    assert [len(a.channel.output()) for _ in range(4)] == [65536, 65536, 6 * CELL_SIZE, 0]


def test_circuit_ids_are_random_and_of_the_right_half() -> None:
    a, b = opened()
    for end, top in ((a, TOP_BIT), (b, 0)):
        ids = {end.channel.new_circuit_id() for _ in range(200)}
        assert len(ids) == 200
        assert 0 not in ids
        assert all(one & TOP_BIT == top for one in ids)


class Worn:
    """Randomness that gives given numbers."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def randrange(self, start: int, stop: int) -> int:
        return self.numbers.pop(0)


def test_an_id_in_use_is_not_chosen() -> None:
    a, _ = opened()
    a.channel.create(TOP_BIT | 7, b"x")
    rng: Any = Worn(7, 7, 8)
    assert a.channel.new_circuit_id(rng) == TOP_BIT | 8


def test_an_id_is_free_when_destroy_was_sent_and_received() -> None:
    a, b = opened()
    circuit_id = circuit(a, b)
    a.channel.destroy(circuit_id, 0)
    with pytest.raises(LocalProtocolError, match="in use"):
        a.channel.create(circuit_id, b"again")
    talk(a, b)
    a.channel.create(circuit_id, b"again")
    talk(a, b)
    assert b.found(Create)[-1] == Create(circuit_id, b"again")


def test_both_destroy_at_once() -> None:
    a, b = opened()
    circuit_id = circuit(a, b)
    assert a.channel.destroy(circuit_id, 0)
    assert b.channel.destroy(circuit_id, 0)
    assert not a.channel.destroy(circuit_id, 0)
    assert talk(a, b) is None
    assert (a.channel.circuits, b.channel.circuits) == (0, 0)
    assert a.found(Destroyed) == b.found(Destroyed) == []
    assert a.channel.counts == b.channel.counts == {}


def test_what_comes_for_a_circuit_that_we_ended_is_ignored() -> None:
    a, b = opened()
    circuit_id = circuit(a, b)
    b.channel.destroy(circuit_id, 0)
    late = [relay_cell(circuit_id), create_cell(circuit_id), pack_cell(circuit_id, CellCommand.CREATED, b"\0\0")]
    b.give(b"".join(late))
    assert said(b) == [(circuit_id, CellCommand.DESTROY)]
    assert b.channel.counts == {"late_cell": 3}
    b.give(destroy_cell(circuit_id))
    assert b.channel.circuits == 0


def test_answers_for_a_circuit_that_ended_meanwhile_are_dropped() -> None:
    _, b = opened()
    b.give(create_cell(THEIRS) + destroy_cell(THEIRS, 3))
    assert b.events[-2:] == [Create(THEIRS, b"hello"), Destroyed(THEIRS, 3)]
    assert not b.channel.created(THEIRS, b"too late")
    assert not b.channel.destroy(THEIRS, 0)
    assert said(b) == [(THEIRS, CellCommand.DESTROY)]


def test_our_own_mistakes_are_told() -> None:
    a, b = opened()
    for wrong in (0, OURS):
        with pytest.raises(LocalProtocolError, match="not ours"):
            a.channel.create(wrong, b"")
    circuit_id = circuit(a, b)
    for end in (a, b):
        with pytest.raises(LocalProtocolError, match="waits for no CREATED"):
            end.channel.created(circuit_id, b"twice")
    with pytest.raises(LocalProtocolError):
        a.channel.send_message(5, b"a PONG of the directory")
    with pytest.raises(LocalProtocolError):
        a.channel.send_message(0x80, b"")
    with pytest.raises(LocalProtocolError, match="does not fit"):
        a.channel.create(a.channel.new_circuit_id(), bytes(CELL_SIZE))
    assert a.channel.circuits == 1
    fresh = initiator().channel
    with pytest.raises(CircuitError, match="not open"):
        fresh.create(TOP_BIT | 1, b"")
    with pytest.raises(LocalProtocolError, match="not open"):
        fresh.send_message(16, b"")


@pytest.mark.parametrize("size", [0, 1, 5000, MAX_MESSAGE - 1])
def test_directory_messages(size: int) -> None:
    a, b = opened()
    payload = random.Random(size).randbytes(size)
    a.channel.send_message(16, payload)
    b.channel.send_message(127, payload)
    talk(a, b)
    assert b.found(LinkMessage) == [LinkMessage(16, payload)]
    assert a.found(LinkMessage) == [LinkMessage(127, payload)]


def test_ping_after_silence_and_death_after_more() -> None:
    a, _ = opened()
    first = a.channel.deadline()
    assert first is not None
    assert NOW + 0.8 * PING_SECONDS <= first <= NOW + 1.2 * PING_SECONDS
    a.channel.tick(first - 0.1)
    assert a.channel.output() == b""
    a.channel.tick(first)
    (ping,) = cells(a.channel.output())
    assert ping[2].startswith(b"\1\0\x09\4")
    assert a.channel.deadline() == NOW + DEAD_SECONDS
    a.channel.tick(NOW + DEAD_SECONDS - 0.1)
    assert a.channel.output() == b""
    with pytest.raises(RemoteProtocolError, match="silent for 180 s"):
        a.channel.tick(NOW + DEAD_SECONDS)
    assert a.channel.deadline() is None


def test_pings_are_answered_and_measured() -> None:
    a, b = opened()
    now = a.channel.deadline()
    assert now is not None
    a.channel.tick(now)
    talk(a, b, now=now + 0.25)
    assert a.channel.rtt == pytest.approx(0.25)
    again = a.channel.deadline()
    assert again is not None
    assert 0.8 * PING_SECONDS <= again - (now + 0.25) <= 1.2 * PING_SECONDS
    assert a.channel.counts == b.channel.counts == {}


def test_waits_before_a_ping_differ_between_links() -> None:
    waits = {initiator(seed=seed).channel._patience for seed in range(20)}
    assert len(waits) == 20


def test_anything_received_puts_the_ping_off() -> None:
    a, _ = opened()
    first = a.channel.deadline()
    assert first is not None
    a.channel.receive(pack_cell(0, CellCommand.PADDING, b""), first - 1)
    a.channel.tick(first)
    assert a.channel.output() == b""
    later = a.channel.deadline()
    assert later is not None
    assert later > first


def test_a_pong_that_answers_nothing() -> None:
    a, _ = opened()
    a.give(fragment(encode_message(Pong(5)))[0])
    assert a.channel.counts == {"unexpected_pong": 1}
    assert a.channel.rtt is None


def test_on_dirty_is_called_when_there_is_something_to_say() -> None:
    a, _ = opened()
    calls: list[str] = []
    a.channel.on_dirty = lambda: calls.append("dirty")
    assert a.channel.on_dirty is not None
    a.channel.create(a.channel.new_circuit_id(), b"")
    assert calls == ["dirty"]
    a.channel.close("done")
    assert calls == ["dirty", "dirty"]
