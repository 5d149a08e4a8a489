"""Accepting connections when there are too many of them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

MAX_ACCEPTS = 32
"""Connections accepted in one turn of the reactor."""
REST = 0.1
"""Seconds without accepting after the system had no connection for us."""

ACCEPT_FAILED = "accept failed"
"""What `on_refused` hears when the system had no connection for us."""

_RESET = struct.pack("ii", 1, 0)
_ORDERLY = struct.pack("ii", 0, 0)


def accept_patiently(port: Any, reactor: Any, accepted: Callable[[], int], on_failed: Callable[[], None]) -> Any:
    """Make a listening Twisted port cheap to flood, and safe when the process has no file descriptors left.

    Connections that are closed before `accepted_for_good` are reset: a FIN would leave each of them in TIME_WAIT for a
    minute. (Accepted sockets inherit SO_LINGER.)

    Without descriptors accept(2) fails and the connection stays in the queue, so that the reactor would try again at
    once, for ever. Twisted keeps one in reserve to accept and close with, but has no way out when some thread has taken
    that. So when `accepted()`, a counter, is the same after a turn, the port rests, and `on_failed` is called.
    """
    port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    accept = port.doRead

    def read() -> None:
        before = accepted()
        port.numberAccepts = min(port.numberAccepts, MAX_ACCEPTS)
        accept()
        if accepted() == before:
            port.stopReading()
            reactor.callLater(REST, go_on)
            on_failed()

    def go_on() -> None:
        if port.connected and not port.disconnecting:
            port.startReading()

    port.doRead = read
    return port


def accepted_for_good(tcp: Any) -> None:
    """From now on a Twisted TCP transport closes with FIN, and what is unsent then is still sent."""
    tcp.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ORDERLY)
