"""Chances by capacity: a relay is chosen in proportion to what it carries, up to a cap.

Capacity is a relay's own word. The cap bounds what a lie can win.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

from backrooms.interfaces import Rng
from backrooms.netdir.descriptor import Descriptor

MAX_SHARE = 0.05
"""No relay is chosen for a position more often than this,"""
SMALL_FACTOR = 1.5
"""or, in a set of fewer than 30 relays, more often than this many times the fair share."""
EXIT_FLOOR = 0.05
"""Part of its weight that an exit keeps in other positions, however scarce exits are."""
_TRIES = 24


def max_share(count: int) -> float:
    """The highest share that one of `count` relays may have."""
    return min(1.0, max(MAX_SHARE, SMALL_FACTOR / count)) if count else 1.0


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


def exit_damping(relays: Sequence[Descriptor]) -> float:
    """The factor by which exits are chosen less for other positions: scarce exit capacity is kept for exits.

    Tor's weights for a network whose exits have less than a third of all capacity come to nearly nothing;
    `EXIT_FLOOR` keeps a network of few relays usable.
    """
    total = sum(relay.capacity for relay in relays)
    exits = sum(relay.capacity for relay in relays if relay.is_exit)
    if exits == 0:
        return 1.0
    return max(EXIT_FLOOR, 1.0 - total / (3.0 * exits))


class WeightTable:
    """Relays with cumulative weights: one choice costs a bisection."""

    __slots__ = ("_cumulative", "relays", "weights")

    def __init__(self, relays: Sequence[Descriptor], exit_factor: float = 1.0) -> None:
        self.relays = relays
        plain = [max(1, relay.capacity) * (exit_factor if relay.is_exit else 1.0) for relay in relays]
        self.weights = cap_weights(plain, max_share(len(relays)))
        self._cumulative = list(accumulate(self.weights))

    def __len__(self) -> int:
        return len(self.relays)

    def draw(self, rng: Rng) -> Descriptor:
        """One relay by weight. The table is not empty."""
        point = rng.random() * self._cumulative[-1]
        return self.relays[min(bisect_right(self._cumulative, point), len(self.relays) - 1)]

    def draw_fitting(self, fits: Callable[[Descriptor], bool], rng: Rng) -> Descriptor | None:
        """One relay by weight among those that fit; None if none does.

        Draws and rejects; only when that fails again and again are all relays looked at.
        """
        if not self.relays:
            return None
        for _ in range(_TRIES):
            relay = self.draw(rng)
            if fits(relay):
                return relay
        left = [(relay, weight) for relay, weight in zip(self.relays, self.weights, strict=True) if fits(relay)]
        if not left:
            return None
        cumulative = list(accumulate(weight for _, weight in left))
        point = rng.random() * cumulative[-1]
        return left[min(bisect_right(cumulative, point), len(left) - 1)][0]
