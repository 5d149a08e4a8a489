"""One circuit of this client."""

from __future__ import annotations

from collections.abc import Hashable
from functools import singledispatchmethod
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from backrooms.circuit.events import CircuitBuilt, CircuitClosed, HopAdded
from backrooms.circuit.origin import HopKeys, OriginCircuit
from backrooms.errors import CircuitError, StreamError
from backrooms.interfaces import Rng
from backrooms.levels import Level
from backrooms.netdir.descriptor import Descriptor
from backrooms.node.link import Link
from backrooms.path.route import Route
from backrooms.wire.cell import DestroyReason
from backrooms.wire.extensions import ClientExtensions

if TYPE_CHECKING:
    from backrooms.node.circuits import Circuits


PROBE_TIME = 5.0
"""Seconds the last relay has to answer when it is asked whether the circuit still passes cells."""


class BuildError(CircuitError):
    """A circuit did not come up: so many hops were there, and the reason is a `DestroyReason` or unknown."""

    def __init__(self, hops: int, reason: int) -> None:
        super().__init__(f"the circuit ended when {hops} hops were there, reason {reason}")
        self.hops = hops
        self.reason = reason


class ClientCircuit:
    """A circuit of ours: its machine, its path, and who may use it."""

    def __init__(
        self,
        manager: Circuits,
        number: int,
        route: Route,
        path: list[Descriptor],
        waiter: Deferred[ClientCircuit] | None = None,
    ) -> None:
        """`waiter` is for circuits that somebody asked for by their path; no other streams are given to them."""
        self.number = number
        self.waiter = waiter
        self.reserved = waiter is not None
        self.route = route
        self.path = path
        self.status = "LAUNCHED"
        self.hops = 0
        self.created_at = manager.timers.wall()
        self.started = manager.timers.now()
        self.build_seconds: float | None = None
        self.isolation: tuple[Hashable, ...] | None = None
        """Whose streams it carries; None for a spare."""
        self.dirty_at: float | None = None
        """When the first stream was given to it."""
        self.retired = False
        """Whether it takes no new streams."""
        self.machine: OriginCircuit | None = None
        self.link: Link | None = None
        self.circuit_id = 0
        self.reason = 0
        self.accepted = frozenset(manager.paths.doubted())
        """Relays that were doubted when it was begun: where it has one of them there was no other."""
        self._manager = manager
        self.probe_at = self.started
        """When it is to be found out whether it still passes cells."""
        self._probe: Any = None
        self._timeout = manager.timers.at(self.started + manager.options.build_timeout, self._timed_out)

    @property
    def level(self) -> Level:
        """The level of its route."""
        return self.route.level

    @property
    def exit(self) -> Descriptor:
        """The last hop."""
        return self.path[-1]

    @property
    def idle(self) -> bool:
        """Whether it was used, and carries nothing now."""
        used = self.status == "BUILT" and self.dirty_at is not None
        return used and self.machine is not None and self.machine.stream_count == 0

    def launch(self, link: Link, network_id: bytes, rng: Rng) -> None:
        """Start building over an open link to the first hop."""
        if self.status in ("CLOSED", "FAILED"):
            return
        queue = link.open_circuit(self, rng)
        self.link, self.circuit_id = link, queue.circuit_id
        timers = self._manager.timers
        self.machine = OriginCircuit(
            [HopKeys(relay.id, relay.onion_key) for relay in self.path],
            network_id,
            queue,
            lambda handshake: link.channel.create(queue.circuit_id, handshake),
            lambda: ClientExtensions(int(timers.wall()) // 60).encode(),
            timers.now,
            rng,
            self._dispatch,
            self._manager.wake,
        )
        link.handle(self.circuit_id, self.machine.receive)
        self.machine.start()

    # The owner of a circuit id on the first link.

    def created(self, handshake: bytes) -> None:
        if self.machine is not None:
            self.machine.created(handshake)

    def destroyed(self, reason: int) -> None:
        self.end(reason)

    @singledispatchmethod
    def _dispatch(self, event: object) -> None:
        raise TypeError(f"no handler for {event!r}")

    @_dispatch.register
    def _(self, event: HopAdded) -> None:
        self.hops = event.count
        if event.count == 1:
            self._manager.entered(self)
        if event.count < len(self.path):
            self.status = "EXTENDED"
            self._manager.changed(self)

    @_dispatch.register
    def _(self, event: CircuitBuilt) -> None:
        self._timeout.cancel()
        self.status = "BUILT"
        self.build_seconds = self._manager.timers.now() - self.started
        self._manager.built(self)
        waiter, self.waiter = self.waiter, None
        if waiter is not None:
            waiter.callback(self)

    @_dispatch.register
    def _(self, event: CircuitClosed) -> None:
        self._manager.blame(event.text)
        self.end(event.reason)

    def probe(self) -> None:
        """Find out whether cells still pass; if they do not, the circuit ends."""
        if self.status != "BUILT" or self.machine is None or self._probe is not None:
            return
        timers = self._manager.timers
        try:
            # An address is no question for anybody: the exit answers at once, that it may or may not go there.
            self.machine.resolve("0.0.0.0", False, lambda answer: self._passes())
        except StreamError:  # it has as many streams as there can be
            return
        self._probe = timers.at(timers.now() + PROBE_TIME, self._stalled)

    def _passes(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    def _stalled(self) -> None:
        self._probe = None
        self._manager.paths.suspect(self.path)
        self.end(DestroyReason.TIMEOUT)
        for other in list(self._manager.circuits.values()):
            if other.path[0].id == self.path[0].id:
                other.probe()  # if it is the entry that stalls, they are all gone

    def _timed_out(self) -> None:
        self.end(DestroyReason.TIMEOUT)

    def end(self, reason: int) -> None:
        """End the circuit here and at its relays; its streams end with DESTROY."""
        if self.status in ("CLOSED", "FAILED"):
            return
        was_built = self.status == "BUILT"
        self.status = "CLOSED" if was_built else "FAILED"
        self.reason = reason
        self._timeout.cancel()
        self._passes()
        if self.link is not None:
            self.link.release(self.circuit_id, DestroyReason.NONE, self._manager.timers.now())
        if self.machine is not None:
            self.machine.close()
        self._manager.ended(self, was_built)
        waiter, self.waiter = self.waiter, None
        if waiter is not None:
            waiter.errback(BuildError(self.hops, reason))
