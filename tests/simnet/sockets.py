"""A simulated TCP socket: what Twisted's own `tcp.Client`, `tcp.Server` and `tcp.Port` need of one."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

from tests.simnet.pipe import SYN_RTO, Kind, Pipe

if TYPE_CHECKING:
    from tests.simnet.network import Host
    from tests.simnet.reactor import SimReactor

SYN_RETRIES = 6
"""As Linux: 1, 2, 4, ... seconds apart, 127 s in all."""

TCP_NOTSENT_LOWAT = 25
"""Linux's number of that option; Python has no name for it."""

SEND_BUFFER = 65_536

Address = tuple[Any, ...]

_SEND_LIMITS = ((socket.SOL_SOCKET, socket.SO_SNDBUF), (socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT))


def oserror(number: int) -> OSError:
    """The OSError of an errno."""
    return OSError(number, os.strerror(number))


class SimSocket:
    """One end of a simulated connection, or a listener.

    The kernel's part of TCP: it goes on while the process that owns it is frozen. `send` takes at most what
    is free in a send buffer of `send_limit` bytes (SO_SNDBUF, TCP_NOTSENT_LOWAT), which counts unsent bytes.
    """

    def __init__(self, host: Host, process: SimReactor, family: int, number: int) -> None:
        self.host = host
        self.process = process
        self.family = family
        self.local: Address = ("", 0)
        self.remote: Address | None = None
        self.out: Pipe | None = None
        self.back: Pipe | None = None
        self.error = 0
        self.eof = False
        self.closed = False
        self.connected = False
        self.listening = False
        self.backlog = 0
        self.send_limit = SEND_BUFFER
        self.receive_buffer = 0
        self.options: dict[tuple[int, int], Any] = {}
        # The descriptors that wait for this socket, and whether the process has been told already.
        self.reader: Any = None
        self.writer: Any = None
        self.told = False
        self.number = number
        self._received = bytearray()
        self._queue: deque[SimSocket] = deque()
        self._half_open = 0
        self._shut = False
        self._dead = False
        self._listener: SimSocket | None = None
        self._tries = 0

    def __repr__(self) -> str:
        return f"<SimSocket {self.number} {self.local} -> {self.remote}>"

    # what the process asks

    def fileno(self) -> int:
        return -1 if self.closed else self.number

    def setblocking(self, flag: bool) -> None:
        if flag:
            raise ValueError("simulated sockets never block")

    def getsockname(self) -> Address:
        return self.local

    def getpeername(self) -> Address:
        if self.remote is None or not self.connected:
            raise oserror(errno.ENOTCONN)
        return self.remote

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR):
            number, self.error = self.error, 0
            return number
        if size:
            return bytes(size)
        return int(self.options.get((level, option), 0))

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        self.options[level, option] = value
        if (level, option) in _SEND_LIMITS:
            self.send_limit = int(value)
        elif (level, option) == (socket.SOL_SOCKET, socket.SO_RCVBUF):
            self.receive_buffer = int(value)

    def bind(self, address: Address) -> None:
        self.local = self.host.bind(self, address)

    def listen(self, backlog: int) -> None:
        self.listening = True
        self.backlog = max(1, backlog)
        self.host.listeners[self.local[0], self.local[1]] = self

    def accept(self) -> tuple[SimSocket, Address]:
        if not self._queue:
            raise oserror(errno.EWOULDBLOCK)
        new = self._queue.popleft()
        assert new.remote is not None
        return new, new.remote

    def connect_ex(self, address: Address) -> int:
        if self.connected:
            return errno.EISCONN
        if self.remote is not None:
            return errno.EALREADY
        target = self.host.net.find(self.host, address[0])
        if target is None or not self.host.has_family(address[0]):
            return errno.ENETUNREACH
        if not self.local[1]:
            self.local = self.host.ephemeral(self.local[0] or address[0])
        self.remote = tuple(address)
        self._connect(target)
        return errno.EINPROGRESS

    def send(self, data: bytes | memoryview) -> int:
        if self.error or self._dead or self._shut or self.out is None:
            raise oserror(self.error or errno.EPIPE)
        room = self.send_limit - len(self.out.unsent)
        if room <= 0:
            raise oserror(errno.EWOULDBLOCK)
        taken = bytes(data[:room])
        if taken:
            self.out.write(taken)
        return len(taken)

    def recv(self, size: int) -> bytes:
        if self._received:
            data = bytes(self._received[:size])
            del self._received[:size]
            if self.back is not None:
                delay = self.host.net.path(self.host, self.back.source.host).link.delay
                self.host.net.clock.call_later(delay, None, self.back.acked, len(data))
            return data
        if self.eof:  # Linux keeps to the end of file even if a reset follows
            return b""
        if self.error:
            raise oserror(self.error)
        if self._dead:
            return b""
        raise oserror(errno.EWOULDBLOCK)

    def shutdown(self, how: int) -> None:
        if not self.connected:
            raise oserror(errno.ENOTCONN)
        if how != socket.SHUT_RD:
            self._shut = True
            if self.out is not None and not self._dead:
                self.out.finish()

    def close(self) -> None:
        """As Linux: RST if unread bytes are thrown away or SO_LINGER is (1, 0), else FIN after the rest."""
        if self.closed:
            return
        self.closed = True
        self.host.forget(self)
        if self.listening:
            while self._queue:
                self._queue.popleft().reset()
            return
        linger = self.options.get((socket.SOL_SOCKET, socket.SO_LINGER))
        if self._received or linger == struct.pack("ii", 1, 0):
            self.reset()
        elif self.out is not None and not self._dead:
            self.out.finish()

    # what the process waits for

    def readable(self) -> bool:
        return bool(self._received or self.eof or self.error or self._queue or self._dead)

    def writable(self) -> bool:
        if self.error or self._dead:
            return True
        # As Linux: there is room when a third of the buffer is free.
        return self.connected and self.out is not None and 3 * len(self.out.unsent) <= 2 * self.send_limit

    def unread(self) -> int:
        """Bytes that have arrived and were not read."""
        return len(self._received)

    def poke(self) -> None:
        """Something may have changed: tell the process, once."""
        if self.told or self.closed:
            return
        to_read = self.reader is not None and self.readable()
        to_write = self.writer is not None and self.writable()
        if to_read or to_write:
            self.told = True
            self.process.soon(self.process.poll, self)

    # what the network brings

    def arrived(self, kind: Kind, data: bytes) -> None:
        """A segment is here."""
        if kind is Kind.RST:
            self._fail(errno.ECONNRESET)
        elif kind is Kind.ACK:
            self._established_as_server()
        elif self.closed:
            if kind is Kind.DATA or self._dead:
                self.reset()
        elif self._dead:
            return
        elif kind is Kind.FIN:
            self.eof = True
            self.poke()
        else:
            self._received += data
            self.poke()

    def cut_off(self) -> None:
        """A box on the way has forgotten the connection: both ends hear of a reset."""
        if self.connected and self.out is not None:
            self.out.reset()
            self._fail(errno.ECONNRESET)

    def timed_out(self) -> None:
        """The other end has not answered for too long."""
        self._fail(errno.ETIMEDOUT)

    def reset(self) -> None:
        """Tell the other end that this connection is no more."""
        self._dead = True
        self._received.clear()
        if self.out is not None:
            self.out.reset()

    def vanish(self) -> None:
        """The machine lost power: nothing more is sent."""
        self.closed = True
        self._dead = True
        self._received.clear()
        if self.out is not None:
            self.out.drop()

    def _fail(self, number: int) -> None:
        if self._dead:
            return
        self._dead = True
        self.error = number
        if self._listener is not None:
            self._listener._half_open -= 1
            self._listener = None
        if self.out is not None:
            self.out.drop()
        self.poke()

    # the handshake

    def _connect(self, target: Host) -> None:
        """Send a SYN, and again while nobody answers."""
        if self.closed or self.connected:
            return
        net = self.host.net
        if self._tries > SYN_RETRIES:
            self._fail(errno.ETIMEDOUT)
            return
        again_at = net.clock.now + SYN_RTO * 2**self._tries
        self._tries += 1
        trip = net.path(self.host, target).trip(SYN_RTO)
        net.clock.call_later(trip, None, self._syn_arrived, target, again_at)

    def _syn_arrived(self, target: Host, again_at: float) -> None:
        net = self.host.net
        assert self.remote is not None
        there = net.path(self.host, target)
        back = net.path(target, self.host)
        here = target.inside(self.remote)
        listener = target.listener(here) if here is not None else None
        full = listener is not None and len(listener._queue) + listener._half_open >= listener.backlog
        if there.blocked or back.cut or full or here is None:
            net.clock.call_later(max(0.0, again_at - net.clock.now), None, self._connect, target)
            return
        trip = back.trip(SYN_RTO)
        if listener is None:
            net.clock.call_later(trip, None, self._fail, errno.ECONNREFUSED)
            return
        server = target.socket(listener.process, self.family)
        server._listener = listener
        server.local, server.remote = here, self.local if target is self.host else self.host.outside(self.local)
        server.send_limit = listener.send_limit
        server.receive_buffer = listener.receive_buffer
        listener._half_open += 1
        net.connections += 1
        number = net.connections
        self.out = server.back = Pipe(there, self, server, number, outward=True)
        self.back = server.out = Pipe(back, server, self, number, outward=False)
        net.clock.call_later(trip, None, self._established)

    def _established(self) -> None:
        assert self.out is not None
        if self.closed:  # given up meanwhile
            self.reset()
            return
        self.connected = True
        self.out.launch(Kind.ACK)
        self.poke()

    def _established_as_server(self) -> None:
        listener = self._listener
        if listener is None:  # this end gave up first
            return
        listener._half_open -= 1
        self._listener = None
        if self.closed or self._dead:
            return
        if listener.closed:
            self.reset()
            self.close()
            return
        self.connected = True
        listener._queue.append(self)
        listener.poke()
