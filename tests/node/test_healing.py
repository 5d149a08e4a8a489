"""Circuits that break or stall are replaced before the next stream needs them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from backrooms.levels import LOW, MEDIUM, parse_level
from backrooms.node.circuits import Circuits, ClientCircuit
from backrooms.node.clientcircuit import PROBE_TIME
from backrooms.node.spares import PROBE_PAUSE
from backrooms.node.streams import SLOW
from backrooms.path.route import Route
from tests.node.conftest import MakeNetwork
from tests.node.test_guards import settle
from tests.node.test_streams import circuits as manager
from tests.node.test_streams import connect, request, serve
from tests.simnet.node import SimNetwork


@pytest.fixture
def wide(make: MakeNetwork) -> SimNetwork:
    """Eight relays, four of them exits, so that one may be missing."""
    network = make(relays=8, exits=4)
    serve(network)
    network.start()
    network.ready()
    settle(network)
    ready(network)
    return network


def spares(circuits: Circuits, level: str = "medium") -> list[ClientCircuit]:
    """Those that a stream of this level would be given at once."""
    return [
        one
        for one in circuits.circuits.values()
        if one.status == "BUILT"
        and one.isolation is None
        and one.level.name == level
        and not (one.retired or one.reserved)
    ]


def ended(circuits: list[ClientCircuit]) -> bool:
    """Whether none of them is there any more."""
    return all(one.status == "CLOSED" for one in circuits)


def ready(network: SimNetwork, limit: float = 60) -> float:
    """Let time pass until all spares are there; how long that took."""
    began = network.net.now
    circuits = manager(network)
    network.net.run_until(lambda: len(spares(circuits)) >= circuits.options.spares[MEDIUM], limit)
    return network.net.now - began


def test_broken_spares_are_replaced_before_the_next_stream(
    wide: SimNetwork, capsys: pytest.CaptureFixture[str]
) -> None:
    """The relay of a built circuit dies: first one in the middle, then an exit, then the guard of all of them."""
    circuits = manager(wide)
    for position in (1, 2, 0):
        broken = spares(circuits)[0]
        dead = wide.relay(broken.path[position].id)
        dead.host.kill()
        wide.net.run_until(partial(ended, [broken]), 5)
        took = ready(wide)
        with capsys.disabled():
            print(f"\nrelay {position + 1} of a spare died: spares were there again after {took:.2f} simulated seconds")
        assert took < 10
        assert all(dead.id != one.path[0].id for one in spares(circuits))
        there = {one.number for one in spares(circuits)}
        began = wide.net.now
        stream = circuits.streams.open(request(key=position))
        connect(wide, stream, 5)
        used = next(item.circuit for item in circuits.streams.streams.values())
        assert used is not None
        assert used.number in there, "it did not wait for one to be built"
        assert wide.net.now - began < 1
        stream.abort(1)
        dead.start()
        wide.net.run(40)
        ready(wide)


def test_stalled_spares_are_noticed(wide: SimNetwork) -> None:
    """The relay is there, but does nothing: nobody says that the circuit is broken."""
    circuits = manager(wide)
    for position in (1, 2, 0):
        frozen = spares(circuits)[0].path[position]
        stalled = [one for one in spares(circuits) if frozen.id in (relay.id for relay in one.path)]
        wide.relay(frozen.id).host.freeze()
        limit = 1.5 * PROBE_PAUSE + PROBE_TIME + 2
        wide.net.run_until(partial(ended, stalled), limit)
        wide.net.run(15)
        ready(wide)
        assert not any(frozen.id in (relay.id for relay in one.path) for one in spares(circuits))
        stream = circuits.streams.open(request(key=position))
        connect(wide, stream, 5)
        stream.abort(1)
        wide.relay(frozen.id).host.thaw()
        wide.net.run(40)
        ready(wide)


def test_a_stream_on_a_stalled_circuit_is_moved(wide: SimNetwork) -> None:
    circuits = manager(wide)
    first = circuits.streams.open(request())
    connect(wide, first)
    used = next(item.circuit for item in circuits.streams.streams.values())
    assert used is not None
    wide.relay(used.path[1].id).host.freeze()
    second = circuits.streams.open(request())
    assert [item.circuit for item in circuits.streams.streams.values()] == [used, used]
    connect(wide, second, SLOW + PROBE_TIME + 20)
    assert used.status == "CLOSED"
    assert first.closed, "what it had begun cannot go on"
    wide.relay(used.path[1].id).host.thaw()


def test_a_slow_destination_is_no_stalled_circuit(wide: SimNetwork) -> None:
    circuits = manager(wide)
    wide.web.freeze()
    stream = circuits.streams.open(request(port=81))
    wide.net.run_until(lambda: any(item.circuit for item in circuits.streams.streams.values()), 5)
    used = next(item.circuit for item in circuits.streams.streams.values())
    assert used is not None
    wide.net.run(3 * SLOW)
    assert used.status == "BUILT"
    stream.abort(1)
    wide.web.thaw()


def test_each_level_in_use_has_a_spare(wide: SimNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backrooms.node.spares.IN_USE", 60.0)
    circuits = manager(wide)
    wide.net.run(30)
    assert spares(circuits, "low") == []
    for level in (LOW, parse_level("custom:4")):
        connect(wide, circuits.streams.open(request(level=level, key=level.name)))
    wide.net.run(10)
    assert len(spares(circuits, "low")) == len(spares(circuits, "custom:4")) == 1
    assert len(spares(circuits)) == circuits.options.spares[MEDIUM]
    for item in list(circuits.streams.streams.values()):
        assert item.stream is not None
        item.stream.abort(1)
    wide.net.run(90)
    for one in spares(circuits, "low"):
        one.end(0)
    wide.net.run(30)
    assert spares(circuits, "low") == [], "not in use any more"


def test_circuits_of_another_route_are_not_shared(wide: SimNetwork) -> None:
    circuits = manager(wide)
    plain = request(key="same")
    rules = replace(plain, route=Route(MEDIUM, avoid=(wide.relays[0].node.config.node.nickname,)))
    for one in (plain, rules, plain, rules):
        connect(wide, circuits.streams.open(one))
    used = [item.circuit for item in circuits.streams.streams.values()]
    assert used[0] is used[2]
    assert used[1] is used[3]
    assert used[0] is not used[1]
    first, second = used[0], used[1]
    assert first is not None
    assert second is not None
    assert (first.route, second.route) == (Route(MEDIUM), rules.route)
    assert wide.relays[0].id not in {relay.id for relay in second.path}
