"""One circuit of somebody else at this relay."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatchmethod
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from backrooms.circuit.events import (
    BeginRequested,
    CircuitClosed,
    DirectoryRequested,
    ExtendRequested,
    ResolveRequested,
)
from backrooms.circuit.hop import RelayCircuit, RelayEdge
from backrooms.circuit.stream import Stream
from backrooms.node.link import Link
from backrooms.node.logs import without_numbers
from backrooms.wire.cell import DestroyReason

if TYPE_CHECKING:
    from backrooms.node.relay import Relay

CREATE_TIMEOUT = 20.0
"""Seconds the next relay has to answer a CREATE."""


class RelayedCircuit:
    """One circuit at this relay: the pure `RelayCircuit` between a previous and perhaps a next link."""

    def __init__(self, relay: Relay, link: Link, circuit_id: int) -> None:
        self._relay = relay
        self.link = link
        self.circuit_id = circuit_id
        self.peer = link.peer
        """Who holds it, for fair shares."""
        self.next: NextSide | None = None
        self.machine: RelayCircuit | None = None
        self.extending = b""
        """The relay that it is being extended to."""
        self.dial: Deferred[Link] | None = None
        """The link to that relay, while it is waited for."""

    @property
    def busy(self) -> bool:
        """Whether it carries exit streams, or cells that have not left yet."""
        return self.machine is not None and self.machine.busy

    def waiting(self, unsent: Mapping[Stream, int]) -> int:
        """Bytes of memory, about, that wait here for it; `unsent` are those in sockets of its streams."""
        if self.machine is None:
            return 0
        sockets = sum([unsent.get(stream, 0) for stream in self.edge.streams.values()])
        return self.machine.waiting + sockets

    # As the owner of the previous side's circuit id.

    def created(self, handshake: bytes) -> None:
        """CREATED from the side that sent CREATE makes no sense."""
        self.end(DestroyReason.PROTOCOL)

    def destroyed(self, reason: int) -> None:
        """The client's side is gone."""
        self.end(DestroyReason.DESTROYED)

    def emit(self, event: object) -> None:
        """Events of the machine."""
        self._dispatch(event)

    @singledispatchmethod
    def _dispatch(self, event: object) -> None:
        raise TypeError(f"no handler for {event!r}")

    @_dispatch.register
    def _(self, event: CircuitClosed) -> None:
        self._relay.counts[without_numbers(event.text)] += 1
        self.end(event.reason)

    @_dispatch.register
    def _(self, event: ExtendRequested) -> None:
        self._relay.extend(self, event.relay_id, event.handshake)

    @_dispatch.register
    def _(self, event: BeginRequested) -> None:
        if self._may_exit():
            self._relay.begin(self, event)

    @_dispatch.register
    def _(self, event: DirectoryRequested) -> None:
        self._relay.begin_directory(self, event)

    @_dispatch.register
    def _(self, event: ResolveRequested) -> None:
        if self._may_exit():
            self._relay.exiting.add(self)
            self._relay.exit.resolve(self.edge, event)

    @property
    def edge(self) -> RelayEdge:
        """Where its streams are."""
        assert self.machine is not None
        return self.machine.edge

    def _may_exit(self) -> bool:
        """A circuit that comes straight from a client has one hop: only exits that allow it serve streams there."""
        if self.link.peer_id is not None or self._relay.exit.single_hop:
            return True
        assert self.machine is not None
        self.machine.fail(DestroyReason.PROTOCOL, "a stream on a circuit of one hop")
        return False

    def fail(self, reason: int, text: str) -> None:
        """End the circuit, and count why."""
        assert self.machine is not None
        self.machine.fail(reason, text)

    def end(self, reason: int) -> None:
        """End the circuit on both sides; the next relay only hears that it was destroyed."""
        if self.machine is not None:
            self.machine.close()
            self._relay.exit.circuit_ended(self.machine.edge)
        now = self._relay.timers.now()
        self.link.release(self.circuit_id, reason, now)
        if self.next is not None:
            self.next.release(now)
        if self.dial is not None:
            self.dial.cancel()
        self._relay.forget_circuit(self)


class NextSide:
    """The owner of a circuit's id on its next link."""

    def __init__(self, relay: Relay, circuit: RelayedCircuit, link: Link) -> None:
        self._relay = relay
        self._circuit = circuit
        self.link = link
        self.queue = link.open_circuit(self, relay.rng)
        self.circuit_id = self.queue.circuit_id
        self._timeout = relay.timers.at(relay.timers.now() + CREATE_TIMEOUT, self._timed_out)

    def created(self, handshake: bytes) -> None:
        self._timeout.cancel()
        machine = self._circuit.machine
        if machine is None or machine.closed:
            return
        if not self._circuit.extending:
            self._circuit.end(DestroyReason.PROTOCOL)
            return
        self._relay.limits.extended(self._circuit)
        self.link.handle(self.circuit_id, machine.backward)
        machine.extend(self.queue, handshake)

    def destroyed(self, reason: int) -> None:
        self._timeout.cancel()
        self._circuit.end(DestroyReason.DESTROYED)

    def release(self, now: float) -> None:
        """The circuit ended here."""
        self._timeout.cancel()
        self.link.release(self.circuit_id, DestroyReason.DESTROYED, now)

    def _timed_out(self) -> None:
        self._relay.counts["EXTEND timed out"] += 1
        self._circuit.end(DestroyReason.DESTROYED)
