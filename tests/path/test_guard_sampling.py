"""From whom guards are drawn: by weight, but not far by it, and from many neighbourhoods."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from backrooms.netdir.descriptor import Descriptor
from backrooms.path.constraints import Constraints, Position
from backrooms.path.guards import MOST_MEDIANS, Allowed, GuardSample, drawing
from backrooms.path.selector import PathSelector
from tests.keys import fake_relay


def samples(relays: Sequence[Descriptor], count: int) -> list[set[bytes]]:
    """The samples of so many clients."""
    selector = PathSelector.over(relays, Constraints())
    found = []
    for seed in range(count):
        rng, sample = random.Random(seed), GuardSample()
        draw = drawing(selector, Position.ENTRY, sample.guards, rng)
        sample.extend(Allowed(selector, Position.ENTRY), len(relays), len(relays), draw, 0.0, rng)
        found.append(set(sample.guards))
    return found


def first(relays: Sequence[Descriptor], count: int) -> Counter[bytes]:
    """How many of so many clients have each relay as their first guard."""
    selector = PathSelector.over(relays, Constraints())
    rng = random.Random(1)
    draw = drawing(selector, Position.ENTRY, (), rng)
    drawn = (draw(()) for _ in range(count))
    return Counter(one for one in drawn if one is not None)


def test_claims_count_up_to_a_few_medians() -> None:
    honest = [fake_relay(number) for number in range(200)]
    small = [fake_relay(200 + number, capacity=100_000) for number in range(10)]
    double = [fake_relay(300 + number, capacity=2_000_000) for number in range(10)]
    liars = [fake_relay(400 + number, capacity=500_000_000) for number in range(10)]
    drawn = first([*honest, *small, *double, *liars], 20_000)

    def each(relays: Sequence[Descriptor]) -> float:
        return sum(drawn[relay.id] for relay in relays) / len(relays)

    usual = each(honest)
    assert each(small) / usual == pytest.approx(0.1, abs=0.06)
    assert each(double) / usual == pytest.approx(2.0, abs=0.35)
    assert each(liars) / usual == pytest.approx(MOST_MEDIANS, abs=0.6)


def test_many_relays_in_few_networks_have_few_places() -> None:
    """A quarter of all relays are in three /16s: without more they would have some five places of twenty."""
    honest = [fake_relay(number) for number in range(150)]
    crowd = [fake_relay(500 + n, address=f"tls:5.{n % 3}.{n}.1:443") for n in range(50)]
    bad = {relay.id for relay in crowd}
    found = samples([*honest, *crowd], 40)
    assert all(len(sample) == 20 for sample in found)
    assert max(len(sample & bad) for sample in found) <= 3


def test_where_there_is_but_one_neighbourhood_all_come_from_it() -> None:
    relays = [fake_relay(n, address=f"tls:5.1.{n}.1:443") for n in range(30)]
    assert all(len(sample) == 20 for sample in samples(relays, 5))


def test_one_relay_is_all_there_is() -> None:
    relays = [fake_relay(1)]
    assert samples(relays, 1) == [{relays[0].id}]
    assert samples([], 1) == [set()]


def test_the_same_seed_gives_the_same_sample() -> None:
    relays = [fake_relay(number) for number in range(100)]
    assert samples(relays, 3) == samples(relays, 3)
    assert samples(relays, 3)[0] != samples(relays, 3)[1]
