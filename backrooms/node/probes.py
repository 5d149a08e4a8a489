"""Probes: circuits that are built, kept for a while and asked for round trips, and nothing else.

To a relay of the path but the last a probe is an ordinary circuit: the same handshakes, and cells that say nothing. The
last relay sees a directory stream being opened again and again; that is what it could tell a probe by. No probe carries
anything of a user, and no stream of a user gets the circuit of a probe.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from backrooms.circuit.stream import Stream
from backrooms.errors import CircuitError, StreamError
from backrooms.interfaces import Rng
from backrooms.levels import Level
from backrooms.netdir.descriptor import Descriptor
from backrooms.node.circuits import Circuits, ClientCircuit
from backrooms.node.clientcircuit import BuildError
from backrooms.node.timers import Timers
from backrooms.path.outcomes import Outcome
from backrooms.wire.cell import DestroyReason
from backrooms.wire.relay import EndReason

TRIP_TIME = 5.0
"""Seconds after which a round trip is given up: the circuit counts as lost."""
PAUSE = 0.15
"""Seconds between round trips, on average."""
MOST_TRIPS = 60
BEAT = 0.1
"""Seconds between looks at how late our own event loop is."""
LAG = 0.05
"""Seconds of lateness from which on we cannot tell who was slow."""


class Lag:
    """How late this process' own event loop is: what looks slow then may not be."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._users = 0
        self._due = 0.0
        self._late_at = float("-inf")
        self._call: Any = None

    def start(self) -> None:
        """Begin to look, for one user more."""
        self._users += 1
        if self._call is None:
            self._next()

    def stop(self) -> None:
        """One user less."""
        self._users -= 1
        if not self._users and self._call is not None:
            self._call.cancel()
            self._call = None

    def _next(self) -> None:
        self._due = self._timers.now() + BEAT
        self._call = self._timers.at(self._due, self._beat)

    def _beat(self) -> None:
        now = self._timers.now()
        if now - self._due > LAG:
            self._late_at = now
        self._next()

    def since(self, start: float) -> bool:
        """Whether the loop was late at some time from `start` to now."""
        now = self._timers.now()
        return self._late_at >= start or now - self._due > LAG


class Probe:
    """One probe, from the building of its circuit to its end."""

    def __init__(
        self, circuits: Circuits, level: Level, path: list[Descriptor], hold: float, rng: Rng, lag: Lag
    ) -> None:
        """`hold` is how many seconds the circuit is kept."""
        self._circuits = circuits
        self._timers: Timers = circuits.timers
        self._level = level
        self._path = path
        self._hold = hold
        self._rng = rng
        self._lag = lag
        self.outcome = Outcome(tuple(relay.id for relay in path), self._timers.now())

    async def run(self) -> Outcome:
        """What became of it."""
        outcome = self.outcome
        self._lag.start()
        try:
            await self._run()
        finally:
            self._lag.stop()
            outcome.ended = outcome.ended or self._timers.now()
        return outcome

    async def _run(self) -> None:
        outcome = self.outcome
        try:
            circuit = await self._circuits.build(self._level, self._path)
        except BuildError as error:
            outcome.hops, outcome.failed, outcome.reason = error.hops, True, error.reason
            outcome.void = error.reason == DestroyReason.TIMEOUT and self._lag.since(outcome.began)
            return
        except CircuitError:  # ours: no room, a wrong clock, stopping
            outcome.void = True
            return
        outcome.hops = len(self._path)
        try:
            await self._keep(circuit)
        finally:
            circuit.end(DestroyReason.FINISHED)

    async def _keep(self, circuit: ClientCircuit) -> None:
        outcome, timers = self.outcome, self._timers
        end = timers.now() + self._hold
        while circuit.status == "BUILT" and timers.now() < end:
            if len(outcome.trips) < MOST_TRIPS and not await self._trip(circuit):
                break
            await timers.sleep(min(PAUSE * (0.5 + self._rng.random()), max(0.01, end - timers.now())))
        if circuit.status != "BUILT":
            outcome.failed, outcome.reason = True, circuit.reason
            outcome.void = circuit.reason in (DestroyReason.FINISHED, DestroyReason.REQUESTED)

    async def _trip(self, circuit: ClientCircuit) -> bool:
        """One round trip with the last hop; False when the circuit has ended, or does not answer."""
        outcome, timers = self.outcome, self._timers
        began = timers.now()
        answered = await _ask(circuit, timers)
        now = timers.now()
        if answered:
            if not self._lag.since(began - BEAT):
                outcome.trips.append((now, now - began))
            return True
        if circuit.status == "BUILT":
            outcome.ended, outcome.failed, outcome.reason = now, True, int(DestroyReason.TIMEOUT)
            outcome.void = self._lag.since(began)
        return False


async def _ask(circuit: ClientCircuit, timers: Timers) -> bool:
    """Open a directory stream, and close it when the relay has answered; whether it has."""
    assert circuit.machine is not None
    stream = Stream()
    answered: Deferred[bool] = Deferred()

    def answer(well: bool) -> None:
        if not answered.called:
            answered.callback(well)

    stream.on_change = lambda: answer(stream.connected or stream.ended != EndReason.DESTROY)
    try:
        circuit.machine.begin_directory(stream)
    except StreamError:  # the circuit is closed
        return False
    patience = timers.at(timers.now() + TRIP_TIME, lambda: answer(False))
    try:
        return await answered
    finally:
        patience.cancel()
        stream.on_change = None
        stream.abort(EndReason.MISC)
