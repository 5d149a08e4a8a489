"""Simulated time: a heap of calls, each of which sees exactly the time it was due at."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

_log = Logger()

STUCK_AFTER = 200_000
"""So many calls at one instant mean that somebody calls himself with no delay, for ever."""

_CANCELLED = -1
_CALLED = -2


class SimTimeout(AssertionError):
    """What `run_until` waited for did not happen in the simulated time allowed."""


class SimStuck(AssertionError):
    """Time no longer advances: calls without delay beget calls without delay."""


class Process(Protocol):
    """Whose call it is: the calls of a frozen process are held back, those of a dead one are dropped."""

    frozen: bool
    dead: bool

    def hold(self, call: SimCall) -> None:
        """Keep `call` until the process is thawed."""


@implementer(IDelayedCall)
class SimCall:
    """A call that is due at `when` (seconds); calls of the same time happen in the order they were made."""

    __slots__ = ("args", "clock", "func", "kwargs", "on_end", "owner", "seq", "when")

    def __init__(
        self,
        clock: SimClock,
        when: float,
        owner: Process | None,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.clock = clock
        self.when = when
        self.owner = owner
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.seq = 0
        self.on_end: Callable[[SimCall], Any] | None = None

    def __repr__(self) -> str:
        state = {_CANCELLED: "cancelled", _CALLED: "called"}.get(self.seq, "pending")
        return f"<SimCall at {self.when:.6f}, {state}: {getattr(self.func, '__qualname__', self.func)}>"

    def getTime(self) -> float:
        return self.when

    def active(self) -> bool:
        return self.seq > 0

    def cancel(self) -> None:
        self._must_be_active()
        self._end(_CANCELLED)
        self.clock.forgot()

    def reset(self, secondsFromNow: float) -> None:
        self._must_be_active()
        self.clock.forgot()
        self.clock.push(self, self.clock.now + secondsFromNow)

    def delay(self, secondsLater: float) -> None:
        self._must_be_active()
        self.clock.forgot()
        self.clock.push(self, self.when + secondsLater)

    def fire(self) -> None:
        """Make the call. An exception out of it is logged, as a reactor does, and ends nothing else."""
        self._end(_CALLED)
        try:
            self.func(*self.args, **self.kwargs)
        except Exception:
            _log.failure("Unhandled error in a simulated call of {func}", func=self.func)

    def _end(self, state: int) -> None:
        self.seq = state
        if self.on_end is not None:
            self.on_end(self)

    def _must_be_active(self) -> None:
        if self.seq == _CANCELLED:
            raise AlreadyCancelled
        if self.seq == _CALLED:
            raise AlreadyCalled


class SimClock:
    """The one time of a simulation, in seconds.

    It starts above zero, as monotonic clocks do.
    """

    def __init__(self, start: float = 1_000.0) -> None:
        self.now = start
        self.calls_made = 0
        self._heap: list[tuple[float, int, SimCall]] = []
        self._seq = itertools.count(1)
        self._stale = 0
        self._at_this_instant = 0

    def seconds(self) -> float:
        """The time."""
        return self.now

    def call_later(
        self, delay: float, owner: Process | None, func: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> SimCall:
        """Have `func` called in `delay` seconds on behalf of `owner` (None: the network itself)."""
        if not delay >= 0:
            raise ValueError(f"delay of {func}: {delay} is not zero or more seconds")
        call = SimCall(self, 0.0, owner, func, args, kwargs)
        self.push(call, self.now + delay)
        return call

    def push(self, call: SimCall, when: float) -> None:
        """(Re)schedule `call`; an older entry of it in the heap is then stale, since its number differs."""
        call.when = when
        call.seq = next(self._seq)
        heapq.heappush(self._heap, (when, call.seq, call))

    def forgot(self) -> None:
        """An entry became stale. Rebuild the heap when most of it is."""
        self._stale += 1
        if self._stale > 64 and self._stale * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].seq == entry[1]]
            heapq.heapify(self._heap)
            self._stale = 0

    def next_due(self) -> float | None:
        """When the next call is due, or None if there is none."""
        while self._heap:
            when, seq, call = self._heap[0]
            if call.seq == seq:
                return when
            heapq.heappop(self._heap)
            self._stale = max(0, self._stale - 1)
        return None

    def step(self, end: float) -> bool:
        """Make the next call if it is due by `end`; tell whether there was one."""
        when = self.next_due()
        if when is None or when > end:
            return False
        call = heapq.heappop(self._heap)[2]
        if when > self.now:
            self.now = when
            self._at_this_instant = 0
        self._at_this_instant += 1
        if self._at_this_instant > STUCK_AFTER:
            raise SimStuck(f"{STUCK_AFTER} calls at {self.now:.6f} s; the next is {call!r}")
        self.calls_made += 1
        owner = call.owner
        if owner is not None and owner.dead:
            return True
        if owner is not None and owner.frozen:
            owner.hold(call)
            return True
        call.fire()
        return True

    def run(self, seconds: float = 0.0) -> None:
        """Let `seconds` pass. Zero makes everything happen that is due now."""
        end = self.now + seconds
        while self.step(end):
            pass
        self.now = max(self.now, end)

    def run_until(
        self, target: Callable[[], Any] | Deferred[Any] | Coroutine[Any, Any, Any], limit: float = 60.0
    ) -> Any:
        """Let time pass until `target` comes true or fires, at most `limit` seconds.

        Returns the Deferred's (or coroutine's, or predicate's) result, raises its failure, or `SimTimeout`.
        """
        results: list[Any] = []
        if isinstance(target, Deferred | Coroutine):
            waiting: Deferred[Any] = ensureDeferred(target)
            waiting.addBoth(results.append)
        end = self.now + limit
        while True:
            if callable(target) and (answer := target()):
                return answer
            if results:
                break
            if not self.step(end):
                empty = ", and nothing is left to happen" if self.next_due() is None else ""
                self.now = end
                raise SimTimeout(f"not within {limit} simulated seconds (now {end:.3f}{empty}): {target!r}")
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]
