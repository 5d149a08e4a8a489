"""Investigations: probes over circuits find relays that do harm (docs/investigate.md).

One investigation runs at a time, asked for by a controller. Beside it a few probes an hour go out in the background,
through the guard as ordinary circuits do. Both feed the same scores, which are kept in the file `scores.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from backrooms.crypto.keys import fingerprint, parse_id
from backrooms.errors import BackroomsError, ConfigError, PathError
from backrooms.interfaces import Rng
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory
from backrooms.node.circuits import Circuits
from backrooms.node.exitcompare import Url
from backrooms.node.inquiry import Ground, Inquiry, Order, TrialLog
from backrooms.node.paths import Paths
from backrooms.node.probes import Lag, Probe
from backrooms.node.scorefile import ScoreFile
from backrooms.path.constraints import Position
from backrooms.path.guards import PRIMARY
from backrooms.path.outcomes import Outcome
from backrooms.path.probepaths import ProbePaths, probe_hops
from backrooms.path.reputation import DISTRUSTED, Score
from backrooms.path.route import Route
from backrooms.path.scores import Trial
from backrooms.path.verdicts import Judgement, judge

log = Logger()

ALL = "all"
PATH = "path"
DEFAULT_MINUTES = 2.6
"""What is bad is named and avoided before three minutes are over."""
MOST_MINUTES = 240.0
LEAST_RELAYS = 3
BACKGROUND_LEAST = 300.0
"""Seconds after the start before which no probe goes out in the background."""
BACKGROUND_HOLD = 3.0, 20.0
MEMORY = 6 * 3600.0
"""Seconds for which what background probes showed is remembered."""
MOST_TRIALS = 4_000


class Investigator:
    """Investigates relays for this client, and remembers what was found."""

    def __init__(
        self,
        circuits: Circuits,
        paths: Paths,
        directory: Directory,
        state: Path,
        rng: Rng,
        rate: float,
        avoid: bool,
    ) -> None:
        """`rate` is in background probes per hour; with `avoid` new paths go around relays with bad scores."""
        self.on_progress: Callable[[], None] = lambda: None
        """Called when there is something new to tell of an investigation."""
        self.inquiry: Inquiry | None = None
        """The investigation that runs, or the last one."""
        self._circuits = circuits
        self._timers = circuits.timers
        self._paths = paths
        self._directory = directory
        self._rng = rng
        self._rate = rate
        self._avoid = avoid
        self._file = ScoreFile(state, self._timers)
        self.scores = self._file.load()
        self._lag = Lag(self._timers)
        self._evidence = TrialLog()
        self._probes: ProbePaths | None = None
        self._probes_for: tuple[int, tuple[bytes, ...]] | None = None
        self._background: Deferred[Outcome] | None = None
        self._call: Any = None
        paths.shun.append(self.avoided)

    # starting and stopping

    def start(self) -> None:
        """Begin with probes in the background."""
        self._plan(BACKGROUND_LEAST)

    def stop(self) -> None:
        """End all probes."""
        self.rest()
        if self.inquiry is not None:
            self.inquiry.stop()

    def rest(self) -> None:
        """No probes in the background until `resume`: the client sleeps."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._background is not None:
            self._background.cancel()

    def resume(self) -> None:
        """Go on with probes in the background."""
        if self._call is None:
            self._plan(0.0)

    def configure(self, rate: float, avoid: bool) -> None:
        """Take new options."""
        self._rate, self._avoid = rate, avoid
        if self._call is not None:
            self._call.cancel()
            self._plan(0.0)

    # what it is for

    def avoided(self) -> Collection[bytes]:
        """The relays that new paths should not use if there are others; none where `avoid` is off."""
        return self.scores.avoided(self._timers.wall()) if self._avoid else ()

    def forget(self, target: str) -> int:
        """Forget the score of a relay, or of `all`; how many there were. `ConfigError` if there is no such relay."""
        relay = None if target == ALL else self._id(target)
        count = self.scores.forget(relay)
        if relay is None:
            self._evidence = TrialLog()
        else:
            self._evidence = _without(self._evidence, relay)
        self._file.save(self.scores)
        return count

    def _id(self, text: str) -> bytes:
        """The id that a relay's id, fingerprint or nickname stands for; `ConfigError` if it is none or not clear."""
        try:
            return parse_id(text)
        except ValueError:
            pass
        wanted = text.removeprefix("$").upper()
        relays = self._directory.relays()
        found = [one.id for one in relays if wanted == one.fingerprint or text.lower() == one.nickname.lower()]
        found = found or [one.id for one in relays if len(wanted) >= 8 and one.fingerprint.startswith(wanted)]
        if len(found) == 1:
            return found[0]
        raise ConfigError(f"{text!r}: {len(found) or 'no'} relays are called so; use an id or a fingerprint")

    # investigations

    def begin(self, target: str, minutes: float = 0.0, url: str = "", *, guarded: bool = False) -> None:
        """Investigate `all`, one relay, or the relays of circuit N (`path N`). `BackroomsError` if it cannot be.

        With `guarded` probes enter the network by the guards only. 0 minutes stand for the default.
        """
        if self.inquiry is not None and self.inquiry.state == "running":
            raise ConfigError("an investigation is running; stop it first")
        if not 0 <= minutes <= MOST_MINUTES:
            raise ConfigError(f"{minutes:g} minutes: at most {MOST_MINUTES:g}")
        if url:
            Url.parse(url)
        targets = self._targets(target)
        ground = self._ground(targets, guarded)
        order = Order(target, targets, 60.0 * (minutes or DEFAULT_MINUTES), url)
        self._circuits.go_active()
        self.inquiry = Inquiry(order, ground, self._circuits, self._rng, self._lag, self._looked)
        self.inquiry.start().addCallback(lambda _: self.on_progress())

    def end(self) -> bool:
        """Stop the investigation; whether one was running."""
        running = self.inquiry is not None and self.inquiry.state == "running"
        if self.inquiry is not None and running:
            self.inquiry.stop()
        return running

    def _targets(self, target: str) -> tuple[bytes, ...]:
        if target == ALL:
            return ()
        word, _, rest = target.partition(" ")
        if word == PATH:
            circuit = self._circuits.circuits.get(int(rest)) if rest.isdecimal() and len(rest) < 18 else None
            if circuit is None:
                raise ConfigError(f"{rest!r}: no such circuit; `backrooms circuits` lists them")
            return tuple(relay.id for relay in circuit.path)
        relay = self._id(target)
        if self._directory.get(relay) is None:
            raise ConfigError("this relay is not in the list of relays")
        return (relay,)

    def _ground(self, targets: Collection[bytes], guarded: bool) -> Ground:
        """Where probes may go: as the rules allow. Who is named outright is tried whatever rule excludes it."""
        selector = self._paths.selectors.get(Route(self._circuits.options.level))
        roster = selector.roster.by_id
        rows = [row for row in selector.rows if selector.may_stand(row.id, Position.MIDDLE)]
        known = {row.id for row in rows}
        rows += [roster[one] for one in targets if one in roster and one not in known]
        if len(rows) < LEAST_RELAYS:
            raise PathError(
                f"{len(rows)} of {len(selector.rows)} relays may be on paths: "
                f"with less than {LEAST_RELAYS} nobody can be told from the others"
            )
        if guarded:
            entries = {one.id for group in self._paths.entries(selector)[:PRIMARY] for one in group}
        else:
            entries = {row.id for row in rows if row.id in targets or selector.may_stand(row.id, Position.ENTRY)}
        return Ground(rows, entries, selector)

    def _looked(self, judged: dict[bytes, Judgement], last: bool) -> None:
        """An investigation has looked at what it knows."""
        assert self.inquiry is not None
        self._note([one for one in judged.values() if last or one.verdict.is_bad], self.inquiry.started)
        self.on_progress()

    def _note(self, judged: list[Judgement], since: float) -> None:
        before = self.avoided()
        wall = self._timers.wall()
        if not self.scores.note(judged, wall, since):
            return
        self._file.save(self.scores)
        new = self.scores.avoided(wall) - frozenset(before) if self._avoid else frozenset()
        for one in judged:
            if one.relay in new:
                name = fingerprint(one.relay)[:8]
                log.warn("relay {name} is avoided: {what}", name=name, what=_said(one))
            self._doubt_guard(one)
        self._circuits.wake()  # spares through them give way

    def _doubt_guard(self, judgement: Judgement) -> None:
        """Give a guard up that does harm beyond doubt. Less is not enough: who makes us change guards gains by it."""
        relay, score = judgement.relay, self.scores.get(judgement.relay)
        if score is None or not score.verdict.is_bad or score.strength < DISTRUSTED or not self._avoid:
            return
        self._paths.guards.distrust(relay, _said(judgement))

    def report(self) -> dict[str, Any] | None:
        """The investigation that runs, or the last one, for JSON; None when there was none."""
        if self.inquiry is None:
            return None
        found = self.inquiry.report()
        avoided = self.avoided()
        for one in found["relays"]:
            one["avoided"] = bytes.fromhex(one["id"]) in avoided
        return found

    def remembered(self) -> list[dict[str, Any]]:
        """What is remembered of relays, the worst first."""
        wall, avoided = self._timers.wall(), self.avoided()
        found = sorted(((score.now(wall), relay, score) for relay, score in self.scores), reverse=True, key=_worst)
        return [
            {
                "fingerprint": fingerprint(relay),
                "verdict": score.verdict.value,
                "strength": round(left, 1),
                "at": score.at,
                "text": score.text,
                "avoided": relay in avoided,
            }
            for left, relay, score in found
        ]

    # in the background

    def _plan(self, least: float) -> None:
        self._call = None
        if self._rate > 0:
            pause = max(least, 3600.0 / self._rate * (0.5 + self._rng.random()))
            self._call = self._timers.at(self._timers.now() + pause, self._probe)

    def _probe(self) -> None:
        self._plan(0.0)
        running = self.inquiry is not None and self.inquiry.state == "running"
        if running or self._background is not None or self._circuits.dormant or not self._circuits.ever_built:
            return
        path = self._background_path()
        if path is None:
            return
        least, most = BACKGROUND_HOLD
        hold = least + (most - least) * self._rng.random()
        probe = Probe(self._circuits, self._circuits.options.level, path, hold, self._rng, self._lag)
        self._background = Deferred.fromCoroutine(probe.run())
        self._background.addCallback(self._take)
        self._background.addBoth(self._probed)

    def _background_path(self) -> list[Descriptor] | None:
        try:
            ground = self._ground((), guarded=True)
        except BackroomsError:
            return None
        key = self._directory.revision, tuple(sorted(ground.entries))
        if self._probes is None or self._probes_for != key:
            hops = probe_hops(self._circuits.options.level.hops, len(ground.rows))
            paths = ProbePaths(ground.rows, ground.selector.constraints, hops, ground.entries)
            if self._probes is not None:
                paths.turns.update(self._probes.turns)
            self._probes, self._probes_for = paths, key
        return self._probes.next(self._rng)

    def _take(self, outcome: Outcome) -> None:
        evidence = self._evidence
        wrong = evidence.add(outcome)
        since = self._timers.now() - MEMORY
        for kind in (evidence.kept, evidence.delays):
            old = sum(trial.at < since for trial in kind)
            del kind[: max(old, len(kind) - MOST_TRIALS)]
        if wrong:
            judged = judge(outcome.path, evidence.kept, evidence.delays)
            self._note([one for one in judged.values() if one.verdict.is_bad], self._timers.wall() - MEMORY)

    def _probed(self, result: Any) -> None:
        self._background = None
        if isinstance(result, Failure) and not result.check(CancelledError):  # type: ignore[no-untyped-call]
            log.failure("bug in a probe", result)


def _without(evidence: TrialLog, relay: bytes) -> TrialLog:
    """What was shown by probes that did not touch a relay."""

    def free(trial: Trial) -> bool:
        return all(one != relay for one, _ in trial.suspects)

    return TrialLog(list(filter(free, evidence.kept)), list(filter(free, evidence.delays)))


def _worst(entry: tuple[float, bytes, Score]) -> tuple[float, bytes]:
    return entry[:2]


def _said(judgement: Judgement) -> str:
    """A judgement for the log, without names."""
    return f"{judgement.verdict.value} ({'; '.join(judgement.evidence)})"
