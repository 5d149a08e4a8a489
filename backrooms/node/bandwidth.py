"""How much all links of a relay may carry together: one bucket of bytes for each direction, shared fairly by the links.

What may not be written yet waits where it always waits, in the queues before the links, so that a quiet circuit still
overtakes a busy one (docs/decisions/014-bandwidth.md). What may not be read yet waits in the kernel, and so at the
sender.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Any

from backrooms.channel.machine import OUTPUT_CELLS, Channel
from backrooms.node.driver import Driver, Turn
from backrooms.node.timers import Timers
from backrooms.wire.cell import CELL_SIZE, CELLS_PER_RECORD

TICK = 0.025
"""Seconds between refills of an empty bucket."""
WRITE_SHARE = 0.97
"""What may be written, as a part of what may be read: so cells wait in our queues, in good order, and not unread."""
AHEAD = 10.0
"""Seconds' worth of bytes, at most, that may have been read and wait to be written."""
READ_SHARE = CELL_SIZE * CELLS_PER_RECORD
"""Bytes, at least, that a link reads when it is its turn: one TLS record, which comes whole."""

_Waiting = OrderedDict["Throttle", None]


class _Bucket:
    """Bytes that may pass. It may be overdrawn by what cannot be split, and is refilled by the time that has gone."""

    def __init__(self) -> None:
        self.rate = 0.0
        self.size = 0.0
        self.tokens = 0.0
        self._at = 0.0

    def configure(self, rate: float, burst: float, now: float) -> None:
        """From now on `rate` bytes a second, and `burst` at once. A new bucket is full.

        A burst below two ticks' worth counts as that, or the rate could not be reached.
        """
        fresh = not self.rate
        if not fresh:
            self.refill(now)
        self.rate, self.size, self._at = rate, max(burst, 2 * TICK * rate), now
        self.tokens = self.size if fresh else min(self.tokens, self.size)

    def refill(self, now: float) -> float:
        """What is in it now."""
        self.tokens = min(self.size, self.tokens + self.rate * (now - self._at))
        self._at = now
        return self.tokens


class Throttle:
    """One link's place among the others; its driver asks it while there is a rate."""

    def __init__(self, bandwidth: Bandwidth, driver: Driver, channel: Channel) -> None:
        self.driver = driver
        self.channel = channel
        self.grant = 0
        """Cells it may write because it is its turn."""
        self.allowance = 0.0
        """Bytes it may read until it has to wait again; below zero for what it took too much, records being whole."""
        self.served = 0
        """The number of its last turn to read: who has waited longest comes first."""
        self.paused = False
        self.waits: _Waiting | None = None
        """The queue of writers that it is in."""
        self._bandwidth = bandwidth

    def output(self) -> bytes | None:
        """What the link may write now: empty when it has nothing to say, None when it has to wait for its turn."""
        return self._bandwidth.write(self)

    def received(self, size: int) -> None:
        """The link has read `size` bytes."""
        self._bandwidth.read(self, size)


class Bandwidth:
    """The limit of all links together. Without a rate no driver has a throttle, and nothing here is ever called."""

    def __init__(self, timers: Timers, turn: Turn, rate: int = 0, burst: int = 0) -> None:
        """`rate` in bytes per second and each way, 0 for no limit; `burst` in bytes, 0 for one second's worth."""
        self._timers = timers
        self._turn = turn
        self._limited = False
        self._throttles: dict[Driver, Throttle] = {}
        self._in, self._out = _Bucket(), _Bucket()
        self._readers: list[tuple[int, int, Throttle]] = []
        """A heap of the links that are paused, by `served` and then as they came."""
        self._turns = self._arrivals = 0
        self._contended = False
        """Whether links had to wait for their turn to read when the last tick came: then nobody reads out of turn."""
        self._urgent: _Waiting = OrderedDict()
        """Links that wait with control cells: handshakes, keep-alives, the beginning and the end of circuits."""
        self._writers: _Waiting = OrderedDict()
        """Links that wait with cells of circuits only."""
        self._urgent_next = True
        self._timer: Any = None
        self.configure(rate, burst)

    def configure(self, rate: int, burst: int) -> None:
        """Set the limit anew, for links that are there and for those to come."""
        now = self._timers.now()
        self._limited = rate > 0
        self._contended = False
        self._in.configure(rate, burst or rate, now)
        self._out.configure(rate * WRITE_SHARE, burst or rate, now)
        for driver, throttle in self._throttles.items():
            driver.throttle = throttle if self._limited else None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._limited:
            self._tick_later()
        else:
            self._release()

    def _release(self) -> None:
        """There is no limit any more: everybody goes on."""
        waiting = [*self._urgent, *self._writers]
        for throttle in waiting:
            self._leave(throttle)
            throttle.driver.dirty()
        while self._readers:
            self._resume()

    def add(self, driver: Driver, channel: Channel) -> None:
        """A new link."""
        self._throttles[driver] = throttle = Throttle(self, driver, channel)
        if self._limited:
            driver.throttle = throttle

    def remove(self, driver: Driver) -> None:
        """A link is gone."""
        throttle = self._throttles.pop(driver, None)
        if throttle is not None:
            driver.throttle = None
            self._leave(throttle)
            if throttle.paused:
                self._readers = [entry for entry in self._readers if entry[2] is not throttle]
                heapify(self._readers)

    # writing

    def write(self, throttle: Throttle) -> bytes | None:
        """See `Throttle.output`. Nobody writes out of turn while others wait."""
        channel = throttle.channel
        if throttle.grant:
            limit, throttle.grant = throttle.grant, 0
        elif not channel.mux.pending:
            return b""
        elif self._urgent or self._writers or self._out.refill(self._timers.now()) <= 0:
            self._queue(throttle)
            return None
        else:
            limit = self._cells(1)
        data = channel.output(limit)
        self._out.tokens -= len(data)
        return data

    def _cells(self, links: int) -> int:
        """Cells that one of so many links may write at once."""
        return max(1, min(OUTPUT_CELLS, int(self._out.tokens / (CELL_SIZE * links))))

    def _queue(self, throttle: Throttle) -> None:
        queue = self._urgent if throttle.channel.mux.control_waiting else self._writers
        if throttle.waits is not queue:
            self._leave(throttle)
            throttle.waits = queue
            queue[throttle] = None
            self._tick_later()

    def _leave(self, throttle: Throttle) -> None:
        if throttle.waits is not None:
            del throttle.waits[throttle]
            throttle.waits = None

    def _serve_writers(self) -> None:
        """In turn; every second turn is for control cells, so that they neither wait long nor take everything."""
        while self._out.tokens > 0 and (self._urgent or self._writers):
            self._urgent_next = not self._urgent_next
            urgent = bool(self._urgent) and (self._urgent_next or not self._writers)
            throttle = next(iter(self._urgent if urgent else self._writers))
            cells = self._cells(len(self._urgent) + len(self._writers))
            self._leave(throttle)
            throttle.grant = min(cells, throttle.channel.mux.control_waiting) if urgent else cells
            with self._turn:
                throttle.driver.dirty()
            throttle.grant = 0  # its socket may have had no room

    # reading

    def read(self, throttle: Throttle, size: int) -> None:
        """See `Throttle.received`. What has been read is read; the link then waits until it is its turn again."""
        tokens = self._in.refill(self._timers.now())
        self._in.tokens = tokens - size
        if not throttle.channel.open:  # a link handshake is short, and must not be late
            return
        if not self._contended and tokens > size:
            return
        throttle.allowance -= size
        if throttle.allowance <= 0 and not throttle.paused:
            throttle.paused = True
            self._arrivals += 1
            heappush(self._readers, (throttle.served, self._arrivals, throttle))
            throttle.driver.pause()
            self._tick_later()

    def _resume(self) -> Throttle:
        throttle = heappop(self._readers)[2]
        throttle.paused = False
        throttle.driver.resume()
        return throttle

    def _ahead(self) -> float:
        """Bytes read that may not be written yet: reading may be so far ahead, or the order of cells would be lost."""
        cells = sum(throttle.channel.mux.queued() for waiting in (self._urgent, self._writers) for throttle in waiting)
        return min(cells * CELL_SIZE, AHEAD * self._in.rate)

    def _serve_readers(self, left: float) -> None:
        share = max(READ_SHARE, left / max(1, len(self._readers)))
        while left > 0 and self._readers:
            throttle = self._resume()
            throttle.allowance += share
            self._turns += 1
            throttle.served = self._turns
            left -= share

    # time

    def _tick_later(self) -> None:
        if self._timer is None and (self._contended or self._readers or self._urgent or self._writers):
            self._timer = self._timers.at(self._timers.now() + TICK, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._timers.now()
        self._contended = bool(self._readers)
        if self._readers:
            self._serve_readers(self._in.refill(now) + self._ahead())
        if self._urgent or self._writers:
            self._out.refill(now)
            self._serve_writers()
        self._tick_later()
