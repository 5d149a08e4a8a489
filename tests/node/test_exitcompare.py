"""The same page through several exits."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import Factory, Protocol

from backrooms.errors import ConfigError
from backrooms.node.exitcompare import Url
from tests import keys
from tests.simnet.node import SimNetwork

PORT, TLS_PORT = 80, 443


class Page(Protocol):
    """Answers a request with what `show` says for the address of who asks."""

    def __init__(self, show: Callable[[str], bytes]) -> None:
        self._show = show
        self._got = b""

    def dataReceived(self, data: bytes) -> None:
        tcp: Any = self.transport
        self._got += data
        if b"\r\n\r\n" in self._got:
            body = self._show(tcp.getPeer().host)
            tcp.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            tcp.loseConnection()


class Secure(Protocol):
    """Shakes hands with one of two certificates."""

    def __init__(self, folder: Path, number: Callable[[str], int]) -> None:
        self._folder = folder
        self._number = number

    def connectionMade(self) -> None:
        tcp: Any = self.transport
        key, certificate = keys.tls_pair(self._number(tcp.getPeer().host))
        file = self._folder / f"{id(self)}.pem"
        file.write_bytes(key + certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)

    def dataReceived(self, data: bytes) -> None:
        tcp: Any = self.transport
        self._in.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        tcp.write(self._out.read())


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimNetwork]:
    """Six relays, three of them exits."""
    network = SimNetwork(tmp_path_factory.mktemp("exits"), exits=3)
    network.start()
    network.ready()
    yield network
    network.stop()


def compare(network: SimNetwork, url: str) -> dict[str, Any]:
    """What an investigation says of a page."""
    found = network.client.node.investigator
    assert found is not None
    found.begin("all", 0.1, url)
    inquiry = found.inquiry
    assert inquiry is not None
    network.net.run_until(lambda: inquiry.state != "running", 240)
    report: Any = found.report()
    exits: dict[str, Any] = report["exits"]
    return exits


def serve(network: SimNetwork, make: Callable[[], Protocol], port: int = PORT) -> None:
    network.web.reactor.listenTCP(port, Factory.forProtocol(make))


def test_who_shows_another_page_is_named(network: SimNetwork) -> None:
    bad = network.exits[1].host
    serve(network, lambda: Page(lambda peer: b"evil" if peer == bad.address else b"good"))
    found = compare(network, "http://web.example/x?y=1")
    assert found["verdict"] == f"not the same as through the others by {bad.name}"
    assert len(found["looks"]) == 4, "three exits, the first one twice"


def test_the_same_page_is_the_same(network: SimNetwork) -> None:
    serve(network, lambda: Page(lambda peer: b"good" * 50_000), 81)
    found = compare(network, "http://web.example:81/")
    assert found["verdict"] == "the same through 3 exits"
    assert found["looks"][0]["shown"].startswith("status 200, 200000 bytes, SHA-256 ")


def test_a_page_that_changes_by_itself_proves_nothing(network: SimNetwork) -> None:
    numbers = iter(range(100))
    serve(network, lambda: Page(lambda peer: b"%d" % next(numbers)), 82)
    assert "changes by itself" in compare(network, "http://web.example:82/")["verdict"]


def test_a_page_that_nobody_serves(network: SimNetwork) -> None:
    found = compare(network, "http://web.example:83/")
    assert found["verdict"] == "fewer than two exits showed it"
    assert "CONNECTREFUSED" in found["looks"][0]["error"]


def test_another_certificate_is_seen(network: SimNetwork, tmp_path: Path) -> None:
    bad = network.exits[2].host
    serve(network, lambda: Secure(tmp_path, lambda peer: int(peer == bad.address)), TLS_PORT)
    found = compare(network, "https://web.example/")
    assert found["verdict"] == f"not the same as through the others by {bad.name}"
    assert found["looks"][0]["shown"].startswith("certificate with SHA-256 ")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://a.example", Url(False, "a.example", 80, "/")),
        ("https://A.example:8443/x?y", Url(True, "a.example", 8443, "/x?y")),
        ("http://[2001:db8::1]:81/", Url(False, "2001:db8::1", 81, "/")),
    ],
)
def test_pages_that_can_be_compared(text: str, url: Url) -> None:
    assert Url.parse(text) == url


@pytest.mark.parametrize(
    "text",
    ["", "x", "http://", "ftp://a/", "http://a:99999/", "http://a/\r\nX: 1", "http://ü/", "http://u:p@a/", "http://1/"],
)
def test_pages_that_cannot(text: str) -> None:
    with pytest.raises(ConfigError, match="no page to compare"):
        Url.parse(text)
