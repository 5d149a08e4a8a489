"""Paths of probes: like those of ordinary circuits, but every relay has its turn.

Ordinary paths are drawn by capacity, so that most relays would hardly ever be tried. Here the ones that were tried
least come first, in random company and order, so that who misbehaves is on many paths with ever other neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Sequence

from backrooms.interfaces import Rng
from backrooms.netdir.descriptor import Descriptor
from backrooms.path.constraints import Constraints
from backrooms.path.roster import Candidate, conflict

FOCUS = 0.7
"""Share of probes through a relay in question, where only some are; the others show what is usual."""
LOOSE = 3.0
"""Turns by which the order of relays is blurred."""
_TRIES = 8


def probe_hops(level_hops: int, relays: int) -> int:
    """How long probes are: as ordinary circuits, but so short that half of the relays are not on one."""
    return max(1, min(level_hops, max(2, relays // 2), relays))


class ProbePaths:
    """Gives paths over `relays`, all of which may stand in the middle of one."""

    def __init__(
        self,
        relays: Sequence[Candidate],
        constraints: Constraints,
        hops: int,
        entries: Container[bytes],
        focus: Collection[bytes] = (),
    ) -> None:
        """`entries` are the ids of those that may be the first; `focus` of those in question, all if empty."""
        self.turns: Counter[bytes] = Counter()
        """Paths that each relay was on."""
        self._relays = relays
        self._constraints = constraints
        self._hops = hops
        self._entries = entries
        self._focus = frozenset(focus)

    def next(self, rng: Rng) -> list[Descriptor] | None:
        """A path, or None when none of a few attempts has come to one."""
        for _ in range(_TRIES):
            path = self._attempt(rng)
            if path is not None:
                self.turns.update(row.id for row in path)
                return [row.relay for row in path]
        return None

    def ending(self, last: bytes, hops: int, rng: Rng) -> list[Descriptor] | None:
        """A path of `hops` relays whose last one is given, or None where there is none."""
        end = next((row for row in self._relays if row.id == last), None)
        if end is None:
            return None
        for _ in range(_TRIES):
            chosen = [end]
            for row in sorted(self._relays, key=lambda _: rng.random()):
                if len(chosen) == hops:
                    break
                if len(chosen) == hops - 1 and row.id not in self._entries:
                    continue  # the first hop is found last
                if all(conflict(row, other, self._constraints) is None for other in chosen):
                    chosen.append(row)
            if len(chosen) == hops:
                return [row.relay for row in reversed(chosen)]
        return None

    def _attempt(self, rng: Rng) -> list[Candidate] | None:
        keys = {relay.id: self.turns[relay.id] + LOOSE * rng.random() for relay in self._relays}
        order = sorted(self._relays, key=lambda relay: keys[relay.id])
        if self._focus:
            with_one = rng.random() < FOCUS
            first = [relay for relay in order if relay.id in self._focus][:1] if with_one else []
            order = first + [relay for relay in order if relay.id not in self._focus]
        entry = None
        if not all(relay.id in self._entries for relay in self._relays):
            entry = next((relay for relay in order if relay.id in self._entries), None)
            if entry is None:
                return None
        chosen = [entry] if entry is not None else []
        for relay in order:
            if len(chosen) == self._hops:
                break
            if all(conflict(relay, other, self._constraints) is None for other in chosen):
                chosen.append(relay)
        if len(chosen) < self._hops:
            return None
        rest = chosen if entry is None else chosen[1:]
        rest = sorted(rest, key=lambda _: rng.random())
        return rest if entry is None else [entry, *rest]
