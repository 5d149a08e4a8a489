"""Views of the network: which ids are settled in an epoch, as a root to compare (docs/protocol.md, "Views").

Times are unix seconds. An epoch is a number: time divided by `EPOCH`. An id is settled in an epoch if it has been
known for at least two whole ones when it begins, so that news that are still on their way make no difference.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice

from backrooms.gossip.merkle import root
from backrooms.wire.views import BUCKETS, SHORT_DIGEST

EPOCH = 900
"""Seconds of an epoch."""
SETTLE = 2
"""Whole epochs that an id must have been known for."""
_KEPT = 3
"""Views that are kept: of the last epoch, this one and the next."""


def epoch_at(now: float) -> int:
    """The epoch of a time."""
    return max(0, int(now) // EPOCH)


class View:
    """The ids that one node holds for settled in an epoch."""

    def __init__(self, epoch: int, ids: Iterable[bytes]) -> None:
        self.epoch = epoch
        self.ids: Sequence[bytes] = sorted(ids)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def root(self) -> bytes:
        """The Merkle root over the epoch, as u32, and the ids."""
        return root([self.epoch.to_bytes(4, "big"), *self.ids])

    @cached_property
    def buckets(self) -> tuple[bytes, ...]:
        """The short root of each part."""
        return tuple(root(self.part(number))[:SHORT_DIGEST] for number in range(BUCKETS))

    def part(self, number: int) -> Sequence[bytes]:
        """The ids whose first byte is `number`."""
        start = bisect_left(self.ids, bytes([number]))
        end = len(self.ids) if number + 1 == BUCKETS else bisect_left(self.ids, bytes([number + 1]))
        return self.ids[start:end]

    def page(self, parts: Collection[int], after: bytes, limit: int) -> tuple[list[bytes], bool]:
        """At most `limit` ids of some parts behind an id, and whether there are more."""
        found = list(islice(self._behind(parts, after), limit + 1))
        return found[:limit], len(found) > limit

    def _behind(self, parts: Collection[int], after: bytes) -> Iterator[bytes]:
        for number in sorted(parts):
            if number >= after[0]:
                ids = self.part(number)
                yield from ids[bisect_right(ids, after) :] if number == after[0] else ids

    def differing(self, buckets: Sequence[bytes]) -> frozenset[int]:
        """The parts that somebody else's digests differ in."""
        pairs = zip(self.buckets, buckets, strict=True)
        return frozenset(number for number, (mine, theirs) in enumerate(pairs) if mine != theirs)


class Views:
    """The views that follow from since when each id has been known, unix seconds. One that was given stays as it is."""

    def __init__(self, since: Mapping[bytes, float], now: float) -> None:
        """`since` is looked at whenever a view is made; `now` is when this node began to look at the network."""
        self.began = now
        self._since = since
        self._views: dict[int, View] = {}

    def settled_at(self, epoch: int) -> float:
        """The time by which an id must have been known to be settled in an epoch."""
        return (epoch - SETTLE) * EPOCH

    def view(self, epoch: int, now: float) -> View | None:
        """Our view of an epoch: of this one or its neighbours, and if we have been up for long enough."""
        if self.began > self.settled_at(epoch) or abs(epoch - epoch_at(now)) > 1:
            return None
        return self._kept(epoch)

    def fresh(self, epoch: int) -> View:
        """Our view as it is now, to compare with others': what is settled, or all while we do not know what is."""
        limit = self.settled_at(epoch)
        if self.began > limit:
            return View(epoch, self._since)
        return View(epoch, (one for one, since in self._since.items() if since <= limit))

    def _kept(self, epoch: int) -> View:
        view = self._views.get(epoch)
        if view is None:
            view = self.fresh(epoch)
            while len(self._views) >= _KEPT:
                del self._views[min(self._views)]
            self._views[epoch] = view
        return view
