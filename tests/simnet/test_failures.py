"""What goes wrong in a simulated network, and that it goes wrong the same way every time."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import pytest
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import (
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    NoRouteError,
)
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.protocol import Factory

from tests.simnet.network import Host, SimNet
from tests.simnet.observer import Observer
from tests.simnet.pairs import Pair, Recorder, accepting, ended_by, refused


def test_partition_delays_and_then_kills() -> None:
    pair = Pair()
    pair.client.tcp.write(b"before ")
    pair.net.run(1)
    heal = pair.net.partition(pair.b)
    pair.client.tcp.write(b"meanwhile")
    pair.net.run(30)
    assert pair.server.received == b"before "
    heal()
    begin = pair.net.now
    pair.net.run_until(lambda: pair.server.received == b"before meanwhile")
    assert 0 < pair.net.now - begin < 30  # TCP tries again after a doubling timeout
    pair.net.partition(pair.b)
    pair.server.tcp.write(b"lost")
    pair.net.run(900)
    assert pair.server.lost is None
    pair.net.run(60)
    assert ended_by(pair.server, ConnectionLost)
    assert not pair.client.lost, "who has nothing to send does not notice"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_killed_process(how: Any) -> None:
    pair = Pair()
    ticks: list[float] = []
    pair.b.reactor.callLater(5, lambda: ticks.append(pair.net.now))
    pair.b.kill(how)
    pair.net.run(10)
    assert ended_by(pair.client, ConnectionDone if how == "close" else ConnectionLost)
    assert pair.server.lost is None, "the dead hear nothing"
    assert ticks == []
    assert isinstance(refused(pair.net, pair.a, pair.b.address, 7), ConnectionRefusedError)
    servers: list[Recorder] = []
    pair.b.boot().listenTCP(7, accepting(pair.net, Recorder, servers))
    pair.connect()
    pair.net.run(1)
    assert len(servers) == 1


def test_silent_host() -> None:
    pair = Pair()
    pair.b.kill("silent")
    pair.client.tcp.write(b"anybody?")
    pair.net.run(60)
    assert pair.client.lost is None
    assert isinstance(refused(pair.net, pair.a, pair.b.address, 7, 10), ConnectTimeout)
    pair.b.boot()
    pair.net.run(200)
    assert ended_by(pair.client, ConnectionLost), "the new kernel does not know the connection"


def test_frozen_process() -> None:
    pair = Pair(window=20_000)
    calls: list[str] = []
    pair.b.reactor.callLater(1, calls.append, "timer")
    cancelled = pair.b.reactor.callLater(1, calls.append, "cancelled")
    pair.b.freeze()
    pair.client.tcp.write(bytes(500_000))
    pair.net.run(10)
    assert calls == []
    assert pair.server.received == b""
    assert pair.server.tcp.socket.unread() == 20_000
    cancelled.cancel()
    pair.b.thaw()
    pair.net.run(0)
    assert calls == ["timer"]
    pair.net.run(10)
    assert len(pair.server.received) == 500_000


def test_an_error_in_a_protocol_costs_its_connection(clean: Any) -> None:
    class Broken(Recorder):
        def dataReceived(self, data: bytes) -> None:
            raise ZeroDivisionError

    pair = Pair(Broken)
    pair.client.tcp.write(b"x")
    pair.net.run(1)
    assert ended_by(pair.server, ZeroDivisionError)
    assert len(clean.flush(ZeroDivisionError)) == 1


def echo_run(seed: int) -> tuple[str, str, str]:
    """Traffic both ways over a bad link; hashes of what was seen, of what came back, and of when."""
    pair = Pair(seed=seed, delay=0.03, jitter=0.02, loss=0.02, rate=200_000.0)
    watch = Observer(pair.net)
    pair.server.dataReceived = pair.server.tcp.write  # type: ignore[method-assign]
    for _ in range(40):
        pair.client.tcp.write(pair.a.rng.randbytes(pair.a.rng.randrange(1, 9_000)))
        pair.net.run(pair.a.rng.uniform(0, 0.2))
    pair.net.run(60)
    came = hashlib.sha256(pair.client.received).hexdigest()
    return watch.digest(), came, repr(pair.client.arrivals)


def test_same_seed_same_bytes_and_times() -> None:
    assert echo_run(7) == echo_run(7)
    assert echo_run(7)[0] != echo_run(8)[0]


def test_a_large_network_is_fast_enough() -> None:
    begin = time.process_time()
    net = SimNet(3)
    hosts = [net.host(f"host{number}") for number in range(100)]
    servers: list[Recorder] = []
    for host in hosts:
        host.reactor.listenTCP(7, accepting(net, Recorder, servers))

    @inlineCallbacks
    def greet(source: Host, target: Host) -> Any:
        endpoint = TCP4ClientEndpoint(source.reactor, target.address, 7)
        client: Any = yield endpoint.connect(Factory.forProtocol(lambda: Recorder(net)))
        client.tcp.write(b"hello")

    greetings: list[Deferred[Any]] = [
        greet(source, target) for source in hosts for target in hosts[:10] if source is not target
    ]
    net.run(5)
    assert len(servers) == len(greetings) == 990
    assert all(server.received == b"hello" for server in servers)
    assert time.process_time() - begin < 10


def test_a_nat_hides_the_host_and_lets_in_what_is_forwarded() -> None:
    net = SimNet(1)
    inside, outside = net.host("inside", "192.168.1.2", "2001:db8::2"), net.host("outside", "203.0.113.1")
    net.nat(inside, "198.51.100.1", {80: 8080})
    served: dict[str, list[Recorder]] = {"inside": [], "outside": []}
    inside.reactor.listenTCP(8080, accepting(net, Recorder, served["inside"]))
    outside.reactor.listenTCP(7, accepting(net, Recorder, served["outside"]))

    def connect(source: Host, ip: str, port: int) -> Recorder:
        endpoint = TCP4ClientEndpoint(source.reactor, ip, port)
        made: Recorder = net.run_until(endpoint.connect(Factory.forProtocol(lambda: Recorder(net))))
        return made

    out = connect(inside, outside.address, 7)
    net.run(1)
    assert served["outside"][0].tcp.getPeer().host == "198.51.100.1"
    back = connect(outside, "198.51.100.1", 80)
    back.tcp.write(b"hello")
    net.run(1)
    assert served["inside"][0].received == b"hello"
    assert isinstance(refused(net, outside, "198.51.100.1", 8080, 10), ConnectTimeout)
    assert isinstance(refused(net, outside, "192.168.1.2", 8080, 10), NoRouteError)
    connect(inside, "192.168.1.2", 8080)

    net.nat(inside, "198.51.100.2")
    net.run(1)
    assert ended_by(out, ConnectionLost)
    assert ended_by(served["outside"][0], ConnectionLost)
    assert isinstance(refused(net, outside, "198.51.100.1", 80, 10), NoRouteError)
    assert isinstance(refused(net, outside, "198.51.100.2", 80, 10), ConnectTimeout)
    connect(inside, outside.address, 7)
    net.run(1)
    assert served["outside"][1].tcp.getPeer().host == "198.51.100.2"


def test_a_host_without_ipv6_has_no_route_there() -> None:
    net = SimNet(1)
    old, new = net.host("old", "192.0.2.1"), net.host("new", "192.0.2.2", "2001:db8::2")
    assert isinstance(refused(net, old, "2001:db8::2", 7), NoRouteError)
    assert isinstance(refused(net, new, "2001:db8::2", 7), ConnectionRefusedError)
