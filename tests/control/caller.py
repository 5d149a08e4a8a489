"""A controller made of a blocking socket."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeVar

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from backrooms.control.grammar import Reply, ReplyReader
from tests.control.fakes import Served

T = TypeVar("T")

LOOPBACK = "tcp:0:interface=127.0.0.1"


class Caller:
    """A controller made of a blocking socket; everything here runs in a thread."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(address)
        self._reader = ReplyReader()
        self._replies: list[Reply] = []

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> Reply | None:
        """The next reply or event, None when the node has closed."""
        while not self._replies:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._replies = self._reader.feed(data)
        return self._replies.pop(0)

    def ask(self, line: str) -> str:
        self.send(line.encode() + b"\r\n")
        return self.text()

    def text(self) -> str:
        answer = self.reply()
        return "closed" if answer is None else f"{answer.code} {answer.text}"

    def enter(self, served: Served) -> None:
        assert self.ask(f"AUTHENTICATE {served.cookie_path.read_bytes().hex()}") == "250 OK"


def tcp_address(served: Served) -> tuple[str, int]:
    (address,) = served.server.addresses()
    host, port = address.rsplit(":", 1)
    return host, int(port)


async def threaded(function: Callable[[], T]) -> T:
    return await deferToThread(function)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await deferLater(reactor, 0.01)
    raise AssertionError("it did not happen within 5 s")
