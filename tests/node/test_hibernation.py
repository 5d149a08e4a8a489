"""What a node does when the bytes of its accounting period are used up, and when the next one begins."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from backrooms.errors import CircuitError
from backrooms.node.accounting import FILE_NAME, Accounting, period_around
from backrooms.node.hibernation import GRACE, Hibernation
from backrooms.node.requests import StreamRequest
from backrooms.wire.cell import DestroyReason
from backrooms.wire.relay import EndReason
from tests.node.crafted import Crafted, hop
from tests.simnet.node import RELAY_PORT, SimNetwork, SimNode

GB = 10**9


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        tcp: Any = self.transport
        tcp.write(data)


class Lost(Protocol):
    """Says when its connection is lost."""

    def __init__(self) -> None:
        self.lost: Deferred[None] = Deferred()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class Account:
    """Accounting for one node of a network: 1 GB in a period that ends in ten minutes, of which some is used."""

    def __init__(self, owner: SimNode, used: int) -> None:
        node = owner.node
        wall, state = node.timers.wall(), node.config.node.state
        period = datetime.fromtimestamp(wall + 600).strftime("day %H:%M")
        start = period_around(period, wall)[0]
        found = {"schema": 1, "start": start, "wake": start, "read": used, "written": 0, "exhausted_after": None}
        (state / FILE_NAME).write_text(json.dumps(found))
        self.accounting = Accounting(node.timers, node.channels.traffic, state, owner.host.rng, GB, period)
        self.hibernation = Hibernation(
            node.timers, node.channels, node.keeper, node.relay, node.circuits, node.heartbeats
        )
        self.accounting.on_change = self.hibernation.enter
        self.accounting.start()

    def wait(self, network: SimNetwork) -> None:
        """Until the node wakes: at some time in the next period that leaves as long as the bytes lasted in this one."""
        network.net.run_until(lambda: self.hibernation.state == "awake", 1200)

    def stop(self) -> None:
        self.accounting.stop()
        self.hibernation.stop()


def request(key: Any = "") -> StreamRequest:
    return StreamRequest("web.example", 80, (key,), None, "127.0.0.1:5", "SOCKS5")


def test_a_relay_that_hibernates_softly_ends_nothing_and_takes_nothing_new(network: SimNetwork) -> None:
    first, second, third = network.relays[2], network.relays[3], network.relays[4]
    circuit = Crafted(network, [hop(first), hop(second), hop(third)])
    circuit.settle()
    direct = Crafted(network, [hop(third)])
    direct.settle()
    account = Account(third, GB * 96 // 100)
    assert account.hibernation.state == "soft"
    again = Crafted(network, [hop(first), hop(second), hop(third)])
    again.settle()
    assert again.ended == DestroyReason.DESTROYED
    again = Crafted(network, [hop(third)])
    again.settle()
    assert again.ended == DestroyReason.SHUTTING_DOWN
    stranger = network.net.host("stranger")
    attempt = TCP4ClientEndpoint(stranger.reactor, third.host.address, RELAY_PORT).connect(Factory.forProtocol(Lost))
    lost = network.net.run_until(attempt).lost
    network.net.run_until(lost, 1)
    network.net.run(30)
    assert circuit.ended is None
    assert direct.ended is None
    account.stop()


def test_a_relay_that_hibernates_ends_everything_and_comes_back(network: SimNetwork) -> None:
    first, second = network.relays[2], network.relays[3]
    circuit = Crafted(network, [hop(first), hop(second)])
    circuit.settle()
    began = network.net.now
    account = Account(second, GB)
    assert account.accounting.hibernating == "hard"
    network.net.run_until(lambda: circuit.ended is not None, 20)
    assert GRACE - 0.1 <= network.net.now - began <= GRACE + 1
    network.net.run(60)
    assert all(not link.open for link in second.node.channels.links)
    before = second.node.channels.traffic()
    for node in (network.client, first):
        with pytest.raises(CircuitError):
            network.net.run_until(node.node.channels.link(second.id))
    network.net.run(120)
    assert second.node.channels.traffic() == before, "nothing passes at all"
    account.wait(network)
    network.net.run(120)  # nobody asks for a relay that could not be reached for a minute
    again = Crafted(network, [hop(first), hop(second)])
    again.settle()
    assert again.built
    account.stop()


def test_a_hibernating_relay_is_published_no_more(network: SimNetwork) -> None:
    relay = network.relays[3]
    published = relay.node.directory.get(relay.id)
    assert published is not None
    account = Account(relay, GB)
    relay.node.keeper.republish()
    network.net.run(400)
    found = network.relays[0].node.directory.get(relay.id)
    assert found is not None
    assert found.record.revision == published.record.revision
    account.wait(network)
    network.net.run(60)
    found = network.relays[0].node.directory.get(relay.id)
    assert found is not None
    assert found.record.revision > published.record.revision, "it has told that it is back"
    account.stop()


def test_a_client_that_hibernates_refuses_streams_and_says_why(network: SimNetwork) -> None:
    network.web.reactor.listenTCP(80, Factory.forProtocol(Echo))
    circuits = network.client.node.circuits
    assert circuits is not None
    running = circuits.streams.open(request())
    network.net.run_until(lambda: running.connected, 30)
    account = Account(network.client, GB)
    network.net.run(1)
    assert running.closed
    refused = circuits.streams.open(request("new"))
    assert refused.closed
    assert refused.ended == EndReason.HIBERNATING
    network.net.run(60)
    assert network.client.node.channels.links == []
    before = network.client.node.channels.traffic()
    network.net.run(200)
    assert network.client.node.channels.traffic() == before
    account.wait(network)
    again = circuits.streams.open(request("again"))
    network.net.run_until(lambda: again.connected, 30)
    account.stop()
