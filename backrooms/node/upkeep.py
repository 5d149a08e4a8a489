"""Keeps path choice up to date with the list of relays, in small steps between other work."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from backrooms.node.timers import Call, Timers
from backrooms.path.selectors import Selectors

log = Logger()

PAUSE = 0.002
"""Seconds between steps, in which others have their turn."""
REST = 1.0
"""Seconds after the last step before it begins again: a list that changes all the time must not keep us busy."""


class Upkeep:
    """Has the work of `Selectors` done. `on_ready` is called when all relays known at the start have been looked at."""

    def __init__(self, timers: Timers, selectors: Selectors, on_ready: Callable[[], None]) -> None:
        self._timers = timers
        self._selectors = selectors
        self._on_ready = on_ready
        self._timer: Call | None = None
        self._rested_at = 0.0
        self._was_ready = True
        self._stopped = False
        selectors.on_stale = self._soon
        selectors.on_warning = lambda text: log.warn("{text}", text=text)
        self._soon()

    def stop(self) -> None:
        """Do nothing more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _soon(self) -> None:
        if self._timer is None and not self._stopped:
            self._was_ready = self._was_ready and self._selectors.ready
            self._timer = self._timers.at(max(self._timers.now() + PAUSE, self._rested_at), self._step)

    def _step(self) -> None:
        self._timer = None
        more = self._selectors.work()
        if not more:
            self._rested_at = self._timers.now() + REST
        if not self._was_ready and self._selectors.ready:
            self._was_ready = True
            self._on_ready()
        if more:
            self._soon()
