"""Guards through everything that can happen to them, one state and event at a time, at random, and for months."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.path.guards import (
    CONFIRMED_LIFETIME,
    DAY,
    DISTRUST_TIME,
    LIFETIME,
    PRIMARY,
    SAMPLE_LIMIT,
)
from tests.path.guardworld import World, name

EVENTS = (
    "reached first",
    "failed first",
    "failed any",
    "reached any",
    "unlisted any",
    "listed all",
    "distrust any",
    "minutes",
    "days",
    "months",
    "rule",
    "new relays",
)


@given(st.integers(1, 80), st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 1000)), max_size=60))
def test_whatever_happens(count: int, events: list[tuple[str, int]]) -> None:
    world = World(count)
    fresh = itertools.count(count)
    for event, number in events:
        guards = list(world.sample.guards.values())
        some = guards[number % len(guards)] if guards else None
        candidates = world.candidates()
        if "first" in event and candidates:
            (world.reached if event == "reached first" else world.failed)(candidates[0])
        elif event == "failed any" and some:
            world.failed(some)
        elif event == "reached any" and some:
            world.reached(some)
        elif event == "unlisted any" and some:
            world.listed.pop(some.id, None)
        elif event == "listed all":
            world.listed |= dict.fromkeys(world.sample.guards)
        elif event == "distrust any" and some:
            world.sample.distrust(some.id, "bad", world.now, world.rng)
        elif event == "rule":
            world.extend({one for index, one in enumerate(world.listed) if (index + number) % 3})
        elif event == "new relays":
            world.listed |= {name(next(fresh)): None for _ in range(number % 5)}
        world.now += {"minutes": 60, "days": DAY / 10, "months": DAY}.get(event, 0) * number
        world.update()
        world.extend()
        check(world)


def check(world: World) -> None:
    sample = world.sample
    assert len(sample.guards) <= SAMPLE_LIMIT
    good = [guard for guard in sample.guards.values() if guard.distrusted is None]
    usable = [guard for guard in good if guard.id in world.listed]
    bad = len(sample.guards) - len(good)
    assert len(usable) >= min(PRIMARY, len(world.listed) - bad), "where there are relays there are guards"
    candidates = world.candidates()
    assert bool(candidates) == bool(usable)
    assert {guard.id for guard in candidates} <= {guard.id for guard in usable}
    orders = [guard.order for guard in sample.guards.values() if guard.order]
    assert len(orders) == len(set(orders)), "no two have one place"
    assert all((guard.order == 0) == (guard.confirmed is None) for guard in sample.guards.values())
    if any(guard.up is not False or world.now >= guard.retry_at for guard in usable):
        assert candidates[0].up is not False or world.now >= candidates[0].retry_at
    assert sum((guard.distrusted or 0.0) > world.now - 0.9 * DISTRUST_TIME for guard in sample.guards.values()) <= 3


@pytest.mark.parametrize("up", [None, True, False])
@pytest.mark.parametrize("confirmed", [False, True])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("event", ["reached", "failed", "leaves", "comes", "distrust", "wait", "expires"])
def test_every_state_and_event(up: bool | None, confirmed: bool, listed: bool, trusted: bool, event: str) -> None:
    world = World(40)
    guard = world.first()
    if confirmed:
        world.reached(guard)
    if up is False:
        world.failed(guard)
    guard.up = up
    if not listed:
        del world.listed[guard.id]
        world.update()
    if not trusted:
        world.sample.distrust(guard.id, "bad", world.now, world.rng)
    before = replace(guard)
    if event in ("reached", "failed"):
        (world.reached if event == "reached" else world.failed)(guard)
        assert guard.up is (event == "reached")
    elif event in ("leaves", "comes"):
        (world.listed.pop if event == "leaves" else world.listed.setdefault)(guard.id, None)
        world.update()
        assert (guard.unlisted is None) == (event == "comes")
    elif event == "distrust":
        assert world.sample.distrust(guard.id, "bad", world.now, world.rng) is trusted
    else:
        world.now += 601 if event == "wait" else LIFETIME + CONFIRMED_LIFETIME
        world.update()
        assert (guard.id in world.sample.guards) == (event == "wait")
    assert guard.added == before.added
    assert not (confirmed and guard.confirmed != before.confirmed)
    usable = guard.id in world.sample.guards and guard.distrusted is None and guard.id in world.listed
    ready = guard.up is not False or world.now >= guard.retry_at
    assert (guard in world.candidates()) == (usable and ready)
    world.extend()
    check(world)


# a long time


def test_first_hops_over_200_days_with_churn(capsys: pytest.CaptureFixture[str]) -> None:
    """2 % of 500 relays leave every day and others come; 40 circuits a day; each relay is down 2 % of the time."""
    days, circuits = 200, 40
    with_guards: list[int] = []
    without: list[int] = []
    for seed in range(4):
        world = World(500, seed)
        fresh = itertools.count(500)
        used: set[bytes] = set()
        drawn: set[bytes] = set()
        for _ in range(days):
            for gone in world.rng.sample(sorted(world.listed), 10):
                del world.listed[gone]
                world.listed[name(next(fresh))] = None
            world.update()
            world.extend()
            down = set(world.rng.sample(sorted(world.listed), 10))
            for _ in range(circuits):
                world.now += DAY / circuits
                drawn.add(world.rng.choice(list(world.listed)))
                while (guard := world.first()).id in down:
                    world.failed(guard)
                world.reached(guard)
                used.add(guard.id)
        with_guards.append(len(used))
        without.append(len(drawn))
    with capsys.disabled():
        print(f"\nfirst hops in {days} days: {with_guards} with guards, {without} without")
    assert max(with_guards) < 40 < 1500 < min(without)
