"""Guards of a real node: one entry for all circuits, kept over restarts, left only when it must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from backrooms.errors import PathError
from backrooms.levels import HIGH, MEDIUM, Level, parse_level
from backrooms.netdir.directory import Directory
from backrooms.node.circuits import ClientCircuit
from backrooms.node.guards import FILE_NAME, PATIENCE, Guards
from backrooms.node.timers import Timers
from backrooms.path.constraints import Constraints
from backrooms.path.guards import DAY, LAYER2_MOST
from backrooms.path.route import Route
from backrooms.path.selector import PathSelector
from tests.keys import NETWORK_ID, fake_relay
from tests.node.conftest import MakeNetwork
from tests.node.test_streams import circuits, connect, request, serve
from tests.simnet.node import SimNetwork

LAYERED = Level("layered", 4, layer2=True)
"""`high` without what it must know of countries."""


def guards(network: SimNetwork) -> Guards:
    return circuits(network).paths.guards


def guard_ids(network: SimNetwork) -> list[bytes]:
    """The client's guards that are in the list of relays, the first ones first."""
    return [guard.id for guard in guards(network).sample.ranked(network.client.node.directory)]


def built(network: SimNetwork) -> list[ClientCircuit]:
    """Circuits for streams that enter by a guard."""
    found = circuits(network).circuits.values()
    return [one for one in found if one.status == "BUILT" and len(one.path) > 1 and not one.reserved]


def entries(network: SimNetwork) -> set[bytes]:
    return {circuit.path[0].id for circuit in built(network)}


def settle(network: SimNetwork) -> bytes:
    """Wait for the guard that stays, and for circuits through it alone; its id."""
    network.net.run_until(lambda: network.client.node.keeper.settled and guards(network)._kept, 120)
    for one in built(network):
        one.end(0)  # some are from the time when not all relays were known

    def is_settled() -> bool:
        first = guard_ids(network)[0]
        return guards(network).sample.guards[first].order == 1 and entries(network) == {first}

    network.net.run_until(is_settled, 60)
    return guard_ids(network)[0]


def use(network: SimNetwork, count: int) -> None:
    """Open streams that share nothing, each on a circuit of its own."""
    for _ in range(count):
        circuits(network).newnym()
        stream = circuits(network).streams.open(request())
        connect(network, stream)
        stream.abort(1)


# one entry


def test_all_circuits_enter_by_one_guard(network: SimNetwork) -> None:
    serve(network)
    guard = settle(network)
    for hops in range(2, 6):
        connect(network, circuits(network).streams.open(request(level=parse_level(f"custom:{hops}"), key=hops)))
    use(network, 10)
    assert entries(network) == {guard}
    assert len({one.path[1].id for one in built(network)} | {one.exit.id for one in built(network)}) > 2


def test_a_circuit_of_one_relay_has_no_guard(network: SimNetwork) -> None:
    serve(network)
    settle(network)
    before = (network.client.folder / "state" / FILE_NAME).read_bytes()
    ends = set()
    for number in range(12):
        circuits(network).newnym()
        stream = circuits(network).streams.open(request(level=parse_level("none"), key=number))
        connect(network, stream)
        ends |= {one.path[0].id for one in circuits(network).circuits.values() if len(one.path) == 1}
    assert ends == {node.id for node in network.exits}
    assert (network.client.folder / "state" / FILE_NAME).read_bytes() == before


def test_a_sample_of_half_a_list_is_not_kept(make: MakeNetwork) -> None:
    network = make()
    contact = network.relays[0]
    contact.start()
    network.net.run(5)
    network.client.start()
    sample = guards(network).sample
    network.net.run_until(lambda: len(guards(network).sample.guards) > 0, 30)
    assert json.loads((network.client.folder / "state" / FILE_NAME).read_text())["drawn_from"] == 1
    for node in network.relays[1:]:
        node.start()
    settle(network)
    assert guards(network).sample is not sample
    assert {guard.id for guard in guards(network).sample.guards.values()} == {node.id for node in network.relays}
    saved = json.loads((network.client.folder / "state" / FILE_NAME).read_text())
    assert len(saved["guards"]) == 6
    assert saved["drawn_from"] == 0


# restarts


def test_the_guard_is_the_same_after_a_restart(make: MakeNetwork) -> None:
    network = make()
    network.start()
    network.ready()
    guard = settle(network)
    before = (network.client.folder / "state" / FILE_NAME).read_bytes()
    for how in ("kill", "stop"):
        if how == "stop":
            network.net.run_until(network.client.stop(), 30)
        network.client.host.kill("silent")
        network.net.run(10)
        network.client.start()
        network.net.run_until(lambda: bool(built(network)), 60)
        assert entries(network) == {guard}
    after = json.loads((network.client.folder / "state" / FILE_NAME).read_bytes())
    assert after == json.loads(before), "nothing was written anew"


def test_a_client_that_is_stopped_early_has_its_guard_already(make: MakeNetwork) -> None:
    """Whoever stops a new client before its list has settled must not make it draw another guard each time."""
    network = make()
    for relay in network.relays:
        relay.start()
    network.net.run_until(lambda: all(len(relay.node.directory) == 6 for relay in network.relays), 60)
    first = []
    for _ in range(4):
        network.client.start()
        network.net.run_until(lambda: any(one.status == "BUILT" for one in circuits(network).circuits.values()), 20)
        assert not network.client.node.keeper.settled
        first.append(guard_ids(network)[0])
        network.client.host.kill()
        network.net.run(1)
    assert len(set(first)) == 1


def test_the_file_does_not_change_with_use(network: SimNetwork) -> None:
    serve(network)
    settle(network)
    path = network.client.folder / "state" / FILE_NAME
    before = path.stat()
    use(network, 5)
    network.net.run(120)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert path.stat().st_mode & 0o777 == 0o600


# dead guards


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards that are down are tried again every minute instead of every ten."""
    monkeypatch.setattr("backrooms.path.guards.RETRIES", ((float("inf"), 60.0),))


@pytest.mark.usefixtures("quick")
def test_a_dead_guard_gives_way_to_the_next_and_is_used_again_when_it_is_back(make: MakeNetwork) -> None:
    network = make(relays=8, exits=5)  # so many that no guard is the only exit
    network.start()
    network.ready()
    serve(network)
    guard = settle(network)
    use(network, 1)
    second = guard_ids(network)[1]
    dead = network.relay(guard)
    dead.host.kill("silent")
    network.net.run(60)
    assert entries(network) == {second}
    use(network, 3)
    assert entries(network) == {second}
    assert [one.status for one in guards(network).status()][:2] == ["down", "up"]
    dead.start()
    network.net.run(130)  # a circuit is built to see whether it is back
    use(network, 3)
    assert [one.status for one in guards(network).status()][:2] == ["up", "up"]
    spares = {one.path[0].id for one in built(network) if one.isolation is None}
    assert spares == {guard}


def test_what_dies_behind_the_guard_does_not_change_it(network: SimNetwork) -> None:
    serve(network)
    guard = settle(network)
    others = [node for node in network.relays if node.id != guard and node not in network.exits]
    for node in others[:2]:
        node.host.kill()
        use(network, 5)
    assert entries(network) == {guard}
    assert guards(network).status()[0].status == "up"


@pytest.mark.usefixtures("quick")
def test_offline_no_guard_is_spent(network: SimNetwork) -> None:
    serve(network)
    guard = settle(network)
    file = network.client.folder / "state" / FILE_NAME
    before = file.read_bytes()
    heal = network.net.partition(network.client.host)
    for one in list(circuits(network).circuits.values()):
        one.end(0)
    network.net.run(200)
    assert not entries(network)
    assert file.read_bytes() == before
    heal()
    network.net.run_until(lambda: bool(built(network)), 200)
    network.net.run(130)
    spares = {one.path[0].id for one in built(network) if one.isolation is None}
    assert spares == {guard}, "the first guard is used again"


def test_rumours_and_scores_never_change_the_guard(network: SimNetwork) -> None:
    serve(network)
    guard = settle(network)
    shunned = {guard, network.exits[0].id if network.exits[0].id != guard else network.exits[1].id}
    circuits(network).shun.append(lambda: shunned)
    use(network, 8)
    assert entries(network) == {guard}
    fresh = [one for one in built(network) if one.accepted]
    assert fresh
    assert all(shunned.isdisjoint(relay.id for relay in one.path[1:]) for one in fresh)


def test_a_spare_with_a_relay_that_is_doubted_is_replaced_once(network: SimNetwork) -> None:
    settle(network)
    spare = next(one for one in built(network) if one.isolation is None)
    everybody = {node.id for node in network.relays}
    circuits(network).shun.append(lambda: everybody)
    network.net.run(5)
    assert spare.status == "CLOSED"
    network.net.run(5)
    numbers = {one.number for one in built(network)}
    network.net.run(30)
    assert {one.number for one in built(network)} == numbers, "there are no others, so those stay"


def test_a_distrusted_guard_is_left_and_told(network: SimNetwork, said: list[str]) -> None:
    guard = settle(network)
    assert guards(network).distrust(guard, "it destroys 20 % of its circuits")
    assert not guards(network).distrust(guard, "again")
    network.net.run(10)
    assert guard not in entries(network)
    assert any("20 % of its circuits" in line for line in said)
    assert guards(network).status()[-1].status == "unusable"
    saved = json.loads((network.client.folder / "state" / FILE_NAME).read_text())
    assert [one["reason"] for one in saved["guards"] if one["distrusted"]] == ["it destroys 20 % of its circuits"]


# rules and second hops


def selector(count: int, exclude: frozenset[bytes] = frozenset()) -> PathSelector:
    return PathSelector.over([fake_relay(number) for number in range(count)], Constraints(exclude=exclude))


def alone(state: Path, count: int = 0, settled: bool = True) -> Guards:
    """Guards without a node, in a network of so many relays."""
    import random

    directory = Directory(NETWORK_ID)
    for number in range(count):
        directory.insert(fake_relay(number), 0.0)
    timers = Timers(Clock())
    return Guards(timers, directory, state, random.Random(5), lambda: settled)


def test_the_sample_is_of_different_neighbourhoods_as_far_as_it_can_be(tmp_path: Path) -> None:
    """90 of 120 relays are in one /16; of the sample they have as few places as there are."""
    relays = [fake_relay(n, address=f"tls:66.1.{n}.1:443" if n >= 30 else None) for n in range(120)]
    found = alone(tmp_path)
    for relay in relays:
        found._directory.insert(relay, 0.0)
    found.first(PathSelector.over(relays, Constraints()))
    crowd = {relay.id for relay in relays[30:]}
    assert len(found.sample.guards) == 20
    assert sum(one in crowd for one in found.sample.guards) <= 1


def test_rules_on_entries_are_hard(tmp_path: Path) -> None:
    found = alone(tmp_path, 100)
    first = found.first(selector(100))[0][0].id
    sampled = frozenset(found.sample.guards)
    strict = found.first(selector(100, exclude=sampled))
    assert all(relay.id not in sampled for group in strict for relay in group)
    assert found.first(selector(100))[0][0].id == first
    with pytest.raises(PathError, match=r"no guard: of 100 relays known 0 may be the entry, .*; nothing was relaxed"):
        found.first(selector(100, exclude=frozenset(fake_relay(number).id for number in range(100))))


def test_guards_that_are_not_in_half_a_list_are_waited_for(tmp_path: Path) -> None:
    alone(tmp_path, 30).first(selector(30))
    early = alone(tmp_path, 0, settled=False)
    for number in range(30, 40):
        early._directory.insert(fake_relay(number), 0.0)
    half = PathSelector.over([fake_relay(number) for number in range(30, 40)], Constraints())
    assert early.first(half) == []
    assert all(guard.unlisted is None for guard in early.sample.guards.values())
    early._began -= PATIENCE + 1
    assert early.first(half), "but not for ever"


def test_second_hops_are_few_and_stay(network: SimNetwork) -> None:
    serve(network)
    guard = settle(network)
    seen = set()
    for number in range(12):
        stream = circuits(network).streams.open(request(level=LAYERED, key=number))
        connect(network, stream)
        seen |= {one.path[1].id for one in built(network) if one.level is LAYERED}
        stream.abort(1)
    assert entries(network) == {guard}
    kept = set(guards(network).sample.seconds)
    assert seen <= kept
    assert len(kept) <= LAYER2_MOST
    saved = json.loads((network.client.folder / "state" / FILE_NAME).read_text())
    assert len(saved["second_hops"]) == len(kept)
    ends = [one.until - network.net.wall() for one in guards(network).sample.seconds.values()]
    assert all(0 < end <= 12 * DAY for end in ends)


def test_high_has_second_hops() -> None:
    assert HIGH.layer2
    assert not MEDIUM.layer2
    assert Route(HIGH).level.hops > 2
