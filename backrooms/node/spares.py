"""Circuits that are ready before anybody asks: how many there are, and when one gives way to a better one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backrooms.errors import PathError
from backrooms.interfaces import Rng
from backrooms.levels import Level
from backrooms.path.route import Route
from backrooms.path.selector import ANYWHERE
from backrooms.wire.cell import DestroyReason

if TYPE_CHECKING:
    from backrooms.node.circuits import Circuits, ClientCircuit

BUILD_BACKOFF_MAX = 30.0
"""Seconds between attempts at spares while nothing can be built."""
IN_USE = 3600.0
"""Seconds after its last stream in which a level counts as in use, and has a spare."""
PROBE_PAUSE = 30.0
"""Seconds between questions whether a spare still passes cells, half as long to half as long again."""
RETURN_PAUSE = 60.0
"""Seconds, at least, between circuits that are built to see whether a better guard is back."""
SPARE_LIFE = 6
"""A spare is replaced after this many times `max_dirtiness`."""


class Spares:
    """Keeps the spares of a client's circuits: those that the options ask for, and one of each level in use."""

    def __init__(self, circuits: Circuits, rng: Rng) -> None:
        self._circuits = circuits
        self._rng = rng
        self._in_use: dict[Level, float] = {}
        """Levels of circuits given to streams, and when the last was."""
        self._failures = 0
        self._not_before = self._next_return = 0.0
        self._doubted: set[bytes] = set()

    # what happens

    def hurry(self) -> None:
        """What could not be built may be possible now."""
        self._not_before = 0.0

    def used(self, circuit: ClientCircuit, now: float) -> None:
        """A stream was given this circuit."""
        if circuit.route == Route(circuit.level):
            self._in_use[circuit.level] = now

    def built(self) -> None:
        """A circuit came up."""
        self._failures = 0

    def failed(self, now: float) -> None:
        """A circuit did not come up: wait before the next, longer each time."""
        self._failures += 1
        pause = min(2.0 ** min(self._failures, 10) / 10, BUILD_BACKOFF_MAX)
        self._not_before = now + pause * (0.5 + self._rng.random())

    def leave(self, relay_id: bytes) -> None:
        """A guard does not answer any more: no stream should be given a circuit through it and find that out again."""
        for circuit in list(self._circuits.circuits.values()):
            through = circuit.path[0].id == relay_id and len(circuit.path) > 1 and not circuit.reserved
            if through and (circuit.idle or (circuit.isolation is None and circuit.status == "BUILT")):
                circuit.end(DestroyReason.FINISHED)

    # keeping them

    def look(self) -> None:
        """Who is doubted now."""
        self._doubted = self._circuits.paths.doubted()

    def is_stale(self, circuit: ClientCircuit, now: float) -> bool:
        """Whether a spare should give way: it is old, enters by a worse guard, or passes a relay doubted since then."""
        if circuit.isolation is not None:
            return False
        if now - circuit.started >= SPARE_LIFE * self._circuits.options.max_dirtiness:
            return True
        doubted = self._doubted - circuit.accepted
        if not doubted.isdisjoint(relay.id for relay in circuit.path[1:] or circuit.path):
            return True
        if len(circuit.path) == 1:
            return False
        paths = self._circuits.paths
        return paths.guards.is_outdone(circuit.path[0].id, paths.selectors.get(circuit.route), circuit.created_at)

    def keep(self, now: float) -> None:
        """Build those that are missing, and look after those that are there."""
        self._probe(now)
        if now < self._not_before:
            return
        self._in_use = {level: since for level, since in self._in_use.items() if now - since < IN_USE}
        for level, wanted in (dict.fromkeys(self._in_use, 1) | self._circuits.options.spares).items():
            route = Route(level)
            there = sum(
                self._is_spare(circuit) and circuit.route == route for circuit in self._circuits.circuits.values()
            )
            try:
                for _ in range(wanted - there):
                    if not self._circuits.begin(route, ANYWHERE, None):
                        break
                self._try_better_guard(route, now)
            except PathError:
                self._not_before = now + BUILD_BACKOFF_MAX

    def _probe(self, now: float) -> None:
        for circuit in list(self._circuits.circuits.values()):
            if circuit.status == "BUILT" and self._is_spare(circuit) and now >= circuit.probe_at:
                if now - circuit.started >= PROBE_PAUSE / 2:
                    circuit.probe()
                circuit.probe_at = now + PROBE_PAUSE * (0.5 + self._rng.random())

    def _try_better_guard(self, route: Route, now: float) -> None:
        """Build one circuit more where the spares do without a guard that may be back."""
        if now < self._next_return or route.level.hops == 1:
            return
        spares = [one for one in self._circuits.circuits.values() if self._is_spare(one) and one.route == route]
        if any(self._circuits.paths.is_due(one.path[0].id, route) for one in spares):
            self._next_return = now + RETURN_PAUSE
            self._circuits.begin(route, ANYWHERE, None)

    @staticmethod
    def _is_spare(circuit: ClientCircuit) -> bool:
        return circuit.isolation is None and not circuit.retired and not circuit.reserved
