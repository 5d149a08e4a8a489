"""A client's end of a circuit: builds it hop by hop, and carries streams over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backrooms.channel.mux import CircuitQueue
from backrooms.circuit.edge import Edge
from backrooms.circuit.events import CircuitBuilt, CircuitClosed, HopAdded
from backrooms.circuit.hop import MAX_STREAMS, RELAY_EARLY_LIMIT, Emit, relay_headers
from backrooms.circuit.stream import Stream
from backrooms.crypto.ntor import NtorClient
from backrooms.crypto.onion import Layer, split_hop_keys
from backrooms.errors import CircuitError, RemoteProtocolError, StreamError, WireError
from backrooms.interfaces import Rng
from backrooms.wire.cell import CELL_SIZE, HEADER_SIZE, TAG_SIZE, CellCommand, DestroyReason
from backrooms.wire.codec import Reader
from backrooms.wire.extensions import decode_extensions
from backrooms.wire.relay import Begin, Connected, EndReason, Extend, RelayCommand, Resolve, Resolved

_RELAY = int(CellCommand.RELAY)
_EARLY = int(CellCommand.RELAY_EARLY)
_RIGHT = HEADER_SIZE + TAG_SIZE

MAX_HOPS = RELAY_EARLY_LIMIT + 1
"""Each hop but the first takes one RELAY_EARLY cell."""
CLIENT_STREAMS = MAX_STREAMS // 2
"""Streams a client puts on one circuit: the exit may still count some that have ended here."""

OnResolved = Callable[[Resolved | None], None]


@dataclass(frozen=True, slots=True)
class HopKeys:
    """What a client must know of a relay to make it a hop."""

    relay_id: bytes
    onion_key: bytes


class ClientEdge(Edge):
    """The client's side: CONNECTED, RESOLVED and EXTENDED come in."""

    on_extended: Callable[[bytes], None]

    def __init__(self, *args: object, on_extended: Callable[[bytes], None], on_idle: Callable[[], None]) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.on_extended = on_extended
        self._on_idle = on_idle
        self.resolving: dict[int, OnResolved] = {}
        self._next_id = 0

    def free_id(self) -> int:
        """A stream id that neither side uses; `StreamError` when there are as many streams as an exit takes."""
        if self.closed:
            raise StreamError(EndReason.DESTROY, "the circuit is closed")
        if len(self.streams) + len(self.resolving) >= CLIENT_STREAMS:
            raise StreamError(EndReason.RESOURCELIMIT, "too many streams on this circuit")
        for _ in range(0xFFFF):
            self._next_id = self._next_id % 0xFFFF + 1
            if not self.in_use(self._next_id) and self._next_id not in self.resolving:
                return self._next_id
        raise StreamError(EndReason.RESOURCELIMIT, "no stream id is free on this circuit")

    def stream_gone(self, stream: Stream) -> None:
        self._on_idle()

    def abort_stream(self, stream: Stream, reason: int) -> None:
        """A client does not tell exits why it ends a stream."""
        super().abort_stream(stream, EndReason.MISC)

    def other_message(self, command: int, stream_id: int, data: bytes) -> None:
        if command == RelayCommand.CONNECTED:
            connected = Connected.decode(data)
            stream = self.streams.get(stream_id)
            if stream is None:
                self._stray(stream_id)
            elif stream.connected:
                raise WireError("second CONNECTED")
            else:
                stream.connect(connected.address or None)
        elif command == RelayCommand.RESOLVED:
            answer = Resolved.decode(data)
            on_resolved = self.resolving.pop(stream_id, None)
            if on_resolved is None:
                raise WireError("RESOLVED that nobody asked for")
            on_resolved(answer)
        elif command == RelayCommand.EXTENDED:
            reader = Reader(data)
            handshake = reader.bytes16()
            reader.end()
            self.on_extended(handshake)
        else:
            super().other_message(command, stream_id, data)

    def close(self, reason: int = EndReason.DESTROY) -> None:
        waiting, self.resolving = self.resolving, {}
        super().close(reason)
        for on_resolved in waiting.values():
            on_resolved(None)


class OriginCircuit:
    """One circuit of this client. `emit` gets `HopAdded`, `CircuitBuilt` and, last, `CircuitClosed`.

    `create(handshake)` sends CREATE on the first link; its answer comes to `created`. `client_message` makes the
    extensions sent to each hop.
    """

    def __init__(
        self,
        path: Sequence[HopKeys],
        network_id: bytes,
        queue: CircuitQueue,
        create: Callable[[bytes], None],
        client_message: Callable[[], bytes],
        clock: Callable[[], float],
        rng: Rng,
        emit: Emit,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        if not 1 <= len(path) <= MAX_HOPS:
            raise CircuitError(f"a circuit of {len(path)} hops; 1 to {MAX_HOPS} can be built")
        self.path = tuple(path)
        self.built = False
        self.closed = False
        self._network_id = network_id
        self._create = create
        self._client_message = client_message
        self._rng = rng
        self._emit = emit
        self._headers = relay_headers(queue.circuit_id)
        self._forward: list[Layer] = []
        self._backward: list[Layer] = []
        self._early_left = RELAY_EARLY_LIMIT
        self._handshake: NtorClient | None = None
        self.edge = ClientEdge(self._seal, queue, clock, rng, on_extended=self._answer, on_idle=on_idle)
        queue.on_overflow = self._overflow

    def start(self) -> None:
        """Send CREATE to the first hop."""
        self._create(self._shake())

    def _shake(self) -> bytes:
        hop = self.path[len(self._forward)]
        self._handshake, message = NtorClient.start(
            hop.relay_id, hop.onion_key, self._network_id, self._client_message(), self._rng
        )
        return message

    def created(self, handshake: bytes) -> None:
        """CREATED came from the first hop."""
        if self.closed:
            return
        try:
            if self._forward:
                raise WireError("second CREATED")
            self._answer(handshake)
        except RemoteProtocolError as error:
            self.fail(DestroyReason.PROTOCOL, error.reason)

    def _answer(self, handshake: bytes) -> None:
        shaking, self._handshake = self._handshake, None
        if shaking is None:
            raise WireError("answer to a handshake that was not asked for")
        keys, server_message = shaking.finish(handshake)
        decode_extensions(server_message, ())  # none is known yet; one that may not be skipped is an error
        forward, backward, _binding = split_hop_keys(keys)
        self._forward.append(Layer(forward, encrypting=False))
        self._backward.append(Layer(backward, encrypting=False))
        count = len(self._forward)
        self._emit(HopAdded(count))
        if count == len(self.path):
            self.built = True
            self._emit(CircuitBuilt())
        else:
            extend = Extend(self.path[count].relay_id, self._shake())
            self.edge.send(RelayCommand.EXTEND, 0, extend.encode())

    def _seal(self, body: bytes) -> tuple[bytes, bytes]:
        command = _RELAY
        if self._early_left:
            self._early_left -= 1
            command = _EARLY
        layers = self._forward
        left, right = layers[-1].client_originate(command, body)
        tag = left
        for layer in layers[-2::-1]:
            left, right = layer.client_wrap(command, left, right)
        return self._headers[command] + left + right, tag

    def receive(self, command: int, buffer: bytes, offset: int) -> None:
        """A cell from the first hop at `buffer[offset:]`."""
        if self.closed:
            return
        if command != _RELAY:
            self.fail(DestroyReason.PROTOCOL, "RELAY_EARLY towards the client")
            return
        right_at = offset + _RIGHT
        left = buffer[offset + HEADER_SIZE : right_at]
        right = buffer[right_at : offset + CELL_SIZE]
        layers = self._backward
        for layer in layers:
            tag = left
            recognised, left, right = layer.client_receive(command, left, right)
            if recognised:
                break
        else:
            self.fail(DestroyReason.PROTOCOL, "a cell that no hop made")
            return
        if layer is not layers[-1]:
            self.fail(DestroyReason.PROTOCOL, "a cell from a hop that has nothing to say")
            return
        try:
            self.edge.receive(right, tag)
        except RemoteProtocolError as error:
            self.fail(DestroyReason.PROTOCOL, error.reason)

    def begin(self, stream: Stream, host: str, port: int, flags: int = Begin.IPV6_OK) -> None:
        """Open `stream` to host:port; what it already holds follows at once (optimistic data)."""
        edge = self.edge
        stream_id = edge.free_id()
        edge.add(stream, stream_id)
        edge.send(RelayCommand.BEGIN, stream_id, Begin(host, port, flags).encode())
        stream.attach(edge, stream_id)

    def begin_directory(self, stream: Stream) -> None:
        """Open `stream` to the directory of the last relay."""
        edge = self.edge
        stream_id = edge.free_id()
        edge.add(stream, stream_id)
        edge.send(RelayCommand.BEGIN_DIR, stream_id, b"")
        stream.attach(edge, stream_id)

    def resolve(self, host: str, reverse: bool, on_resolved: OnResolved) -> None:
        """Ask the exit for a look-up; `on_resolved` gets its answer, or None when the circuit is lost."""
        stream_id = self.edge.free_id()
        self.edge.resolving[stream_id] = on_resolved
        self.edge.send(RelayCommand.RESOLVE, stream_id, Resolve(host, reverse).encode())

    @property
    def stream_count(self) -> int:
        """Streams and look-ups under way."""
        return len(self.edge.streams) + len(self.edge.resolving)

    def _overflow(self) -> None:
        self.fail(DestroyReason.RESOURCE_LIMIT, "too many cells queued")

    def fail(self, reason: int, text: str, remote: bool = True) -> None:
        """End the circuit; the manager sends DESTROY."""
        if not self.closed:
            self.close()
            self._emit(CircuitClosed(reason, text, remote))

    def close(self, reason: int = EndReason.DESTROY) -> None:
        """The manager ends the circuit."""
        self.closed = True
        self.edge.close(reason)
