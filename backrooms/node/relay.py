"""Circuits that pass through this relay: CREATE, EXTEND, DESTROY."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from backrooms.circuit.events import BeginRequested, DirectoryRequested
from backrooms.circuit.hop import RelayCircuit
from backrooms.circuit.stream import Stream
from backrooms.crypto.ntor import ReplayCache, relay_respond
from backrooms.errors import BackroomsError, CryptoError
from backrooms.interfaces import Rng
from backrooms.node.channels import Channels
from backrooms.node.exit import Exit
from backrooms.node.limits import TOO_MANY_EXTENDS, TOO_MANY_STREAMS, Caps, CircuitLimits
from backrooms.node.link import Link
from backrooms.node.relayedcircuit import NextSide, RelayedCircuit
from backrooms.node.timers import Call, Timers
from backrooms.wire.cell import DestroyReason
from backrooms.wire.extensions import ClientExtensions
from backrooms.wire.relay import EndReason

log = Logger()

HANDSHAKES_PER_LINK = 256
"""CREATEs of one link that may wait."""
HANDSHAKES_WAITING = 2048
"""CREATEs of all links that may wait; more are refused."""


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
        caps: Caps,
    ) -> None:
        """`learn(relay_id)` says whether a relay is in our list, after looking for it if it is not."""
        self.timers = timers
        self.rng = rng
        self.exit = exit
        self.circuits: set[RelayedCircuit] = set()
        self.exiting: set[RelayedCircuit] = set()
        """Those that were asked for streams or look-ups."""
        self.counts: Counter[str] = Counter()
        """Circuits refused or ended for a peer's fault, by what it did."""
        self.on_directory: Callable[[RelayedCircuit, Stream], bool] = lambda circuit, stream: False
        """Takes a stream to the directory of this relay; False when there is no room for it."""
        self.limits = CircuitLimits(caps, timers, self.counts)
        self.handshakes = 0
        self.closing = False
        self._channels = channels
        self._share = channels.admission.circuits
        self._keystore = keystore
        self._network_id = network_id
        self._learn = learn
        self._replays = ReplayCache()
        self._waiting: OrderedDict[Link, OrderedDict[int, _Handshake]] = OrderedDict()
        self._waiting_count = 0
        self._call: Call | None = None
        channels.on_create = self.create

    # handshakes

    @property
    def waiting(self) -> int:
        """CREATEs that wait for their handshake."""
        return self._waiting_count

    def create(self, link: Link, circuit_id: int, handshake: bytes) -> None:
        """CREATE came. Handshakes wait in a bounded queue and are served link by link in turn."""
        queue = self._waiting.get(link, OrderedDict())
        if self.closing:
            link.channel.destroy(circuit_id, DestroyReason.SHUTTING_DOWN)
        elif not self.limits.may_create(link):
            link.channel.destroy(circuit_id, DestroyReason.RESOURCE_LIMIT)
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
        if self._call is None and self._waiting:
            now = self.timers.now()
            self._call = self.timers.at(now + self._share.wait(now), self._serve)

    def _serve(self) -> None:
        """One handshake per reactor turn (about 0.3 ms), so that cells go on flowing under a flood."""
        self._call = None
        if not self._waiting:
            return
        link, queue = next(iter(self._waiting.items()))
        waiting = next(iter(queue.values()))
        self.forget(waiting)
        if queue:
            self._waiting.move_to_end(link)
        began = self.timers.cpu()
        try:
            self._handshake(waiting)
        finally:
            self._share.charge(self.timers.cpu() - began, self.timers.now())
            self._schedule()

    def _handshake(self, waiting: _Handshake) -> None:
        link, circuit_id = waiting.link, waiting.circuit_id
        if not self.limits.has_room(link):
            link.release(circuit_id, DestroyReason.RESOURCE_LIMIT, self.timers.now())
            return
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
        circuit.edge.on_stream_gone = partial(self.limits.stream_gone, circuit)
        link.handle(circuit_id, circuit.machine.forward)
        self.circuits.add(circuit)
        self.limits.created(circuit)
        if not link.channel.created(circuit_id, reply):
            circuit.end(DestroyReason.NONE)  # it ended meanwhile, and its DESTROY is still to be told

    def _answer(self, message: bytes, handshake: bytes) -> bytes | None:
        """Our own extensions (none yet), or None for a handshake that is old, early or a replay."""
        fresh = self._replays.admit(handshake, ClientExtensions.decode(message).minute, self.timers.wall())
        return b"" if fresh else None

    # extending

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
        if not self.limits.extend(circuit, relay_id):
            machine.fail(DestroyReason.RESOURCE_LIMIT, TOO_MANY_EXTENDS)
            return
        Deferred.fromCoroutine(self._extend(circuit, machine, relay_id, handshake)).addErrback(
            lambda failure: log.failure("bug while extending", failure)
        )

    async def _extend(self, circuit: RelayedCircuit, machine: RelayCircuit, relay_id: bytes, handshake: bytes) -> None:
        try:
            if not await self._learn(relay_id):
                machine.fail(DestroyReason.CONNECT_FAILED, "EXTEND to an unknown relay")
                return
            if machine.closed:
                return
            circuit.dial = self._channels.link(relay_id)
            link = await circuit.dial
            circuit.dial = None
            if not machine.closed:
                circuit.next = NextSide(self, circuit, link)
                link.channel.create(circuit.next.circuit_id, handshake)
        except CancelledError:
            return  # the circuit has ended
        except BackroomsError:
            self.counts["EXTEND failed"] += 1
            circuit.end(DestroyReason.CONNECT_FAILED)

    # streams

    def begin(self, circuit: RelayedCircuit, event: BeginRequested) -> None:
        """BEGIN: the exit connects the stream, if there is room for it."""
        self.exiting.add(circuit)
        stream = circuit.edge.streams[event.stream_id]
        if not self.limits.begin(circuit, stream):
            self.counts[TOO_MANY_STREAMS] += 1
            stream.abort(EndReason.RESOURCELIMIT)
            return
        self.exit.begin(circuit.edge, event, circuit.peer).addBoth(lambda _: self.limits.settled(circuit, stream))

    def begin_directory(self, circuit: RelayedCircuit, event: DirectoryRequested) -> None:
        """BEGIN_DIR: on circuits of any length, since no connection leaves this relay."""
        self.exiting.add(circuit)  # for the accounting of memory
        stream = circuit.edge.streams[event.stream_id]
        if self.limits.begin(circuit, stream) and self.on_directory(circuit, stream):
            self.limits.settled(circuit, stream)
            circuit.edge.connected(stream, "", 0)
        else:
            self.counts[TOO_MANY_STREAMS] += 1
            stream.abort(EndReason.RESOURCELIMIT)

    # ends

    def forget_circuit(self, circuit: RelayedCircuit) -> None:
        """A circuit has ended."""
        self.circuits.discard(circuit)
        self.exiting.discard(circuit)
        self.limits.ended(circuit)

    def stop(self) -> None:
        """End every circuit."""
        self.closing = True
        self._waiting.clear()
        self._waiting_count = 0
        for circuit in list(self.circuits):
            circuit.end(DestroyReason.SHUTTING_DOWN)
