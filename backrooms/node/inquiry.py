"""One investigation: so many probes in so many minutes, and what they show."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from backrooms.interfaces import Rng
from backrooms.node.circuits import Circuits
from backrooms.node.exitcompare import ExitComparison
from backrooms.node.probes import Lag, Probe
from backrooms.path.declared import notes
from backrooms.path.outcomes import Outcome, delay_trial, trials
from backrooms.path.probepaths import ProbePaths, probe_hops
from backrooms.path.roster import Candidate
from backrooms.path.scores import Role, Trial
from backrooms.path.selector import PathSelector
from backrooms.path.verdicts import Judgement, Verdict, judge

log = Logger()

RATE = 2.5
"""Probes started each second."""
MOST_AT_ONCE = 32
LOOK = 5.0
"""Seconds between looks at what was found."""
HOLDS = ((0.7, 3.0), (0.9, 8.0), (1.0, 20.0))
"""How long circuits are kept: shares of probes up to which, seconds."""
SHORTEST_HOLD = 2.0
ENOUGH = {Role.CARRIES: 200, Role.EXTENDS: 70, Role.DELAYS: 40}
"""Trials of each relay in question, in each role, after which nothing new is to be expected."""
SLOW = 0.15
"""Seconds that a relay adds to round trips from which on it is called slow."""


class Ground(NamedTuple):
    """Where probes may go: relays, those of them that may be the first hop, and the rules they keep to."""

    rows: Sequence[Candidate]
    entries: Collection[bytes]
    selector: PathSelector


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for. No targets: all relays."""

    text: str
    targets: tuple[bytes, ...]
    seconds: float
    url: str = ""


@dataclass(slots=True)
class TrialLog:
    """What probes have shown."""

    kept: list[Trial] = field(default_factory=list)
    delays: list[Trial] = field(default_factory=list)

    def add(self, outcome: Outcome) -> bool:
        """Take in a probe; whether something was wrong with it."""
        found = trials(outcome)
        self.kept += found
        delay = delay_trial(outcome)
        if delay is not None:
            self.delays.append(delay)
        return any(trial.failed for trial in found) or (delay is not None and delay.failed)


class Inquiry:
    """Runs once. `on_look` is called with all judgements every few seconds, and with True at the end."""

    def __init__(
        self,
        order: Order,
        ground: Ground,
        circuits: Circuits,
        rng: Rng,
        lag: Lag,
        on_look: Callable[[dict[bytes, Judgement], bool], None],
    ) -> None:
        self.order = order
        self.state = "running"
        self.judged: dict[bytes, Judgement] = {}
        self.named_after: dict[bytes, float] = {}
        """Seconds until a relay was first found bad."""
        self.evidence = TrialLog()
        self.counts = {"started": 0, "finished": 0, "failed": 0, "void": 0, "round_trips": 0}
        self.comparison: ExitComparison | None = None
        self.started = circuits.timers.wall()
        self._ground = ground
        self._circuits = circuits
        self._timers = circuits.timers
        self._rng = rng
        self._lag = lag
        self._on_look = on_look
        self._level = circuits.options.level
        hops = probe_hops(self._level.hops, len(ground.rows))
        self._paths = ProbePaths(ground.rows, ground.selector.constraints, hops, ground.entries, order.targets)
        self._targets = order.targets or tuple(row.id for row in ground.rows)
        self._quickest: list[tuple[tuple[bytes, ...], float]] = []
        """The path of each probe, and its quickest round trip."""
        self._active: set[Deferred[Outcome]] = set()
        self._began = self._timers.now()
        self._ended: float | None = None
        self._task: Deferred[None] | None = None

    # running

    def start(self) -> Deferred[None]:
        """Begin; fires when it is over, however that came."""
        self._task = Deferred.fromCoroutine(self._run())
        done: Deferred[None] = Deferred()

        def over(result: Any) -> None:
            if isinstance(result, Failure):
                if not result.check(CancelledError):  # type: ignore[no-untyped-call]
                    log.failure("bug in an investigation", result)
                self.state = "stopped"
            self._finish()
            done.callback(None)

        self._task.addBoth(over)
        return done

    def stop(self) -> None:
        """End it now; what was found until now stands."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        self._lag.start()
        end = self._began + self.order.seconds
        next_look = self._began + LOOK
        if self.order.url:
            exits = [row.relay for row in self._ground.rows if row.is_exit and row.id in self._targets]
            if len(exits) < 2:  # there must be somebody to compare with
                exits = [row.relay for row in self._ground.rows if row.is_exit]
            self.comparison = ExitComparison(self.order.url, exits, self._paths, self._circuits, self._rng)
            self._begin(Deferred.fromCoroutine(self.comparison.run()))
        while (now := self._timers.now()) < end and not self._is_enough():
            if len(self._active) < MOST_AT_ONCE:
                self._launch(end - now)
            if now >= next_look:
                next_look = now + LOOK
                self._look()
            await self._timers.sleep((0.5 + self._rng.random()) / RATE)
        while self._active:
            await self._timers.sleep(0.1)
        self.state = "done"

    def _launch(self, left: float) -> None:
        path = self._paths.next(self._rng)
        if path is None:
            return
        draw = self._rng.random()
        hold = next(seconds for share, seconds in HOLDS if draw <= share)
        probe = Probe(self._circuits, self._level, path, max(SHORTEST_HOLD, min(hold, left)), self._rng, self._lag)
        self.counts["started"] += 1
        running = Deferred.fromCoroutine(probe.run())
        running.addCallback(self._take)
        self._begin(running)

    def _begin(self, running: Deferred[Any]) -> None:
        self._active.add(running)

        def over(result: Any) -> None:
            self._active.discard(running)
            if isinstance(result, Failure) and not result.check(CancelledError):  # type: ignore[no-untyped-call]
                log.failure("bug in a probe", result)

        running.addBoth(over)

    def _take(self, outcome: Outcome) -> None:
        counts = self.counts
        counts["finished"] += 1
        counts["failed"] += outcome.failed and not outcome.void
        counts["void"] += outcome.void
        counts["round_trips"] += len(outcome.trips)
        self.evidence.add(outcome)
        if outcome.trips:
            self._quickest.append((outcome.path, min(took for _, took in outcome.trips)))

    def _finish(self) -> None:
        for running in list(self._active):
            running.cancel()
        self._lag.stop()
        self._ended = self._timers.now()
        self._look(last=True)

    # what was found

    def _look(self, last: bool = False) -> None:
        self.judged = judge(self._targets, self.evidence.kept, self.evidence.delays)
        for relay, one in self.judged.items():
            if one.verdict.is_bad:
                self.named_after.setdefault(relay, self.elapsed)
        self._on_look(self.judged, last)

    def _share_done(self) -> float:
        """How much of what is enough has been tried, for the relay of which least was."""
        figures: dict[tuple[bytes, Role], int] = {}
        for trial in (*self.evidence.kept, *self.evidence.delays):
            for suspect in trial.suspects:
                figures[suspect] = figures.get(suspect, 0) + 1
        roles = [role for role in ENOUGH if role is not Role.EXTENDS or len(self._ground.rows) > 1]
        return min(
            (figures.get((relay, role), 0) / ENOUGH[role] for relay in self._targets for role in roles), default=1.0
        )

    def _is_enough(self) -> bool:
        # Counting is only worth while when enough probes may have been made.
        least = ENOUGH[Role.DELAYS] * len(self._targets) / 12
        return self.counts["finished"] > least and self.counts["finished"] % 8 == 0 and self._share_done() >= 1

    @property
    def elapsed(self) -> float:
        """Seconds that it has run."""
        return (self._timers.now() if self._ended is None else self._ended) - self._began

    def progress(self) -> float:
        """How far it is, 0 to 1."""
        if self.state != "running":
            return 1.0
        return min(0.99, max(self.elapsed / self.order.seconds, self._share_done()))

    def report(self) -> dict[str, Any]:
        """All of it, for JSON."""
        rows = {row.id: row for row in self._ground.rows}
        roster = self._ground.selector.roster.by_id
        relays = []
        for relay in self._targets:
            row, one = rows[relay], self.judged.get(relay)
            typical = _median(took for path, took in self._quickest if relay in path)
            usual = _median(took for path, took in self._quickest if relay not in path)
            said = notes(row, roster)
            if typical is not None and usual is not None and typical - usual > SLOW:
                said.append(f"is slow: {typical * 1000:.0f} ms a round trip, {usual * 1000:.0f} ms without it")
            relays.append(
                {
                    "id": relay.hex(),
                    "fingerprint": row.relay.fingerprint,
                    "nickname": row.relay.nickname,
                    "verdict": (one.verdict if one is not None else Verdict.UNTESTED).value,
                    "bad": one is not None and one.verdict.is_bad,
                    "strength": round(one.strength, 1) if one is not None else 0.0,
                    "named_after": self.named_after.get(relay),
                    "figures": one.figures if one is not None else {},
                    "evidence": one.evidence if one is not None else [],
                    "notes": said,
                    "round_trip_ms": None if typical is None else round(typical * 1000, 1),
                }
            )
        return {
            "state": self.state,
            "target": self.order.text,
            "started": self.started,
            "elapsed": round(self.elapsed, 1),
            "limit": self.order.seconds,
            "progress": round(self.progress(), 3),
            "probes": self.counts,
            "relays": relays,
            "exits": self.comparison.report() if self.comparison is not None else None,
        }


def _median(numbers: Iterable[float]) -> float | None:
    found = list(numbers)
    return median(found) if found else None
