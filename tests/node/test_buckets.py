"""Token buckets, recent counts and CPU budgets, against plain reckoning."""

from __future__ import annotations

import itertools
from collections import defaultdict
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.node.buckets import Buckets, Budget, Recent

START = 1_000_000.0
"""A monotonic time as a machine has it that has been up for long: floats are coarse there."""
STEP = Fraction(1, 64)

arrivals = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 200)), max_size=150)
"""Who comes, and how many 64ths of a second after the one before."""


def moments(gaps: list[tuple[str, int]]) -> list[tuple[str, Fraction]]:
    times = itertools.accumulate((gap for _, gap in gaps), initial=0)
    return [(key, Fraction(time) * STEP) for (key, _), time in zip(gaps, list(times)[1:], strict=True)]


@given(arrivals, st.sampled_from([0.5, 3.0, 5.0, 20.0]), st.integers(1, 30))
def test_a_bucket_grants_what_it_should(gaps: list[tuple[str, int]], rate: float, burst: int) -> None:
    buckets = Buckets(rate, burst, 10)
    tokens: dict[str, Fraction] = defaultdict(lambda: Fraction(burst))
    seen: dict[str, Fraction] = defaultdict(Fraction)
    for key, time in moments(gaps):
        tokens[key] = min(Fraction(burst), tokens[key] + (time - seen[key]) * Fraction(rate))
        seen[key] = time
        granted = buckets.has(key, START + float(time))
        if abs(tokens[key] - 1) > 0.01:
            assert granted == (tokens[key] >= 1)
        if granted:
            buckets.take(key, START + float(time))
            tokens[key] -= 1


@given(arrivals, st.sampled_from([0.5, 3.0, 20.0]), st.integers(1, 30), st.integers(1, 3))
def test_no_window_has_more_than_the_burst_and_the_rate(
    gaps: list[tuple[str, int]], rate: float, burst: int, limit: int
) -> None:
    """And with a table that is too small, more only if others came in between."""
    buckets = Buckets(rate, burst, limit)
    granted: dict[str, list[float]] = defaultdict(list)
    strangers = 0
    for key, time in moments(gaps):
        now = START + float(time)
        if buckets.has(key, now):
            buckets.take(key, now)
            granted[key].append(now)
            strangers += key != "a"
        assert len(buckets) <= limit
    times = granted["a"]
    forgotten = strangers // limit
    for i, j in itertools.combinations(range(len(times)), 2):
        assert j - i + 1 <= burst * (1 + forgotten) + rate * (times[j] - times[i]) + 0.01


def test_who_keeps_to_the_rate_is_never_refused() -> None:
    buckets = Buckets(5.0, 1, 10)
    for number in range(1_000):
        assert buckets.has("a", START + number / 5)
        buckets.take("a", START + number / 5)


def test_full_buckets_are_forgotten_first() -> None:
    buckets = Buckets(1.0, 10, 4)
    for _ in range(10):
        buckets.take("greedy", START)
    for number in range(100):
        buckets.take(f"passer-by {number}", START + 1.5 * number / 100)
        buckets.take(f"passer-by {number}", START + 1.5 * number / 100)
        assert len(buckets) <= 4
        if number == 2:
            assert not buckets.has("greedy", START)
    buckets = Buckets(1.0, 10, 4)
    for _ in range(10):
        buckets.take("greedy", START)
    for number in range(8):  # each is full again before the next one comes
        buckets.take(f"passer-by {number}", START + 1.1 * number)
    assert len(buckets) <= 4
    assert not buckets.has("greedy", START + 0.9)


def test_nothing_is_kept_of_those_who_are_gone() -> None:
    buckets = Buckets(5.0, 30, 1_000)
    for number in range(500):
        buckets.take(str(number), START)
    assert len(buckets) == 500
    for number in range(200):
        buckets.take(f"later {number}", START + 60 + number)
    assert len(buckets) < 10


@given(arrivals)
def test_recent_counts_are_compared_rightly(gaps: list[tuple[str, int]]) -> None:
    recent = Recent(10.0, 100)
    counts: dict[str, float] = defaultdict(float)
    levels: dict[str, float] = {}
    before = Fraction()
    for key, time in moments(gaps):
        for other in counts:
            counts[other] *= 0.5 ** (float(time - before) / 10.0)
        before = time
        counts[key] += 1
        levels[key] = recent.note(key, START + float(time))
    for one, other in itertools.permutations(levels, 2):
        if counts[one] > 1.001 * counts[other]:
            assert levels[one] > levels[other]
        if counts[one] > 2.01 * counts[other]:
            assert levels[one] - 1 > levels[other]


def test_recent_is_bounded() -> None:
    recent = Recent(60.0, 50)
    for number in range(1_000):
        recent.note(str(number), START)
    assert len(recent) == 50


# CPU time


def work(
    budget: Budget, seconds: float, costs: dict[Any, float], busy_from: dict[Any, float] | None = None
) -> dict[Any, float]:
    """What each share gets in so many seconds, if it always has work of its cost and waits as it is told."""
    got = dict.fromkeys(costs, 0.0)
    due = {share: START + (busy_from or {}).get(share, 0.0) for share in costs}
    while True:
        share = min(due, key=lambda one: due[one])
        now = due[share]
        if now >= START + seconds:
            return got
        wait = share.wait(now)
        if wait:
            due[share] = now + wait
        else:
            share.charge(costs[share], now)
            got[share] += costs[share]
            due[share] = now + 1e-4


@pytest.mark.parametrize("cost", [0.0003, 0.002, 0.05])
def test_together_the_shares_get_the_rate_and_the_burst(cost: float) -> None:
    budget = Budget(0.25, 0.5, START)
    got = work(budget, 20, {budget.first: cost, budget.second: cost})
    assert sum(got.values()) == pytest.approx(0.5 + 0.25 * 20, abs=2 * cost + 0.01)
    assert got[budget.first] == pytest.approx(got[budget.second], abs=2 * cost + 0.01)


def test_one_share_may_use_what_the_other_leaves() -> None:
    budget = Budget(0.25, 0.5, START)
    got = work(budget, 20, {budget.first: 0.002})
    assert got[budget.first] == pytest.approx(0.25 + 0.25 * 20, abs=0.01)


def test_nobody_can_take_the_others_half() -> None:
    """One has been busy for long when the other begins, with much dearer work."""
    budget = Budget(0.25, 0.5, START)
    got = work(budget, 20, {budget.first: 0.02, budget.second: 0.0003}, {budget.second: 10.0})
    assert got[budget.second] == pytest.approx(0.25 + 0.125 * 10, abs=0.02)
    assert got[budget.first] == pytest.approx(0.25 + 0.25 * 10 + 0.125 * 10, abs=0.05)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3), st.floats(0, 0.1)), max_size=60))
def test_a_wait_is_as_long_as_it_must_be(steps: list[tuple[bool, float, float]]) -> None:
    budget = Budget(0.25, 0.5, START)
    now = START
    for first, gap, cost in steps:
        now += gap
        share = budget.first if first else budget.second
        share.charge(cost, now)
        assert share.left <= 0.25
        wait = share.wait(now)
        if wait:
            assert wait <= (1e-6 - share.left) / 0.125 + 1e-6
            assert wait < 1e-5 or share.wait(now + 0.9 * wait) > 0
            now += wait + 1e-6
            assert share.wait(now) == 0


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    budget = Budget(0.25, 0.5, START)
    budget.first.charge(1.0, START)
    assert budget.first.wait(START - 100) == budget.first.wait(START) > 0
