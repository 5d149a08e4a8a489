"""The mux: control first, the quietest circuit next, and no cell lost, doubled or turned around."""

from __future__ import annotations

import random
import sys
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.channel import mux as mux_module
from backrooms.channel.mux import CELL_MEMORY, HALF_LIFE, QUANTUM, QUEUE_LIMIT, CircuitQueue, Mux
from backrooms.circuit.flow import CWND_MAX
from backrooms.wire.cell import CELL_SIZE


def cell(circuit_id: int, number: int) -> bytes:
    """A stand-in for a cell: the mux never looks into one."""
    return b"%d:%d" % (circuit_id, number)


def circuit_of(one: bytes) -> int:
    return int(one.split(b":")[0])


@dataclass
class Source:
    """Makes `left` cells, when asked; remembers how it was asked."""

    circuit_id: int
    left: int
    asked: list[int] = field(default_factory=list)
    made: int = 0
    on_fill: Callable[[], None] | None = None

    def fill(self, limit: int) -> list[bytes]:
        self.asked.append(limit)
        if self.on_fill is not None:
            self.on_fill()
        count = min(limit, self.left)
        self.left -= count
        cells = [cell(self.circuit_id, self.made + i) for i in range(count)]
        self.made += count
        return cells


def sourced(mux: Mux, circuit_id: int, left: int) -> tuple[CircuitQueue, Source]:
    queue = mux.open(circuit_id)
    source = queue.source = Source(circuit_id, left)
    queue.wake()
    return queue, source


def fill(queue: CircuitQueue, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        queue.append(cell(queue.circuit_id, number))


def all_of(mux: Mux, limit: int = 16) -> list[bytes]:
    out: list[bytes] = []
    while mux.pending:
        out += mux.pop(limit)
    return out


def jain(shares: list[int]) -> float:
    """Jain's index of fairness: 1 when all shares are equal, 1/n when one has it all."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def test_an_empty_mux_gives_nothing() -> None:
    mux = Mux()
    assert (mux.pending, mux.pop(16), mux.queued()) == (False, [], 0)
    mux.open(1)
    assert (mux.pending, mux.pop(16), mux.queued()) == (False, [], 0)


def test_control_overtakes_all() -> None:
    mux = Mux()
    fill(mux.open(1), 10)
    assert mux.pop(2) == [cell(1, 0), cell(1, 1)]
    mux.control(b"a")
    mux.control(b"b")
    assert mux.queued() == 10
    assert mux.pop(1) == [b"a"]
    assert mux.pop(3) == [b"b", cell(1, 2), cell(1, 3)]


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 5, 7, 16, 100])
def test_pop_never_gives_more_than_asked(limit: int) -> None:
    mux = Mux()
    for circuit_id in (1, 2, 3):
        fill(mux.open(circuit_id), 6)
    _, source = sourced(mux, 4, 6)
    mux.control(b"0:0")
    got = mux.pop(limit)
    assert len(got) == min(limit, 25)
    assert len(got) + mux.queued() + source.left == 25


def test_a_lone_circuit_takes_the_whole_record() -> None:
    mux = Mux()
    fill(mux.open(1), 40)
    assert mux.pop(16) == [cell(1, number) for number in range(16)]


def test_equals_take_turns_by_the_quantum() -> None:
    mux = Mux()
    for circuit_id in (1, 2):
        fill(mux.open(circuit_id), 20)
    turns = [circuit_of(one) for one in mux.pop(4 * QUANTUM)]
    assert turns == [1] * QUANTUM + [2] * QUANTUM + [1] * QUANTUM + [2] * QUANTUM


def test_a_quiet_circuit_overtakes_a_bulk_one() -> None:
    mux = Mux()
    _, bulk = sourced(mux, 1, 1_000_000)
    quiet = mux.open(2)
    for number in range(50):
        assert len(mux.pop(16)) == 16
        fill(quiet, 1, number)
        assert mux.pop(16)[0] == cell(2, number)
    assert bulk.made == 50 * 31


def test_past_activity_is_forgotten_by_halves() -> None:
    mux = Mux()
    old, _ = sourced(mux, 1, HALF_LIFE)
    while old.source and mux.pop(16):
        pass
    before = old.activity / mux._unit
    sourced(mux, 2, 3 * HALF_LIFE)
    all_of(mux)
    assert old.activity / mux._unit == pytest.approx(before / 8, rel=1e-6)


@pytest.mark.parametrize("circuits", [2, 3, 10, 50])
@pytest.mark.parametrize("limit", [1, 4, 16])
def test_equals_share_fairly(circuits: int, limit: int) -> None:
    mux = Mux()
    sources = [sourced(mux, circuit_id, 10**9)[1] for circuit_id in range(1, circuits + 1)]
    for _ in range(200 * circuits // limit):
        mux.pop(limit)
    assert jain([source.made for source in sources]) > 0.99


def test_late_comers_soon_have_no_more_than_their_share() -> None:
    mux = Mux()
    sources = [sourced(mux, circuit_id, 10**9)[1] for circuit_id in (1, 2)]
    for _ in range(HALF_LIFE):
        mux.pop(16)
    sources += [sourced(mux, circuit_id, 10**9)[1] for circuit_id in (3, 4)]
    for _ in range(HALF_LIFE):
        mux.pop(16)
    before = [source.made for source in sources]
    for _ in range(HALF_LIFE // 8):
        mux.pop(16)
    shares = [source.made - start for source, start in zip(sources, before, strict=True)]
    assert jain(shares) > 0.99


def test_a_source_is_asked_only_when_the_link_pulls() -> None:
    mux = Mux()
    queue, source = sourced(mux, 1, 5)
    queue.wake()
    assert source.asked == []
    assert len(mux.pop(16)) == 5
    assert source.asked == [16]
    assert not mux.pending
    assert mux.pop(16) == []
    assert source.asked == [16], "a source that gave less than it was asked for waits until it wakes its queue"
    source.left = 3
    queue.wake()
    assert len(mux.pop(16)) == 3


def test_queued_cells_go_before_those_a_source_makes() -> None:
    mux = Mux()
    queue, source = sourced(mux, 1, 5)
    queue.append(b"1:queued")
    assert mux.pop(3) == [b"1:queued", cell(1, 0), cell(1, 1)]
    assert source.asked == [2]


def test_a_source_that_wakes_its_queue_while_it_is_served_is_asked_again() -> None:
    mux = Mux()
    queue, source = sourced(mux, 1, 1)

    def on_fill() -> None:
        if len(source.asked) == 1:
            queue.wake()
        else:
            source.left = 1

    source.on_fill = on_fill
    assert mux.pop(16) == [cell(1, 0), cell(1, 1)]
    assert source.asked == [16, 15]
    assert not mux.pending


def test_a_source_that_closes_its_circuit_while_it_is_served() -> None:
    mux = Mux()
    queue, source = sourced(mux, 1, 100)
    fill(mux.open(2), 3)
    source.on_fill = lambda: mux.close(1)
    got = all_of(mux)
    assert [one for one in got if circuit_of(one) == 2] == [cell(2, number) for number in range(3)]
    assert len(source.asked) == 1
    assert queue.source is None
    assert queue.closed


def test_the_owner_is_told_when_there_is_something_to_send() -> None:
    mux = Mux()
    told: list[int] = []
    mux.on_dirty = lambda: told.append(1)
    queue = mux.open(1)
    queue.append(b"1:0")
    queue.append(b"1:1")
    assert len(told) == 1, "a queue that is listed already does not tell again"
    mux.pop(16)
    queue.wake()
    assert len(told) == 2
    mux.control(b"c")
    assert len(told) == 3


def test_overflow_drops_the_cell_and_tells() -> None:
    mux = Mux()
    queue = mux.open(1)
    told: list[int] = []
    queue.on_overflow = lambda: told.append(len(queue))
    fill(queue, QUEUE_LIMIT)
    assert told == []
    queue.append(b"1:late")
    assert told == [QUEUE_LIMIT]
    assert all_of(mux, 64) == [cell(1, number) for number in range(QUEUE_LIMIT)]


def test_overflow_that_closes_the_circuit() -> None:
    mux = Mux()
    queue = mux.open(1)
    queue.on_overflow = lambda: mux.close(1)
    fill(queue, QUEUE_LIMIT + 10)
    assert all_of(mux) == []


def test_a_whole_window_fits_a_queue() -> None:
    assert CWND_MAX < QUEUE_LIMIT
    assert QUEUE_LIMIT * CELL_SIZE == 10 * 1024 * 1024


def test_what_a_cell_takes_is_counted_in_full() -> None:
    """With its place in the queue; what the system adds is less than a thirtieth."""
    assert sys.getsizeof(bytes(CELL_SIZE)) + 8 <= CELL_MEMORY < CELL_SIZE * 31 / 30


def test_a_closed_queue_that_is_still_listed_keeps_no_circuit_alive() -> None:
    """On a link that takes nothing, it stays listed until the link is gone."""

    class Circuit:
        def overflow(self) -> None:
            pass

    mux = Mux()
    circuit = Circuit()
    queue = mux.open(1)
    queue.on_overflow = circuit.overflow
    fill(queue, 3)
    gone = weakref.ref(circuit)
    mux.close(1)
    del circuit
    assert mux.pending, "it is listed"
    assert gone() is None
    fill(queue, QUEUE_LIMIT + 5)
    assert all_of(mux) == []


def test_nothing_of_a_closed_circuit_leaves() -> None:
    mux = Mux()
    queue, source = sourced(mux, 1, 10)
    fill(queue, 5)
    other = mux.open(2)
    fill(other, 2)
    mux.close(1)
    mux.close(1)
    queue.append(b"1:late")
    queue.wake()
    assert all_of(mux) == [cell(2, 0), cell(2, 1)]
    queue.append(b"1:later")
    queue.wake()
    assert (all_of(mux), len(queue), source.asked) == ([], 0, [])


def test_an_id_used_again_has_a_queue_of_its_own() -> None:
    mux = Mux()
    old = mux.open(1)
    fill(old, 5)
    mux.close(1)
    new = mux.open(1)
    old.append(b"1:old")
    new.append(b"1:new")
    assert all_of(mux) == [b"1:new"]


@pytest.mark.parametrize("limit", [1, 16])
def test_no_circuit_stops_when_activity_is_rescaled(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of cells grow for ever, so they are made small again from time to time, in the middle of a `pop`."""
    monkeypatch.setattr(mux_module, "_RESCALE", 1.05)
    mux = Mux()
    queues = [mux.open(circuit_id) for circuit_id in (1, 2, 3)]
    for queue in queues:
        fill(queue, 1000)
    mux.close(3)
    _, source = sourced(mux, 4, 1000)
    got = all_of(mux, limit)
    for queue in queues[:2]:
        mine = [one for one in got if circuit_of(one) == queue.circuit_id]
        assert mine == [cell(queue.circuit_id, number) for number in range(1000)]
    assert source.made == 1000
    assert len(got) == 3000
    assert mux._unit <= 1.05


def test_rescaling_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def order(rescale: float) -> list[int]:
        monkeypatch.setattr(mux_module, "_RESCALE", rescale)
        mux = Mux()
        for circuit_id in range(1, 6):
            fill(mux.open(circuit_id), 100 * circuit_id)
        return [circuit_of(one) for one in all_of(mux)]

    assert order(1.05) == order(1e100)


OPERATIONS = st.lists(st.tuples(st.sampled_from("aaaaapppwcox"), st.integers(0, 5), st.integers(0, 20)), max_size=120)


@given(OPERATIONS, st.sampled_from([1.001, 1e100]))
def test_every_cell_comes_out_once_and_in_order(operations: list[tuple[str, int, int]], rescale: float) -> None:
    """Against a model: per circuit a plain queue, emptied when it is closed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mux_module, "_RESCALE", rescale)
        mux = Mux()
        queues: dict[int, CircuitQueue] = {}
        model: dict[int, deque[bytes]] = {}
        control: deque[bytes] = deque()
        number = 0

        def pop(limit: int) -> None:
            got = mux.pop(limit)
            waiting = len(control) + sum(map(len, model.values()))
            assert len(got) == min(limit, waiting), "work is conserved"
            for index, one in enumerate(got):
                if control:
                    assert one == control.popleft()
                else:
                    assert one == model[circuit_of(one)].popleft(), f"cell {index} of {got}"
            assert mux.queued() == sum(map(len, model.values())) + len(control)

        for operation, slot, count in operations:
            if operation == "p":
                pop(count)
            elif operation == "c":
                control.append(b"control %d" % count)
                mux.control(control[-1])
            elif operation == "x":
                mux.close(slot)
                model.pop(slot, None)
                if slot in queues:
                    queues.pop(slot).append(b"%d:behind the end" % slot)
            else:
                if slot not in queues:
                    queues[slot] = mux.open(slot)
                    model[slot] = deque()
                if operation == "w":
                    queues[slot].wake()
                for _ in range(count if operation == "a" else 0):
                    number += 1
                    queues[slot].append(cell(slot, number))
                    model[slot].append(cell(slot, number))
        while any(model.values()) or control:
            pop(random.Random(number).randrange(1, 20))
        assert mux.pop(10) == []
        assert mux.queued() == 0
