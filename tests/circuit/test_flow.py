"""Congestion control: the window's limits, authentic SENDMEs, and how it settles on a bottleneck."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.circuit.flow import ALPHA, CWND_INIT, CWND_MAX, CWND_MIN, DELTA, GAMMA, Vegas
from backrooms.errors import WireError
from backrooms.wire.cell import CELL_SIZE
from backrooms.wire.relay import SENDME_CELLS


def tag(number: int) -> bytes:
    return number.to_bytes(16, "big")


def send(vegas: Vegas, now: float) -> None:
    """One cell with DATA, as an edge sends it."""
    acknowledged = vegas.next_is_acknowledged()
    vegas.count()
    if acknowledged:
        vegas.expect(tag(vegas.sent), now)


def fill_window(vegas: Vegas, now: float) -> None:
    while vegas.room() > 0:
        send(vegas, now)


@dataclass
class Bottleneck:
    """A path with a fixed round trip and one slow link with an endless buffer, seen by a sender that never idles."""

    delay: float
    rate: float
    """Cells per second."""
    vegas: Vegas = field(default_factory=Vegas)
    now: float = 0.0
    free_at: float = 0.0
    """When the slow link has sent all it holds."""
    cwnds: list[int] = field(default_factory=list)
    queues: list[float] = field(default_factory=list)
    acknowledged: int = 0

    def __post_init__(self) -> None:
        self._acks: deque[tuple[float, bytes]] = deque()
        self._send()

    def _send(self) -> None:
        while self.vegas.room() > 0:
            named = self.vegas.next_is_acknowledged()
            send(self.vegas, self.now)
            self.free_at = max(self.free_at, self.now) + 1 / self.rate
            if named:
                self._acks.append((self.free_at + self.delay, tag(self.vegas.sent)))
        self.queues.append(max(0.0, self.free_at - self.now) * self.rate)

    def run(self, sendmes: int) -> None:
        for _ in range(sendmes):
            due, name = self._acks.popleft()
            self.now = max(self.now, due)
            self.vegas.acknowledged(name, self.now)
            self.acknowledged += SENDME_CELLS
            self.cwnds.append(self.vegas.cwnd)
            assert self.vegas.inflight >= 0
            self._send()


def test_windows_are_what_the_protocol_says() -> None:
    assert SENDME_CELLS * CELL_SIZE == 64 * 1024
    assert CWND_MIN == CWND_INIT == 2 * SENDME_CELLS
    assert CWND_MAX * CELL_SIZE == 8 * 1024 * 1024


def test_each_sixteenth_cell_is_named() -> None:
    vegas = Vegas()
    named = []
    for _ in range(CWND_INIT):
        named.append(vegas.next_is_acknowledged())
        send(vegas, 0.0)
    assert [index + 1 for index, one in enumerate(named) if one] == [SENDME_CELLS, 2 * SENDME_CELLS]
    assert vegas.room() == 0


def test_a_sendme_gives_room_for_the_cells_it_names() -> None:
    vegas = Vegas()
    fill_window(vegas, 0.0)
    vegas.acknowledged(tag(SENDME_CELLS), 0.1)
    assert vegas.inflight == CWND_INIT - SENDME_CELLS
    assert vegas.rtt == pytest.approx(0.1)


def test_sendmes_that_nothing_was_sent_for_are_refused() -> None:
    vegas = Vegas()
    with pytest.raises(WireError, match="nothing was sent for"):
        vegas.acknowledged(tag(1), 0.0)
    for _ in range(SENDME_CELLS - 1):
        send(vegas, 0.0)
    with pytest.raises(WireError, match="nothing was sent for"):
        vegas.acknowledged(tag(SENDME_CELLS), 0.0)
    send(vegas, 0.0)
    vegas.acknowledged(tag(SENDME_CELLS), 0.0)
    with pytest.raises(WireError, match="nothing was sent for"):
        vegas.acknowledged(tag(SENDME_CELLS), 0.0)


@pytest.mark.parametrize(
    "name", [b"", tag(2 * SENDME_CELLS), tag(SENDME_CELLS)[:15], tag(SENDME_CELLS) + b"\0", tag(0)]
)
def test_sendmes_with_another_tag_are_refused(name: bytes) -> None:
    vegas = Vegas()
    fill_window(vegas, 0.0)
    with pytest.raises(WireError, match="wrong tag"):
        vegas.acknowledged(name, 0.1)
    assert vegas.inflight == CWND_INIT


def test_each_bit_of_the_tag_counts() -> None:
    for bit in range(128):
        vegas = Vegas()
        fill_window(vegas, 0.0)
        with pytest.raises(WireError):
            vegas.acknowledged((SENDME_CELLS ^ 1 << bit).to_bytes(16, "big"), 0.1)


STEPS = st.lists(
    st.tuples(st.integers(0, 3 * SENDME_CELLS), st.integers(0, 4), st.floats(-1.0, 30.0, allow_nan=False)), max_size=80
)


@given(STEPS)
def test_limits_hold_whatever_the_clock_and_the_application_do(steps: list[tuple[int, int, float]]) -> None:
    """Any mixture of idling, sending and SENDMEs, with a clock that may even go back."""
    vegas = Vegas()
    waiting: deque[int] = deque()
    now = 100.0
    for cells, sendmes, pause in steps:
        for _ in range(min(cells, vegas.room())):
            send(vegas, now)
            if vegas.sent % SENDME_CELLS == 0:
                waiting.append(vegas.sent)
        now += pause
        for _ in range(min(sendmes, len(waiting))):
            vegas.acknowledged(tag(waiting.popleft()), now)
        assert CWND_MIN <= vegas.cwnd <= CWND_MAX
        assert vegas.inflight >= 0
        assert vegas.inflight == vegas.sent % SENDME_CELLS + SENDME_CELLS * len(waiting)
        assert vegas.rtt >= 0.0


def test_a_window_that_is_not_used_does_not_grow() -> None:
    vegas = Vegas()
    for number in range(1, 200):
        for _ in range(SENDME_CELLS):
            send(vegas, float(number))
        vegas.acknowledged(tag(number * SENDME_CELLS), number + 0.1)
    assert vegas.cwnd == CWND_INIT


def test_an_endless_link_opens_the_window_to_its_limit() -> None:
    path = Bottleneck(delay=0.05, rate=1e12)
    path.run(2000)
    assert path.vegas.cwnd == CWND_MAX
    assert not path.vegas.slow_start


@pytest.mark.parametrize("delay", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("rate", [500.0, 2_000.0, 10_000.0])
def test_it_settles_on_a_bottleneck(delay: float, rate: float) -> None:
    """Full use of a link of 2 to 40 MB/s, and a queue of no more than `DELTA` cells in front of it."""
    path = Bottleneck(delay, rate)
    path.run(6000)
    vegas = path.vegas
    start, before = path.now, path.acknowledged
    path.queues.clear()
    path.cwnds.clear()
    path.run(500)
    throughput = (path.acknowledged - before) / (path.now - start)
    assert not vegas.slow_start
    assert max(path.queues) <= DELTA + 3 * SENDME_CELLS
    assert max(path.cwnds) <= delay * rate + DELTA + 3 * SENDME_CELLS
    assert throughput > 0.95 * min(rate, CWND_MAX / (delay + 1 / rate))
    assert max(path.cwnds) - min(path.cwnds) <= max(2 * SENDME_CELLS, 0.1 * vegas.cwnd)


@pytest.mark.parametrize("rate", [500.0, 2_000.0, 10_000.0])
def test_slow_start_ends_before_the_queue_is_long(rate: float) -> None:
    path = Bottleneck(delay=0.1, rate=rate)
    for _ in range(1000):
        path.run(1)
        if not path.vegas.slow_start:
            break
    assert not path.vegas.slow_start
    assert max(path.queues) <= 2 * GAMMA + 4 * SENDME_CELLS + path.delay * path.rate / 4


def test_it_follows_a_link_that_becomes_slower_and_faster() -> None:
    path = Bottleneck(delay=0.1, rate=10_000.0)
    path.run(1000)
    fast = path.vegas.cwnd
    path.rate = 1_000.0
    path.run(400)
    slow = path.vegas.cwnd
    assert slow <= 100 + DELTA + 3 * SENDME_CELLS < fast
    path.rate = 10_000.0
    path.run(3000)
    assert path.vegas.cwnd >= 0.9 * 1_000


def test_a_route_that_becomes_longer_still_carries_alpha_cells_a_round_trip() -> None:
    """The longer way looks like a queue, so the window shrinks: not below what Vegas wants queued."""
    path = Bottleneck(delay=0.02, rate=5_000.0)
    path.run(500)
    path.delay = 0.2
    path.run(3000)
    path.cwnds.clear()
    path.run(300)
    assert min(path.cwnds) >= ALPHA > CWND_MIN
