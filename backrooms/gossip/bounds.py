"""What one relay may make others do by gossip: how often, how much, and what is not taken from it again."""

from __future__ import annotations

from collections import OrderedDict, deque

from backrooms.wire.documents import DirFetch

MESSAGES = (1.0, 40)
"""Gossip messages of a peer that are read: per second, and at once."""
ANSWERS = (0.2, 10)
"""Summaries of a peer whose differences are told: per second, and at once."""
DOCUMENTS = (10.0, 1000)
"""Documents of a peer that are verified: per second, and at once."""
CHANGES = (1 / 300, 8)
"""Records that one relay may publish: per second, and at once."""
MUTED = 600.0
"""Seconds for which a peer is not listened to when it told of what it does not have, again and again."""
EMPTY_WORDS = 3
"""Fetches in a row that bring nothing of what was told, before that."""
REFUSED = 3600.0
"""Seconds for which what a peer gave and was refused is not fetched from it again."""
MAX_REFUSED = 1024


class Allowance:
    """A token bucket: so many per second, so many at once. At first it is full."""

    __slots__ = ("_depth", "_full_at", "_step")

    def __init__(self, bounds: tuple[float, int]) -> None:
        rate, burst = bounds
        self._step = 1 / rate
        self._depth = burst / rate
        self._full_at = float("-inf")

    def left(self, now: float) -> int:
        """Tokens that are there."""
        missing = max(self._full_at - now, 0.0)
        return int((self._depth - missing) / self._step + 0.001)

    def take(self, now: float, count: int = 1) -> bool:
        """Take tokens, if there are as many."""
        if self.left(now) < count:
            return False
        self._full_at = max(self._full_at, now) + count * self._step
        return True

    def full(self, now: float) -> bool:
        """Whether nothing was taken lately."""
        return self._full_at <= now


class Allowances:
    """The same allowance for each relay. Those of whom nothing came lately are forgotten."""

    def __init__(self, bounds: tuple[float, int]) -> None:
        self._bounds = bounds
        self._by_relay: OrderedDict[bytes, Allowance] = OrderedDict()

    def has(self, relay_id: bytes, now: float) -> bool:
        """Whether something of this relay may be taken."""
        found = self._by_relay.get(relay_id)
        return found is None or found.left(now) > 0

    def take(self, relay_id: bytes, now: float) -> bool:
        """Something of this relay is taken; False, and nothing changes, where that would be too much."""
        found = self._by_relay.get(relay_id)
        if found is None:
            while self._by_relay and next(iter(self._by_relay.values())).full(now):
                self._by_relay.popitem(last=False)
            found = self._by_relay[relay_id] = Allowance(self._bounds)
        self._by_relay.move_to_end(relay_id)
        return found.take(now)


class Refused:
    """Which revisions a peer gave that were refused. Only that peer: another one may have good documents."""

    def __init__(self) -> None:
        self._until: OrderedDict[tuple[bytes, int], float] = OrderedDict()

    def note(self, relay_id: bytes, revision: int, now: float) -> None:
        self._until[relay_id, revision] = now + REFUSED
        while len(self._until) > MAX_REFUSED:
            self._until.popitem(last=False)

    def has(self, relay_id: bytes, revision: int, now: float) -> bool:
        return self._until.get((relay_id, revision), 0.0) > now


class Peer:
    """What one peer took of us, and what goes on with it."""

    def __init__(self) -> None:
        self.messages, self.answers, self.documents = Allowance(MESSAGES), Allowance(ANSWERS), Allowance(DOCUMENTS)
        self.refused = Refused()
        self.muted_until = float("-inf")
        self.asked_until = float("-inf")
        """Until then it may tell us in what it differs."""
        self.told_until = float("-inf")
        """Until then it may offer us what we lack."""
        self.empty_words = 0
        self.request: DirFetch | None = None
        self.queue: deque[DirFetch] = deque()
