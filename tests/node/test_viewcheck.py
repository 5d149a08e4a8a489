"""Views compared over circuits: whole networks in simulated time, with honest relays and with liars."""

from __future__ import annotations

import json

import pytest
from twisted.internet.protocol import Protocol

from backrooms.crypto.keys import text_id
from backrooms.gossip.view import View, epoch_at
from backrooms.levels import HIGH, MEDIUM, NONE
from backrooms.netdir.descriptor import Descriptor
from backrooms.node.evidence import FILE_NAME, Proof
from backrooms.node.viewcheck import Comparison
from tests import keys
from tests.node.asking import by_hand, client, server
from tests.node.conftest import MakeNetwork
from tests.simnet.node import SimNetwork, SimNode, SocksRefused

RELAYS = 7


@pytest.fixture
def views(make: MakeNetwork) -> SimNetwork:
    """Seven relays that have been up for long enough, and a client that asks and compares only when it is told to."""
    network = make(relays=RELAYS)
    network.start()
    network.ready()
    side = client(network)
    by_hand(network)
    for node in network.nodes:
        node.node.views.began = 0
        for relay_id in node.node.directory.seen:
            node.node.directory.seen[relay_id] = 0
    network.net.run_until(side.dirclient.update(), 60)
    side._keeper.rest()
    return network


def compare(network: SimNetwork) -> Comparison:
    """One comparison's outcome."""
    checker = client(network).viewcheck
    network.net.run_until(checker.compare(), 300)
    assert checker.last is not None
    return checker.last


def hide(network: SimNetwork, node: SimNode) -> None:
    """Have the client not know a relay, as if all that it has asked so far had kept it from it."""
    network.client.node.directory.drop(node.id)


def stranger(number: int, network: SimNetwork) -> Descriptor:
    """Sound documents of a relay that nobody has seen."""
    return keys.descriptor(number, now=network.net.wall(), address=f"tls:172.{number}.0.1:9001")


def plant(node: SimNode, relay: Descriptor) -> None:
    """Have a relay hold another for settled that the rest do not know, without telling of it in its list."""
    directory = node.node.directory
    directory.on_change.clear()
    directory.insert(relay, 0.0)
    directory.seen[relay.id] = 0
    node.node.views._views.clear()


def guard(network: SimNetwork) -> bytes:
    """The relay that the client enters by."""
    circuits = client(network).circuits.circuits.values()
    return next(one.path[0].id for one in circuits if len(one.path) > 1)


def test_what_was_hidden_is_noticed_and_higher_levels_refuse_until_views_agree(
    views: SimNetwork, said: list[str]
) -> None:
    checker = client(views).viewcheck
    circuits = client(views).circuits
    last = compare(views)
    assert (last.showed_much, last.faulty, last.lacked) == (0, 0, 0)
    assert last.same == last.compared >= RELAYS - 2
    told = views.client.node.network_view()
    assert told["root"] == last.root.hex()[:16]
    assert told["settled"]
    assert told["alarm"] == ""

    hide(views, next(node for node in views.relays[2:-2] if node.id != guard(views)))
    assert len(views.client.node.directory) == RELAYS - 1
    last = compare(views)
    assert last.showed_much >= 3
    assert last.lacked == 1
    assert len(views.client.node.directory) == RELAYS, "the union is taken"
    assert "2% of the network" in checker.alarm
    assert views.client.node.network_view()["alarm"] == checker.alarm
    for level, refused in ((NONE, False), (MEDIUM, False), (HIGH, True)):
        assert (circuits.refuses(level) is not None) == refused
    with pytest.raises(SocksRefused):
        views.open("web.example", 80, Protocol(), user="level=high")
    assert any("level high is refused" in line and "2% of the network" in line for line in said)

    assert compare(views).showed_much == 0
    assert checker.alarm == ""
    assert circuits.refuses(HIGH) is None


def test_few_liars_with_real_documents_stop_nobody(views: SimNetwork) -> None:
    asked = [node for node in views.relays if node.id != guard(views)]
    side = client(views)
    for number, liars in ((9, 1), (10, 2), (11, 4)):
        made = stranger(number, views)
        for node in asked[:liars]:
            plant(node, made)
        last = compare(views)
        assert last.showed_much <= liars
        assert bool(side.viewcheck.alarm) == (liars > 2)
        assert (side.circuits.refuses(HIGH) is not None) == (liars > 2)
        assert made.id in views.client.node.directory, "a sound document is taken anyway"
    # What they show can be new only once: the next comparison ends the alarm.
    compare(views)
    assert side.viewcheck.alarm == ""


def test_relays_without_documents_do_not_count_and_too_few_answers_change_nothing(views: SimNetwork) -> None:
    epoch = epoch_at(views.net.wall())
    made_up = [bytes([number]) * 32 for number in range(1, 9)]
    for node in views.relays:
        true = node.node.views.view(epoch, views.net.wall())
        assert true is not None
        node.node.views._views[epoch] = View(epoch, [*true.ids, *made_up])
    last = compare(views)
    assert last.compared >= 5
    assert (last.lacked, last.showed_much) == (0, 0)
    assert client(views).viewcheck.alarm == ""

    client(views).viewcheck.alarm = "an alarm of before"
    for node in views.relays:
        node.node.views.began = views.net.wall()  # as if all had just been started
    last = compare(views)
    assert last.compared == 0
    assert last.silent >= 5
    assert client(views).viewcheck.alarm == "an alarm of before"


def _silent(network: SimNetwork, node: SimNode) -> None:
    server(node).handlers[34] = lambda connection, payload: None


def _contradicts_itself(network: SimNetwork, node: SimNode) -> None:
    epoch = epoch_at(network.net.wall())
    kept = node.node.views.view(epoch, network.net.wall())
    assert kept is not None
    kept.__dict__["root"] = b"x" * 32


def _refuses(network: SimNetwork, node: SimNode) -> None:
    server(node).stop()


def _forges(network: SimNetwork, node: SimNode) -> None:
    """Shows a relay whose record says something else than was signed."""
    made = stranger(9, network)
    forged = bytearray(made.record_raw)
    forged[-100] ^= 1
    plant(node, Descriptor(made.certificate, made.record, bytes(forged)))


def test_relays_that_misbehave_are_left_out_and_others_are_compared(views: SimNetwork) -> None:
    others = [node for node in views.relays if node.id != guard(views)]
    for fault, node in zip((_silent, _contradicts_itself, _refuses, _forges), others, strict=False):
        fault(views, node)
    last = compare(views)
    assert (last.silent, last.faulty) == (2, 2)
    assert last.compared >= 2
    assert client(views).viewcheck.alarm == ""
    assert client(views).dirclient.bad() == {others[1].id, others[3].id}


def test_two_records_of_one_revision_are_kept_as_proof_and_stop_nobody(views: SimNetwork) -> None:
    side = client(views)
    number = next(i for i, node in enumerate(views.relays) if node.id != guard(views) and i not in (6, 7))
    liar = views.relays[number]
    known = views.client.node.directory.get(liar.id)
    assert known is not None
    other = keys.descriptor(number, now=float(known.record.revision), nickname="another", address="tls:172.20.0.1:9001")
    assert other.record.revision == known.record.revision
    # The others know the relay by the other record, and tell of it as a change.
    for node in views.relays:
        if node is not liar:
            directory = node.node.directory
            directory._relays[liar.id] = Descriptor(known.certificate, other.record, other.record_raw)
            directory._changed(views.net.wall(), [liar.id])
    for _ in range(3):  # both sources, whether the liar is one of them or not
        assert views.net.run_until(side.dirclient.update(), 60)
    file = views.client.folder / "state" / FILE_NAME
    (kept,) = json.loads(file.read_text())["equivocations"]
    assert kept["relay"] == text_id(liar.id)
    assert views.client.node.network_view()["two-faced"] == [text_id(liar.id)]
    assert liar.id in side.circuits.paths.doubted(), "it is avoided"
    assert side.circuits.refuses(HIGH) is None, "but one relay stops nobody"
    assert len(side.dirclient.bad()) == 0, "whoever told of it is not to blame"


def test_relays_with_two_faces_count_once_for_each_network(views: SimNetwork) -> None:
    """Somebody who makes many keys on one machine, and two records with each, can stop nobody."""
    side = client(views)
    evidence, directory = side.viewcheck._evidence, views.client.node.directory

    def two_faced(number: int, address: str) -> None:
        one = keys.descriptor(number, now=views.net.wall(), address=address)
        directory.insert(one, 0.0)
        evidence.proofs[one.id] = Proof(one.id, int(views.net.wall()), b"c", b"1", b"2")

    for number in range(8, 14):
        two_faced(number, f"tls:172.20.0.{number}:9001")
    assert side.circuits.refuses(HIGH) is None
    two_faced(14, "tls:172.21.0.1:9001")
    assert side.circuits.refuses(HIGH) is None
    two_faced(15, "tls:172.22.0.1:9001")
    assert "3 of 15 relays, of different networks" in (side.circuits.refuses(HIGH) or "")
    assert side.circuits.refuses(MEDIUM) is None
