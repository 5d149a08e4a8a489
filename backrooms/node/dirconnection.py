"""One end of a directory stream: messages in both directions, and a bound on what waits."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from backrooms.circuit.stream import Stream
from backrooms.errors import RemoteProtocolError
from backrooms.node.timers import Timers
from backrooms.wire.documents import DirectoryMessage
from backrooms.wire.frames import Unframer, frame
from backrooms.wire.relay import EndReason

log = Logger()

UNSENT_MOST = 65_536
"""Bytes that wait for the other end, from which on nothing more is read or sent."""


class DirConnection:
    """One end of a directory stream."""

    def __init__(self, stream: Stream, timers: Timers, limit: int) -> None:
        """`limit` is for the payloads that come in."""
        self.on_closed: list[Callable[[], None]] = []
        """Called once when the connection is gone, whoever ended it."""
        self.stream = stream
        self._timers = timers
        self._frames = Unframer(limit)
        self._reading = False
        self._closed = False
        stream.on_dirty = self._read
        stream.on_change = self._changed

    @property
    def closed(self) -> bool:
        """Whether nothing goes either way any more."""
        return self._closed

    @property
    def waiting(self) -> int:
        """Bytes that the other end has not taken yet."""
        return self.stream.unsent

    def send(self, message: DirectoryMessage) -> bool:
        """Send a message. False, and nothing is sent, when the other end does not read or is gone."""
        if self._closed or self.stream.unsent >= UNSENT_MOST:
            return False
        self.stream.receive(frame(message.TYPE, message.encode()), self._timers.now())
        return True

    def close(self) -> None:
        """End the connection; what was sent before still arrives."""
        self.stream.receive_eof(self._timers.now())
        self._gone()

    def fail(self, error: RemoteProtocolError) -> None:
        """The other end broke the protocol."""
        self.lost(EndReason.TORPROTOCOL)

    def lost(self, reason: int) -> None:
        """End the connection at once, for an `EndReason`."""
        self.stream.abort(reason)
        self._gone()

    def _gone(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.stream.on_dirty = self.stream.discard_output
        self.stream.on_change = None
        self.stream.held = 0
        for call in self.on_closed:
            call()

    def _changed(self) -> None:
        if self.stream.closed:
            self._gone()

    def _read(self) -> None:
        """Handle what has come, one message after the other, as long as the other end takes what we say to it."""
        if self._reading:
            return
        self._reading = True
        try:
            self._handle_all()
        except RemoteProtocolError as error:
            self.fail(error)
        except Exception:  # a bug of ours: it must not end the link that was just read from
            log.failure("bug in a directory stream")
            self.lost(EndReason.INTERNAL)
        finally:
            self._reading = False
            if not self._closed:
                self.stream.held = len(self._frames)

    def _handle_all(self) -> None:
        stream = self.stream
        while not self._closed:
            if stream.unsent >= UNSENT_MOST:
                stream.paused = True  # then we are called again when the circuit has taken something
                return
            message = self._frames.next()
            if message is not None:
                self._handle(*message)
                continue
            data = stream.output()
            if not data:
                break
            self._frames.feed(data)
        if stream.finished and not self._closed:
            self.close()

    def _handle(self, kind: int, payload: bytes) -> None:
        raise NotImplementedError
