"""Who may come in and who comes first, by simulated time and simulated costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.address import UNIXAddress

from backrooms.config.options import LimitOptions
from backrooms.node.admission import ADDRESS_RATE, MAX_SIGNING, SUBNET_RATE, prefixes
from tests.node.door import COST, WIDE, Guest, House, wave

# rates


@pytest.mark.parametrize(
    ("host", "canonical", "same", "same_subnet", "other"),
    [
        ("192.0.2.7", "192.0.2.7", "192.0.2.7", "192.0.2.200", "192.0.3.7"),
        ("2001:db8:1:2::7", "2001:db8:1:2::7", "2001:db8:1:2:ffff::", "2001:db8:1:3::7", "2001:db8:2:2::7"),
        ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.7", "::ffff:192.0.2.200", "::ffff:192.0.3.7"),
        ("fe80::1%eth0", "fe80::1", "fe80::2%eth1", "fe80:0:0:1::", "fe80:0:1::"),
        ("", "", "", "", "192.0.2.7"),
    ],
)
def test_what_counts_as_one_address(host: str, canonical: str, same: str, same_subnet: str, other: str) -> None:
    assert prefixes(host)[0] == canonical
    assert prefixes(host)[1:] == prefixes(same)[1:]
    assert prefixes(host)[2] == prefixes(same_subnet)[2]
    assert prefixes(host)[2] != prefixes(other)[2]


def test_one_address_may_come_so_often() -> None:
    house = House(LimitOptions(address_rate=2.0, address_burst=10))
    assert sum(house.try_in("192.0.2.7") is not None for _ in range(100)) == 10
    assert house.refused == {ADDRESS_RATE: 90}
    assert house.try_in("192.0.2.8"), "its neighbours are not concerned"
    house.run(2.01, 0.01)
    assert sum(house.try_in("192.0.2.7") is not None for _ in range(100)) == 4


def test_one_subnet_may_come_so_often() -> None:
    house = House(LimitOptions(subnet_rate=2.0, subnet_burst=10))
    assert sum(house.try_in(f"192.0.2.{number}") is not None for number in range(100)) == 10
    assert house.refused == {SUBNET_RATE: 90}
    assert house.try_in("192.0.3.1")
    house = House(LimitOptions(subnet_rate=2.0, subnet_burst=10))
    assert sum(house.try_in(f"2001:db8:1:{number:x}::1") is not None for number in range(100)) == 10


def test_what_one_address_has_too_much_is_not_taken_from_its_neighbours() -> None:
    house = House(LimitOptions(address_rate=0.1, address_burst=5, subnet_rate=0.1, subnet_burst=20))
    for _ in range(100):
        house.try_in("192.0.2.7")
    assert sum(house.try_in("192.0.2.8") is not None for _ in range(100)) == 5
    assert house.refused == {ADDRESS_RATE: 95 + 95}


def test_a_small_network_on_one_machine_comes_up() -> None:
    """Six others and a client link to each relay within a second, from one address; some of them twice."""
    house = House(LimitOptions())
    assert all(house.try_in("127.0.0.1") for _ in range(14))


def test_other_kinds_of_addresses() -> None:
    house = House(LimitOptions(address_rate=0.1, address_burst=2))
    assert [house.door.arrive(UNIXAddress(None)) is not None for _ in range(3)] == [True, True, False]


# CPU time


def test_who_asks_an_idle_node_is_served_at_once() -> None:
    house = House()
    guest = house.come("192.0.2.7").ask()
    house.clock.advance(0)
    assert guest.served == [house.now]
    guest.ask()
    house.clock.advance(0)
    assert len(guest.served) == 2


def test_handshakes_get_so_much_cpu_time_and_no_more() -> None:
    house = House(replace(WIDE, handshake_cpu=0.25))
    guests = [guest.ask(0.002) for guest in wave(house, 100, 5)]
    house.run(2.0)
    served = sum(len(guest.served) for guest in guests)
    assert served == pytest.approx((0.25 + 2.0 * 0.25) / 0.002, abs=3), "what was saved, and the rate"
    house.run(8.1)
    assert sum(len(guest.served) for guest in guests) == 500, "the rest came in time, or was refused"


def test_a_wait_is_not_polling() -> None:
    house = House()
    house.spend()
    house.door.links.charge(1.0, house.now)
    for guest in wave(house, 50, 2):
        guest.ask()
    calls = []
    at = house.timers.at

    def counting(deadline: float, function: Callable[[], object]) -> Any:
        calls.append(deadline)
        return at(deadline, function)

    house.timers.at = counting  # type: ignore[method-assign]
    house.run(3.9)
    assert not house.order
    assert len(calls) <= 2
    house.run(4)
    assert len(house.order) > 90
    assert len(calls) < 3 * len(house.order)


def test_one_handshake_for_each_turn_of_the_reactor() -> None:
    house = House()
    for guest in wave(house, 10, 5):
        guest.ask()
    for number in range(1, 20):
        house.turn()
        assert len(house.order) == number


def test_a_stranger_overtakes_a_crowd() -> None:
    house = House()
    for guest in wave(house, 20, 20):
        guest.ask()
    house.run(1.0)
    stranger = house.come("192.0.2.7").ask()
    began = house.now
    house.run(0.1)
    assert stranger.served
    assert stranger.served[0] - began < 2 * COST / 0.25 + 0.002


def test_subnets_take_turns() -> None:
    house = House()
    house.spend()
    for number in range(50):
        house.come(f"10.0.0.{1 + number}").ask()
    few = [house.come(f"10.0.1.{1 + number}").ask() for number in range(10)]
    house.run(1.5)
    assert all(guest.served for guest in few)
    order = house.order[:20]
    assert sum(guest in few for guest in order) == 10, "it had less before, so all of it comes first"
    both = [house.come(f"10.0.{2 + number % 2}.{number}").ask() for number in range(20)]
    done = len(house.order)
    house.run(1.0)
    hosts = [guest.host[:6] for guest in house.order[done:] if guest in both]
    assert Counter(hosts[:10]) == {"10.0.2": 5, "10.0.3": 5}


def test_known_relays_come_first_but_cannot_shut_others_out() -> None:
    house = House(known="10.9.")
    house.spend()
    crowd = [guest.ask() for guest in wave(house, 40, 5)]
    relay = house.come("10.9.0.1").ask()
    house.run(0.05)
    assert relay in house.order[:2]
    relays = [guest.ask() for guest in wave(house, 100, 2, first=9)]
    done = len(house.order)
    house.run(0.5)
    served = house.order[done:]
    assert abs(sum(guest in relays for guest in served) - sum(guest in crowd for guest in served)) <= 1


def test_signatures_and_handshakes_take_turns_and_few_signatures_are_made_at_once() -> None:
    house = House()
    started: list[Guest] = []

    def sign(guest: Guest) -> None:
        house.door.signing += 1
        started.append(guest)

    def signed() -> None:
        house.door.signing -= 1
        house.door.wake()

    signers = wave(house, 20, 1)
    for guest in signers:
        guest.ticket.wait_to_sign(lambda guest=guest: sign(guest))  # type: ignore[misc]
    for guest in wave(house, 20, 1, first=2):
        guest.ask()
    for _ in range(2 * MAX_SIGNING):
        house.turn()
    assert len(started) == len(house.order) == MAX_SIGNING
    house.run(0.2)
    assert len(house.order) == 20
    assert len(started) == MAX_SIGNING
    signed()
    house.run(0.01)
    assert len(started) == MAX_SIGNING + 1
    for _ in range(15):
        signed()
        house.run(0.01)
    assert len(started) == 20
