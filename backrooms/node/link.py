"""One link, who owns which circuit id on it, and the words for why there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet import error as net
from twisted.internet.defer import Deferred

from backrooms.channel.machine import Channel
from backrooms.channel.mux import CircuitQueue
from backrooms.errors import BackroomsError, CircuitError, RemoteProtocolError
from backrooms.interfaces import Rng
from backrooms.node.admission import prefixes
from backrooms.node.buckets import Key
from backrooms.node.driver import Driver
from backrooms.wire.cell import DestroyReason

CellHandler = Callable[[int, bytes, int], None]
"""Takes a RELAY cell: command, buffer, offset of the cell in the buffer."""


class CircuitOwner(Protocol):
    """What a link tells the owner of a circuit id."""

    def created(self, handshake: bytes) -> None:
        """CREATED came."""

    def destroyed(self, reason: int) -> None:
        """The other end destroyed the circuit, or the link is gone. The id is not the owner's any more."""


class Link:
    """One link and the circuits on it."""

    def __init__(self, channel: Channel, driver: Driver, address: str, now: float) -> None:
        self.channel = channel
        self.driver = driver
        self.address = address
        self.last_used = now
        self.opened = False
        """Whether the link has ever been open."""
        self.superseded_at: float | None = None
        """Since when a better link to the same relay is there, so that new circuits go to that one."""
        self.held_until = 0.0
        """Until then the link is kept even if it carries no circuit: an answer is expected on it."""
        self.owners: dict[int, CircuitOwner] = {}
        self._peer: Key | None = None

    @property
    def open(self) -> bool:
        """Whether the other end has proven who it is, and nobody has given the link up since."""
        return self.channel.open

    @property
    def peer_id(self) -> bytes | None:
        """The relay at the other end; None for a client."""
        return self.channel.peer_id

    @property
    def peer_host(self) -> str:
        """The address at the other end of the connection, as the system tells it; empty if it is of another kind."""
        return str(getattr(self.driver.tcp.getPeer(), "host", ""))

    @property
    def peer(self) -> Key:
        """Who the other end is, for fair shares: a relay's id, or a client's address (an IPv6 one: its /64)."""
        if self._peer is not None:
            return self._peer
        peer = self.peer_id or prefixes(self.peer_host)[1]
        if self.opened:
            self._peer = peer
        return peer

    def open_circuit(self, owner: CircuitOwner, rng: Rng) -> CircuitQueue:
        """A new circuit started by us; `queue.circuit_id` is its id. `CircuitError` when the link is closed."""
        if not self.open:
            raise CircuitError("the link is closed")
        circuit_id = self.channel.new_circuit_id(rng)
        return self.adopt(circuit_id, owner)

    def claim(self, circuit_id: int, owner: CircuitOwner) -> None:
        """Be told of a circuit that the other end started, before it is accepted."""
        self.owners[circuit_id] = owner

    def adopt(self, circuit_id: int, owner: CircuitOwner) -> CircuitQueue:
        """Own a circuit and open its queue of cells."""
        self.owners[circuit_id] = owner
        return self.channel.mux.open(circuit_id)

    def handle(self, circuit_id: int, handler: CellHandler) -> None:
        """Give a circuit's cells to `handler(command, buffer, offset)`."""
        if circuit_id in self.owners:
            self.channel.handlers[circuit_id] = handler

    def release(self, circuit_id: int, reason: int, now: float) -> None:
        """End a circuit: its queue is dropped and the other end told."""
        if self.owners.pop(circuit_id, None) is not None:
            self.last_used = now
            self._forget(circuit_id)
            if self.open:
                self.channel.destroy(circuit_id, reason)

    def _forget(self, circuit_id: int) -> None:
        self.channel.handlers.pop(circuit_id, None)
        self.channel.mux.close(circuit_id)

    def created(self, circuit_id: int, handshake: bytes) -> None:
        """The other end accepted a circuit of ours."""
        owner = self.owners.get(circuit_id)
        if owner is not None:
            owner.created(handshake)

    def destroyed(self, circuit_id: int, reason: int, now: float) -> None:
        """The other end ended a circuit."""
        owner = self.owners.pop(circuit_id, None)
        self.last_used = now
        self._forget(circuit_id)
        if owner is not None:
            owner.destroyed(reason)

    def lost(self) -> None:
        """The link is gone, and every circuit with it."""
        owners, self.owners = self.owners, {}
        for circuit_id, owner in owners.items():
            self._forget(circuit_id)
            owner.destroyed(DestroyReason.CHANNEL_CLOSED)

    def drop(self, reason: str) -> None:
        """Give the link up at once, and all that waits for it."""
        self.channel.close(reason)
        self.lost()
        self.driver.fail(BackroomsError(reason))


class Dial:
    """Attempts to reach one relay."""

    def __init__(self) -> None:
        self.waiting: list[Deferred[Link]] = []
        self.failures = 0
        self.retry_at = 0.0
        self.running = False
        self.error = ""
        """Why the last attempt failed."""

    def give_up(self, waiter: Deferred[Link]) -> None:
        """One who waited does so no more; he may just be being answered."""
        if waiter in self.waiting:
            self.waiting.remove(waiter)


def peer_text(driver: Driver) -> str:
    """Who is at the other end of a connection, as host:port."""
    peer = driver.tcp.getPeer()
    return f"{peer.host}:{peer.port}" if hasattr(peer, "host") else "unix"


def reason_text(error: BaseException | None) -> str:
    """Why a connection failed, in a few words and without addresses."""
    if isinstance(error, RemoteProtocolError):
        return error.reason
    if isinstance(error, BackroomsError):
        return str(error)
    if isinstance(error, ConnectionRefusedError | net.ConnectionRefusedError):
        return "the connection was refused"
    if isinstance(error, net.TimeoutError | net.TCPTimedOutError):
        return "no answer to the connection attempt"
    if isinstance(error, net.NoRouteError):
        return "there is no route"
    return f"the connection failed ({type(error).__name__})"
