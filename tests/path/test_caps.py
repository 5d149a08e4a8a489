"""What one party can win: by lying about capacity, by many relays, and by coming new."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.netdir.descriptor import Descriptor
from backrooms.path.constraints import Constraints, Position, Target
from backrooms.path.roster import AGES_TELL, NEW_FLOOR, SLOW_START, Roster
from backrooms.path.selector import PathSelector
from backrooms.path.weights import GROUP_SHARES, MAX_SHARE, WeightTable, cap_groups, group_shares
from tests.keys import fake_public, fake_relay
from tests.path import networks
from tests.path.networks import PLACES, WEB

DAY = 86400.0


def shares(relays: list[Descriptor]) -> dict[str, float]:
    """The share of each group and relay in a table of these relays."""
    table = WeightTable(Roster.of(relays, PLACES).rows())
    found: defaultdict[str, float] = defaultdict(float)
    for row, weight in zip(table.rows, table.weights, strict=True):
        found[row.relay.nickname] = weight / table.total
        for name in row.groups:
            found[name] += weight / table.total
    return found


def honest(count: int, capacity: int = 10**7) -> list[Descriptor]:
    return [
        fake_relay(n, address=f"tls:{20 + n % 12}.{n // 12 % 250}.0.{n // 3000 + 1}:1", capacity=capacity)
        for n in range(count)
    ]


@pytest.mark.parametrize("factor", [2, 100, 10**9])
def test_a_liar_about_capacity_gains_its_cap_and_no_more(factor: int) -> None:
    relays = [*honest(300), fake_relay(999, address="tls:31.249.0.1:1", capacity=10**7 * factor)]
    assert shares(relays)["fake999"] <= MAX_SHARE * 1.001
    assert shares(relays)["fake999"] >= (0.006 if factor == 2 else MAX_SHARE * 0.99)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_share_of_paths_that_a_liar_is_on_is_its_cap(position: int) -> None:
    """Entry, middle, exit: 100 times the capacity of others."""
    relays = [fake_relay(n, exit_policy=WEB if n % 3 == 0 else None) for n in range(120)]
    liars = [fake_relay(500, capacity=10**8), fake_relay(501, capacity=10**8, exit_policy=WEB)]
    selector = PathSelector.over([*relays, *liars], Constraints())
    rng = random.Random(7)
    drawn = Counter(selector.select(3, Target(), rng)[position].nickname for _ in range(4000))
    assert max(drawn["fake500"], drawn["fake501"]) / 4000 < 0.066


@pytest.mark.parametrize(
    ("kind", "sybils"),
    [
        ("/16", [fake_relay(1000 + n, address=f"tls:31.249.{n}.1:1", capacity=10**9) for n in range(60)]),
        (
            "AS",
            [fake_relay(1000 + n, address=f"tls:31.{240 + n % 8}.{n}.1:1", capacity=10**9) for n in range(60)],
        ),
        (
            "family",
            [
                fake_relay(
                    1000 + n, capacity=10**9, family=tuple(fake_public(1000 + m).id for m in range(60) if m != n)
                )
                for n in range(60)
            ],
        ),
        ("family", [fake_relay(1000 + n, capacity=10**9, family_keys=frozenset([b"k" * 32])) for n in range(60)]),
        ("operator", [networks.with_operator(fake_relay(1000 + n, capacity=10**9), "Me") for n in range(60)]),
    ],
    ids=["/16", "AS", "family", "family key", "operator"],
)
def test_many_relays_of_one_party_gain_one_cap(kind: str, sybils: list[Descriptor]) -> None:
    found = shares([*honest(300), *sybils])
    together = sum(found[one.nickname] for one in sybils)
    assert together == pytest.approx(GROUP_SHARES[kind], rel=0.01)
    raw = Roster.of([*honest(300), *sybils]).rows()
    assert sum(row.weight for row in raw if row.capacity == 10**9) / sum(row.weight for row in raw) > 0.9  # by its word


def test_twenty_percent_sybils_in_three_networks_of_one_as() -> None:
    """60 of 300 relays, each with 10 times the capacity of an honest one: without caps they have most of the weight."""
    sybils = [fake_relay(1000 + n, address=f"tls:31.{240 + n % 3}.{n}.1:1", capacity=10**8) for n in range(60)]
    found = shares([*honest(240), *sybils])
    assert sum(found[one.nickname] for one in sybils) <= GROUP_SHARES["AS"] * 1.01


def test_a_liar_takes_little_from_its_neighbours() -> None:
    """The heaviest of a group are lowered to one level: others of its /16 keep what they had."""
    neighbours = [fake_relay(1000 + n, address=f"tls:31.249.{n}.1:1", capacity=10**7) for n in range(4)]
    liar = fake_relay(2000, address="tls:31.249.99.1:1", capacity=10**12)
    before, after = shares([*honest(300), *neighbours]), shares([*honest(300), *neighbours, liar])
    assert after["/16 31.249.0.0/16"] <= GROUP_SHARES["/16"] * 1.01
    for one in neighbours:
        assert after[one.nickname] > 0.9 * before[one.nickname]


def test_caps_are_shares_of_the_groups_that_there_are() -> None:
    rows = Roster.of(honest(6), PLACES).rows()
    found = group_shares(rows, {name for row in rows for name in row.groups})
    assert found["/16"] == found["AS"] == pytest.approx(1.5 / 6)
    assert found["operator"] == 1.0 or found["operator"] == GROUP_SHARES["operator"]  # nobody has one
    one_as = [fake_relay(n, address=f"tls:20.{n % 8}.{n}.1:1") for n in range(40)]
    assert shares(one_as)["AS 64500"] == pytest.approx(1.0)


@given(st.integers(0, 10**6), st.integers(1, 60))
def test_caps_hold_in_any_network_or_are_raised_alike(seed: int, count: int) -> None:
    """Nobody gains weight; those of the smallest weight keep it; and a draw is always possible."""
    rows = Roster.of(networks.network(seed, count), PLACES).rows()
    plain = [row.weight for row in rows]
    capped = cap_groups(rows, plain)
    assert all(0 < new <= old for new, old in zip(capped, plain, strict=True))
    names = {name for row in rows for name in row.groups}
    limits = group_shares(rows, names)
    total = sum(capped)
    over = [
        sum(weight for row, weight in zip(rows, capped, strict=True) if name in row.groups)
        / (total * limits[name.partition(" ")[0]])
        for name in names
    ]
    over.append(max(capped) / (total * max(MAX_SHARE, min(1.0, 1.5 / len(rows)))))
    # In such small networks, with a third of all relays of one operator, caps may contradict each other.
    assert max(over) < 1.002 * 1.5**3 or count < 20


def test_networks_on_one_machine_have_no_caps_by_network() -> None:
    relays = [fake_relay(n, address=f"tls:127.0.0.1:{n + 1}", capacity=1000) for n in range(20)]
    selector = PathSelector.over(relays, Constraints(distinct_subnets=False))
    assert selector.table(Position.MIDDLE).weights == [1000.0] * 20


# slow start


def weights(ages: dict[int, float], now: float = 1e9) -> dict[int, float]:
    """Parts of their full weight that relays of these ages have."""
    relays = {number: fake_relay(number, capacity=1000) for number in ages}
    roster = Roster.of(relays.values())
    roster.weigh({relays[number].id: now - age for number, age in ages.items()}, now)
    return {number: roster.by_id[relay.id].weight / 1000 for number, relay in relays.items()}


def test_new_relays_gain_weight_with_age() -> None:
    old = dict.fromkeys(range(40), 100 * DAY)
    found = weights({**old, 50: 0.0, 51: SLOW_START / 2, 52: SLOW_START, 53: 60.0})
    assert (found[50], found[51], found[52], found[53]) == (NEW_FLOOR, 0.5, 1.0, NEW_FLOOR)
    assert all(found[n] == 1.0 for n in old)


def test_on_a_new_node_nobody_is_held_back() -> None:
    assert set(weights({n: n * 10.0 for n in range(40)}).values()) == {1.0}
    assert set(weights(dict.fromkeys(range(40), 0.0)).values()) == {1.0}
    assert weights({0: 0.0}) == {0: 1.0}


def test_ages_are_relative_to_the_oldest_quarter() -> None:
    """A node that is a day old: who was there from its start has full weight, who came since has its part."""
    found = weights({**dict.fromkeys(range(30), DAY), 40: DAY / 4, 41: 0.0})
    assert (found[0], found[40], found[41]) == (1.0, 0.25, NEW_FLOOR)
    # Three new Sybils for each honest relay do not make themselves old.
    found = weights({**dict.fromkeys(range(30), 10 * DAY), **dict.fromkeys(range(100, 170), AGES_TELL)})
    assert found[100] == NEW_FLOOR


def test_a_relay_that_comes_later_starts_slowly_before_all_are_weighed_again() -> None:
    relays = [fake_relay(n, capacity=1000) for n in range(40)]
    roster = Roster.of(relays)
    roster.weigh({relay.id: 0.0 for relay in relays}, 30 * DAY)
    late = fake_relay(99, capacity=1000)
    roster.put(late.id, late)
    assert roster.by_id[late.id].weight == 1000 * NEW_FLOOR
    roster.put(relays[0].id, fake_relay(0, capacity=3000))
    assert roster.by_id[relays[0].id].weight == 3000
