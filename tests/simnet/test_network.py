"""The whole network in one process: it carries streams, hides what it should, and survives losses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import Factory, Protocol

from tests.simnet.node import SimNetwork, SocksRefused
from tests.simnet.observer import Observer
from tests.simnet.pairs import Recorder

CANARY = b"what the application said "


@pytest.fixture
def network(tmp_path: Path) -> Iterator[SimNetwork]:
    made = SimNetwork(tmp_path)
    made.start()
    yield made
    made.stop()
    for node in made.nodes:
        assert node.host.reactor.getDelayedCalls() == [], f"{node} left delayed calls behind"


class Web(Protocol):
    """Says back what it gets; "get N" gets N bytes."""

    def dataReceived(self, data: bytes) -> None:
        tcp: Any = self.transport
        if data.startswith(b"get "):
            tcp.write(body(int(data[4:])))
        else:
            tcp.write(data)


def body(size: int) -> bytes:
    return hashlib.shake_128(b"body").digest(size)


def serve(network: SimNetwork) -> None:
    network.web.reactor.listenTCP(80, Factory.forProtocol(Web))


def ask(network: SimNetwork, say: bytes, user: str = "") -> Recorder:
    """Say something to the web server over a new stream."""
    client: Recorder = network.open("web.example", 80, Recorder(network.net), user)
    client.tcp.write(say)
    return client


def talk(network: SimNetwork, say: bytes, size: int, user: str = "") -> bytes:
    """Say something to the web server over a new stream; its answer of `size` bytes."""
    client = ask(network, say, user)
    network.net.run_until(lambda: len(client.received) >= size or client.lost)
    client.tcp.abortConnection()
    network.net.run(0.1)
    return bytes(client.received)


def test_a_stream_reaches_the_web_and_nobody_on_the_way_reads_it(network: SimNetwork) -> None:
    serve(network)
    watch = Observer(network.net)
    network.ready()
    watch.clear()
    assert talk(network, CANARY, len(CANARY)) == CANARY
    (circuit,) = network.used()
    guard, middle, last = (network.relay(relay.id).host for relay in circuit.path)
    assert watch.where(CANARY) == [(last.name, "web"), ("web", last.name)]
    assert watch.where(b"web.example") == []
    assert watch.peers(network.web) == {last.name}
    assert watch.total(network.client.host, guard) > 0
    assert watch.total(guard, middle) > 0
    assert {host for _, host, _ in network.net.lookups} == {last.name}, "only the exit asks for names"


def test_a_download_and_an_upload_are_whole(network: SimNetwork) -> None:
    serve(network)
    network.ready()
    size = 1_000_000
    assert talk(network, b"get 1000000", size) == body(size)
    assert talk(network, body(size), size) == body(size)


def test_levels_have_their_hops(network: SimNetwork) -> None:
    serve(network)
    network.ready()
    for level, hops in (("none", 1), ("low", 2), ("medium", 3)):
        user = f"level={level}"
        assert talk(network, CANARY, len(CANARY), user) == CANARY
        assert len(network.used()[-1].path) == hops


def test_nobody_there(network: SimNetwork) -> None:
    network.ready()
    with pytest.raises(SocksRefused):
        network.open("nowhere.example", 80, Recorder(network.net))
    with pytest.raises(SocksRefused):
        network.open("web.example", 80, Recorder(network.net))


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_killed_middle_relay_ends_its_streams_and_the_next_go_around_it(network: SimNetwork, how: Any) -> None:
    serve(network)
    network.ready()
    client = ask(network, b"get 5000000")
    network.net.run_until(lambda: len(client.received) > 100_000)
    (circuit,) = network.used()
    middle = network.relay(circuit.path[1].id)
    killed = network.net.now
    middle.host.kill(how)
    network.net.run_until(lambda: client.lost, 5)
    assert network.net.now - killed < 5
    assert talk(network, CANARY, len(CANARY)) == CANARY
    assert all(relay.id != middle.id for relay in network.used()[-1].path)


def test_a_stalled_reader_stalls_only_its_own_stream(network: SimNetwork) -> None:
    serve(network)
    network.ready()
    stalled = ask(network, b"get 3000000")
    stalled.tcp.pauseProducing()
    network.net.run(10)
    taken = len(stalled.received)
    assert talk(network, b"get 500000", 500_000) == body(500_000)
    assert len(network.used()) == 1, "both streams were on one circuit"
    assert len(stalled.received) == taken
    stalled.tcp.resumeProducing()
    network.net.run_until(lambda: len(stalled.received) == 3_000_000)
    assert stalled.received == body(3_000_000)


def test_a_relay_that_comes_back_is_used_again(network: SimNetwork) -> None:
    network.ready()
    relay = network.relays[-1]
    relay.host.kill()
    network.net.run(60)
    relay.start()
    network.net.run_until(lambda: len(relay.node.directory) == len(network.relays), 120)
    assert relay.node.channels.listening() == [f"{relay.host.address}:9001"]


def traffic(folder: Path) -> str:
    """Times, ways and sizes of a whole run."""
    folder.mkdir()
    network = SimNetwork(folder, seed=5)
    watch = Observer(network.net, keep=False)
    serve(network)
    network.start()
    network.ready()
    talk(network, b"get 100000", 100_000)
    network.stop()
    return watch.digest(contents=False)


def test_same_seed_same_traffic(tmp_path: Path) -> None:
    assert traffic(tmp_path / "one") == traffic(tmp_path / "two")
