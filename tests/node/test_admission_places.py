"""Places for connections that have proven nothing: who has to go, and when."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from backrooms.netdir.directory import Directory
from backrooms.node.admission import (
    HANDSHAKE_SECONDS,
    KNOWN_SECONDS,
    LEAST_STAY,
    PENDING_FULL,
    STOPPING,
    TIMEOUT,
    KnownHosts,
)
from tests import keys
from tests.node.door import WIDE, Guest, House, wave


def test_a_full_house_makes_room_at_the_cost_of_who_has_most() -> None:
    house = House(replace(WIDE, pending_links=100))
    honest = wave(house, 10, 2)
    crowd = [house.come("192.0.2.7") for _ in range(80)]
    house.run(LEAST_STAY + 0.1, 0.1)
    for number in range(30):
        assert house.try_in("192.0.2.8"), "even from there"
        assert house.try_in(f"10.1.{number}.1")
        assert len(house.door) == 100
    assert not any(guest.away for guest in honest)
    away = [guest.away for guest in crowd]
    assert away == [PENDING_FULL] * 60 + [""] * 20, "the oldest went first"


def test_of_equals_the_one_that_had_most_lately_makes_room() -> None:
    house = House(replace(WIDE, pending_links=20))
    for _ in range(20):
        house.come("10.1.7.1").ticket.done()
    guests = wave(house, 20, 1, first=1)
    assert house.try_in("192.0.2.7")
    assert [guest.host for guest in guests if guest.away] == ["10.1.7.1"]


def test_those_who_came_just_now_may_stay_for_a_moment() -> None:
    house = House(replace(WIDE, pending_links=50))
    for _ in range(3):  # all of these subnets came often lately
        for guest in wave(house, 50, 1):
            guest.ticket.done()
    first = wave(house, 50, 1)
    for _ in range(20):
        for subnet in range(50):
            house.try_in(f"10.0.{subnet}.9")
    assert house.refused == {PENDING_FULL: 1000}
    assert not any(guest.away for guest in first)
    stranger = house.try_in("192.0.2.7")
    assert stranger, "a stranger is no part of that"
    assert sum(guest.away == PENDING_FULL for guest in first) == 1
    house.run(LEAST_STAY + 0.01, 0.01)
    assert all(house.try_in(f"10.0.{subnet}.9") for subnet in range(40))
    assert not stranger.away


def test_known_relays_are_spared_unless_they_fill_half_the_places() -> None:
    house = House(replace(WIDE, pending_links=40), known="10.9.")
    relays = [house.come("10.9.0.1") for _ in range(15)]
    crowd = wave(house, 25, 1)
    house.run(LEAST_STAY + 0.1, 0.1)
    for number in range(25):
        house.come(f"10.3.{number}.1")
    assert not any(guest.away for guest in relays)
    assert all(guest.away for guest in crowd)
    house.run(LEAST_STAY + 0.1, 0.1)
    for number in range(200):
        house.come(f"10.9.{number % 100}.1")
        house.run(LEAST_STAY / 10, LEAST_STAY / 10)
    assert sum(not guest.away for guest in relays) <= 20
    assert len(house.door) <= 40


def test_each_has_ten_seconds_however_it_spends_them() -> None:
    house = House()
    silent = house.come("192.0.2.7")
    house.run(4, 0.1)
    slow = house.come("192.0.2.7")
    house.spend()
    house.door.links.charge(100.0, house.now)
    waiting = house.come("192.0.2.7").ask()
    linked = house.come("192.0.2.7")
    linked.ticket.done()
    house.run(HANDSHAKE_SECONDS - 4.1, 0.1)
    guests = [silent, slow, waiting]
    assert [guest.away for guest in guests] == ["", "", ""]
    house.run(0.2, 0.1)
    assert [guest.away for guest in guests] == [TIMEOUT, "", ""]
    house.run(4, 0.1)
    assert [guest.away for guest in guests] == [TIMEOUT, TIMEOUT, TIMEOUT]
    assert waiting.served == []
    assert not linked.away
    assert len(house.door) == 0


def test_who_is_gone_is_not_served() -> None:
    house = House()
    house.spend()
    guests = [guest.ask() for guest in wave(house, 10, 1)]
    for guest in guests[::2]:
        guest.ticket.done()
        guest.ticket.done()
        guest.ask()
    house.run(1)
    assert house.order == guests[1::2]


def test_nothing_is_left_when_all_are_gone() -> None:
    house = House()
    guests = [guest.ask() for guest in wave(house, 10, 3)]
    house.run(1)
    for guest in guests:
        guest.ticket.done()
    house.run(HANDSHAKE_SECONDS + 1, 0.5)
    assert len(house.timers) == 0


def test_a_stopped_node_lets_nobody_in() -> None:
    house = House()
    house.spend()
    guests = [guest.ask() for guest in wave(house, 10, 1)]
    house.door.stop()
    assert {guest.away for guest in guests} == {STOPPING}
    assert house.try_in("192.0.2.7") is None
    assert len(house.timers) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["come", "ask", "sign", "done", "wait"]), st.integers(0, 9), st.integers(0, 3)),
        max_size=120,
    )
)
def test_whatever_they_do_the_bounds_hold(steps: list[tuple[str, int, int]]) -> None:
    house = House(replace(WIDE, pending_links=8), known="10.9.")
    guests: list[Guest] = []
    for what, number, host in steps:
        guest = guests[number % len(guests)] if guests else None
        if what == "come":
            new = house.try_in(f"10.{6 + host}.{number % 3}.1")
            guests += [new] if new is not None else []
        elif what == "wait":
            house.run(0.1 * number * host, 0.05)
        elif guest is not None and what == "ask":
            guest.ask(0.01 * host)
        elif guest is not None and what == "sign":
            guest.ticket.wait_to_sign(lambda: None)
        elif guest is not None:
            guest.ticket.done()
        assert len(house.door) == sum(one.ticket.open for one in guests) <= 8
    house.run(HANDSHAKE_SECONDS + 0.1, 0.05)
    assert len(house.door) == 0
    assert house.worked <= 0.25 + 0.25 * (house.now - 10_000) + 0.031
    house.run(1, 0.1)
    assert len(house.timers) == 0


# known relays


def test_the_addresses_of_known_relays() -> None:
    directory = Directory(keys.NETWORK_ID)
    now = 0.0
    known = KnownHosts(directory, lambda: now)
    assert not known("10.1.0.1")
    directory.insert(keys.descriptor(0, address="tls:10.1.0.1:9001"), keys.NOW)
    assert not known("10.1.0.1"), "it is not looked up for every connection"
    now += KNOWN_SECONDS
    assert known("10.1.0.1")
    directory.insert(keys.descriptor(1, address="tls:[2001:db8::1]:9001"), keys.NOW)
    now += KNOWN_SECONDS
    assert known("2001:db8::1")
    assert not known("2001:db8::2")
    assert not known("")
