"""Guards without a network: what is sampled, in which order they are used, and when they are given up."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from backrooms.path.guards import (
    CONFIRMED_LIFETIME,
    DAY,
    DISTRUST_TIME,
    DISTRUSTS,
    LAYER2,
    LAYER2_MOST,
    LIFETIME,
    PRIMARY,
    RETRIES,
    SAMPLE_LIMIT,
    SECOND_CHANCE,
    UNLISTED_LIFETIME,
    first_hops,
    largest_sample,
    retry_pause,
    smallest_sample,
)
from tests.path.guardworld import START, World, name


@pytest.mark.parametrize(
    ("count", "least", "most"),
    [(0, 0, 0), (1, 1, 1), (6, 6, 6), (20, 20, 20), (60, 20, 20), (150, 20, 30), (300, 20, 60), (10_000, 20, 60)],
)
def test_the_size_of_a_sample(count: int, least: int, most: int) -> None:
    assert (smallest_sample(count), largest_sample(count)) == (least, most)
    assert len(World(count).sample.guards) == least


def test_the_first_guard_is_used_as_long_as_it_can_be() -> None:
    world = World()
    first = world.first()
    for _ in range(50):
        world.reached(world.first())
        world.now += 3600
        world.update()
        world.extend()
        assert world.first() is first


def test_guards_are_tried_in_order_and_the_first_one_again_when_it_is_time() -> None:
    world = World()
    one, two, three, *_ = world.candidates()
    world.reached(one)
    world.failed(one)
    assert world.first() is two
    world.reached(two)
    world.now += 599
    assert world.first() is two
    world.now += 2
    assert world.first() is one
    world.failed(one)
    assert world.first() is two
    world.now += 601
    world.reached(one)
    assert world.candidates()[:3] == [one, two, three]
    assert (one.order, two.order, three.order) == (1, 2, 0)


def test_a_guard_used_later_stays_behind_those_confirmed_before() -> None:
    """Dates in the file are moved at random; that must not move guards."""
    for seed in range(30):
        world = World(seed=seed)
        one, two, three, four, *_ = world.candidates()
        world.reached(one)
        for guard in (one, two, three):
            world.failed(guard)
        world.reached(four)
        world.now += 601
        assert world.candidates()[:4] == [one, four, two, three]


def test_the_schedule_of_retries() -> None:
    world = World()
    guard = world.first()
    world.reached(guard)
    began = world.now
    tries: list[float] = []
    while world.now - began < 20 * DAY:
        world.failed(guard)
        tries.append(world.now - began)
        world.now = guard.retry_at
    pauses = Counter(int(b - a) for a, b in itertools.pairwise(tries))
    assert set(pauses) == {600, 5400, 4 * 3600, 9 * 3600}
    assert pauses[600] == 36
    assert retry_pause(0) == 600
    assert [retry_pause(limit) for limit, _ in RETRIES[:-1]] == [5400, 4 * 3600, 9 * 3600]


def test_offline_no_guard_is_added_and_the_first_one_is_used_after() -> None:
    world = World()
    first = world.first()
    world.reached(first)
    world.now += 3600
    before = dict(world.sample.guards)
    world.sample.changed = False
    for _ in range(500):  # the network is away; everything that is tried fails
        assert world.first() is first
        for guard in world.candidates():
            world.failed(guard)
        assert world.candidates()[0] is first, "when all are down, the primary guards are what is tried"
        assert len(world.candidates()) == PRIMARY
        world.extend()
        world.now += 30
    assert world.sample.guards == before
    assert not world.sample.changed, "nothing to write, either"
    world.reached(first)
    assert world.first() is first


def test_when_the_network_was_away_for_a_moment_the_first_guard_gets_another_try() -> None:
    world = World()
    guards = world.candidates()
    world.reached(guards[0])
    for guard in guards[:5]:
        world.failed(guard)
    world.reached(guards[5])  # the network is back before all were tried
    assert world.first() is guards[0]
    for guard in guards[:5]:
        world.failed(guard)  # it was they, after all
    world.reached(guards[5])
    assert world.first() is guards[5], "no guard gets such a try again and again"
    world.now += SECOND_CHANCE + 1
    assert world.first() is guards[0]


def test_one_guard_that_fails_is_down_not_the_network() -> None:
    world = World()
    one, two, *_ = world.candidates()
    world.reached(one)
    world.failed(one)
    world.reached(two)
    assert world.first() is two


def test_what_is_unknown_does_not_matter() -> None:
    world = World()
    before = dict(world.sample.guards)
    world.sample.reached(name(5000), world.now, world.rng)
    world.sample.failed(name(5000), world.now)
    assert not world.sample.distrust(name(5000), "bad", world.now, world.rng)
    assert world.sample.guards == before


def test_circuits_that_others_lay_out_confirm_no_guard() -> None:
    world = World()
    one, two, *_ = world.candidates()
    world.sample.reached(two.id, world.now, world.rng, confirm=False)
    world.reached(one)
    assert (one.order, two.order, two.up) == (1, 0, True)


# rules


def test_rules_filter_the_sample_and_add_to_it_only_what_fits() -> None:
    world = World(1000)
    before = list(world.sample.guards)
    allowed = {name(number) for number in range(0, 1000, 2)}
    world.extend(allowed)
    added = [one for one in world.sample.guards if one not in before]
    assert added
    assert set(added) <= allowed
    assert sum(one in allowed for one in world.sample.guards) == 20
    assert all(guard.id in allowed for guard in world.candidates(allowed))
    assert world.candidates()[0].id == before[0], "the other routes keep theirs"


def test_rules_that_leave_none_of_a_full_sample_add_a_few_that_fit() -> None:
    world = World(1000)
    for start in range(0, 80, 20):
        world.extend({name(number) for number in range(900 + start, 920 + start)})
    assert 60 <= len(world.sample.guards) <= 60 + 2 * PRIMARY
    only = {name(number) for number in range(1000) if name(number) not in world.sample.guards}
    world.extend(only)
    assert len(world.candidates(only)) == PRIMARY
    for _ in range(200):  # rules that are changed all the time do not make the sample grow forever
        world.extend({one for one in world.listed if one not in world.sample.guards})
    assert len(world.sample.guards) == SAMPLE_LIMIT


def test_rules_that_allow_nobody_have_no_guard() -> None:
    world = World()
    before = dict(world.sample.guards)
    world.extend(set())
    assert world.candidates(set()) == []
    assert world.sample.guards == before


# leaving


def test_a_guard_that_leaves_the_list_is_kept_for_a_time() -> None:
    world = World()
    first = world.first()
    world.reached(first)
    del world.listed[first.id]
    world.update()
    assert first.unlisted is not None
    assert world.now - UNLISTED_LIFETIME / 10 - 1 <= first.unlisted <= world.now
    assert world.first() is not first
    world.now += UNLISTED_LIFETIME * 0.85
    world.listed[first.id] = None
    world.update()
    assert first.unlisted is None
    assert world.first() is first, "it came back"
    del world.listed[first.id]
    world.update()
    world.now += UNLISTED_LIFETIME + 1
    world.update()
    assert first.id not in world.sample.guards


def test_lifetimes() -> None:
    world = World()
    used, spare = world.candidates()[:2]
    world.now += LIFETIME * 0.85
    world.reached(used)
    world.update()
    assert spare.id in world.sample.guards
    world.now += LIFETIME * 0.15 + 1
    world.update()
    assert spare.id not in world.sample.guards, "never used: its time is over"
    assert used.id in world.sample.guards
    world.now += CONFIRMED_LIFETIME
    world.update()
    assert used.id not in world.sample.guards


def test_dates_do_not_tell_when_it_was() -> None:
    added = [World(seed=seed).first().added for seed in range(200)]
    assert min(added) < START - LIFETIME / 10 * 0.9
    assert max(added) > START - LIFETIME / 10 * 0.1
    assert all(START - LIFETIME / 10 - 1 <= date <= START for date in added)
    confirmed = []
    for seed in range(200):
        world = World(seed=seed)
        world.reached(world.first())
        confirmed.append(world.first().confirmed or 0.0)
    assert min(confirmed) < START - CONFIRMED_LIFETIME / 10 * 0.9
    assert len(set(confirmed)) > 150


def test_a_clock_that_was_set_back_keeps_the_guards() -> None:
    world = World()
    first = world.first()
    world.reached(first)
    world.failed(first)
    world.now -= 300 * DAY
    world.update()
    assert first.id in world.sample.guards
    world.failed(first)
    assert first.retry_at == world.now + 600
    world.now += LIFETIME + CONFIRMED_LIFETIME + DAY
    world.update()
    assert first.id not in world.sample.guards


# bad guards


def test_a_distrusted_guard_is_used_no_more_and_not_sampled_again() -> None:
    world = World(20)
    first = world.first()
    assert world.sample.distrust(first.id, "ends circuits", world.now, world.rng)
    assert not world.sample.distrust(first.id, "again", world.now, world.rng)
    world.reached(first)
    world.extend()
    assert first not in world.candidates()
    assert first.reason == "ends circuits"


def test_no_more_than_a_few_guards_are_distrusted_in_a_month() -> None:
    world = World()
    guards = world.candidates()
    done = [world.sample.distrust(guard.id, "bad", world.now, world.rng) for guard in guards]
    assert sum(done) == DISTRUSTS
    world.now += DISTRUST_TIME
    assert world.sample.distrust(guards[-1].id, "bad", world.now, world.rng)


def test_spares_through_a_worse_entry_are_replaced_when_a_better_one_is_there() -> None:
    world = World()
    one, two, three, *_ = world.candidates()
    fits = world.listed.keys()

    def outdone(relay_id: bytes, age: float = 10) -> bool:
        return world.sample.is_outdone(relay_id, fits, world.now - age)

    world.reached(one)
    world.failed(one)
    world.reached(two)
    assert not outdone(two.id)
    world.now += 601
    world.reached(one)
    assert outdone(two.id)
    assert not outdone(two.id, 0), "what was built while the first one was there has its reasons"
    assert not outdone(one.id)
    world.failed(one)
    assert not outdone(two.id)
    assert outdone(name(5000)), "no guard at all"
    world.sample.distrust(three.id, "bad", world.now, world.rng)
    assert outdone(three.id)


# groups and second hops


def test_entries_are_tried_one_by_one_then_all_others() -> None:
    guards = World().candidates()
    groups = first_hops(guards)
    assert [set(group) for group in groups[:3]] == [{guard.id} for guard in guards[:3]]
    assert groups[3] == {guard.id for guard in guards[3:]}
    assert first_hops(guards[:2]) == [{guards[0].id}, {guards[1].id}]
    assert first_hops([]) == []


def test_second_hops_change_within_days() -> None:
    world = World()
    fits = world.listed.keys()
    seen: set[bytes] = set()
    lives: list[float] = []
    for _ in range(200):
        found = world.sample.second_hops(fits, lambda unwanted: world.draw(fits, unwanted), world.now, world.rng)
        assert len(found) == LAYER2
        lives += [world.sample.seconds[one].until - world.now for one in found if one not in seen]
        seen |= set(found)
        world.now += DAY
    assert min(lives) >= DAY
    assert max(lives) <= 12 * DAY
    # the higher of two uniform draws from 1 to 12 has the mean 1 + 11 * 2 / 3
    assert 7.4 < sum(lives) / len(lives) / DAY < 9.3
    gone = next(iter(world.sample.seconds))
    del world.listed[gone]
    world.update()
    assert gone not in world.sample.seconds


def test_second_hops_are_kept_where_a_clock_was_set_back() -> None:
    world = World()
    fits = world.listed.keys()
    world.sample.second_hops(fits, lambda unwanted: world.draw(fits, unwanted), world.now, world.rng)
    world.now -= 300 * DAY
    world.update()
    assert not world.sample.seconds, "or they would stay for 300 days more"


def test_there_are_never_very_many_second_hops() -> None:
    world = World()
    added = [world.sample.add_second(name(number), world.now, world.rng) for number in range(20)]
    assert sum(added) == LAYER2_MOST == len(world.sample.seconds)
