"""A relay's circuits: what it refuses, and whom it lets wait."""

from __future__ import annotations

from typing import Any

import pytest

from backrooms.circuit.origin import HopKeys
from backrooms.circuit.stream import Stream
from backrooms.errors import CircuitError
from backrooms.node.learning import LEARN_PAUSE, LEARN_SOURCES
from backrooms.node.relay import HANDSHAKES_PER_LINK
from backrooms.wire.cell import DestroyReason
from backrooms.wire.documents import DirFetch
from backrooms.wire.relay import Extend, RelayCommand
from tests import keys
from tests.node.conftest import MakeNetwork
from tests.node.crafted import Crafted, create, handshake, hop, relay
from tests.simnet.node import SimNetwork


def test_a_crafted_circuit_works(network: SimNetwork) -> None:
    one = Crafted(network, [hop(node) for node in network.relays[:3]])
    one.settle()
    assert one.built
    one.close()
    assert not any(
        circuit.machine.closed for node in network.relays for circuit in relay(node).circuits if circuit.machine
    )


def test_b4_extend_to_the_relay_itself_is_refused(network: SimNetwork) -> None:
    first = network.relays[0]
    one = Crafted(network, [hop(first), hop(first)])
    one.settle()
    assert one.ended == DestroyReason.PROTOCOL
    assert relay(first).counts["EXTEND back or to this relay"] == 1


def test_b4_extend_back_is_refused(network: SimNetwork) -> None:
    first, second = network.relays[:2]
    one = Crafted(network, [hop(first), hop(second), hop(first)])
    one.settle()
    assert one.ended == DestroyReason.DESTROYED, "the reason is not passed on"
    assert relay(second).counts["EXTEND back or to this relay"] == 1


def test_b4_extend_to_an_unknown_relay_is_refused_after_one_look(network: SimNetwork) -> None:
    first = network.relays[3]
    questions: list[tuple[float, DirFetch]] = []
    ask = first.node.keeper._questions.ask

    async def count(link: Any, request: Any, kind: Any) -> Any:
        if isinstance(request, DirFetch) and request.ids == (stranger.relay_id,):
            questions.append((network.net.now, request))
        return await ask(link, request, kind)

    first.node.keeper._questions.ask = count  # type: ignore[method-assign]
    stranger = HopKeys(bytes(range(100, 132)), keys.identity(0).public.id)
    began = network.net.now
    one = Crafted(network, [hop(first), stranger])
    one.settle()
    assert one.ended == DestroyReason.CONNECT_FAILED
    assert network.net.now - began < 4
    assert relay(first).counts["EXTEND to an unknown relay"] == 1
    asked, when = len(questions), {at for at, _ in questions}
    assert 1 <= asked <= LEARN_SOURCES
    assert max(when) - began < LEARN_PAUSE
    for _ in range(5):  # nobody makes us ask again and again
        again = Crafted(network, [hop(first), stranger])
        began = network.net.now
        again.settle()
        assert again.ended == DestroyReason.CONNECT_FAILED
        assert network.net.now - began < 1
    assert len(questions) == asked


def test_extend_to_a_relay_that_has_just_come_is_learnt(make: MakeNetwork) -> None:
    network = make(relays=6)
    late = network.relays[2]
    for node in network.nodes:
        if node is not late:
            node.start()
    first = network.relays[3]
    network.net.run_until(lambda: first.node.keeper.settled, 60)
    first.node.keeper.rest()  # it takes no part in gossip
    late.start()
    others = [node for node in network.relays if node is not first]
    network.net.run_until(lambda: all(late.id in node.node.directory for node in others), 60)
    assert late.id not in first.node.directory, "it has yet to hear of it"
    one = Crafted(network, [hop(first), hop(late)])
    one.settle(4)
    assert one.built
    assert late.id in first.node.directory
    one.close()


def test_b4_a_second_extend_is_refused(network: SimNetwork) -> None:
    first, second, third = network.relays[:3]
    one = Crafted(network, [hop(first), hop(second)])
    network.net.run_until(lambda: one.events)  # the first hop is there, EXTEND is queued
    extra = Extend(third.id, bytes(1400))
    one.machine.edge.send(RelayCommand.EXTEND, 0, extra.encode())
    one.settle()
    network.net.run(1)
    assert one.ended == DestroyReason.PROTOCOL
    assert sum(relay(first).counts.values()) == 1


def test_b4_extend_behind_a_whole_circuit_is_refused(network: SimNetwork) -> None:
    """The relay in the middle gets a second EXTEND long after the first: its next hop is there already."""
    first, second, third = network.relays[:3]
    one = Crafted(network, [hop(first), hop(second)])
    one.settle()
    assert one.built
    two_layers = one.machine._forward
    one.machine._forward = two_layers[:1]  # speak to the first hop again
    one.machine.edge.send(RelayCommand.EXTEND, 0, Extend(third.id, bytes(1400)).encode())
    network.net.run_until(lambda: one.ended is not None, 5)
    assert one.ended == DestroyReason.PROTOCOL
    assert relay(first).counts["second EXTEND"] == 1


def test_numbers_that_a_client_chooses_fill_no_table(network: SimNetwork) -> None:
    first = network.relays[0]
    for there in (1, 77, 150):
        one = Crafted(network, [hop(first)])
        one.settle()
        one.machine.edge.send(RelayCommand.RESOLVE, 1, bytes([0, 200]) + bytes(there))
        network.net.run(1)
        assert one.ended == DestroyReason.PROTOCOL
    assert list(relay(first).counts.values()) == [3], "one kind, whatever the numbers in its text"


def test_extend_to_a_relay_that_does_not_answer(network: SimNetwork) -> None:
    first, dead = network.relays[2], network.relays[3]
    dead.host.kill("close")
    network.net.run(1)
    one = Crafted(network, [hop(first), hop(dead)])
    one.settle()
    assert one.ended == DestroyReason.CONNECT_FAILED
    assert relay(first).counts["EXTEND failed"] == 1


def test_extend_to_a_relay_that_falls_silent_has_an_end(network: SimNetwork) -> None:
    first, frozen = network.relays[2], network.relays[3]
    network.net.run_until(first.node.channels.link(frozen.id))
    frozen.host.freeze()
    one = Crafted(network, [hop(first), hop(frozen)])
    network.net.run_until(lambda: one.ended is not None, 25)
    assert one.ended == DestroyReason.DESTROYED
    assert relay(first).counts["EXTEND timed out"] == 1
    frozen.host.thaw()


def test_a_circuit_that_ends_while_it_is_extended_leaves_no_timer(network: SimNetwork) -> None:
    first, frozen = network.relays[2], network.relays[3]
    network.net.run_until(first.node.channels.link(frozen.id))
    frozen.host.freeze()
    one = Crafted(network, [hop(first), hop(frozen)])
    network.net.run_until(lambda: any(c.next and c.extending for c in relay(first).circuits), 5)
    one.close()
    network.net.run(25)
    assert relay(first).counts["EXTEND timed out"] == 0
    frozen.host.thaw()


# handshakes


def test_b4_replayed_old_and_misdirected_handshakes_are_refused_alike(network: SimNetwork) -> None:
    node, other = network.relays[:2]
    link = network.net.run_until(network.client.node.channels.link(node.id))
    good = handshake(network, node)
    first = create(network, link, good)
    network.net.run(1)
    assert first.accepted
    bad = {
        "replayed": good,
        "old": handshake(network, node, age=180),
        "from the future": handshake(network, node, age=-180),
        "for another relay": handshake(network, other),
        "for another onion key": handshake(network, node, hop(other).onion_key),
        "changed": good[:-1] + bytes([good[-1] ^ 1]),
        "empty": bytes(len(good)),
    }
    for what, message in bad.items():
        owner = create(network, link, message)
        network.net.run(1)
        assert (owner.accepted, owner.ended) == (False, DestroyReason.HANDSHAKE), what
    assert relay(node).counts["handshake refused"] == len(bad)
    assert link.open


def test_b4_waiting_handshakes_are_bounded_and_dropped_with_their_link(network: SimNetwork) -> None:
    node = network.relays[0]
    network.net.run_until(network.client.node.channels.link(node.id))
    machine = relay(node)
    server = next(one for one in node.node.channels.links if one.peer_id is None)
    message = handshake(network, node)
    for number in range(HANDSHAKES_PER_LINK + 10):
        machine.create(server, number + 1, message)
    assert machine.counts["too many handshakes"] == 10
    done = machine.handshakes
    server.driver.fail(CircuitError("lost"))
    network.net.run(5)
    assert machine.handshakes - done < 10, "the rest was dropped"
    assert machine._waiting_count == 0
    assert not machine._waiting
    assert server.owners == {}


def test_a_circuit_given_up_before_its_turn_costs_no_handshake(network: SimNetwork) -> None:
    node = network.relays[0]
    network.net.run_until(network.client.node.channels.link(node.id))
    machine = relay(node)
    server = next(one for one in node.node.channels.links if one.peer_id is None)
    machine.create(server, 77, handshake(network, node))
    done = machine.handshakes
    server.destroyed(77, DestroyReason.NONE, network.net.now)
    network.net.run(1)
    assert machine.handshakes == done
    assert 77 not in server.owners


def test_a_circuit_that_ended_during_its_handshake_leaves_nothing(network: SimNetwork) -> None:
    """`created` says that it is too late; the id is free and nobody owns it."""
    node = network.relays[0]
    network.net.run_until(network.client.node.channels.link(node.id))
    machine = relay(node)
    server = next(one for one in node.node.channels.links if one.peer_id is None)
    circuits, owners = set(machine.circuits), dict(server.owners)
    machine.create(server, 78, handshake(network, node))  # the channel has never heard of circuit 78
    network.net.run(1)
    assert machine.circuits == circuits
    assert server.owners == owners


def test_a_relay_that_is_stopping_takes_no_circuits(network: SimNetwork) -> None:
    node = network.relays[0]
    link = network.net.run_until(network.client.node.channels.link(node.id))
    relay(node).closing = True
    owner = create(network, link, handshake(network, node))
    network.net.run(1)
    assert owner.ended == DestroyReason.SHUTTING_DOWN


@pytest.mark.parametrize("number", [0, 3])
def test_w6_each_relay_knows_its_neighbours_only(network: SimNetwork, number: int) -> None:
    """What a relay holds of a circuit: two links and their ids. The client's address is known to the first alone."""
    path = network.relays[number : number + 3]
    clients_own = {circuit for node in path for circuit in relay(node).circuits}
    one = Crafted(network, [hop(node) for node in path])
    one.settle()
    assert one.built
    client = network.client.host.address
    for place, node in enumerate(path):
        (circuit,) = [
            circuit
            for circuit in set(relay(node).circuits) - clients_own
            if circuit.link.peer_id == (path[place - 1].id if place else None)
            and (circuit.next.link.peer_id if circuit.next else None) == (path[place + 1].id if place < 2 else None)
        ]
        held = [circuit.link.address, circuit.next.link.address if circuit.next else ""]
        assert any(client in address for address in held) == (place == 0)
    one.close()


def test_b4_a_stream_on_a_circuit_of_one_hop_is_refused(network: SimNetwork) -> None:
    """An exit that did not offer it must not see both ends, whatever the client's own path rules say."""
    exit_node = network.relays[-1]
    relay(exit_node).exit.single_hop = False
    one = Crafted(network, [hop(exit_node)])
    one.settle()
    assert one.built
    before = len(network.net.lookups)
    one.machine.begin(Stream(), "one-hop.example", 80)
    network.net.run_until(lambda: one.ended is not None, 10)
    assert one.ended == DestroyReason.PROTOCOL
    assert relay(exit_node).counts["a stream on a circuit of one hop"] == 1
    assert len(network.net.lookups) == before, "nothing was looked up"
