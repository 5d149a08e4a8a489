"""The application's side of a session, without a network."""

from __future__ import annotations

from backrooms.proxy.isolation import Isolation
from backrooms.proxy.request import Dialect
from backrooms.proxy.session import Abort, Close, Event, Limits, ProxySession
from backrooms.proxy.socks import SocksParser, socks4_reply
from backrooms.wire.relay import EndReason
from tests.proxy.fakes import Echo, Ends, FakeOpener, FakeStream, Server, Silent

LIMITS = Limits(request=30, answer=120, half_closed=600, linger=2)
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
        isolation = Isolation("test")
        self.session = ProxySession(
            dialect or SocksParser(),
            lambda request: isolation.stream_request(request, "127.0.0.1", "127.0.0.1:5"),
            self.opener.open,
            0.0,
            LIMITS,
        )
        self.session.on_dirty = self.dirty
        self.dirty_calls = 0
        self.seen = b""
        self.told: list[Event] = []

    def dirty(self) -> None:
        self.dirty_calls += 1

    @property
    def stream(self) -> FakeStream:
        return self.opener.streams[-1]

    def turn(self) -> Application:
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

    def send(self, data: bytes, now: float = 1.0) -> Application:
        self.session.receive(data, now)
        return self.turn()

    def eof(self, now: float = 1.0) -> Application:
        self.session.receive_eof(now)
        return self.turn()

    def tick(self, now: float) -> Application:
        self.session.tick(now)
        return self.turn()

    def of(self, *kinds: type) -> list[Event]:
        return [event for event in self.told if isinstance(event, kinds)]

    @property
    def endings(self) -> list[Event]:
        return self.of(Close, Abort)
