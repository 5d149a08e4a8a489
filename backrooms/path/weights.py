"""Chances by capacity: a relay is chosen in proportion to what it carries, up to caps.

Capacity is a relay's own word. The caps bound what a lie can win, and what many relays win that one party may run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import accumulate

from backrooms.interfaces import Rng
from backrooms.path.roster import GROUPS, Candidate

MAX_SHARE = 0.05
"""No relay is chosen for a position more often than this,"""
SMALL_FACTOR = 1.5
"""or, in a set of fewer than 30 relays, more often than this many times the fair share."""
GROUP_SHARES = {"/16": 0.05, "/32": 0.05, "family": 0.05, "operator": 0.05, "AS": 0.1}
"""The same for all relays together that have this in common; the fair share is that of one of the groups."""
EXIT_FLOOR = 0.05
"""Part of its weight that an exit keeps in other positions, however scarce exits are."""
_TRIES = 24
_ROUNDS = 16
_SLACK = 1.001
"""Caps are met up to this factor."""
_WATCHED = 0.25
"""Groups below this part of their cap are not looked at, unless all together has become less by this factor."""
_FALLS = 20
_NOTHING = 1e-9
_RELAX = 1.5
"""Where caps contradict each other, as they can in small networks, all are raised by this factor."""


def max_share(count: int, share: float = MAX_SHARE) -> float:
    """The highest share that one of `count` relays, or groups, may have."""
    return min(1.0, max(share, SMALL_FACTOR / count)) if count else 1.0


def cap_weights(weights: Sequence[float], share: float) -> list[float]:
    """The weights, the highest lowered to one level so that none is more than `share` of the new total.

    `share` is at least 1 / len(weights); all weights are above 0.
    """
    ordered = sorted(weights)
    below = list(accumulate(ordered, initial=0.0))
    for above in range(len(ordered)):
        # `above` weights are lowered to `level`, at which each of them is exactly `share` of the whole.
        left = len(ordered) - above
        free = 1.0 - above * share
        if free <= 0:
            break
        level = share * below[left] / free
        if ordered[left - 1] <= level:
            return [min(each, level) for each in weights] if above else list(weights)
    # Only rounding leads here, where `share` is all but the fair share: then all are equal.
    return [ordered[0]] * len(ordered) if ordered else []


def group_shares(rows: Sequence[Candidate], names: Iterable[str]) -> dict[str, float]:
    """The cap of each kind of group, given the names of all groups. A relay that is in none of a kind counts as one."""
    counts = Counter([name.partition(" ")[0] for name in names])
    shares = {}
    for kind, share in GROUP_SHARES.items():
        count = counts[kind]
        if 0 < count * share < SMALL_FACTOR:
            count += sum(not any(name.startswith(kind) for name in row.groups) for row in rows)
        shares[kind] = max_share(min(count, len(rows)), share)
    return shares


def cap_groups(rows: Sequence[Candidate], weights: Sequence[float], kinds: Collection[str] = GROUPS) -> list[float]:
    """The weights, lowered so that neither a relay nor a group of these kinds has more than its share.

    The heaviest of a group are lowered to one level, so that a liar takes little from its neighbours. Where the caps
    contradict each other all of them are raised alike until they do not.
    """
    raised = 1.0
    while True:
        capped = cap_weights(weights, min(1.0, max_share(len(rows)) * raised))
        for _ in range(_FALLS):
            limits = _limits(rows, capped, kinds, raised)
            done = _cut(capped, limits, max_share(len(rows)) * raised)
            if done:
                return capped
            if done is None:
                break
        raised *= _RELAX


Limit = tuple[float, list[int]]
"""A share, and the positions of the relays that may have no more than it together."""


def _limits(rows: Sequence[Candidate], weights: Sequence[float], kinds: Collection[str], raised: float) -> list[Limit]:
    """The groups that may have to be lowered, now or when others are."""
    sums: defaultdict[str, float] = defaultdict(float)
    for row, weight in zip(rows, weights, strict=True):
        for name in row.groups:
            sums[name] += weight
    shares = group_shares(rows, sums)
    total = sum(weights)
    watched: dict[str, list[int]] = {
        name: []
        for name, weight in sums.items()
        if (kind := name.partition(" ")[0]) in kinds and weight > shares[kind] * raised * total * _WATCHED
    }
    if watched:
        for index, row in enumerate(rows):
            for name in row.groups:
                if name in watched:
                    watched[name].append(index)
    return [
        (limit, members)
        for name, members in watched.items()
        if len(members) > 1 and (limit := shares[name.partition(" ")[0]] * raised) < 1.0
    ]


def _cut(weights: list[float], limits: Sequence[Limit], share: float) -> bool | None:
    """Lower the weights until all caps hold.

    True when they do; False when so much was lowered that other groups may be too heavy now; None when there is no end.
    """
    least = sum(weights) * _WATCHED
    for _ in range(_ROUNDS):
        total = sum(weights)
        over = [
            (limit, members)
            for limit, members in limits
            if sum([weights[index] for index in members]) > limit * total * _SLACK
        ]
        if max(weights, default=0.0) > share * total * _SLACK:
            over += [(share, [index]) for index, weight in enumerate(weights) if weight > share * total * _SLACK]
        if not over:
            return total >= least
        # If those over their caps are exactly at them in the end, the others are this part of the new total.
        held = {index for _, members in over for index in members}
        others = sum([weight for index, weight in enumerate(weights) if index not in held])
        free = 1.0 - sum(limit for limit, _ in over)
        if others <= total * _NOTHING:
            return None
        if free > 0:
            total = min(total, others / free)
        for limit, members in over:
            heaviest = sorted((weights[index] for index in members), reverse=True)
            level = _level(heaviest, limit * total)
            for index in members:
                weights[index] = min(weights[index], level)
    return None


def _level(heaviest: list[float], most: float) -> float:
    """The level to which weights, given in falling order, must be lowered so that their sum is `most`."""
    rest = sum(heaviest)
    for count, weight in enumerate(heaviest):
        if count and count * weight + rest <= most:
            return (most - rest) / count
        rest -= weight
    return most / len(heaviest)


def exit_damping(rows: Sequence[Candidate]) -> float:
    """The factor by which exits are chosen less for other positions: scarce exit capacity is kept for exits.

    Tor's weights for a network whose exits have less than a third of all capacity come to nearly nothing;
    `EXIT_FLOOR` keeps a network of few relays usable.
    """
    capped = cap_weights([row.weight for row in rows], max_share(len(rows)))
    exits = sum(weight for row, weight in zip(rows, capped, strict=True) if row.is_exit)
    if exits == 0:
        return 1.0
    return max(EXIT_FLOOR, 1.0 - sum(capped) / (3.0 * exits))


class WeightTable:
    """Relays with cumulative weights: one choice costs a bisection."""

    __slots__ = ("_cumulative", "rows", "weights")

    def __init__(self, rows: Sequence[Candidate], exit_factor: float = 1.0, *, subnets: bool = True) -> None:
        """`subnets` says whether a network's share, too, is capped."""
        self.rows = rows
        plain = [row.weight * exit_factor if row.is_exit else row.weight for row in rows]
        self.weights = cap_groups(rows, plain, GROUPS if subnets else GROUPS[2:])
        self._cumulative = list(accumulate(self.weights))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return self._cumulative[-1] if self._cumulative else 0.0

    def draw(self, rng: Rng) -> Candidate:
        """One relay by weight. The table is not empty."""
        point = rng.random() * self._cumulative[-1]
        return self.rows[min(bisect_right(self._cumulative, point), len(self.rows) - 1)]

    def draw_fitting(self, fits: Callable[[Candidate], bool], rng: Rng) -> Candidate | None:
        """One relay by weight among those that fit; None if none does.

        Draws and rejects; only when that fails again and again are all relays looked at.
        """
        if not self.rows:
            return None
        for _ in range(_TRIES):
            row = self.draw(rng)
            if fits(row):
                return row
        left = [(row, weight) for row, weight in zip(self.rows, self.weights, strict=True) if fits(row)]
        if not left:
            return None
        cumulative = list(accumulate(weight for _, weight in left))
        point = rng.random() * cumulative[-1]
        return left[min(bisect_right(cumulative, point), len(left) - 1)][0]
