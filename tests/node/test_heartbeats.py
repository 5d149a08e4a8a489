"""Dead relays in a whole simulated network: who notices, who hears of it, and what clients then do."""

from __future__ import annotations

import pytest

from backrooms.errors import WireError
from backrooms.gossip.suspicions import make_suspicion
from backrooms.node import heartbeats
from backrooms.node.hearsay import SOURCES, Hearsay
from backrooms.node.heartbeats import Heartbeats
from backrooms.wire.heartbeat import Heartbeat, LivenessRequest, Rumours
from tests.keys import NETWORK_ID, identity
from tests.node.conftest import MakeNetwork
from tests.simnet.node import SimNetwork, SimNode

RELAYS = 8


def hearsay(network: SimNetwork) -> Hearsay:
    side = network.client.node._client_side
    assert side is not None
    return side.hearsay


def beats(node: SimNode) -> Heartbeats:
    assert node.node.heartbeats is not None
    return node.node.heartbeats


def accusations(network: SimNetwork) -> int:
    detectors = [beats(node).detector for node in network.relays]
    return sum(one.accusations for one in detectors if one is not None)


def guards(network: SimNetwork) -> set[bytes]:
    circuits = network.client.node.circuits
    assert circuits is not None
    return {one.path[0].id for one in circuits.circuits.values()}


@pytest.fixture
def listening(make: MakeNetwork) -> SimNetwork:
    """A network whose client hears rumours from three relays."""
    network = make(relays=RELAYS, exits=3)
    network.start()
    network.ready()
    network.net.run_until(lambda: len(hearsay(network).sources()) == SOURCES, 60)
    network.net.run(12)
    return network


def bystander(network: SimNetwork) -> SimNode:
    """A relay that is no guard of the client."""
    return next(node for node in network.relays if node.id not in guards(network))


def paths(network: SimNetwork, count: int = 60) -> set[bytes]:
    """The relays of many new paths."""
    circuits = network.client.node.circuits
    assert circuits is not None
    route = next(iter(circuits.circuits.values())).route
    found = [circuits.paths.choose(route) for _ in range(count)]
    return {relay.id for path in found if path is not None for relay in path}


def test_w15_a_stopped_relay_is_out_of_new_paths_in_seconds_and_back_when_it_goes_on(listening: SimNetwork) -> None:
    victim = bystander(listening)
    entries = guards(listening)
    assert victim.id in paths(listening)
    victim.host.freeze()
    listening.net.run_until(lambda: victim.id in hearsay(listening).doubted(), 5)
    assert victim.id not in paths(listening)
    assert guards(listening) == entries
    listening.net.run(20)
    others = [node for node in listening.relays if node is not victim]
    assert all(beats(node).believed_dead() == [victim.id] for node in others)
    assert hearsay(listening).doubted() == {victim.id}
    victim.host.thaw()
    listening.net.run_until(lambda: not hearsay(listening).doubted(), 5)
    assert victim.id in paths(listening)
    listening.net.run(30)
    assert all(beats(node).believed_dead() == [] for node in listening.relays)
    assert hearsay(listening).doubted() == frozenset()


def test_a_killed_relay_is_out_of_new_paths_and_back_when_it_starts_again(listening: SimNetwork) -> None:
    victim = bystander(listening)
    victim.host.kill("close")
    listening.net.run_until(lambda: victim.id in hearsay(listening).doubted(), 5)
    listening.net.run_until(
        lambda: len(hearsay(listening).sources()) == SOURCES and victim.id not in hearsay(listening).sources(), 60
    )
    victim.start()
    listening.net.run_until(lambda: victim.id not in hearsay(listening).doubted(), 100)


def test_nobody_is_accused_in_a_network_that_is_well(listening: SimNetwork) -> None:
    before = [node.node.channels.traffic()[1] for node in listening.relays]
    listening.net.run(60)
    assert accusations(listening) == 0
    for node, sent in zip(listening.relays, before, strict=True):
        assert (node.node.channels.traffic()[1] - sent) / 60 < 6 * 4096, "bytes a second, of which one heartbeat"
    circuits = listening.client.node.circuits
    assert circuits is not None
    circuits.go_dormant()
    listening.net.run(5)
    assert hearsay(listening).sources() == [], "a sleeping client hears nothing"
    circuits.go_active()
    listening.net.run_until(lambda: len(hearsay(listening).sources()) == SOURCES, 60)


def test_who_joins_late_is_told_and_a_client_learns_of_the_long_dead(make: MakeNetwork) -> None:
    network = make(relays=6, exits=2)
    victim = network.relays[3]
    for node in network.relays:
        node.start()
    network.net.run_until(lambda: all(len(node.node.directory) == 6 for node in network.relays), 60)
    network.net.run(20)
    victim.host.kill("silent")
    network.net.run(60)
    network.client.start()
    network.net.run_until(lambda: victim.id in hearsay(network).doubted(), 60)


def lie(network: SimNetwork, liars: list[SimNode], victim: SimNode) -> Rumours:
    told = []
    for node in liars:
        number = network.relays.index(node)
        sign = identity(number)
        told.append(
            make_suspicion(
                lambda message, sign=sign: sign.sign(message, ("ed25519",))["ed25519"],  # type: ignore[misc]
                NETWORK_ID,
                node.id,
                victim.id,
                0,
                network.net.wall(),
            )
        )
    return Rumours(tuple(told))


def spread(network: SimNetwork, source: SimNode, message: Rumours) -> None:
    for connection in list(beats(source)._clients):
        connection.send(message)


def test_lies_of_two_relays_are_not_believed_and_those_of_three_are_refuted(listening: SimNetwork) -> None:
    victim = bystander(listening)
    sources = [listening.relay(one) for one in hearsay(listening).sources()]
    liars = [node for node in listening.relays if node is not victim]
    before = guards(listening)
    spread(listening, sources[0], lie(listening, liars[:2], victim))
    listening.net.run(5)
    assert hearsay(listening).doubted() == frozenset()
    spread(listening, sources[0], lie(listening, liars[:3], victim))
    listening.net.run_until(lambda: victim.id in hearsay(listening).doubted(), 2)
    for node in listening.relays:  # they tell the relays as well, and honest ones the victim
        detector = beats(node).detector
        assert detector is not None
        if node not in (*liars[:3], victim):
            detector.rumours(lie(listening, liars[:3], victim), listening.net.wall())
    listening.net.run_until(lambda: not hearsay(listening).doubted(), 3)
    assert guards(listening) == before


def test_who_breaks_the_rules_loses_the_stream_or_link_it_did_that_on(listening: SimNetwork) -> None:
    net, (victim, liar, other) = listening.net, listening.relays[:3]
    (one,) = lie(listening, [liar], victim).suspicions
    forged = Rumours((type(one)(one.accuser, one.accused, one.incarnation + 1, one.made, one.signature),))
    source = listening.relay(hearsay(listening).sources()[0])
    spread(listening, source, forged)
    net.run_until(lambda: source.id not in hearsay(listening).sources(), 2)
    link = net.run_until(liar.node.channels.link(other.id))
    link.channel.send_message(forged.TYPE, forged.encode())
    net.run_until(lambda: not link.open, 5)

    link = net.run_until(listening.client.node.channels.link(other.id))
    link.channel.send_message(Heartbeat.TYPE, Heartbeat(1, 1).encode())
    net.run_until(lambda: not link.open, 5)  # clients send none

    asking = next(iter(hearsay(listening)._sources))
    for _ in range(10):
        asking.send(LivenessRequest(bytes(32)))
    net.run_until(lambda: asking.closed, 5)

    with pytest.raises(WireError):
        hearsay(listening)._heard(45, b"")


def test_floods_are_not_read_and_clients_get_no_more_than_they_take(listening: SimNetwork) -> None:
    one, other = listening.relays[:2]
    link = listening.net.run_until(one.node.channels.link(other.id))
    for _ in range(500):
        link.channel.send_message(Heartbeat.TYPE, Heartbeat(1, 8000).encode())
    listening.net.run(1)
    assert beats(other).counts["too many, or too soon"] > 300
    assert link.open
    source = listening.relay(hearsay(listening).sources()[0])
    told = lie(listening, listening.relays[:2], listening.relays[4])
    for _ in range(200):
        beats(source)._tell(told)
    assert len(beats(source)._unpushed) <= heartbeats.MAX_UNPUSHED
    listening.net.run(40)
    assert beats(source)._unpushed == []
    assert source.id in hearsay(listening).sources()


def test_a_link_is_kept_for_the_heartbeats_of_relays_that_we_watch_alone(listening: SimNetwork) -> None:
    """Anybody can make a key and send heartbeats, and could hold all links that a relay can have."""
    server, speaker = listening.relays[:2]
    listening.net.run_until(speaker.node.channels.link(server.id))
    link = next(one for one in server.node.channels.links if one.peer_id == speaker.id and one.open)
    detector = beats(server).detector
    assert detector is not None

    def beat() -> float:
        link.held_until = 0.0
        beats(server)._message(Heartbeat.TYPE, link, Heartbeat(1, 1000).encode())
        return link.held_until

    assert speaker.id in detector.watched
    assert beat() > 0.0
    server.node.directory.drop(speaker.id)  # as if it had never been there
    detector.watched.pop(speaker.id)
    assert beat() == 0.0
