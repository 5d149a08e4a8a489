"""Turns at a bounded rate."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed

from backrooms.node.timers import Call, Timers

_ENOUGH = 0.999
"""A turn, but for what the clock's rounding takes."""
_LEAST_WAIT = 0.001


class Tokens:
    """Turns that may be taken: `burst` at first and at most, `rate` a second come in."""

    def __init__(self, timers: Timers, rate: float, burst: int) -> None:
        self._timers = timers
        self._rate = rate
        self._burst = float(burst)
        self._left = self._burst
        self._counted_at = timers.now()

    def take(self) -> bool:
        """Take a turn if there is one."""
        now = self._timers.now()
        self._left = min(self._burst, self._left + (now - self._counted_at) * self._rate)
        self._counted_at = now
        if self._left < _ENOUGH:
            return False
        self._left -= 1.0
        return True

    def next_at(self) -> float:
        """When (monotonic) there will be one; ask after `take`."""
        return self._timers.now() + max(_LEAST_WAIT, (1.0 - self._left) / self._rate)


class Pace:
    """Gives `burst` turns at once and then `rate` a second; who comes later waits in line."""

    def __init__(self, timers: Timers, rate: float, burst: int) -> None:
        self._timers = timers
        self._tokens = Tokens(timers, rate, burst)
        self._line: dict[Deferred[None], None] = {}
        self._call: Call | None = None

    def __len__(self) -> int:
        """How many wait."""
        return len(self._line)

    def turn(self) -> Deferred[None]:
        """Fires when it is the caller's turn; cancelling it leaves the line."""
        if not self._line and self._tokens.take():
            return succeed(None)
        place: Deferred[None] = Deferred(self._leave)
        self._line[place] = None
        self._arm()
        return place

    def close(self) -> None:
        """Cancel all who wait."""
        for place in list(self._line):
            place.cancel()

    def _arm(self) -> None:
        if self._line and self._call is None:
            self._call = self._timers.at(self._tokens.next_at(), self._serve)

    def _serve(self) -> None:
        self._call = None
        while self._line and self._tokens.take():
            place = next(iter(self._line))
            del self._line[place]
            place.callback(None)
        self._arm()

    def _leave(self, place: Deferred[None]) -> None:
        self._line.pop(place, None)
        if not self._line and self._call is not None:
            self._call.cancel()
            self._call = None
