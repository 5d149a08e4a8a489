"""Circuits that pass through this relay: CREATE, EXTEND, DESTROY."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from functools import singledispatchmethod
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from backrooms.circuit.events import BeginRequested, CircuitClosed, ExtendRequested, ResolveRequested
from backrooms.circuit.hop import RelayCircuit, RelayEdge
from backrooms.crypto.ntor import ReplayCache, relay_respond
from backrooms.errors import BackroomsError, CryptoError
from backrooms.interfaces import Rng
from backrooms.node.channels import Channels
from backrooms.node.exit import Exit
from backrooms.node.link import Link
from backrooms.node.timers import Timers
from backrooms.wire.cell import DestroyReason
from backrooms.wire.extensions import ClientExtensions

log = Logger()

HANDSHAKES_PER_LINK = 256
"""CREATEs of one link that may wait."""
HANDSHAKES_WAITING = 2048
"""CREATEs of all links that may wait; more are refused."""
CREATE_TIMEOUT = 20.0
"""Seconds the next relay has to answer a CREATE."""


class RelayedCircuit:
    """One circuit at this relay: the pure `RelayCircuit` between a previous and perhaps a next link."""

    def __init__(self, relay: Relay, link: Link, circuit_id: int) -> None:
        self._relay = relay
        self.link = link
        self.circuit_id = circuit_id
        self.next: _NextSide | None = None
        self.machine: RelayCircuit | None = None
        self.extending = False

    @property
    def busy(self) -> bool:
        """Whether it carries exit streams, or cells that have not left yet."""
        return self.machine is not None and self.machine.busy

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
        self._relay.counts[event.text] += 1
        self.end(event.reason)

    @_dispatch.register
    def _(self, event: ExtendRequested) -> None:
        self._relay.extend(self, event.relay_id, event.handshake)

    @_dispatch.register
    def _(self, event: BeginRequested) -> None:
        if self._may_exit():
            self._relay.exit.begin(self.edge, event)

    @_dispatch.register
    def _(self, event: ResolveRequested) -> None:
        if self._may_exit():
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

    def end(self, reason: int) -> None:
        """End the circuit on both sides; the next relay only hears that it was destroyed."""
        if self.machine is not None:
            self.machine.close()
        now = self._relay.timers.now()
        self.link.release(self.circuit_id, reason, now)
        if self.next is not None:
            self.next.release(now)
        self._relay.circuits.discard(self)


class _NextSide:
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
        self._circuit.extending = False
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


class _Handshake:
    """A CREATE that waits for its turn; the owner of its circuit id until then."""

    def __init__(self, relay: Relay, link: Link, circuit_id: int, message: bytes) -> None:
        self._relay = relay
        self.link = link
        self.circuit_id = circuit_id
        self.message = message

    def created(self, handshake: bytes) -> None:
        """The link lets CREATED through for circuits of ours only."""

    def destroyed(self, reason: int) -> None:
        """The client gave up, or the link is gone: the work is spared."""
        self._relay.forget(self)


class Relay:
    """Takes part in other people's circuits."""

    def __init__(
        self,
        reactor: Any,
        timers: Timers,
        channels: Channels,
        exit: Exit,
        keystore: Any,
        network_id: bytes,
        rng: Rng,
        learn: Callable[[bytes], Awaitable[bool]],
    ) -> None:
        """`learn(relay_id)` says whether a relay is in our list, after looking for it if it is not."""
        self.timers = timers
        self.rng = rng
        self.exit = exit
        self.circuits: set[RelayedCircuit] = set()
        self.counts: Counter[str] = Counter()
        """Circuits refused or ended for a peer's fault, by what it did."""
        self.handshakes = 0
        self.closing = False
        self._reactor = reactor
        self._channels = channels
        self._keystore = keystore
        self._network_id = network_id
        self._learn = learn
        self._replays = ReplayCache()
        self._waiting: OrderedDict[Link, OrderedDict[int, _Handshake]] = OrderedDict()
        self._waiting_count = 0
        self._scheduled = False
        channels.on_create = self.create

    def create(self, link: Link, circuit_id: int, handshake: bytes) -> None:
        """CREATE came. Handshakes wait in a bounded queue and are served link by link in turn."""
        queue = self._waiting.get(link, OrderedDict())
        if self.closing:
            link.channel.destroy(circuit_id, DestroyReason.SHUTTING_DOWN)
        elif len(queue) >= HANDSHAKES_PER_LINK or not self._make_room(len(queue)):
            self.counts["too many handshakes"] += 1
            link.channel.destroy(circuit_id, DestroyReason.RESOURCE_LIMIT)
        else:
            queue[circuit_id] = _Handshake(self, link, circuit_id, handshake)
            link.claim(circuit_id, queue[circuit_id])
            self._waiting[link] = queue
            self._waiting_count += 1
            self._schedule()

    def _make_room(self, size: int) -> bool:
        """Room for one more handshake of a link that has `size`: if need be, the link that has the most loses one."""
        if self._waiting_count < HANDSHAKES_WAITING:
            return True
        longest = max(self._waiting.values(), key=len)
        if len(longest) <= size + 1:
            return False
        victim = next(reversed(longest.values()))
        self.forget(victim)
        self.counts["too many handshakes"] += 1
        victim.link.release(victim.circuit_id, DestroyReason.RESOURCE_LIMIT, self.timers.now())
        return True

    def forget(self, waiting: _Handshake) -> None:
        """Take a handshake out of the queue."""
        queue = self._waiting.get(waiting.link)
        if queue is None or queue.pop(waiting.circuit_id, None) is None:
            return
        self._waiting_count -= 1
        if not queue:
            del self._waiting[waiting.link]

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._reactor.callLater(0, self._serve)

    def _serve(self) -> None:
        """One handshake per reactor turn (about 0.3 ms), so that cells go on flowing under a flood."""
        self._scheduled = False
        if not self._waiting:
            return
        link, queue = next(iter(self._waiting.items()))
        waiting = next(iter(queue.values()))
        self.forget(waiting)
        if queue:
            self._waiting.move_to_end(link)
        if self._waiting:
            self._schedule()
        self._handshake(waiting)

    def _handshake(self, waiting: _Handshake) -> None:
        link, circuit_id = waiting.link, waiting.circuit_id
        self.handshakes += 1
        try:
            reply, keys = relay_respond(
                waiting.message,
                self._channels.my_id or b"",
                self._keystore.agree,
                self._keystore.onion_keys(),
                self._network_id,
                lambda message: self._answer(message, waiting.message),
                self.rng,
            )
        except CryptoError:
            self.counts["handshake refused"] += 1
            link.release(circuit_id, DestroyReason.HANDSHAKE, self.timers.now())
            return
        circuit = RelayedCircuit(self, link, circuit_id)
        queue = link.adopt(circuit_id, circuit)
        circuit.machine = RelayCircuit(keys, queue, self.timers.now, self.rng, circuit.emit)
        link.handle(circuit_id, circuit.machine.forward)
        self.circuits.add(circuit)
        if not link.channel.created(circuit_id, reply):
            circuit.end(DestroyReason.NONE)  # it ended meanwhile, and its DESTROY is still to be told

    def _answer(self, message: bytes, handshake: bytes) -> bytes | None:
        """Our own extensions (none yet), or None for a handshake that is old, early or a replay."""
        fresh = self._replays.admit(handshake, ClientExtensions.decode(message).minute, self.timers.wall())
        return b"" if fresh else None

    def extend(self, circuit: RelayedCircuit, relay_id: bytes, handshake: bytes) -> None:
        """EXTEND: only to a relay of our own list, never back, never to ourselves, one at a time."""
        machine = circuit.machine
        assert machine is not None
        if circuit.extending or machine.extended:
            machine.fail(DestroyReason.PROTOCOL, "second EXTEND")
            return
        if relay_id in (self._channels.my_id, circuit.link.peer_id):
            machine.fail(DestroyReason.PROTOCOL, "EXTEND back or to this relay")
            return
        circuit.extending = True
        Deferred.fromCoroutine(self._extend(circuit, machine, relay_id, handshake)).addErrback(
            lambda failure: log.failure("bug while extending", failure)
        )

    async def _extend(self, circuit: RelayedCircuit, machine: RelayCircuit, relay_id: bytes, handshake: bytes) -> None:
        try:
            if not await self._learn(relay_id):
                machine.fail(DestroyReason.CONNECT_FAILED, "EXTEND to an unknown relay")
                return
            link = await self._channels.link(relay_id)
            if not machine.closed:
                circuit.next = _NextSide(self, circuit, link)
                link.channel.create(circuit.next.circuit_id, handshake)
        except BackroomsError:
            self.counts["EXTEND failed"] += 1
            circuit.end(DestroyReason.CONNECT_FAILED)

    def stop(self) -> None:
        """End every circuit."""
        self.closing = True
        self._waiting.clear()
        self._waiting_count = 0
        for circuit in list(self.circuits):
            circuit.end(DestroyReason.SHUTTING_DOWN)
