"""How many circuits, CREATEs, EXTENDs, streams and links others may have, and that nobody takes them all."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from twisted.internet.protocol import Factory, Protocol

from backrooms.circuit.stream import Stream
from backrooms.errors import CircuitError
from backrooms.node import limits
from backrooms.node.limits import CLIENT_CREATES, CLIENT_CREATES_BURST, CLIENT_REFUSALS_BURST, EXTENDS_OF_CLIENT
from backrooms.node.link import Link
from backrooms.wire.cell import DestroyReason
from backrooms.wire.relay import EndReason
from tests.node.crafted import Crafted, Stranger, Waiting, create, handshake, hop, relay
from tests.simnet.node import SimNetwork, SimNode


def circuit(network: SimNetwork, *path: SimNode, link: Link | None = None) -> Crafted:
    """A circuit that is there, or is not to be."""
    one = Crafted(network, [hop(node) for node in path], link)
    one.settle()
    return one


def circuits_of(node: SimNode, link: Link) -> int:
    """How many circuits a relay has on the other end of a client's link."""
    here = link.driver.tcp.getHost()
    return sum(one.link.address == f"{here.host}:{here.port}" for one in relay(node).circuits)


def nothing_is_left(node: SimNode) -> bool:
    """Whether a relay's accounts are empty, as they must be when it has no circuits."""
    machine = relay(node)
    found = machine.limits
    shares: list[Any] = [found._circuits, found._extends, found._streams, found._half_open]
    return not any(map(len, shares)) and not found._extends_to and not machine.exiting


# circuits


def test_circuits_of_one_peer_and_in_all(quiet: SimNetwork) -> None:
    node = quiet.relays[2]
    strangers = [Stranger(quiet, f"stranger{number}") for number in range(3)]
    links = [stranger.connect(node) for stranger in strangers]
    held = relay(node).limits
    held._per_peer = 4
    hog = [circuit(quiet, node, link=links[0]) for _ in range(6)]
    assert [one.ended for one in hog] == [None] * 4 + [DestroyReason.RESOURCE_LIMIT] * 2
    # There are as many as there may be, but the next one comes from somebody who has none.
    held._circuits.limit = len(relay(node).circuits)
    first, second = (circuit(quiet, node, link=link) for link in links[1:])
    assert first.built
    assert second.built
    assert [one.ended for one in hog[:4]] == [None, None, *[DestroyReason.RESOURCE_LIMIT] * 2], "the newest went"
    assert relay(node).counts["ended for another peer's circuit"] == 2
    assert relay(node).counts["too many circuits of one peer, or in all"] == 2
    for link in links:
        link.driver.fail(Exception("done"))
    quiet.net.run_until(lambda: not relay(node).circuits, 60)
    assert nothing_is_left(node)


def test_links_from_one_address_share_what_one_peer_may_have(quiet: SimNetwork) -> None:
    node = quiet.relays[2]
    relay(node).limits._per_peer = 3
    stranger = Stranger(quiet)
    links = [stranger.connect(node) for _ in range(2)]
    made = [circuit(quiet, node, link=links[number % 2]) for number in range(4)]
    assert [one.ended for one in made] == [None] * 3 + [DestroyReason.RESOURCE_LIMIT]


# CREATEs


def test_a_flood_of_creates_is_refused_and_then_cut_off(quiet: SimNetwork) -> None:
    """CREATE and DESTROY in a row, as fast as the link takes them: somebody who pays nothing for handshakes."""
    node = quiet.relays[2]
    stranger = Stranger(quiet)
    link = stranger.connect(node)
    message = handshake(quiet, node)
    before = relay(node).handshakes
    sent = 0
    while link.open and sent < 10_000:
        for _ in range(50):
            owner = Waiting()
            queue = link.open_circuit(owner, stranger.rng)
            link.channel.create(queue.circuit_id, message)
            link.release(queue.circuit_id, DestroyReason.NONE, quiet.net.now)
            sent += 1
        quiet.net.run(0.05)
    assert not link.open
    counts = relay(node).counts
    assert CLIENT_REFUSALS_BURST <= counts["CREATEs too fast"] <= CLIENT_REFUSALS_BURST + 200
    assert relay(node).handshakes - before < CLIENT_CREATES_BURST + 10
    assert node.node.channels.refused["a flood of CREATEs"] == 1
    assert relay(node).waiting == 0
    assert circuit(quiet, node).built, "others notice nothing"
    # The same address does no better with a new link, until some time has passed.
    again = stranger.connect(node)
    for _ in range(200):
        create(quiet, again, message)
    quiet.net.run(0.5)
    assert not again.open
    quiet.net.run(CLIENT_CREATES_BURST / CLIENT_CREATES)
    assert circuit(quiet, node, link=stranger.connect(node)).built


def test_a_relay_may_create_more_and_keeps_its_link(quiet: SimNetwork) -> None:
    first, second = quiet.relays[2:4]
    link = quiet.net.run_until(first.node.channels.link(second.id))
    message = handshake(quiet, second)
    for _ in range(4):
        for _ in range(CLIENT_CREATES_BURST):
            create(quiet, link, message)
        quiet.net.run(0.5)
    assert relay(second).counts["CREATEs too fast"] == 0
    for _ in range(2 * CLIENT_REFUSALS_BURST):
        create(quiet, link, message)
    quiet.net.run(1)
    assert relay(second).counts["CREATEs too fast"] > 0
    assert link.open


# EXTENDs


def test_extends_to_a_silent_relay_wait_within_bounds(quiet: SimNetwork) -> None:
    first, silent, other = quiet.relays[2], quiet.relays[3], quiet.exits[0]
    quiet.net.run_until(first.node.channels.link(silent.id))
    silent.host.freeze()
    link = Stranger(quiet).connect(first)
    flood = [Crafted(quiet, [hop(first), hop(silent)], link) for _ in range(EXTENDS_OF_CLIENT + 20)]
    quiet.net.run(5)
    ended = [one.ended for one in flood if one.ended is not None]
    assert ended == [DestroyReason.RESOURCE_LIMIT] * 20
    assert relay(first).counts[limits.TOO_MANY_EXTENDS] == 20
    assert circuit(quiet, first, other).built, "the way to others is free"
    quiet.net.run(20)
    assert all(one.ended is not None for one in flood)
    assert relay(first).counts["EXTEND timed out"] == EXTENDS_OF_CLIENT
    assert not len(relay(first).limits._extends)
    assert not relay(first).limits._extends_to
    silent.host.thaw()


def test_who_has_most_extends_under_way_makes_room(quiet: SimNetwork) -> None:
    first, silent = quiet.relays[2], quiet.relays[3]
    quiet.net.run_until(first.node.channels.link(silent.id))
    silent.host.freeze()
    relay(first).limits._extends.limit = 10
    link = Stranger(quiet).connect(first)
    flood = [Crafted(quiet, [hop(first), hop(silent)], link) for _ in range(10)]
    quiet.net.run(1)
    assert not any(one.ended for one in flood)
    honest = Crafted(quiet, [hop(first), hop(silent)])
    quiet.net.run(1)
    assert honest.ended is None
    assert [one.ended for one in flood] == [None] * 9 + [DestroyReason.RESOURCE_LIMIT]
    silent.host.thaw()
    honest.settle()
    assert honest.built


def test_one_next_relay_does_not_take_all_places(quiet: SimNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EXTENDS_TO_RELAY", 5)
    first, silent = quiet.relays[2], quiet.relays[3]
    quiet.net.run_until(first.node.channels.link(silent.id))
    silent.host.freeze()
    link = Stranger(quiet).connect(first)
    flood = [Crafted(quiet, [hop(first), hop(silent)], link) for _ in range(7)]
    quiet.net.run(1)
    assert sum(one.ended == DestroyReason.RESOURCE_LIMIT for one in flood) == 2
    assert circuit(quiet, first, quiet.exits[0]).built
    silent.host.thaw()


def test_a_circuit_that_ends_while_a_link_is_dialled_waits_for_it_no_longer(quiet: SimNetwork) -> None:
    """CREATE, EXTEND and DESTROY in a row must not pile up what waits for a relay that cannot be reached."""
    first, gone = quiet.relays[2], quiet.relays[3]
    quiet.hush(gossip=True)  # nobody else may have tried to reach it
    gone.host.kill("silent")
    quiet.net.run(200)
    channels = first.node.channels
    link = Stranger(quiet).connect(first)
    for _ in range(20):
        one = Crafted(quiet, [hop(first), hop(gone)], link)
        quiet.net.run_until(partial(len, relay(first).limits._extends), 5)
        link.release(one.circuit_id, DestroyReason.NONE, quiet.net.now)
        quiet.net.run(0.1)
        assert not len(relay(first).limits._extends)
        dial = channels._dials.get(gone.id)
        assert dial is None or not dial.waiting


# streams


class Quiet(Protocol):
    """A destination that says nothing."""


def begin(one: Crafted, port: int = 80, host: str = "web.example") -> Stream:
    stream = Stream()
    one.machine.begin(stream, host, port)
    return stream


def test_streams_in_all_are_shared_by_circuits(quiet: SimNetwork) -> None:
    quiet.web.reactor.listenTCP(80, Factory.forProtocol(Quiet))
    guard, exit_node = quiet.relays[2], quiet.exits[0]
    relay(exit_node).limits._streams.limit = 10
    hog, honest = circuit(quiet, guard, exit_node), circuit(quiet, quiet.relays[3], exit_node)
    many = [begin(hog) for _ in range(12)]
    quiet.net.run(2)
    assert [stream.connected for stream in many] == [True] * 10 + [False] * 2
    assert {stream.ended for stream in many[10:]} == {EndReason.RESOURCELIMIT}
    few = [begin(honest) for _ in range(3)]
    quiet.net.run(2)
    assert all(stream.connected for stream in few)
    assert [stream.ended for stream in many[:10]] == [None] * 7 + [EndReason.RESOURCELIMIT] * 3
    assert relay(exit_node).counts[limits.TOO_MANY_STREAMS] == 2 + 3
    assert exit_node.node.view.refused()["circuit: too many streams"] == 5
    quiet.net.run(1)
    assert len(relay(exit_node).exit.connections) == 10
    for stream in [*many, *few]:
        stream.abort(EndReason.MISC)
    quiet.net.run(2)
    assert not len(relay(exit_node).limits._streams)
    assert not relay(exit_node).exit.connections


def test_streams_that_are_not_connected_leave_room_for_others(quiet: SimNetwork) -> None:
    quiet.web.reactor.listenTCP(80, Factory.forProtocol(Quiet))
    nowhere = quiet.net.host("nowhere")
    quiet.net.names["nowhere.example"] = [nowhere.address]
    guard, exit_node = quiet.relays[2], quiet.exits[0]
    quiet.net.cut(exit_node.host, nowhere)
    relay(exit_node).limits._half_open.limit = 5
    hog, honest = circuit(quiet, guard, exit_node), circuit(quiet, quiet.relays[3], exit_node)
    many = [begin(hog, host="nowhere.example") for _ in range(8)]
    quiet.net.run(1)
    assert [stream.ended for stream in many] == [None] * 5 + [EndReason.RESOURCELIMIT] * 3
    one = begin(honest)
    quiet.net.run_until(lambda: one.connected, 5)
    assert [stream.ended for stream in many[:5]] == [None] * 4 + [EndReason.RESOURCELIMIT]
    assert len(relay(exit_node).limits._half_open) == 4
    quiet.net.run(30)
    assert all(stream.ended for stream in many)
    assert not len(relay(exit_node).limits._half_open)
    assert len(relay(exit_node).limits._streams) == 1


def test_a_circuit_that_ends_gives_everything_back(quiet: SimNetwork) -> None:
    quiet.web.reactor.listenTCP(80, Factory.forProtocol(Quiet))
    exit_node = quiet.exits[0]
    one = circuit(quiet, quiet.relays[2], exit_node)
    streams = [begin(one) for _ in range(5)] + [begin(one, port=81) for _ in range(2)]
    quiet.net.run(2)
    assert sum(stream.connected for stream in streams) == 5
    assert len(relay(exit_node).limits._streams) == 5
    one.close()
    quiet.net.run_until(lambda: not relay(exit_node).circuits, 60)
    assert nothing_is_left(exit_node)


# links


def test_idle_links_are_closed_the_longest_idle_first(quiet: SimNetwork) -> None:
    node = quiet.relays[2]
    keeper = node.node.link_limit
    for link in node.node.channels.links:
        link.held_until = quiet.net.now + 1000
    stranger = Stranger(quiet)
    links = []
    for _ in range(6):
        links.append(stranger.connect(node))
        quiet.net.run(1)
    used = circuit(quiet, node, link=links[0])
    keeper.limit = len(node.node.channels.links) + 1
    later = [stranger.connect(node) for _ in range(4)]
    quiet.net.run(1)
    assert used.ended is None
    assert [link.open for link in links] == [True, False, False, False, True, True]
    assert all(link.open for link in later)
    assert len(node.node.channels.links) == keeper.limit
    assert node.node.sheds == {"link: idle, and too many": 3}


def test_when_no_link_is_idle_the_client_that_has_most_loses_one(quiet: SimNetwork) -> None:
    node = quiet.relays[2]
    keeper = node.node.link_limit
    hog, honest = Stranger(quiet, "hog"), Stranger(quiet, "honest")
    many = [circuit(quiet, node, link=hog.connect(node)) for _ in range(6)]
    for link in node.node.channels.links:
        link.held_until = quiet.net.now + 1000  # so none of them is idle
    keeper.limit = len(node.node.channels.links)
    one = circuit(quiet, node, link=honest.connect(node))
    assert one.built
    assert [each.ended for each in many] == [None] * 5 + [DestroyReason.CHANNEL_CLOSED]
    assert node.node.sheds["link: too many"] == 1
    with pytest.raises(CircuitError):
        hog.connect(node)  # who has most gets no more
    assert one.ended is None
