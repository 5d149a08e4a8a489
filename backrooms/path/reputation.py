"""Scores of relays: what investigations have found, fading as hours pass.

A score makes a relay be avoided where there are others. It never relaxes a rule, and never makes a relay be preferred.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import exp2
from typing import Any

from backrooms.crypto.keys import parse_id, text_id
from backrooms.path.verdicts import Judgement, Verdict

SCHEMA = 1
HALF_LIFE = 4 * 3600.0
"""Seconds in which the score of a relay that does harm halves."""
SHORT_HALF_LIFE = 900.0
"""The same for one that is only overloaded or not there."""
STRONGEST = 40.0
AVOIDED = 5.0
"""A relay is avoided while its score is at least this: after the last finding at most 12 hours, or 45 minutes."""
DISTRUSTED = 16.0
"""From this score on a relay that does harm is not used as a guard any more."""
MAX_SCORES = 5_000
MAX_TEXT = 500


@dataclass(frozen=True, slots=True)
class Score:
    """`strength` (a logarithm of a likelihood ratio) is that of the time `at`, seconds since 1970."""

    verdict: Verdict
    strength: float
    at: float
    text: str

    def now(self, wall: float) -> float:
        """What is left of its strength."""
        half_life = HALF_LIFE if self.verdict.is_bad else SHORT_HALF_LIFE
        return self.strength * exp2(-max(0.0, wall - self.at) / half_life)


class Reputation:
    """The scores of all relays that have one."""

    def __init__(self) -> None:
        self._scores: dict[bytes, Score] = {}

    def __len__(self) -> int:
        return len(self._scores)

    def __iter__(self) -> Iterator[tuple[bytes, Score]]:
        return iter(list(self._scores.items()))

    def get(self, relay: bytes) -> Score | None:
        return self._scores.get(relay)

    def note(self, judgements: Iterable[Judgement], wall: float, since: float) -> bool:
        """Take what was found by probes since a time; whether anything changed.

        A relay that was found fine has half of its score left. One that did harm before, and is now busy or not
        there, keeps the score for that.
        """
        changed = False
        for one in judgements:
            before = self._scores.get(one.relay)
            left = before.now(wall) if before is not None else 0.0
            if one.verdict is Verdict.UNTESTED:
                continue
            if one.verdict is Verdict.FINE:
                if before is not None:
                    self._scores[one.relay] = Score(before.verdict, left / 2, wall, before.text)
                    changed = True
            elif before is None or one.verdict.is_bad or not before.verdict.is_bad or before.at >= since:
                strength = min(STRONGEST, max(one.strength, AVOIDED * 2))
                if before is not None and before.verdict is one.verdict:
                    strength = max(strength, left)
                self._scores[one.relay] = Score(one.verdict, strength, wall, " ".join(one.evidence)[:MAX_TEXT])
                changed = True
        self._bound(wall)
        return changed

    def _bound(self, wall: float) -> None:
        """Forget what has faded, and the weakest if there are too many."""
        self._scores = {relay: one for relay, one in self._scores.items() if one.now(wall) >= AVOIDED / 4}
        while len(self._scores) > MAX_SCORES:
            del self._scores[min(self._scores, key=lambda relay: self._scores[relay].now(wall))]

    def avoided(self, wall: float) -> frozenset[bytes]:
        """The relays to avoid now, if there are others."""
        return frozenset(relay for relay, one in self._scores.items() if one.now(wall) >= AVOIDED)

    def forget(self, relay: bytes | None = None) -> int:
        """Forget one score, or all; how many there were."""
        if relay is not None:
            return int(self._scores.pop(relay, None) is not None)
        count = len(self._scores)
        self._scores.clear()
        return count

    def to_json(self) -> dict[str, Any]:
        """For the state file."""
        scores = {
            text_id(relay): {"verdict": one.verdict.value, "strength": one.strength, "at": one.at, "text": one.text}
            for relay, one in self._scores.items()
        }
        return {"schema": SCHEMA, "scores": scores}

    @classmethod
    def from_json(cls, table: Any, wall: float) -> Reputation:
        """What `to_json` made. `ValueError` says what is wrong with it."""
        if not isinstance(table, dict) or table.get("schema") != SCHEMA or not isinstance(table.get("scores"), dict):
            raise ValueError(f"it is not a table with schema {SCHEMA} and scores")
        if len(table["scores"]) > MAX_SCORES:
            raise ValueError("too many scores")
        made = cls()
        for relay, entry in table["scores"].items():
            made._scores[parse_id(relay)] = _score(entry, wall)
        made._bound(wall)
        return made


def _score(entry: Any, wall: float) -> Score:
    if not isinstance(entry, dict) or set(entry) != {"verdict", "strength", "at", "text"}:
        raise ValueError("a score does not have the fields verdict, strength, at, text")
    strength, at, text = entry["strength"], entry["at"], entry["text"]
    for number in (strength, at):
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise ValueError("a number of a score is none")
    if not 0 <= strength <= STRONGEST or not isinstance(text, str) or len(text) > MAX_TEXT:
        raise ValueError("a score is out of bounds")
    if not 0 <= at < 1e12:
        raise ValueError("the time of a score is out of bounds")
    return Score(Verdict(entry["verdict"]), float(strength), min(float(at), wall), text)
