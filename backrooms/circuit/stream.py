"""One end of a stream: bytes of an application on one side, DATA messages of a circuit on the other.

A `Stream` is a machine (`interfaces.Machine`) towards the application: `receive` takes what the application sends,
`output` gives what came from the network. Towards the circuit it has a credit in each direction, so that an application
that does not read stops its own stream and no other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from backrooms.circuit.events import StreamConnected, StreamEnded
from backrooms.errors import WireError
from backrooms.wire.relay import INITIAL_CREDIT, EndReason

if TYPE_CHECKING:
    from backrooms.circuit.edge import Edge

OUTPUT_LIMIT = 65536
SEND_LIMIT = 262144
"""Bytes of an application that wait for the circuit before it is asked to pause."""
CREDIT_MAX = 2 * 1024 * 1024
"""A reader that keeps up gets a credit of up to this many bytes."""
PIECE_MEMORY = 64
"""Bytes of memory, about, that each piece of waiting data takes beside the data."""


class Stream:
    """A stream's state. It may exist before it is attached to a circuit: what the application sends waits."""

    def __init__(self) -> None:
        self.on_dirty: Callable[[], None] | None = None
        self.on_refused: Callable[[int], bool] | None = None
        """Asked when the stream fails before it was connected and before any data left: True means another try."""
        self.on_change: Callable[[], None] | None = None
        """Called when the stream is connected, and when it is closed."""
        self.stream_id = 0
        self.connected = False
        self.readable = False
        """Whether DATA may come: at a client after CONNECTED, at an exit at once (optimistic data)."""
        self.ended: int | None = None
        """The reason of the END the network sent, or of an abort."""
        self.local_end: int | None = None
        """The reason of the END we sent or will send."""
        self.paused = False
        """Whether the application should stop sending."""
        self.closed = False
        """Whether nothing will go either way any more."""
        self._edge: Edge | None = None
        self._events: list[StreamConnected | StreamEnded] = []
        self._outbox: deque[bytes] = deque()
        self._offset = 0
        self._started = False
        self.unsent = 0
        """Bytes of the application that wait for the circuit."""
        self.credit = INITIAL_CREDIT
        """Bytes we may still send."""
        self._inbox: list[bytes] = []
        self._inbox_size = 0
        self._window = INITIAL_CREDIT
        self._granted = INITIAL_CREDIT
        """Bytes the peer may still send."""
        self._taken = 0
        """Bytes the application took since the window last grew."""
        self.held = 0
        """Bytes that an application inside this node has taken and not used yet, for the accounting of memory."""

    # towards the application

    def receive(self, data: bytes, now: float) -> None:
        """The application sent `data`."""
        if self.closed or self.local_end is not None or not data:
            return
        self._outbox.append(data)
        self.unsent += len(data)
        if self.unsent >= self.send_limit:
            self.paused = True
        if self._edge is not None:
            self._edge.ready(self)

    @property
    def send_limit(self) -> int:
        """Bytes that the application may leave waiting here before it is asked to pause."""
        return SEND_LIMIT if self._edge is None else self._edge.send_limit

    def receive_eof(self, now: float) -> None:
        """The application will send no more."""
        if self.local_end is None and not self.closed:
            self.local_end = EndReason.DONE
            if self._edge is not None:
                self._edge.ready(self)

    def output(self) -> bytes:
        """At most 64 KiB from the network; taking it is what renews the peer's credit."""
        inbox = self._inbox
        if not inbox:
            return b""
        size = self._inbox_size
        if size <= OUTPUT_LIMIT:
            data = b"".join(inbox)
            inbox.clear()
        else:
            size = taken = 0
            for piece in inbox:
                if size + len(piece) > OUTPUT_LIMIT:
                    break
                size += len(piece)
                taken += 1
            data = b"".join(inbox[:taken])
            del inbox[:taken]
        self._inbox_size -= size
        self._taken += size
        self._renew_credit()
        if not inbox and self.ended is not None and self.on_dirty is not None:
            self.on_dirty()
        return data

    def discard_output(self) -> None:
        """Drop what comes from the network: the application is gone, but its last bytes are still on their way."""
        while self.output():
            pass

    def _renew_credit(self) -> None:
        if self.ended is not None or self._edge is None:
            return
        if not self._inbox and self._taken >= self._window and self._window < CREDIT_MAX:
            # It took a whole window and nothing waits: it keeps up, and may be sent more at a time.
            self._window *= 2
            self._taken = 0
        held = self._granted + self._inbox_size
        if held <= self._window // 2:
            self._granted += self._window - held
            self._edge.grant(self, self._window - held)

    def events(self) -> list[StreamConnected | StreamEnded]:
        events, self._events = self._events, []
        return events

    def deadline(self) -> float | None:
        return None

    def tick(self, now: float) -> None:
        """Streams have no clock of their own."""

    @property
    def finished(self) -> bool:
        """Whether the network's last byte has been given by `output`."""
        return self.ended is not None and not self._inbox

    @property
    def waiting(self) -> int:
        """Bytes of memory, about, that wait here in both directions."""
        return self.unsent + self._inbox_size + self.held + PIECE_MEMORY * (len(self._outbox) + len(self._inbox))

    def abort(self, reason: int) -> None:
        """Shut both directions; the peer gets END(reason) if it does not know yet."""
        if self.closed:
            return
        if self._edge is not None:
            self._edge.abort_stream(self, reason)
        self.lost(reason)

    # towards the circuit

    def attach(self, edge: Edge, stream_id: int) -> None:
        """Carry on over `edge` as `stream_id`."""
        self._edge = edge
        self.stream_id = stream_id
        if self._outbox or self.local_end is not None:
            edge.ready(self)

    def sendable(self) -> bool:
        """Whether there is data that the peer's credit allows."""
        return self.unsent > 0 and self.credit > 0

    def take(self, limit: int) -> bytes:
        """The next at most `limit` bytes to send, within the credit."""
        self._started = True
        if limit > self.credit:
            limit = self.credit
        outbox = self._outbox
        first = outbox[0]
        start = self._offset
        end = start + limit
        if end < len(first):
            data = first[start:end]
            self._offset = end
        else:
            data = first[start:] if start else first
            outbox.popleft()
            self._offset = 0
            if len(data) < limit and outbox:
                data = self._take_across(data, limit)
        size = len(data)
        self.credit -= size
        self.unsent -= size
        if self.paused and self.unsent < self.send_limit // 2:
            self.paused = False
            if self.on_dirty is not None:
                self.on_dirty()
        return data

    def _take_across(self, data: bytes, limit: int) -> bytes:
        parts = [data]
        missing = limit - len(data)
        outbox = self._outbox
        while missing and outbox:
            first = outbox[0]
            if len(first) > missing:
                parts.append(first[:missing])
                self._offset = missing
                break
            parts.append(first)
            missing -= len(first)
            outbox.popleft()
        return b"".join(parts)

    def deliver(self, data: bytes) -> None:
        """DATA came from the network."""
        size = len(data)
        if not size:
            raise WireError("DATA of nothing")
        if not self.readable:
            raise WireError("DATA before CONNECTED")
        if size > self._granted:
            raise WireError("more DATA than the stream's credit allows")
        if self.ended is not None:
            raise WireError("DATA after END")
        self._granted -= size
        self._inbox.append(data)
        self._inbox_size += size
        if self.on_dirty is not None:
            self.on_dirty()

    def add_credit(self, count: int) -> None:
        """CREDIT came from the network."""
        self.credit += count
        if self.credit > 0xFFFFFFFF:
            raise WireError("stream credit overflows")
        if self.unsent and self._edge is not None:
            self._edge.ready(self)

    def connect(self, address: str | None) -> None:
        """CONNECTED came from the network."""
        if not self.connected:
            self.connected = self.readable = True
            self._events.append(StreamConnected(address))
            if self.on_change is not None:
                self.on_change()
            if self.on_dirty is not None:
                self.on_dirty()

    def end(self, reason: int) -> None:
        """END(DONE) came from the network."""
        if self.ended is not None:
            raise WireError("second END")
        if not self.readable:
            raise WireError("DONE before CONNECTED")
        self.ended = reason
        self._events.append(StreamEnded(reason))
        if self.on_dirty is not None:
            self.on_dirty()

    def lost(self, reason: int) -> None:
        """Nothing more goes either way: END with an error came, or the circuit is gone."""
        if self.closed:
            return
        self._edge = None
        self.credit = INITIAL_CREDIT  # for another try, which owes nothing to this one
        if not self.connected and not self._started and self.on_refused is not None and self.on_refused(reason):
            return
        self.closed = True
        self._outbox.clear()
        self._offset = self.unsent = 0
        self.paused = False
        if self.ended is None:
            self.ended = reason
        self._events.append(StreamEnded(reason))
        if self.on_dirty is not None:
            self.on_dirty()
        if self.on_change is not None:
            self.on_change()

    def done(self) -> None:
        """Both ENDs are through."""
        if self.closed:
            return
        self.closed = True
        self._edge = None
        if self.on_dirty is not None:
            self.on_dirty()
        if self.on_change is not None:
            self.on_change()
