"""The stream layer at one end of a circuit: packs relay messages into cells, and takes them apart.

An edge is the `source` of its circuit's queue: it seals a cell only when the link asks for one, so nothing but the
applications' own bytes ever waits. Client and exit have the same edge; what only one of them understands is in
`origin.ClientEdge` and `hop.RelayEdge`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from backrooms.channel.mux import CircuitQueue
from backrooms.circuit.flow import Vegas
from backrooms.circuit.stream import SEND_LIMIT, Stream
from backrooms.errors import LocalProtocolError, WireError
from backrooms.interfaces import Rng
from backrooms.wire.cell import BODY_SIZE
from backrooms.wire.relay import (
    ACK_PADDING,
    MAX_DATA,
    MAX_DATA_ACK,
    MAX_MESSAGES,
    MESSAGE_HEADER,
    MESSAGE_HEADER_SIZE,
    SENDME_CELLS,
    Credit,
    End,
    EndReason,
    RelayCommand,
    pack_message,
    parse_messages,
)

SEND_LEAST = 16384
CIRCUIT_SEND_LIMIT = 8 * 1024 * 1024
"""Bytes of applications that wait for one circuit, about, before all of them are asked to pause."""
_DATA = int(RelayCommand.DATA)
_WORTH_SHARING = 64
"""Free bytes of a cell below which no further stream's data is put into it."""
_CONTROL_MESSAGES = MAX_MESSAGES - 4
"""Small messages put into one cell; the rest of the allowance is for DATA beside them."""
_CONTROL_LIMIT = 4096
"""Small messages that may wait; a peer that provokes more without reading is cut off."""
_MESSAGE_MEMORY = 128
_ID_MEMORY = 64
"""Bytes of memory, about, of a small message that waits, and of a stream id that was used."""

Seal = Callable[[bytes], tuple[bytes, bytes]]
"""Encrypts a body of `BODY_SIZE` bytes: the whole cell, and the tag a SENDME would name it by."""


class Edge:
    """Streams, window and small messages of one end of a circuit."""

    def __init__(self, seal: Seal, queue: CircuitQueue, clock: Callable[[], float], rng: Rng) -> None:
        self.streams: dict[int, Stream] = {}
        self.vegas = Vegas()
        self.closed = False
        self._seal = seal
        self._queue = queue
        self._clock = clock
        self._rng = rng
        self._control: deque[bytes] = deque()
        self._ready: dict[Stream, None] = {}
        self._end_sent: set[int] = set()
        self._aborted: set[int] = set()
        self._used: set[int] = set()
        self._received = 0
        queue.source = self

    # out

    @property
    def send_limit(self) -> int:
        """Bytes one stream's application may leave waiting here: a share of what the circuit may hold."""
        return min(SEND_LIMIT, max(SEND_LEAST, CIRCUIT_SEND_LIMIT // (len(self.streams) + 1)))

    def fill(self, limit: int) -> list[bytes]:
        """At most `limit` sealed cells (`channel.mux.CellSource`)."""
        out: list[bytes] = []
        vegas = self.vegas
        while len(out) < limit and not self.closed:
            acknowledged = vegas.next_is_acknowledged()
            body = b""
            if self._control:
                body = self._pack_control(BODY_SIZE - ACK_PADDING - 1 if acknowledged else BODY_SIZE)
            # DATA waits for every small message: one of them may be the BEGIN or CONNECTED of its stream.
            data = bool(self._ready) and not self._control and vegas.inflight < vegas.cwnd
            if data:
                body, data = self._pack_data(body, MAX_DATA_ACK if acknowledged else MAX_DATA)
            if not body:
                break
            if data and acknowledged:
                body += b"\0" + self._rng.randbytes(ACK_PADDING)
            if len(body) < BODY_SIZE:
                body = body.ljust(BODY_SIZE, b"\0")
            cell, tag = self._seal(body)
            if data:
                vegas.count()
                if acknowledged:
                    vegas.expect(tag, self._clock())
            out.append(cell)
        return out

    def _pack_control(self, room: int) -> bytes:
        control = self._control
        parts: list[bytes] = []
        while control and len(parts) < _CONTROL_MESSAGES and len(control[0]) <= room:
            room -= len(control[0])
            parts.append(control.popleft())
        return b"".join(parts)

    def _pack_data(self, body: bytes, limit: int) -> tuple[bytes, bool]:
        """Add DATA of as many ready streams as fit; `limit` is for an empty cell. Says whether there was any."""
        ready = self._ready
        packed = False
        room = limit - len(body)
        messages = MAX_MESSAGES - _CONTROL_MESSAGES if body else MAX_MESSAGES
        while ready and messages and (room >= _WORTH_SHARING or not body):
            stream = next(iter(ready))
            del ready[stream]
            if stream.unsent and stream.credit > 0:
                data = stream.take(room)
                header = MESSAGE_HEADER.pack(_DATA, stream.stream_id, len(data))
                body = body + header + data if body else header + data
                room = limit - len(body)
                packed = True
                messages -= 1
                if stream.unsent and stream.credit > 0:
                    ready[stream] = None
            if not stream.unsent and stream.local_end is not None:
                self._send_end(stream, stream.local_end)
        return body, packed

    def send(self, command: int, stream_id: int, data: bytes) -> None:
        """Queue a small message; it goes out with the next cell."""
        if len(data) > MAX_DATA_ACK:
            raise LocalProtocolError(f"relay message of {len(data)} bytes")
        if self.closed:
            return
        if len(self._control) >= _CONTROL_LIMIT:
            if self._queue.on_overflow is not None:
                self._queue.on_overflow()
            return
        self._control.append(pack_message(command, stream_id, data))
        self._queue.wake()

    def ready(self, stream: Stream) -> None:
        """`stream` may have data, or its END, to send."""
        if stream.sendable():
            self._ready[stream] = None
            if self.vegas.inflight < self.vegas.cwnd:
                self._queue.wake()
        elif not stream.unsent and stream.local_end is not None:
            self._send_end(stream, stream.local_end)

    def grant(self, stream: Stream, count: int) -> None:
        """Let the peer send `count` bytes more on `stream`."""
        self.send(RelayCommand.CREDIT, stream.stream_id, Credit(count).encode())

    def _send_end(self, stream: Stream, reason: int) -> None:
        stream_id = stream.stream_id
        if stream_id in self._end_sent or self.streams.get(stream_id) is not stream:
            return
        self._end_sent.add(stream_id)
        self.send(RelayCommand.END, stream_id, End(reason).encode())
        if stream.ended is not None:
            self._forget(stream_id)
            stream.done()

    def abort_stream(self, stream: Stream, reason: int) -> None:
        """Tell the peer END(reason) and take nothing more for this stream."""
        stream_id = stream.stream_id
        if self.streams.get(stream_id) is not stream:
            return
        if stream_id not in self._end_sent or reason != EndReason.DONE:
            self.send(RelayCommand.END, stream_id, End(reason).encode())
        heard = stream.ended is not None
        self._forget(stream_id)
        if not heard:
            self._aborted.add(stream_id)

    def add(self, stream: Stream, stream_id: int) -> None:
        """Take a new stream into the table."""
        self.streams[stream_id] = stream
        self._used.add(stream_id)

    def refuse(self, stream_id: int) -> None:
        """Answer a BEGIN for which there is no room."""
        self.send(RelayCommand.END, stream_id, End(EndReason.RESOURCELIMIT).encode())
        self._aborted.add(stream_id)
        self._used.add(stream_id)

    def _forget(self, stream_id: int) -> None:
        """The id is free: both sides have sent END."""
        stream = self.streams.pop(stream_id, None)
        self._end_sent.discard(stream_id)
        if stream is not None:
            self._ready.pop(stream, None)
            self.stream_gone(stream)

    def stream_gone(self, stream: Stream) -> None:
        """For managers: a stream left the table. Not called for those that are there when the circuit ends."""

    @property
    def waiting(self) -> int:
        """Bytes of memory, about, that streams and small messages take here."""
        streams = sum([stream.waiting for stream in self.streams.values()])
        return streams + _MESSAGE_MEMORY * len(self._control) + _ID_MEMORY * len(self._used)

    def in_use(self, stream_id: int) -> bool:
        """Whether either side still uses this id."""
        return stream_id in self.streams or stream_id in self._aborted

    # in

    def receive(self, body: bytes, tag: bytes) -> None:
        """A cell's body that this hop recognised; `tag` is what a SENDME would name it by."""
        if body[0] == _DATA:
            # The usual cell of a download: one DATA message and nothing behind it.
            _, stream_id, length = MESSAGE_HEADER.unpack_from(body)
            end = MESSAGE_HEADER_SIZE + length
            if end == BODY_SIZE or (end < BODY_SIZE and body[end] == 0):
                stream = self.streams.get(stream_id)
                if stream is not None:
                    stream.deliver(body[MESSAGE_HEADER_SIZE:end])
                else:
                    self._stray(stream_id)
                self._count_received(tag)
                return
        has_data = False
        for command, stream_id, data in parse_messages(body):
            if command == _DATA:
                has_data = True
                stream = self.streams.get(stream_id)
                if stream is not None:
                    stream.deliver(data)
                else:
                    self._stray(stream_id)
            else:
                self._message(command, stream_id, data)
            if self.closed:
                return
        if has_data:
            self._count_received(tag)

    def _count_received(self, tag: bytes) -> None:
        self._received += 1
        if self._received % SENDME_CELLS == 0:
            self.send(RelayCommand.SENDME, 0, tag)

    def _stray(self, stream_id: int) -> None:
        """Only a stream that we gave up may still get messages from a peer that has not heard of it."""
        if stream_id not in self._aborted:
            raise WireError("message for a stream that does not exist")

    def _late(self, stream_id: int) -> None:
        """CREDIT and END may cross the other side's last END; not of a stream that never was."""
        if stream_id not in self._used:
            raise WireError("message for a stream that does not exist")

    def _message(self, command: int, stream_id: int, data: bytes) -> None:
        if command == RelayCommand.SENDME:
            self.vegas.acknowledged(data, self._clock())
            if self._ready:
                self._queue.wake()
        elif command == RelayCommand.CREDIT:
            credit = Credit.decode(data)
            stream = self.streams.get(stream_id)
            if stream is not None:
                stream.add_credit(credit.count)
            else:
                self._late(stream_id)
        elif command == RelayCommand.END:
            self._end(stream_id, End.decode(data).reason)
        else:
            self.other_message(command, stream_id, data)

    def _end(self, stream_id: int, reason: int) -> None:
        """END came. DONE closes one direction; an error, also one behind DONE, closes both."""
        stream = self.streams.get(stream_id)
        if stream is None:
            if reason == EndReason.DONE:
                self._stray(stream_id)
            else:
                self._late(stream_id)
            self._aborted.discard(stream_id)
            return
        if reason == EndReason.DONE:
            stream.end(reason)
            if stream_id in self._end_sent:
                self._forget(stream_id)
                stream.done()
            return
        if stream_id not in self._end_sent:
            self.send(RelayCommand.END, stream_id, End(EndReason.DONE).encode())
        self._forget(stream_id)
        stream.lost(reason)

    def other_message(self, command: int, stream_id: int, data: bytes) -> None:
        """What only one end understands; everything else is an error."""
        raise WireError(f"unexpected relay message {command}")

    def close(self, reason: int = EndReason.DESTROY) -> None:
        """The circuit is gone."""
        if self.closed:
            return
        self.closed = True
        self._queue.source = None
        self._control.clear()
        self._ready.clear()
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.lost(reason)
