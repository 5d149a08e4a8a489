"""Which relays a client enters the network by, and for how long (docs/protocol.md, "Paths").

After Tor's guard-spec: a sample of the network that changes in months, an order in it, and what is known of each
member's reachability. Nothing here looks at how fast a guard is or where it, or the client, stands. Times are seconds
since 1970, since the sample outlives the process; those that are kept are moved back at random, so that they do not
tell when circuits were built.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Protocol

from backrooms.interfaces import Rng
from backrooms.path.constraints import Position
from backrooms.path.roster import Candidate, conflict
from backrooms.path.selector import PathSelector

DAY = 86400.0
PRIMARY = 3
"""Guards that are tried before all others; the first of them is used while it can be."""
SAMPLE_SHARE = 0.2
SAMPLE_MOST = 60
SAMPLE_LEAST = 20
"""A sample has at least so many that may be used, or all relays of a smaller network, and at most a share of the
network or so many."""
SAMPLE_LIMIT = 100
"""It grows beyond that only where a route's rules leave none of it, and never beyond this."""
LIFETIME = 120 * DAY
CONFIRMED_LIFETIME = 60 * DAY
"""A guard is given up when both are over, the second counted from the first circuit through it."""
UNLISTED_LIFETIME = 20 * DAY
"""A guard that left the list of relays is given up after this."""
RETRIES = ((6 * 3600.0, 600.0), (4 * DAY, 5400.0), (7 * DAY, 4 * 3600.0), (float("inf"), 9 * 3600.0))
"""Down for less than the first, a guard is tried again after the second (seconds)."""
SECOND_CHANCE = 600.0
"""Seconds in which a guard is tried again at most once because the network, not the guard, may have been down."""
DISTRUSTS = 3
DISTRUST_TIME = 30 * DAY
"""In this time at most so many guards are given up for what they did: who can make guards look bad must not choose
the next ones."""
MOST_MEDIANS = 4.0
"""When guards are sampled a relay counts for at most so many times the median weight. Capacity is a relay's own word:
without this, some twenty relays that say a lot would be most people's guards, and for months."""
LAYER2 = 4
LAYER2_MOST = 8
"""Second hops kept at a time; more only where rules or an entry leave none of them."""
LAYER2_LEAST_LIFE = DAY
LAYER2_MOST_LIFE = 12 * DAY


class Ids(Protocol):
    """Relays, by id."""

    def __contains__(self, relay_id: bytes, /) -> bool: ...


Draw = Callable[[Ids], bytes | None]
"""Draws the id of a relay that may take a position and is not among the given ones, by capped weight."""


def smallest_sample(count: int) -> int:
    """How many guards a network of `count` relays asks for at least: in a small one, all."""
    return min(SAMPLE_LEAST, count)


def largest_sample(count: int) -> int:
    """How many of `count` relays a sample may have, unless rules leave none of them."""
    return max(smallest_sample(count), min(SAMPLE_MOST, int(count * SAMPLE_SHARE)))


def retry_pause(down_for: float) -> float:
    """Seconds until a guard that has been down for so long is tried again."""
    return next(pause for limit, pause in RETRIES if down_for < limit)


@dataclass(slots=True)
class Guard:
    """One relay of the sample. What is in the first half is kept on disk."""

    id: bytes
    added: float
    confirmed: float | None = None
    """When the first circuit was built through it."""
    order: int = 0
    """Its place among the confirmed, from 1; 0 before."""
    unlisted: float | None = None
    """When it was missing in the list of relays."""
    distrusted: float | None = None
    """When it was given up for what it did."""
    reason: str = ""
    """What it did."""

    up: bool | None = field(default=None, compare=False)
    """Whether it was reached when it was tried last; None before."""
    since: float = field(default=0.0, compare=False)
    """When `up` became so."""
    retry_at: float = field(default=0.0, compare=False)
    """When it may be tried again, while it is down."""
    chance_at: float = field(default=float("-inf"), compare=False)
    """When it got its last second chance."""


@dataclass(frozen=True, slots=True)
class Second:
    """A second hop of circuits that have such guards, kept until a time."""

    id: bytes
    until: float


class GuardSample:
    """The guards of one client. `changed` tells that what should be kept on disk is not as it was."""

    def __init__(self, guards: Iterable[Guard] = (), seconds: Iterable[Second] = ()) -> None:
        """`guards` in the order they were sampled."""
        self.guards = {guard.id: guard for guard in guards}
        self.seconds = {second.id: second for second in seconds}
        self.changed = False
        self.drawn_from = 0
        """Relays in the list that it was drawn from, if that may not have been the whole one; else 0."""
        self._failed: set[bytes] = set()
        """Those that were not reached since the last that was."""

    # the sample

    def update(self, listed: Ids, now: float, rng: Rng) -> None:
        """The list of relays is this now: note who left it, and give up whose time is over."""
        for guard in list(self.guards.values()):
            if guard.id in listed:
                if guard.unlisted is not None:
                    guard.unlisted, self.changed = None, True
            elif guard.unlisted is None:
                guard.unlisted, self.changed = _earlier(now, UNLISTED_LIFETIME / 10, rng), True
            if self._is_over(guard, now):
                del self.guards[guard.id]
                self.changed = True
        for second in list(self.seconds.values()):
            # No draw is that long: then the clock was set back, and the end would never come.
            if not now < second.until <= now + LAYER2_MOST_LIFE or second.id not in listed:
                del self.seconds[second.id]
                self.changed = True

    def _is_over(self, guard: Guard, now: float) -> bool:
        if guard.added > now + DAY:  # the clock was set back: its age is not known any more
            guard.added, self.changed = now, True
        if guard.confirmed is not None and guard.confirmed > now + DAY:
            guard.confirmed, self.changed = now, True
        if guard.unlisted is not None and guard.unlisted > now + DAY:
            guard.unlisted, self.changed = now, True
        if guard.unlisted is not None and now - guard.unlisted > UNLISTED_LIFETIME:
            return True
        if now - guard.added <= LIFETIME:
            return False
        return guard.confirmed is None or now - guard.confirmed > CONFIRMED_LIFETIME

    def extend(self, fits: Ids, fitting: int, count: int, draw: Draw, now: float, rng: Rng) -> None:
        """Sample guards until enough of them are among `fits`, which has `fitting` of the network's `count` relays.

        `draw` draws from `fits`. Whether guards can be reached does not count: while we are offline none is added.
        """
        have = sum(guard.id in fits and guard.distrusted is None for guard in self.guards.values())
        least, most = smallest_sample(fitting), largest_sample(count)
        while have < least:
            if len(self.guards) >= most and not (have < min(PRIMARY, fitting) and self._make_room()):
                return
            chosen = draw(self.guards)
            if chosen is None:
                return
            self.guards[chosen] = Guard(chosen, _earlier(now, LIFETIME / 10, rng))
            self.changed = True
            have += 1

    def _make_room(self) -> bool:
        """Whether the sample may grow beyond its size; at the limit, the guard that left the list first is given up."""
        if len(self.guards) >= SAMPLE_LIMIT:
            gone = [guard for guard in self.guards.values() if guard.unlisted is not None]
            if not gone:
                return False
            del self.guards[min(gone, key=lambda one: one.unlisted or 0.0).id]
        return True

    def ranked(self, fits: Ids) -> list[Guard]:
        """Those that may be used, in the order in which they are tried: confirmed ones first.

        The first `PRIMARY` of them are the primary guards.
        """
        usable = [guard for guard in self.guards.values() if guard.distrusted is None and guard.id in fits]
        return sorted(usable, key=lambda one: one.order or float("inf"))  # the others keep the order of the sample

    def candidates(self, fits: Ids, now: float) -> list[Guard]:
        """Those to try now, the best first. When all are down it is the primary guards: perhaps we were offline."""
        ranked = self.ranked(fits)
        ready = [guard for guard in ranked if guard.up is not False or now >= guard.retry_at]
        return ready or ranked[:PRIMARY]

    # what happened to them

    def reached(self, relay_id: bytes, now: float, rng: Rng, confirm: bool = True) -> None:
        """The first hop of a circuit answered. Relays that are no guards do not matter.

        Only what was built by the order of the guards may `confirm` one, since that gives it a place in the order.
        """
        guard = self.guards.get(relay_id)
        if guard is None:
            return
        if guard.up is not True:
            guard.up, guard.since = True, now
        if confirm and guard.confirmed is None:
            guard.confirmed, self.changed = _earlier(now, CONFIRMED_LIFETIME / 10, rng), True
            guard.order = 1 + max(one.order for one in self.guards.values())
        failed, self._failed = self._failed - {relay_id}, set()
        if len(failed) > 1:
            # Several were lost and now one is there: most likely the network was away. They get another try.
            for other in map(self.guards.get, failed):
                if other is not None and other.up is False and now - other.chance_at >= SECOND_CHANCE:
                    other.chance_at = other.retry_at = now

    def failed(self, relay_id: bytes, now: float) -> None:
        """It could not be reached, or did not answer as the first hop."""
        guard = self.guards.get(relay_id)
        if guard is None:
            return
        self._failed.add(relay_id)
        if guard.up is not False or now < guard.since:
            guard.up, guard.since = False, now
        elif now < guard.retry_at:
            return  # tried early, since all were down: that does not put it behind the others
        guard.retry_at = now + retry_pause(now - guard.since)

    def distrust(self, relay_id: bytes, reason: str, now: float, rng: Rng) -> bool:
        """Use a guard no more. False when it is none, or when too many were given up lately."""
        guard = self.guards.get(relay_id)
        if guard is None or guard.distrusted is not None:
            return False
        lately = [one for one in self.guards.values() if one.distrusted is not None]
        if sum(abs(now - (one.distrusted or 0.0)) < DISTRUST_TIME for one in lately) >= DISTRUSTS:
            return False
        guard.distrusted, guard.reason, self.changed = _earlier(now, DISTRUST_TIME / 10, rng), reason, True
        return True

    def is_outdone(self, relay_id: bytes, fits: Ids, since: float) -> bool:
        """Whether a circuit built `since` then through this entry should be replaced.

        It should if a guard before it came up after that, or if it is no guard.
        """
        for guard in self.ranked(fits):
            if guard.id == relay_id:
                return False
            if guard.up and guard.since > since:
                return True
        known = self.guards.get(relay_id)
        return bool(self.guards) and (known is None or known.distrusted is not None)

    def due_before(self, relay_id: bytes, fits: Ids, now: float) -> list[bytes]:
        """Primary guards before this entry that were down and may be tried again now."""
        before = takewhile(lambda guard: guard.id != relay_id, self.ranked(fits)[:PRIMARY])
        return [guard.id for guard in before if guard.up is False and now >= guard.retry_at]

    # second hops

    def second_hops(self, fits: Ids, draw: Draw, now: float, rng: Rng) -> list[bytes]:
        """The second hops in use that are among `fits`; new ones are drawn where there are fewer than `LAYER2`."""
        for second in list(self.seconds.values()):
            if now >= second.until:
                del self.seconds[second.id]
                self.changed = True
        while len(self.seconds) < LAYER2:
            chosen = draw(self.seconds)
            if chosen is None:
                break
            self.add_second(chosen, now, rng)
        return [relay_id for relay_id in self.seconds if relay_id in fits]

    def add_second(self, relay_id: bytes, now: float, rng: Rng) -> bool:
        """Keep one more second hop; False when there are too many."""
        if len(self.seconds) >= LAYER2_MOST:
            return False
        life = max(rng.uniform(LAYER2_LEAST_LIFE, LAYER2_MOST_LIFE) for _ in range(2))
        self.seconds[relay_id] = Second(relay_id, now + life)
        self.changed = True
        return True


def first_hops(groups: list[Guard]) -> list[Collection[bytes]]:
    """In which order entries are tried for one path: the first guards one by one, then any of the others.

    A path that cannot be had through a guard (the only exit for it may be that guard, or of its family) goes through
    the next; it costs at most this many tries.
    """
    single: list[Collection[bytes]] = [{guard.id} for guard in groups[:PRIMARY]]
    rest = {guard.id for guard in groups[PRIMARY:]}
    return [*single, rest] if rest else single


class Allowed:
    """The relays that a selector allows at a position."""

    def __init__(self, selector: PathSelector, position: Position) -> None:
        self._selector = selector
        self._position = position

    def __contains__(self, relay_id: bytes) -> bool:
        return self._selector.may_stand(relay_id, self._position)


def drawing(selector: PathSelector, position: Position, others: Iterable[bytes], rng: Rng) -> Draw:
    """Draws by weight for a position, from other neighbourhoods than the `others` are in, if there are any.

    So whoever has many relays in a few networks has few places in a sample, and nobody more for great words than
    `MOST_MEDIANS`.
    """
    weights: dict[bytes, float] = {}
    limit = 0.0

    def draw(unwanted: Ids) -> bytes | None:
        nonlocal limit
        table, rows = selector.table(position), selector.roster.by_id
        if not weights and len(table):
            weights.update((row.id, weight) for row, weight in zip(table.rows, table.weights, strict=True))
            limit = MOST_MEDIANS * sorted(table.weights)[len(table) // 2]
        chosen = [rows[one] for one in others if one in rows]

        def counts(row: Candidate) -> bool:
            return row.id not in unwanted and (weights[row.id] <= limit or rng.random() * weights[row.id] < limit)

        def is_apart(row: Candidate) -> bool:
            return counts(row) and all(conflict(row, other, selector.constraints) is None for other in chosen)

        for fits in (is_apart, counts, lambda row: row.id not in unwanted):
            row = table.draw_fitting(fits, rng)
            if row is not None:
                return row.id
        return None

    return draw


def _earlier(now: float, most: float, rng: Rng) -> float:
    """A time up to `most` seconds ago, in whole seconds."""
    return float(int(now - rng.random() * most))
