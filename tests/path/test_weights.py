"""Chances by capacity, with a cap that a lie about capacity cannot pass."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.policy import ExitPolicy
from backrooms.path.roster import Candidate, Roster
from backrooms.path.weights import EXIT_FLOOR, MAX_SHARE, WeightTable, cap_weights, exit_damping, max_share
from tests.keys import fake_relay

EXIT = ExitPolicy.parse(["accept *:*"])


def rows(relays: list[Descriptor]) -> list[Candidate]:
    """The relays in the order given."""
    roster = Roster.of(relays)
    return [roster.by_id[relay.id] for relay in relays]


@given(st.lists(st.floats(1, 1e18), min_size=1, max_size=80))
def test_nobody_gets_more_than_the_cap(weights: list[float]) -> None:
    share = max_share(len(weights))
    capped = cap_weights(weights, share)
    total = sum(capped)
    assert all(0 < new <= old for new, old in zip(capped, weights, strict=True))
    assert max(capped) <= share * total * (1 + 1e-9)
    order = sorted(range(len(weights)), key=lambda index: weights[index])
    assert [capped[index] for index in order] == sorted(capped)


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=60))
def test_the_cap_takes_no_more_than_it_must(weights: list[float]) -> None:
    """Those that are lowered stand exactly at the cap; all others keep their weight."""
    share = max_share(len(weights))
    capped = cap_weights(weights, share)
    lowered = [new for new, old in zip(capped, weights, strict=True) if new != old]
    for weight in lowered:
        assert weight == pytest.approx(share * sum(capped), rel=1e-6)


def test_shares() -> None:
    assert [max_share(n) for n in (1, 2, 3, 6, 30, 10_000)] == [1.0, 0.75, 0.5, 0.25, MAX_SHARE, MAX_SHARE]
    assert cap_weights([1.0, 1.0, 100.0], 0.5) == [1.0, 1.0, 2.0]
    assert cap_weights([1.0, 2.0, 2.0], 0.5) == [1.0, 2.0, 2.0]


def test_no_weights_at_all() -> None:
    assert cap_weights([], max_share(0)) == []
    assert len(WeightTable([])) == 0


def test_one_liar_among_a_hundred() -> None:
    relays = [fake_relay(n, capacity=10**7) for n in range(99)] + [fake_relay(99, capacity=2**64 - 1)]
    table = WeightTable(rows(relays))
    rng = random.Random(1)
    drawn = Counter(table.draw(rng).relay.nickname for _ in range(20_000))
    assert 0.04 < drawn["fake99"] / 20_000 < 0.06


def test_draws_follow_capacity() -> None:
    relays = [fake_relay(n, capacity=(n % 4 + 1) * 1000) for n in range(40)]
    table = WeightTable(rows(relays))
    rng = random.Random(2)
    drawn = Counter(table.draw(rng).relay.capacity for _ in range(20_000))
    for capacity in (1000, 2000, 3000, 4000):
        assert drawn[capacity] / 20_000 == pytest.approx(capacity / 10_000, abs=0.02)


def test_a_relay_that_says_zero_is_still_possible() -> None:
    table = WeightTable(rows([fake_relay(0, capacity=0), fake_relay(1, capacity=0)]))
    assert {table.draw(random.Random(seed)).relay.nickname for seed in range(30)} == {"fake0", "fake1"}


def test_draw_fitting_finds_the_one_that_fits() -> None:
    relays = [fake_relay(n) for n in range(2000)]
    table = WeightTable(rows(relays))
    assert table.draw_fitting(lambda row: row.relay.nickname == "fake1234", random.Random(3)) is table.rows[1234]
    assert table.draw_fitting(lambda row: False, random.Random(3)) is None
    assert WeightTable([]).draw_fitting(lambda row: True, random.Random(3)) is None


def test_full_scan_keeps_the_weights() -> None:
    """Rejection and full scan choose alike: among three that fit out of a thousand."""
    relays = [fake_relay(n, capacity=1000) for n in range(1000)]
    relays += [fake_relay(1000 + n, capacity=(n + 1) * 1000) for n in range(3)]
    table = WeightTable(rows(relays))
    rng = random.Random(4)
    fitting = set(table.rows[1000:])
    drawn = Counter(table.draw_fitting(lambda row: row in fitting, rng) for _ in range(600))
    assert drawn[table.rows[1000]] / 600 == pytest.approx(1 / 6, abs=0.06)
    assert drawn[table.rows[1002]] / 600 == pytest.approx(1 / 2, abs=0.07)


def test_scarce_exits_are_kept_for_exits() -> None:
    plain = [fake_relay(n) for n in range(90)]
    few = [fake_relay(100 + n, exit_policy=EXIT) for n in range(10)]
    assert exit_damping(rows(plain)) == 1.0
    assert exit_damping(rows(plain + few)) == EXIT_FLOOR
    assert exit_damping(rows(few)) == pytest.approx(2 / 3)
    weights = WeightTable(rows(plain + few), exit_damping(rows(plain + few))).weights
    assert sum(weights[90:]) / sum(weights) < 0.01
