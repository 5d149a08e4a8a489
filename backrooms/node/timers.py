"""The only owner of time: one heap of deadlines and one operating system timer for all machines of a process.

`reactor.callLater` misses its moment by about half a millisecond, since epoll waits in whole milliseconds. A
Linux timerfd, read by the reactor like a socket, misses by less than a tenth of one and is used if present.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.internet.task import Clock
from twisted.logger import Logger
from zope.interface import implementer

log = Logger()

# Cancelled entries stay in the heap until they surface, or until they outnumber both this and the live ones.
MAX_STALE = 64


class Owner(Protocol):
    """Something that wants to be called when a deadline has come."""

    def tick(self, now: float, /) -> Any: ...


class Call:
    """One pending call of `Timers.at`."""

    __slots__ = ("_function", "_timers")

    def __init__(self, timers: Timers, function: Callable[[], object]) -> None:
        self._timers = timers
        self._function: Callable[[], object] | None = function

    def active(self) -> bool:
        """Whether the call is still to come."""
        return self._function is not None

    def cancel(self) -> None:
        """Do not call; harmless when it has happened already."""
        self._function = None
        self._timers.set(self, None)

    def tick(self, now: float) -> None:
        """Called by `Timers`."""
        function, self._function = self._function, None
        if function is not None:
            function()


class _Entry:
    """An owner's place in the heap. `wanted` may be later than the place; it then moves when it surfaces."""

    __slots__ = ("owner", "place", "wanted")

    def __init__(self, owner: Owner, deadline: float) -> None:
        self.owner: Owner | None = owner
        self.place = deadline
        self.wanted = deadline


class Timers:
    """Deadlines of machines, delayed calls and the clocks.

    `clock` gives a simulated monotonic time in seconds and `wall` a simulated unix time; a simulated reactor
    (a `twisted.internet.task.Clock`, or one without file descriptors) brings its own. `precise` tells whether
    a timerfd is at work; otherwise it is the reactor's `callLater`.
    """

    def __init__(
        self,
        reactor: Any,
        clock: Callable[[], float] | None = None,
        wall: Callable[[], float] | None = None,
    ) -> None:
        real = clock is None and IReactorFDSet.providedBy(reactor) and not isinstance(reactor, Clock)
        if clock is None:
            clock = time.monotonic if real else reactor.seconds
        self.now: Callable[[], float] = clock
        """Monotonic seconds: what every machine gets as `now`."""
        self.wall: Callable[[], float] = wall or (time.time if real else clock)
        """Seconds since 1970: for documents and for what people read, never for intervals."""
        self.cpu: Callable[[], float] = time.thread_time if real else lambda: 0.0
        """CPU seconds that the calling thread has had; in simulated time all work is free."""
        self._entries: dict[Owner, _Entry] = {}
        self._heap: list[tuple[float, int, _Entry]] = []
        self._count = 0
        self._stale = 0
        self._armed = inf
        self._running = False
        self._closed = False
        self._alarm: _Alarm = _CallLater(reactor, self.now, self._run)
        if real:
            try:
                self._alarm = _TimerFd(reactor, self._run)
            except OSError as error:
                log.warn("no timerfd ({error}): timers are late by up to a millisecond", error=error.strerror)

    @property
    def precise(self) -> bool:
        """Whether calls come within about 0.1 ms of their deadline (timerfd) or within 1 ms (`callLater`)."""
        return isinstance(self._alarm, _TimerFd)

    def __len__(self) -> int:
        return len(self._entries)

    def set(self, owner: Owner, deadline: float | None) -> None:
        """Call `owner.tick(now)` once, at or after `deadline`.

        A new deadline replaces the old; None, or infinity, removes it. Setting the same or a later deadline
        costs a dict look-up: the operating system is not called. After `close` this does nothing.
        """
        entry = self._entries.get(owner)
        if deadline is None or deadline == inf:
            if entry is not None:
                del self._entries[owner]
                self._forget(entry)
            return
        if entry is not None:
            if deadline >= entry.place:
                entry.wanted = deadline
                return
            self._forget(entry)
        if self._closed:
            return
        entry = self._entries[owner] = _Entry(owner, deadline)
        self._push(entry)
        if deadline < self._armed and not self._running:
            self._arm(deadline)

    def at(self, deadline: float, function: Callable[[], object]) -> Call:
        """Call `function()` at monotonic time `deadline`; the result can be cancelled."""
        call = Call(self, function)
        self.set(call, deadline)
        return call

    def sleep(self, seconds: float) -> Deferred[None]:
        """A Deferred that fires after `seconds`; cancelling it removes the timer."""
        waiting: Deferred[None] = Deferred(lambda _: call.cancel())
        call = self.at(self.now() + seconds, lambda: waiting.callback(None))
        return waiting

    def close(self) -> None:
        """Forget everything: nothing is called any more, and nothing of ours is left in the reactor."""
        self._closed = True
        self._entries.clear()
        self._heap.clear()
        self._stale = 0
        self._alarm.close()

    def _push(self, entry: _Entry) -> None:
        self._count += 1  # equal deadlines come in the order in which they were set; entries are never compared
        heappush(self._heap, (entry.place, self._count, entry))

    def _forget(self, entry: _Entry) -> None:
        entry.owner = None  # a closed connection must not live on in the heap
        self._stale += 1
        if self._stale > MAX_STALE and self._stale > len(self._entries):
            self._heap = [item for item in self._heap if item[2].owner is not None]
            heapify(self._heap)
            self._stale = 0

    def _arm(self, deadline: float) -> None:
        self._armed = deadline
        self._alarm.arm(deadline)

    def _run(self) -> None:
        """Call everyone whose deadline has come; what they set meanwhile waits for the next turn."""
        now = self.now()
        due: list[_Entry] = []
        while self._heap and self._heap[0][0] <= now:
            entry = heappop(self._heap)[2]
            if entry.owner is None:
                self._stale = max(0, self._stale - 1)
            elif entry.wanted > now:
                entry.place = entry.wanted
                self._push(entry)
            else:
                due.append(entry)
        self._running = True
        try:
            for entry in due:
                owner = entry.owner
                if owner is None:  # cancelled by one that was called before it
                    self._stale = max(0, self._stale - 1)
                    continue
                if entry.wanted > now:  # put off by one that was called before it
                    entry.place = entry.wanted
                    self._push(entry)
                    continue
                if self._closed:
                    return
                del self._entries[owner]
                try:
                    owner.tick(now)
                except Exception:
                    log.failure("a timer's owner failed: {owner}", owner=type(owner).__name__)
        finally:
            self._running = False
        self._armed = inf
        if self._heap:
            self._arm(self._heap[0][0])


class _Alarm(Protocol):
    """The one timer below the heap."""

    def arm(self, deadline: float) -> None:
        """Ring once at monotonic time `deadline`, and at no earlier set time."""

    def close(self) -> None:
        """Never ring again."""


class _CallLater:
    """The reactor's own timer."""

    def __init__(self, reactor: Any, now: Callable[[], float], ring: Callable[[], None]) -> None:
        self._reactor = reactor
        self._now = now
        self._ring = ring
        self._call: Any = None

    def arm(self, deadline: float) -> None:
        self.close()
        self._call = self._reactor.callLater(max(0.0, deadline - self._now()), self._fire)

    def close(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _fire(self) -> None:
        self._call = None
        self._ring()


@implementer(IReadDescriptor)
class _TimerFd:
    """A Linux timerfd on CLOCK_MONOTONIC with absolute times, which the reactor reads like a socket."""

    def __init__(self, reactor: Any, ring: Callable[[], None]) -> None:
        self._reactor = reactor
        self._ring = ring
        self._fd, self._settime = _timerfd()
        reactor.addReader(self)

    def arm(self, deadline: float) -> None:
        if self._fd >= 0:
            # zero would disarm it; a moment that has passed rings at once
            self._settime(self._fd, max(1, int(deadline * 1e9) + 1))

    def close(self) -> None:
        if self._fd >= 0:
            self._reactor.removeReader(self)
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "timers"

    def doRead(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set anew after the reactor saw it ring
            return
        self._ring()

    def connectionLost(self, reason: Any) -> None:
        self.close()


def _timerfd() -> tuple[int, Callable[[int, int], None]]:
    """A new timerfd and `settime(fd, absolute nanoseconds)`; `OSError` where the system has none."""
    if sys.version_info >= (3, 13) and hasattr(os, "timerfd_create"):
        return _timerfd_os()
    if not sys.platform.startswith("linux"):
        raise OSError(0, f"not on {sys.platform}")
    return _timerfd_ctypes()


def _timerfd_os() -> tuple[int, Callable[[int, int], None]]:
    """`_timerfd` with what Python has from 3.13 on; looked up late for the sake of older ones."""
    system: Any = os
    absolute = system.TFD_TIMER_ABSTIME

    def settime(descriptor: int, nanoseconds: int) -> None:
        system.timerfd_settime_ns(descriptor, flags=absolute, initial=nanoseconds)

    flags = system.TFD_NONBLOCK | system.TFD_CLOEXEC
    return system.timerfd_create(time.CLOCK_MONOTONIC, flags=flags), settime


def _timerfd_ctypes() -> tuple[int, Callable[[int, int], None]]:
    """`_timerfd` by the C library (timerfd_create(2)), for Python 3.11 and 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "timerfd_create"):
        raise OSError(0, "the C library has no timerfd_create")
    # TFD_NONBLOCK and TFD_CLOEXEC are O_NONBLOCK and O_CLOEXEC
    descriptor = libc.timerfd_create(ctypes.c_int(time.CLOCK_MONOTONIC), ctypes.c_int(os.O_NONBLOCK | os.O_CLOEXEC))
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    call = libc.timerfd_settime
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    spec = ctypes.create_string_buffer(struct.calcsize("@4l"))  # struct itimerspec: interval s, ns; value s, ns
    address = ctypes.addressof(spec)
    absolute = 1  # TFD_TIMER_ABSTIME

    def settime(descriptor: int, nanoseconds: int) -> None:
        struct.pack_into("@4l", spec, 0, 0, 0, *divmod(nanoseconds, 1_000_000_000))
        if call(descriptor, absolute, address, None) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return descriptor, settime
