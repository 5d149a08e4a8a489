"""Which of the addresses that others tell us is ours."""

from __future__ import annotations

import pytest

from backrooms.node.sightings import Sightings

RIGHT, WRONG, OTHER = "203.0.113.5", "198.51.100.1", "192.0.2.1"


def elected(told: list[tuple[str, str]], complete: bool = False) -> str | None:
    """Who is elected when relays of these subnets tell these addresses."""
    sightings = Sightings()
    for number, (subnet, seen) in enumerate(told):
        sightings.note(bytes([number]), subnet, seen)
    return sightings.elect(complete)


@pytest.mark.parametrize(
    ("told", "winner"),
    [
        ([], None),
        ([("a", RIGHT)], None),
        ([("a", RIGHT), ("b", RIGHT)], RIGHT),
        ([("a", RIGHT), ("b", WRONG)], None),
        ([("a", RIGHT), ("b", WRONG), ("c", RIGHT)], RIGHT),
        ([("a", RIGHT), ("b", WRONG), ("c", OTHER)], None),
        # Many relays of one subnet have one vote.
        ([("a", WRONG), ("a", WRONG), ("a", WRONG), ("b", RIGHT), ("c", RIGHT)], RIGHT),
        ([("a", WRONG), ("a", WRONG), ("b", RIGHT)], None),
        # One that disagrees with itself has none.
        ([("a", WRONG), ("a", OTHER), ("b", RIGHT), ("c", RIGHT)], RIGHT),
        # All are of one subnet, as on one machine.
        ([("a", RIGHT), ("a", RIGHT)], RIGHT),
        ([("a", RIGHT), ("a", WRONG), ("a", RIGHT)], RIGHT),
    ],
)
def test_most_are_believed_and_one_is_not(told: list[tuple[str, str]], winner: str | None) -> None:
    assert elected(told) == winner


def test_the_only_one_there_is_will_do() -> None:
    assert elected([("a", RIGHT)], complete=True) == RIGHT
    assert elected([], complete=True) is None
    assert elected([("a", RIGHT), ("b", WRONG)], complete=True) is None
    assert elected([("a", RIGHT), ("a", RIGHT), ("b", RIGHT)], complete=True) == RIGHT


def test_a_relay_has_one_vote_however_often_it_speaks() -> None:
    sightings = Sightings()
    for seen in (WRONG, WRONG, RIGHT):
        sightings.note(b"1", "a", seen)
    sightings.note(b"2", "b", RIGHT)
    assert sightings.elect(complete=False) == RIGHT
