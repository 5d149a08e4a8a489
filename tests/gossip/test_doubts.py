"""What a client makes of rumours: bounds that no rumour moves."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backrooms.errors import CryptoError
from backrooms.gossip.doubts import DOUBT_TIME, EXPIRE, MAX_SHARE, REST_TIME, Doubts
from backrooms.gossip.suspicions import CLIENT_LIFE
from backrooms.wire.heartbeat import Rumours
from bench.sim.watching import WALL
from tests.gossip.watching import Cast

CAST = Cast(64, exits=frozenset(range(0, 64, 4)))
NOW = 1000.0


def doubts(cast: Cast = CAST, weights: dict[int, float] | None = None) -> Doubts:
    given_weights = {one.id: (weights or {}).get(number, 1.0) for number, one in enumerate(cast.relays)}
    return Doubts(cast.directory, cast.neighbours, lambda: given_weights)


def kill(one: Doubts, number: int, now: float = NOW, cast: Cast = CAST, count: int = 3, incarnation: int = 0) -> None:
    wall = WALL + now - NOW
    one.rumours(Rumours(cast.against(number, count, incarnation, wall)), now, wall)


def test_a_relay_is_doubted_while_its_watchers_say_so_and_for_five_minutes_at_most() -> None:
    one = doubts()
    kill(one, 1, count=2)
    assert one.doubted(NOW) == frozenset()
    kill(one, 1)
    assert one.doubted(NOW) == {CAST.id(1)}
    for later in range(30, 300, 30):
        kill(one, 1, NOW + later)  # said again and again
    assert one.doubted(NOW + DOUBT_TIME - 1) == {CAST.id(1)}
    assert one.doubted(NOW + DOUBT_TIME) == frozenset()
    kill(one, 1, NOW + DOUBT_TIME + REST_TIME - 1)
    assert one.doubted(NOW + DOUBT_TIME + REST_TIME) == frozenset(), "not believed again so soon"
    kill(one, 1, NOW + DOUBT_TIME + REST_TIME + 30)
    assert one.doubted(NOW + DOUBT_TIME + REST_TIME + 30) == {CAST.id(1)}


def test_confirmers_must_agree_at_about_the_same_time() -> None:
    one = doubts()
    for number, accuser in enumerate(CAST.watchers(1)):
        now = NOW + number * (CLIENT_LIFE + EXPIRE)
        wall = WALL + now - NOW
        one.rumours(Rumours((CAST.suspicion(accuser, 1, 0, wall),)), now, wall)
        assert one.doubted(now) == frozenset()
        assert len(one.table.suspicions(CAST.id(1))) == 1


def test_it_is_back_as_soon_as_it_refutes() -> None:
    one = doubts()
    kill(one, 1, incarnation=5)
    one.rumours(Rumours((), (CAST.refutation(1, 6),)), NOW, WALL)
    assert one.doubted(NOW) == frozenset()
    kill(one, 1, NOW + 1, incarnation=6)
    assert one.doubted(NOW + 1) == frozenset(), "and the same accusers are not believed at once"


def test_a_forged_one_is_an_error() -> None:
    one = doubts()
    with pytest.raises(CryptoError):
        one.rumours(Rumours((CAST.suspicion(CAST.watchers(1)[0], 1, by=2),)), NOW, WALL)
    with pytest.raises(CryptoError):
        one.rumours(Rumours((), (CAST.refutation(1, 6, by=2),)), NOW, WALL)


def test_beyond_a_tenth_of_the_weight_rumours_are_ignored_and_told() -> None:
    one = doubts()
    told: list[int] = []
    one.on_ignored = told.append
    middles = [number for number in range(64) if number % 4]
    for number in middles[:20]:
        kill(one, number, NOW + number)
    found = one.doubted(NOW + 60)
    assert found == {CAST.id(number) for number in middles[:6]}, "those that were doubted first"
    assert len(one.ignored) == 14
    assert told == [14]
    assert one.doubted(NOW + 61) == found
    assert told == [14], "once"


def test_exits_are_bounded_by_themselves() -> None:
    one = doubts()
    for number in range(0, 64, 4):
        kill(one, number)
    exits = one.doubted(NOW)
    assert len(exits) == 1, "of 16"


def test_in_a_small_network_one_relay_may_be_doubted_and_no_more() -> None:
    small = Cast(6)
    one = doubts(small)
    kill(one, 0, cast=small)
    kill(one, 1, NOW + 1, small)
    assert one.doubted(NOW + 2) == {small.id(0)}


def lists(one: Doubts, sources: list[int], dead: list[int], now: float = NOW, cast: Cast = CAST) -> None:
    for source in sources:
        one.long_dead(cast.id(source), [cast.id(number) for number in dead], now)


def test_three_relays_tell_who_is_long_dead() -> None:
    one = doubts()
    lists(one, [1, 2], [5, 6])
    assert one.doubted(NOW) == frozenset()
    lists(one, [3], [5])
    assert one.doubted(NOW) == {CAST.id(5)}
    lists(one, [3], [], NOW + 10)
    assert one.doubted(NOW + 10) == frozenset(), "one takes it back"
    lists(one, [3], [5], NOW + 20)
    assert one.doubted(NOW + DOUBT_TIME) == frozenset(), "old lists hold no more"


def test_most_sources_must_agree_and_they_must_be_unrelated() -> None:
    one = doubts()
    lists(one, [1, 2, 3], [5])
    lists(one, [7, 8, 9], [])
    assert one.doubted(NOW) == frozenset()
    same = Cast(64, places={1: 99, 2: 99})
    one = doubts(same)
    lists(one, [1, 2, 3], [5], cast=same)
    assert one.doubted(NOW) == {same.id(5)}, "where there are no others"
    lists(one, [4], [], cast=same)
    assert one.doubted(NOW) == frozenset(), "there are others now"


def test_lists_are_within_the_same_bounds() -> None:
    one = doubts()
    lists(one, [1, 2, 3], list(range(10, 60)))
    assert 0 < len(one.doubted(NOW)) <= 6


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_whatever_is_said_a_tenth_is_the_most(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    weights = {number: rng.choice((1.0, 2.0, 5.0)) for number in range(64)}
    one = doubts(weights=weights)
    now, total = NOW, sum(weights.values())
    total_exits = sum(weights[number] for number in range(0, 64, 4))
    for _ in range(steps):
        now += rng.choice((0.0, 5.0, 100.0))
        choice = rng.randrange(0, 3)
        if choice == 0:
            kill(one, rng.randrange(0, 64), now, count=rng.randrange(1, 5), incarnation=rng.randrange(0, 3))
        elif choice == 1:
            refutation = CAST.refutation(rng.randrange(0, 64), rng.randrange(1, 5))
            one.rumours(Rumours((), (refutation,)), now, WALL + now - NOW)
        else:
            lists(one, [rng.randrange(0, 64)], [rng.randrange(0, 64) for _ in range(10)], now)
        found = [CAST.numbers[relay_id] for relay_id in one.doubted(now)]
        if len(found) > 1:
            assert sum(weights[number] for number in found) <= MAX_SHARE * total + 5
            assert sum(weights[number] for number in found if number % 4 == 0) <= MAX_SHARE * total_exits + 5
