"""What all sessions of a local proxy have in common: a stream, the tunnel into it, and how it all ends. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from backrooms.circuit.events import StreamConnected, StreamEnded
from backrooms.errors import CircuitError, ConfigError, PathError, StreamError
from backrooms.node.requests import StreamRequest
from backrooms.proxy.events import (
    Abort,
    Close,
    CloseWrite,
    DeadlineChanged,
    Event,
    Limits,
    PauseReading,
    Refused,
    ResumeReading,
    State,
)
from backrooms.proxy.opener import Stream
from backrooms.proxy.request import Request
from backrooms.wire.relay import EndReason


class Tunnel(ABC):
    """A Machine (`interfaces.Machine`) between an application and a stream; its requests are a subclass's business.

    `plan` makes a `StreamRequest` of a request (`ConfigError`: its level is wrong; `StreamError`: it must not leave),
    `open_stream` opens it. `on_dirty` is called when there is output or an event outside `receive` and `tick`.
    """

    def __init__(
        self,
        plan: Callable[[Request], StreamRequest],
        open_stream: Callable[[StreamRequest], Stream],
        now: float,
        limits: Limits | None = None,
    ) -> None:
        self.on_dirty: Callable[[], None] | None = None
        self.state = State.REQUEST
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

    # What a dialect says

    @abstractmethod
    def _connected(self) -> None:
        """The stream is connected."""

    @abstractmethod
    def _failure(self, reason: int) -> bytes:
        """The answer to a request that failed with this `EndReason`."""

    @abstractmethod
    def _refusal(self, text: str) -> bytes:
        """The answer to a request that we will not serve."""

    @abstractmethod
    def _lateness(self) -> bytes:
        """The answer to a request that did not come in time."""

    # From the application

    @property
    def paused(self) -> bool:
        """Whether reading from the application has been paused."""
        return self._told_paused

    @property
    def at_eof(self) -> bool:
        """Whether the application has sent its last byte."""
        return self._read_eof

    @abstractmethod
    def receive(self, data: bytes, now: float) -> None: ...

    def receive_eof(self, now: float) -> None:
        self._now = now
        if self._read_eof:
            return
        self._read_eof = True
        if self.state in (State.REQUEST, State.LINGER):
            self._close()
        elif self._stream is not None and self.state in (State.ANSWER, State.TUNNEL):
            self._end_of_application(self._stream, now)
        self._start_wait(now)

    def _end_of_application(self, stream: Stream, now: float) -> None:
        stream.receive_eof(now)
        if self._write_closed:
            self._close()

    def _planned(self, request: Request) -> StreamRequest | None:
        """What to open or look up; None when the request has been refused."""
        try:
            return self._plan(request)
        except ConfigError as error:
            self._refuse(str(error), self._refusal(str(error)))
        except StreamError as error:
            self._refuse(str(error), self._failure(error.reason))
        return None

    def _opened(self, planned: StreamRequest) -> Stream | None:
        """The stream; None when the request has been answered with what is wrong."""
        try:
            stream = self._open_stream(planned)
        except StreamError as error:
            self.failed(error.reason)
            return None
        except (PathError, CircuitError) as error:
            self._events.append(Refused(str(error)))
            self.failed(EndReason.NOROUTE if isinstance(error, PathError) else EndReason.DESTROY)
            return None
        self._stream = stream
        stream.on_dirty = self._dirty
        return stream

    # From the node

    def failed(self, reason: int) -> None:
        """The stream was not connected, or the look-up failed, with this `EndReason`."""
        if self.state is State.ANSWER:
            self._answer(self._failure(reason))

    def lost(self) -> None:
        """The connection to the application is gone."""
        clean = self._write_closed and self._read_eof
        self.state = State.CLOSED
        self._limit = self._wait = None
        self._drop_stream(abort=not clean)

    def _drop_stream(self, abort: bool = True) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.on_dirty = None
            if abort:
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
                self._connected()
            elif isinstance(event, StreamEnded):
                self._ended(stream, event.reason)
        if self.state is State.TUNNEL and stream.finished and not self._replies and not self._write_closed:
            self._close_write()
        elif self.state is State.BROKEN and (self._drained or self._write_closed):
            self._abort()
        self._pause(self._has_to_wait(stream))

    def _pause(self, paused: bool) -> None:
        if paused != self._told_paused and not self._read_eof and self.state is not State.CLOSED:
            self._told_paused = paused
            self._events.append(PauseReading() if paused else ResumeReading())

    def _has_to_wait(self, stream: Stream) -> bool:
        """Whether no more should be read from the application now."""
        return stream.paused and self.state in (State.ANSWER, State.TUNNEL)

    def _ended(self, stream: Stream, reason: int) -> None:
        if self.state is State.ANSWER:
            self._stream = None
            stream.on_dirty = None
            self._answer(self._failure(reason))
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
            self._late()
        elif self.state is State.ANSWER:
            self._drop_stream()
            self.failed(EndReason.TIMEOUT)
        elif self.state in (State.BROKEN, State.TUNNEL):
            self._abort()
        elif self.state is State.LINGER:
            self._close()
        self._start_wait(now)

    def _late(self) -> None:
        self._refuse("the request did not come in time", self._lateness())

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
        if self._replies:
            self._linger()
        else:
            self._close()

    def _linger(self) -> None:
        """Close once the application has had time to read what was said."""
        if self._read_eof:
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
