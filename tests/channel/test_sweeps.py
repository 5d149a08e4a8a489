"""Every state and any bytes: a link goes on or closes with a reason, and does nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.channel.machine import (
    Channel,
    Create,
    Created,
    Destroyed,
    LinkClosed,
)
from backrooms.errors import RemoteProtocolError
from backrooms.wire.cell import (
    CELL_SIZE,
    CELLS_PER_RECORD,
    CellCommand,
    pack_cell,
)
from tests.channel.links import (
    NOW,
    OURS,
    THEIRS,
    cells,
    create_cell,
    initiator,
    opened,
    relay,
    relay_cell,
    responder,
)


def _signing() -> Channel:
    b = responder()
    b.channel.receive(initiator(relay=True).channel.output(), NOW)
    return b.channel


def _proving() -> Channel:
    b = responder()
    b.give(initiator(relay=True).channel.output())
    return b.channel


def _closed() -> Channel:
    b = opened()[1]
    b.channel.close("closed")
    return b.channel


STATES: dict[str, Callable[[], Channel]] = {
    "waits for HELLO": lambda: responder().channel,
    "signs": _signing,
    "waits for I's PROOF": _proving,
    "waits for R's PROOF": lambda: initiator().channel,
    "open": lambda: opened()[1].channel,
    "closed": _closed,
}


@pytest.mark.parametrize("state", STATES)
def test_every_command_in_every_state(state: str) -> None:
    """The link goes on or closes with a reason; nothing else happens, and time can always go on."""
    for command in (*range(8), 0x7F, 0x80, 0xFF):
        channel = STATES[state]()
        for circuit_id in (0, OURS, THEIRS):
            for payload in (b"", b"\0\1x", b"\1\0\1\x10", b"\xff" * 100):
                cell = pack_cell(circuit_id, command, payload)
                if channel.closed and state != "closed":
                    channel = STATES[state]()
                try:
                    channel.receive(cell, NOW)
                except RemoteProtocolError:
                    assert channel.closed
                    assert isinstance(channel.events()[-1], LinkClosed)
                    assert channel.output() == b""
                else:
                    begun = command == CellCommand.MESSAGE and circuit_id == 0 and payload == b"\0\1x"
                    assert begun or state in ("open", "closed")
                    assert channel.closed == (state == "closed")
                channel.events()
                channel.tick(NOW + 1)


commands = st.sampled_from([*range(8), 0x80])
ids = st.sampled_from([0, OURS, THEIRS, THEIRS + 1, 1])
some_cells = st.builds(pack_cell, ids, commands, st.binary(max_size=12))
any_cells = st.one_of(some_cells, some_cells, st.binary(min_size=CELL_SIZE, max_size=CELL_SIZE))


@given(st.lists(any_cells, max_size=12), st.integers(1, 3 * CELL_SIZE), st.booleans())
def test_any_cells_on_an_open_link(pieces: list[bytes], chunk: int, accept: bool) -> None:
    b = _OPEN.fresh()
    try:
        for start in range(0, len(data := b"".join(pieces)), chunk):
            b.receive(data[start : start + chunk], NOW)
            for event in b.events():
                if isinstance(event, Create) and accept:
                    b.created(event.circuit_id, b"x")
    except RemoteProtocolError:
        assert b.closed
    assert len(b._partial) < CELL_SIZE
    sent = [(circuit_id, command) for circuit_id, command, _ in cells(b.output())]
    destroyed = [circuit_id for circuit_id, command in sent if command == CellCommand.DESTROY]
    assert len(destroyed) <= len(pieces)


class _Recorded:
    """An open responder without signing anew: a client's handshake, recorded once and played again."""

    def __init__(self) -> None:
        self._hello = b""
        self._signatures: dict[str, bytes] = {}

    def fresh(self) -> Channel:
        b = responder()
        if not self._hello:
            self._hello = initiator().channel.output()
        b.channel.receive(self._hello, NOW)
        (request,) = b.channel.events()
        if not self._signatures:
            self._signatures = b.key.sign(request.message, request.algorithms)
        b.channel.signed(b.key.public, self._signatures, NOW)
        b.channel.events()
        while b.channel.output():
            pass
        assert b.channel.open
        return b.channel


_OPEN = _Recorded()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 3)), max_size=60))
def test_two_honest_ends_never_find_fault_with_each_other(steps: list[tuple[bool, int, int]]) -> None:
    """Whatever they do, in whatever order bytes cross."""
    a, b = _opened_pair()
    mine: dict[bool, list[int]] = {True: [], False: []}
    for from_a, action, which in steps:
        one, other = (a, b) if from_a else (b, a)
        open_ids = mine[from_a]
        if action == 0:
            circuit_id = one.new_circuit_id()
            one.create(circuit_id, b"x")
            one.handlers[circuit_id] = relay([])
        elif action == 1 and open_ids:
            one.destroy(open_ids.pop(which % len(open_ids)), 0)
        elif action == 2:
            _hand_over(one, other)
        elif action == 3 and open_ids:
            circuit_id = open_ids[which % len(open_ids)]
            one.mux.open(circuit_id).append(relay_cell(circuit_id))
        else:
            one.send_message(16, b"x" * which * 1000)
        _answer(one, mine[from_a])
        _answer(other, mine[not from_a])
    for _ in range(4):
        for one, other, from_a in ((a, b, True), (b, a, False)):
            _answer(one, mine[from_a])
            while mine[from_a]:
                one.destroy(mine[from_a].pop(), 0)
            _hand_over(one, other)
    assert (a.circuits, b.circuits) == (0, 0)
    assert set(a.counts) | set(b.counts) <= {"late_cell"}


def _hand_over(one: Channel, other: Channel) -> None:
    while data := one.output():
        other.receive(data, NOW)


def _answer(one: Channel, open_ids: list[int]) -> None:
    """Accept what the other end wants, and forget what it ended. Only circuits with CREATED carry cells."""
    for event in one.events():
        if isinstance(event, Create) and one.created(event.circuit_id, b"x"):
            one.handlers[event.circuit_id] = relay([])
        elif isinstance(event, Created):
            open_ids.append(event.circuit_id)
        elif isinstance(event, Destroyed) and event.circuit_id in open_ids:
            open_ids.remove(event.circuit_id)


def _opened_pair() -> tuple[Channel, Channel]:
    b = responder()
    a = initiator()
    b.channel.receive(a.channel.output(), NOW)
    (request,) = b.channel.events()
    b.channel.signed(b.key.public, b.key.sign(request.message, request.algorithms), NOW)
    while data := b.channel.output():
        a.channel.receive(data, NOW)
    a.channel.events()
    b.channel.events()
    return a.channel, b.channel


def test_the_way_of_a_cell_is_short() -> None:
    """A generous bound, so that only a change of kind fails it; `bench` has the figures."""
    channel = _OPEN.fresh()
    channel.receive(create_cell(THEIRS), NOW)
    channel.created(THEIRS, b"")
    channel.handlers[THEIRS] = lambda command, buffer, offset: None
    record = relay_cell(THEIRS, b"x" * 2000) * CELLS_PER_RECORD
    best = 1.0
    for _ in range(20):
        start = time.process_time()
        for _ in range(200):
            channel.receive(record, NOW)
        best = min(best, (time.process_time() - start) / 200 / CELLS_PER_RECORD)
    assert best < 3e-6
