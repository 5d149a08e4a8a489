"""How the list of relays spreads, and what is done to those who spoil it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from backrooms.errors import BackroomsError, WireError
from backrooms.gossip.bounds import DOCUMENTS
from backrooms.netdir import directory as directory_module
from backrooms.netdir.network import Contact, NetworkFile
from backrooms.node.learning import LEARN_TIME
from backrooms.wire.documents import DirList, DirListRequest, DirPublish, DirPublished, ListEntry, PublishStatus
from tests import keys
from tests.node.asking import client, server
from tests.node.conftest import MakeNetwork
from tests.simnet.node import RELAY_PORT, SimNetwork, SimNode


def ask(network: SimNetwork, node: SimNode, server: SimNode, message: Any, kind: Any) -> Any:
    """One question of `node` to `server`."""
    link = network.net.run_until(node.node.channels.link(server.id))
    return network.net.run_until(Deferred.fromCoroutine(node.node.keeper._questions.ask(link, message, kind)), 30)


def test_all_nodes_come_to_know_all_relays(make: MakeNetwork) -> None:
    network = make()
    network.start()
    began = network.net.now
    network.ready()
    assert network.net.now - began < 10
    ids = {node.id for node in network.relays}
    for node in network.nodes:
        assert {relay.id for relay in node.node.directory.relays()} == ids
    network.net.run_until(lambda: all(node.node.keeper.settled for node in network.nodes), 30)


def test_fetches_become_rare(make: MakeNetwork) -> None:
    """Whole lists are asked for by those who start, over links; then gossip and changes over circuits do."""
    network = make()
    network.start()
    asked = 0

    def counting(answer: Callable[..., Any]) -> Callable[..., Any]:
        def count(*question: Any) -> Any:
            nonlocal asked
            asked += 1
            return answer(*question)

        return count

    for node in network.relays:
        node.node.directory.answer_list = counting(node.node.directory.answer_list)  # type: ignore[method-assign]
        handlers = server(node).handlers  # those of streams over circuits have the method as it was
        handlers[DirListRequest.TYPE] = counting(handlers[DirListRequest.TYPE])
    network.net.run(120)
    first, asked = asked, 0
    assert first >= len(network.nodes), "each has asked somebody at its start"
    network.net.run(240)
    assert asked <= 4


def test_a_new_relay_is_heard_of_without_a_restart(make: MakeNetwork) -> None:
    network = make()
    late = network.relays[3]
    for node in network.nodes:
        if node is not late:
            node.start()
    network.net.run(60)
    assert late.id not in network.client.node.directory
    late.start()
    network.net.run_until(lambda: late.id in network.client.node.directory, 1800)


def test_the_list_is_kept_over_a_restart(network: SimNetwork) -> None:
    client = network.client
    network.net.run(10)
    client.host.kill()
    network.net.run(1)
    for node in network.relays:
        node.host.kill()
    client.start()
    network.net.run(1)
    assert len(client.node.directory) == 6


def test_a_damaged_list_is_put_aside_and_fetched_anew(network: SimNetwork, said: list[str]) -> None:
    client = network.client
    network.net.run(10)
    client.host.kill()
    file = client.folder / "state" / "relays"
    file.write_bytes(file.read_bytes()[:-3])
    client.start()
    network.net.run_until(lambda: len(client.node.directory) == 6, 30)
    assert [line for line in said if "is damaged" in line]


def test_b4_a_relay_publishes_itself_only_and_no_older_record(relays: SimNetwork) -> None:
    server, honest, liar = relays.relays[0], relays.relays[3], relays.relays[4]
    other = honest.node.directory.get(honest.id)
    assert other is not None
    stolen = DirPublish(other.certificate.raw, other.record_raw)
    answer = ask(relays, liar, server, stolen, DirPublished)
    assert (answer.status, answer.text) == (PublishStatus.REFUSED, "a relay publishes itself only")
    own = liar.node.directory.get(liar.id)
    assert own is not None
    liar.node.keeper.republish()
    relays.net.run(5)
    now = server.node.directory.get(liar.id)
    assert now is not None
    assert now.record.revision > own.record.revision
    again = ask(relays, liar, server, DirPublish(own.certificate.raw, own.record_raw), DirPublished)
    assert again.status == PublishStatus.UNCHANGED
    assert server.node.directory.get(liar.id) is now


@pytest.mark.parametrize("part", ["onion key", "signature"])
def test_b4_who_publishes_what_it_did_not_sign_loses_the_link(relays: SimNetwork, part: str) -> None:
    server, liar = relays.relays[0], relays.relays[4]
    own = server.node.directory.get(liar.id)
    assert own is not None
    newer = keys.descriptor(4, now=relays.net.wall() + 10, certificate=own.certificate)
    bad = bytearray(newer.record_raw)
    bad[bad.index(newer.onion_key) if part == "onion key" else -1] ^= 1
    link = relays.net.run_until(liar.node.channels.link(server.id))
    with pytest.raises(BackroomsError):
        ask(relays, liar, server, DirPublish(own.certificate.raw, bytes(bad)), DirPublished)
    assert not link.open
    assert server.node.directory.get(liar.id) is own


def test_b4_a_relay_cannot_have_others_verify_all_the_time(relays: SimNetwork) -> None:
    """What it publishes is refused each time for no fault of a signature: it belongs to another relay."""
    server, liar = relays.relays[0], relays.relays[4]
    verified = 0
    verify = server.node.directory.verify

    def count(*documents: Any) -> Any:
        nonlocal verified
        verified += 1
        return verify(*documents)

    other = keys.descriptor(9, now=relays.net.wall())
    server.node.directory.verify = count  # type: ignore[method-assign,assignment]
    liar.node.channels.on_message = lambda *_: None  # it does not mind what it is told
    link = relays.net.run_until(liar.node.channels.link(server.id))
    for _ in range(30):
        for _ in range(50):
            link.channel.send_message(DirPublish.TYPE, DirPublish(other.certificate.raw, other.record_raw).encode())
        relays.net.run(0.1)
    assert verified <= DOCUMENTS[1] + 10 * DOCUMENTS[0]


def test_a_relay_that_finds_no_room_in_its_own_list_runs_all_the_same(
    make: MakeNetwork, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(directory_module, "MAX_RELAYS", 0)  # as if it was full of made-up relays
    network = make(relays=2)
    node = network.relays[0]
    node.start()
    network.net.run(5)
    assert node.node.running
    assert [line for line in said if "our own descriptor is not in our list" in line]


def test_b4_clients_do_not_publish(network: SimNetwork) -> None:
    own = network.relays[3].node.directory.get(network.relays[3].id)
    assert own is not None
    message = DirPublish(own.certificate.raw, own.record_raw)
    answer = ask(network, network.client, network.relays[0], message, DirPublished)
    assert answer.status == PublishStatus.REFUSED


def test_b4_what_nobody_asked_for_ends_the_link(relays: SimNetwork, said: list[str]) -> None:
    server, other = relays.relays[0], relays.relays[4]
    link = relays.net.run_until(other.node.channels.link(server.id))
    link.channel.send_message(DirList.TYPE, DirList((), False).encode())
    relays.net.run_until(lambda: not link.open, 5)
    assert [line for line in said if "nobody asked for" in line]
    assert server.node.channels.refused["a directory message nobody asked for"] == 1


def test_one_request_at_a_time_and_each_gets_its_answer(relays: SimNetwork) -> None:
    server, node = relays.relays[0], relays.relays[4]
    link = relays.net.run_until(node.node.channels.link(server.id))
    questions = node.node.keeper._questions
    asked = [
        Deferred.fromCoroutine(questions.ask(link, DirListRequest(bytes(31) + bytes([n])), DirList)) for n in range(5)
    ]
    for one in asked:
        assert len(relays.net.run_until(one).entries) == 6
    assert questions._asked == {}
    assert questions._queues == {}


def test_a_lost_link_fails_its_questions_at_once(relays: SimNetwork) -> None:
    server, node = relays.relays[0], relays.relays[4]
    link = relays.net.run_until(node.node.channels.link(server.id))
    server.host.freeze()
    questions = node.node.keeper._questions
    asked = [Deferred.fromCoroutine(questions.ask(link, DirListRequest(bytes(32)), DirList)) for _ in range(3)]
    relays.net.run(1)
    link.driver.tcp.abortConnection()
    began = relays.net.now
    for one in asked:
        with pytest.raises(BackroomsError):
            relays.net.run_until(one, 5)
    assert relays.net.now - began < 1
    server.host.thaw()


def test_learning_has_an_end(relays: SimNetwork) -> None:
    node = relays.relays[4]
    for contact in relays.relays[:2]:
        contact.host.freeze()
    relays.net.run(120)
    began = relays.net.now
    learning = Deferred.fromCoroutine(node.node.keeper.learn(keys.NETWORK_ID))
    assert relays.net.run_until(learning, 10) is False
    assert relays.net.now - began <= LEARN_TIME + 0.01
    assert relays.net.run_until(Deferred.fromCoroutine(node.node.keeper.learn(node.id)), 0.1) is True
    for contact in relays.relays[:2]:
        contact.host.thaw()


def test_b4_a_list_without_end_is_given_up(relays: SimNetwork, said: list[str]) -> None:
    """A contact that invents relays for ever must not keep the others from being asked."""
    liar, asker = relays.relays[0], relays.relays[3]
    pages = 0

    def endless(request: DirListRequest) -> DirList:
        nonlocal pages
        pages += 1
        first = int.from_bytes(request.after, "big") + 1
        ids = [(first + number).to_bytes(32, "big") for number in range(500)]
        return DirList(tuple(ListEntry(one, bytes(32), 0) for one in ids), more=True)

    liar.node.directory.answer_list = endless  # type: ignore[method-assign]
    asker.node.directory.wanted = lambda entries: []  # type: ignore[method-assign]
    link = relays.net.run_until(asker.node.channels.link(liar.id))
    fetch = Deferred.fromCoroutine(asker.node.keeper._fetch_from(link))
    with pytest.raises(WireError, match="without end"):
        relays.net.run_until(fetch, 300)
    assert pages <= len(relays.nodes) * (20_000 // 500 + 1), "others asked it meanwhile, and gave up too"


@pytest.mark.parametrize("honest", range(4))
def test_a_client_without_a_list_hears_all_contacts(make: MakeNetwork, honest: int) -> None:
    """Three of four contacts hide a relay, and what is asked over circuits tells nothing: the fourth one is enough."""
    network = make(relays=6)
    contacts = tuple(Contact(relay.id, f"tls:{relay.host.address}:{RELAY_PORT}") for relay in network.relays[:4])
    text = NetworkFile("simnet", keys.NETWORK_ID, contacts).to_toml()
    network.client.folder.with_name("network.toml").write_text(text, "utf-8")
    network.client.configure("client", allow_private=True)  # it reads the network file anew
    for relay in network.relays:
        relay.start()
    network.net.run_until(lambda: all(len(relay.node.directory) == 6 for relay in network.relays), 60)
    hidden = network.relays[5].id
    for relay in network.relays[:4]:
        if relay is network.relays[honest]:
            continue
        whole = relay.node.directory.answer_list

        def answer(request: DirListRequest, whole: Callable[[DirListRequest], DirList] = whole) -> DirList:
            page = whole(request)
            return DirList(tuple(entry for entry in page.entries if entry.id != hidden), page.more)

        relay.node.directory.answer_list = answer  # type: ignore[method-assign]

    async def nothing_new() -> bool:
        return True

    network.client.node.keeper.over_circuits = nothing_new
    client(network).dirclient.start = lambda: None  # type: ignore[method-assign]
    network.client.start()
    network.net.run_until(lambda: hidden in network.client.node.directory, 10)
