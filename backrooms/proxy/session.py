"""One connection of an application to a local proxy: its request, then the tunnel. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from backrooms.circuit.events import StreamConnected, StreamEnded
from backrooms.errors import CircuitError, ConfigError, PathError, StreamError
from backrooms.node.requests import StreamRequest
from backrooms.proxy.opener import Stream
from backrooms.proxy.request import Dialect, Kind, Request, RequestRefused
from backrooms.wire.names import ip_literal
from backrooms.wire.relay import EndReason


@dataclass(frozen=True, slots=True)
class PauseReading:
    """Read no more from the application."""


@dataclass(frozen=True, slots=True)
class ResumeReading:
    """Read from the application again."""


@dataclass(frozen=True, slots=True)
class CloseWrite:
    """The application has been given all it will get: send it EOF, go on reading."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection once all is written."""


@dataclass(frozen=True, slots=True)
class Abort:
    """The stream broke with this `EndReason`: reset the connection, lest this be taken for a proper end."""

    reason: int


@dataclass(frozen=True, slots=True)
class LookUp:
    """Resolve `request` and call `resolved`, `resolved_ptr` or `failed`."""

    kind: Kind
    request: StreamRequest


@dataclass(frozen=True, slots=True)
class Refused:
    """The request was refused; `reason` is fit for a log."""

    reason: str


@dataclass(frozen=True, slots=True)
class DeadlineChanged:
    """`deadline` changed outside `receive` and `tick`."""


Event = PauseReading | ResumeReading | CloseWrite | Close | Abort | LookUp | Refused | DeadlineChanged


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds."""

    request: float = 30.0
    """Until the request is complete."""
    answer: float = 120.0
    """Until the stream is connected or the name looked up."""
    half_closed: float = 600.0
    """That the application may be silent after the network sent its last byte."""
    linger: float = 2.0
    """For the application to read what we last said, before the connection is closed."""


class State(Enum):
    """Where a session is."""

    REQUEST = auto()
    ANSWER = auto()
    TUNNEL = auto()
    BROKEN = auto()
    """The stream ended with an error; what came before it is still handed over."""
    LINGER = auto()
    """The last word is said. Reading goes on, for closing with unread bytes would reset the connection."""
    CLOSED = auto()


class ProxySession:
    """A Machine (`interfaces.Machine`) that speaks `dialect` to an application.

    `plan` makes a `StreamRequest` of a request (`ConfigError`: its level is wrong), `open_stream` opens it.
    `on_dirty` is called when there is output or an event outside `receive` and `tick`.
    """

    def __init__(
        self,
        dialect: Dialect,
        plan: Callable[[Request], StreamRequest],
        open_stream: Callable[[StreamRequest], Stream],
        now: float,
        limits: Limits | None = None,
    ) -> None:
        self.on_dirty: Callable[[], None] | None = None
        self.state = State.REQUEST
        self._dialect = dialect
        self._plan = plan
        self._open_stream = open_stream
        self._limits = limits or Limits()
        self._stream: Stream | None = None
        self._events: list[Event] = []
        self._replies = b""
        self._told_paused = False
        self._read_eof = False
        self._write_closed = False
        self._broken = int(EndReason.MISC)
        self._drained = False
        self._now = now
        self._limit: float | None = now + self._limits.request
        self._wait: float | None = None
        """Seconds to the next deadline when it was set without knowing the time: they run from `tick` on."""

    @property
    def paused(self) -> bool:
        """Whether reading from the application has been paused."""
        return self._told_paused

    # From the application

    def receive(self, data: bytes, now: float) -> None:
        self._now = now
        stream = self._stream
        if stream is not None and self.state in (State.ANSWER, State.TUNNEL):
            stream.receive(data, now)
            if self._write_closed:
                self._limit = now + self._limits.half_closed
        elif self.state is State.REQUEST:
            try:
                request = self._dialect.receive(data)
            except RequestRefused as refusal:
                self._refuse(refusal.reason, self._dialect.output() + refusal.reply)
            else:
                self._replies += self._dialect.output()
                if request is not None:
                    self._serve(request, now)
        self._start_wait(now)

    def receive_eof(self, now: float) -> None:
        self._now = now
        if self._read_eof:
            return
        self._read_eof = True
        if self.state in (State.REQUEST, State.LINGER):
            self._close()
        elif self._stream is not None and self.state in (State.ANSWER, State.TUNNEL):
            self._stream.receive_eof(now)
            if self._write_closed:
                self._close()
        self._start_wait(now)

    def _serve(self, request: Request, now: float) -> None:
        try:
            planned = self._plan(request)
        except ConfigError as error:
            self._refuse(str(error), self._dialect.refused(str(error)))
            return
        self.state = State.ANSWER
        self._limit = now + self._limits.answer
        if request.kind != "connect":
            if request.kind == "resolve" and ip_literal(request.host) is not None:
                self.resolved([request.host])
            else:
                self._events.append(LookUp(request.kind, planned))
            return
        try:
            stream = self._open_stream(planned)
        except StreamError as error:
            self.failed(error.reason)
            return
        except (PathError, CircuitError) as error:
            self._events.append(Refused(str(error)))
            self.failed(EndReason.NOROUTE if isinstance(error, PathError) else EndReason.DESTROY)
            return
        self._stream = stream
        stream.on_dirty = self._dirty
        if self._dialect.early:
            stream.receive(self._dialect.early, now)
            self._dialect.early = b""

    # From the node

    def resolved(self, addresses: Sequence[str]) -> None:
        """The answer to a `LookUp` of kind "resolve"."""
        if self.state is State.ANSWER:
            reply = self._dialect.resolved(addresses)
            self._answer(reply if reply is not None else self._dialect.failed(EndReason.RESOLVEFAILED))

    def resolved_ptr(self, names: Sequence[str]) -> None:
        """The answer to a `LookUp` of kind "resolve_ptr"."""
        if self.state is State.ANSWER:
            reply = self._dialect.resolved_ptr(names)
            self._answer(reply if reply is not None else self._dialect.failed(EndReason.RESOLVEFAILED))

    def failed(self, reason: int) -> None:
        """The stream was not connected, or the look-up failed, with this `EndReason`."""
        if self.state is State.ANSWER:
            self._answer(self._dialect.failed(reason))

    def lost(self) -> None:
        """The connection to the application is gone."""
        clean = self._write_closed and self._read_eof
        self.state = State.CLOSED
        self._limit = self._wait = None
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.on_dirty = None
            if not clean:
                # A client tells an exit no reason (docs/protocol.md): it would only tell clients apart.
                stream.abort(EndReason.MISC)

    def _dirty(self) -> None:
        if self.on_dirty is not None:
            self.on_dirty()

    # To the application

    def events(self) -> list[Event]:
        if self._stream is not None:
            self._poll(self._stream)
        elif self.state is State.LINGER and not self._replies:
            self._close_write()
        if not self._events:
            return []
        events, self._events = self._events, []
        return events

    def _poll(self, stream: Stream) -> None:
        for event in stream.events():
            if isinstance(event, StreamConnected):
                if self.state is State.ANSWER:
                    self.state = State.TUNNEL
                    self._replies += self._dialect.granted()
                    self._set_wait(None)
            elif isinstance(event, StreamEnded):
                self._ended(stream, event.reason)
        if self.state is State.TUNNEL and stream.finished and not self._replies and not self._write_closed:
            self._close_write()
        elif self.state is State.BROKEN and (self._drained or self._write_closed):
            self._abort()
        paused = stream.paused and self.state in (State.ANSWER, State.TUNNEL)
        if paused != self._told_paused and not self._read_eof and self.state is not State.CLOSED:
            self._told_paused = paused
            self._events.append(PauseReading() if paused else ResumeReading())

    def _ended(self, stream: Stream, reason: int) -> None:
        if self.state is State.ANSWER:
            self._stream = None
            stream.on_dirty = None
            self._answer(self._dialect.failed(reason))
        elif self.state is State.TUNNEL and reason != EndReason.DONE:
            self.state = State.BROKEN
            self._broken = reason
            self._set_wait(self._limits.linger)

    def output(self) -> bytes:
        if self._replies:
            data, self._replies = self._replies, b""
            return data
        stream = self._stream
        if stream is None or self.state not in (State.TUNNEL, State.BROKEN):
            return b""
        data = stream.output()
        if not data and self.state is State.BROKEN:
            # Asked for more, so what we gave before is written: a reset cannot overtake it any more.
            self._drained = True
            self._dirty()
        return data

    # Time

    def deadline(self) -> float | None:
        if self._wait is not None:
            return self._now
        stream = self._stream.deadline() if self._stream is not None else None
        if self._limit is None or (stream is not None and stream < self._limit):
            return stream
        return self._limit

    def tick(self, now: float) -> None:
        self._now = now
        if self._stream is not None:
            due = self._stream.deadline()
            if due is not None and due <= now:
                self._stream.tick(now)
        self._start_wait(now)
        if self._limit is None or now < self._limit:
            return
        self._limit = None
        if self.state is State.REQUEST:
            self._refuse("the request did not come in time", self._dialect.timed_out())
        elif self.state is State.ANSWER:
            stream, self._stream = self._stream, None
            if stream is not None:
                stream.on_dirty = None
                stream.abort(EndReason.MISC)
            self.failed(EndReason.TIMEOUT)
        elif self.state in (State.BROKEN, State.TUNNEL):
            self._abort()
        elif self.state is State.LINGER:
            self._close()
        self._start_wait(now)

    def _set_wait(self, seconds: float | None) -> None:
        self._limit = None
        self._wait = seconds
        self._events.append(DeadlineChanged())

    def _start_wait(self, now: float) -> None:
        if self._wait is not None:
            self._limit = now + self._wait
            self._wait = None

    # Endings

    def _refuse(self, reason: str, reply: bytes) -> None:
        self._events.append(Refused(reason))
        self._answer(reply)

    def _answer(self, reply: bytes) -> None:
        """Say the last word, then close."""
        self._replies += reply
        if self._read_eof or not self._replies:
            self._close()
            return
        self.state = State.LINGER
        self._set_wait(self._limits.linger)
        if self._told_paused:
            self._told_paused = False
            self._events.append(ResumeReading())
        self._dirty()

    def _close_write(self) -> None:
        if self._write_closed:
            return
        self._write_closed = True
        if self._read_eof:
            self._close()
            return
        self._events.append(CloseWrite())
        if self.state is State.TUNNEL:
            self._set_wait(self._limits.half_closed)

    def _close(self) -> None:
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self._limit = self._wait = None
            self._events.append(Close())
            self._dirty()

    def _abort(self) -> None:
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self._limit = self._wait = None
            self._events.append(Abort(self._broken))
            self._dirty()
