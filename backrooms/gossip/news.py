"""News that is pushed on: which, to be told how often, and when.

A rumour is told in a few rounds that follow each other quickly, and once with the next summary. Hearing it from others
meanwhile makes it colder: then most know it.
"""

from __future__ import annotations

from math import inf

from backrooms.interfaces import Rng
from backrooms.netdir.certificate import ShelfError
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory
from backrooms.wire.gossip import BUCKET_DIGEST, BUCKETS, MAX_NEWS, ROOT_SIZE, News
from backrooms.wire.link import FRAGMENT_SIZE

TELLINGS = 3
"""How often news is told to a few partners, the one with the next summary included."""
PAUSE = 0.5
"""Seconds between tellings, give or take half of it."""
MAX_RUMOURS = 256
"""Rumours that are told at a time; older ones give way: summaries bring what they would have told."""
FRESH = 3600
"""Seconds between a certificate and a record up to which others may not have the certificate, and it is told, too."""
PUSH_ROOM = 8 * FRAGMENT_SIZE - 1 - ROOT_SIZE - 4
"""Bytes of news in one push."""
ROOM_BESIDE_DIGESTS = FRAGMENT_SIZE - 1 - ROOT_SIZE - 4 - BUCKETS * BUCKET_DIGEST
"""Bytes of news that fit into the cell of a summary."""


class Rumours:
    """What one relay tells on."""

    def __init__(self, directory: Directory, rng: Rng) -> None:
        self._directory = directory
        self._rng = rng
        self._left: dict[bytes, int] = {}
        self._revisions: dict[bytes, int] = {}
        self.due = inf
        """When to push next."""

    def __len__(self) -> int:
        return len(self._left)

    def add(self, relay_id: bytes, now: float) -> bool:
        """There is news of a relay in the list; False if just that is being told already."""
        relay = self._directory.held(relay_id)
        if relay is None or self._revisions.get(relay_id) == relay.record.revision:
            return False
        self._forget(relay_id)
        self._left[relay_id] = TELLINGS
        self._revisions[relay_id] = relay.record.revision
        if len(self._left) > MAX_RUMOURS:
            self._forget(next(iter(self._left)))
        self._set(now)
        return True

    def heard_again(self, relay_id: bytes, revision: int) -> None:
        """A peer told us what we tell."""
        if self._revisions.get(relay_id) == revision:
            self._told(relay_id)

    def wait(self) -> None:
        """There is nobody to tell; the next summary tries again."""
        self.due = inf

    def push(self, now: float) -> tuple[News, ...]:
        """What to tell now."""
        news = self._take([one for one, left in self._left.items() if left > 1], PUSH_ROOM)
        self.due = inf
        if any(left > 1 for left in self._left.values()):
            self._set(now)
        return news

    def some(self, room: int, now: float) -> tuple[News, ...]:
        """What to tell beside something else: so many bytes of the oldest rumours."""
        news = self._take(list(self._left), room)
        if self.due == inf and any(left > 1 for left in self._left.values()):
            self._set(now)
        return news

    def _take(self, ids: list[bytes], room: int) -> tuple[News, ...]:
        news: list[News] = []
        for relay_id in ids:
            relay = self._directory.held(relay_id)
            if relay is None:
                self._forget(relay_id)
                continue
            one = _news(relay, room)
            if one.size <= room and len(news) < MAX_NEWS:
                room -= one.size
                news.append(one)
                self._told(relay_id)
        return tuple(news)

    def _told(self, relay_id: bytes) -> None:
        self._left[relay_id] -= 1
        if self._left[relay_id] <= 0:
            self._forget(relay_id)

    def _forget(self, relay_id: bytes) -> None:
        self._left.pop(relay_id, None)
        self._revisions.pop(relay_id, None)

    def _set(self, now: float) -> None:
        self.due = min(self.due, now + PAUSE * self._rng.uniform(0.5, 1.5))


def _news(relay: Descriptor, room: int) -> News:
    """The news of a relay, with its certificate if that is new and there is room for it."""
    bare = News(relay.certificate.digest, relay.record_raw)
    if relay.revoked or relay.record.revision - relay.certificate.facts.created > FRESH:
        return bare
    try:
        whole = News(bare.digest, bare.record, relay.certificate.raw)
    except ShelfError:  # it was lost; who needs it asks somebody else
        return bare
    return whole if whole.size <= room else bare
