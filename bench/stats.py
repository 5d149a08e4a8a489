"""Medians with their spread, and ratios paired by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some values, with the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        if not values:
            raise ValueError("the spread of no values")
        return cls(median(values), min(values), max(values))

    def rounded(self, digits: int) -> dict[str, float]:
        """For JSON."""
        return {
            "median": round(self.median, digits),
            "min": round(self.low, digits),
            "max": round(self.high, digits),
        }


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours divided by theirs, round by round: what disturbs a whole round cancels out."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds cannot be paired with {len(theirs)}")
    if min(theirs) <= 0:
        raise ValueError(f"cannot divide by {min(theirs)}")
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
