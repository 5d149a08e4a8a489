"""Writing to a socket at once, instead of in the reactor's next turn."""

from __future__ import annotations

from typing import Any


def write_now(tcp: Any, data: bytes) -> bool:
    """Write to a Twisted stream transport that has nothing unsent; True when the kernel took all of it.

    What it did not take waits in the transport, which asks its pull producer again when that has gone. A full turn
    through the reactor costs two `epoll_ctl` calls and a wake-up per write, which is more than sending a few cells.
    """
    sent = tcp.writeSomeData(data)
    if not isinstance(sent, int):  # the connection is lost: let the transport find out in its own way
        sent = 0
    if sent == len(data):
        return True
    tcp.write(data[sent:] if sent else data)
    return False
