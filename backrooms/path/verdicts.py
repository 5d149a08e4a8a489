"""What is said of a relay after probes, in figures and in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import exp, log

from backrooms.path.scores import DEAD_SHARE, Finding, Role, Trial, find, tallies

ENOUGH = 30
"""Circuits through a relay after which silence about it means something."""
_HOPELESS_LEAST, _HOPELESS_SHARE = 3, 0.9
MOST_ODDS = 9
"""Power of ten beyond which odds mean nothing: the model itself is not that exact."""


class Verdict(StrEnum):
    """What a relay is like."""

    FINE = "fine"
    UNTESTED = "too few probes"
    DESTROYS = "destroys circuits"
    REFUSES = "refuses to extend"
    DELAYS = "delays cells"
    OVERLOADED = "overloaded"
    UNREACHABLE = "unreachable"

    @property
    def is_bad(self) -> bool:
        """Whether it is no accident, as far as one can tell."""
        return self in _BAD


_BAD = (Verdict.DESTROYS, Verdict.REFUSES, Verdict.DELAYS)
_BY_ROLE = {Role.CARRIES: Verdict.DESTROYS, Role.EXTENDS: Verdict.REFUSES, Role.DELAYS: Verdict.DELAYS}
_WORDS = {
    Role.ACCEPTS: "refused {failed} of {tried} circuits",
    Role.EXTENDS: "of {tried} times that it was to extend a circuit, {failed} failed",
    Role.CARRIES: "of {tried} times that circuits through it grew or were held, {failed} ended early",
    Role.DELAYS: "of {tried} circuits through it, {failed} had round trips that took much longer than others",
}


@dataclass(slots=True)
class Judgement:
    """One relay: `figures` are trials and failed ones in each role, `strength` is a logarithm of a likelihood ratio."""

    relay: bytes
    verdict: Verdict
    strength: float
    figures: dict[str, tuple[int, int]]
    evidence: list[str] = field(default_factory=list)
    """Sentences."""


def judge(relays: Iterable[bytes], kept: Sequence[Trial], delays: Sequence[Trial]) -> dict[bytes, Judgement]:
    """A judgement of each relay, from trials of building and keeping circuits, and from those of delays."""
    findings: dict[bytes, list[Finding]] = {}
    for finding in [*find(kept), *find(delays)]:
        findings.setdefault(finding.relay, []).append(finding)
    counts = tallies([*kept, *delays])
    alone: dict[bytes, list[Trial]] = {}
    """Failures of which nobody else can be suspected, by relay."""
    for trial in kept:
        if trial.failed and len({one for one, _ in trial.suspects}) == 1:
            alone.setdefault(trial.suspects[0][0], []).append(trial)
    judged: dict[bytes, Judgement] = {}
    for relay in relays:
        figures = {role: counts.get((relay, role), (0, 0, 0))[:2] for role in Role}
        mine = sorted(findings.get(relay, ()), key=lambda one: -one.ratio)
        verdict, said = _verdict(mine, figures, alone.get(relay, ()))
        judged[relay] = Judgement(
            relay,
            verdict,
            max([0.0, *(one.ratio for one in mine)]),
            {role.value: numbers for role, numbers in figures.items()},
            [*said, *(sentence(one) for one in mine)],
        )
    return judged


def _verdict(
    findings: Sequence[Finding], figures: dict[Role, tuple[int, int]], alone: Sequence[Trial]
) -> tuple[Verdict, list[str]]:
    by_role = {one.role: one for one in findings}
    accepts = by_role.get(Role.ACCEPTS)
    tried, refused = figures[Role.ACCEPTS]
    if (accepts is not None and accepts.share >= DEAD_SHARE) or (
        tried >= _HOPELESS_LEAST and refused >= _HOPELESS_SHARE * tried
    ):
        return Verdict.UNREACHABLE, [f"{refused} of {tried} circuits did not get to it"]
    worst = next((one for one in findings if one.role != Role.ACCEPTS), None)
    busy = sum(trial.busy for trial in alone)
    said = [f"as first hop it said {busy} times that it is busy or shutting down"] if busy else []
    if worst is not None:
        excused = worst.role != Role.DELAYS and busy > 0 and 2 * busy >= len(alone)
        return (Verdict.OVERLOADED if excused else _BY_ROLE[worst.role]), said
    if accepts is not None:
        return Verdict.OVERLOADED, said
    return (Verdict.FINE if figures[Role.CARRIES][0] >= ENOUGH else Verdict.UNTESTED), said


def sentence(finding: Finding) -> str:
    """A finding in plain words, with its figures."""
    what = _WORDS[finding.role].format(tried=finding.tried, failed=finding.failed)
    return (
        f"{what}; {finding.share:.0%} by its doing, while {finding.elsewhere:.1%} fail without it; "
        f"odds against chance {_odds(finding.ratio)}, against any other relay {_odds(finding.margin)}"
    )


def _odds(logarithm: float) -> str:
    """A likelihood ratio, rounded down."""
    power = int(max(0.0, logarithm) / log(10))
    if power < 3:
        return f"{int(exp(max(0.0, logarithm)))}:1"
    return f"10^{power}:1" if power <= MOST_ODDS else f"more than 10^{MOST_ODDS}:1"
