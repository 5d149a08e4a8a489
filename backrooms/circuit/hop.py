"""A relay's end of a circuit: passes cells on, and serves the messages meant for it."""

from __future__ import annotations

from collections.abc import Callable

from backrooms.channel.mux import CELL_MEMORY, CircuitQueue
from backrooms.circuit.edge import Edge
from backrooms.circuit.events import (
    BeginRequested,
    CircuitClosed,
    DirectoryRequested,
    ExtendRequested,
    ResolveRequested,
)
from backrooms.circuit.stream import Stream
from backrooms.crypto.onion import Layer, split_hop_keys
from backrooms.errors import RemoteProtocolError, WireError
from backrooms.interfaces import Rng
from backrooms.wire.cell import CELL_SIZE, HEADER, HEADER_SIZE, TAG_SIZE, ZERO3, CellCommand, DestroyReason
from backrooms.wire.codec import Writer
from backrooms.wire.relay import MAX_DATA_ACK, Begin, Connected, Extend, RelayCommand, Resolve, Resolved

RELAY_EARLY_LIMIT = 16
"""Cells of a circuit that may carry an EXTEND; bounds how long a path can be made."""
MAX_STREAMS = 2048
"""Streams of one circuit at one exit."""

_RELAY = int(CellCommand.RELAY)
_EARLY = int(CellCommand.RELAY_EARLY)
_RIGHT = HEADER_SIZE + TAG_SIZE

Emit = Callable[[object], None]


def relay_headers(circuit_id: int) -> dict[int, bytes]:
    """Cell headers of a circuit by command, made once."""
    return {command: HEADER.pack(circuit_id, command, ZERO3) for command in (_RELAY, _EARLY)}


class RelayEdge(Edge):
    """The relay's side: BEGIN, BEGIN_DIR, RESOLVE and EXTEND come in."""

    emit: Emit

    def __init__(self, *args: object, emit: Emit) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.emit = emit
        self.on_stream_gone: Callable[[Stream], None] = lambda stream: None
        self.resolving: set[int] = set()
        self.early = False
        """Whether the cell being read is a RELAY_EARLY."""

    def other_message(self, command: int, stream_id: int, data: bytes) -> None:
        if command == RelayCommand.BEGIN:
            begin = Begin.decode(data)
            if self._accept(stream_id):
                self.emit(BeginRequested(stream_id, begin.host, begin.port, begin.flags))
        elif command == RelayCommand.BEGIN_DIR:
            if data:
                raise WireError("BEGIN_DIR with data")
            if self._accept(stream_id):
                self.emit(DirectoryRequested(stream_id))
        elif command == RelayCommand.RESOLVE:
            resolve = Resolve.decode(data)
            if not self._claim(stream_id):
                self.send(RelayCommand.RESOLVED, stream_id, Resolved((), again=True).encode())
                return
            self.resolving.add(stream_id)
            self.emit(ResolveRequested(stream_id, resolve.host, resolve.reverse))
        elif command == RelayCommand.EXTEND:
            if not self.early:
                raise WireError("EXTEND outside RELAY_EARLY")
            extend = Extend.decode(data)
            self.emit(ExtendRequested(extend.relay_id, extend.handshake))
        else:
            super().other_message(command, stream_id, data)

    def _accept(self, stream_id: int) -> bool:
        """Take a new stream into the table, if there is room; otherwise refuse it."""
        if not self._claim(stream_id):
            self.refuse(stream_id)
            return False
        stream = Stream()
        stream.readable = True
        self.add(stream, stream_id)
        stream.attach(self, stream_id)
        return True

    def _claim(self, stream_id: int) -> bool:
        """Whether there is room for another stream."""
        if self.in_use(stream_id) or stream_id in self.resolving:
            raise WireError("stream id is in use")
        return len(self.streams) + len(self.resolving) < MAX_STREAMS

    def stream_gone(self, stream: Stream) -> None:
        self.on_stream_gone(stream)

    def connected(self, stream: Stream, address: str, ttl: int) -> None:
        """What a BEGIN or BEGIN_DIR asked for is there."""
        if self.streams.get(stream.stream_id) is stream:
            stream.connected = True
            self.send(RelayCommand.CONNECTED, stream.stream_id, Connected(address, ttl).encode())

    def resolved(self, stream_id: int, answer: Resolved) -> None:
        """Answer a RESOLVE."""
        if stream_id in self.resolving:
            self.resolving.discard(stream_id)
            self.send(RelayCommand.RESOLVED, stream_id, answer.encode())


class RelayCircuit:
    """One circuit at one relay. `emit` gets its events; `CircuitClosed` is the last of them."""

    def __init__(self, keys: bytes, queue: CircuitQueue, clock: Callable[[], float], rng: Rng, emit: Emit) -> None:
        forward, backward, self.binding = split_hop_keys(keys)
        self._forward = Layer(forward, encrypting=True)
        self._backward = Layer(backward, encrypting=True)
        self._queue = queue
        self._headers = relay_headers(queue.circuit_id)
        self._next: CircuitQueue | None = None
        self._next_headers: dict[int, bytes] = {}
        self._early_seen = 0
        self._emit = emit
        self.closed = False
        self.edge = RelayEdge(self._seal, queue, clock, rng, emit=emit)
        queue.on_overflow = self._overflow

    @property
    def extended(self) -> bool:
        """Whether there is a next hop."""
        return self._next is not None

    @property
    def busy(self) -> bool:
        """Whether there are streams here, or cells that wait."""
        return bool(self.edge.streams or self._queue.cells or (self._next is not None and self._next.cells))

    @property
    def waiting(self) -> int:
        """Bytes of memory, about, that cells, streams and small messages take here."""
        cells = len(self._queue.cells) + (len(self._next.cells) if self._next is not None else 0)
        return cells * CELL_MEMORY + self.edge.waiting

    def extend(self, queue: CircuitQueue, handshake: bytes) -> None:
        """The next relay answered: pass its reply to the client, and from now on cells to it."""
        if len(handshake) + 2 > MAX_DATA_ACK:
            self.fail(DestroyReason.PROTOCOL, "CREATED too long for EXTENDED")
            return
        self._next = queue
        self._next_headers = relay_headers(queue.circuit_id)
        queue.on_overflow = self._overflow
        self.edge.send(RelayCommand.EXTENDED, 0, Writer().bytes16(handshake).done())

    def forward(self, command: int, buffer: bytes, offset: int) -> None:
        """A cell from the client's side at `buffer[offset:]`."""
        if self.closed:
            return
        if command == _EARLY:
            self._early_seen += 1
            if self._early_seen > RELAY_EARLY_LIMIT:
                self.fail(DestroyReason.PROTOCOL, "too many RELAY_EARLY cells")
                return
        right_at = offset + _RIGHT
        left = buffer[offset + HEADER_SIZE : right_at]
        recognised, tag, right = self._forward.relay_forward(command, left, buffer[right_at : offset + CELL_SIZE])
        if not recognised:
            if self._next is not None:
                self._next.append(self._next_headers[command] + tag + right)
            else:
                self.fail(DestroyReason.PROTOCOL, "unrecognised cell at the last hop")
            return
        edge = self.edge
        edge.early = command == _EARLY
        try:
            edge.receive(right, left)
        except RemoteProtocolError as error:
            self.fail(DestroyReason.PROTOCOL, error.reason)

    def backward(self, command: int, buffer: bytes, offset: int) -> None:
        """A cell from the next relay at `buffer[offset:]`."""
        if self.closed:
            return
        if command != _RELAY:
            self.fail(DestroyReason.PROTOCOL, "RELAY_EARLY towards the client")
            return
        right_at = offset + _RIGHT
        left, right = self._backward.relay_backward(
            command, buffer[offset + HEADER_SIZE : right_at], buffer[right_at : offset + CELL_SIZE]
        )
        self._queue.append(self._headers[_RELAY] + left + right)

    def _seal(self, body: bytes) -> tuple[bytes, bytes]:
        left, right = self._backward.relay_originate(_RELAY, body)
        return self._headers[_RELAY] + left + right, left

    def _overflow(self) -> None:
        self.fail(DestroyReason.RESOURCE_LIMIT, "too many cells queued")

    def fail(self, reason: int, text: str, remote: bool = True) -> None:
        """End the circuit; the manager tells both neighbours."""
        if not self.closed:
            self.close()
            self._emit(CircuitClosed(reason, text, remote))

    def close(self) -> None:
        """The manager ends the circuit."""
        self.closed = True
        self.edge.close()
