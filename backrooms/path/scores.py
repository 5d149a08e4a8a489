"""From what happened to probes to the relay that did it.

A probe is a circuit of ours, and what it does is a row of *trials*: each had some *suspects*, a relay in a role, and
went well or failed. A trial fails by the noise of the network, or because one of its suspects made it fail. With few
bad relays the one that is on all failed trials, and on few that went well, stands out: it is found by the likelihood
ratio of "this one does it" against "it is noise", with those that were found before taken out first, so that nobody
is blamed for its neighbour (group testing with a noisy OR; fitted by expectation maximisation).

A relay is named when all of these hold:

* the ratio is above (relays * roles) / `FALSE_NAMING`;
* e^`MARGIN` of it is left when any other relay is taken for a culprit first: where two cannot be told apart, nobody is
  named;
* something is left without the neighbour that is on most of its failures: a bad way between two relays names neither;
* the share that it spoils is at least `LEAST_SHARE`, by its lower bound.

Failures at one moment count once: a relay that is started anew ends all its circuits together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf, log, sqrt

FALSE_NAMING = 1e-4
"""The chance, about, that an honest relay is named in one look at a network. Simulations show less."""
MARGIN = 6.0
"""Natural logarithm of the ratio that must be left when another relay is taken for a culprit first."""
RIVALS = 4
"""Other relays for which that is tried: those that would explain most."""
LEFT_WITHOUT_PARTNER = 3.0
"""Natural logarithm of the ratio that must be left without the neighbour that is there most often."""
LEAST_SHARE = 0.04
"""A relay that spoils less than this share of what it is asked is not named: links fail by themselves, too."""
BURST = 0.5
"""Seconds within which failures count once."""
MAX_CULPRITS = 6
"""Found in one look; with more than that there is no network to compare with."""
MAX_SUSPECTS = 32
"""Those on most failures are looked at; the culprit is one of them."""
DEAD_SHARE = 0.7
"""A relay that refuses this share of circuits is not there, as far as we can tell."""
LEAST_TRIALS = 15
"""Trials with a relay, and without it, before it may be named."""
_NOISE_TRIALS, _NOISE_FAILED = 10.0, 0.1
"""What is believed of the noise before anything was tried."""
_STEPS = 60
_CLOSE = 1e-4
"""A step that changes shares by less is the last one."""
_LOWER = 1.64


class Role(StrEnum):
    """What a relay had to do in a trial."""

    ACCEPTS = "accepts"
    """Answer CREATE."""
    EXTENDS = "extends"
    """Reach the next relay."""
    CARRIES = "carries"
    """Keep a circuit."""
    DELAYS = "delays"
    """Pass cells on at once."""


Suspect = tuple[bytes, Role]


@dataclass(frozen=True, slots=True)
class Trial:
    """Something that was tried. `suspects` could have made it fail; `busy` if the relay itself said that it was."""

    at: float
    suspects: tuple[Suspect, ...]
    failed: bool
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A relay that makes trials fail in one role. The shares are of trials, `elsewhere` of those without it."""

    relay: bytes
    role: Role
    tried: int
    failed: int
    share: float
    elsewhere: float
    ratio: float
    """Natural logarithm of the likelihood ratio."""
    margin: float
    """What is left of it, at least, when another relay is taken for a culprit first."""


def merge_bursts(trials: Iterable[Trial]) -> list[Trial]:
    """The trials in order of time, failures of one moment as one trial of those that were on all of them."""
    merged: list[Trial] = []
    last: int | None = None
    for trial in sorted(trials, key=lambda one: one.at):
        if trial.failed and last is not None:
            before = merged[last]
            common = tuple(one for one in before.suspects if one in trial.suspects)
            if trial.at - before.at <= BURST and common:
                merged[last] = Trial(before.at, common, True, before.busy)
                continue
        if trial.failed:
            last = len(merged)
        merged.append(trial)
    return merged


_Counts = dict[int, list[float]]
"""By which of the modelled suspects were there (a bit each): trials, failed ones."""
_Group = tuple[float, float, list[int]]
"""Trials, failed ones, and the numbers of the modelled suspects that were there."""


class _Data:
    """Trials, and where each suspect was."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials = trials
        self.of: dict[Suspect, list[int]] = {}
        for number, trial in enumerate(trials):
            for suspect in trial.suspects:
                self.of.setdefault(suspect, []).append(number)
        self.masks = [0] * len(trials)
        """Which of the model's suspects were on each trial."""
        self.model: list[Suspect] = []
        self.counts: _Counts = {0: [_NOISE_TRIALS, _NOISE_FAILED]}
        for trial in trials:
            self.counts[0][0] += 1
            self.counts[0][1] += trial.failed

    def counts_with(self, suspect: Suspect) -> _Counts:
        """The counts for the model with one suspect more."""
        bit = 1 << len(self.model)
        counts = {mask: list(entry) for mask, entry in self.counts.items()}
        for number in self.of.get(suspect, ()):
            mask, failed = self.masks[number], self.trials[number].failed
            counts[mask][0] -= 1
            counts[mask][1] -= failed
            entry = counts.setdefault(mask | bit, [0.0, 0.0])
            entry[0] += 1
            entry[1] += failed
        return counts

    def add(self, suspect: Suspect) -> None:
        """Make a suspect part of the model."""
        self.counts = self.counts_with(suspect)
        bit = 1 << len(self.model)
        for number in self.of.get(suspect, ()):
            self.masks[number] |= bit
        self.model.append(suspect)

    def copy(self) -> _Data:
        """The same, to be changed."""
        other = _Data.__new__(_Data)
        other.trials, other.of = self.trials, self.of
        other.masks, other.model, other.counts = list(self.masks), list(self.model), self.counts
        return other

    def gain(self, suspect: Suspect, base: float) -> tuple[float, float, float]:
        """What the logarithm of the likelihood gains by a suspect over `base`; the noise, and the share it spoils."""
        likelihood, noise, shares = _fit(self.counts_with(suspect), len(self.model) + 1)
        return likelihood - base, noise, shares[-1]

    def base(self) -> float:
        """The logarithm of the likelihood with the model as it is."""
        return _fit(self.counts, len(self.model))[0]


def _fit(counts: _Counts, size: int) -> tuple[float, float, list[float]]:
    """Likelihood (its logarithm), the share of noise, and the share that each of `size` suspects spoils."""
    groups = [
        (tried, failed, [index for index in range(size) if mask >> index & 1])
        for mask, (tried, failed) in counts.items()
        if tried
    ]
    total = sum(tried for tried, _, _ in groups)
    if size == 1 and len(groups) == 2:
        return _fit_one(groups)
    tries = [max(1.0, sum(tried for tried, _, members in groups if index in members)) for index in range(size)]
    noise = sum(failed for _, failed, _ in groups) / total
    shares = [0.3] * size
    for _ in range(_STEPS if size else 1):
        before = shares
        of_noise = 0.0
        of_each = [0.0] * size
        for _, failed, members in groups:
            if not failed:
                continue
            chance = _chance(noise, shares, members)
            of_noise += failed * noise / chance
            for index in members:
                of_each[index] += failed * shares[index] / chance
        noise = min(0.999, max(1e-4, of_noise / total))
        shares = [min(0.999, max(1e-6, found / count)) for found, count in zip(of_each, tries, strict=True)]
        if max((abs(new - old) for new, old in zip(shares, before, strict=True)), default=0.0) < _CLOSE:
            break
    return _likelihood(groups, noise, shares), noise, shares


def _fit_one(groups: Sequence[_Group]) -> tuple[float, float, list[float]]:
    """The same for one suspect, at once."""
    (tried, failed, _), (tried_with, failed_with, _) = sorted(groups, key=lambda group: len(group[2]))
    noise, with_it = failed / tried, failed_with / tried_with
    if with_it <= noise:
        noise = with_it = (failed + failed_with) / (tried + tried_with)
    noise = min(0.999, max(1e-4, noise))
    share = min(0.999, max(1e-6, 1.0 - (1.0 - with_it) / (1.0 - noise)))
    return _likelihood(groups, noise, [share]), noise, [share]


def _likelihood(groups: Iterable[_Group], noise: float, shares: Sequence[float]) -> float:
    total = 0.0
    for tried, failed, members in groups:
        chance = _chance(noise, shares, members)
        total += failed * log(chance) + (tried - failed) * log(1.0 - chance)
    return total


def _chance(noise: float, shares: Sequence[float], members: Sequence[int]) -> float:
    passes = 1.0 - noise
    for index in members:
        passes *= 1.0 - shares[index]
    return min(1.0 - 1e-9, 1.0 - passes)


def find(trials: Iterable[Trial]) -> list[Finding]:
    """The relays that make trials fail, the clearest first. About 10 ms for 2,000 trials."""
    data = _Data(merge_bursts(trials))
    failures = Counter(suspect for trial in data.trials if trial.failed for suspect in trial.suspects)
    enough = log(max(1, len(data.of)) / FALSE_NAMING)
    found: list[Finding] = []
    while len(found) < MAX_CULPRITS:
        base = data.base()
        suspects = [suspect for suspect, _ in failures.most_common(MAX_SUSPECTS) if suspect not in data.model]
        ranked = sorted(((data.gain(suspect, base)[0], suspect) for suspect in suspects), reverse=True)
        if not ranked or ranked[0][0] < enough:
            break
        ratio, best = ranked[0]
        rivals = [suspect for _, suspect in ranked if suspect[0] != best[0]][:RIVALS]
        finding = _judge(data, best, ratio, rivals)
        if finding is None:
            break
        found.append(finding)
        data.add(best)
    return found


def _judge(data: _Data, best: Suspect, ratio: float, rivals: Sequence[Suspect]) -> Finding | None:
    """The finding, if it is one."""
    tried = len(data.of[best])
    failed = sum(data.trials[number].failed for number in data.of[best])
    _, noise, share = data.gain(best, 0.0)
    margin = min([ratio, *(_left_beside(data, best, rival) for rival in rivals)])
    if (
        margin < MARGIN
        or min(tried, len(data.trials) - tried) < LEAST_TRIALS
        or share - _LOWER * sqrt(share * (1 - share) / tried) < LEAST_SHARE
        or _without_partner(data, best) < LEFT_WITHOUT_PARTNER
    ):
        return None
    return Finding(best[0], best[1], tried, failed, share, noise, ratio, margin)


def _left_beside(data: _Data, best: Suspect, rival: Suspect) -> float:
    """The likelihood ratio that is left when a rival is taken for a culprit, too."""
    beside = data.copy()
    beside.add(rival)
    return beside.gain(best, beside.base())[0]


def _without_partner(data: _Data, best: Suspect) -> float:
    """The likelihood ratio that is left when the relay that is on most of the failures, too, is left out."""
    accused = {best[0], *(relay for relay, _ in data.model)}
    partners: Counter[bytes] = Counter()
    for number in data.of[best]:
        if data.trials[number].failed:
            partners.update({relay for relay, _ in data.trials[number].suspects} - accused)
    if not partners:
        return inf
    partner = partners.most_common(1)[0][0]
    rest = _Data([trial for trial in data.trials if all(relay != partner for relay, _ in trial.suspects)])
    for suspect in data.model:
        rest.add(suspect)
    return rest.gain(best, rest.base())[0]


def tallies(trials: Iterable[Trial]) -> Mapping[Suspect, tuple[int, int, int]]:
    """For each relay in each role: how often it was tried, how often that failed, how often it said it was busy."""
    counts: dict[Suspect, tuple[int, int, int]] = {}
    for trial in trials:
        for suspect in trial.suspects:
            tried, failed, busy = counts.get(suspect, (0, 0, 0))
            counts[suspect] = (tried + 1, failed + trial.failed, busy + trial.busy)
    return counts
