"""txtorcon's SOCKS client as an application: streams by host name, look-ups both ways."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from txtorcon import socks

from tests.proxy.loopback import Proxies, until


class Reader(Protocol):
    """Sends a request and collects the answer."""

    def __init__(self) -> None:
        self.answer = b""
        self.done: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"GET / HTTP/1.0\r\n\r\n")

    def dataReceived(self, data: bytes) -> None:
        self.answer += data

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.done.callback(self.answer)


async def test_stream(proxies: Proxies) -> None:

    port = await proxies.start("socks")
    tor = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    endpoint = socks.TorSocksEndpoint(tor, "web.example", 80)
    reader = await connectProtocol(endpoint, Reader())  # type: ignore[no-untyped-call]
    assert (await reader.done).endswith(b"hello from the web\n")
    assert proxies.request.protocol == "SOCKS5"
    await until(lambda: len(proxies.listener) == 0)


async def test_look_ups(proxies: Proxies) -> None:
    proxies.opener.addresses["web.example"] = ["1.2.3.4"]
    proxies.opener.names["1.2.3.4"] = ["web.example"]
    port = await proxies.start("socks")
    tor = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    assert str(await socks.resolve(tor, "web.example")) == "1.2.3.4"
    assert await socks.resolve_ptr(tor, "1.2.3.4") == b"web.example"
    await until(lambda: len(proxies.listener) == 0)
