"""Exits: where they connect to, and how long they wait."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, connectionDone
from zope.interface import implementer

from backrooms.circuit.stream import Stream
from backrooms.netdir.policy import ExitPolicy
from backrooms.node.exit import Exit
from backrooms.node.exitconnection import HALF_CLOSED_TIME
from backrooms.node.requests import StreamRequest
from backrooms.wire.relay import EndReason
from tests.simnet.node import SimNetwork
from tests.simnet.pairs import Recorder


@implementer(IHalfCloseableProtocol)
class Server(Recorder):
    """A destination that notes the ends of both directions."""

    read_lost = False

    def readConnectionLost(self) -> None:
        self.read_lost = True

    def writeConnectionLost(self) -> None:
        pass


class Open:
    """A stream of the client to the web server, and both of its ends."""

    def __init__(self, network: SimNetwork, host: str = "web.example") -> None:
        self.network = network
        self.servers: list[Server] = []

        def build() -> Server:
            self.servers.append(Server(network.net))
            return self.servers[-1]

        network.web.reactor.listenTCP(80, Factory.forProtocol(build))
        circuits = network.client.node.circuits
        assert circuits is not None
        self.stream: Stream = circuits.streams.open(StreamRequest(host, 80, (), None, "127.0.0.1:1", "SOCKS5"))
        network.net.run_until(lambda: self.stream.connected and self.servers)
        self.server = self.servers[0]

    @property
    def exit(self) -> Exit:
        """The exit that it uses."""
        (node,) = [node for node in self.network.exits if self.exit_of(node).connections]
        return self.exit_of(node)

    @staticmethod
    def exit_of(node: Any) -> Exit:
        found: Exit = node.node.relay.exit
        return found


def test_half_closed_by_the_client_still_carries_the_answer(network: SimNetwork) -> None:
    one = Open(network)
    one.stream.receive(b"question", network.net.now)
    one.stream.receive_eof(network.net.now)
    network.net.run_until(lambda: one.server.read_lost)
    assert one.server.received == b"question"
    network.net.run(HALF_CLOSED_TIME / 2)
    one.server.tcp.write(b"answer")
    network.net.run_until(lambda: one.stream.output() == b"answer")
    one.server.tcp.loseConnection()
    network.net.run_until(lambda: one.stream.closed)
    assert one.stream.ended == EndReason.DONE
    network.net.run(1)
    assert not any(one.exit_of(node).connections for node in network.exits)


def test_half_closed_by_the_destination_still_carries_data(network: SimNetwork) -> None:
    one = Open(network)
    one.server.tcp.loseWriteConnection()
    network.net.run_until(lambda: one.stream.finished)
    one.stream.receive(b"more", network.net.now)
    network.net.run_until(lambda: one.server.received == b"more")
    one.stream.receive_eof(network.net.now)
    network.net.run_until(lambda: one.stream.closed)


@pytest.mark.parametrize("side", ["client", "destination"])
def test_a_half_closed_stream_is_not_kept_for_ever(network: SimNetwork, side: str) -> None:
    one = Open(network)
    exit_ = one.exit
    if side == "client":
        one.stream.receive_eof(network.net.now)
    else:
        one.server.tcp.loseWriteConnection()
    network.net.run(HALF_CLOSED_TIME - 60)
    assert exit_.connections
    assert not one.stream.closed
    network.net.run(90)
    assert not exit_.connections
    assert one.stream.closed
    assert one.stream.ended == (EndReason.TIMEOUT if side == "client" else EndReason.DONE)


def test_a_half_closed_stream_that_is_used_is_kept(network: SimNetwork) -> None:
    one = Open(network)
    one.stream.receive_eof(network.net.now)
    for _ in range(5):
        network.net.run(HALF_CLOSED_TIME * 0.9)
        one.server.tcp.write(b"still here")
        network.net.run_until(lambda: one.stream.output() == b"still here")
    network.net.run(HALF_CLOSED_TIME * 2.1)
    assert one.stream.closed


def test_a_destination_that_is_gone_leaves_a_stream_that_ends(network: SimNetwork) -> None:
    """It closed both ways; the client never ends its own side."""
    one = Open(network)
    exit_ = one.exit
    one.server.tcp.write(b"bye")
    one.server.tcp.loseConnection()
    network.net.run_until(lambda: one.stream.output() == b"bye")
    network.net.run(5)
    for _ in range(2):  # the answer to the first is a reset, which the second runs into
        one.stream.receive(b"anybody?", network.net.now)
        network.net.run(5)
    assert not exit_.connections
    network.net.run(HALF_CLOSED_TIME + 60)
    assert one.stream.closed
    assert exit_._outlived == set()


def test_a_reset_is_told(network: SimNetwork) -> None:
    one = Open(network)
    one.server.tcp.abortConnection()
    network.net.run_until(lambda: one.stream.closed)
    assert one.stream.ended == EndReason.CONNRESET
    assert one.server.lost is not connectionDone


def test_a_policy_is_asked_about_the_address_a_name_leads_to(network: SimNetwork) -> None:
    for node in network.exits:
        assert node.node.relay is not None
        node.node.relay.exit.policy = ExitPolicy.parse(["accept *:80"])  # private addresses are not in it
    circuits = network.client.node.circuits
    assert circuits is not None
    stream = circuits.streams.open(StreamRequest("web.example", 80, (), None, "", "SOCKS5"))
    network.net.run_until(lambda: stream.closed, 20)
    assert stream.ended == EndReason.EXITPOLICY
    assert not any(Open.exit_of(node).connections for node in network.exits)
