"""Where other relays see this machine: they tell its IP address, and most of them are believed."""

from __future__ import annotations

from collections import Counter

ENOUGH = 2
"""Relays that must tell the same address, as long as there are that many to ask."""


class Sightings:
    """What relays have told of one IP family, in one round of asking."""

    def __init__(self) -> None:
        self._told: dict[bytes, tuple[str, str]] = {}

    def note(self, relay_id: bytes, subnet: str, seen: str) -> None:
        """A relay of that subnet sees us at `seen`. What it said before does not count any more."""
        self._told[relay_id] = (subnet, seen)

    def elect(self, complete: bool) -> str | None:
        """The address that more than half of them tell; None while there is none.

        Relays of one subnet have one vote together, unless all are of one. One vote is no majority, except in a
        `complete` round, when there is nobody else to ask.
        """
        votes = Counter(filter(None, map(_majority, self._by_subnet())))
        total = votes.total()
        if not total:
            return None
        seen, count = votes.most_common(1)[0]
        return seen if 2 * count > total and (count >= ENOUGH or (complete and total == 1)) else None

    def _by_subnet(self) -> list[Counter[str]]:
        """What is told by those that share a vote."""
        by_subnet: dict[str, Counter[str]] = {}
        for subnet, seen in self._told.values():
            by_subnet.setdefault(subnet, Counter())[seen] += 1
        if len(by_subnet) > 1:
            return list(by_subnet.values())
        return [Counter([seen]) for _, seen in self._told.values()]


def _majority(told: Counter[str]) -> str | None:
    """What more than half of these tell."""
    seen, count = told.most_common(1)[0]
    return seen if 2 * count > told.total() else None
