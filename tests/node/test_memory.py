"""What waits in a node is bounded, and what goes is the biggest of whoever has most."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.protocol import Factory, Protocol

from backrooms.channel.mux import CELL_MEMORY, CircuitQueue
from backrooms.circuit.stream import Stream
from backrooms.node.memory import CLOSER, LEAST_STEP, LEFT, MUCH, Memory
from backrooms.node.relayedcircuit import RelayedCircuit
from backrooms.node.requests import StreamRequest
from backrooms.wire.cell import CELL_SIZE, DestroyReason
from backrooms.wire.link import fragment
from backrooms.wire.relay import INITIAL_CREDIT
from tests.node.crafted import Crafted, Download, Stranger, hop, relay, serve
from tests.simnet.node import SimNetwork, SimNode

CELL = bytes(CELL_SIZE)
MIB = 1 << 20
SLACK = LEAST_STEP + 262_144
"""What may be read between two looks near the bound, and one read of a socket."""


def memory(node: SimNode) -> Memory:
    return node.node.memory


def built(network: SimNetwork, *path: SimNode, source: Stranger | None = None, count: int = 1) -> list[Crafted]:
    """Circuits along a path, all on one link."""
    link = source.connect(path[0]) if source is not None else None
    made = [Crafted(network, [hop(node) for node in path], link) for _ in range(count)]
    network.net.run_until(lambda: all(one.built for one in made), 60)
    return made


def at(node: SimNode, one: Crafted) -> RelayedCircuit:
    """A circuit as the first relay on its path has it."""
    here = one.link.driver.tcp.getHost().host
    (found,) = [c for c in relay(node).circuits if (c.circuit_id, c.link.peer_host) == (one.circuit_id, here)]
    return found


def towards(node: SimNode, one: Crafted) -> CircuitQueue:
    """The queue of cells for the client."""
    circuit = at(node, one)
    return circuit.link.channel.mux._queues[circuit.circuit_id]


def onwards(node: SimNode, one: Crafted) -> CircuitQueue:
    """The queue of cells for the next relay."""
    side = at(node, one).next
    assert side is not None
    return side.queue


def fill(queue: CircuitQueue, cells: int) -> None:
    """Queue cells. They wait as long as no time passes."""
    for _ in range(cells):
        queue.append(CELL)


def allow(node: SimNode, part: float) -> None:
    """Set the bound so that this part of what waits now is left after the look that follows."""
    memory(node).limit = int(memory(node).total() * part / LEFT)


def ended(circuits: list[Crafted]) -> list[int]:
    """Which of them have ended, after the news had time to arrive."""
    circuits[0].network.net.run(1)
    return [number for number, one in enumerate(circuits) if one.ended is not None]


class Deaf(Protocol):
    """A destination that reads nothing."""

    def connectionMade(self) -> None:
        tcp: Any = self.transport
        tcp.pauseProducing()


# what is counted


def test_cells_are_counted_wherever_they_wait(quiet: SimNetwork) -> None:
    guard = quiet.relays[2]
    (one,) = built(quiet, guard, quiet.exits[0])
    before = memory(guard).measure()
    fill(towards(guard, one), 10)
    fill(onwards(guard, one), 5)
    at(guard, one).link.channel.mux.control(CELL)
    after = memory(guard).measure()
    assert after["cells"] - before["cells"] == 15 * CELL_MEMORY
    assert after["control cells"] - before["control cells"] == CELL_MEMORY
    assert memory(guard).total() == sum(after.values())
    assert guard.node.view.waiting() == (memory(guard).total(), memory(guard).limit)


def test_an_unfinished_link_message_is_counted(quiet: SimNetwork) -> None:
    guard = quiet.relays[2]
    link = Stranger(quiet).connect(guard)
    for cell in fragment(bytes(20_000))[:3]:
        link.channel.mux.control(cell)
    quiet.net.run(1)
    assert memory(guard).measure()["link messages"] == 3 * 4085


def test_handshakes_that_wait_are_counted(quiet: SimNetwork) -> None:
    guard = quiet.relays[2]
    link = Stranger(quiet).connect(guard)
    for _ in range(5):
        link.channel.create(link.channel.new_circuit_id(), bytes(1400))
    quiet.net.run_until(lambda: relay(guard).waiting)
    assert memory(guard).measure()["handshakes"] >= 1400


def test_streams_and_sockets_are_counted_at_both_ends(network: SimNetwork) -> None:
    """An upload to somebody who does not read stops at the stream's credit, and all of it is accounted for."""
    network.web.reactor.listenTCP(80, Factory.forProtocol(Deaf))
    circuits = network.client.node.circuits
    assert circuits is not None
    stream = circuits.streams.open(StreamRequest("web.example", 80, (), None, "127.0.0.1:1", "SOCKS5"))
    network.net.run_until(lambda: stream.connected)
    size = 2 * MIB
    stream.receive(bytes(size), network.net.now)
    network.net.run(20)
    (exit_node,) = [node for node in network.exits if relay(node).exit.connections]
    (connection,) = relay(exit_node).exit.connections
    at_exit = memory(exit_node).measure()
    assert at_exit["sockets"] == connection.unsent <= 65_536
    assert INITIAL_CREDIT / 2 <= at_exit["streams"] <= 2 * connection.machine._window
    at_client = memory(network.client).measure()
    assert at_client["streams"] >= stream.unsent > MIB
    stream.abort(1)
    network.net.run(5)
    assert memory(exit_node).measure()["sockets"] == 0
    assert memory(exit_node).measure()["streams"] < 1000
    assert memory(network.client).total() == 0


def test_a_look_is_due_before_the_bound_can_be_passed(quiet: SimNetwork) -> None:
    one, turn = memory(quiet.relays[2]), quiet.relays[2].node.turn
    one.limit = 400 * MIB
    assert 80 * MIB < turn.watch_at - turn.received <= 400 * MIB / CLOSER
    one.limit = 16 * MIB
    looks = one.looks
    turn.received = int(turn.watch_at) - 1
    with turn:
        pass
    assert one.looks == looks
    turn.received += 1
    with turn:
        pass
    assert one.looks == looks + 1
    assert turn.watch_at >= turn.received + LEAST_STEP


def test_a_fault_of_the_look_is_logged_and_harms_nobody(quiet: SimNetwork, clean: Any) -> None:
    one, turn = memory(quiet.relays[2]), quiet.relays[2].node.turn
    one._channels = None  # type: ignore[assignment]
    turn.received = int(turn.watch_at) + 1
    with turn:
        pass
    assert clean.flush(AttributeError)
    assert turn.watch_at > turn.received


# who goes


def test_the_biggest_goes_first(quiet: SimNetwork, said: list[str]) -> None:
    guard = quiet.relays[2]
    circuits = built(quiet, guard, quiet.exits[0], count=4)
    for one, cells in zip(circuits, (40, 30, 60, 50), strict=True):
        fill(onwards(guard, one), cells)
    allow(guard, 0.5)
    assert memory(guard).total() <= memory(guard).limit
    assert ended(circuits) == [2, 3]
    assert {circuits[2].ended, circuits[3].ended} == {DestroyReason.RESOURCE_LIMIT}
    assert guard.node.sheds == {"memory: circuit ended": 2}
    assert guard.node.view.refused()["memory: circuit ended"] == 2
    assert sum("wait in queues" in line for line in said) == 1


def test_both_directions_of_a_circuit_count(quiet: SimNetwork) -> None:
    guard = quiet.relays[2]
    circuits = built(quiet, guard, quiet.exits[0], count=3)
    fill(onwards(guard, circuits[0]), 30)
    fill(onwards(guard, circuits[1]), 20)
    fill(towards(guard, circuits[1]), 20)
    fill(towards(guard, circuits[2]), 30)
    allow(guard, 0.7)
    assert ended(circuits) == [1]


def test_many_small_circuits_of_one_go_before_the_big_one_of_another(quiet: SimNetwork) -> None:
    guard = quiet.relays[2]
    attackers = built(quiet, guard, quiet.exits[0], source=Stranger(quiet), count=12)
    (honest,) = built(quiet, guard, quiet.exits[0])
    fill(towards(guard, honest), 200)
    for one in attackers:
        fill(onwards(guard, one), 40)
    allow(guard, 0.6)
    assert honest.ended is None
    gone = ended(attackers)
    assert 6 <= len(gone) <= 8
    assert guard.node.sheds["memory: circuit ended"] == len(gone)


def test_a_client_whose_circuits_are_all_small_loses_its_link(quiet: SimNetwork) -> None:
    """A DESTROY for each would be a cell that waits, too."""
    guard = quiet.relays[2]
    attackers = built(quiet, guard, quiet.exits[0], source=Stranger(quiet), count=30)
    (honest,) = built(quiet, guard, quiet.exits[0])
    fill(towards(guard, honest), 100)
    for one in attackers:
        fill(towards(guard, one), 10)
    allow(guard, 0.8)
    assert memory(guard).total() < memory(guard).limit / 2
    assert ended(attackers) == list(range(30))
    assert {one.ended for one in attackers} == {DestroyReason.CHANNEL_CLOSED}
    assert guard.node.sheds == {"memory: link closed": 1}
    assert honest.ended is None


@pytest.mark.parametrize("much", [False, True])
def test_a_relays_link_is_shared_and_goes_last_unless_it_is_to_blame(quiet: SimNetwork, much: bool) -> None:
    first, second = quiet.relays[2:4]
    circuits = built(quiet, first, second, quiet.exits[0], count=3)
    (link,) = {circuit.link for circuit in relay(second).circuits}
    for circuit in relay(second).circuits:
        fill(link.channel.mux._queues[circuit.circuit_id], 30)
    cells = 1 + MUCH // CELL_MEMORY if much else 80
    for _ in range(cells):
        link.channel.mux.control(CELL)
    allow(second, 0.5)
    if much:
        assert second.node.sheds == {"memory: link closed": 1}
    else:
        assert set(second.node.sheds) == {"memory: circuit ended"}
        assert link.open
    quiet.net.run(1)
    assert all(one.ended == DestroyReason.DESTROYED for one in circuits if one.ended is not None)


def test_circuits_of_our_own_are_not_spared(network: SimNetwork) -> None:
    circuits = network.client.node.circuits
    assert circuits is not None
    network.web.reactor.listenTCP(80, Factory.forProtocol(Deaf))
    stream = circuits.streams.open(StreamRequest("web.example", 80, (), None, "127.0.0.1:1", "SOCKS5"))
    network.net.run_until(lambda: stream.connected)
    stream.receive(bytes(3 * MIB), network.net.now)
    memory(network.client).limit = 2 * MIB
    assert stream.closed
    assert memory(network.client).total() <= CELL_MEMORY, "the DESTROY"
    assert network.client.node.sheds == {"memory: circuit ended": 1}


# with real traffic


def test_who_never_reads_is_ended_and_an_honest_transfer_completes(quiet: SimNetwork) -> None:
    """A stranger asks for much on many circuits and stops reading; somebody else loads a file through that relay."""
    guard, exit_node = quiet.relays[2], quiet.exits[0]
    serve(quiet, 3 * MIB)
    stranger = Stranger(quiet)
    attackers = built(quiet, guard, exit_node, source=stranger, count=40)
    (honest,) = built(quiet, guard, exit_node)
    memory(guard).limit = 2 * MIB
    for one in attackers:
        Download(one)
    quiet.net.run(0.1)
    stranger.host.freeze()
    download = Download(honest)
    most = 0
    while download.received < 3 * MIB:
        before = download.received
        for _ in range(20):
            quiet.net.run(0.05)
            most = max(most, memory(guard).total())
        assert download.received > before, "it goes on all the time"
    assert honest.ended is None
    assert MIB < most <= memory(guard).limit + SLACK
    assert sum(guard.node.sheds.values()) > 0
    assert len(relay(guard).circuits) < 40
    stranger.host.thaw()


def test_a_destination_that_never_reads_costs_the_circuits_that_feed_it(quiet: SimNetwork) -> None:
    guard, exit_node = quiet.relays[2], quiet.exits[0]
    quiet.web.reactor.listenTCP(81, Factory.forProtocol(Deaf))
    serve(quiet, MIB)
    attackers = built(quiet, guard, exit_node, source=Stranger(quiet), count=10)
    (honest,) = built(quiet, quiet.relays[3], exit_node)
    memory(exit_node).limit = 2 * MIB
    streams = []
    for one in attackers:
        for _ in range(10):
            stream = Stream()
            one.machine.begin(stream, "web.example", 81)
            streams.append(stream)
    quiet.net.run(1)
    # More than the socket takes, in pieces so that the credit is used to its end.
    for stream in streams:
        stream.receive(bytes(MIB), quiet.net.now)
    download = Download(honest)
    most = 0
    for _ in range(200):
        quiet.net.run(0.05)
        most = max(most, memory(exit_node).total())
    assert download.received == MIB
    assert most <= memory(exit_node).limit + SLACK
    assert exit_node.node.sheds["memory: circuit ended"] > 0
    assert honest.ended is None


def test_below_the_bound_nothing_is_looked_at_twice(quiet: SimNetwork) -> None:
    """A transfer through a node that has room costs no look at all until much has been read."""
    serve(quiet, MIB)
    (one,) = built(quiet, quiet.relays[2], quiet.exits[0])
    looks = memory(quiet.relays[2]).looks
    download = Download(one)
    quiet.net.run_until(lambda: download.received == MIB)
    assert memory(quiet.relays[2]).looks == looks
    assert not quiet.relays[2].node.sheds
