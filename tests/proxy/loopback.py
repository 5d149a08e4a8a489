"""Proxies on loopback sockets, and a conversation with one."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from backrooms.node.driver import Turn
from backrooms.node.requests import StreamRequest
from backrooms.node.timers import Timers
from backrooms.proxy.listeners import ProxyListener
from backrooms.proxy.socks import socks4_reply
from backrooms.wire.relay import EndReason
from tests.proxy.fakes import BreaksOff, Echo, Ends, FakeOpener, FakeStream, Server, Silent, Web

BODY = os.urandom(3_000_000)
CONNECT_4A = b"\x04\x01\x00\x50\x00\x00\x00\x01\x00%s\x00"
GRANTED_4A = socks4_reply(0x5A)
REJECTED_4A = socks4_reply(0x5B)


class Sink(Server):
    """Counts what it gets and answers with its hash when the request says that it is all there."""

    def on_data(self, stream: FakeStream, data: bytes) -> None:
        head, found, body = bytes(stream.received).partition(b"\r\n\r\n")
        if b"100-continue" in head and not body and stream.ended is None and not stream._out:
            stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if found and len(body) == len(BODY):
            digest = hashlib.sha256(body).hexdigest().encode()
            stream.send(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(digest), digest))
            stream.end()


class Proxies:
    """What a test starts; all of it is stopped when the test is over."""

    def __init__(self) -> None:
        self.timers = Timers(reactor)
        self.turn = Turn(reactor)
        self.opener = FakeOpener(
            web_example=Web(b"hello from the web\n"),
            big_example=Web(BODY),
            sink_example=Sink(),
            echo_example=Echo(),
            silent_example=Silent(),
            quiet_example=Server(),
            refused_example=Ends(EndReason.CONNECTREFUSED),
            forbidden_example=Ends(EndReason.EXITPOLICY),
            breaks_example=BreaksOff(b"HTTP/1.0 200 OK\r\n\r\nhalf of it"),
        )
        self.opener.servers["127.0.0.1"] = self.opener.servers["web.example"]
        self.listeners: list[ProxyListener] = []

    async def start(self, kind: Any, endpoint: str = "tcp:0:interface=127.0.0.1", **options: Any) -> int:
        """The port of a new proxy."""
        listener = ProxyListener(kind, endpoint, self.opener, self.timers, self.turn, reactor, **options)
        self.listeners.append(listener)
        port = await listener.start()
        return int(getattr(port.getHost(), "port", 0))

    @property
    def listener(self) -> ProxyListener:
        return self.listeners[-1]

    @property
    def request(self) -> StreamRequest:
        return self.opener.requests[-1]

    async def stop(self) -> None:
        for listener in self.listeners:
            await listener.stop()
        self.timers.close()


def converse(address: Any, data: bytes, end: bool) -> bytes:
    """Send `data`, shut the writing side if `end`, read to EOF; a reset shows as b"RESET" at the end."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as application:
        application.settimeout(10)
        application.connect(address)
        application.sendall(data)
        if end:
            application.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while piece := application.recv(65536):
                answer += piece
        except ConnectionResetError:
            answer += b"RESET"
        return answer


def exchange(address: Any, data: bytes, end: bool = False) -> Deferred[bytes]:
    """`converse` with a proxy: a path, or a port of 127.0.0.1."""
    where = ("127.0.0.1", address) if isinstance(address, int) else address
    return deferToThread(converse, where, data, end)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await deferLater(reactor, 0.01)
    raise AssertionError("it did not happen within 5 s")
