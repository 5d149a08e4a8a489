"""What a client makes of rumours that relays are dead: it avoids these for a while, within bounds that no rumour moves.

A relay is doubted when the suspicions of enough of its watchers have come, whoever passed them on, until it refutes
them and for at most five minutes; or when three relays, unrelated to each other, say that it has been dead for long.
Of the weight of all relays at most a tenth is doubted, and of that of the exits too; in a network where one relay is
more than that, one relay. What is beyond is ignored and told. Doubts never change a guard. See
docs/protocol.md, "Failure detection". `now` is monotonic, `wall` unix seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from backrooms.gossip.neighbours import CONFIRMERS, LEAST_CONFIRMERS, Neighbours, groups
from backrooms.gossip.suspicions import CLIENT_LIFE, SuspicionTable
from backrooms.netdir.directory import Directory
from backrooms.wire.heartbeat import Rumours

DOUBT_TIME = 300.0
"""Seconds for which rumours exclude a relay, at most, and for which a list of the long dead holds."""
REST_TIME = 300.0
"""Seconds after that for which no rumour about it is believed."""
EXPIRE = 60.0
"""Seconds between looks at which suspicions are too old to count."""
MAX_SHARE = 0.1
"""Of all weight may be doubted, at most."""


@dataclass(slots=True)
class _Said:
    """A list of the dead by one relay."""

    at: float
    dead: frozenset[bytes]


class Doubts:
    """Relays that a client had better not use. `weights` gives the weight of each relay in path choice."""

    def __init__(
        self,
        directory: Directory,
        neighbours: Neighbours,
        weights: Callable[[], Mapping[bytes, float]],
        bounded: bool = True,
    ) -> None:
        """Without `bounded` every rumour is believed and nothing is capped: only to show what the bounds are for."""
        self.ignored: frozenset[bytes] = frozenset()
        """Relays that are not doubted though they would be, since that would be too much at once."""
        self.on_ignored: Callable[[int], None] = lambda count: None
        """Called with their number when it has grown from none."""
        self.table = SuspicionTable(directory, neighbours, CLIENT_LIFE)
        self._directory = directory
        self._weights = weights
        self._bounded = bounded
        self._expired_at = float("-inf")
        self._since: dict[bytes, float] = {}
        self._said: dict[bytes, _Said] = {}
        self._found: frozenset[bytes] = frozenset()
        self._key: tuple[int, float] | None = None
        self._changes = 0

    def rumours(self, message: Rumours, now: float, wall: float) -> None:
        """Take what a relay passed on. `CryptoError` when a signature in it is wrong."""
        if now - self._expired_at >= EXPIRE:
            self._expired_at = now
            self.table.expire(wall)  # else those who were watchers on different days could come together
        for refutation in message.refutations:
            self.table.refute(refutation, wall)
            if not self.table.suspicions(refutation.relay):
                self._since.pop(refutation.relay, None)
        for suspicion in message.suspicions:
            if self.table.suspect(suspicion, wall):
                self._believe(suspicion.accused, now, wall)
        self._changes += 1

    def _believe(self, accused: bytes, now: float, wall: float) -> None:
        since = self._since.get(accused)
        if since is not None and now < since + DOUBT_TIME + REST_TIME:
            return
        held = self.table.suspicions(accused)
        if self.table.evidence(accused, wall) or (held and not self._bounded):
            self._since[accused] = now

    def long_dead(self, source: bytes, dead: Collection[bytes], now: float) -> None:
        """A relay's list of the dead."""
        self._said[source] = _Said(now, frozenset(dead))
        self._changes += 1

    def doubted(self, now: float) -> frozenset[bytes]:
        """The relays to avoid, now."""
        key = self._changes, now // 1.0
        if key != self._key:
            self._key = key
            self._found = self._choose(now)
        return self._found

    def _choose(self, now: float) -> frozenset[bytes]:
        self._since = {one: at for one, at in self._since.items() if now < at + DOUBT_TIME + REST_TIME}
        self._said = {one: said for one, said in self._said.items() if now < said.at + DOUBT_TIME}
        wanted = {one: at for one, at in self._since.items() if now < at + DOUBT_TIME}
        for one, at in self._agreed().items():
            wanted.setdefault(one, at)
        if not wanted:
            self.ignored = frozenset()
            return frozenset()
        weights = self._weights()
        wanted = {one: at for one, at in wanted.items() if one in weights}
        if not self._bounded:
            return frozenset(wanted)
        chosen = self._within_bounds(sorted(wanted, key=lambda one: (wanted[one], one)), weights)
        ignored = frozenset(wanted) - chosen
        if ignored and not self.ignored:
            self.on_ignored(len(ignored))
        self.ignored = ignored
        return chosen

    def _agreed(self) -> dict[bytes, float]:
        """Relays that enough others call dead, and since when the last of these did."""
        sources = [one for one in map(self._directory.get, self._said) if one is not None]
        if len(sources) < CONFIRMERS:
            return {}
        wanted = max(LEAST_CONFIRMERS, groups(sources))
        found: dict[bytes, float] = {}
        for dead in frozenset[bytes]().union(*(said.dead for said in self._said.values())):
            saying = [one for one in sources if dead in self._said[one.id].dead]
            if (
                len(saying) >= CONFIRMERS
                and 2 * len(saying) > len(sources)
                and groups(saying) >= min(wanted, CONFIRMERS)
            ):
                found[dead] = max(self._said[one.id].at for one in saying)
        return found

    def _within_bounds(self, wanted: list[bytes], weights: Mapping[bytes, float]) -> frozenset[bytes]:
        """As many as the bounds allow, those that were doubted first before others."""
        exits = {relay.id for relay in self._directory.relays() if relay.is_exit}
        left = MAX_SHARE * sum(weights.values())
        left_exits = MAX_SHARE * sum(weight for one, weight in weights.items() if one in exits)
        chosen: set[bytes] = set()
        for one in wanted:
            weight = weights[one]
            fits = weight <= left and (one not in exits or weight <= left_exits)
            if fits or not chosen:
                chosen.add(one)
                left -= weight
                left_exits -= weight if one in exits else 0.0
        return frozenset(chosen)
