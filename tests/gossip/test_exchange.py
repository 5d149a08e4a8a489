"""Gossip machines against each other, and against peers that cheat."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backrooms.crypto.kdf import tagged_hash
from backrooms.gossip.bounds import ANSWERS, CHANGES, DOCUMENTS, EMPTY_WORDS, MESSAGES, MUTED
from backrooms.gossip.digests import Digests
from backrooms.gossip.exchange import FANOUT, ROUND, Ask, Check, Drop, Gossip, Send, Silent
from backrooms.gossip.news import TELLINGS
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory
from backrooms.wire.codec import Writer
from backrooms.wire.documents import DirDocs, Documents, ListEntry
from backrooms.wire.gossip import BUCKET_DIGEST, BUCKETS, AnyGossipMessage, Buckets, News, Offer, Summary
from bench.sim import gossip
from bench.sim.gossipnet import GossipNet, SimRelay
from bench.sim.relays import NETWORK_ID, START, make_relay

OLD = START - 4 * 3600


@cache
def version(number: int, newer: int = 0) -> Descriptor:
    """One of a relay's records: the first, or the one so many seconds newer, under the same certificate."""
    first = make_relay(number, OLD)
    return make_relay(number, OLD + newer, after=version(number)) if newer else first


def network(*lists: Iterable[Descriptor], seed: int = 0, loss: float = 0.0) -> list[SimRelay]:
    """Relays 0, 1, ... with these lists beside themselves."""
    net = GossipNet(seed, loss)
    return [net.add(version(number), known) for number, known in enumerate(lists)]


def news(relay: Descriptor, *, certificate: bool = False) -> News:
    return News(relay.certificate.digest, relay.record_raw, relay.certificate.raw if certificate else b"")


def held(relay: SimRelay, number: int) -> bytes:
    """The record that a relay has of another one."""
    found = relay.directory.get(version(number).id)
    assert found is not None
    return found.record_raw


def hear(relay: SimRelay, peer: Descriptor, message: AnyGossipMessage) -> list[object]:
    """What the machine wants done about a message."""
    relay.gossip.out.clear()
    relay.gossip.receive(peer.id, message, relay.net.now)
    out, relay.gossip.out = relay.gossip.out, []
    return list(out)


# digests


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=12))
def test_digests_follow_the_list(steps: list[tuple[int, int]]) -> None:
    directory = Directory(NETWORK_ID, START)
    digests = Digests(directory)
    for number, newer in steps:
        if newer < 3:
            directory.insert(version(number, newer), START)
        else:
            directory.drop(version(number).id)
        if newer % 2:
            assert digests.root  # some changes at once, some one by one
        fresh = Digests(directory)
        assert (digests.root, digests.short) == (fresh.root, fresh.short)
        assert digests.differing(fresh.short) == []


def test_a_bucket_is_the_hash_of_its_entries() -> None:
    directory = Directory(NETWORK_ID, START)
    for number in range(3):
        directory.insert(version(number), START)
    writer = Writer()
    bucket = version(1).id[0]
    for entry in [entry for entry in directory.entries() if entry.id[0] == bucket]:
        entry.encode(writer)
    whole = tagged_hash(b"backrooms-gossip-bucket-1", writer.done())
    assert Digests(directory).short[bucket * BUCKET_DIGEST :].startswith(whole[:BUCKET_DIGEST])


def test_digests_differ_where_lists_do() -> None:
    one, other = Directory(NETWORK_ID, START), Directory(NETWORK_ID, START)
    for number in range(6):
        one.insert(version(number), START)
        other.insert(version(number, 5 if number == 3 else 0), START)
    a, b = Digests(one), Digests(other)
    assert a.root != b.root
    assert a.differing(b.short) == [version(3).id[0]]
    (entry,) = [entry for entry in b.entries(a.differing(b.short)) if entry.id == version(3).id]
    assert entry == ListEntry(version(3).id, version(3).certificate.digest, version(3, 5).record.revision)


# machines with each other

LISTS = st.lists(st.dictionaries(st.integers(0, 11), st.integers(0, 2), max_size=12), min_size=2, max_size=5)


@settings(max_examples=40, deadline=None)
@given(LISTS, st.integers(0, 2**16), st.sampled_from([0.0, 0.2]))
def test_lists_always_become_equal(lists: list[dict[int, int]], seed: int, loss: float) -> None:
    """Whoever knows what, in whatever version, as long as the first of them knows all and they know the first."""
    held = [[version(number, newer) for number, newer in one.items()] for one in lists]
    held = [[*one, version(0), *map(version, range(len(lists)))] for one in held]
    relays = network(*held, seed=seed, loss=loss)
    net = relays[0].net
    assert net.run(2000, lambda: net.equal(relays), look=5)
    newest = {one.id: 0 for some in held for one in some}
    for some in held:
        for one in some:
            newest[one.id] = max(newest[one.id], one.record.revision)
    for relay in relays:
        assert {one.id: one.record.revision for one in relay.directory.relays()} == newest
        assert relay.dropped == []


def test_w17_news_is_everywhere_in_a_few_rounds() -> None:
    everybody = [version(number) for number in range(64)]
    relays = network(*[everybody] * 64, loss=0.2)
    net = relays[0].net
    net.run(30)
    relays[7].publish(version(7, 60))
    began = net.now
    assert net.run(10 * ROUND, lambda: net.equal(relays))
    assert (net.now - began) / ROUND < 6 + 1, "64 relays: log2 of their number"


def test_w17_64_relays_agree_soon_after_a_partition_of_60_s() -> None:
    outcome = gossip.Outcome()
    gossip.partition(outcome, gossip.network(64))
    assert outcome.failures == []
    assert outcome.data["heal_seconds"] < 30


def test_w9_a_newcomer_needs_one_address() -> None:
    """It has the list from one relay, which then dies; all others hear of it."""
    everybody = [version(number) for number in range(20)]
    relays = network(*[everybody] * 20)
    net = relays[0].net
    net.run(20)
    new = net.add(version(20), relays[0].directory.relays())
    net.kill(relays[0])
    new.publish(version(20))
    assert net.run(60, lambda: all(version(20).id in one.directory for one in net.living()))


def test_idle_relays_say_little() -> None:
    everybody = [version(number) for number in range(12)]
    relays = network(*[everybody] * 12)
    net = relays[0].net
    net.run(100)
    before = sum(one.sent for one in relays)
    net.run(600)
    each = (sum(one.sent for one in relays) - before) / 12
    assert each <= 600 / ROUND * FANOUT * 2 * 4096 * 1.1, "a summary and an answer of one cell each"


def test_what_all_know_is_told_no_more() -> None:
    relays = network(*[[version(number) for number in range(4)]] * 4)
    net = relays[0].net
    net.run(30)
    relays[0].publish(version(0, 9))
    net.run(60)
    assert all(len(one.gossip.rumours) == 0 for one in relays)
    told = hear(relays[1], version(2), Summary(bytes(32), b"", (news(version(0, 9)),)))
    assert told == []


# peers that cheat


def victim() -> SimRelay:
    """A relay that knows ten others."""
    return network([version(number) for number in range(10)])[0]


def take(relay: SimRelay, out: list[object]) -> list[object]:
    """Verify what is to be verified; what comes of it."""
    for one in out:
        assert isinstance(one, Check)
        results = [relay.net.verify(relay.directory, documents) for documents in one.documents]
        relay.gossip.took(one.peer, one.documents, results, relay.net.now)
    out, relay.gossip.out = list(relay.gossip.out), []
    return out


def test_a_forged_record_costs_its_sender_the_link() -> None:
    relay, liar = victim(), version(3)
    raw = version(4, 50).record_raw
    forged = News(version(4).certificate.digest, raw[:-1] + bytes([raw[-1] ^ 1]))
    (drop,) = take(relay, hear(relay, liar, Summary(bytes(32), b"", (forged,))))
    assert drop == Drop(liar.id, "contact record: ed25519 signature is wrong, or it was made for another network")
    assert held(relay, 4) == version(4).record_raw
    assert hear(relay, liar, Summary(bytes(32), b"", (news(version(4, 50)),))) == [], "and nobody listens to it"
    (check,) = hear(relay, version(5), Summary(bytes(32), b"", (news(version(4, 50)),)))
    relay.net.now += 10
    assert isinstance(check, Check), "the genuine one is taken from others"


@pytest.mark.parametrize("when", [START + 86400, START - 4 * 86400])
def test_future_and_expired_records_are_dropped_and_their_sender_kept(when: float) -> None:
    relay = network([])[0]
    relay.net.now = 5.0
    one = make_relay(8, when)
    out = hear(relay, version(3), Summary(bytes(32), b"", (news(one, certificate=True),)))
    assert take(relay, out) == []
    assert one.id not in relay.directory
    assert relay.gossip.counts["refused"] == 1
    relay.net.now += 10
    again = hear(relay, version(3), Summary(bytes(32), b"", (news(one, certificate=True),)))
    assert again == [], "not from the same peer again"


def test_old_and_repeated_records_do_nothing() -> None:
    relay = victim()
    relay.directory.insert(version(4, 50), START)
    for one in (version(4), version(4, 50), version(4, 20)):
        assert hear(relay, version(3), Summary(bytes(32), b"", (news(one),))) == []
    assert held(relay, 4) == version(4, 50).record_raw


def test_of_two_records_of_one_revision_the_first_stays() -> None:
    relay = victim()
    twin = make_relay(4, OLD + 50, after=version(4), capacity=7)
    relay.directory.insert(version(4, 50), START)
    assert twin.record.revision == version(4, 50).record.revision
    out = hear(relay, version(3), Summary(bytes(32), b"", (news(twin),)))
    assert take(relay, out) == [], "whoever passed it on may be honest"
    assert held(relay, 4) == version(4, 50).record_raw
    assert relay.gossip.counts["refused"] == 1


def test_a_relay_may_not_change_its_record_all_the_time() -> None:
    relay = victim()
    taken = 0
    for newer in range(1, 30):
        relay.net.now += 4
        out = hear(relay, version(3), Summary(bytes(32), b"", (news(version(4, newer)),)))
        taken += bool(out)
        take(relay, out)
        relay.gossip.out.clear()
    assert taken == CHANGES[1]
    assert relay.gossip.counts["too many records of one relay"] == 29 - CHANGES[1]
    relay.net.now += 1 / CHANGES[0]
    assert hear(relay, version(3), Summary(bytes(32), b"", (news(version(4, 77)),)))


def test_a_flood_of_messages_is_not_read() -> None:
    relay = victim()
    different = Summary(bytes(32), bytes(BUCKETS * BUCKET_DIGEST))
    answers = sum(len(hear(relay, version(3), different)) for _ in range(500))
    assert answers == ANSWERS[1]
    assert relay.gossip.counts["too many messages"] == 500 - MESSAGES[1]
    assert hear(relay, version(4), different), "others are heard"


def test_a_flood_of_news_is_not_verified() -> None:
    relay = network([version(3)])[0]
    checked = 0
    for number in range(40):
        some = tuple(
            News(bytes(32), b"\0\0\1" + (number * 64 + one).to_bytes(32, "big") + bytes(8) + b"x", b"c")
            for one in range(60)
        )
        out = hear(relay, version(3), Summary(bytes(32), b"", some))
        checked += sum(len(one.documents) for one in out if isinstance(one, Check))
    assert checked == DOCUMENTS[1]


def test_who_tells_of_what_it_does_not_have_is_not_listened_to() -> None:
    relay, liar = victim(), version(3)
    for number in range(EMPTY_WORDS):
        relay.net.now += 4
        invented = News(bytes(32), b"\0\0\1" + bytes([number] * 32) + bytes(8) + b"x")
        (asked,) = hear(relay, liar, Summary(bytes(32), b"", (invented,)))
        assert isinstance(asked, Ask)
        relay.gossip.fetched(liar.id, DirDocs((Documents(bytes([number] * 32)),)), relay.net.now)
    out = hear(relay, liar, Summary(bytes(32), bytes(BUCKETS * BUCKET_DIGEST)))
    assert out == []
    relay.net.now += MUTED
    assert hear(relay, liar, Summary(bytes(32), bytes(BUCKETS * BUCKET_DIGEST)))


def test_documents_nobody_asked_for_cost_the_link() -> None:
    relay, liar = victim(), version(3)
    (asked,) = hear(relay, liar, Summary(bytes(32), b"", (news(version(11)),)))
    assert isinstance(asked, Ask)
    relay.gossip.fetched(liar.id, DirDocs((Documents(version(12).id, b"", b"record"),)), relay.net.now)
    assert relay.gossip.out == [Drop(liar.id, "documents nobody asked for")]


def test_what_was_not_asked_for_is_ignored() -> None:
    relay = victim()
    entry = ListEntry(bytes(32), bytes(32), 1)
    assert hear(relay, version(3), Buckets.of([0], (entry,))) == []
    assert hear(relay, version(3), Offer((entry,))) == []
    assert relay.gossip.counts["unasked"] == 2


def test_a_peer_that_lies_about_its_digests_gets_an_answer_and_no_more() -> None:
    """Equal digests under another root, and digests of nothing."""
    relay = victim()
    short = relay.gossip.digests.short
    (answer,) = hear(relay, version(3), Summary(bytes(32), short))
    assert answer == Send(version(3).id, Summary(relay.gossip.digests.root), reply=True)
    (answer,) = hear(relay, version(3), Summary(bytes(32), bytes(len(short))))
    assert isinstance(answer, Send)
    assert isinstance(answer.message, Buckets)
    assert len(answer.message.entries) == 10


def test_a_silent_partner_gives_way_to_another() -> None:
    everybody = [version(number) for number in range(20)]
    relays = network(*[everybody] * 20)
    net = relays[0].net
    machine = relays[0].gossip
    silent: list[bytes] = []
    for _ in range(30):
        net.now = machine.deadline()
        machine.tick(net.now)
        silent += [one.peer for one in machine.out if isinstance(one, Silent)]
        machine.out.clear()
    assert len(set(silent)) > 8, "it went through many"


def test_memory_of_peers_is_bounded() -> None:
    relay = network([])[0]
    for number in range(3000):
        relay.gossip.receive(number.to_bytes(32, "big"), Summary(bytes(32)), 0.0)
    assert len(relay.gossip._peers) == 1024


def test_partners_come_from_the_own_list_alone() -> None:
    """Who makes links and talks much becomes no partner by that."""
    directory = Directory(NETWORK_ID, START)
    for number in range(6):
        directory.insert(version(number), START)
    machine = Gossip(directory, version(0).id, random.Random(1), 0.0)
    for number in range(100):
        machine.receive(number.to_bytes(32, "big"), Summary(bytes(32)), number * 1.0)
    machine.tick(200.0)
    told = {one.peer for one in machine.out if isinstance(one, Send)}
    assert told
    assert told <= {version(number).id for number in range(1, 6)}
    assert TELLINGS > 1


def test_who_promises_something_newer_and_gives_the_old_does_not_use_up_what_the_relay_may_change() -> None:
    """Else one liar could have nobody take the next records of any relay, until the last one expires."""
    relay, liar = victim(), version(3)
    for number in range(4 * CHANGES[1]):
        relay.net.now += 4
        relay.gossip.rumours.push(relay.net.now)
        promise = News(bytes([number]) * 32, version(4, 50).record_raw)
        (asked,) = hear(relay, liar, Summary(bytes(32), b"", (promise,)))
        assert isinstance(asked, Ask)
        old = Documents(version(4).id, version(4).certificate.raw, version(4).record_raw)
        relay.gossip.fetched(liar.id, DirDocs((old,)), relay.net.now)
        given, relay.gossip.out = list[object](relay.gossip.out), []
        assert take(relay, given) == []
        assert len(relay.gossip.rumours) == 0, "nor is it told on as news"
    assert take(relay, hear(relay, version(5), Summary(bytes(32), b"", (news(version(4, 50)),)))) == []
    assert held(relay, 4) == version(4, 50).record_raw


def test_a_relay_may_not_change_its_certificate_all_the_time() -> None:
    """Under one record, by which changes are told."""
    relay = victim()
    taken = 0
    for newer in range(1, 30):
        relay.net.now += 4
        one = make_relay(3, OLD + newer)
        digest = one.certificate.digest
        changed = Descriptor(one.certificate, version(3).record, version(3).record_raw)
        promise = Offer((ListEntry(one.id, digest, version(3).record.revision),))
        relay.gossip._peer(version(5).id).told_until = relay.net.now + 1
        out = hear(relay, version(5), promise)
        taken += bool(out)
        if out:
            documents = Documents(one.id, changed.certificate.raw, changed.record_raw)
            relay.gossip.fetched(version(5).id, DirDocs((documents,)), relay.net.now)
            given, relay.gossip.out = list[object](relay.gossip.out), []
            assert take(relay, given) == []
    assert taken == CHANGES[1]
