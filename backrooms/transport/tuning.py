"""Socket options of links."""

from __future__ import annotations

import socket
import sys
from typing import Any

READ_SIZE = 262_144
"""Bytes of one read from the socket; measured best."""
NOTSENT_LOWAT = 131_072
"""Bytes the kernel keeps unsent before it stops asking for more: they can no longer be overtaken."""
TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)


def tune_tcp(tcp: Any) -> None:
    """Set up a Twisted TCP transport for a link."""
    tcp.setTcpNoDelay(True)
    tcp.setTcpKeepAlive(True)
    if TCP_NOTSENT_LOWAT is not None:
        try:
            tcp.getHandle().setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOTSENT_LOWAT)
        except OSError:
            pass  # an old kernel: more bytes wait in the socket than we would like
