"""Coroutines that are started again and again, each at a time of its own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from backrooms.node.timers import Call, Timers

log = Logger()


class Schedule:
    """When each of a few things, known by its name, is to be done next. `what` says in the log whose bug a bug is."""

    def __init__(self, timers: Timers, what: str) -> None:
        self._timers = timers
        self._what = what
        self._due: dict[str, tuple[float, Callable[[], Coroutine[Any, Any, None]]]] = {}
        self._calls: dict[str, Call] = {}
        self._resting = self._stopped = False

    def set(self, name: str, seconds: float, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a coroutine in so many seconds, instead of when it was to be started so far."""
        if not self._stopped:
            self._due[name] = (self._timers.now() + seconds, start)
            self._arm(name)

    def overdue(self, name: str) -> bool:
        """Whether it should have been started already."""
        return name in self._due and self._due[name][0] <= self._timers.now()

    def rest(self) -> None:
        """Start nothing until `resume`."""
        self._resting = True
        self._cancel()

    def resume(self) -> None:
        """Go on; what should have been started meanwhile is started now."""
        self._resting = False
        for name in self._due:
            self._arm(name)

    def stop(self) -> None:
        """Start nothing any more."""
        self._stopped = True
        self._cancel()

    def _cancel(self) -> None:
        for call in self._calls.values():
            call.cancel()
        self._calls.clear()

    def _arm(self, name: str) -> None:
        if name in self._calls:
            self._calls.pop(name).cancel()
        if not self._resting and not self._stopped:
            self._calls[name] = self._timers.at(self._due[name][0], partial(self._run, name))

    def _run(self, name: str) -> None:
        _, start = self._due.pop(name)
        del self._calls[name]
        Deferred.fromCoroutine(start()).addErrback(
            lambda failure: log.failure("bug in {what}", failure, what=self._what)
        )
