"""The proxies of a real client in a simulated network: plain HTTP, look-ups over DNS, names that stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Site

from backrooms.errors import StreamError
from backrooms.node.circuits import Circuits
from backrooms.node.requests import StreamRequest, TryAgain
from backrooms.proxy.addressmap import AddressMap
from backrooms.proxy.dnsport import DnsPort
from backrooms.proxy.listeners import ProxyListener
from backrooms.wire.relay import EndReason, Resolved
from tests.proxy.test_dns import question, read
from tests.simnet.node import SimNetwork

HTTP_PORT = 9080
GET = b"GET http://web.example/%s HTTP/1.1\r\nHost: web.example\r\n\r\n"


class Page(Resource):
    """Its path, or as many bytes as it says; of a POST, how many bytes came."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.connections: set[Any] = set()
        self.headers: set[bytes] = set()

    def render_GET(self, request: Any) -> bytes:
        self.connections.add(request.channel)
        self.headers |= {name.lower() for name, _ in request.requestHeaders.getAllRawHeaders()}
        path: bytes = request.path[1:]
        return bytes(int(path)) if path.isdigit() else path

    def render_POST(self, request: Any) -> bytes:
        return b"%d bytes" % len(request.content.read())


class Talk(Protocol):
    """Sends and collects."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.seen = b""
        self.done: Deferred[bytes] = Deferred()

    @property
    def tcp(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        self.tcp.write(self.data)

    def dataReceived(self, data: bytes) -> None:
        self.seen += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.done.callback(self.seen)


class Setting:
    """A ready network whose client has an HTTP proxy, and a web server."""

    def __init__(self, folder: Path) -> None:
        self.network = SimNetwork(folder)
        self.net = self.network.net
        self.network.start()
        self.network.ready()
        self.page = Page()
        self.network.web.reactor.listenTCP(80, Site(self.page, reactor=self.network.web.reactor))  # type: ignore[no-untyped-call]
        self.node = self.network.client.node
        self.reactor: Any = self.network.client.host.reactor
        self.proxy = self.listener()
        self.net.run_until(Deferred.fromCoroutine(self.proxy.start()))

    @property
    def circuits(self) -> Circuits:
        assert self.node.circuits is not None
        return self.node.circuits

    def listener(self) -> ProxyListener:
        endpoint = f"tcp:{HTTP_PORT}:interface=127.0.0.1"
        return ProxyListener("http", endpoint, self.circuits.streams, self.node.timers, self.node.turn, self.reactor)

    def talk(self, data: bytes) -> Talk:
        talk = Talk(data)
        endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", HTTP_PORT)
        self.net.run_until(endpoint.connect(Factory.forProtocol(lambda: talk)))
        return talk

    def asked(self, host: str, **options: Any) -> StreamRequest:
        return StreamRequest(host, 80, ("test",), None, "127.0.0.1:5", "SOCKS5")

    def stop(self) -> None:
        self.net.run_until(Deferred.fromCoroutine(self.proxy.stop()))
        self.network.stop()


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    made = Setting(tmp_path)
    yield made
    made.stop()


def test_pages_over_one_stream(setting: Setting) -> None:
    talk = setting.talk(GET % b"one" + GET % b"two")
    setting.net.run_until(lambda: talk.seen.endswith(b"\r\n\r\ntwo"))
    assert talk.seen.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert len(setting.page.connections) == 1
    assert len(setting.circuits.streams.streams) == 1
    assert setting.page.headers == {b"host"}
    talk.tcp.loseConnection()
    setting.net.run_until(talk.done)
    setting.net.run_until(lambda: not setting.circuits.streams.streams, 5)


def test_a_server_that_closes_meanwhile(setting: Setting) -> None:
    talk = setting.talk(GET % b"one")
    setting.net.run_until(lambda: talk.seen.endswith(b"\r\n\r\none"))
    for channel in setting.page.connections:
        channel.transport.loseConnection()  # it is still on its way when the next request leaves
    talk.tcp.write(GET % b"two")
    setting.net.run_until(lambda: talk.seen.endswith(b"\r\n\r\ntwo"))
    assert len(setting.page.connections) == 2
    talk.tcp.loseConnection()
    setting.net.run_until(talk.done)


def test_a_large_page_and_a_large_post(setting: Setting) -> None:
    size = 2_000_000
    talk = setting.talk(GET % b"%d" % size)
    setting.net.run_until(lambda: len(talk.seen) > size, 120)
    assert talk.seen.endswith(bytes(1000))
    post = b"POST http://web.example/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    talk.tcp.loseConnection()
    setting.net.run_until(talk.done)
    other = setting.talk(post % size + bytes(size))
    answer = setting.net.run_until(other.done, 120)
    assert answer.endswith(b"\r\n\r\n%d bytes" % size)


def test_a_circuit_that_dies_in_the_middle(setting: Setting) -> None:
    talk = setting.talk(GET % b"50000000")
    setting.net.run_until(lambda: len(talk.seen) > 100_000, 60)
    (circuit,) = setting.network.used()
    setting.network.relay(circuit.exit.id).host.kill()
    answer = setting.net.run_until(talk.done, 200)
    assert len(answer) < 50_000_000


def test_nobody_there(setting: Setting) -> None:
    for target, code in ((b"web.example:81", b"403"), (b"nowhere.example", b"503")):
        talk = setting.talk(b"GET http://%s/ HTTP/1.1\r\nHost: a\r\n\r\n" % target)
        assert setting.net.run_until(talk.done, 60).startswith(b"HTTP/1.1 %s " % code)


class Wire:
    """Where a DNS port sends."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def write(self, data: bytes, addr: object) -> None:
        self.sent.append(read(data))


def test_dns_questions_are_answered_by_the_exit(setting: Setting) -> None:
    mapped = AddressMap(setting.network.client.host.rng, automap=True)
    port = DnsPort(
        "udp:53:interface=127.0.0.1", setting.circuits.streams, setting.node.timers, setting.reactor, addresses=mapped
    )
    wire = Wire()
    port.transport = wire  # type: ignore[assignment]
    for name in (b"web.example", b"nowhere.example", b"some.backrooms", b"other.onion"):
        port.datagramReceived(question(name), ("127.0.0.1", 7))
    setting.net.run_until(lambda: len(wire.sent) == 4, 60)
    answers = {str(answer.queries[0].name): answer for answer in wire.sent}
    assert answers["web.example"].answers[0].payload.dottedQuad() == setting.network.web.address
    assert {name: answer.rCode for name, answer in answers.items() if answer.rCode} == {
        "nowhere.example": 3,
        "other.onion": 3,
    }
    virtual = answers["some.backrooms"].answers[0].payload.dottedQuad()
    assert mapped.apply("connect", virtual) == "some.backrooms"
    exits = {node.host.name for node in setting.network.exits}
    looked_up = {(host, name) for _, host, name in setting.net.lookups}
    assert {host for host, _ in looked_up} <= exits
    assert {name for _, name in looked_up} == {"web.example", "nowhere.example"}


def test_names_of_other_networks_reach_no_exit(setting: Setting) -> None:
    streams = setting.circuits.streams
    for host in ("some.onion", "Some.Onion.".lower(), "a.b.backrooms", "backrooms", "www.example.exit"):
        stream = streams.open(setting.asked(host))
        assert stream.ended == EndReason.RESOLVEFAILED
        with pytest.raises(StreamError):
            setting.net.run_until(streams.resolve(setting.asked(host)))
    assert not streams.open(setting.asked("onion.example")).closed
    assert setting.net.lookups == []


@pytest.mark.parametrize("again", [False, True])
def test_an_exit_that_cannot_tell_now(setting: Setting, again: bool) -> None:
    """Whether trying again may help is told apart from a name that does not exist."""
    streams = setting.circuits.streams
    asking: Deferred[Any] = streams.resolve(setting.asked("nowhere.example"))
    (item,) = streams.streams.values()
    assert item.on_resolved is not None
    item.on_resolved(Resolved((), again))
    with pytest.raises(StreamError) as caught:
        setting.net.run_until(asking)
    assert caught.value.reason == EndReason.RESOLVEFAILED
    assert isinstance(caught.value, TryAgain) == again
