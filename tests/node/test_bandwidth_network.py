"""The limit of a relay's links in a whole network: rates, and what they do to those who want little."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.protocol import Factory, Protocol

from backrooms.node.bandwidth import TICK
from tests.node.conftest import MakeNetwork
from tests.simnet.node import SimNetwork, SimNode
from tests.simnet.pairs import Recorder

MB = 1_000_000


class Web(Protocol):
    """Says back what it gets; "get N" gets N bytes."""

    def dataReceived(self, data: bytes) -> None:
        tcp: Any = self.transport
        tcp.write(bytes(int(data[4:])) if data.startswith(b"get ") else data)


@pytest.fixture
def network(make: MakeNetwork) -> SimNetwork:
    """Three relays, so that every circuit goes through all of them, the last one the exit."""
    network = make(relays=3, exits=1)
    network.web.reactor.listenTCP(80, Factory.forProtocol(Web))
    return network


def begin(network: SimNetwork) -> None:
    network.start()
    network.ready()
    network.net.run(3)


def limit(node: SimNode, rate: int, burst: int = 1) -> None:
    node.node.channels.bandwidth.configure(rate, burst)


def download(network: SimNetwork, user: str, size: int) -> Recorder:
    client: Recorder = network.open("web.example", 80, Recorder(network.net), user)
    client.tcp.write(b"get %d" % size)
    return client


def pings(network: SimNetwork, client: Recorder, count: int) -> list[float]:
    """How long the web server's answers to a few bytes take, sorted."""
    took = []
    for _ in range(count):
        began = network.net.now
        client.received.clear()
        client.tcp.write(b"x" * 100)
        network.net.run_until(lambda: len(client.received) >= 100, 30)
        took.append(network.net.now - began)
        network.net.run(0.13)
    return sorted(took)


def rates(network: SimNetwork, node: SimNode, seconds: float) -> tuple[float, float]:
    """Bytes per second that a node's links read and write."""
    before = node.node.channels.traffic()
    network.net.run(seconds)
    after = node.node.channels.traffic()
    return (after[0] - before[0]) / seconds, (after[1] - before[1]) / seconds


@pytest.mark.parametrize("which", [0, 2])
def test_bulk_fills_the_rate_and_others_hardly_feel_it(network: SimNetwork, which: int) -> None:
    """A relay on the way, and the exit: either way the quiet circuit overtakes the busy ones."""
    begin(network)
    quiet = network.open("web.example", 80, Recorder(network.net), "quiet")
    trip = pings(network, quiet, 5)[0]
    relay = network.relays[which]
    limit(relay, MB)
    busy = [download(network, f"busy{number}", 40 * MB) for number in range(2)]
    network.net.run(8)
    read, written = rates(network, relay, 10)
    assert written == pytest.approx(MB, rel=0.05)
    assert read <= MB * 1.05
    took = pings(network, quiet, 20)
    assert took[10] < trip + 2 * TICK
    assert took[-1] < trip + 4 * TICK
    shares = [len(one.received) for one in busy]
    assert min(shares) > 0.8 * max(shares)


def test_an_upload_is_read_at_the_rate(network: SimNetwork) -> None:
    """At the exit it leaves the links, so that reading is all there is to limit."""
    begin(network)
    relay = network.relays[2]
    limit(relay, MB)
    client = network.open("web.example", 80, Recorder(network.net), "up")
    client.tcp.write(bytes(30 * MB))
    network.net.run(5)
    read, _ = rates(network, relay, 10)
    assert read == pytest.approx(MB, rel=0.05)


def test_the_rate_follows_the_configuration(network: SimNetwork) -> None:
    begin(network)
    relay = network.relays[0]
    client = download(network, "bulk", 200 * MB)
    for rate in (MB, 4 * MB, 300_000):
        limit(relay, rate)
        network.net.run(12)
        _, written = rates(network, relay, 10)
        assert written == pytest.approx(rate, rel=0.05)
    limit(relay, 0)
    network.net.run(3)
    _, written = rates(network, relay, 3)
    assert written > MB
    assert not client.lost


def test_a_network_of_slow_relays_starts_and_takes_newcomers_under_load(make: MakeNetwork) -> None:
    """75 KB/s at every relay, all used: links, the list and circuits get through."""
    network = make()
    network.web.reactor.listenTCP(80, Factory.forProtocol(Web))
    late = network.relays[2]  # neither a contact nor an exit
    for node in network.relays:
        limit(node, 75_000)
    for node in network.nodes:
        if node is not late:
            node.start()
    circuits = network.client.node.circuits
    assert circuits is not None
    network.net.run_until(lambda: any(one.status == "BUILT" for one in circuits.circuits.values()), 60)
    busy = [download(network, f"busy{number}", 20 * MB) for number in range(6)]
    network.net.run(20)
    late.start()
    network.net.run_until(lambda: len(late.node.directory) == 6, 60)
    quiet = network.open("web.example", 80, Recorder(network.net), "new", limit=20)
    assert pings(network, quiet, 9)[4] < 2
    assert all(one.received and not one.lost for one in busy)
