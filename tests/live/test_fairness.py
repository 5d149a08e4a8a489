"""Many backlogged streams through one client, three relays and one circuit."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fairness import Outcome, jain, run


def check(outcome: Outcome, memory_growth: float) -> None:
    """Nothing lost, nobody starved, equal shares; megabytes that any node may have grown by."""
    assert (outcome.lost, outcome.starved) == (0, 0), outcome
    assert outcome.jain >= 0.9, outcome
    grown = {name: most - outcome.memory_before[name] for name, most in outcome.memory_most.items()}
    assert max(grown.values()) < memory_growth, outcome


def test_jain() -> None:
    assert jain([5, 5, 5]) == pytest.approx(1)
    assert jain([9, 0, 0]) == pytest.approx(1 / 3)
    assert jain([0, 0]) == 0


@pytest.mark.live
def test_b4_a_hundred_backlogged_streams_get_equal_shares(tmp_path: Path) -> None:
    check(run(100, 4.0, tmp_path), 60)


@pytest.mark.soak
def test_b4_a_thousand_backlogged_streams_get_equal_shares(tmp_path: Path) -> None:
    check(run(1000, 30.0, tmp_path), 120)
