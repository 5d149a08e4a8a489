"""The application's side of a session, without a network."""

from __future__ import annotations

from typing import Any, Self

from backrooms.node.requests import StreamRequest
from backrooms.proxy.events import Abort, Close, Event, HandOver, Limits
from backrooms.proxy.forward import ForwardSession
from backrooms.proxy.isolation import Isolation
from backrooms.proxy.request import Dialect, Request
from backrooms.proxy.session import ProxySession
from backrooms.proxy.socks import SocksParser, socks4_reply
from backrooms.proxy.tunnel import Tunnel
from backrooms.wire.relay import EndReason
from tests.proxy.fakes import Echo, Ends, FakeOpener, FakeStream, Server, Silent

LIMITS = Limits(request=30, answer=120, half_closed=600, linger=2, idle=60)
CONNECT_4A = b"\x04\x01\x00\x50\x00\x00\x00\x01\x00%s\x00"
RESOLVE_4A = b"\x04\xf0\x00\x00\x00\x00\x00\x01\x00%s\x00"
GRANTED_4A = socks4_reply(0x5A)
REJECTED_4A = socks4_reply(0x5B)


class Application:
    """What a driver does, with room to write at all times, and what the application sees."""

    def __init__(self, dialect: Dialect | None = None, **servers: Server) -> None:
        self.opener = FakeOpener(
            echo_example=Echo(),
            silent_example=Silent(),
            refused_example=Ends(EndReason.CONNECTREFUSED),
            **servers,
        )
        self.isolation = Isolation("test")
        self.let_go: list[FakeStream] = []
        self.session: Any = self.make_session(dialect or SocksParser())
        self.session.on_dirty = self.dirty
        self.dirty_calls = 0
        self.seen = b""
        self.told: list[Event] = []

    def plan(self, request: Request) -> StreamRequest:
        return self.isolation.stream_request(request, "127.0.0.1", "127.0.0.1:5")

    def make_session(self, dialect: Dialect) -> Tunnel:
        return ProxySession(dialect, self.plan, self.opener.open, 0.0, LIMITS)

    def dirty(self) -> None:
        self.dirty_calls += 1

    @property
    def stream(self) -> FakeStream:
        return self.opener.streams[-1]

    def turn(self) -> Self:
        """Dispatch and write until there is nothing more."""
        for _ in range(100):
            self.dirty_calls = 0
            events = self.session.events()
            self.told += events
            data = self.session.output()
            assert len(data) <= 65536
            self.seen += data
            if not events and not data and not self.dirty_calls:
                return self
        raise AssertionError("the session does not come to rest")

    def send(self, data: bytes, now: float = 1.0) -> Self:
        self.session.receive(data, now)
        return self.turn()

    def eof(self, now: float = 1.0) -> Self:
        self.session.receive_eof(now)
        return self.turn()

    def tick(self, now: float) -> Self:
        self.session.tick(now)
        return self.turn()

    def of(self, *kinds: type) -> list[Event]:
        return [event for event in self.told if isinstance(event, kinds)]

    @property
    def endings(self) -> list[Event]:
        return self.of(Close, Abort)


class Browser(Application):
    """An application of the HTTP proxy. `password` is the listener's."""

    def __init__(self, password: bytes = b"", **servers: Server) -> None:
        self.password = password
        super().__init__(None, web_example=Server(), **servers)

    def make_session(self, dialect: Dialect) -> Tunnel:
        return ForwardSession(self.plan, self.opener.open, self._let_go, 0.0, LIMITS, self.password)

    def _let_go(self, stream: Any) -> None:
        self.let_go.append(stream)

    def get(self, url: str = "http://web.example/", *headers: str, method: str = "GET", now: float = 1.0) -> Self:
        """Ask for a page."""
        lines = [f"{method} {url} HTTP/1.1", f"Host: {url.split('/')[2]}", *headers, "", ""]
        self.send("\r\n".join(lines).encode(), now)
        return self

    def serve(self, data: bytes) -> Self:
        """The server of the last stream says this."""
        self.stream.send(data)
        self.turn()
        return self

    def read(self) -> bytes:
        """What was seen since the last call."""
        seen, self.seen = self.seen, b""
        return seen

    @property
    def handed_over(self) -> list[bytes]:
        return [event.data for event in self.told if isinstance(event, HandOver)]
