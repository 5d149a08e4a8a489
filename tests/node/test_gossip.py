"""Real relays gossip: over links, with whom they know, and without first contacts."""

from __future__ import annotations

from typing import Any

import pytest

from backrooms.wire.documents import DirPublish, DirPublished, PublishStatus
from backrooms.wire.gossip import News, Offer, Summary
from tests import keys
from tests.node.conftest import MakeNetwork
from tests.node.test_directory_keeper import ask
from tests.simnet.node import SimNetwork, SimNode


def machine(node: SimNode) -> Any:
    """A relay's gossip machine."""
    gossip = node.node.keeper.gossip
    assert gossip is not None
    return gossip.machine


def roots(nodes: list[SimNode]) -> set[bytes]:
    return {machine(node).digests.root for node in nodes}


def say(network: SimNetwork, speaker: SimNode, listener: SimNode, message: Any) -> Any:
    """Send one message, whatever the speaker's own machine thinks; the link it went over."""
    link = network.net.run_until(speaker.node.channels.link(listener.id))
    link.channel.send_message(message.TYPE, message.encode())
    network.net.run(1)
    return link


def test_w17_relays_come_to_equal_lists(relays: SimNetwork) -> None:
    relays.net.run_until(lambda: len(roots(relays.relays)) == 1, 30)
    for node in relays.relays:
        assert len(node.node.directory) == 6
    relays.net.run(15)
    assert all(node.node.keeper.gossip.in_touch for node in relays.relays)  # type: ignore[union-attr]


@pytest.mark.parametrize("dead", [0, 1])
def test_w9_the_network_goes_on_without_its_first_contact(make: MakeNetwork, dead: int) -> None:
    """Known are the two contacts. One dies; the other one, too, once a late relay has started from it."""
    network = make(relays=7)
    late = network.relays[6]
    for node in network.nodes:
        if node is not late:
            node.start()
    others = [node for number, node in enumerate(network.relays[:6]) if number != dead]
    network.net.run_until(lambda: all(len(node.node.directory) == 6 for node in [*others, network.client]), 60)
    network.relays[dead].host.kill()
    late.start()
    network.net.run_until(lambda: all(late.id in node.node.directory for node in others), 60)
    network.relays[1 - dead].host.kill()
    living = [*others[1:], late]
    changed = living[1].node.directory.get(living[1].id)
    assert changed is not None
    living[1].node.keeper.republish()

    def told() -> bool:
        held = [node.node.directory.get(living[1].id) for node in living]
        return all(one is not None and one.record.revision > changed.record.revision for one in held)

    network.net.run_until(told, 60)
    network.net.run(70)  # lists are saved
    living[2].host.kill()
    network.net.run(5)
    living[2].start()
    network.net.run_until(lambda: machine(living[2]).heard_at > 0, 60)  # from its saved list, without any contact
    assert len(living[2].node.directory) == 7


def test_w9_one_address_is_enough_to_start(make: MakeNetwork) -> None:
    network = make(relays=5)
    network.relays[0].host.kill()
    for node in network.nodes[1:]:
        node.start()
    network.net.run_until(lambda: all(len(node.node.directory) == 4 for node in network.nodes[1:]), 60)


def test_a_new_relay_is_known_everywhere_within_seconds(make: MakeNetwork) -> None:
    network = make(relays=6)
    late = network.relays[5]
    early = network.relays[:5]
    for node in early:
        node.start()
    network.net.run_until(lambda: all(len(node.node.directory) == 5 for node in early), 60)
    network.net.run(10)
    late.start()
    began = network.net.now
    network.net.run_until(lambda: all(late.id in node.node.directory for node in early), 30)
    assert network.net.now - began < 10


def test_w17_a_partition_of_60_s_heals_in_30(relays: SimNetwork) -> None:
    relays.net.run_until(lambda: len(roots(relays.relays)) == 1, 30)
    here, there = relays.relays[:3], relays.relays[3:]
    heal = relays.net.partition(*[node.host for node in here])
    relays.net.run(1)
    for node in (here[1], there[1]):
        node.node.keeper.republish()
    relays.net.run(59)
    assert roots(here) != roots(there)
    heal()
    relays.net.run_until(lambda: len(roots(relays.relays)) == 1, 30)


def test_a_forged_record_costs_its_sender_the_link(relays: SimNetwork, said: list[str]) -> None:
    victim, liar = relays.relays[2], relays.relays[4]
    other = relays.relays[3].node.directory.get(relays.relays[3].id)
    assert other is not None
    newer = keys.descriptor(3, now=relays.net.wall() + 10, certificate=other.certificate)
    forged = newer.record_raw[:-1] + bytes([newer.record_raw[-1] ^ 1])
    link = say(relays, liar, victim, Summary(bytes(32), b"", (News(other.certificate.digest, forged),)))
    assert not link.open
    held = victim.node.directory.get(other.id)
    assert held is not None
    assert held.record_raw == other.record_raw
    assert [line for line in said if "ed25519 signature is wrong" in line]


def test_an_expired_record_costs_nothing(relays: SimNetwork) -> None:
    """Who passes it on may have a slow clock."""
    victim, sender = relays.relays[2], relays.relays[4]
    other = relays.relays[3].node.directory.get(relays.relays[3].id)
    assert other is not None
    future = keys.descriptor(3, now=relays.net.wall() + 7200, certificate=other.certificate)
    news = News(other.certificate.digest, future.record_raw)
    link = say(relays, sender, victim, Summary(bytes(32), b"", (news,)))
    assert link.open
    assert machine(victim).counts["refused"] == 1
    held = victim.node.directory.get(other.id)
    assert held is not None
    assert held.record_raw == other.record_raw


def test_clients_neither_gossip_nor_hear_gossip(network: SimNetwork) -> None:
    link = say(network, network.client, network.relays[2], Summary(bytes(32)))
    assert not link.open
    relay = network.relays[3]
    network.net.run_until(network.client.node.channels.link(relay.id))
    served = next(one for one in relay.node.channels.links if one.peer_id is None)
    served.channel.send_message(Summary.TYPE, Summary(bytes(32)).encode())
    network.net.run(1)
    assert not served.open


def test_a_malformed_message_ends_the_link(relays: SimNetwork) -> None:
    link = relays.net.run_until(relays.relays[4].node.channels.link(relays.relays[2].id))
    link.channel.send_message(Offer.TYPE, b"\0\0")
    relays.net.run(1)
    assert not link.open


def test_b4_a_relay_may_not_publish_without_end(relays: SimNetwork) -> None:
    server, busy = relays.relays[0], relays.relays[4]
    own = busy.node.directory.get(busy.id)
    assert own is not None
    answers = []
    for number in range(20):
        one = keys.descriptor(4, now=relays.net.wall() + number, certificate=own.certificate)
        message = DirPublish(b"", one.record_raw)
        answers.append(ask(relays, busy, server, message, DirPublished).status)
    assert answers.count(PublishStatus.ACCEPTED) <= 8
    assert answers[-1] == PublishStatus.REFUSED


def test_two_records_of_one_revision_are_refused_and_kept_as_proof(relays: SimNetwork) -> None:
    victim, sender = relays.relays[2], relays.relays[4]
    other = victim.node.directory.get(relays.relays[3].id)
    assert other is not None
    twin = keys.descriptor(3, now=other.record.revision, certificate=other.certificate, nickname="twin")
    assert twin.record.revision == other.record.revision
    found: list[bytes] = []
    victim.node.directory.on_equivocation.append(lambda error: found.append(error.offered))
    link = say(relays, sender, victim, Summary(bytes(32), b"", (News(other.certificate.digest, twin.record_raw),)))
    assert link.open, "who passes it on may be honest"
    assert found == [twin.record_raw]
    held = victim.node.directory.get(other.id)
    assert held is not None
    assert held.record_raw == other.record_raw
