"""With whom a relay gossips: a few relays drawn at random from its own list, one of them exchanged now and then.

They are drawn from the whole list and never from those who made a link to us, so that nobody can surround a relay
by making links to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from backrooms.interfaces import Rng
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory

PARTNERS = 8
"""Relays that one gossips with at a time, so that few links are made."""
EXPLORE = 60.0
"""Seconds after which another relay takes the place of the oldest partner."""
REST = 10.0
"""Seconds for which a relay that did not answer is left alone."""
SILENCES = 2
"""Summaries that a partner may leave unanswered, one after the other."""
_DRAWS = 8

T = TypeVar("T")


def sample(items: list[T], count: int, rng: Rng) -> list[T]:
    """`count` of the items at random, or all if there are no more."""
    rest = list(items)
    return [rest.pop(rng.randrange(0, len(rest))) for _ in range(min(count, len(rest)))]


class Partners:
    """Draws partners from a directory, whose changes it follows. `may_use` says who may be drawn."""

    def __init__(
        self, directory: Directory, my_id: bytes, rng: Rng, may_use: Callable[[bytes], bool] = lambda relay_id: True
    ) -> None:
        self._my_id = my_id
        self._rng = rng
        self._may_use = may_use
        self._members: list[bytes] = []
        self._place: dict[bytes, int] = {}
        self._partners: list[bytes] = []
        self._silent: dict[bytes, int] = {}
        self._resting: dict[bytes, float] = {}
        self._explore_at = 0.0
        for relay in directory.relays():
            self._changed(relay.id, relay)
        directory.on_change.append(self._changed)

    def __len__(self) -> int:
        """How many relays there are beside this one."""
        return len(self._members)

    def _changed(self, relay_id: bytes, relay: Descriptor | None) -> None:
        if relay is None or relay.revoked:
            place = self._place.pop(relay_id, None)
            if place is not None:
                last = self._members.pop()
                if last != relay_id:
                    self._members[place] = last
                    self._place[last] = place
            self._forget(relay_id)
        elif relay_id not in self._place and relay_id != self._my_id:
            self._place[relay_id] = len(self._members)
            self._members.append(relay_id)

    def _forget(self, relay_id: bytes) -> None:
        self._silent.pop(relay_id, None)
        if relay_id in self._partners:
            self._partners.remove(relay_id)

    def choose(self, count: int, now: float) -> list[bytes]:
        """Whom to talk to now: those first who left the last summary unanswered."""
        self._resting = {one: until for one, until in self._resting.items() if until > now}
        if now >= self._explore_at:
            self._explore_at = now + EXPLORE * self._rng.uniform(0.75, 1.25)
            if self._draw(now) and len(self._partners) > PARTNERS:
                self._forget(self._partners[0])
        while len(self._partners) < min(PARTNERS, len(self._members)) and self._draw(now):
            pass
        again = [one for one in self._partners if one in self._silent][:count]
        others = [one for one in self._partners if one not in self._silent]
        return again + sample(others, count - len(again), self._rng)

    def any(self, count: int) -> list[bytes]:
        """Relays drawn at random from the whole list."""
        drawn = (self._members[self._rng.randrange(0, len(self._members))] for _ in range(count * 2) if self._members)
        return list(dict.fromkeys(drawn))[:count]

    def _draw(self, now: float) -> bool:
        """One more partner, if a few draws find one that may be."""
        for _ in range(_DRAWS if self._members else 0):
            drawn = self._members[self._rng.randrange(0, len(self._members))]
            if drawn not in self._partners and drawn not in self._resting and self._may_use(drawn):
                self._partners.append(drawn)
                return True
        return False

    def heard(self, relay_id: bytes) -> None:
        """It answered, or came by itself."""
        self._silent.pop(relay_id, None)
        self._resting.pop(relay_id, None)

    def unanswered(self, relay_id: bytes, now: float) -> bool:
        """It left a summary unanswered; whether that was once too often, so that it is no partner any more."""
        self._silent[relay_id] = self._silent.get(relay_id, 0) + 1
        if self._silent[relay_id] < SILENCES and relay_id in self._partners:
            return False
        self.lost(relay_id, now)
        return True

    def lost(self, relay_id: bytes, now: float) -> None:
        """It cannot be reached."""
        self._forget(relay_id)
        self._resting[relay_id] = now + REST
