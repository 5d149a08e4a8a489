"""The client half of a node: keeps circuits ready, and gives each stream one that it may use."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from backrooms.circuit.origin import OriginCircuit
from backrooms.errors import BackroomsError, CircuitError, PathError
from backrooms.interfaces import Rng
from backrooms.levels import Level
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory
from backrooms.node.channels import Channels
from backrooms.node.clientcircuit import ClientCircuit
from backrooms.node.logs import Seldom
from backrooms.node.paths import Paths
from backrooms.node.spares import Spares
from backrooms.node.streams import Streams
from backrooms.node.timers import Timers
from backrooms.path.constraints import Constraints, Target, allows
from backrooms.path.entities import KnownEntities
from backrooms.path.route import Route
from backrooms.wire.cell import DestroyReason

log = Logger()

MAX_CIRCUITS = 256
SWEEP = 1.0
"""Seconds between looks at what is old, and at how many spares there are."""

__all__ = ["Circuits", "ClientCircuit", "Options"]


@dataclass(slots=True)
class Options:
    """How circuits are kept; times in seconds."""

    level: Level
    spares: dict[Level, int] = field(default_factory=dict)
    max_dirtiness: float = 600.0
    build_timeout: float = 10.0
    retries: int = 3
    dormant_after: float = 0.0
    """Seconds without a stream after which the client sleeps; 0 for never."""
    constraints: Constraints = field(default_factory=Constraints)
    entities: KnownEntities = field(default_factory=KnownEntities)


class Circuits:
    """All circuits of this client; `streams` gives them to streams."""

    def __init__(
        self,
        timers: Timers,
        channels: Channels,
        directory: Directory,
        paths: Paths,
        network_id: bytes,
        rng: Rng,
        options: Options,
        settled: Callable[[], bool] = lambda: True,
    ) -> None:
        """`settled` says whether the directory is complete, so that what no path fits now will not fit soon."""
        self.timers = timers
        self.options = options
        self.circuits: dict[int, ClientCircuit] = {}
        self.epoch = 0
        """Counts NEWNYMs; streams of different epochs never share a circuit."""
        self.ever_built = False
        self.faults: Counter[str] = Counter()
        """Circuits closed for what a relay did, by what it was."""
        self.dormant = False
        """Whether no circuits are kept, since nobody uses them; the next stream changes that."""
        self.on_dormant: Callable[[bool], None] = lambda dormant: None
        """Called when `dormant` changes."""
        self.on_circuit: Callable[[ClientCircuit], None] = lambda circuit: None
        self.paths = paths
        self.shun = paths.shun
        """Each gives ids of relays to avoid in new paths if there are others; never as the guard."""
        self.refuses: Callable[[Level], str | None] = lambda level: None
        """Why a level may not be used now, if it may not."""
        self.streams = Streams(self)
        self.spares = Spares(self, rng)
        self._channels = channels
        self._directory = directory
        self._network_id = network_id
        self._rng = rng
        self._numbers = itertools.count(1)
        self._settled = settled
        self._seldom = Seldom()
        self._used_at = 0.0
        self._sweeper: Any = None
        self._stopped = False

    # starting and stopping

    def start(self) -> None:
        """Begin to keep spares; also after `stop`."""
        self._stopped = False
        self._used_at = self.timers.now()
        self.streams.start()
        self._sweep()

    def stop(self) -> None:
        """End every circuit and stream. New streams end at once."""
        self._stopped = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.streams.stop()
        for circuit in list(self.circuits.values()):
            circuit.end(DestroyReason.FINISHED)

    def go_dormant(self) -> None:
        """Sleep: end circuits that carry nothing and build none until there is a stream."""
        if not self.dormant and not self._stopped:
            self.dormant = True
            log.info("this client sleeps until it is used")
            self.on_dormant(True)
            for circuit in list(self.circuits.values()):
                if circuit.reserved:
                    circuit.end(DestroyReason.FINISHED)
            self.wake()

    def go_active(self) -> None:
        """Be ready for streams again."""
        self._used_at = self.timers.now()
        if self.dormant and not self._stopped:
            self.dormant = False
            log.info("this client is awake again")
            self.on_dormant(False)
            self.directory_changed()

    def newnym(self) -> None:
        """From now on streams get circuits that no stream has used before."""
        self.epoch += 1
        for circuit in self.circuits.values():
            if circuit.isolation is not None:
                circuit.retired = True
        self.wake()

    def relay_changed(self, relay_id: bytes, relay: Descriptor | None) -> None:
        """Something else is known of a relay: circuits through one that was revoked take no new streams."""
        if relay is not None and relay.revoked:
            for circuit in self.circuits.values():
                circuit.retired = circuit.retired or relay_id in [hop.id for hop in circuit.path]
            self.wake()

    def wake(self) -> None:
        """Something changed: look after circuits and waiting streams soon."""
        if not self._stopped and self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = self.timers.at(self.timers.now(), self._sweep)

    def directory_changed(self) -> None:
        """There are other relays than before: what could not be built may be possible now."""
        self.spares.hurry()
        self.wake()

    # what streams ask

    @property
    def default(self) -> Route:
        """The route of streams that ask for none."""
        return Route(self.options.level)

    def isolation(self, key: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
        """The whole isolation key of a request."""
        return (*key, self.epoch)

    def find(
        self, route: Route, target: Target, isolation: tuple[Hashable, ...], avoid: Collection[bytes] = ()
    ) -> ClientCircuit | None:
        """A built circuit that a stream may use: one of its isolation, else a spare. `avoid` has exits' ids."""
        now = self.timers.now()
        spare = None
        if self.refuses(route.level):
            return None
        for circuit in self.circuits.values():
            if circuit.status != "BUILT" or circuit.retired or circuit.reserved:
                continue
            if not _suits(circuit, route, target, avoid):
                continue
            if circuit.isolation == isolation:
                if circuit.dirty_at is None or now - circuit.dirty_at < self.options.max_dirtiness:
                    return circuit
            elif circuit.isolation is None and spare is None:
                spare = circuit
        return spare

    def want(
        self, route: Route, target: Target, isolation: tuple[Hashable, ...], avoid: Collection[bytes] = ()
    ) -> bool:
        """Build a circuit for this, unless one is on its way. False when that has to wait.

        `PathError` when no path fits and waiting will not help.
        """
        self._check_level(route)
        now = self.timers.now()
        for circuit in self.circuits.values():
            if circuit.status == "BUILT" or circuit.retired or circuit.reserved or self.spares.is_stale(circuit, now):
                continue
            if circuit.isolation not in (isolation, None):
                continue
            if _suits(circuit, route, target, avoid):
                if circuit.isolation is None:
                    # A spare under way is what this stream would get next; keep it for this one.
                    circuit.isolation = isolation
                return True
        return self.begin(route, target, isolation, avoid)

    def use(self, circuit: ClientCircuit, isolation: tuple[Hashable, ...]) -> OriginCircuit:
        """Give a circuit to streams of one isolation."""
        assert circuit.machine is not None
        if circuit.isolation is None:
            circuit.isolation = isolation
            for other in self.circuits.values():
                if other.status != "BUILT" and other.isolation == isolation:
                    other.isolation = None  # it was kept for these streams; now it may be anybody's spare
            self.wake()
        self.spares.used(circuit, self.timers.now())
        if circuit.dirty_at is None:
            circuit.dirty_at = self.timers.now()
        return circuit.machine

    # building

    def _make_room(self) -> bool:
        """Whether there may be one circuit more; the one idle longest is given up for it."""
        if len(self.circuits) < MAX_CIRCUITS:
            return True
        idle = [one for one in self.circuits.values() if one.idle]
        if not idle:
            return False
        min(idle, key=lambda one: one.dirty_at or 0.0).end(DestroyReason.FINISHED)
        return True

    def _check_level(self, route: Route) -> None:
        """`PathError` while something speaks against the route's level: it is not lowered."""
        reason = self.refuses(route.level)
        if reason:
            if self._seldom.is_due("level", self.timers.now()):
                log.warn("level {name} is refused: {reason}", name=route.level.name, reason=reason)
            raise PathError(reason)

    def begin(
        self,
        route: Route,
        target: Target,
        isolation: tuple[Hashable, ...] | None,
        avoid: Collection[bytes] = (),
    ) -> bool:
        """Start a circuit. False when it has to wait; `PathError` when it is no use waiting."""
        if self._channels.clocks.wrong:
            raise PathError(self._channels.clocks.describe())
        self._check_level(route)
        if self._stopped or not self._directory.relays() or not self._make_room():
            return False
        try:
            path = self.paths.choose(route, target, avoid)
        except PathError as error:
            if not self._settled():
                return False
            if self._seldom.is_due(str(error), self.timers.now()):
                log.warn("no path at level {name}: {error}", name=route.level.name, error=str(error))
            raise
        if path is None:
            return False
        circuit = ClientCircuit(self, next(self._numbers), route, path)
        circuit.isolation = isolation
        self._launch(circuit)
        return True

    def build(self, level: Level, path: list[Descriptor]) -> Deferred[ClientCircuit]:
        """A circuit along just this path, which nobody but the caller uses; `BuildError` when it does not come up.

        It stays until its `end` is called or a relay ends it.
        """
        if self._channels.clocks.wrong:
            return fail(CircuitError(self._channels.clocks.describe()))
        if self._stopped or self.dormant:
            return fail(CircuitError("this node is stopping" if self._stopped else "this client sleeps"))
        if not self._make_room():
            return fail(CircuitError("too many circuits are in use"))
        waiter: Deferred[ClientCircuit] = Deferred(lambda _: circuit.end(DestroyReason.FINISHED))
        circuit = ClientCircuit(self, next(self._numbers), Route(level), path, waiter)
        self._launch(circuit)
        return waiter

    def _launch(self, circuit: ClientCircuit) -> None:
        self.circuits[circuit.number] = circuit
        self.on_circuit(circuit)
        link = self._channels.link(circuit.path[0].id)
        link.addCallback(lambda found: circuit.launch(found, self._network_id, self._rng))
        link.addErrback(lambda failure: self._no_link(circuit, failure))

    def _no_link(self, circuit: ClientCircuit, failure: Failure) -> None:
        if not isinstance(failure.value, BackroomsError):
            log.failure("bug while building a circuit", failure)
        circuit.end(DestroyReason.CONNECT_FAILED)

    def changed(self, circuit: ClientCircuit) -> None:
        """A circuit being built has one hop more."""
        self.on_circuit(circuit)

    def entered(self, circuit: ClientCircuit) -> None:
        """The first relay of a circuit answered."""
        if self._is_guarded(circuit):
            self.paths.guards.reached(circuit.path[0].id, confirm=not circuit.reserved)

    def _is_guarded(self, circuit: ClientCircuit) -> bool:
        """Whether what happened at its first relay says something about a guard."""
        return len(circuit.path) > 1 and not self._stopped and not self._channels.clocks.wrong

    def built(self, circuit: ClientCircuit) -> None:
        """A circuit is ready: give it to whoever waits for one."""
        self.spares.built()
        self.paths.trust(circuit.path)
        self.ever_built = True
        self.on_circuit(circuit)
        self.wake()

    def ended(self, circuit: ClientCircuit, was_built: bool) -> None:
        """A circuit is gone."""
        self.circuits.pop(circuit.number, None)
        self.on_circuit(circuit)
        expected = circuit.reason in (DestroyReason.FINISHED, DestroyReason.REQUESTED)
        if circuit.hops == 0 and not expected and self._is_guarded(circuit):
            self.paths.guards.failed(circuit.path[0].id)
            self.spares.leave(circuit.path[0].id)
        if not was_built and not expected and not circuit.reserved:
            if circuit.link is not None:
                # Either the relay that was not reached is at fault, or the one that should have reached it.
                self.paths.suspect(circuit.path[max(0, circuit.hops - 1) : circuit.hops + 1])
                if circuit.isolation is not None:
                    self.streams.build_failed(circuit.route, circuit.isolation)
            self.spares.failed(self.timers.now())
        self.wake()

    def blame(self, text: str) -> None:
        """A circuit was closed because of what a relay did."""
        self.faults[text] += 1
        if self._seldom.is_due(text, self.timers.now()):
            log.warn("a circuit was closed: {text}", text=text)

    # keeping house

    def _sweep(self) -> None:
        now = self.timers.now()
        self._sweeper = self.timers.at(now + SWEEP, self._sweep)
        self.spares.look()
        for circuit in list(self.circuits.values()):
            self._retire(circuit, now)
        self.streams.attach_waiting()
        if self.streams.streams:
            self._used_at = now
        elif 0 < self.options.dormant_after <= now - self._used_at:
            self.go_dormant()
        if not self.dormant:
            self.spares.keep(now)
        elif not self.circuits and not self.streams.streams:
            self._sweeper.cancel()

    def _retire(self, circuit: ClientCircuit, now: float) -> None:
        if circuit.status != "BUILT" or circuit.machine is None or circuit.reserved:
            return
        if circuit.dirty_at is not None and now - circuit.dirty_at >= self.options.max_dirtiness:
            circuit.retired = True
        if self.spares.is_stale(circuit, now):
            circuit.retired = True
        if (circuit.retired or self.dormant) and circuit.machine.stream_count == 0:
            circuit.end(DestroyReason.FINISHED)


def _suits(circuit: ClientCircuit, route: Route, target: Target, avoid: Collection[bytes]) -> bool:
    last = circuit.exit
    return circuit.route == route and last.is_exit and last.id not in avoid and allows(last, target)
