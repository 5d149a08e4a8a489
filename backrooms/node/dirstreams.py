"""Directory messages over circuits: streams whose far end is a relay's directory (BEGIN_DIR).

On both ends there is a `DirConnection`. What waits in it is bounded: an end that does not read gets no more, and is
not read from either (docs/protocol.md, "Directory streams").
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, ClassVar, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from backrooms.circuit.stream import Stream
from backrooms.errors import BackroomsError, CircuitError, PathError, RemoteProtocolError, StreamError, WireError
from backrooms.gossip.bounds import Allowance
from backrooms.interfaces import Rng
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory
from backrooms.node.circuits import Circuits, ClientCircuit
from backrooms.node.dirconnection import DirConnection
from backrooms.node.limits import Shares
from backrooms.node.logs import without_numbers
from backrooms.node.relay import Relay
from backrooms.node.relayedcircuit import RelayedCircuit
from backrooms.node.timers import Timers
from backrooms.path.constraints import Position
from backrooms.wire.cell import IGNORABLE, DestroyReason
from backrooms.wire.documents import MAX_MESSAGE, DirectoryMessage
from backrooms.wire.frames import FRAME_HEADER_SIZE, MAX_REQUEST
from backrooms.wire.relay import EndReason

log = Logger()

STREAMS_OF_CIRCUIT = 8
"""Directory streams of one circuit at a relay."""
STREAMS_OF_RELAY = 4096
"""Directory streams of all circuits at a relay: beyond that, the circuit that has most loses its newest."""
CONNECT_TIME = 20.0
"""Seconds a relay has to answer BEGIN_DIR."""
ANSWER_TIME = 30.0
"""Seconds a relay has to answer a question."""
OPEN_MOST = 32
"""Directory streams that a client has at once."""
DRAWS = 16
"""Random relays that are tried until one goes with our guards."""
UNASKED = (2048.0, 262_144)
"""Bytes of messages that a client takes without having asked: per second, and at once."""

T = TypeVar("T", bound="Answer")


class Answer(Protocol):
    """A message that can be waited for."""

    TYPE: ClassVar[int]

    @classmethod
    def decode(cls: type[T], payload: bytes, /) -> T: ...


# the relay's side

Handler = Callable[["ServedConnection", bytes], None]


class ServedConnection(DirConnection):
    """A client's connection to this relay's directory."""

    def __init__(self, server: DirServer, circuit: RelayedCircuit, stream: Stream, timers: Timers) -> None:
        super().__init__(stream, timers, MAX_REQUEST)
        self.circuit = circuit
        self._server = server

    def _handle(self, kind: int, payload: bytes) -> None:
        handler = self._server.handlers.get(kind)
        if handler is not None:
            handler(self, payload)
        elif kind < IGNORABLE:
            raise WireError(f"directory message {kind} on a stream")

    def fail(self, error: RemoteProtocolError) -> None:
        self._server.counts[without_numbers(error.reason)] += 1
        super().fail(error)


class DirServer:
    """Serves the directory streams of clients. `handlers` take the messages, by type."""

    def __init__(self, relay: Relay, timers: Timers) -> None:
        self.handlers: dict[int, Handler] = {}
        self.connections: set[ServedConnection] = set()
        self.counts: Counter[str] = Counter()
        """Connections ended for a fault of the client, by what it was."""
        self._timers = timers
        self._shares: Shares[RelayedCircuit, ServedConnection] = Shares(STREAMS_OF_RELAY, self._give_up)
        self._stopped = False
        relay.on_directory = self.accept

    def accept(self, circuit: RelayedCircuit, stream: Stream) -> bool:
        """A client wants a stream; False when there is no room for it."""
        if self._stopped or not self._shares.has_room(circuit, STREAMS_OF_CIRCUIT):
            return False
        connection = ServedConnection(self, circuit, stream, self._timers)
        self._shares.admit(circuit, connection, STREAMS_OF_CIRCUIT)
        self.connections.add(connection)
        connection.on_closed.append(lambda: self._ended(connection))
        return True

    def _give_up(self, connection: ServedConnection) -> None:
        self.counts["ended for another circuit's stream"] += 1
        connection.lost(EndReason.RESOURCELIMIT)

    def _ended(self, connection: ServedConnection) -> None:
        self.connections.discard(connection)
        self._shares.remove(connection.circuit, connection)

    def stop(self) -> None:
        """End all connections, and take no new ones."""
        self._stopped = True
        for connection in list(self.connections):
            connection.lost(EndReason.HIBERNATING)


# the client's side


class AskingConnection(DirConnection):
    """Our connection to the directory of `relay`, with a circuit of its own."""

    def __init__(self, circuit: ClientCircuit, timers: Timers) -> None:
        super().__init__(Stream(), timers, MAX_MESSAGE)
        self.circuit = circuit
        self.relay = circuit.path[-1]
        self.on_message: Callable[[int, bytes], None] | None = None
        """Takes type and payload of messages that nobody asked for; without it they end the connection."""
        self.received = 0
        """Bytes of messages that have come."""
        self.opened: Deferred[None] | None = Deferred()
        """Fires when the relay has answered BEGIN_DIR; `StreamError` when it does not let us in."""
        self._asked: deque[tuple[type[Any], Deferred[Any]]] = deque()
        self._unasked = Allowance(UNASKED)
        """Bytes nobody asked for that may still come."""
        self._patience: Any = timers.at(timers.now() + CONNECT_TIME, self._too_late)
        assert circuit.machine is not None
        circuit.machine.begin_directory(self.stream)

    def ask(self, request: DirectoryMessage, kind: type[T]) -> Deferred[T]:
        """Send `request`; its answer, of type `kind`. `BackroomsError` when none comes.

        Questions may follow each other at once: a relay answers them in order.
        """
        answer: Deferred[T] = Deferred()
        if not self.send(request):
            answer.errback(BackroomsError("the directory stream is closed, or the relay does not read"))
            return answer
        self._asked.append((kind, answer))
        self._wait()
        return answer

    def _wait(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self._asked and not self._closed:
            self._patience = self._timers.at(self._timers.now() + ANSWER_TIME, self._too_late)

    def _too_late(self) -> None:
        self._patience = None
        self.lost(EndReason.TIMEOUT)

    def _handle(self, kind: int, payload: bytes) -> None:
        self.received += len(payload)
        if self._asked and kind == self._asked[0][0].TYPE:
            message = self._asked[0][0].decode(payload)
            _, answer = self._asked.popleft()
            self._wait()
            if not answer.called:
                answer.callback(message)
        elif self.on_message is not None:
            if not self._unasked.take(self._timers.now(), len(payload) + FRAME_HEADER_SIZE):
                raise WireError("too much that nobody asked for")
            self.on_message(kind, payload)
        elif kind < IGNORABLE:
            raise WireError("a directory message nobody asked for")

    def _changed(self) -> None:
        opened = self.opened
        if self.stream.connected and opened is not None:
            self.opened = None
            self._wait()
            opened.callback(None)
        super()._changed()

    def fail(self, error: RemoteProtocolError) -> None:
        log.info("a relay's directory broke the protocol: {error}", error=error.reason)
        super().fail(error)

    def _gone(self) -> None:
        if self._closed:
            return
        super()._gone()
        self._wait()
        reason = self.stream.ended or EndReason.DONE
        opened, self.opened = self.opened, None
        if opened is not None:
            opened.errback(StreamError(reason, "the relay does not open its directory"))
        asked, self._asked = self._asked, deque()
        for _, answer in asked:
            if not answer.called:
                answer.errback(StreamError(reason, "the directory stream ended before the answer came"))
        self.circuit.end(DestroyReason.FINISHED)


class DirStreams:
    """Opens directory streams for this client, each over a circuit of the default level that nobody else uses."""

    def __init__(self, circuits: Circuits, directory: Directory, rng: Rng) -> None:
        self.connections: set[AskingConnection] = set()
        self.received = 0
        """Bytes of messages of connections that have ended."""
        self._circuits = circuits
        self._directory = directory
        self._rng = rng
        self._building: set[Deferred[ClientCircuit]] = set()
        self._resting = False

    def connect(self, relay_id: bytes | None = None, avoid: Collection[bytes] = ()) -> Deferred[AskingConnection]:
        """A connection to the directory of a relay, of any random one that is not to be avoided without an id.

        With an id, what is to be avoided is so behind the guard on the way to that relay.

        `BackroomsError` when there is no path or the relay cannot be reached.
        """
        return Deferred.fromCoroutine(self._connect(relay_id, avoid))

    async def _connect(self, relay_id: bytes | None, avoid: Collection[bytes]) -> AskingConnection:
        if self._resting:
            raise CircuitError("this client sleeps")
        if len(self.connections) + len(self._building) >= OPEN_MOST:
            raise CircuitError("too many directory streams are open")
        path = self.path(relay_id, avoid)
        building = self._circuits.build(self._circuits.options.level, path)
        self._building.add(building)
        try:
            circuit = await building
        finally:
            self._building.discard(building)
        if self._resting:
            circuit.end(DestroyReason.FINISHED)
            raise CircuitError("this client sleeps")
        connection = AskingConnection(circuit, self._circuits.timers)
        self.connections.add(connection)
        connection.on_closed.append(lambda: self._ended(connection))
        opened = connection.opened
        assert opened is not None
        await opened
        return connection

    def _ended(self, connection: AskingConnection) -> None:
        self.connections.discard(connection)
        self.received += connection.received

    def path(self, relay_id: bytes | None, avoid: Collection[bytes] = ()) -> list[Descriptor]:
        """A path of the default level whose last relay is this one, or any, each as likely as the others.

        `avoid` holds ids that may not be the last relay, or with an id not be between the guard and it.
        """
        if relay_id is not None:
            relay = self._directory.get(relay_id)
            if relay is None:
                raise CircuitError("a relay that is not in the list cannot be asked")
            return self._path_to(relay, avoid)
        unfit = {*avoid, *self._circuits.options.constraints.exclude}
        doubted = self._circuits.paths.doubted()
        selector = self._circuits.paths.selectors.get(self._circuits.default)
        relays = [one for one in self._directory.relays() if one.id not in unfit]
        relays = [one for one in relays if selector.may_stand(one.id, Position.MIDDLE)]
        relays = [one for one in relays if one.id not in doubted] or relays
        for _ in range(min(DRAWS, len(relays))):
            number = self._rng.randrange(0, len(relays))
            try:
                return self._path_to(relays[number])
            except PathError:  # it does not go with our guards
                del relays[number]
        raise CircuitError("no relay is known that could be asked")

    def _path_to(self, relay: Descriptor, avoid: Collection[bytes] = ()) -> list[Descriptor]:
        path = self._circuits.paths.to(self._circuits.default, relay, avoid)
        if path is None:
            raise CircuitError("no guard can be reached now")
        return path

    def rest(self) -> None:
        """End all connections, and open none until `resume`."""
        self._resting = True
        for building in list(self._building):
            building.cancel()
        for connection in list(self.connections):
            with suppress(BackroomsError):
                connection.close()

    def resume(self) -> None:
        """Go on."""
        self._resting = False
