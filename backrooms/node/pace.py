"""Turns at a bounded rate."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed

from backrooms.node.timers import Call, Timers

_ENOUGH = 0.999
"""A turn, but for what the clock's rounding takes."""
_LEAST_WAIT = 0.001


class Pace:
    """Gives `burst` turns at once and then `rate` a second; who comes later waits in line."""

    def __init__(self, timers: Timers, rate: float, burst: int) -> None:
        self._timers = timers
        self._rate = rate
        self._burst = float(burst)
        self._turns = self._burst
        self._counted_at = timers.now()
        self._line: dict[Deferred[None], None] = {}
        self._call: Call | None = None

    def __len__(self) -> int:
        """How many wait."""
        return len(self._line)

    def turn(self) -> Deferred[None]:
        """Fires when it is the caller's turn; cancelling it leaves the line."""
        self._count()
        if not self._line and self._turns >= _ENOUGH:
            self._turns -= 1.0
            return succeed(None)
        place: Deferred[None] = Deferred(self._leave)
        self._line[place] = None
        self._arm()
        return place

    def close(self) -> None:
        """Cancel all who wait."""
        for place in list(self._line):
            place.cancel()

    def _count(self) -> None:
        now = self._timers.now()
        self._turns = min(self._burst, self._turns + (now - self._counted_at) * self._rate)
        self._counted_at = now

    def _arm(self) -> None:
        if self._line and self._call is None:
            wait = max(_LEAST_WAIT, (1.0 - self._turns) / self._rate)
            self._call = self._timers.at(self._timers.now() + wait, self._serve)

    def _serve(self) -> None:
        self._call = None
        self._count()
        while self._line and self._turns >= _ENOUGH:
            place = next(iter(self._line))
            del self._line[place]
            self._turns -= 1.0
            place.callback(None)
        self._arm()

    def _leave(self, place: Deferred[None]) -> None:
        self._line.pop(place, None)
        if not self._line and self._call is not None:
            self._call.cancel()
            self._call = None
