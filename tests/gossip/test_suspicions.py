"""The table of signed statements: what counts, what does not, and what a liar cannot do to it."""

from __future__ import annotations

import dataclasses

import pytest

from backrooms.errors import CryptoError
from backrooms.gossip.neighbours import EPOCH
from backrooms.gossip.suspicions import (
    CLIENT_LIFE,
    CLOCK_SKEW,
    INCARNATION_AHEAD,
    PAUSE_FACTOR,
    PAUSE_FIRST,
    PAUSE_MAX,
    RELAY_LIFE,
    REPEAT,
    SuspicionTable,
)
from bench.sim.watching import WALL
from tests.gossip.watching import Cast

CAST = Cast(40)
FIRST = CAST.watchers(0)[0]


def table(life: float = RELAY_LIFE) -> SuspicionTable:
    return SuspicionTable(CAST.directory, CAST.neighbours, life)


def test_three_watchers_are_believed() -> None:
    held = table()
    for count, one in enumerate(CAST.against(0, 8), 1):
        assert held.suspect(one, WALL)
        assert len(held.evidence(CAST.id(0), WALL)) == (3 if count >= 3 else 0), "as few as are enough"
    assert held.accused() == [CAST.id(0)]


def test_a_forged_accuser_is_an_error_and_changes_nothing() -> None:
    held = table()
    with pytest.raises(CryptoError):
        held.suspect(CAST.suspicion(FIRST, 0, by=CAST.stranger(0)), WALL)
    real = CAST.suspicion(FIRST, 0)
    for changed in (
        dataclasses.replace(real, made=real.made + 1),
        dataclasses.replace(real, incarnation=1),
        dataclasses.replace(real, signature=bytes(64)),
    ):
        with pytest.raises(CryptoError):
            held.suspect(changed, WALL)
    assert held.accused() == []


def test_who_is_no_watcher_is_not_even_verified() -> None:
    held = table()
    assert not held.suspect(CAST.suspicion(CAST.stranger(0), 0), WALL)
    assert held.verified == 0


def test_relays_that_are_not_in_the_list_count_for_nothing() -> None:
    held, bigger = table(), Cast(60)
    assert not held.suspect(bigger.suspicion(50, 0), WALL)
    assert not held.suspect(bigger.suspicion(FIRST, 50), WALL)
    assert not held.refute(bigger.refutation(50, 9), WALL)
    assert held.verified == 0


def test_one_watcher_is_one_confirmer_however_often_it_says_so() -> None:
    held = table()
    for step in range(10):
        held.suspect(CAST.suspicion(FIRST, 0, incarnation=step, wall=WALL + 30 * step), WALL + 30 * step)
    assert len(held.suspicions(CAST.id(0))) == 1
    assert held.evidence(CAST.id(0), WALL + 300) == []


@pytest.mark.parametrize("life", [RELAY_LIFE, CLIENT_LIFE])
def test_old_and_future_ones_are_refused(life: float) -> None:
    for late, taken in ((life + CLOCK_SKEW, True), (life + CLOCK_SKEW + 1, False), (-CLOCK_SKEW, True)):
        assert table(life).suspect(CAST.suspicion(FIRST, 0), WALL + late) is taken
    assert not table(life).suspect(CAST.suspicion(FIRST, 0), WALL - CLOCK_SKEW - 1)


def test_a_replay_is_no_news() -> None:
    held = table()
    one = CAST.suspicion(FIRST, 0)
    assert held.suspect(one, WALL)
    assert not held.suspect(one, WALL + 1)
    assert not held.suspect(CAST.suspicion(FIRST, 0, wall=WALL + REPEAT - 1), WALL + REPEAT), (
        "nor is a flood of new ones"
    )
    assert held.verified == 1
    assert held.suspect(CAST.suspicion(FIRST, 0, wall=WALL + REPEAT), WALL + REPEAT)


def test_refutation() -> None:
    held = table()
    for one in CAST.against(0, 3, incarnation=5):
        held.suspect(one, WALL)
    assert not held.refute(CAST.refutation(0, 5), WALL), "of the same incarnation"
    assert held.evidence(CAST.id(0), WALL)
    with pytest.raises(CryptoError):
        held.refute(CAST.refutation(0, 6, by=1), WALL)
    assert held.evidence(CAST.id(0), WALL)
    assert held.refute(CAST.refutation(0, 6), WALL)
    assert held.suspicions(CAST.id(0)) == []
    assert held.incarnation(CAST.id(0)) == 6
    assert not held.refute(CAST.refutation(0, 6), WALL), "no news"
    for one in CAST.against(0, 3, incarnation=5, wall=WALL + 1):
        assert not held.suspect(one, WALL + 4000), "a replay of what was refuted"


def test_a_refutation_that_comes_first_counts_too() -> None:
    held = table()
    assert not held.refute(CAST.refutation(0, 6), WALL)
    assert not held.suspect(CAST.suspicion(FIRST, 0, incarnation=5), WALL)
    assert held.suspect(CAST.suspicion(FIRST, 0, incarnation=6), WALL)


def test_who_was_refuted_is_not_believed_about_that_relay_for_longer_and_longer() -> None:
    held, wall = table(), WALL
    for round_ in range(4):
        incarnation = int(WALL) - 100 + round_
        assert held.suspect(CAST.suspicion(FIRST, 0, incarnation, wall), wall)
        assert held.refute(CAST.refutation(0, incarnation + 1), wall)
        pause = PAUSE_FIRST * PAUSE_FACTOR**round_
        assert not held.suspect(CAST.suspicion(FIRST, 0, incarnation + 1, wall + pause - 1), wall + pause - 1)
        other = CAST.watchers(0)[round_ + 1]
        assert held.suspect(CAST.suspicion(other, 0, incarnation + 1, wall + pause), wall + pause), "another one is"
        held.expire(wall)
        wall += pause + 1
    later = wall + 2 * PAUSE_MAX + 1000
    held.expire(later)
    assert held._pauses == {}


def test_incarnations_cannot_be_driven_so_high_that_nobody_can_refute() -> None:
    held = table()
    highest = int(WALL) + INCARNATION_AHEAD
    assert not held.suspect(CAST.suspicion(FIRST, 0, highest + 1), WALL)
    assert not held.suspect(CAST.suspicion(FIRST, 0, 2**64 - 1), WALL)
    assert held.suspect(CAST.suspicion(FIRST, 0, highest, WALL + CLOCK_SKEW), WALL)
    assert held.refute(CAST.refutation(0, highest + 1), WALL)
    assert not held.refute(CAST.refutation(0, 2**63), WALL), "nor for all time"


def test_watchers_of_yesterday_count_only_around_midnight() -> None:
    midnight = (WALL // EPOCH + 1) * EPOCH
    old = next(one for one in CAST.watchers(0, midnight - 1) if one not in CAST.watchers(0, midnight))
    assert table().suspect(CAST.suspicion(old, 0, wall=midnight + 500), midnight + 500)
    assert not table().suspect(CAST.suspicion(old, 0, wall=midnight + 700), midnight + 700)


def test_what_is_old_is_forgotten() -> None:
    held = table()
    for one in CAST.against(0):
        held.suspect(one, WALL)
    held.expire(WALL + RELAY_LIFE)
    assert held.accused()
    held.expire(WALL + RELAY_LIFE + 1)
    assert held.accused() == []
