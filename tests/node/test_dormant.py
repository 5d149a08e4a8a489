"""A client that nobody uses sleeps, and the next stream does not notice."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.protocol import Factory, Protocol

from backrooms.circuit.stream import Stream
from backrooms.node.channels import IDLE_CLOSE
from backrooms.node.circuits import Circuits, ClientCircuit
from backrooms.node.requests import StreamRequest
from backrooms.wire.relay import EndReason
from tests.simnet.node import SimNetwork

AFTER = 1000.0


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        tcp: Any = self.transport
        tcp.write(data)


class Sleeper:
    """The client of a network, which sleeps after `AFTER` seconds."""

    def __init__(self, network: SimNetwork) -> None:
        self.network = network
        self.node = network.client.node
        assert self.node.circuits is not None
        self.circuits: Circuits = self.node.circuits
        self.circuits.options.dormant_after = AFTER
        self._told = self.circuits.on_dormant
        self.circuits.on_dormant = self._changed
        self.changes: list[bool] = []

    def _changed(self, dormant: bool) -> None:
        self.changes.append(dormant)
        self._told(dormant)

    def own(self) -> list[ClientCircuit]:
        """Circuits for streams; others are for questions of the node itself."""
        return [one for one in self.circuits.circuits.values() if not one.reserved]

    def open(self, key: Any = "") -> Stream:
        return self.circuits.streams.open(StreamRequest("web.example", 80, (key,), None, "127.0.0.1:5", "SOCKS5"))

    def connect(self, key: Any = "", limit: float = 20) -> Stream:
        stream = self.open(key)
        self.network.net.run_until(lambda: stream.connected, limit)
        return stream

    def sleep(self) -> None:
        """Let it fall asleep, and its links close."""
        self.network.hush()
        self.network.net.run(AFTER + 2 * IDLE_CLOSE)
        assert self.circuits.dormant


@pytest.fixture
def sleeper(network: SimNetwork) -> Sleeper:
    network.web.reactor.listenTCP(80, Factory.forProtocol(Echo))
    return Sleeper(network)


def test_a_client_that_is_not_used_comes_to_rest(sleeper: Sleeper, said: list[str]) -> None:
    net = sleeper.network.net
    net.run(AFTER - 60)
    assert not sleeper.circuits.dormant
    assert sleeper.circuits.circuits
    net.run(62)
    assert sleeper.circuits.dormant
    assert sleeper.circuits.circuits == {}
    net.run(2 * IDLE_CLOSE)
    assert sleeper.node.channels.links == []
    assert len(sleeper.node.timers) <= 1, "the control port's meter may go on"
    before = sleeper.node.channels.traffic()
    sleeper.network.hush(gossip=True)  # hours of it take long
    net.run(7200)
    assert sleeper.node.channels.traffic() == before
    assert sleeper.changes == [True]
    assert sum("sleeps" in line for line in said) == 1


def test_the_next_stream_wakes_it_and_finds_a_circuit(sleeper: Sleeper) -> None:
    sleeper.sleep()
    relay = sleeper.network.relays[3]
    sleeper.network.net.run(1800)
    relay.node.keeper.republish()
    sleeper.network.net.run(10)
    sleeper.connect(limit=5)
    assert sleeper.changes == [True, False]
    sleeper.network.net.run(10)
    newest = relay.node.directory.get(relay.id)
    known = sleeper.node.directory.get(relay.id)
    assert newest is not None
    assert known is not None
    assert known.record.revision == newest.record.revision, "the list was fetched again"
    spares = [one for one in sleeper.own() if one.isolation is None and one.status == "BUILT"]
    assert len(spares) == sum(sleeper.circuits.options.spares.values())


def test_a_stream_waits_when_all_that_was_known_has_expired(sleeper: Sleeper) -> None:
    sleeper.sleep()
    sleeper.network.net.run(1800)
    directory = sleeper.node.directory
    directory.expire(sleeper.node.timers.wall() + 10 * 86400)
    assert len(directory) == 0
    sleeper.connect()
    assert len(directory) > 0


def test_a_stream_waits_while_the_network_is_away(sleeper: Sleeper) -> None:
    """A laptop that wakes up: the client is used before there is a way out."""
    sleeper.sleep()
    sleeper.network.net.run(1800)
    heal = sleeper.network.net.partition(sleeper.network.client.host)
    stream = sleeper.open()
    sleeper.network.net.run(15)
    assert not stream.closed
    heal()
    sleeper.network.net.run_until(lambda: stream.connected, 40)


def test_a_look_up_wakes_it_as_well(sleeper: Sleeper) -> None:
    sleeper.sleep()
    request = StreamRequest("web.example", 0, ("",), None, "127.0.0.1:5", "SOCKS5")
    (answer,) = sleeper.network.net.run_until(sleeper.circuits.streams.resolve(request), 20)
    assert answer.address == sleeper.network.web.address
    assert not sleeper.circuits.dormant


def test_an_open_stream_keeps_it_awake(sleeper: Sleeper) -> None:
    stream = sleeper.connect()
    sleeper.network.hush(gossip=True)
    sleeper.network.net.run(3 * AFTER)
    assert not sleeper.circuits.dormant
    stream.abort(EndReason.MISC)
    sleeper.network.net.run(AFTER - 10)
    assert not sleeper.circuits.dormant
    sleeper.sleep()


def test_it_can_be_told_to_sleep_and_to_wake_up(sleeper: Sleeper) -> None:
    sleeper.circuits.go_dormant()
    sleeper.circuits.go_dormant()
    sleeper.network.net.run(1)
    assert sleeper.circuits.circuits == {}
    sleeper.circuits.newnym()
    sleeper.network.net.run(60)
    assert sleeper.circuits.circuits == {}, "another identity is no use of it"
    sleeper.circuits.go_active()
    sleeper.circuits.go_active()
    assert sleeper.changes == [True, False]
    sleeper.network.net.run(10)
    assert len(sleeper.own()) == sum(sleeper.circuits.options.spares.values())
    sleeper.network.net.run(AFTER - 20)
    assert not sleeper.circuits.dormant
    sleeper.sleep()


def test_told_to_sleep_it_leaves_streams_alone(sleeper: Sleeper) -> None:
    stream = sleeper.connect()
    waiting = sleeper.open("other")
    sleeper.circuits.go_dormant()
    sleeper.network.net.run(300)
    assert waiting.connected
    assert len(sleeper.own()) == 2, "the circuits of the two streams, and no spare"
    stream.receive(b"hello", sleeper.network.net.now)
    sleeper.network.net.run_until(lambda: stream.output() == b"hello")
    for one in (stream, waiting):
        one.abort(EndReason.MISC)
    sleeper.network.net.run(2)
    assert sleeper.circuits.circuits == {}
    sleeper.network.net.run(2 * IDLE_CLOSE)
    assert len(sleeper.node.timers) <= 1


def test_a_restart_is_a_use(sleeper: Sleeper) -> None:
    """Nothing on disk tells when somebody used the node last, so it begins awake."""
    sleeper.sleep()
    sleeper.network.client.host.kill()
    sleeper.network.client.start()
    again = Sleeper(sleeper.network)
    sleeper.network.net.run(30)
    assert any(one.status == "BUILT" for one in again.circuits.circuits.values())
    assert not again.circuits.dormant


def test_without_a_time_it_never_sleeps(sleeper: Sleeper) -> None:
    sleeper.circuits.options.dormant_after = 0.0
    sleeper.network.net.run(3 * AFTER)
    assert not sleeper.circuits.dormant
    assert sleeper.changes == []


def test_stopping_a_sleeping_node(sleeper: Sleeper) -> None:
    sleeper.sleep()
    sleeper.network.net.run_until(sleeper.network.client.stop(), 10)
    sleeper.circuits.go_active()
    sleeper.circuits.go_dormant()
    sleeper.network.net.run(10)
    assert sleeper.changes == [True]
    assert sleeper.network.client.host.reactor.getDelayedCalls() == []
    sleeper.network.client.host.kill()
