"""Who watches whom: drawn by hash, so that no relay chooses its watchers (docs/protocol.md, "Failure detection").

All relays stand on a ring, at points that a hash gives them anew every day. A relay's eight watchers are those that
follow eight other points, which a hash draws from its id. Everybody who has the same list comes to the same result, and
a relay more or less in a list changes little.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import combinations

from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory

WATCHERS = 8
"""Relays that watch one relay."""
EPOCH = 86_400
"""Seconds for which they stay the same."""
EPOCH_TOLERANCE = 600
"""Seconds by which clocks may differ about that."""
CONFIRMERS = 3
"""Watchers that must say that a relay is dead."""
LEAST_CONFIRMERS = 2
"""The same in a network with fewer watchers: one alone never excludes anybody."""
_LABEL = b"backrooms-watchers-1"
_MAX_CACHED = 4_096


def unrelated(a: Descriptor, b: Descriptor) -> bool:
    """Whether two relays are of distinct /16 (IPv6: /32) and family, as far as is known.

    A family counts here if only one side says so: at worst a relay is not counted beside another one.
    """
    if a.id == b.id or not a.subnets().isdisjoint(b.subnets()) or not a.family_keys.isdisjoint(b.family_keys):
        return False
    return b.id not in a.family and a.id not in b.family


def groups(relays: Sequence[Descriptor], most: int = CONFIRMERS) -> int:
    """How many of these relays are unrelated to each other, up to `most`."""
    for size in range(min(most, len(relays)), 1, -1):
        for some in combinations(relays, size):
            if all(unrelated(a, b) for a, b in combinations(some, 2)):
                return size
    return min(1, len(relays))


class Neighbours:
    """The watchers of each relay of a list."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._revision = -1
        self._ids: frozenset[bytes] = frozenset()
        self._rings: dict[int, list[tuple[bytes, bytes]]] = {}
        self._cache: dict[tuple[int, bytes], tuple[bytes, ...]] = {}

    def watchers(self, relay_id: bytes, wall: float) -> tuple[bytes, ...]:
        """Up to eight relays that watch this one today, in the order in which they were drawn."""
        return self._watchers(relay_id, int(wall) // EPOCH)

    def all_watchers(self, relay_id: bytes, wall: float) -> tuple[bytes, ...]:
        """The same, and near a change of epochs those of the other one, too."""
        first, last = (int(wall + shift) // EPOCH for shift in (-EPOCH_TOLERANCE, EPOCH_TOLERANCE))
        watchers = self._watchers(relay_id, first)
        if first == last:
            return watchers
        return tuple(dict.fromkeys((*watchers, *self._watchers(relay_id, last))))

    def enough(self, relay_id: bytes, confirmers: Sequence[bytes], wall: float) -> bool:
        """Whether these confirmers, all of them watchers, are enough to believe that a relay is dead.

        Three, unrelated to each other. Where the watchers are fewer all of them, and two at least; where they do not
        come from three places, confirmers from as many as there are.
        """
        watchers = self.watchers(relay_id, wall)
        wanted = max(LEAST_CONFIRMERS, min(CONFIRMERS, len(watchers)))
        if len(confirmers) < wanted:
            return False
        return groups(self._known(confirmers)) >= groups(self._known(watchers))

    def _known(self, ids: Sequence[bytes]) -> list[Descriptor]:
        return [relay for relay in map(self._directory.get, ids) if relay is not None]

    def _watchers(self, relay_id: bytes, epoch: int) -> tuple[bytes, ...]:
        self._look()
        key = epoch, relay_id
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            found = self._cache[key] = self._draw(relay_id, epoch)
        return found

    def _draw(self, relay_id: bytes, epoch: int) -> tuple[bytes, ...]:
        ring = self._ring(epoch)
        count = min(WATCHERS, len(ring) - (relay_id in self._ids))
        chosen: dict[bytes, None] = {}
        for number in range(WATCHERS):
            if len(chosen) >= count:
                break
            place = bisect_right(ring, (_point(epoch, relay_id, number + 1), b""))
            for step in range(len(ring)):
                one = ring[(place + step) % len(ring)][1]
                if one != relay_id and one not in chosen:
                    chosen[one] = None
                    break
        return tuple(chosen)

    def _look(self) -> None:
        """Take over a list that has changed."""
        if self._revision == self._directory.revision:
            return
        self._revision = self._directory.revision
        ids = frozenset(relay.id for relay in self._directory.relays())
        if ids == self._ids:
            return
        self._cache.clear()
        gone, new = self._ids - ids, ids - self._ids
        self._ids = ids
        for epoch, ring in self._rings.items():
            left = [entry for entry in ring if entry[1] not in gone] if gone else ring
            left.extend((_point(epoch, one, 0), one) for one in new)
            left.sort()
            self._rings[epoch] = left

    def _ring(self, epoch: int) -> list[tuple[bytes, bytes]]:
        ring = self._rings.get(epoch)
        if ring is None:
            if len(self._rings) >= 2:
                del self._rings[min(self._rings)]
            ring = self._rings[epoch] = sorted((_point(epoch, one, 0), one) for one in self._ids)
        return ring


def _point(epoch: int, relay_id: bytes, number: int) -> bytes:
    """A place on the ring: 0 is where a relay stands, others are where its watchers are looked for."""
    return hashlib.sha3_256(_LABEL + epoch.to_bytes(8, "big") + bytes((number,)) + relay_id).digest()[:16]
