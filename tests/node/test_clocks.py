"""Clocks that are wrong: by an hour all works, by a day a node says so and does nothing that cannot work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.protocol import Protocol

from backrooms.netdir.descriptor import CLOCK_TOLERANCE
from backrooms.node.clocks import Clocks
from backrooms.service import Node
from tests.node.conftest import MakeNetwork
from tests.simnet.node import SimNetwork, SimNode, SocksRefused

HOUR, DAY = 3600, 86400
REFUSAL = "no circuits are built and this node is not published"


class Wall:
    """The wall clock of a node, which is `off` by some seconds."""

    def __init__(self, node: Node, off: float) -> None:
        self.off = off
        self._right = node.timers.wall
        node.timers.wall = self

    def __call__(self) -> float:
        return self._right() + self.off


def built(network: SimNetwork) -> int:
    circuits = network.client.node.circuits
    assert circuits is not None
    return sum(circuit.status == "BUILT" for circuit in circuits.circuits.values())


def published(network: SimNetwork, relay: SimNode) -> bool:
    """Whether the first contact has the relay in its list."""
    return relay.id in network.relays[0].node.directory


def built_with(network: SimNetwork, relay: SimNode) -> Callable[[], bool]:
    """Whether the client has built a circuit through the relay."""
    circuits = network.client.node.circuits
    assert circuits is not None
    found = circuits.circuits
    return lambda: any(
        one.status == "BUILT" and relay.id in [hop.id for hop in one.path] for one in list(found.values())
    )


def refused(network: SimNetwork) -> float:
    """A request that fails; how long that took."""
    began = network.net.now
    with pytest.raises(SocksRefused):
        network.open("web.example", 80, Protocol())
    return network.net.now - began


# an hour


@pytest.mark.parametrize("minutes", [-89, -60, 60, 89])
def test_a_client_whose_clock_is_an_hour_off_works(make: MakeNetwork, minutes: int) -> None:
    network = make()
    Wall(network.client.node, minutes * 60)
    network.start()
    network.ready()
    network.net.run(3)
    assert network.client.node.view.bootstrap()[2] == "Done"


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_relay_whose_clock_is_an_hour_off_works(make: MakeNetwork, hours: int) -> None:
    network = make()
    relay = network.relays[3]
    Wall(relay.node, hours * HOUR)
    network.start()
    network.ready()
    circuits = network.client.node.circuits
    assert circuits is not None
    with_relay = built_with(network, relay)
    for _ in range(40):
        circuits.newnym()
        for circuit in list(circuits.circuits.values()):
            circuit.end(0)
        network.net.run(2)
        if with_relay():
            break
    assert with_relay()


# a day


@pytest.mark.parametrize("days", [-1, 1, 1000])
def test_a_client_whose_clock_is_a_day_off_says_so_and_builds_nothing(
    make: MakeNetwork, said: list[str], days: int
) -> None:
    network = make()
    wall = Wall(network.client.node, days * DAY)
    network.start()
    network.net.run(30)
    view = network.client.node.view
    way = "ahead of" if days > 0 else "behind"
    text = f"this machine's clock is {abs(days) * 1440} minutes {way} those of relays (2 asked)"
    assert view.bootstrap()[2] == text
    assert [line for line in said if REFUSAL in line] == [f"{text}: {REFUSAL} until it is set right"]
    assert built(network) == 0
    assert refused(network) < 1, "at once"
    wall.off = 0  # somebody sets it
    network.net.run_until(lambda: built(network), 60)
    assert view.bootstrap()[2] == "Done"
    assert any(line.startswith("the clock was set by ") for line in said)


@pytest.mark.parametrize("days", [-1, 1])
def test_a_client_whose_clock_goes_wrong_is_told(network: SimNetwork, said: list[str], days: int) -> None:
    circuits = network.client.node.circuits
    assert circuits is not None
    wall = Wall(network.client.node, days * DAY)
    network.net.run(3)
    for circuit in list(circuits.circuits.values()):
        circuit.end(0)
    network.net.run_until(lambda: network.client.node.channels.clocks.wrong, 120)
    network.net.run(30)
    assert built(network) == 0
    assert len([line for line in said if REFUSAL in line]) == 1
    wall.off = 0
    network.net.run_until(lambda: built(network), 60)
    assert len(network.client.node.directory) == 6


@pytest.mark.parametrize("days", [-1, 1])
def test_a_relay_whose_clock_is_a_day_off_is_not_published(make: MakeNetwork, said: list[str], days: int) -> None:
    network = make()
    relay = network.relays[3]
    wall = Wall(relay.node, days * DAY)
    network.start()
    network.net.run(60)
    assert not published(network, relay)
    assert len([line for line in said if REFUSAL in line]) == 1
    assert built(network), "the others go on"
    wall.off = 0
    network.net.run_until(lambda: published(network, relay), 60)
    own = relay.node.directory.get(relay.id)
    assert own is not None
    now = relay.node.timers.wall()
    assert abs(own.record.revision - now) < 120
    assert own.certificate.body.created <= now, "nothing is left of a time that was ahead"


def test_a_relay_that_was_published_notices_when_its_clock_goes_wrong(network: SimNetwork, said: list[str]) -> None:
    relay = network.relays[3]
    Wall(relay.node, DAY)
    network.net.run_until(lambda: relay.node.channels.clocks.wrong, 60)
    assert len([line for line in said if REFUSAL in line]) == 1


# who is believed


def judged(*skews: float, contacts: dict[bytes, float] | None = None) -> Clocks:
    clocks = Clocks()
    clocks.contacts = frozenset(contacts or {})
    for number, seconds in enumerate(skews):
        clocks.note(b"%d" % number, seconds, 0.0)
    for one, seconds in (contacts or {}).items():
        clocks.note(one, seconds, 0.0)
    return clocks


@pytest.mark.parametrize(
    ("skews", "contacts", "wrong"),
    [
        ([], {}, False),
        ([DAY], {}, False),
        ([DAY, DAY], {}, True),
        ([-DAY, -DAY], {}, True),
        ([DAY, 0], {}, False),
        ([-DAY, 0], {}, False),
        ([-DAY, -DAY, 0], {}, True),
        ([-DAY, DAY, 0], {}, False),
        ([CLOCK_TOLERANCE] * 3, {}, False),
        ([CLOCK_TOLERANCE + 1] * 3, {}, True),
        ([DAY] * 9, {b"a": 0}, False),
        ([DAY] * 9, {b"a": DAY, b"b": 0}, False),
        ([DAY] * 9, {b"a": DAY, b"b": DAY}, True),
        ([0] * 9, {b"a": DAY, b"b": DAY}, False),
    ],
)
def test_more_than_half_must_say_so_of_the_contacts_too(
    skews: list[float], contacts: dict[bytes, float], wrong: bool
) -> None:
    assert judged(*skews, contacts=contacts).wrong is wrong


def test_changes_are_told_and_a_clock_that_was_set_starts_afresh() -> None:
    clocks = Clocks()
    changes: list[bool] = []
    clocks.on_change = lambda: changes.append(clocks.wrong)
    assert not clocks.look(100.0, 1_000_100.0)
    clocks.note(b"1", DAY, 100.0)
    clocks.note(b"2", DAY, 100.0)
    assert changes == [True]
    clocks.note(b"1", 0, 200.0)
    assert changes == [True, False]
    clocks.note(b"1", DAY, 300.0)
    assert not clocks.look(400.0, 1_000_430.0), "half a minute is nothing"
    assert clocks.wrong
    assert clocks.look(500.0, 1_000_530.0 + DAY)
    assert (clocks.wrong, clocks.skew) == (False, None)
    assert changes == [True, False, True, False]


def test_a_slow_clock_is_not_set_by_anybody() -> None:
    clocks = Clocks()
    assert not any(clocks.look(now, now * 1.001) for now in range(0, 10_000_000, 10_000))


def test_who_dials_us_is_not_asked(relays: SimNetwork) -> None:
    """Anybody can dial a relay, under many identities, and say what he likes of the time."""
    listener, liars = relays.relays[0], relays.relays[2:5]
    for liar in liars:
        Wall(liar.node, DAY)
        relays.net.run_until(liar.node.channels.connect(address_of(listener), listener.id))
    assert listener.node.channels.clocks.skew is None


def address_of(relay: SimNode) -> Any:
    (address,) = relay.node.keeper.addresses(relay.id)
    return address
