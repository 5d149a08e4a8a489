"""Levels and routes on real relays in simulated time: who holds a circuit, how long it takes, what is never relaxed."""

from __future__ import annotations

import pytest

from backrooms.errors import ConfigError
from backrooms.levels import HIGH, LEVELS, LOW, MEDIUM, NONE, parse_level
from backrooms.netdir.geo import Places
from backrooms.netdir.geosource import read_table
from backrooms.node.circuits import ClientCircuit
from backrooms.node.requests import StreamRequest
from backrooms.path.entities import KnownEntities
from backrooms.path.route import Route
from backrooms.path.rules import Knowledge
from backrooms.wire.relay import EndReason
from tests.node.conftest import MakeNetwork
from tests.node.test_streams import circuits, connect, ended, serve
from tests.simnet.node import SimNetwork

COUNTRIES = ("CL", "JP", "CL", "JP", "CL", "JP", "IS", "CH")
"""Of the eight relays; the last two are the exits. None of an entry's country is in a bloc with an exit's."""
TABLE = read_table(
    [f"40.{n}.0.0\t40.{n}.255.255\t{65000 + n}\t{country}\tNet\n" for n, country in enumerate(COUNTRIES)], "sim.tsv"
)
KNOWN = KnownEntities(knowledge=Knowledge(TABLE), places=Places(TABLE))


@pytest.fixture
def placed(make: MakeNetwork) -> SimNetwork:
    """Eight relays in countries, and a client that knows where they are."""
    network = make(relays=8, exits=2, places=lambda number: (f"40.{number}.0.1",))
    serve(network)
    network.start()
    network.ready()
    paths = circuits(network).paths
    paths.selectors.configure(paths.selectors.constraints, KNOWN)
    network.net.run_until(lambda: len(network.client.node.directory) == 8 and network.client.node.keeper.settled, 120)
    return network


def request(route: Route, key: str = "") -> StreamRequest:
    return StreamRequest("web.example", 80, (key, route), route, "127.0.0.1:5", "SOCKS5")


def through(network: SimNetwork, route: Route, key: str = "") -> ClientCircuit:
    """The circuit that a stream of this route gets."""
    stream = circuits(network).streams.open(request(route, key))
    connect(network, stream)
    circuit = list(circuits(network).streams.streams.values())[-1].circuit
    assert circuit is not None
    return circuit


def test_b6_relays_count_the_hops_of_every_level(placed: SimNetwork) -> None:
    by_id = {node.id: node for node in placed.relays}
    for level in (NONE, LOW, MEDIUM, HIGH):
        circuit = through(placed, Route(level))
        path = [by_id[relay.id] for relay in circuit.path]
        assert len({node.id for node in path}) == level.hops
        assert path[-1] in placed.exits
        holding = [node for node in path if node.node.relay is not None and node.node.relay.circuits]
        assert len(holding) == level.hops, "so many relays hold a part of it"
        if level is HIGH:
            known = circuits(placed).paths.guards.sample.seconds
            assert path[1].id in known, "the second hop is one of those that are kept"
            assert COUNTRIES[placed.relays.index(path[0])] in ("CL", "JP")


def test_b6_latency_rises_with_the_level(placed: SimNetwork) -> None:
    """The time from asking to connected on circuits that are there already: the round trip over all their relays."""
    seconds = {}
    for level in LEVELS.values():
        through(placed, Route(level), "warm")
        times = []
        for _ in range(3):
            start = placed.net.now
            through(placed, Route(level), "warm")
            times.append(placed.net.now - start)
        seconds[level.hops] = min(times)
    assert [seconds[hops] for hops in sorted(seconds)] == sorted(seconds.values())
    assert len(set(seconds.values())) == len(seconds)


def test_b6_what_cannot_be_built_at_its_level_fails(placed: SimNetwork) -> None:
    """With relays of two countries left, one of them the exits', `high` finds no path; `medium` still does."""
    manager = circuits(placed)
    hopeless = Route(HIGH, avoid=("{CL}", "{JP}"), name="routes[0]")
    stream = manager.streams.open(request(hopeless))
    assert ended(placed, stream) == EndReason.NOROUTE
    assert not any(circuit.route == hopeless for circuit in manager.circuits.values())
    assert len(through(placed, Route(MEDIUM)).path) == 3
    with pytest.raises(ConfigError):
        parse_level("max")


def test_b10_routes_hold_their_rules_and_share_no_circuit(placed: SimNetwork) -> None:
    swiss = through(placed, Route(MEDIUM, exit=("{CH}",)), "a")
    assert COUNTRIES[[node.id for node in placed.relays].index(swiss.exit.id)] == "CH"
    avoiding = through(placed, Route(MEDIUM, avoid=("{CH}", "{CL}")), "b")
    numbers = [[node.id for node in placed.relays].index(relay.id) for relay in avoiding.path]
    assert not {COUNTRIES[number] for number in numbers} & {"CH", "CL"}
    plain = through(placed, Route(MEDIUM), "b")
    assert plain not in (swiss, avoiding)
    again = through(placed, Route(MEDIUM, exit=("{CH}",), name="elsewhere"), "a")
    assert again is swiss, "where a route comes from does not tell it apart"
