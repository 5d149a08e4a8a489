"""What became of a probe, and which trials that makes (`path.scores`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from backrooms.path.scores import Role, Suspect, Trial
from backrooms.wire.cell import DestroyReason

LATE = 0.1
"""Seconds beyond the quickest round trip of the same circuit from which on one is late."""
SPREAD = 5.0
"""Or this many times what the quicker quarter takes beyond the quickest: where all round trips vary, none is late."""
LATE_SHARE = 0.12
"""Share of late round trips from which on a circuit counts as delayed."""
LEAST_LATE = 2
LEAST_TRIPS = 8
"""Round trips without which nothing is said about delay."""

_BUSY = (DestroyReason.RESOURCE_LIMIT, DestroyReason.SHUTTING_DOWN)
"""What a first hop says of itself when it cannot. Of the others the reasons are not passed on."""
_OUR_OWN = (DestroyReason.FINISHED, DestroyReason.REQUESTED)


@dataclass(slots=True)
class Outcome:
    """One probe: times are monotonic seconds."""

    path: tuple[bytes, ...]
    """The ids of its relays."""
    began: float
    hops: int = 0
    """Hops that were there."""
    ended: float = 0.0
    failed: bool = False
    """Whether it ended before we ended it."""
    reason: int = 0
    """Why, a `DestroyReason`, if it failed."""
    trips: list[tuple[float, float]] = field(default_factory=list)
    """Round trips with the last hop: when each was over, and how many seconds it took."""
    void: bool = False
    """Whether it says nothing: we ended it for a reason of our own, or were too busy to tell."""

    @property
    def built(self) -> bool:
        """Whether all hops were there."""
        return self.hops == len(self.path)


def step_suspects(path: Sequence[bytes], hops: int) -> tuple[Suspect, ...]:
    """Who may be at fault if a circuit of `hops` hops does not get the next one."""
    before = [(relay, Role.CARRIES) for relay in path[: max(0, hops - 1)]]
    asked = [(path[hops - 1], Role.EXTENDS)] if hops else []
    return (*before, *asked, (path[hops], Role.ACCEPTS))


def trials(outcome: Outcome) -> list[Trial]:
    """What a probe shows of building and keeping circuits."""
    if outcome.void:
        return []
    path, began = outcome.path, outcome.began
    found = [Trial(began, step_suspects(path, hops), False) for hops in range(outcome.hops)]
    if not outcome.failed:
        if outcome.built:
            found.append(Trial(outcome.ended, _carriers(path), False))
        return found
    if outcome.reason in _OUR_OWN:
        return found
    suspects = _carriers(path) if outcome.built else step_suspects(path, outcome.hops)
    busy = outcome.reason in _BUSY
    if outcome.hops and (busy or outcome.reason == DestroyReason.CHANNEL_CLOSED):
        # The first hop says so of itself, or its link with us was lost: the others have no part in it.
        suspects = tuple(one for one in suspects if one[0] == path[0]) or suspects
    found.append(Trial(outcome.ended, suspects, True, busy))
    return found


def _carriers(path: Sequence[bytes]) -> tuple[Suspect, ...]:
    return tuple((relay, Role.CARRIES) for relay in path)


def delay_trial(outcome: Outcome) -> Trial | None:
    """What a probe shows of delays; None when there were too few round trips."""
    if outcome.void or not outcome.built or len(outcome.trips) < LEAST_TRIPS:
        return None
    late = late_trips(outcome.trips)
    is_late = len(late) >= max(LEAST_LATE, LATE_SHARE * len(outcome.trips))
    at = late[LEAST_LATE - 1] if is_late else outcome.ended
    return Trial(at, tuple((relay, Role.DELAYS) for relay in outcome.path), is_late)


def late_trips(trips: Sequence[tuple[float, float]]) -> list[float]:
    """When round trips were over that took much longer than the quickest of the same circuit."""
    seconds = sorted(took for _, took in trips)
    quickest, quarter = seconds[0], seconds[len(seconds) // 4]
    limit = quickest + max(LATE, SPREAD * (quarter - quickest))
    return [at for at, took in trips if took > limit]
