"""Exits in a whole network: a policy that changes, bounds for circuits and for the node, and names per circuit."""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from twisted.internet.protocol import Factory, Protocol

from backrooms.circuit.stream import Stream
from backrooms.netdir.policy import ExitPolicy
from backrooms.node.exit import TTL, Exit
from backrooms.node.race import ATTEMPT_DELAY, CONNECT_TIMEOUT
from backrooms.node.requests import StreamRequest
from backrooms.wire.relay import EndReason
from tests.node.conftest import MakeNetwork
from tests.simnet.node import SimNetwork

OPEN = ExitPolicy.parse(["accept *:*"], allow_private=True)
HOST = "web.example"


class World:
    """A network with one exit, whose end of everything can be looked at."""

    def __init__(self, network: SimNetwork) -> None:
        self.network = network
        self.net = network.net
        (node,) = network.exits
        assert node.node.relay is not None
        self.node = node
        self.exit: Exit = node.node.relay.exit
        circuits = network.client.node.circuits
        assert circuits is not None
        self.streams = circuits.streams
        self.received: defaultdict[int, bytes] = defaultdict(bytes)
        self.served: list[int] = []

    def serve(self, *ports: int) -> None:
        """Have the web server take connections, and note them."""
        for port in ports:
            self.network.web.reactor.listenTCP(port, Factory.forProtocol(partial(self._protocol, port)))

    def _protocol(self, port: int) -> Protocol:
        world = self

        class Server(Protocol):
            def connectionMade(self) -> None:
                world.served.append(port)

            def dataReceived(self, data: bytes) -> None:
                world.received[port] += data

        return Server()

    def open(self, port: int = 80, host: str = HOST, isolation: str = "") -> Stream:
        return self.streams.open(StreamRequest(host, port, (isolation,), None, "", "SOCKS5"))

    def until(self, condition: Callable[[], Any], limit: float = 60) -> None:
        self.net.run_until(condition, limit)

    def resolve(self, host: str = HOST, isolation: str = "") -> list[Any]:
        request = StreamRequest(host, 0, (isolation,), None, "", "SOCKS5")
        found: list[Any] = self.net.run_until(self.streams.resolve(request))
        return found

    def asked(self, host: str = HOST) -> int:
        """How often the exit has looked a name up."""
        return sum(name == host for _, _, name in self.net.lookups)


@pytest.fixture
def world(make: MakeNetwork) -> World:
    network = make(relays=4, exits=1)
    network.start()
    network.ready()
    # Before that a refused stream would wait for other exits to turn up.
    network.net.run_until(lambda: network.client.node.keeper.settled, 60)
    return World(network)


def once(world: World, **options: Any) -> Stream:
    stream = world.open(**options)
    world.until(lambda: stream.connected)
    return stream


# the policy


def test_a_new_policy_closes_what_it_refuses(world: World) -> None:
    world.serve(80, 443)
    refused, allowed = once(world, port=80), once(world, port=443)
    world.exit.policy = ExitPolicy.parse(["accept *:443"], allow_private=True)
    world.until(lambda: refused.closed)
    assert refused.ended == EndReason.EXITPOLICY
    assert len(world.exit.connections) == 1
    assert world.exit.counts["closed by a new policy"] == 1
    allowed.receive(b"still open", world.net.now)
    world.until(lambda: world.received[443] == b"still open")


def test_without_a_policy_nothing_stays_open(world: World) -> None:
    world.serve(80)
    streams = [once(world) for _ in range(3)]
    world.exit.policy = None
    world.until(lambda: all(stream.closed for stream in streams))
    assert {stream.ended for stream in streams} == {EndReason.EXITPOLICY}
    assert not world.exit.connections
    later = world.open()
    world.until(lambda: later.closed)
    assert world.exit.counts["BEGIN: this is no exit"]


def test_a_new_policy_ends_what_is_still_connecting(world: World) -> None:
    world.net.cut(world.node.host, world.network.web)
    stream = world.open()
    world.until(lambda: world.exit._races)
    world.net.run(1)
    world.exit.policy = ExitPolicy.reject_all()
    world.until(lambda: stream.closed, 5)
    assert stream.ended == EndReason.EXITPOLICY
    assert not world.exit._races


def test_a_name_that_was_looked_up_under_the_old_policy(world: World) -> None:
    world.serve(80)
    world.net.dns_delay = 2.0
    stream = world.open()
    world.until(lambda: world.asked())
    world.exit.policy = ExitPolicy.reject_all()
    world.until(lambda: stream.closed)
    assert stream.ended == EndReason.EXITPOLICY
    assert world.served == []


@pytest.mark.parametrize(
    ("rules", "may"),
    [
        (["accept *:*"], False),
        (["accept 11.0.0.0/8:*"], False),
        (["accept 11.1.2.3:80", "accept *:*"], True),
        (["reject 11.1.2.3:*", "accept *:*"], False),
    ],
)
def test_its_own_address_is_none_to_connect_to(world: World, rules: list[str], may: bool) -> None:
    """What listens there may trust it more than it trusts strangers. Unless a rule says just that."""
    parts = world.node.host.reactor, world.node.node.timers, world.node.node.turn
    own = Exit(*parts, ExitPolicy.parse(rules), own_addresses=["11.1.2.3", "10.0.0.1", "2600::1"])
    assert own._allows("11.1.2.3", 80) == may
    assert not own._allows("10.0.0.1", 80)
    assert not own._allows("2600::1", 80)
    assert own._allows("11.1.2.4", 80)
    own.policy = ExitPolicy.parse(["accept *:*"])
    assert not own._allows("11.1.2.3", 80)
    own.own_addresses = ("11.1.2.4",)
    assert own._allows("11.1.2.3", 80)
    assert not own._allows("11.1.2.4", 80)


# bounds


def test_a_circuit_connects_at_a_bounded_rate(world: World) -> None:
    """More than that waits, in order; it is not refused."""
    world.exit.connect_burst, world.exit.connect_rate = 5, 10.0
    ports = list(range(1001, 1026))
    world.serve(*ports)
    streams = [world.open(port) for port in ports]
    world.until(lambda: len(world.served) >= 5)
    world.net.run(0.05)
    began = world.net.now
    assert len(world.served) <= 6
    world.until(lambda: len(world.served) == 15)
    assert world.net.now - began > 0.7
    world.until(lambda: all(stream.connected for stream in streams))
    assert world.net.now - began > 1.7
    assert world.served == ports
    assert world.exit.counts["BEGIN: delayed"] == 20
    assert world.exit.counts["BEGIN: connected"] == 25


def test_the_rate_of_one_circuit_slows_no_other(world: World) -> None:
    world.exit.connect_burst, world.exit.connect_rate = 1, 0.5
    world.serve(80)
    slow = [world.open(isolation="one") for _ in range(5)]
    other = world.open(isolation="two")
    world.until(lambda: other.connected)
    assert sum(stream.connected for stream in slow) <= 2


def test_a_stream_that_ends_leaves_the_line(world: World) -> None:
    world.exit.connect_burst, world.exit.connect_rate = 1, 1.0
    world.serve(*range(1001, 1006))
    streams = [world.open(port) for port in range(1001, 1006)]
    world.until(lambda: streams[0].connected)
    for stream in streams[1:4]:
        stream.abort(EndReason.MISC)
    began = world.net.now
    world.until(lambda: streams[4].connected)
    assert world.net.now - began < 2
    assert world.served == [1001, 1005]


def test_a_circuit_that_ends_takes_its_line_along(world: World) -> None:
    world.exit.connect_burst, world.exit.connect_rate = 1, 0.01
    world.serve(80)
    streams = [world.open() for _ in range(5)]
    world.until(lambda: streams[0].connected and world.exit.counts["BEGIN: delayed"] == 4)
    assert world.exit._paces
    assert world.node.node.relay is not None
    for circuit in list(world.node.node.relay.circuits):
        circuit.end(0)
    assert not world.exit._paces
    assert not world.exit._look_ups._askers
    assert world.exit.counts["BEGIN: given up by the client"] == 4
    world.until(lambda: not world.exit.connections)


def test_all_circuits_together_have_a_bounded_number_of_connections(world: World) -> None:
    world.exit.max_connections = 3
    world.serve(80)
    streams = [once(world, isolation=str(number)) for number in range(3)]
    refused = world.open()
    world.until(lambda: world.exit.counts["BEGIN: too many connections"])
    assert len(world.exit.connections) == 3
    refused.abort(EndReason.MISC)
    streams[0].abort(EndReason.MISC)
    world.until(lambda: len(world.exit.connections) == 2)
    once(world)


def test_connections_that_are_being_made_count_too(world: World) -> None:
    world.exit.max_connections = 3
    world.net.cut(world.node.host, world.network.web)
    streams = [world.open() for _ in range(8)]
    world.until(lambda: any(stream.closed for stream in streams))
    assert world.exit.counts["BEGIN: too many connections"] >= 5
    assert len(world.exit._races) == 3
    world.until(lambda: all(stream.closed for stream in streams))
    assert world.exit._opening == 0


def test_no_file_descriptors_are_no_fault_of_the_destination(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    world.serve(80)
    once(world)
    with monkeypatch.context() as patched:
        patched.setattr("tests.simnet.reactor._Client.createInternetSocket", none_left)
        stream = world.open()
        world.until(lambda: stream.closed)
    assert stream.ended == EndReason.RESOURCELIMIT
    assert world.exit.counts["BEGIN: no file descriptors left"]
    once(world)


# several addresses


def test_early_data_goes_to_the_address_that_answers(world: World) -> None:
    silent = world.net.host("silent")
    world.net.cut(world.node.host, silent)
    world.net.names[HOST] = [silent.address, world.network.web.address]
    world.serve(80)
    stream = world.open()
    stream.receive(b"sent before there is a connection", world.net.now)
    world.until(lambda: world.asked())
    began = world.net.now
    world.until(lambda: world.received[80] == b"sent before there is a connection")
    assert world.net.now - began < ATTEMPT_DELAY + 0.5
    assert world.served == [80]


def test_a_stream_that_is_closed_while_connecting_ends_the_attempts(world: World) -> None:
    world.net.cut(world.node.host, world.network.web)
    stream = world.open()
    world.until(lambda: world.exit._races)
    stream.abort(EndReason.MISC)
    world.until(lambda: not world.exit._races, 5)
    world.net.heal(world.node.host, world.network.web)
    world.net.run(CONNECT_TIMEOUT)
    assert world.served == []
    assert world.exit._opening == 0


# names


def test_a_circuit_looks_a_name_up_once_and_another_one_for_itself(world: World) -> None:
    world.serve(80)
    for _ in range(3):
        once(world, isolation="one")
    assert [answer.ttl for answer in world.resolve(isolation="one")] == [TTL]
    assert world.asked() == 1
    once(world, isolation="two")
    assert world.asked() == 2
    world.exit.clear_cache()
    assert [answer.address for answer in world.resolve(isolation="one")] == [world.network.web.address]
    assert world.asked() == 3


def test_names_are_counted_and_not_kept_in_the_counts(world: World) -> None:
    stream = world.open(host="nowhere.example")
    world.until(lambda: stream.closed)
    assert stream.ended == EndReason.RESOLVEFAILED
    assert world.exit.counts["BEGIN: no such name"] == 1
    assert not any("example" in kind for kind in world.exit.counts)
