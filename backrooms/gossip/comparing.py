"""Comparing our view of the network with another node's: a few hundred bytes while they are the same.

A node commits itself to its view by the root. If that differs from ours, the parts that differ are asked for, and the
root must follow from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from backrooms.errors import WireError
from backrooms.gossip.view import View
from backrooms.wire.records import ID_SIZE
from backrooms.wire.views import IdsRequest, ViewBuckets, ViewIds, ViewRoot

COMPARED = 8
"""Relays that a view is compared with."""
ALARM_RELAYS = 3
"""So many of them must show what we lacked: fewer can stop nobody."""
ALARM_SHARE = 0.02
"""Part of the settled ids of a relay, more than which we must have lacked for it to count."""
IDS_MOST = 20_000
"""Ids in the parts of a view that differ, more than any list holds."""


class Peer(Protocol):
    """Who is asked for a view."""

    async def root(self, epoch: int) -> ViewRoot: ...

    async def buckets(self, epoch: int) -> ViewBuckets: ...

    async def ids(self, request: IdsRequest) -> ViewIds: ...


@dataclass(frozen=True, slots=True)
class Shown:
    """What a node showed: how many ids are settled for it, and those of them that are not in our view."""

    count: int
    others: frozenset[bytes]
    same: bool
    """Whether it showed the root that we have."""


async def look(peer: Peer, view: View) -> Shown | None:
    """Compare `view` with another node's of the same epoch. None: it has none. `WireError`: it contradicts itself."""
    answer = await peer.root(view.epoch)
    _same_epoch(answer.epoch, view)
    if not answer.known:
        return None
    if answer.root == view.root:
        if answer.count != len(view):
            raise WireError("a view whose size is not that of its root")
        return Shown(answer.count, frozenset(), same=True)
    buckets = await peer.buckets(view.epoch)
    _same_epoch(buckets.epoch, view)
    if not buckets.digests:
        raise WireError("a view without parts")
    parts = view.differing(buckets.digests)
    theirs: list[bytes] = []
    more, after = bool(parts), bytes(ID_SIZE)
    while more:
        page = await peer.ids(IdsRequest(view.epoch, parts, after))
        _same_epoch(page.epoch, view)
        if any(node_id[0] not in parts or node_id <= after for node_id in page.ids):
            raise WireError("ids of a view that nobody asked for")
        theirs += page.ids
        if len(theirs) > IDS_MOST:
            raise WireError("a view without end")
        more = page.more
        after = page.ids[-1] if page.ids else after
    whole = View(view.epoch, [*theirs, *(one for one in view.ids if one[0] not in parts)])
    if len(whole) != answer.count or whole.root != answer.root or whole.buckets != buckets.digests:
        raise WireError("ids of a view that do not give its root")
    return Shown(answer.count, frozenset(theirs).difference(view.ids), same=False)


def _same_epoch(epoch: int, view: View) -> None:
    if epoch != view.epoch:
        raise WireError("a view of another epoch")


def is_much(lacked: int, count: int) -> bool:
    """Whether a node with `count` settled ids showed enough of them that we lacked."""
    return lacked > ALARM_SHARE * count


def alarming(shown: Sequence[tuple[int, int]]) -> bool:
    """Whether enough nodes showed enough. `shown` has, for each, how many ids we lacked and how many it has."""
    return sum(is_much(lacked, count) for lacked, count in shown) >= ALARM_RELAYS
