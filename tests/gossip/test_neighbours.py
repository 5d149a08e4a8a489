"""Who watches whom."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest

from backrooms.gossip.neighbours import EPOCH, EPOCH_TOLERANCE, WATCHERS, Neighbours, groups, unrelated
from bench.sim.watching import WALL, relay
from tests.gossip.watching import Cast

MIDNIGHT = (WALL // EPOCH + 1) * EPOCH


def test_everybody_has_eight_and_they_are_others() -> None:
    cast = Cast(40)
    for number in range(40):
        watchers = cast.watchers(number)
        assert len(set(watchers)) == WATCHERS
        assert number not in watchers


@pytest.mark.parametrize("count", range(10))
def test_small_networks_have_as_many_as_there_are(count: int) -> None:
    cast = Cast(count)
    for number in range(count):
        assert len(cast.watchers(number)) == min(WATCHERS, count - 1)


def test_no_relay_watches_very_many() -> None:
    cast = Cast(300)
    load = Counter(one for number in range(300) for one in cast.watchers(number))
    assert max(load.values()) < 8 * WATCHERS


def test_all_who_have_the_same_list_agree_whatever_its_history() -> None:
    cast, other = Cast(40), Cast(30)
    other.watchers(3)
    for one in cast.relays[30:]:
        other.directory.insert(one, WALL)
    assert [cast.watchers(number) for number in range(30)] == [
        [cast.numbers[one] for one in other.neighbours.watchers(cast.id(number), WALL)] for number in range(30)
    ]


def test_a_relay_more_changes_little() -> None:
    cast = Cast(200)
    before = {number: set(cast.watchers(number)) for number in range(200)}
    cast.directory.insert(relay(999, 999, 0, False), WALL)
    cast.numbers[relay(999, 999, 0, False).id] = 999
    changed = sum(len(before[number] - set(cast.watchers(number))) for number in range(200))
    assert 0 < changed + 1 < 60, "of 1,600"


def test_they_are_drawn_anew_every_day_and_both_count_around_midnight() -> None:
    cast = Cast(100)
    early = set(cast.neighbours.watchers(cast.id(0), MIDNIGHT - 1))
    late = set(cast.neighbours.watchers(cast.id(0), MIDNIGHT))
    assert len(early & late) < WATCHERS
    for wall in (MIDNIGHT - EPOCH_TOLERANCE, MIDNIGHT + EPOCH_TOLERANCE - 1):
        assert set(cast.neighbours.all_watchers(cast.id(0), wall)) == early | late
    assert set(cast.neighbours.all_watchers(cast.id(0), MIDNIGHT - EPOCH_TOLERANCE - 1)) == early
    assert set(cast.neighbours.all_watchers(cast.id(0), MIDNIGHT + EPOCH_TOLERANCE)) == late


def test_unrelated() -> None:
    a, b = relay(1, 1, 0, False), relay(2, 2, 0, False)
    assert unrelated(a, b)
    assert not unrelated(a, a)
    assert not unrelated(a, relay(2, 1, 0, False)), "one /16"
    assert not unrelated(relay(1, 1, 5, False), relay(2, 2, 5, False)), "one family"
    assert groups([a, b, relay(3, 2, 0, False), relay(4, 4, 0, False)]) == 3
    assert groups([a, relay(3, 1, 0, False)]) == 1
    assert groups([]) == 0


def test_three_unrelated_watchers_are_enough_and_no_fewer() -> None:
    cast = Cast(40)
    ids = cast.neighbours.watchers(cast.id(0), WALL)
    assert not cast.neighbours.enough(cast.id(0), [], WALL)
    assert not any(cast.neighbours.enough(cast.id(0), two, WALL) for two in combinations(ids, 2))
    assert all(cast.neighbours.enough(cast.id(0), three, WALL) for three in combinations(ids, 3))


def test_watchers_of_one_place_count_once_where_there_are_others() -> None:
    plain = Cast(40)
    same = plain.watchers(0)[:4]
    for options in ({"places": dict.fromkeys(same, 77)}, {"families": dict.fromkeys(same, 7)}):
        cast = Cast(40, **options)  # type: ignore[arg-type]
        ids = [cast.id(one) for one in same]
        others = [cast.id(one) for one in cast.watchers(0) if one not in same]
        assert not cast.neighbours.enough(cast.id(0), ids, WALL)
        assert not cast.neighbours.enough(cast.id(0), [*ids, others[0]], WALL)
        assert cast.neighbours.enough(cast.id(0), [ids[0], *others[:2]], WALL)


def test_where_all_are_of_one_place_three_of_them_are_enough() -> None:
    cast = Cast(12, one_place=True)
    ids = cast.neighbours.watchers(cast.id(0), WALL)
    assert not cast.neighbours.enough(cast.id(0), ids[:2], WALL)
    assert cast.neighbours.enough(cast.id(0), ids[:3], WALL)


def test_in_the_smallest_networks_all_others_must_agree_and_one_never_is_enough() -> None:
    three = Cast(3)
    ids = three.neighbours.watchers(three.id(0), WALL)
    assert not three.neighbours.enough(three.id(0), ids[:1], WALL)
    assert three.neighbours.enough(three.id(0), ids, WALL)
    two = Cast(2)
    assert not two.neighbours.enough(two.id(0), two.neighbours.watchers(two.id(0), WALL), WALL)


def test_a_list_of_thousands_costs_little() -> None:
    cast = Cast(0)
    neighbours = Neighbours(cast.directory)
    for number in range(500):
        cast.directory.insert(relay(number, number, 0, False), WALL)
    assert len({neighbours.watchers(relay(one, one, 0, False).id, WALL) for one in range(500)}) == 500
