"""The connection to a destination, joined to its stream."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from backrooms.circuit.events import StreamEnded
from backrooms.circuit.stream import Stream
from backrooms.errors import StreamError
from backrooms.node.driver import Driver, Turn
from backrooms.node.timers import Call, Timers
from backrooms.wire.relay import EndReason

HALF_CLOSED_TIME = 600.0
"""Seconds a connection of which one direction has ended may be silent. The peer may be gone without a word."""
READ_MOST = 65536
"""Bytes of one read of a destination's socket."""
KEEPALIVE_IDLE = 300
"""Seconds of silence after which the kernel asks whether a destination is still there."""


class ExitConnection(Driver):
    """The socket to `address` and `port`. `on_made(connection)` and `on_lost(connection, why)` frame its life."""

    machine: Stream

    def __init__(
        self,
        stream: Stream,
        address: str,
        port: int,
        timers: Timers,
        turn: Turn,
        on_made: Callable[[ExitConnection], None],
        on_lost: Callable[[ExitConnection, BaseException | None], None],
    ) -> None:
        super().__init__(
            stream, timers, turn, self._tell, lambda why: self._gone(on_lost, why), lambda _: self._made(on_made)
        )
        self.address = address
        self.port = port
        self._patience: Call | None = None

    def _made(self, on_made: Callable[[ExitConnection], None]) -> None:
        on_made(self)
        self.tcp.setTcpNoDelay(True)
        self._choose_read_size()
        _keep_alive(self.tcp)

    def _choose_read_size(self) -> None:
        """With many streams on a circuit each may hold little: then one read must not bring much more."""
        self.tcp.bufferSize = min(READ_MOST, self.machine.send_limit)

    def resume(self) -> None:
        if not self._reading and not self.lost:
            self._choose_read_size()
        super().resume()

    def _gone(self, on_lost: Callable[[ExitConnection, BaseException | None], None], why: BaseException | None) -> None:
        if self._patience is not None:
            self._patience.cancel()
        on_lost(self, why)

    def _tell(self, event: Any) -> None:
        if isinstance(event, StreamEnded) and event.reason != EndReason.DONE:
            self.fail(StreamError(event.reason))

    def flush(self) -> None:
        super().flush()
        if self.lost:
            return
        stream = self.machine
        if stream.paused:
            self.pause()
        else:
            self.resume()
        if stream.finished:
            if stream.closed:
                self.close()
            elif self._room:
                self.close_write()
        if self._patience is None and (stream.ended is not None or stream.local_end is not None):
            self._wait(self.bytes_in + self.bytes_out)

    def _wait(self, before: int) -> None:
        """One direction has ended: do not wait for the other for ever."""

        def late() -> None:
            now = self.bytes_in + self.bytes_out
            if now != before:
                self._wait(now)
            else:
                self.end(EndReason.TIMEOUT)

        self._patience = self._timers.at(self._timers.now() + HALF_CLOSED_TIME, late)

    def end(self, reason: int) -> None:
        """Close the connection at once, and tell the client why."""
        self.machine.abort(reason)
        self.fail(StreamError(reason))


def _keep_alive(tcp: Any) -> None:
    """Have the kernel find out when a destination is gone without a word."""
    tcp.setTcpKeepAlive(True)
    if hasattr(socket, "TCP_KEEPIDLE"):
        try:
            tcp.getHandle().setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        except OSError:
            pass  # the system's own idea, often two hours, must do
