"""Simulated connections behave as TCP: order, delay, rate, backpressure, closing."""

from __future__ import annotations

import pytest
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, serverFromString
from twisted.internet.error import (
    CannotListenError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    NoRouteError,
)
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.protocol import Factory, Protocol

from tests.simnet.network import SimNet
from tests.simnet.observer import Observer
from tests.simnet.pairs import HalfCloser, Pair, Pull, Push, Recorder, accepting, ended_by, refused
from tests.simnet.pipe import Link

# connecting


def test_handshake_takes_its_time() -> None:
    net = SimNet(1, Link(delay=0.1))
    a, b = net.host("a"), net.host("b")
    servers: list[Recorder] = []
    b.reactor.listenTCP(7, accepting(net, Recorder, servers))
    begin = net.now
    client = net.run_until(
        TCP4ClientEndpoint(a.reactor, b.address, 7).connect(Factory.forProtocol(lambda: Recorder(net)))
    )
    assert net.now - begin == pytest.approx(0.2)
    net.run_until(lambda: servers)
    assert net.now - begin == pytest.approx(0.3)
    assert (client.tcp.getPeer().host, client.tcp.getPeer().port) == (b.address, 7)
    assert client.tcp.getHost().host == a.address
    assert servers[0].tcp.getPeer() == client.tcp.getHost()
    assert servers[0].tcp.getHost() == client.tcp.getPeer()
    client.tcp.setTcpNoDelay(True)
    client.tcp.setTcpKeepAlive(True)
    assert client.tcp.getTcpNoDelay()
    assert client.tcp.getTcpKeepAlive()


def test_nobody_there() -> None:
    net = SimNet(1, Link(delay=0.1))
    a, b = net.host("a"), net.host("b")
    begin = net.now
    assert isinstance(refused(net, a, b.address, 9), ConnectionRefusedError)
    assert net.now - begin == pytest.approx(0.2)
    assert isinstance(refused(net, a, "10.99.99.99", 9), NoRouteError)
    net.cut(a, b)
    begin = net.now
    assert isinstance(refused(net, a, b.address, 9, timeout=5), ConnectTimeout)
    assert net.now - begin == pytest.approx(5)


def test_syn_is_sent_again_when_the_way_opens() -> None:
    pair = Pair()
    net = pair.net
    net.cut(pair.a, pair.b)
    net.clock.call_later(2.5, None, net.heal, pair.a, pair.b)
    begin = net.now
    pair.connect()
    assert net.now - begin == pytest.approx(3.02)  # SYNs at 0, 1 and 3 seconds


def test_ports_are_those_of_a_host() -> None:
    net = SimNet()
    a, b = net.host("a"), net.host("b")
    port = a.reactor.listenTCP(7, Factory())
    b.reactor.listenTCP(7, Factory())
    with pytest.raises(CannotListenError):
        a.reactor.listenTCP(7, Factory())
    with pytest.raises(CannotListenError):
        a.reactor.listenTCP(8, Factory(), interface=b.address)
    assert a.reactor.listenTCP(0, Factory()).getHost().port > 1024
    net.run_until(port.stopListening())
    assert isinstance(refused(net, b, a.address, 7), ConnectionRefusedError)
    a.reactor.listenTCP(7, Factory())
    with pytest.raises(ValueError, match="not a simulated socket"):
        a.reactor.addReader(b.reactor.listenTCP(9, Factory()))


def test_loopback_stays_on_the_host() -> None:
    net = SimNet()
    a, b = net.host("a"), net.host("b")
    servers: list[Recorder] = []
    endpoint = serverFromString(a.reactor, "tcp:9050:interface=127.0.0.1")  # type: ignore[no-untyped-call]
    net.run_until(endpoint.listen(accepting(net, Recorder, servers)))
    watch = Observer(net, lambda source, target: True)
    client = net.run_until(
        TCP4ClientEndpoint(a.reactor, "127.0.0.1", 9050).connect(Factory.forProtocol(lambda: Recorder(net)))
    )
    client.tcp.write(b"hello")
    net.run(1)
    assert servers[0].received == b"hello"
    assert watch.bytes_by_link() == {("a", "a"): 5}
    assert isinstance(refused(net, a, a.address, 9050), ConnectionRefusedError)
    assert isinstance(refused(net, b, "127.0.0.1", 9050), ConnectionRefusedError)


def test_names() -> None:
    pair = Pair()
    net = pair.net
    net.names["b.example"] = [pair.b.address]
    connecting = HostnameEndpoint(pair.a.reactor, "b.example", 7).connect(Factory.forProtocol(Protocol))
    assert net.run_until(connecting).transport.getPeer().host == pair.b.address
    assert net.run_until(pair.a.reactor.resolve("b.example")) == pair.b.address
    with pytest.raises(DNSLookupError):
        net.run_until(pair.a.reactor.resolve("nowhere.example"))
    assert [(host, name) for _, host, name in net.lookups] == [
        ("a", "b.example"),
        ("a", "b.example"),
        ("a", "nowhere.example"),
    ]


# bytes


def test_bytes_arrive_in_order_after_the_delay() -> None:
    pair = Pair(delay=0.05)
    begin = pair.net.now
    pair.client.tcp.writeSequence([b"one ", b"two "])
    pair.client.tcp.write(b"three")
    pair.server.tcp.write(b"back")
    pair.net.run(1)
    assert pair.server.received == b"one two three"
    assert pair.client.received == b"back"
    assert pair.server.arrivals[0][0] - begin == pytest.approx(0.05)


@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_jitter_and_loss_keep_the_order(loss: float) -> None:
    pair = Pair(delay=0.02, jitter=0.05, loss=loss)
    sent = pair.net.rng.randbytes(300_000)
    begin = pair.net.now
    pair.client.tcp.write(sent)
    pair.net.run_until(lambda: len(pair.server.received) == len(sent), 600)
    assert pair.server.received == sent
    # 206 segments, two windows: at five per cent some are lost, which costs a timeout of 0.28 s
    took = pair.net.now - begin
    assert took > 0.3 if loss else took < 0.25


def test_rate() -> None:
    pair = Pair(delay=0.01, rate=100_000.0)
    begin = pair.net.now
    pair.client.tcp.write(bytes(500_000))
    pair.net.run_until(lambda: len(pair.server.received) == 500_000)
    assert pair.net.now - begin == pytest.approx(5.01, abs=0.01)
    # two connections share the rate equally, and the other direction is not slowed by them
    other = pair.connect()
    pair.net.run_until(lambda: len(pair.servers) == 2)
    first, second = pair.servers
    pair.client.tcp.write(bytes(400_000))
    other.tcp.write(bytes(400_000))
    begin = pair.net.now
    second.tcp.write(b"x")
    pair.net.run_until(lambda: other.received)
    assert pair.net.now - begin == pytest.approx(0.01, abs=0.001)
    pair.net.run(1)  # the first has a full queue of its own to begin with
    before = len(first.received), len(second.received)
    pair.net.run(4)
    assert len(first.received) - before[0] == pytest.approx(200_000, rel=0.05)
    assert len(second.received) - before[1] == pytest.approx(200_000, rel=0.05)


def test_pull_producer_is_asked_only_when_there_is_room() -> None:
    pair = Pair(rate=50_000.0, queue=20_000, window=60_000)
    tcp = pair.client.tcp
    pull = Pull(tcp, 1_000_000)
    tcp.registerProducer(pull, False)
    assert pull.asked == 1
    pair.net.run(2)
    sent = 1_000_000 - pull.left
    assert len(pair.server.received) == pytest.approx(100_000, rel=0.05)
    # send buffer, queue and what is under way; no more was taken than fits
    assert sent - len(pair.server.received) <= 65_536 + 16_384 + 20_000 + 1_460
    assert pull.most_unsent <= 65_536
    tcp.loseConnection()  # waits for the producer
    pair.net.run_until(lambda: pair.server.lost, 60)
    assert len(pair.server.received) == 1_000_000
    assert not pull.stopped


def test_a_reader_that_pauses_holds_the_sender_back() -> None:
    pair = Pair(window=50_000)
    pair.server.tcp.pauseProducing()
    pull = Pull(pair.client.tcp, 10_000_000)
    pair.client.tcp.registerProducer(pull, False)
    pair.net.run(30)
    taken = 10_000_000 - pull.left
    assert taken <= 65_536 + 16_384 + 50_000
    assert pair.server.received == b""
    assert pair.server.tcp.socket.unread() <= 50_000
    pair.net.run(300)
    assert 10_000_000 - pull.left == taken
    pair.server.tcp.resumeProducing()
    pair.net.run_until(lambda: len(pair.server.received) == 10_000_000, 60)


def test_push_producer_is_paused_and_resumed() -> None:
    pair = Pair(rate=100_000.0)
    push = Push()
    pair.client.tcp.registerProducer(push, True)
    pair.client.tcp.write(bytes(1_000))
    assert push.calls == []
    pair.client.tcp.write(bytes(300_000))
    assert push.calls == ["pause"]
    pair.net.run_until(lambda: len(pair.server.received) == 301_000)
    assert push.calls == ["pause", "resume"]
    pair.client.tcp.abortConnection()
    pair.net.run(1)
    assert push.calls == ["pause", "resume", "stop"]


# closing


def test_half_close() -> None:
    pair = Pair(HalfCloser)
    pair.client.tcp.write(b"request")
    pair.client.tcp.loseWriteConnection()
    pair.net.run(1)
    client, server = pair.client, pair.server
    assert isinstance(server, HalfCloser)
    assert (client.write_lost, client.read_lost) == (True, False)
    assert (server.write_lost, server.read_lost) == (False, True)
    server.tcp.write(b"answer")
    server.tcp.loseConnection()
    pair.net.run(1)
    assert server.received == b"request"
    assert client.received == b"answer"
    assert client.read_lost
    client.tcp.loseConnection()
    pair.net.run(1)
    assert ended_by(client, ConnectionDone)
    assert ended_by(server, ConnectionDone)


def test_close_sends_everything_first() -> None:
    pair = Pair(rate=1_000_000.0)
    pair.client.tcp.write(bytes(700_000))
    pair.client.tcp.loseConnection()
    pair.net.run(5)
    assert len(pair.server.received) == 700_000
    assert ended_by(pair.server, ConnectionDone)
    assert ended_by(pair.client, ConnectionDone)
    assert pair.a.sockets == {}


def test_abort() -> None:
    pair = Pair(rate=10_000.0)
    pair.client.tcp.write(bytes(500_000))
    pair.net.run(1)
    pair.client.tcp.abortConnection()
    pair.net.run(10)
    assert ended_by(pair.client, ConnectionAborted)
    assert ended_by(pair.server, ConnectionLost)
    assert len(pair.server.received) < 100_000


def test_closing_with_unread_bytes_costs_the_last_words() -> None:
    pair = Pair(rate=100_000.0, queue=10_000)
    pair.server.tcp.pauseProducing()
    pair.client.tcp.write(b"never read")
    pair.net.run(1)
    pair.server.tcp.write(bytes(60_000))
    pair.server.tcp.loseConnection()
    pair.net.run(5)
    assert 0 < len(pair.client.received) < 20_000
    assert ended_by(pair.client, ConnectionLost)
