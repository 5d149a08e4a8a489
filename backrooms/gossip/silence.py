"""How suspicious a silence is: one relay as the one that watches it sees it, after the phi accrual failure detector.

(Hayashibara et al., "The phi accrual failure detector", SRDS 2004.) A heartbeat says when the next one will come; what
is learnt is by how much they are late. phi is minus the decimal logarithm of the chance that a heartbeat which is not
there yet still comes, if lateness has the normal distribution that was seen.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

WINDOW = 32
"""Heartbeats of which the lateness is remembered."""
LEAST_DEVIATION = 0.2
"""Seconds: the standard deviation of lateness is never taken to be less."""
RECHECK = 2.0
"""Seconds after a sign of life for the heartbeat that was due."""
FIRST_PATIENCE = 30.0
"""Seconds for the first heartbeat of a relay that should send us some."""


@dataclass(slots=True)
class Question:
    """Under way: does this relay live? Times are monotonic seconds."""

    nonce: int
    started: float
    deadline: float
    asked: frozenset[bytes]
    """The other watchers, if we asked them."""
    alive: set[bytes] = field(default_factory=set)
    """Those of them who say that it lives."""
    askers: dict[bytes, int] = field(default_factory=dict)
    """Watchers that asked us, with their nonces: they are answered if it lives."""
    put_off: int = 0
    """How often the end was put off since we doubt ourselves."""


class Watched:
    """What is known of one relay that we watch."""

    __slots__ = ("accused_at", "beat_at", "expected", "gone", "heard", "incarnation", "late", "question", "steady")

    def __init__(self, now: float) -> None:
        self.incarnation = 0
        self.beat_at = now
        """When its last heartbeat came, or what stood in for it."""
        self.steady = False
        """Whether `beat_at` is when a heartbeat came, so that the next one tells how late they are."""
        self.expected = FIRST_PATIENCE
        """Seconds from then to the next one, as it says."""
        self.heard = now
        """When anything of it came."""
        self.late: deque[float] = deque(maxlen=WINDOW)
        self.question: Question | None = None
        self.accused_at: float | None = None
        """Since when we say that it is dead."""
        self.gone = False
        """Its link was lost: that is as suspicious as any silence."""

    def beat(self, incarnation: int, following: float, now: float) -> None:
        """A heartbeat came; the next one will in `following` seconds."""
        late = now - self.beat_at - self.expected
        if self.steady and late < self.expected:
            self.late.append(late)
        self.beat_at, self.expected, self.steady = now, following, True
        self.incarnation = max(self.incarnation, incarnation)
        self.gone = False

    def lives(self, now: float) -> None:
        """It lives, though its heartbeat is late: it has a little time for the next one."""
        self.gone = False
        self.beat_at = max(self.beat_at, now + RECHECK - self.expected)
        self.steady = False

    def phi(self, now: float) -> float:
        """How suspicious the silence is now."""
        if now < self.beat_at + self.expected:
            return 0.0
        count = len(self.late)
        mean = sum(self.late) / count if count else 0.0
        variance = sum((one - mean) ** 2 for one in self.late) / count if count else 0.0
        deviation = max(LEAST_DEVIATION, math.sqrt(variance))
        return suspicion_level((now - self.beat_at - self.expected - max(0.0, mean)) / deviation)


def suspicion_level(deviations: float) -> float:
    """phi for something that is late by so many standard deviations."""
    chance = 0.5 * math.erfc(deviations / math.sqrt(2))
    return -math.log10(chance) if chance > 0 else 300.0
