"""What is remembered of relays, and how it fades."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backrooms.crypto.keys import text_id
from backrooms.path.reputation import AVOIDED, HALF_LIFE, MAX_TEXT, SHORT_HALF_LIFE, STRONGEST, Reputation
from backrooms.path.verdicts import Judgement, Verdict

A, B = bytes([1]) * 32, bytes([2]) * 32
NOW = 1_800_000_000.0


def judgement(relay: bytes = A, verdict: Verdict = Verdict.DESTROYS, strength: float = 30.0) -> Judgement:
    return Judgement(relay, verdict, strength, {}, ["it did so"])


def noted(*judgements: Judgement, at: float = NOW) -> Reputation:
    reputation = Reputation()
    reputation.note(judgements or [judgement()], at, at)
    return reputation


def test_a_relay_that_does_harm_is_avoided_for_hours() -> None:
    reputation = noted()
    assert reputation.avoided(NOW) == {A}
    assert reputation.avoided(NOW + HALF_LIFE) == {A}
    assert reputation.avoided(NOW + 4 * HALF_LIFE) == frozenset()


def test_nobody_is_avoided_for_longer_than_half_a_day() -> None:
    assert noted(judgement(strength=1e6)).avoided(NOW + 3 * HALF_LIFE + 1) == frozenset()
    assert STRONGEST / 2**3 == AVOIDED


@pytest.mark.parametrize("verdict", [Verdict.OVERLOADED, Verdict.UNREACHABLE])
def test_one_that_is_only_busy_is_avoided_for_less_than_an_hour(verdict: Verdict) -> None:
    reputation = noted(judgement(verdict=verdict))
    assert reputation.avoided(NOW) == {A}
    assert reputation.avoided(NOW + 4 * SHORT_HALF_LIFE) == frozenset()


def test_the_honest_and_the_untested_have_no_score() -> None:
    reputation = Reputation()
    assert not reputation.note([judgement(verdict=Verdict.FINE), judgement(B, Verdict.UNTESTED)], NOW, NOW)
    assert len(reputation) == 0


def test_a_relay_that_is_found_fine_later_has_half_of_its_score_left() -> None:
    reputation = noted()
    reputation.note([judgement(verdict=Verdict.FINE)], NOW + HALF_LIFE, NOW + HALF_LIFE)
    score = reputation.get(A)
    assert score is not None
    assert score.verdict is Verdict.DESTROYS
    assert score.now(NOW + HALF_LIFE) == pytest.approx(30 / 4)


def test_who_goes_away_keeps_the_score_for_what_it_did() -> None:
    reputation = noted()
    later = NOW + 600
    reputation.note([judgement(verdict=Verdict.UNREACHABLE)], later, later - 60)
    score = reputation.get(A)
    assert score is not None
    assert score.verdict is Verdict.DESTROYS


def test_the_same_probes_may_come_to_another_verdict() -> None:
    reputation = noted()
    reputation.note([judgement(verdict=Verdict.OVERLOADED)], NOW + 60, NOW - 60)
    score = reputation.get(A)
    assert score is not None
    assert score.verdict is Verdict.OVERLOADED


def test_forgetting() -> None:
    reputation = noted(judgement(A), judgement(B))
    assert reputation.forget(A) == 1
    assert reputation.forget(A) == 0
    assert reputation.avoided(NOW) == {B}
    assert reputation.forget() == 1


def test_scores_that_have_faded_are_dropped() -> None:
    reputation = noted()
    reputation.note([judgement(B)], NOW + 10 * HALF_LIFE, NOW)
    assert [relay for relay, _ in reputation] == [B]


def test_what_is_saved_comes_back() -> None:
    reputation = noted(judgement(A), judgement(B, Verdict.OVERLOADED))
    again = Reputation.from_json(json.loads(json.dumps(reputation.to_json())), NOW)
    assert list(again) == list(reputation)


def test_a_score_from_the_future_is_one_of_now() -> None:
    again = Reputation.from_json(noted(at=NOW + 1e6).to_json(), NOW)
    score = again.get(A)
    assert score is not None
    assert score.at == NOW


GOOD = {"verdict": "destroys circuits", "strength": 10.0, "at": NOW, "text": ""}


@pytest.mark.parametrize(
    "table",
    [
        None,
        [],
        {},
        {"schema": 2, "scores": {}},
        {"schema": 1, "scores": []},
        {"schema": 1, "scores": {"nobody": GOOD}},
        {"schema": 1, "scores": {text_id(A): None}},
        {"schema": 1, "scores": {text_id(A): {**GOOD, "more": 1}}},
        {"schema": 1, "scores": {text_id(A): {**GOOD, "verdict": "evil"}}},
        {"schema": 1, "scores": {text_id(A): {**GOOD, "strength": -1}}},
        {"schema": 1, "scores": {text_id(A): {**GOOD, "strength": float("nan")}}},
        {"schema": 1, "scores": {text_id(A): {**GOOD, "strength": True}}},
        {"schema": 1, "scores": {text_id(A): {**GOOD, "at": "now"}}},
        {"schema": 1, "scores": {text_id(A): {**GOOD, "at": float("inf")}}},
        {"schema": 1, "scores": {text_id(A): {**GOOD, "text": "x" * (MAX_TEXT + 1)}}},
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_refused(table: Any) -> None:
    with pytest.raises(ValueError):
        Reputation.from_json(table, NOW)
