"""Streams of a client: which circuit they get, how often they try, and what is told of them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from backrooms.circuit.stream import Stream
from backrooms.errors import StreamError
from backrooms.levels import LEVELS, MEDIUM, Level, parse_level
from backrooms.netdir.policy import ExitPolicy
from backrooms.node.circuits import Circuits, ClientCircuit
from backrooms.node.requests import StreamRequest
from backrooms.node.savedlist import SAVE_PAUSE, SAVE_SOON
from backrooms.node.streams import CONNECT_TIMEOUT, OpenStream
from backrooms.path.route import Route
from backrooms.wire.relay import EndReason
from tests.node.conftest import MakeNetwork
from tests.simnet.node import SimNetwork


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        tcp: Any = self.transport
        tcp.write(data)


def serve(network: SimNetwork) -> None:
    network.web.reactor.listenTCP(80, Factory.forProtocol(Echo))


def circuits(network: SimNetwork) -> Circuits:
    found = network.client.node.circuits
    assert found is not None
    return found


def request(host: str = "web.example", port: int = 80, key: Any = "", level: Level | None = None) -> StreamRequest:
    return StreamRequest(host, port, (key,), Route(level) if level else None, "127.0.0.1:5", "SOCKS5")


class Watch:
    """The statuses of every stream of the client, by its number."""

    def __init__(self, network: SimNetwork) -> None:
        self.seen: dict[int, list[str]] = {}
        self.exits: list[bytes] = []
        circuits(network).streams.on_stream = self._note

    def _note(self, item: OpenStream) -> None:
        self.seen.setdefault(item.number, []).append(item.status)
        if item.status == "SENTCONNECT" and item.circuit is not None:
            self.exits.append(item.circuit.exit.id)


def connect(network: SimNetwork, stream: Stream, limit: float = 60) -> None:
    """Let time pass until a stream is connected."""
    network.net.run_until(lambda: stream.connected, limit)


def ended(network: SimNetwork, stream: Stream, limit: float = 90) -> int:
    """Why a stream ended."""
    network.net.run_until(lambda: stream.closed, limit)
    assert stream.ended is not None
    return stream.ended


# a life


def test_every_status_is_told(network: SimNetwork) -> None:
    serve(network)
    watch = Watch(network)
    streams = circuits(network).streams
    stream = streams.open(request())
    network.net.run_until(lambda: stream.connected)
    stream.receive(b"hello", network.net.now)
    network.net.run_until(lambda: stream.output() == b"hello")
    stream.abort(EndReason.MISC)
    nobody = streams.open(request(port=81))
    assert ended(network, nobody) == EndReason.CONNECTREFUSED
    network.net.run_until(streams.resolve(request()))
    failing: Deferred[Any] = streams.resolve(request("nowhere.example"))
    with pytest.raises(StreamError) as caught:
        network.net.run_until(failing)
    assert caught.value.reason == EndReason.RESOLVEFAILED
    assert list(watch.seen.values()) == [
        ["NEW", "SENTCONNECT", "SUCCEEDED", "CLOSED"],
        ["NEW", "SENTCONNECT", "FAILED"],
        ["NEWRESOLVE", "SENTRESOLVE", "SUCCEEDED", "CLOSED"],
        ["NEWRESOLVE", "SENTRESOLVE", "FAILED"],
    ]
    assert streams.streams == {}


def test_names_and_addresses_are_looked_up_by_the_exit(network: SimNetwork) -> None:
    streams = circuits(network).streams
    (answer,) = network.net.run_until(streams.resolve(request()))
    assert answer.address == network.web.address
    (name,) = network.net.run_until(streams.resolve_ptr(request(network.web.address)))
    assert name.address == "web.example"
    names = {node.host.name for node in network.exits}
    assert {host for _, host, _ in network.net.lookups} <= names


# waiting


def test_a_stream_waits_while_there_is_no_directory(make: MakeNetwork) -> None:
    network = make()
    serve(network)
    network.client.start()
    stream = circuits(network).streams.open(request())
    network.net.run(20)  # nobody is there, the contacts refuse
    assert not stream.closed
    for node in network.relays:
        node.start()
    network.net.run_until(lambda: stream.connected, 35)


def test_a_stream_waits_while_known_relays_are_not_up_yet(make: MakeNetwork) -> None:
    """The list is there from last time, and all relays start later than the client: no try is lost on that."""
    network = make()
    serve(network)
    network.start()
    network.ready()
    network.net.run(SAVE_PAUSE + SAVE_SOON + 1)
    for node in network.nodes:
        node.host.kill()
    network.net.run(5)
    network.client.start()
    stream = circuits(network).streams.open(request())
    network.net.run(15)
    assert not stream.closed
    assert len(network.client.node.directory) == 6
    for node in network.relays:
        node.start()
    network.net.run_until(lambda: stream.connected, 40)


def test_a_stream_waits_while_the_list_is_still_growing(make: MakeNetwork) -> None:
    """Two relays are known at first, and no exit: that is no reason to give up yet."""
    network = make()
    serve(network)
    early = [network.client, *network.relays[:2]]
    for node in early:
        node.start()
    network.net.run_until(lambda: len(network.client.node.directory) == 2, 10)
    stream = circuits(network).streams.open(request())
    network.net.run(2)
    assert not stream.closed
    for node in network.relays[2:]:
        node.start()
    connect(network, stream, 20)


def test_the_wait_has_an_end(make: MakeNetwork) -> None:
    network = make()
    network.client.start()
    began = network.net.now
    stream = circuits(network).streams.open(request())
    looking = circuits(network).streams.resolve(request())
    assert ended(network, stream) == EndReason.TIMEOUT
    assert network.net.now - began == pytest.approx(CONNECT_TIMEOUT)
    with pytest.raises(StreamError) as caught:
        network.net.run_until(looking)
    assert caught.value.reason == EndReason.TIMEOUT


# no path


def settle(network: SimNetwork) -> None:
    network.net.run_until(lambda: network.client.node.keeper.settled, 60)


def test_what_no_path_fits_fails_at_once_when_the_list_has_settled(network: SimNetwork, said: list[str]) -> None:
    serve(network)
    settle(network)
    streams = circuits(network).streams
    said.clear()
    impossible = [streams.open(request(level=parse_level("custom:7"))) for _ in range(20)]
    good = streams.open(request())
    assert [ended(network, one, 0.1) for one in impossible] == [EndReason.NOROUTE] * 20
    network.net.run_until(lambda: good.connected)
    (line,) = [line for line in said if "no path at level custom:7" in line]
    assert "web.example" not in line
    assert "nothing was relaxed" in line


def test_a_port_that_no_exit_allows_fails_alone(network: SimNetwork) -> None:
    """Others of the same isolation, which wait for a circuit too, are not harmed."""
    serve(network)
    settle(network)
    directory = network.client.node.directory
    streams = circuits(network).streams
    for relay in directory.relays():
        if relay.is_exit:
            # what the client believes of the exits
            object.__setattr__(relay, "exit_policy", ExitPolicy.parse(["accept *:80"]))
    good = streams.open(request(key="one"))
    bad = streams.open(request(port=25, key="one"))
    assert ended(network, bad, 1) == EndReason.NOROUTE
    network.net.run_until(lambda: good.connected)


# trying again


def test_an_exit_that_refuses_is_avoided_and_the_next_one_asked(network: SimNetwork) -> None:
    serve(network)
    watch = Watch(network)
    first, second = network.exits
    refusing = first.node.relay
    assert refusing is not None
    refusing.exit.policy = ExitPolicy.reject_all()
    streams = circuits(network).streams
    opened = [streams.open(request(key=number)) for number in range(6)]
    for stream in opened:
        connect(network, stream)
    assert first.id in watch.exits, "somebody was refused"
    for statuses in watch.seen.values():
        assert statuses in (
            ["NEW", "SENTCONNECT", "SUCCEEDED"],
            ["NEW", "SENTCONNECT", "DETACHED", "SENTCONNECT", "SUCCEEDED"],
        )
    assert {item.circuit.exit.id for item in streams.streams.values() if item.circuit} == {second.id}


def test_when_all_exits_refuse_the_stream_says_so(network: SimNetwork) -> None:
    settle(network)
    watch = Watch(network)
    for node in network.exits:
        assert node.node.relay is not None
        node.node.relay.exit.policy = ExitPolicy.reject_all()
    stream = circuits(network).streams.open(request())
    assert ended(network, stream, 10) == EndReason.EXITPOLICY
    assert sorted(watch.exits) == sorted(node.id for node in network.exits), "each was asked once"


def test_a_stream_tries_at_most_so_many_circuits(network: SimNetwork) -> None:
    """Every circuit dies before it carries anything: N tries beyond the first, with growing pauses."""
    retries = circuits(network).options.retries
    for node in network.relays:
        assert node.node.relay is not None
        node.node.relay.closing = True  # refuses every circuit
    for circuit in list(circuits(network).circuits.values()):
        circuit.end(0)
    circuits(network).options.spares.clear()
    network.net.run(60)
    launched: list[float] = []

    def note(one: ClientCircuit) -> None:
        if one.status == "LAUNCHED" and not one.reserved:  # those to directories are not for streams
            launched.append(network.net.now)

    circuits(network).on_circuit = note
    stream = circuits(network).streams.open(request())
    assert ended(network, stream, 30) == EndReason.NOROUTE
    assert len(launched) == retries + 1
    pauses = [later - earlier for earlier, later in itertools.pairwise(launched)]
    assert pauses[0] >= 0.25
    assert pauses == sorted(pauses)
    assert sum(pauses) > 1.5


def test_a_relay_at_which_a_circuit_failed_is_avoided(network: SimNetwork) -> None:
    serve(network)
    dead = network.relays[2]
    dead.host.kill("silent")
    manager = circuits(network)
    manager.options.build_timeout = 2.0
    for circuit in list(manager.circuits.values()):
        circuit.end(0)
    failed: list[set[bytes]] = []

    def note(circuit: Any) -> None:
        if circuit.status == "FAILED":
            failed.append({relay.id for relay in circuit.path})

    manager.on_circuit = note
    for number in range(20):
        stream = manager.streams.open(request(key=number))
        connect(network, stream, 15)
    assert all(dead.id in path for path in failed)
    assert len(failed) < 6, "once it is known, it is left alone"


def test_circuits_are_chosen_by_one_selector_until_the_list_changes(network: SimNetwork) -> None:
    serve(network)
    manager = circuits(network)
    settle(network)
    streams = [manager.streams.open(request(key="first"))]
    network.net.run_until(lambda: streams[0].connected)
    selector = manager.paths.selectors.get(manager.default)
    for number in range(5):
        streams.append(manager.streams.open(request(key=number)))
    network.net.run_until(lambda: all(stream.connected for stream in streams))
    assert manager.paths.selectors.get(manager.default) is selector
    directory = network.client.node.directory
    before = directory.revision
    network.relays[0].node.keeper.republish()
    keeper = network.client.node.keeper
    keeper._later("fetch", 0.0, keeper._fetch)
    network.net.run_until(lambda: directory.revision != before, 120)
    streams.append(manager.streams.open(request(key="last")))
    network.net.run_until(lambda: streams[-1].connected)
    assert manager.paths.selectors.get(manager.default) is not selector


# sharing


def test_isolation_and_newnym(network: SimNetwork) -> None:
    serve(network)
    manager = circuits(network)
    keys = ["a", "b", "a", "b", "c"]
    streams = [manager.streams.open(request(key=key)) for key in keys]
    network.net.run_until(lambda: all(stream.connected for stream in streams))

    def used() -> list[int]:
        return [item.circuit.number for item in manager.streams.streams.values() if item.circuit is not None]

    numbers = used()
    assert numbers[0] == numbers[2]
    assert numbers[1] == numbers[3]
    assert len(set(numbers)) == 3
    manager.newnym()
    streams.append(manager.streams.open(request(key="a")))
    network.net.run_until(lambda: streams[-1].connected)
    assert used()[-1] not in numbers
    assert used()[:-1] == numbers, "old streams stay where they are"


def test_a_dirty_circuit_takes_no_new_streams(network: SimNetwork) -> None:
    serve(network)
    manager = circuits(network)
    first = manager.streams.open(request())
    network.net.run_until(lambda: first.connected)
    (old,) = [item.circuit for item in manager.streams.streams.values()]
    network.net.run(manager.options.max_dirtiness + 5)
    second = manager.streams.open(request())
    network.net.run_until(lambda: second.connected)
    assert [item.circuit for item in manager.streams.streams.values()] != [old, old]
    assert old is not None
    assert old.status == "BUILT", "it lives on for the stream that it has"
    first.abort(EndReason.MISC)
    network.net.run(5)
    assert old.status == "CLOSED"


def test_b6_every_level_has_its_hops_and_spares(network: SimNetwork) -> None:
    serve(network)
    manager = circuits(network)
    assert manager.options.level == MEDIUM
    known = [level for level in LEVELS.values() if not level.strict]  # nothing tells where simulated relays are
    for level in (*known, *(parse_level(f"custom:{hops}") for hops in range(1, 7))):
        stream = manager.streams.open(request(level=level, key=level.name))
        connect(network, stream)
        circuit = list(manager.streams.streams.values())[-1].circuit
        assert circuit is not None
        assert (circuit.level, len(circuit.path)) == (level, level.hops)
        assert len({relay.id for relay in circuit.path}) == level.hops
        relays = {node.id: node for node in network.relays}
        held = sum(len(relays[relay.id].node.relay.circuits) > 0 for relay in circuit.path)  # type: ignore[union-attr]
        assert held == level.hops, "so many relays hold a part of it"


def test_streams_that_get_a_spare_leave_the_circuit_that_was_kept_for_them_to_others(network: SimNetwork) -> None:
    serve(network)
    settle(network)
    manager = circuits(network)
    isolation = manager.isolation(("first",))
    for circuit in list(manager.circuits.values()):
        circuit.end(0)
    under_way: list[Any] = []

    def one_is_ready() -> bool:
        under_way[:] = [one for one in manager.circuits.values() if one.status != "BUILT"]
        return bool(under_way) and len(under_way) < len(manager.circuits)

    network.net.run_until(one_is_ready)
    under_way[0].isolation = isolation  # as if a stream had asked before the other one was ready
    stream = manager.streams.open(request(key="first"))
    connect(network, stream)
    settle(network)
    assert [one.isolation for one in manager.circuits.values()].count(isolation) == 1
