"""Parts of a node on the simulated network, unchanged: the driver, its timers, and TLS with real OpenSSL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory

from backrooms.errors import RemoteProtocolError
from backrooms.node.driver import Driver, Turn
from backrooms.node.timers import Timers
from backrooms.transport.tls import TlsTransport
from backrooms.transport.tuning import NOTSENT_LOWAT
from tests.keys import tls_pair
from tests.simnet.network import Host, SimNet
from tests.simnet.observer import Observer
from tests.simnet.pipe import Link


class Blob:
    """A machine that sends `size` bytes in pieces of at most 16 KiB, then says a dot every ten seconds."""

    def __init__(self, size: int = 0, start: float | None = None) -> None:
        self.left = size
        self.got = bytearray()
        self.eof = False
        self._due = start
        self._dots = 0

    def receive(self, data: bytes, now: float) -> None:
        if b"bad" in data:
            raise RemoteProtocolError("a bad word")
        self.got += data

    def receive_eof(self, now: float) -> None:
        self.eof = True

    def events(self) -> list[Any]:
        return []

    def output(self) -> bytes:
        if self._dots:
            dots, self._dots = b"." * self._dots, 0
            return dots
        data = bytes(min(self.left, 16_384))
        self.left -= len(data)
        return data

    def deadline(self) -> float | None:
        return self._due

    def tick(self, now: float) -> None:
        assert self._due is not None
        assert now >= self._due
        self._due += 10
        self._dots += 1


class Station:
    """What a node has one of: timers and turn."""

    def __init__(self, host: Host) -> None:
        self.reactor = host.reactor
        self.timers = Timers(host.reactor, wall=host.net.wall)
        self.turn = Turn(host.reactor)
        self.lost: list[BaseException | None] = []

    def driver(self, machine: Blob) -> Driver:
        return Driver(machine, self.timers, self.turn, lambda event: None, self.lost.append)


def drivers(net: SimNet, mine: Blob, theirs: Blob) -> tuple[Driver, Station, Station]:
    a, b = net.host("a"), net.host("b")
    here, there = Station(a), Station(b)
    b.reactor.listenTCP(7, Factory.forProtocol(lambda: there.driver(theirs)))
    endpoint = TCP4ClientEndpoint(a.reactor, b.address, 7)
    driver: Driver = net.run_until(endpoint.connect(Factory.forProtocol(lambda: here.driver(mine))))
    return driver, here, there


def test_drivers_pull_from_their_machines() -> None:
    net = SimNet(1, Link(rate=100_000.0))
    mine, theirs = Blob(1_000_000), Blob()
    driver, here, there = drivers(net, mine, theirs)
    net.run(2)
    assert 0 < len(theirs.got) < 250_000
    # not more than a send buffer, a queue and one more piece was pulled before there was room
    assert 1_000_000 - mine.left - len(theirs.got) <= 65_536 + 65_536 + 2 * 16_384
    net.run_until(lambda: len(theirs.got) == 1_000_000)
    driver.close()
    net.run(1)
    assert theirs.eof
    assert here.lost[0] is not None
    assert [type(error).__name__ for error in here.lost] == ["ConnectionDone"]
    assert there.lost == [], "half closed: the other side may still write"


def test_drivers_tick_at_their_deadlines() -> None:
    net = SimNet()
    begin = net.now
    mine, theirs = Blob(start=begin + 10), Blob()
    watch = Observer(net)
    drivers(net, mine, theirs)
    net.run(35)
    assert theirs.got == b"..."
    assert [round(seen.time - begin, 6) for seen in watch.sightings] == [10, 20, 30]


def test_a_bad_word_aborts() -> None:
    net = SimNet()
    driver, here, there = drivers(net, Blob(), Blob())
    driver.tcp.write(b"a bad word")
    net.run(1)
    assert isinstance(there.lost[0], RemoteProtocolError)
    assert [type(error).__name__ for error in here.lost] == ["ConnectionLost"]


def links(net: SimNet, tmp_path: Path, mine: Blob, theirs: Blob) -> tuple[Driver, Station, Station]:
    """As `drivers`, over a link's own transport."""
    a, b = net.host("a"), net.host("b")
    here, there = Station(a), Station(b)
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    for file, text in zip((key, certificate), tls_pair(0), strict=True):
        file.write_bytes(text)
    at = f"{b.address}:443"
    server = TlsTransport(bytes(32), key, certificate).server_endpoint(b.reactor, at)
    net.run_until(server.listen(Factory.forProtocol(lambda: there.driver(theirs))))
    client = TlsTransport(bytes(32)).client_endpoint(a.reactor, at)
    driver = net.run_until(client.connect(Factory.forProtocol(lambda: here.driver(mine))))
    return driver, here, there


def test_tls_links_run_over_it_and_hide_what_they_carry(tmp_path: Path) -> None:
    net = SimNet(1, Link(delay=0.05, rate=1_000_000.0, loss=0.01))
    watch = Observer(net)
    mine, theirs = Blob(300_000), Blob()
    driver, here, there = links(net, tmp_path, mine, theirs)
    net.run_until(lambda: len(theirs.got) == 300_000)
    canary = b"a canary that must not be seen"
    driver.tcp.write(canary)
    net.run_until(lambda: theirs.got.endswith(canary))
    assert not watch.contains(canary)
    assert not watch.contains(bytes(32))
    assert 300_030 < watch.total(net.hosts["a"], net.hosts["b"]) < 300_030 * 1.02
    driver.close()
    net.run(10)
    assert [type(error).__name__ for error in here.lost + there.lost] == ["ConnectionDone"] * 2
    assert net.hosts["a"].sockets == {}
    assert len(net.hosts["b"].sockets) == 1, "the listener"


def test_tls_links_hold_back_too(tmp_path: Path) -> None:
    net = SimNet(1, Link(rate=100_000.0))
    mine, theirs = Blob(1_000_000), Blob()
    links(net, tmp_path, mine, theirs)
    net.run(2)
    assert 100_000 < len(theirs.got) < 250_000
    taken = 1_000_000 - mine.left - len(theirs.got)
    assert taken <= NOTSENT_LOWAT + 65_536 + 3 * 16_384
