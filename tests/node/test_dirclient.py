"""A client's list kept current over circuits: from honest relays, and in spite of others."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backrooms.node import dirclient
from backrooms.node.dirstreams import ServedConnection
from backrooms.wire.documents import DirDocs, DirFetch, DirList, DirListRequest, Documents, ListEntry
from backrooms.wire.views import Change, Changes, ChangesRequest
from tests import keys
from tests.node.asking import by_hand, client, server
from tests.node.conftest import MakeNetwork
from tests.simnet.node import SimNetwork


def test_a_client_learns_of_a_new_relay_over_circuits_alone(make: MakeNetwork) -> None:
    network = make(relays=7)
    late = network.relays.pop(3)
    network.start()
    network.ready()
    side = client(network)
    network.net.run_until(lambda: side.dirclient.last is not None, 120)
    side._keeper.rest()  # from here on it asks nobody over links
    late.start()
    network.relays.insert(3, late)
    others = [node for node in network.relays if node is not late]
    network.net.run_until(lambda: all(late.id in node.node.directory for node in others), 300)
    told = side.dirclient.counts["told"]
    network.net.run_until(lambda: late.id in network.client.node.directory, 900)
    assert side.dirclient.counts["told"] > told
    assert side.dirclient.received < 60_000


def test_a_question_without_news_is_short_and_a_sleeping_client_asks_nothing(network: SimNetwork) -> None:
    side = client(network)
    by_hand(network)
    for _ in range(dirclient.SOURCES):
        assert network.net.run_until(side.dirclient.update(), 60)
    before = side.dirclient.received
    for _ in range(10):
        assert network.net.run_until(side.dirclient.update(), 60)
    assert side.dirclient.received - before < 10 * 100
    assert len(side.dirstreams.connections) == dirclient.SOURCES, "connections are kept"
    side.circuits.go_dormant()
    network.net.run(2)
    assert not side.dirstreams.connections
    assert not network.net.run_until(side.dirclient.update(), 60)
    told = side.dirclient.counts["told"]
    side.circuits.go_active()
    assert network.net.run_until(side.dirclient.update(), 60)
    assert side.dirclient.counts["told"] == told + 1


def test_a_relay_that_forgot_is_asked_for_its_whole_list(network: SimNetwork) -> None:
    side = client(network)
    by_hand(network)
    made = keys.descriptor(9, now=network.net.wall(), address="tls:172.29.0.1:9001")
    for node in network.relays:
        node.node.directory.insert(made, 0.0)
        serving = node.node._relay_side
        assert serving is not None
        serving.dirserving.log.forgotten = serving.dirserving.log.revision - 1
    assert network.net.run_until(side.dirclient.update(), 60)
    assert made.id in network.client.node.directory


Answer = Callable[[ServedConnection, bytes], None]
STRANGER = b"\x77" * 32


def _circles(served: ServedConnection, payload: bytes) -> None:
    request = ChangesRequest.decode(payload)
    change = Change(STRANGER, 0, bytes(16), bytes(16))
    served.send(Changes(b"i" * 16, request.since, (), (change.id,), more=True))


def _backwards(served: ServedConnection, payload: bytes) -> None:
    request = ChangesRequest.decode(payload)
    anew = request.instance != b"i" * 16
    served.send(Changes(b"i" * 16, 5, anew=True) if anew else Changes(b"j" * 16, 5))


def _ever_other_instances(served: ServedConnection, payload: bytes) -> None:
    number = int.from_bytes(ChangesRequest.decode(payload).instance, "big") % 1000
    served.send(Changes((number + 1).to_bytes(16, "big"), 5, anew=True))


def _endless(served: ServedConnection, payload: bytes) -> None:
    request = ChangesRequest.decode(payload)
    gone = tuple(number.to_bytes(32, "big") for number in range(400))
    if request.instance != b"i" * 16:
        served.send(Changes(b"i" * 16, 5, anew=True))
    else:
        served.send(Changes(b"i" * 16, request.since + 1, (), gone, more=True))


def _tells_of_a_stranger(served: ServedConnection, payload: bytes) -> None:
    request = ChangesRequest.decode(payload)
    if request.instance != b"i" * 16:
        served.send(Changes(b"i" * 16, 5, anew=True))
    else:
        served.send(Changes(b"i" * 16, 5, (Change(STRANGER, 7, bytes(16), bytes(16)),)))


def _other_documents(served: ServedConnection, payload: bytes) -> None:
    served.send(DirDocs((Documents(b"\x78" * 32),)))


def _malformed_documents(served: ServedConnection, payload: bytes) -> None:
    served.send(DirDocs((Documents(STRANGER, b"c" * 5000, b"\0\0\1" + bytes(400)),)))


def _list_in_circles(served: ServedConnection, payload: bytes) -> None:
    served.send(DirList((ListEntry(b"\1" * 32, bytes(32), 1),), more=True))


def _too_old(served: ServedConnection, payload: bytes) -> None:
    served.send(Changes(b"i" * 16, 5, anew=True))


FAULTS: dict[str, dict[int, Answer]] = {
    "circles": {32: _circles},
    "backwards": {32: _backwards},
    "ever other instances": {32: _ever_other_instances},
    "endless": {32: _endless},
    "other documents": {32: _tells_of_a_stranger, DirFetch.TYPE: _other_documents},
    "malformed documents": {32: _tells_of_a_stranger, DirFetch.TYPE: _malformed_documents},
    "list in circles": {32: _too_old, DirListRequest.TYPE: _list_in_circles},
}


def test_whoever_breaks_the_rules_is_left_alone_and_others_are_asked(
    make: MakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dirclient, "CHANGES_MOST", 2000)
    monkeypatch.setattr(dirclient, "ATTEMPTS", 1)
    network = make()
    network.start()
    network.ready()
    side = client(network)
    by_hand(network)
    honest = [dict(server(node).handlers) for node in network.relays]
    for name, handlers in FAULTS.items():
        for node in network.relays:
            server(node).handlers.update(handlers)
        known = set(network.client.node.directory.relays())
        assert not network.net.run_until(side.dirclient.update(), 200), name
        assert len(side.dirclient.bad()) == 1, name
        assert set(network.client.node.directory.relays()) == known, name
        assert not side.dirstreams.connections, name
        side.dirclient._bad.clear()
        for node, handlers in zip(network.relays, honest, strict=True):
            server(node).handlers.update(handlers)
    assert network.net.run_until(side.dirclient.update(), 60)


def test_a_digest_that_is_not_that_of_the_record_is_a_lie(network: SimNetwork) -> None:
    side = client(network)
    by_hand(network)
    victim = network.client.node.directory.relays()[0]

    def lie(served: ServedConnection, payload: bytes) -> None:
        request = ChangesRequest.decode(payload)
        if request.instance != b"i" * 16:
            served.send(Changes(b"i" * 16, 5, anew=True))
        else:
            change = Change(victim.id, victim.record.revision, bytes(16), b"x" * 16)
            served.send(Changes(b"i" * 16, 5, (change,)))

    liar = next(node for node in network.relays if node.id != victim.id)
    server(liar).handlers[ChangesRequest.TYPE] = lie
    while not side.dirclient.bad():
        network.net.run_until(side.dirclient.update(), 60)
        side.dirclient._known.clear()
        for connection in list(side.dirclient._sources):
            connection.close()
    assert side.dirclient.bad() == {liar.id}
    assert not network.client.node.evidence.proofs
