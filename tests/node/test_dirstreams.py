"""Directory streams: BEGIN_DIR on circuits, both ends."""

from __future__ import annotations

from typing import Any

import pytest

from backrooms.circuit.stream import Stream
from backrooms.errors import BackroomsError, StreamError
from backrooms.node.dirstreams import STREAMS_OF_CIRCUIT, AskingConnection, DirStreams, ServedConnection
from backrooms.wire.documents import DirList, DirListRequest, DirPublished
from backrooms.wire.relay import EndReason, RelayCommand
from tests.node.asking import by_hand, client, server
from tests.node.conftest import MakeNetwork
from tests.simnet.node import SimNetwork


@pytest.fixture
def network(make: MakeNetwork) -> SimNetwork:
    """Six relays and a client that asks nobody of itself."""
    made = make()
    made.start()
    made.ready()
    return by_hand(made)


def streams(network: SimNetwork) -> DirStreams:
    return client(network).dirstreams


def connect(network: SimNetwork, number: int = 0) -> AskingConnection:
    found: AskingConnection = network.net.run_until(streams(network).connect(network.relays[number].id), 30)
    return found


def answer_list(network: SimNetwork, number: int) -> None:
    """Have a relay answer LIST_REQUEST."""
    directory = network.relays[number].node.directory

    def handle(connection: ServedConnection, payload: bytes) -> None:
        connection.send(directory.answer_list(DirListRequest.decode(payload)))

    server(network.relays[number]).handlers[DirListRequest.TYPE] = handle


def test_a_relay_that_is_no_exit_answers_over_a_circuit_and_connects_nowhere(network: SimNetwork) -> None:
    answer_list(network, 0)
    connection = connect(network)
    assert connection.relay.id == network.relays[0].id
    assert len(connection.circuit.path) == 3
    page = network.net.run_until(connection.ask(DirListRequest(), DirList), 30)
    assert len(page.entries) == 6
    assert not network.relays[0].node.relay.exit.connections  # type: ignore[union-attr]
    connection.close()
    network.net.run(2)
    assert connection.circuit.status == "CLOSED"
    assert not server(network.relays[0]).connections


def test_questions_are_answered_in_order_and_pushes_come_between(network: SimNetwork) -> None:
    answer_list(network, 1)
    connection = connect(network, 1)
    (served,) = server(network.relays[1]).connections
    got: list[tuple[int, bytes]] = []
    connection.on_message = lambda kind, payload: got.append((kind, payload))
    served.send(DirPublished(0, "first"))
    answers = [connection.ask(DirListRequest(), DirList) for _ in range(3)]
    served.send(DirPublished(0, "second"))
    pages = [network.net.run_until(answer, 30) for answer in answers]
    network.net.run(1)
    assert [len(page.entries) for page in pages] == [6, 6, 6]
    assert [DirPublished.decode(payload).text for _, payload in got] == ["first", "second"]


def test_what_nobody_asked_for_ends_the_connection(network: SimNetwork) -> None:
    connection = connect(network)
    (served,) = server(network.relays[0]).connections
    served.send(DirPublished(0, "unasked"))
    network.net.run(2)
    assert connection.closed
    assert connection.circuit.status == "CLOSED"
    assert served.closed


def test_pushes_are_bounded(network: SimNetwork) -> None:
    connection = connect(network)
    connection.on_message = lambda kind, payload: None
    (served,) = server(network.relays[0]).connections
    page = DirList(network.relays[0].node.directory.answer_list(DirListRequest()).entries, False)
    sent = 0
    while not connection.closed and sent < 10_000_000:
        if served.send(page):
            sent += len(page.encode())
        else:
            network.net.run(0.1)
    assert connection.closed
    assert sent < 2 * (262_144 + 65_536)


def test_an_answer_that_never_comes_ends_the_connection(network: SimNetwork) -> None:
    server(network.relays[0]).handlers[DirListRequest.TYPE] = lambda connection, payload: None
    connection = connect(network)
    answer = connection.ask(DirListRequest(), DirList)
    with pytest.raises(StreamError):
        network.net.run_until(answer, 60)
    assert connection.closed
    with pytest.raises(BackroomsError, match="closed"):
        network.net.run_until(connection.ask(DirListRequest(), DirList), 1)


def test_a_malformed_answer_ends_the_connection(network: SimNetwork) -> None:
    def handle(served: ServedConnection, payload: bytes) -> None:
        served.stream.receive(b"\x11\x00\x03\x07\x00\x00", 0.0)

    server(network.relays[0]).handlers[DirListRequest.TYPE] = handle
    connection = connect(network)
    with pytest.raises(StreamError):
        network.net.run_until(connection.ask(DirListRequest(), DirList), 60)
    assert connection.closed


def test_a_client_that_breaks_the_rules_loses_the_stream_alone(network: SimNetwork) -> None:
    answer_list(network, 0)
    # An unknown type, a message that is too long, a request without its id, and one with a byte too many.
    faults = [b"\x7f\x00\x00", b"\x10\x20\x01", b"\x10\x00\x00", b"\x10\x00\x21" + bytes(33)]
    for number, data in enumerate(faults):
        connection = connect(network)
        connection.stream.receive(data, 0.0)
        network.net.run(2)
        assert connection.closed
        assert sum(server(network.relays[0]).counts.values()) == number + 1
        assert not server(network.relays[0]).connections
    assert len(network.net.run_until(connect(network).ask(DirListRequest(), DirList), 30).entries) == 6


def test_unknown_messages_from_0x80_on_are_ignored(network: SimNetwork) -> None:
    answer_list(network, 0)
    connection = connect(network)
    connection.stream.receive(b"\x80\x00\x02xx\xff\x00\x00", 0.0)
    (served,) = server(network.relays[0]).connections
    served.stream.receive(b"\x90\x00\x01x", 0.0)
    assert len(network.net.run_until(connection.ask(DirListRequest(), DirList), 30).entries) == 6


def test_a_client_that_does_not_read_costs_a_bounded_amount(network: SimNetwork) -> None:
    handled = [0]
    text = "x" * 200

    def handle(served: ServedConnection, payload: bytes) -> None:
        handled[0] += 1
        for _ in range(250):
            served.send(DirPublished(0, text))

    server(network.relays[0]).handlers[DirListRequest.TYPE] = handle
    connection = connect(network)
    (served,) = server(network.relays[0]).connections
    connection.stream.on_dirty = lambda: None  # the client stops reading
    question = b"\x10\x00\x20" + bytes(32)
    waiting = []
    for _ in range(40):
        connection.stream.receive(question * 100, 0.0)
        network.net.run(0.5)
        waiting.append(served.stream.waiting)
    assert handled[0] < 40, "it is not asked for more while it does not read"
    assert max(waiting) < 600_000
    assert served.stream.held <= 2 * 65_536
    # What was not handled is, once the client reads again.
    before = handled[0]
    connection.stream.on_dirty = connection.stream.discard_output
    connection.stream.discard_output()
    network.net.run(30)
    assert handled[0] > before


def test_the_streams_of_a_circuit_are_bounded(network: SimNetwork) -> None:
    connection = connect(network)
    machine = connection.circuit.machine
    assert machine is not None
    more = [Stream() for _ in range(STREAMS_OF_CIRCUIT)]
    for stream in more:
        machine.begin_directory(stream)
    network.net.run(2)
    assert [stream.connected for stream in more] == [True] * (STREAMS_OF_CIRCUIT - 1) + [False]
    assert more[-1].ended == EndReason.RESOURCELIMIT
    assert len(server(network.relays[0]).connections) == STREAMS_OF_CIRCUIT
    connection.close()
    network.net.run(2)
    assert not server(network.relays[0]).connections
    assert len(server(network.relays[0])._shares) == 0


def test_a_full_relay_takes_from_the_circuit_that_has_most(
    network: SimNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = connect(network)
    machine = first.circuit.machine
    assert machine is not None
    greedy = [Stream() for _ in range(3)]
    for stream in greedy:
        machine.begin_directory(stream)
    network.net.run(2)
    server(network.relays[0])._shares.limit = 4
    second = connect(network)
    network.net.run(1)
    assert not second.closed
    assert [stream.closed for stream in greedy] == [False, False, True]


def test_a_relay_that_stops_ends_its_streams_at_once(network: SimNetwork) -> None:
    connection = connect(network)
    answer = connection.ask(DirListRequest(), DirList)
    answer.addErrback(lambda failure: None)
    server(network.relays[0]).stop()
    network.net.run(2)
    assert connection.closed
    with pytest.raises(StreamError):
        connect(network)


def test_resting_ends_connections_and_opens_none(network: SimNetwork) -> None:
    connection = connect(network)
    gone: list[int] = []
    connection.on_closed.append(lambda: gone.append(1))
    streams(network).rest()
    assert connection.closed
    assert gone == [1]
    with pytest.raises(BackroomsError, match="sleeps"):
        network.net.run_until(streams(network).connect(), 5)
    streams(network).resume()
    found: Any = network.net.run_until(streams(network).connect(), 30)
    assert not found.closed


def test_without_an_id_any_relay_may_be_asked(network: SimNetwork) -> None:
    found = set()
    for _ in range(12):
        connection: Any = network.net.run_until(streams(network).connect(), 30)
        found.add(connection.relay.id)
        connection.close()
    assert len(found) >= 3
    avoid = [node.id for node in network.relays[1:]]
    taken = {streams(network).path(None, avoid)[-1].id for _ in range(5)}
    assert taken <= {network.relays[0].id}


def test_a_circuit_of_one_hop_serves_its_directory(make: MakeNetwork) -> None:
    network = make()
    network.client.configure("client", level="none")
    network.start()
    network.net.run_until(lambda: len(network.client.node.directory) == 6, 60)
    by_hand(network)
    answer_list(network, 0)
    connection = connect(network)
    assert len(connection.circuit.path) == 1
    assert len(network.net.run_until(connection.ask(DirListRequest(), DirList), 30).entries) == 6


def test_begin_dir_with_data_ends_the_circuit(network: SimNetwork) -> None:
    connection = connect(network)
    machine = connection.circuit.machine
    assert machine is not None
    machine.edge.send(RelayCommand.BEGIN_DIR, 77, b"x")
    network.net.run(2)
    assert connection.circuit.status == "CLOSED"
    assert network.relays[0].node.relay is not None
    assert network.relays[0].node.relay.counts["BEGIN_DIR with data"] == 1


def test_the_way_to_a_relay_goes_around_those_that_are_to_be_avoided(network: SimNetwork) -> None:
    """So several streams to relays need not have the same relay between the guard and them."""
    target = network.relays[0].id
    entry, middle, _ = streams(network).path(target)
    for _ in range(60):
        path = streams(network).path(target, {entry.id, middle.id})
        assert path[0].id == entry.id, "a guard stays"
        assert path[1].id != middle.id
        assert path[2].id == target
