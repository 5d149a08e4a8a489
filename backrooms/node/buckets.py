"""What strangers may take of a node: token buckets by key, who came how often lately, and a budget of CPU time.

Nothing here knows a clock: `now` is a monotonic time in seconds, handed in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from math import inf, log2

Key = str | bytes

_LOOK = 4
"""How many of the oldest entries are looked at for one that may be forgotten."""
_SLACK = 0.001
"""Part of a token that may be missing: sums of fractions are not exact."""


class _Table(OrderedDict[Key, float]):
    """A number for each key, at most `limit` of them, the one that was set last at the end."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def put(self, key: Key, value: float, worthless: Callable[[float], bool]) -> None:
        """Set a number. Before a new key comes in, old ones go: `worthless` ones if there are, or else the oldest."""
        if key in self:
            self.move_to_end(key)
        else:
            for old in list(islice(self, _LOOK)):
                if worthless(self[old]):
                    del self[old]
            if len(self) >= self._limit:
                self.popitem(last=False)
        self[key] = value


class Buckets:
    """Token buckets by key: `rate` tokens per second come in, `burst` fit in, at first they are full.

    Not more than `limit` of them are kept. Full ones are worth nothing and go first; if there are none among the
    oldest, the one that was used longest ago is forgotten, which fills it. That gives somebody with very many addresses
    `burst` tokens at the price of `limit` connections from other keys that all had tokens: with the figures of
    `node.admission` less than 2 % more than these keys give him anyway.

    Kept is when a bucket will be full again (the "theoretical arrival time" of ATM's GCRA, ITU-T I.371).
    """

    def __init__(self, rate: float, burst: int, limit: int) -> None:
        self._full_at = _Table(limit)
        self._step = 1 / rate
        self._depth = (burst - 1 + _SLACK) / rate

    def __len__(self) -> int:
        return len(self._full_at)

    def has(self, key: Key, now: float) -> bool:
        """Whether there is a token."""
        return self._full_at.get(key, now) - now <= self._depth

    def take(self, key: Key, now: float) -> None:
        """Take one; ask `has` first."""
        full_at = max(self._full_at.get(key, now), now)
        self._full_at.put(key, full_at + self._step, lambda other: other <= now)


class Recent:
    """How often each key was noted lately; a note counts half after `half_life` seconds.

    The count is told as a level: log2(count) + now / half_life. All counts fall at the same pace, so levels of
    different times can be compared, and one that nothing is noted for needs no attention.
    """

    def __init__(self, half_life: float, limit: int) -> None:
        self._levels = _Table(limit)
        self._half_life = half_life

    def __len__(self) -> int:
        return len(self._levels)

    def level(self, key: Key) -> float:
        """The level of a key, which is minus infinity before anything was noted for it."""
        return self._levels.get(key, -inf)

    def note(self, key: Key, now: float) -> float:
        """Count once; the new level."""
        height = now / self._half_life
        count: float = 2 ** (self._levels.get(key, -inf) - height)
        level = log2(count + 1) + height
        self._levels.put(key, level, lambda other: other < height - 1)
        return level


class Budget:
    """CPU seconds per second, in two equal shares. What one leaves when its store is full goes to the other.

    `rate` is the CPU time per second for both; `burst` seconds of it can be stored, half of it by each. Work is charged
    when its cost is known, so a share may be in debt; it may work again when that is paid.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate / 2
        self._store = burst / 2
        self._at = now
        self.first = Share(self, burst / 2)
        self.second = Share(self, burst / 2)

    def refill(self, now: float) -> None:
        """Bring both shares up to date."""
        gain = max(0.0, now - self._at) * self._rate
        self._at = max(self._at, now)
        first, second, store = self.first, self.second, self._store
        first.left += gain
        second.left += gain
        spare_of_first = max(0.0, first.left - store)
        spare_of_second = max(0.0, second.left - store)
        first.left = min(store, first.left + spare_of_second)
        second.left = min(store, second.left + spare_of_first)

    def seconds_until(self, share: Share, amount: float) -> float:
        """How long it takes until `share` has `amount` more, if nobody works meanwhile. Both must be up to date."""
        other = self.second if share is self.first else self.first
        alone = (self._store - other.left) / self._rate  # until then the other share fills up by itself
        gained = alone * self._rate
        return amount / self._rate if amount <= gained else alone + (amount - gained) / (2 * self._rate)


class Share:
    """One half of a `Budget`. `left` is in CPU seconds."""

    def __init__(self, budget: Budget, left: float) -> None:
        self.left = left
        self._budget = budget

    def wait(self, now: float) -> float:
        """Seconds until work may begin; 0 if it may now."""
        self._budget.refill(now)
        return 0.0 if self.left > 0 else self._budget.seconds_until(self, _TINY - self.left)

    def charge(self, seconds: float, now: float) -> None:
        """Work has taken so much CPU time."""
        self._budget.refill(now)
        self.left -= seconds


_TINY = 1e-6
"""CPU seconds that must be there before work begins."""
