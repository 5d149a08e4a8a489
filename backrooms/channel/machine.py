"""A channel: one authenticated link as a machine (docs/protocol.md, "Links" and "Cells").

First the link handshake, then cells: RELAY cells go straight to the handler of their circuit, everything else is
rare and comes out as events. What is to be sent waits in `mux` until `output()` is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from struct import Struct
from typing import Any, NoReturn

from backrooms.channel.circuits import CircuitTable, Handler
from backrooms.channel.events import Create, Created, Destroyed, LinkClosed, LinkMessage, LinkOpen, SignRequest
from backrooms.channel.handshake import NOBODY, Handshake, Step
from backrooms.channel.mux import Mux
from backrooms.crypto.keys import PublicIdentity
from backrooms.errors import CircuitError, LocalProtocolError, RemoteProtocolError, WireError
from backrooms.interfaces import Binding, Rng
from backrooms.wire.cell import CELL_SIZE, HEADER_SIZE, IGNORABLE, CellCommand
from backrooms.wire.codec import Reader
from backrooms.wire.link import (
    LinkMessageType,
    Ping,
    Pong,
    Reassembler,
    encode_message,
    fragment,
    is_handed_on,
    split_message,
)

__all__ = ["Channel", "Create", "Created", "Destroyed", "LinkClosed", "LinkMessage", "LinkOpen", "SignRequest"]

OUTPUT_CELLS = 65536 // CELL_SIZE
"""Cells of one `output()`: 64 KiB."""
HANDSHAKE_SECONDS = 10.0
PING_SECONDS = 60.0
"""Silence after which a PING is sent, on average; each wait is drawn from 80 to 120 % of it."""
DEAD_SECONDS = 180.0
"""Silence after which the link is given up."""
MAX_CIRCUITS = 16_384
"""Circuit ids of one link, those that wait for the peer's DESTROY included."""
MAX_REPLIES = 4_096
"""Cells that may wait because the peer asked for them; with more, it sends and does not read."""

# A cell's first eight bytes as two words: circuit id, and the command with the three bytes that must be zero.
_words = Struct(">II").unpack_from
_RELAY = int(CellCommand.RELAY)
_RELAY_EARLY = int(CellCommand.RELAY_EARLY)
_RELAY_WORD = _RELAY << 24
_RESERVED = 0xFFFFFF


class Channel:
    """One end of a link. It is an `interfaces.Machine`.

    `receive` and `tick` raise the `RemoteProtocolError` that closes the link. `handlers` maps circuit ids to what is
    called for their RELAY cells; a handler that raises `RemoteProtocolError` ends its circuit. Set a handler no later
    than CREATED is sent or told; the channel takes it away when the circuit ends.
    """

    def __init__(self, handshake: Handshake, rng: Rng, now: float, max_circuits: int, silent: bool = False) -> None:
        """Use `initiate` or `respond`."""
        self.initiator = handshake.initiator
        self.peer_id: bytes | None = None
        """Who the peer is, proven, once `open`; None for a client."""
        self.version = 0
        self.open = False
        self.closed = False
        self.mux = Mux()
        self.counts: Counter[str] = Counter()
        """Odd things that the peer did, by kind."""
        self.rtt: float | None = None
        """Seconds from our last answered PING to its PONG."""
        self._handshake = handshake
        self._rng = rng
        self._events: list[Any] = []
        self._circuits = CircuitTable(
            self.initiator,
            max_circuits,
            self.mux,
            self._control,
            self._reply,
            self._events.append,
            self.counts,
            silent,
        )
        self.handlers: dict[int, Handler] = self._circuits.handlers
        self._partial = bytearray()
        self._reassembler = Reassembler()
        self._waiting = 0
        self._replies = 0
        self._started = now
        self.heard = now  # when anything came from the peer, last
        self._patience = self._draw_patience()
        self._ping_due = True
        self._ping: Ping | None = None
        self._ping_sent = now
        self._advance_handshake(now)

    @classmethod
    def initiate(
        cls,
        binding: Binding,
        network_id: bytes,
        expected_id: bytes,
        my_id: bytes | None,
        versions: Sequence[int],
        rng: Rng,
        now: float,
        wall_now: float,
    ) -> Channel:
        """The end that opened the connection, to the relay `expected_id`. `my_id` is None for a client."""
        mine = NOBODY if my_id is None else my_id
        handshake = Handshake(binding, network_id, expected_id, mine, versions, int(wall_now), True)
        return cls(handshake, rng, now, MAX_CIRCUITS, silent=my_id is None)

    @classmethod
    def respond(
        cls,
        binding: Binding,
        network_id: bytes,
        my_id: bytes,
        versions: Sequence[int],
        rng: Rng,
        now: float,
        wall_now: float,
        max_circuits: int = MAX_CIRCUITS,
    ) -> Channel:
        """The end that accepted the connection: the relay `my_id`."""
        handshake = Handshake(binding, network_id, my_id, NOBODY, versions, int(wall_now), False)
        return cls(handshake, rng, now, max_circuits)

    @property
    def on_dirty(self) -> Callable[[], None] | None:
        """Called when something waits to be sent or told; the driver sets it."""
        return self.mux.on_dirty

    @on_dirty.setter
    def on_dirty(self, call: Callable[[], None] | None) -> None:
        self.mux.on_dirty = call

    # The machine

    def receive(self, data: bytes, now: float) -> None:
        if self.closed:
            return
        self.heard = now
        self._ping_due = True
        start = 0
        partial = self._partial
        if partial:
            start = CELL_SIZE - len(partial)
            partial += data[:start]
            if len(partial) < CELL_SIZE:
                return
            cell = bytes(partial)
            partial.clear()
            self._cells(cell, 0, CELL_SIZE, now)
        end = len(data) - (len(data) - start) % CELL_SIZE
        if start < end:
            self._cells(data, start, end, now)
        if end < len(data) and not self.closed:
            partial += data[end:]
        if self._replies > MAX_REPLIES:
            self._close("the peer sends and does not read")

    def receive_eof(self, now: float) -> None:
        if not self.closed:
            during = "link" if self.open else "connection during the link handshake: wrong network, id or version?"
            self._end(f"the peer closed the {during}")

    def events(self) -> list[Any]:
        events = self._events[:]
        self._events.clear()
        return events

    def output(self, limit: int = OUTPUT_CELLS) -> bytes:
        """As `interfaces.Machine` says; at most `limit` cells."""
        if self.closed:
            return b""
        cells = self.mux.pop(limit)
        # Control cells leave first, so this is how many of them still wait.
        self._waiting = max(0, self._waiting - len(cells))
        self._replies = min(self._replies, self._waiting)
        return b"".join(cells)

    def deadline(self) -> float | None:
        if self.closed:
            return None
        if not self.open:
            return self._started + HANDSHAKE_SECONDS
        return self.heard + (self._patience if self._ping_due else DEAD_SECONDS)

    def tick(self, now: float) -> None:
        if self.closed:
            return
        if not self.open:
            if now >= self._started + HANDSHAKE_SECONDS:
                self._close(f"the link handshake took over {HANDSHAKE_SECONDS:.0f} s")
            return
        if now >= self.heard + DEAD_SECONDS:
            self._close(f"the peer was silent for {DEAD_SECONDS:.0f} s")
        if self._ping_due and now >= self.heard + self._patience:
            self._ping = Ping(int.from_bytes(self._rng.randbytes(8), "big"))
            self._ping_sent = now
            self._ping_due = False
            self._patience = self._draw_patience()
            for cell in fragment(encode_message(self._ping)):
                self._control(cell)

    # What the owner calls

    def signed(self, identity: PublicIdentity, signatures: Mapping[str, bytes], now: float) -> None:
        """The answer to a `SignRequest`; ignored when the link has been closed meanwhile."""
        if not self.closed:
            self._handshake.signed(identity, signatures)
            self._advance_handshake(now)

    def close(self, reason: str) -> None:
        """Give the link up from our side; the owner closes the connection."""
        if not self.closed:
            self._end(reason)

    def send_message(self, kind: int, payload: bytes) -> None:
        """Send a message of a type that is handed on. `LocalProtocolError` unless the link is open."""
        if not self.open:
            raise LocalProtocolError("a link message on a link that is not open")
        if not is_handed_on(kind):
            raise LocalProtocolError(f"link message type {kind} is not for the owner of a link")
        for cell in fragment(bytes((kind,)) + payload):
            self._control(cell)

    def new_circuit_id(self, rng: Rng | None = None) -> int:
        """A random id of our half that is free; not taken before `create`."""
        return self._circuits.new_id(rng or self._rng)

    def create(self, circuit_id: int, handshake: bytes) -> None:
        """Ask the peer for a circuit. `CircuitError` when the link is full or not open."""
        if not self.open:
            raise CircuitError("the link is not open")
        self._circuits.create(circuit_id, handshake)

    def created(self, circuit_id: int, handshake: bytes) -> bool:
        """Accept the peer's circuit. False, and nothing is sent, when it has ended meanwhile."""
        return self._circuits.created(circuit_id, handshake)

    def destroy(self, circuit_id: int, reason: int) -> bool:
        """End a circuit: its handler and queue are dropped at once. False when it has ended already."""
        return self._circuits.destroy(circuit_id, reason)

    @property
    def circuits(self) -> int:
        """Circuit ids in use, those that wait for the peer's DESTROY included."""
        return len(self._circuits)

    @property
    def unfinished(self) -> int:
        """Bytes that wait for the rest of their cell or link message."""
        return len(self._partial) + len(self._reassembler)

    # Cells in

    def _cells(self, buffer: bytes, offset: int, end: int, now: float) -> None:
        """Whole cells from `offset` to `end`."""
        while not self.open and offset < end:
            if self.closed:
                return
            self._handshake_cell(buffer[offset : offset + CELL_SIZE], now)
            offset += CELL_SIZE
        get = self.handlers.get
        words = _words
        circuit_id = 0
        while offset < end:
            try:
                for offset in range(offset, end, CELL_SIZE):  # noqa: B020 (goes on behind a cell that failed)
                    circuit_id, word = words(buffer, offset)
                    if word == _RELAY_WORD and (handler := get(circuit_id)) is not None:
                        handler(_RELAY, buffer, offset)
                    else:
                        self._other_cell(circuit_id, word, buffer, offset, now)
                return
            except RemoteProtocolError:
                if self.closed:
                    raise
                self.counts["circuit_error"] += 1
                self._circuits.fail(circuit_id)
                offset += CELL_SIZE

    def _handshake_cell(self, cell: bytes, now: float) -> None:
        try:
            self._handshake.receive(cell)
        except RemoteProtocolError as error:
            self._end(error.reason)
            raise
        self._advance_handshake(now)

    def _advance_handshake(self, now: float) -> None:
        """Queue what the handshake has to say, and see how far it is."""
        handshake = self._handshake
        for cell in handshake.outbox:
            self._control(cell)
        handshake.outbox.clear()
        if handshake.request is not None:
            self._events.append(handshake.request)
        elif handshake.step is Step.DONE:
            self.open = True
            self.heard = now
            self.peer_id = handshake.peer_id
            self.version = handshake.version
            self._events.append(LinkOpen(self.peer_id, self.version, handshake.skew))

    def _other_cell(self, circuit_id: int, word: int, buffer: bytes, offset: int, now: float) -> None:
        """Every cell that is not RELAY for a circuit with a handler."""
        if self.closed:
            return
        if word & _RESERVED:
            self._close("reserved header bytes are not zero")
        command = word >> 24
        if command == CellCommand.PADDING:
            return
        if command >= IGNORABLE:
            self.counts["ignored_command"] += 1
            return
        payload = offset + HEADER_SIZE
        if command == CellCommand.MESSAGE:
            if circuit_id:
                self._close("a link message in a circuit")
            self._fragment(buffer[payload : offset + CELL_SIZE], now)
        elif command > CellCommand.MESSAGE:
            self._close(f"unknown cell command {command}")
        elif not circuit_id:
            self._close(f"{CellCommand(command).name} without a circuit")
        elif command in (_RELAY, _RELAY_EARLY):
            handler = self.handlers.get(circuit_id)
            if handler is not None:
                handler(command, buffer, offset)
            else:
                self._circuits.relay(circuit_id)
        elif command == CellCommand.DESTROY:
            self._circuits.peer_destroy(circuit_id, buffer[payload])
        else:
            self._circuits.peer_handshake(circuit_id, command, buffer[payload : offset + CELL_SIZE])

    def _fragment(self, payload: bytes, now: float) -> None:
        try:
            message = self._reassembler.feed(payload)
            if message is not None:
                self._message(*split_message(message), now)
        except WireError as error:
            self._close(error.reason)

    def _message(self, kind: int, payload: bytes, now: float) -> None:
        if is_handed_on(kind):
            self._events.append(LinkMessage(kind, payload))
        elif kind >= IGNORABLE:
            self.counts["ignored_message"] += 1
        elif kind == LinkMessageType.PING:
            for cell in fragment(encode_message(Pong(Ping.decode(Reader(payload)).nonce))):
                self._reply(cell)
        elif kind == LinkMessageType.PONG:
            pong = Pong.decode(Reader(payload))
            if self._ping is not None and pong.nonce == self._ping.nonce:
                self.rtt = now - self._ping_sent
                self._ping = None
            else:
                self.counts["unexpected_pong"] += 1
        else:
            self._close(f"link message {kind} on an open link")

    # Cells out

    def _control(self, cell: bytes) -> None:
        self._waiting += 1
        self.mux.control(cell)

    def _reply(self, cell: bytes) -> None:
        """Queue a cell that the peer caused."""
        self._replies += 1
        self._control(cell)

    def _draw_patience(self) -> float:
        return PING_SECONDS * self._rng.uniform(0.8, 1.2)

    # The end

    def _close(self, reason: str) -> NoReturn:
        self._end(reason)
        raise RemoteProtocolError(reason)

    def _end(self, reason: str) -> None:
        self.closed = True
        self.open = False
        self._circuits.clear()
        self._partial.clear()
        self._events.append(LinkClosed(reason))
        if self.mux.on_dirty is not None:
            self.mux.on_dirty()
