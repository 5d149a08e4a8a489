"""The limit of all links together: what rate comes out, who gets how much of it, and what is never kept waiting."""

from __future__ import annotations

import random
from typing import Any

import pytest
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from backrooms.channel.machine import Channel
from backrooms.channel.mux import CircuitQueue
from backrooms.interfaces import Binding
from backrooms.node.bandwidth import TICK, WRITE_SHARE, Bandwidth
from backrooms.node.driver import Driver, Turn
from backrooms.node.timers import Timers
from backrooms.wire.cell import CELL_SIZE, CellCommand, pack_cell
from tests.keys import NETWORK_ID, fake_public
from tests.node.test_driver import Socket

RECORD = pack_cell(0, CellCommand.PADDING, b"") * 4
CONTROL = pack_cell(5, CellCommand.DESTROY, b"\0")
MB = 1_000_000


def jain(shares: list[float]) -> float:
    """Jain's index of fairness: 1 when all have the same."""
    return float(sum(shares) ** 2 / (len(shares) * sum(one * one for one in shares)))


class Endless:
    """A circuit that always has a cell to send."""

    def __init__(self, circuit_id: int) -> None:
        self._cell = pack_cell(circuit_id, CellCommand.RELAY, b"")

    def fill(self, limit: int) -> list[bytes]:
        return [self._cell] * limit


class Wire(Socket):
    """A connection that takes whatever is written, and can be told not to read."""

    def __init__(self) -> None:
        super().__init__(1 << 60)
        self.paused = False
        self.controls = 0

    def writeSomeData(self, data: bytes) -> int:
        self.controls += sum(data[at + 4] == CellCommand.DESTROY for at in range(0, len(data), CELL_SIZE))
        self.room -= len(data)
        return len(data)

    def startWriting(self) -> None:
        self.producer.resumeProducing()

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False


class Line:
    """One link, open without a handshake."""

    def __init__(self, bench: Bench, number: int) -> None:
        rng = random.Random(number)
        binding = Binding(b"test", bytes(32))
        self.channel = Channel.initiate(
            binding, NETWORK_ID, fake_public(1).id, None, (1,), rng, bench.timers.now(), bench.timers.wall()
        )
        self.channel.output()
        self.channel.open = True
        self.lost: list[BaseException | None] = []
        self.driver = Driver(self.channel, bench.timers, bench.turn, lambda event: None, self.lost.append)
        self.channel.on_dirty = self.driver.dirty
        self.wire = Wire()
        bench.bandwidth.add(self.driver, self.channel)
        self.driver.makeConnection(self.wire)  # type: ignore[no-untyped-call]

    def busy(self, circuit_id: int = 1) -> CircuitQueue:
        """Let a circuit have endlessly much to send."""
        queue = self.channel.mux.open(circuit_id)
        queue.source = Endless(circuit_id)
        queue.wake()
        return queue


class Bench:
    """Links of one node, in a time that moves when told to."""

    def __init__(self, rate: int = 0, burst: int = 0) -> None:
        self.reactor = Clock()
        self.timers = Timers(self.reactor)
        self.turn = Turn(self.reactor)
        self.bandwidth = Bandwidth(self.timers, self.turn, rate, burst)
        self.lines: list[Line] = []
        self.feeding: list[Line] = []

    def line(self) -> Line:
        self.lines.append(Line(self, len(self.lines)))
        return self.lines[-1]

    def run(self, seconds: float, step: float = TICK) -> None:
        """Let time pass. Links in `feeding` have always more to read."""
        end = self.reactor.seconds() + seconds
        self._feed()
        while self.reactor.seconds() < end - 1e-9:
            self.reactor.advance(step)
            self._feed()

    def _feed(self) -> None:
        hungry = self.feeding
        while hungry := [line for line in hungry if not line.wire.paused]:
            for line in hungry:
                line.driver.dataReceived(RECORD)

    @property
    def ticking(self) -> bool:
        """Whether something is to happen soon; keep-alives of links are later than that."""
        return any(call.getTime() < self.reactor.seconds() + 1 for call in self.reactor.getDelayedCalls())

    def written(self) -> list[float]:
        return [line.driver.bytes_out for line in self.lines]

    def read(self) -> list[float]:
        return [line.driver.bytes_in for line in self.lines]

    def rates(self, seconds: float, step: float = TICK) -> tuple[list[float], list[float]]:
        """Bytes per second that each link reads and writes from now on."""
        before = self.read(), self.written()
        self.run(seconds, step)
        after = self.read(), self.written()
        return (
            [(b - a) / seconds for a, b in zip(before[0], after[0], strict=True)],
            [(b - a) / seconds for a, b in zip(before[1], after[1], strict=True)],
        )


def test_without_a_rate_nothing_stands_in_the_way() -> None:
    bench = Bench()
    line = bench.line()
    assert line.driver.throttle is None
    queue = line.channel.mux.open(1)
    for _ in range(1000):
        queue.append(bytes(CELL_SIZE))
    bench.reactor.advance(0)
    assert line.driver.bytes_out == 1000 * CELL_SIZE
    assert not bench.ticking


@pytest.mark.parametrize("links", [1, 2, 7])
@pytest.mark.parametrize("rate", [10_000, MB, 20 * MB])
@pytest.mark.parametrize("burst", [0, 1])
def test_the_rate_is_kept_and_shared(rate: int, links: int, burst: int) -> None:
    """With less than a cell for each tick, and with a burst smaller than a cell, too."""
    bench = Bench(rate, burst)
    for _ in range(links):
        bench.line().busy()
    bench.feeding = list(bench.lines)
    bench.run(15)
    read, written = bench.rates(10)
    for found in (read, written):
        assert sum(found) == pytest.approx(rate, rel=0.05, abs=CELL_SIZE * 4 / 10)
        if rate >= MB:
            assert jain(found) > 0.99


def test_the_burst_may_pass_at_once_and_no_more() -> None:
    bench = Bench(MB, 3 * MB)
    bench.run(60)
    line = bench.line()
    line.busy()
    bench.feeding = [line]
    bench.run(TICK)
    for passed in (line.driver.bytes_in, line.driver.bytes_out):
        assert 3 * MB <= passed <= 3 * MB + TICK * MB + 65536
    _, (rate,) = bench.rates(4)
    assert rate == pytest.approx(WRITE_SHARE * MB, rel=0.02)


def test_who_wants_less_than_its_share_gets_it_and_the_rest_is_shared() -> None:
    bench = Bench(MB, 1)
    modest, first, second = bench.line(), bench.line(), bench.line()
    first.busy()
    second.busy()
    queue = modest.channel.mux.open(1)
    before = bench.written()
    for _ in range(1000):
        queue.append(bytes(CELL_SIZE))
        bench.run(TICK)
    got = [(b - a) / 25 for a, b in zip(before, bench.written(), strict=True)]
    assert got[0] == pytest.approx(CELL_SIZE / TICK, rel=0.01), "40 cells a second"
    assert got[1] == pytest.approx(got[2], rel=0.02)
    assert sum(got) == pytest.approx(WRITE_SHARE * MB, rel=0.02)


def test_a_quiet_link_waits_for_one_tick_however_long_the_others_have_waited() -> None:
    bench = Bench(MB, 1)
    for _ in range(3):
        bench.line().busy()
    quiet = bench.line()
    queue = quiet.channel.mux.open(1)
    for _ in range(20):
        bench.run(0.1)
        before = quiet.driver.bytes_out
        queue.append(bytes(CELL_SIZE))
        bench.run(2 * TICK)
        assert quiet.driver.bytes_out == before + CELL_SIZE


def test_three_hundred_links() -> None:
    """Of 24 cells a second each gets one in 13 s: all the same, and control cells all the faster."""
    bench = Bench(100_000)
    for _ in range(300):
        bench.line().busy()
    bench.feeding = list(bench.lines)
    bench.run(300, step=0.25)
    waiting = bench.lines[100]
    for line in bench.lines[100:104]:
        line.channel.mux.control(CONTROL)
    bench.run(1)
    assert [line.wire.controls for line in bench.lines[99:105]] == [0, 1, 1, 1, 1, 0]
    assert waiting.channel.mux.pending
    read, written = bench.rates(500, step=0.25)
    for found in (read, written):
        assert sum(found) == pytest.approx(100_000, rel=0.05)
        assert jain(found) > 0.9


def test_control_cells_do_not_take_everything() -> None:
    """A peer can ask for answers without end: others still get about half."""
    bench = Bench(MB, 1)
    asked, other = bench.line(), bench.line()
    other.busy()
    for _ in range(200):
        while asked.channel.mux.control_waiting < 64:
            asked.channel.mux.control(CONTROL)
        bench.run(TICK)
    shares = bench.written()
    assert jain(shares) > 0.95


def test_a_link_handshake_is_read_at_once() -> None:
    bench = Bench(10_000, 1)
    busy, new = bench.line(), bench.line()
    new.channel.open = False
    bench.feeding = [busy]
    bench.run(1)
    for _ in range(5):
        new.driver.bytes_in = 0
        assert new.driver.throttle is not None
        new.driver.throttle.received(4096)
        assert not new.wire.paused
    assert busy.wire.paused


def test_a_link_that_is_closed_says_everything_first() -> None:
    bench = Bench(40_000, 1)
    line = bench.line()
    queue = line.channel.mux.open(1)
    for _ in range(20):
        queue.append(bytes(CELL_SIZE))
    line.driver.close()
    bench.run(1)
    assert not line.wire.closed
    bench.run(2)
    assert line.wire.closed
    assert line.driver.bytes_out == 20 * CELL_SIZE


def test_a_lost_link_is_forgotten_and_the_others_go_on() -> None:
    bench = Bench(MB, 1)
    first, second = bench.line(), bench.line()
    for line in bench.lines:
        line.busy()
        line.channel.mux.control(CONTROL)
    bench.feeding = list(bench.lines)
    bench.run(1)
    assert first.wire.paused
    bench.feeding = [second]
    bench.bandwidth.remove(first.driver)
    first.driver.connectionLost(Failure(ConnectionLost()))  # type: ignore[no-untyped-call]
    bench.bandwidth.remove(first.driver)
    read, written = bench.rates(10)
    assert read[0] == written[0] == 0
    assert read[1] == pytest.approx(MB, rel=0.05)
    assert written[1] == pytest.approx(MB, rel=0.05)


def test_the_rate_can_be_changed_while_links_wait() -> None:
    bench = Bench()
    first, second = bench.line(), bench.line()
    bench.bandwidth.configure(MB, 1)
    for line in bench.lines:
        line.busy()
    bench.feeding = list(bench.lines)
    bench.run(1)
    for rate in (MB, 200_000, 3 * MB, 1):
        bench.bandwidth.configure(rate, 1)
        bench.run(5)
        for found in bench.rates(10):
            assert sum(found) == pytest.approx(rate, rel=0.05, abs=CELL_SIZE / 2)
    for line in bench.lines:
        line.channel.mux.close(1)
    queue = first.channel.mux.open(2)
    for _ in range(100):
        queue.append(bytes(CELL_SIZE))
    assert first.wire.paused
    assert second.wire.paused
    bench.feeding = []
    before = first.driver.bytes_out
    bench.bandwidth.configure(0, 0)
    bench.run(TICK)
    assert first.driver.bytes_out == before + 100 * CELL_SIZE
    assert not first.wire.paused
    assert not second.wire.paused
    assert not bench.ticking


def test_a_socket_without_room_leaves_its_turn_to_others() -> None:
    bench = Bench(MB, 1)
    stuck, other = bench.line(), bench.line()
    for line in bench.lines:
        line.busy()
    bench.run(1)
    stuck.driver._room = False  # the kernel takes no more
    _, written = bench.rates(5)
    assert written[0] == 0
    assert written[1] == pytest.approx(WRITE_SHARE * MB, rel=0.02)
    stuck.driver.resumeProducing()
    _, written = bench.rates(5)
    assert jain(written) > 0.99
    assert other.channel.mux.pending


def test_after_a_pause_of_the_process_no_more_than_the_burst_passes() -> None:
    """It was stopped, or the machine slept: that time is not made up for."""
    bench = Bench(MB, 200_000)
    line = bench.line()
    line.busy()
    bench.run(1)
    before = line.driver.bytes_out
    bench.reactor.advance(3600)
    assert line.driver.bytes_out - before <= 200_000 + 65536


def test_reading_may_be_ahead_of_writing_by_what_waits() -> None:
    """A relay reads about what it writes. Its cells wait where a quiet circuit can overtake them, and not unread."""
    bench = Bench(MB, 1)
    source, sink = bench.line(), bench.line()
    queue = sink.channel.mux.open(1)
    taken = source.channel.receive

    def forward(data: bytes, now: float) -> None:
        taken(data, now)
        for _ in range(len(data) // CELL_SIZE):
            queue.append(bytes(CELL_SIZE))

    setattr(source.channel, "receive", forward)  # noqa: B010 (what a relayed circuit does)
    sent = 0
    for _ in range(800):
        # What a window lets a sender have under way: a quarter of a second's worth.
        while not source.wire.paused and source.driver.bytes_in - sink.driver.bytes_out < 250_000:
            source.driver.dataReceived(RECORD)
            sent += len(RECORD)
        bench.run(TICK)
        if _ > 200:
            assert not source.wire.paused
    assert sent / (800 * TICK) == pytest.approx(MB, rel=0.05)


def test_the_timer_rests_while_nobody_waits() -> None:
    bench = Bench(MB)
    line = bench.line()
    queue: Any = line.channel.mux.open(1)
    queue.append(bytes(CELL_SIZE))
    bench.run(1)
    assert line.driver.bytes_out == CELL_SIZE
    assert not bench.ticking
