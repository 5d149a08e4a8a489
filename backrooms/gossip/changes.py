"""What has changed in a list since, remembered in bounded memory."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

CHANGES_KEPT = 30_000
"""Relays whose last change is remembered."""
_LEAST_STALE = 1024


@dataclass(frozen=True, slots=True)
class Page:
    """Changes in order of time: ids that are there (anew, or in a new form), and ids that are gone."""

    changed: list[bytes]
    gone: list[bytes]
    revision: int
    """Where the next page begins."""
    more: bool


class ChangeLog:
    """The last change of each id, by a revision that counts changes from 1. `instance` tells logs of a relay apart."""

    def __init__(self, instance: bytes, limit: int = CHANGES_KEPT) -> None:
        self.instance = instance
        self.revision = 0
        self.forgotten = 0
        """Changes up to this revision may be missing."""
        self._limit = limit
        self._last: dict[bytes, int] = {}
        """The last revision of each id, the latest change at the end."""
        self._gone: set[bytes] = set()
        self._revisions: list[int] = []
        self._ids: list[bytes] = []
        """All changes in order, those that later ones of the same id have made stale included."""

    def __len__(self) -> int:
        return len(self._last)

    def note(self, node_id: bytes, there: bool) -> None:
        """An id has changed; `there` says whether it is still in the list."""
        self.revision += 1
        self._last.pop(node_id, None)
        self._last[node_id] = self.revision
        (self._gone.discard if there else self._gone.add)(node_id)
        self._revisions.append(self.revision)
        self._ids.append(node_id)
        if len(self._last) > self._limit:
            oldest = next(iter(self._last))
            self.forgotten = self._last.pop(oldest)
            self._gone.discard(oldest)
        if len(self._ids) > 2 * len(self._last) + _LEAST_STALE:
            self._ids, self._revisions = list(self._last), list(self._last.values())

    def since(self, instance: bytes, revision: int, limit: int) -> Page | None:
        """At most `limit` changes after a revision; None where they are not known any more, or never were."""
        if instance != self.instance or not self.forgotten <= revision <= self.revision:
            return None
        page = Page([], [], self.revision, False)
        for index in range(bisect_right(self._revisions, revision), len(self._ids)):
            node_id, at = self._ids[index], self._revisions[index]
            if self._last.get(node_id) != at:
                continue
            if len(page.changed) + len(page.gone) == limit:
                return Page(page.changed, page.gone, revision, True)
            (page.gone if node_id in self._gone else page.changed).append(node_id)
            revision = at
        return page
