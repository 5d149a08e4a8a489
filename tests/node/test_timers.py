"""Timers: order, laziness, both alarms, and nothing left behind."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure

from backrooms.node import timers as timers_module
from backrooms.node.timers import Timers


class Owner:
    """Writes down when it was called, and may do something then."""

    def __init__(self, then: Callable[[float], object] | None = None) -> None:
        self.ticks: list[float] = []
        self._then = then

    def tick(self, now: float) -> None:
        self.ticks.append(now)
        if self._then is not None:
            self._then(now)


class CountingClock(Clock):
    """A simulated reactor that counts how often it is armed."""

    def __init__(self) -> None:
        super().__init__()
        self.armed = 0

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> Any:
        self.armed += 1
        return super().callLater(delay, callable, *args, **kw)


@pytest.fixture(params=["timerfd", "callLater"])
def real(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Timers]:
    """Timers on the real reactor, with each of the two alarms."""
    if request.param == "callLater":
        monkeypatch.setattr(timers_module, "_timerfd", no_timerfd)
    elif not sys.platform.startswith("linux"):
        pytest.skip("timerfd is Linux's")
    made = Timers(reactor)
    assert made.precise == (request.param == "timerfd")
    yield made
    made.close()


def no_timerfd() -> Any:
    raise OSError(38, "Function not implemented")


def test_an_owner_is_called_once_at_its_deadline() -> None:
    clock = Clock()
    timers = Timers(clock)
    owner = Owner()
    timers.set(owner, 5.0)
    clock.advance(4.9)
    assert owner.ticks == []
    clock.advance(0.2)
    clock.advance(100)
    assert owner.ticks == [pytest.approx(5.1)]
    assert len(timers) == 0
    assert clock.getDelayedCalls() == []
    assert not timers.precise


def test_an_earlier_deadline_replaces_a_later_one() -> None:
    clock = Clock()
    timers = Timers(clock)
    owner = Owner()
    timers.set(owner, 50.0)
    timers.set(owner, 5.0)
    clock.advance(6)
    clock.advance(60)
    assert owner.ticks == [6.0]


def test_the_same_or_a_later_deadline_does_not_touch_the_alarm() -> None:
    clock = CountingClock()
    timers = Timers(clock)
    owner = Owner()
    timers.set(owner, 5.0)
    for n in range(1_000):
        timers.set(owner, 5.0 + n / 100)
    assert clock.armed == 1
    clock.advance(5)
    assert owner.ticks == []
    assert clock.armed == 2
    clock.advance(9.99)
    assert owner.ticks == [pytest.approx(14.99)]


@pytest.mark.parametrize("never", [None, inf])
def test_no_deadline_means_no_call(never: float | None) -> None:
    clock = Clock()
    timers = Timers(clock)
    owner = Owner()
    timers.set(owner, never)
    timers.set(owner, 5.0)
    timers.set(owner, never)
    clock.advance(10)
    assert owner.ticks == []
    assert clock.getDelayedCalls() == []


def test_owners_may_cancel_and_put_off_each_other_while_called() -> None:
    clock = Clock()
    timers = Timers(clock)
    cancelled, put_off = Owner(), Owner()

    def interfere(now: float) -> None:
        timers.set(cancelled, None)
        timers.set(put_off, 9.0)

    first = Owner(interfere)
    for owner in (first, cancelled, put_off):
        timers.set(owner, 1.0)
    clock.advance(1)
    assert (first.ticks, cancelled.ticks, put_off.ticks) == ([1.0], [], [])
    clock.advance(8)
    assert (cancelled.ticks, put_off.ticks) == ([], [9.0])


def test_a_failing_owner_is_logged_and_the_others_are_called(clean: Any) -> None:
    clock = Clock()
    timers = Timers(clock)

    def fail(now: float) -> None:
        raise ZeroDivisionError

    other = Owner()
    timers.set(Owner(fail), 1.0)
    timers.set(other, 1.0)
    clock.advance(1)
    assert other.ticks == [1.0]
    assert len(clean.flush(ZeroDivisionError)) == 1


def test_equal_deadlines_keep_their_order() -> None:
    clock = Clock()
    timers = Timers(clock)
    order: list[int] = []
    for n in range(100):
        timers.at(1.0, lambda n=n: order.append(n))  # type: ignore[misc]
    clock.advance(1)
    assert order == list(range(100))


def test_cancelled_owners_do_not_stay_in_memory() -> None:
    timers = Timers(Clock())
    for _ in range(10_000):
        owner = Owner()
        timers.set(owner, 1e6)
        timers.set(owner, None)
    assert len(timers) == 0
    assert len(timers._heap) <= timers_module.MAX_STALE + 1


def test_at_and_its_handle() -> None:
    clock = Clock()
    timers = Timers(clock)
    done: list[str] = []
    one, two = timers.at(1.0, lambda: done.append("one")), timers.at(1.0, lambda: done.append("two"))
    two.cancel()
    assert (one.active(), two.active()) == (True, False)
    clock.advance(1)
    assert done == ["one"]
    assert not one.active()
    one.cancel()


def test_sleep_and_its_cancellation() -> None:
    clock = Clock()
    timers = Timers(clock)
    slept: list[object] = []
    timers.sleep(2).addCallback(slept.append)
    cancelled = timers.sleep(2)
    cancelled.addBoth(slept.append)
    cancelled.cancel()
    assert isinstance(slept.pop(), Failure)
    clock.advance(2)
    assert slept == [None]


def test_close_forgets_everything() -> None:
    clock = Clock()
    timers = Timers(clock)
    owner = Owner()
    timers.set(owner, 1.0)
    timers.at(1.0, lambda: owner.tick(0))
    timers.close()
    timers.set(owner, 2.0)
    timers.close()
    assert clock.getDelayedCalls() == []
    clock.advance(5)
    assert owner.ticks == []


def test_close_while_owners_are_called() -> None:
    clock = Clock()
    timers = Timers(clock)
    after = Owner()
    timers.set(Owner(lambda now: timers.close()), 1.0)
    timers.set(after, 1.0)
    clock.advance(1)
    assert after.ticks == []
    assert clock.getDelayedCalls() == []


def test_simulated_clocks_are_used() -> None:
    timers = Timers(reactor, clock=lambda: 7.0, wall=lambda: 1e9)
    assert (timers.now(), timers.wall(), timers.precise) == (7.0, 1e9, False)


Step = tuple[int, float | None]


@given(st.lists(st.tuples(st.integers(0, 4), st.none() | st.floats(0, 50)), max_size=60), st.integers(0, 2**32))
def test_any_schedule_calls_everyone_in_time(steps: list[Step], seed: int) -> None:
    """Against a plain model: a dict of deadlines, looked through after every step."""
    clock = Clock()
    timers = Timers(clock)
    owners = [Owner() for _ in range(5)]
    model: dict[int, float] = {}
    expected: list[list[float]] = [[] for _ in owners]
    for number, (index, deadline) in enumerate(steps):
        timers.set(owners[index], deadline)
        if deadline is None:
            model.pop(index, None)
        else:
            model[index] = deadline
        clock.advance((seed >> (number % 32)) & 1)
        now = clock.seconds()
        for due in [key for key, when in model.items() if when <= now]:
            del model[due]
            expected[due].append(now)
        assert [owner.ticks for owner in owners] == expected
        assert len(timers) == len(model)


async def test_real_sleep_is_never_early(real: Timers) -> None:
    late = []
    for _ in range(40):
        deadline = real.now() + 0.0012
        await real.sleep(0.0012)
        late.append(real.now() - deadline)
    assert min(late) >= -1e-6
    if real.precise:  # about 40 µs on an idle machine, where callLater has 600
        assert statistics.median(late) < 0.005


async def test_real_deadline_in_the_past_and_re_arming(real: Timers) -> None:
    owner = Owner()
    real.set(owner, real.now() + 60)
    real.set(owner, real.now() - 60)
    await real.sleep(0.005)
    assert len(owner.ticks) == 1


async def test_an_owner_that_is_always_due_does_not_starve_the_reactor(real: Timers) -> None:
    owner = Owner(lambda now: real.set(owner, now - 1))
    real.set(owner, 0.0)
    turns = 0
    while turns < 20:  # each of these is a turn in which others were served, too
        await deferLater(reactor, 0)
        turns += 1
    assert 1 <= len(owner.ticks) <= 2 * turns
    real.set(owner, None)


async def test_real_close_leaves_nothing_in_the_reactor() -> None:
    before = set(reactor.getReaders())
    timers = Timers(reactor)
    timers.at(timers.now() + 60, lambda: None)
    await timers.sleep(0.001)
    timers.close()
    assert set(reactor.getReaders()) == before


def test_real_clocks() -> None:
    timers = Timers(reactor)
    assert abs(timers.now() - time.monotonic()) < 1
    assert abs(timers.wall() - time.time()) < 1
    timers.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="timerfd is Linux's")
def test_both_ways_to_the_timerfd_agree() -> None:
    makers = [timers_module._timerfd_ctypes]
    if hasattr(os, "timerfd_create"):
        makers.append(timers_module._timerfd_os)
    for make in makers:
        descriptor, settime = make()
        try:
            with pytest.raises(BlockingIOError):
                os.read(descriptor, 8)
            settime(descriptor, int((time.monotonic() + 0.002) * 1e9))
            os.set_blocking(descriptor, True)
            assert int.from_bytes(os.read(descriptor, 8), sys.byteorder) == 1
        finally:
            os.close(descriptor)
        with pytest.raises(OSError, match="file descriptor"):
            settime(descriptor, 1)
