"""What a relay does for others who ask to be dialled, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from backrooms.node.dialback import DIAL_TIME, TEST_BURST, TESTS, TESTS_PER_SUBNET
from backrooms.node.link import Link
from backrooms.wire.reach import ReachResult, ReachStatus, ReachTest
from backrooms.wire.records import Address
from tests.node.conftest import MakeNetwork
from tests.node.reaching import Reaching, public
from tests.simnet.node import RELAY_PORT, SimNode
from tests.simnet.pairs import Recorder, accepting


class Asker:
    """A relay that asks another one whatever it likes."""

    def __init__(self, reaching: Reaching, sim: SimNode, tester: SimNode) -> None:
        self.net = reaching.net
        self.answers: dict[int, ReachResult] = {}
        sim.node.channels.handlers[ReachResult.TYPE] = self._answered
        self.link: Link = self.net.run_until(sim.node.channels.link(tester.id))
        self._nonce = 0

    def _answered(self, link: Link, payload: bytes) -> None:
        result = ReachResult.decode(payload)
        self.answers[result.nonce] = result

    def send(self, address: str = "") -> int:
        """Ask; the number of the question."""
        self._nonce += 1
        test = ReachTest(self._nonce, Address.parse(address) if address else None)
        self.link.channel.send_message(test.TYPE, test.encode())
        return self._nonce

    def ask(self, address: str = "", limit: float = DIAL_TIME + 1) -> tuple[int, str]:
        """Ask and wait: status and text."""
        number = self.send(address)
        self.net.run_until(lambda: number in self.answers, limit)
        return self.answers[number].status, self.answers[number].text

    def count(self, status: ReachStatus) -> int:
        return sum(answer.status == status for answer in self.answers.values())


@pytest.fixture
def reaching(make: MakeNetwork) -> Reaching:
    """Six relays on the Internet that have published themselves, with IPv6 at the last two."""
    made = Reaching(make(places=public))
    made.start_all(4, 5)
    for number in (4, 5):
        made.start(number, listen=[f"tls:[{public(number)[1]}]:{RELAY_PORT}"])
    made.net.run(30)
    return made


@pytest.fixture
def asker(reaching: Reaching) -> Asker:
    """Relay 3, with a link to relay 2."""
    return Asker(reaching, reaching.network.relays[3], reaching.network.relays[2])


def links_to(sim: SimNode, other: SimNode) -> list[Link]:
    return [link for link in sim.node.channels.links if link.open and link.peer_id == other.id]


def test_a_relay_is_dialled_at_its_address(reaching: Reaching, asker: Asker) -> None:
    asker_node, tester = reaching.network.relays[3], reaching.network.relays[2]
    before = links_to(tester, asker_node)
    assert asker.ask(f"tls:{public(3)[0]}:{RELAY_PORT}") == (ReachStatus.REACHED, "")
    (new,) = [link for link in links_to(tester, asker_node) if link not in before]
    assert new.channel.initiator
    reaching.net.run(10)
    assert len(links_to(tester, asker_node)) == 1, "of two links one stays"


def test_a_relay_is_told_where_it_is_seen_and_not_dialled(reaching: Reaching, asker: Asker) -> None:
    made = reaching.net.connections
    assert asker.ask() == (ReachStatus.SEEN, "")
    assert asker.answers[1].seen == public(3)[0]
    assert reaching.net.connections == made


def test_b11_nobody_has_a_third_party_dialled(reaching: Reaching, asker: Asker) -> None:
    victim = reaching.net.host("victim", "45.77.0.1", "2a00:77::1")
    calls: list[Recorder] = []
    for ip in victim.addresses:
        victim.reactor.listenTCP(443, accepting(reaching.net, Recorder, calls), interface=ip)
    for address in (
        "tls:45.77.0.1:443",
        "tls:[2a00:77::1]:443",
        f"tls:{public(0)[0]}:{RELAY_PORT}",
        "tls:45.4.0.2:443",
        f"tls:[{public(3)[1]}]:443",
    ):
        assert asker.ask(address) == (ReachStatus.REFUSED, "you are not seen at this address")
    for address in ("tls:127.0.0.1:9001", "tls:10.0.0.1:443", "tls:[::1]:22", "tls:[fe80::1]:22"):
        assert asker.ask(address) == (ReachStatus.REFUSED, "a private address")
    assert asker.ask("webrtc:anything") == (ReachStatus.REFUSED, "an address of an unknown kind")
    reaching.net.run(DIAL_TIME)
    assert calls == []


def test_another_port_and_another_relay_at_the_own_address(reaching: Reaching, asker: Asker) -> None:
    assert asker.ask(f"tls:{public(3)[0]}:81") == (ReachStatus.UNREACHED, "the connection was refused")
    host = reaching.network.relays[3].host
    heard: list[Recorder] = []
    host.reactor.listenTCP(82, accepting(reaching.net, Recorder, heard), interface=host.address)
    status, text = asker.ask(f"tls:{public(3)[0]}:82")
    assert (status, text) == (ReachStatus.UNREACHED, f"no link within {DIAL_TIME:.0f} s")
    assert heard[0].lost, "the connection does not outlive the test"


def test_ipv6_is_dialled_in_the_same_64_only(reaching: Reaching) -> None:
    asker = Asker(reaching, reaching.network.relays[5], reaching.network.relays[4])
    own = public(5)[1]
    assert asker.ask(f"tls:[{own}]:{RELAY_PORT}")[0] == ReachStatus.REFUSED, "the link is one of IPv4"
    place = f"tls:[{public(4)[1]}]:{RELAY_PORT}"
    channels = reaching.network.relays[5].node.channels
    asker.link = reaching.net.run_until(channels.connect(place, reaching.network.relays[4].id))
    assert asker.ask(f"tls:[{own}]:{RELAY_PORT}")[0] == ReachStatus.REACHED
    assert asker.ask("tls:[2a00:6::ffff:2]:1")[0] == ReachStatus.UNREACHED
    assert asker.ask("tls:[2a00:6:0:1::1]:1")[0] == ReachStatus.REFUSED


def test_clients_are_not_dialled(reaching: Reaching) -> None:
    client = reaching.network.client
    client.start()
    asker = Asker(reaching, client, reaching.network.relays[0])
    assert asker.ask(f"tls:{client.host.address}:9050") == (ReachStatus.REFUSED, "only relays are tested")


def test_a_client_that_is_asked_says_nothing_and_keeps_the_link(reaching: Reaching) -> None:
    reaching.network.client.start()
    relay = reaching.network.relays[0].node
    reaching.net.run_until(lambda: any(link.open and link.peer_id is None for link in relay.channels.links))
    (link,) = [link for link in relay.channels.links if link.peer_id is None]
    link.channel.send_message(ReachTest.TYPE, ReachTest(1).encode())
    reaching.net.run(5)
    assert link.open


# bounds


def dials(sim: SimNode) -> list[str]:
    """What the node dials from now on."""
    found: list[str] = []
    transport: Any = sim.node.channels._transports["tls"]
    endpoint = transport.client_endpoint

    def counting(reactor: Any, address: str) -> Any:
        found.append(address)
        return endpoint(reactor, address)

    transport.client_endpoint = counting
    return found


def test_b11_a_flood_of_tests_is_bounded(reaching: Reaching, asker: Asker) -> None:
    dialled = dials(reaching.network.relays[2])
    for number in range(1000):
        asker.send(f"tls:{public(3)[0]}:{1000 + number}")
    reaching.net.run(1)
    assert len(dialled) == TEST_BURST
    assert asker.count(ReachStatus.BUSY) == 1000 - TEST_BURST
    for number in range(1000):
        asker.send(f"tls:{public(3)[0]}:{1000 + number}")
        reaching.net.run(0.1)
    assert len(dialled) <= TEST_BURST + 12, "one in ten seconds"
    assert asker.link.open
    reaching.net.run(20)
    assert asker.ask(f"tls:{public(3)[0]}:{RELAY_PORT}")[0] == ReachStatus.REACHED


def test_b11_a_flood_without_reading_gets_no_answers(reaching: Reaching, asker: Asker) -> None:
    """Answers wait in the tester's queue only as far as directory answers do."""
    asker.link.driver.pause()
    for _ in range(3000):
        asker.send()
    reaching.net.run(5)
    (link,) = links_to(reaching.network.relays[2], reaching.network.relays[3])
    assert link.channel.mux.control_waiting <= 66


def test_b11_one_network_cannot_keep_a_relay_from_testing_others(make: MakeNetwork) -> None:
    reaching = Reaching(make(places=lambda number: (f"45.1.0.{number + 1}",)))
    reaching.start_all()
    reaching.net.run(30)
    tester = reaching.network.relays[0]
    askers = [Asker(reaching, sim, tester) for sim in reaching.network.relays[1:]]
    for asker, sim in zip(askers, reaching.network.relays[1:], strict=True):
        # Somebody who accepts connections and says nothing holds each test as long as it may last.
        sim.host.reactor.listenTCP(80, accepting(reaching.net, Recorder, []), interface=sim.host.address)
        asker.send(f"tls:{sim.host.address}:80")
    reaching.net.run(DIAL_TIME + 1)
    assert sum(asker.count(ReachStatus.UNREACHED) for asker in askers) == TESTS_PER_SUBNET < TESTS
    assert sum(asker.count(ReachStatus.BUSY) for asker in askers) == len(askers) - TESTS_PER_SUBNET


def test_b4_what_is_malformed_ends_the_link(reaching: Reaching, asker: Asker) -> None:
    channels = reaching.network.relays[3].node.channels
    for kind in (ReachTest.TYPE, ReachResult.TYPE):
        for payload in (b"", b"12345678", b"12345678\3tls", b"12345678\0\0"):
            asker.link = reaching.net.run_until(channels.link(reaching.network.relays[2].id))
            asker.link.channel.send_message(kind, payload)
            reaching.net.run_until(lambda: not asker.link.open, 5)


def test_a_result_nobody_asked_for_is_ignored(asker: Asker) -> None:
    asker.link.channel.send_message(ReachResult.TYPE, ReachResult(7, ReachStatus.REACHED, "45.1.0.1").encode())
    asker.net.run(5)
    assert asker.link.open


@pytest.mark.parametrize("after", [0.0, 0.015, 0.05, 2.0])
def test_a_tester_that_stops_meanwhile_leaves_nothing_behind(reaching: Reaching, asker: Asker, after: float) -> None:
    host = reaching.network.relays[3].host
    host.reactor.listenTCP(80, accepting(reaching.net, Recorder, []), interface=host.address)
    asker.send(f"tls:{host.address}:80")
    reaching.net.run(after)
    # The fixture stops the tester, then the asker, and sees whether anything is left.
