"""Relays find out their addresses, and publish what others have reached."""

from __future__ import annotations

import pytest

from backrooms.node.link import Link
from backrooms.node.reachability import RETEST, Verdict
from backrooms.wire.reach import ReachResult, ReachStatus, ReachTest
from tests.node.conftest import MakeNetwork
from tests.node.reaching import Reaching, public
from tests.simnet.node import RELAY_PORT, SimNode

NAT = "45.200.0.1"


@pytest.fixture
def reaching(make: MakeNetwork) -> Reaching:
    """Six relays on the Internet that are not started yet; the first two are contacts."""
    return Reaching(make(places=public))


def place(number: int, port: int = RELAY_PORT) -> str:
    return f"tls:{public(number)[0]}:{port}"


def place6(number: int, port: int = RELAY_PORT) -> str:
    return f"tls:[{public(number)[1]}]:{port}"


def test_a_relay_is_published_when_two_others_have_reached_it(reaching: Reaching) -> None:
    reaching.start_all(5)
    reaching.net.run(10)
    began = reaching.net.now
    reaching.start(5)
    assert reaching.published(5, at=5) == (), "it is not even in its own list, which others fetch"
    reaching.until_published(5, place(5))
    assert reaching.net.now - began < 2
    state = reaching.state(5)
    assert (state.verdict, state.published, state.reached_by) == (Verdict.REACHABLE, True, 2)
    assert state.seen == public(5)[0]


def test_a_whole_network_starts_at_once(reaching: Reaching) -> None:
    reaching.start_all()
    reaching.net.run_until(lambda: all(len(node.node.directory) == 6 for node in reaching.network.relays), 10)
    reaching.net.run(5)
    assert {reaching.state(number).verdict for number in range(6)} == {Verdict.REACHABLE}


def test_a_local_network_starts_at_once(make: MakeNetwork) -> None:
    reaching = Reaching(make())
    reaching.start_all()
    reaching.net.run_until(lambda: all(len(node.node.directory) == 6 for node in reaching.network.relays), 10)


def test_a_contact_is_published_before_anybody_has_reached_it(reaching: Reaching) -> None:
    reaching.start(0)
    assert reaching.published(0) == (place(0),)
    reaching.net.run(30)
    assert reaching.state(0).verdict is Verdict.UNTESTED


def test_a_relay_with_one_other_is_published_when_that_has_reached_it(make: MakeNetwork) -> None:
    reaching = Reaching(make(relays=3, places=public))
    reaching.start(0)
    reaching.start(2)
    reaching.until_published(2, place(2), limit=20)
    assert reaching.state(2).reached_by == 1


# behind NAT


def test_b17_behind_nat_nothing_is_published_and_one_line_says_why(reaching: Reaching, said: list[str]) -> None:
    reaching.net.nat(reaching.network.relays[5].host, NAT)
    reaching.start_all(5)
    reaching.start(5, f"tls:auto:{RELAY_PORT}", listen=[f"tls:0.0.0.0:{RELAY_PORT + 1}"])
    reaching.net.run(900)
    assert not any(reaching.published(5, at) for at in range(6))
    (line,) = [line for line in said if "can reach" in line]
    assert f"tls:{NAT}:{RELAY_PORT}" in line
    assert "no link within 10 s" in line or "no answer to the connection attempt" in line
    assert f"are you behind NAT? Forward TCP port {RELAY_PORT} to this machine, or set relay.addresses" in line
    state = reaching.state(5)
    assert (state.verdict, state.published, state.reached_by) == (Verdict.UNREACHABLE, False, 0)
    assert state.missed_by >= 3
    assert state.seen == NAT
    assert all(reaching.state(number).published for number in range(5))


def test_b17_once_the_port_is_forwarded_the_relay_is_published(reaching: Reaching) -> None:
    host = reaching.network.relays[5].host
    reaching.net.nat(host, NAT)
    reaching.start_all(5)
    reaching.start(5, f"tls:auto:{RELAY_PORT}")
    reaching.net.run(120)
    assert not reaching.published(5)
    reaching.net.nat(host, NAT, {RELAY_PORT: RELAY_PORT})
    reaching.until_published(5, f"tls:{NAT}:{RELAY_PORT}", limit=400)


def test_a_wrong_port(reaching: Reaching, said: list[str]) -> None:
    reaching.start_all(5)
    reaching.start(5, place(5, 444))
    reaching.net.run(60)
    assert not reaching.published(5)
    (line,) = [line for line in said if "nobody can reach" in line]
    assert "the connection was refused" in line
    assert "Forward TCP port 444" in line


def test_of_two_addresses_the_one_that_is_reached_is_published(reaching: Reaching) -> None:
    reaching.start_all(5)
    reaching.start(5, place(5, 444), place(5))
    reaching.until_published(5, place(5))
    reaching.net.run(60)
    assert reaching.published(5) == (place(5),)
    assert [state.published for state in reaching.tests[reaching.network.relays[5]].reachability()] == [False, True]


def test_a_relay_that_says_it_is_reachable_anyway(reaching: Reaching) -> None:
    reaching.start_all(5)
    reaching.start(5, place(5, 444), assume=True)
    reaching.until_published(5, place(5, 444))


def test_an_address_that_is_lost_is_not_published_again(reaching: Reaching, said: list[str]) -> None:
    relay = reaching.network.relays[5]
    reaching.net.nat(relay.host, NAT, {RELAY_PORT: RELAY_PORT})
    reaching.start_all(5)
    reaching.start(5, f"tls:auto:{RELAY_PORT}")
    reaching.until_published(5, f"tls:{NAT}:{RELAY_PORT}")
    reaching.net.nat(relay.host, NAT)
    reaching.net.run_until(lambda: reaching.state(5).verdict is Verdict.UNREACHABLE, 2 * RETEST)
    assert [line for line in said if "nobody can reach" in line]
    before = relay.node.directory.get(relay.id)
    relay.node.keeper.republish()
    assert relay.node.directory.get(relay.id) is before


# addresses that are found out


def test_a_relay_finds_out_its_address(reaching: Reaching) -> None:
    reaching.start_all(5)
    reaching.start(5, f"tls:auto:{RELAY_PORT}")
    reaching.until_published(5, place(5))


def test_an_address_that_changes_is_found_out_tested_and_published(reaching: Reaching) -> None:
    host = reaching.network.relays[5].host
    reaching.net.nat(host, NAT, {RELAY_PORT: RELAY_PORT})
    reaching.start_all(5)
    reaching.start(5, f"tls:auto:{RELAY_PORT}")
    reaching.until_published(5, f"tls:{NAT}:{RELAY_PORT}")
    reaching.net.run(1000)
    reaching.net.nat(host, "45.201.0.1", {RELAY_PORT: RELAY_PORT})
    reaching.until_published(5, f"tls:45.201.0.1:{RELAY_PORT}", limit=500)
    assert reaching.state(5).reached_by == 2


def test_a_fixed_address_that_is_not_ours_any_more_is_only_told(reaching: Reaching, said: list[str]) -> None:
    host = reaching.network.relays[5].host
    reaching.net.nat(host, NAT, {RELAY_PORT: RELAY_PORT})
    reaching.start_all(5)
    reaching.start(5, f"tls:{NAT}:{RELAY_PORT}")
    reaching.until_published(5, f"tls:{NAT}:{RELAY_PORT}")
    reaching.net.nat(host, "45.201.0.1", {RELAY_PORT: RELAY_PORT})
    reaching.net.run(1.5 * RETEST)
    (line,) = [line for line in said if "relays see this machine at 45.201.0.1" in line]
    assert "tls:auto:9001 finds it out" in line
    assert reaching.published(5) == (f"tls:{NAT}:{RELAY_PORT}",)
    assert reaching.state(5).seen == "45.201.0.1"


def test_a_contact_whose_address_is_found_out_starts_with_that_of_the_network_file(reaching: Reaching) -> None:
    reaching.start(0, f"tls:auto:{RELAY_PORT}")
    assert reaching.published(0) == (place(0),)
    reaching.start_all(0)
    reaching.net.run(60)
    assert reaching.published(0) == (place(0),)
    assert reaching.state(0).verdict is Verdict.REACHABLE


# both families


def test_ipv4_and_ipv6_are_tested_each_by_relays_that_have_it(reaching: Reaching) -> None:
    reaching.start_all(0, 1, 5)
    for number in (0, 1):  # the others have no IPv6
        reaching.start(number, place(number), place6(number), listen=[place6(number)])
    reaching.start(5, f"tls:auto:{RELAY_PORT}", f"tls:auto6:{RELAY_PORT}", listen=[place6(5)])
    reaching.until_published(5, place(5), place6(5), limit=120)
    assert [reaching.state(5, index).seen for index in (0, 1)] == list(public(5))


def test_the_first_relay_with_ipv6_publishes_it_untested_and_the_next_ones_do_not(
    reaching: Reaching, said: list[str]
) -> None:
    reaching.start_all(4, 5)
    reaching.start(4, place(4), place6(4), listen=[place6(4)])
    reaching.until_published(4, place(4), place6(4))
    assert reaching.state(4, 1).verdict is Verdict.UNTESTED
    reaching.start(5, place(5), place6(5, 444), listen=[place6(5)])
    reaching.net.run(120)
    assert reaching.published(5) == (place(5),)
    assert reaching.state(5, 1).verdict is Verdict.UNREACHABLE
    assert [line for line in said if place6(5, 444) in line]


# the others


def test_a_tester_that_dies_meanwhile_is_replaced(reaching: Reaching) -> None:
    reaching.start_all(5)
    reaching.net.run(30)
    contact = reaching.network.relays[0]
    contact.node.channels.handlers[ReachTest.TYPE] = lambda link, payload: contact.host.kill()
    reaching.start(5)
    reaching.net.run_until(lambda: reaching.state(5).published, 5)
    assert contact.host.reactor.dead
    assert reaching.state(5).reached_by == 1
    reaching.net.run_until(lambda: reaching.state(5).reached_by == 2, 30)


def test_a_tester_of_an_older_version_does_not_answer_and_another_is_asked(reaching: Reaching) -> None:
    reaching.start_all(5)
    reaching.net.run(30)
    for number in (0, 1):
        del reaching.network.relays[number].node.channels.handlers[ReachTest.TYPE]
    reaching.start(5)
    reaching.until_published(5, place(5), limit=120)
    links = [link for node in reaching.network.relays[:2] for link in node.node.channels.links]
    assert any(link.peer_id == reaching.network.relays[5].id for link in links), "they kept their links"


class Liar:
    """A relay that answers every test in its own way."""

    def __init__(self, sim: SimNode, status: ReachStatus, seen: str = "") -> None:
        self.asked = 0
        self._status = status
        self._seen = seen
        sim.node.channels.handlers[ReachTest.TYPE] = self._answer

    def _answer(self, link: Link, payload: bytes) -> None:
        self.asked += 1
        test = ReachTest.decode(payload)
        status = self._status if test.address is not None else ReachStatus.SEEN
        result = ReachResult(test.nonce, status, self._seen or link.peer_host, "because I say so")
        link.channel.send_message(result.TYPE, result.encode())


def test_b4_a_liar_alone_does_not_keep_a_relay_from_being_published(reaching: Reaching, said: list[str]) -> None:
    reaching.start_all(5)
    reaching.net.run(30)
    liar = Liar(reaching.network.relays[0], ReachStatus.UNREACHED)
    reaching.start(5)
    reaching.until_published(5, place(5), limit=20)
    assert liar.asked
    reaching.net.run_until(lambda: reaching.state(5).reached_by == 2, 60)
    assert not [line for line in said if "nobody can reach" in line]


def test_b4_a_liar_who_says_reached_is_not_believed_because_no_link_came(reaching: Reaching) -> None:
    reaching.start_all(5)
    reaching.net.run(30)
    liars = [Liar(node, ReachStatus.REACHED) for node in reaching.network.relays[:3]]
    reaching.start(5, place(5, 444))
    reaching.net.run(120)
    assert all(liar.asked for liar in liars)
    assert not reaching.published(5)
    assert reaching.state(5).reached_by == 0


def test_b4_a_liar_alone_does_not_move_our_address(reaching: Reaching) -> None:
    reaching.start_all(5)
    reaching.net.run(30)
    liar = Liar(reaching.network.relays[0], ReachStatus.REACHED, seen="45.99.0.1")
    reaching.start(5, f"tls:auto:{RELAY_PORT}")
    seen = set()
    for _ in range(70):
        reaching.net.run(10)
        seen.add(reaching.state(5).seen)
    assert liar.asked
    assert seen - {""} == {public(5)[0]}
    assert reaching.published(5) == (place(5),)


def test_b4_two_liars_do_not_move_an_address_that_is_known(reaching: Reaching) -> None:
    reaching.start_all(5)
    reaching.start(5, f"tls:auto:{RELAY_PORT}")
    reaching.until_published(5, place(5))
    reaching.net.run(30)
    liars = [Liar(node, ReachStatus.REACHED, seen="45.99.0.1") for node in reaching.network.relays[3:5]]
    for _ in range(70):
        reaching.net.run(10)
        assert reaching.state(5).seen == public(5)[0]
    assert any(liar.asked for liar in liars)


def test_a_private_address_is_not_believed_on_the_internet(reaching: Reaching) -> None:
    reaching.start_all(5)
    reaching.net.run(30)
    for node in reaching.network.relays[:5]:
        Liar(node, ReachStatus.REFUSED, seen="192.168.1.1")
    reaching.start(5, f"tls:auto:{RELAY_PORT}")
    reaching.net.run(60)
    assert reaching.state(5).seen == reaching.state(5).address == ""


@pytest.mark.parametrize("after", [0.0, 0.012, 0.03, 0.1, 5.0])
def test_a_relay_that_stops_while_it_is_tested_leaves_nothing_behind(reaching: Reaching, after: float) -> None:
    reaching.start_all(5)
    reaching.start(5, place(5), place6(5), f"tls:auto:{RELAY_PORT}")
    reaching.network.relays[0].host.freeze()  # it does not answer
    reaching.net.run(after)
    reaching.network.relays[0].host.thaw()
    # The fixture stops all nodes now, and sees whether anything is left.
