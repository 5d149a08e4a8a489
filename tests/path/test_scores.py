"""Who is named, and who is not: the test of likelihoods over outcomes with known culprits, many times."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from backrooms.path.outcomes import Outcome, delay_trial, late_trips, step_suspects, trials
from backrooms.path.scores import Role, Trial, find, merge_bursts
from backrooms.path.verdicts import Verdict, judge
from backrooms.wire.cell import DestroyReason

A, B, C, D = (bytes([number]) * 32 for number in range(4))
IDS = [bytes([number]) * 32 for number in range(12)]
ROLES = {"destroys": Role.CARRIES, "refuses": Role.EXTENDS, "delays": Role.DELAYS}


class Model:
    """Probes of a network in which `bad` relays do harm to a share of circuits, EXTENDs or cells; all have noise."""

    def __init__(
        self, seed: int, relays: int = 6, bad: dict[int, str] | None = None, noise: float = 0.01, share: float = 0.2
    ) -> None:
        self.rng = random.Random(seed)
        self.ids = IDS[:relays]
        self.bad = {IDS[number]: kind for number, kind in (bad or {}).items()}
        self.noise = noise
        self.share = share
        self.now = 0.0
        self.kept: list[Trial] = []
        self.delays: list[Trial] = []

    def run(self, probes: int, hops: int = 3) -> Model:
        """So many probes, 0.4 s apart."""
        for _ in range(probes):
            self.now += 0.4
            self.add(self.probe(self.rng.sample(self.ids, hops)))
        return self

    def add(self, outcome: Outcome) -> None:
        self.kept += trials(outcome)
        delay = delay_trial(outcome)
        if delay is not None:
            self.delays.append(delay)

    def _does(self, relays: Sequence[bytes], kind: str) -> bool:
        hit = sum(self.bad.get(relay) == kind for relay in relays)
        return self.rng.random() < 1 - (1 - self.share) ** hit

    def probe(self, path: list[bytes]) -> Outcome:
        """What becomes of one probe."""
        rng, outcome = self.rng, Outcome(tuple(path), self.now)
        for hops in range(len(path)):
            if rng.random() < self.noise / 3 or (hops and self._does(path[hops - 1 : hops], "refuses")):
                outcome.failed, outcome.reason, outcome.ended = True, int(DestroyReason.DESTROYED), self.now
                return outcome
            outcome.hops = hops + 1
        outcome.ended = self.now + 3
        if rng.random() < self.noise or self._does(path, "destroys"):
            outcome.failed, outcome.reason = True, int(DestroyReason.DESTROYED)
            outcome.ended = self.now + 3 * rng.random()
        for number in range(20):
            late = sum(0.2 for _ in (1, 2) if self._does(path, "delays")) + 0.3 * (rng.random() < self.noise)
            outcome.trips.append((self.now + number * 0.15, 0.05 + 0.02 * rng.random() + late))
        return outcome

    def named(self) -> dict[bytes, Verdict]:
        judged = judge(self.ids, self.kept, self.delays)
        return {relay: one.verdict for relay, one in judged.items() if one.verdict.is_bad}


@pytest.mark.parametrize(("kind", "verdict"), [
    ("destroys", Verdict.DESTROYS), ("refuses", Verdict.REFUSES), ("delays", Verdict.DELAYS),
])  # fmt: skip
def test_b10_a_culprit_is_named_and_nobody_else(kind: str, verdict: Verdict) -> None:
    missed = 0
    for seed in range(30):
        model = Model(seed, bad={seed % 6: kind}).run(300)
        named = model.named()
        assert set(named) <= set(model.bad), f"seed {seed} names a neighbour"
        missed += named != {IDS[seed % 6]: verdict}
    assert missed == 0


def test_b10_nobody_is_named_among_the_honest() -> None:
    for seed in range(100):
        noise = (0.0, 0.01, 0.03, 0.1)[seed % 4]
        model = Model(seed, noise=noise)
        for _ in range(2):  # looks in between count, too
            assert model.run(150).named() == {}, f"seed {seed}, noise {noise}"


def test_two_culprits_of_different_kinds_are_told_apart() -> None:
    for seed in range(10):
        model = Model(seed, relays=8, bad={1: "destroys", 5: "delays"}).run(600)
        assert model.named() == {IDS[1]: Verdict.DESTROYS, IDS[5]: Verdict.DELAYS}


def test_two_culprits_of_one_kind_are_both_named() -> None:
    found = [set(Model(seed, relays=10, bad={1: "refuses", 5: "refuses"}).run(900).named()) for seed in range(6)]
    assert found == [{IDS[1], IDS[5]}] * 6


def test_a_small_harm_is_not_named_for_certain_and_never_blamed_on_others() -> None:
    for seed in range(10):
        model = Model(seed, bad={2: "destroys"}, share=0.03).run(300)
        assert set(model.named()) <= {IDS[2]}


def test_a_bad_way_between_two_relays_names_neither() -> None:
    for seed in range(10):
        model = Model(seed)
        for _ in range(400):
            model.now += 0.4
            path = model.rng.sample(model.ids, 3)
            outcome = model.probe(path)
            for hops in (1, 2):
                if {path[hops - 1], path[hops]} == {A, B} and outcome.hops >= hops:
                    outcome.hops, outcome.failed, outcome.reason = hops, True, int(DestroyReason.DESTROYED)
                    outcome.trips.clear()
            model.add(outcome)
        assert model.named() == {}, f"seed {seed}"


def test_a_relay_that_is_gone_is_unreachable_and_not_bad() -> None:
    model = Model(7)
    for _ in range(300):
        model.now += 0.4
        path = model.rng.sample(model.ids, 3)
        outcome = model.probe(path)
        if C in path and outcome.hops >= (at := path.index(C)):
            outcome = Outcome(tuple(path), model.now, at, model.now, True, int(DestroyReason.CONNECT_FAILED))
        model.add(outcome)
    judged = judge(model.ids, model.kept, model.delays)
    assert judged[C].verdict is Verdict.UNREACHABLE
    assert {one.verdict for relay, one in judged.items() if relay != C} == {Verdict.FINE}


def test_a_relay_that_is_started_anew_is_not_bad() -> None:
    """All circuits through it end at one moment, again and again: that is one failure each time."""
    for seed in range(10):
        model = Model(seed)
        for number in range(400):
            model.now += 0.4
            path = model.rng.sample(model.ids, 3)
            outcome = model.probe(path)
            restart = number // 80 * 32.0 + 31.0
            if C in path and outcome.began < restart < outcome.began + 3 and outcome.built:
                outcome.ended, outcome.failed, outcome.reason = restart, True, int(DestroyReason.DESTROYED)
            model.add(outcome)
        assert model.named() == {}


def test_a_relay_that_says_that_it_is_busy_is_overloaded() -> None:
    model = Model(3)
    for _ in range(300):
        model.now += 0.4
        path = model.rng.sample(model.ids, 3)
        outcome = model.probe(path)
        if D in path and model.rng.random() < 0.2:
            reason = DestroyReason.RESOURCE_LIMIT if path[0] == D else DestroyReason.DESTROYED
            outcome.hops, outcome.failed, outcome.reason = 3, True, int(reason)
        model.add(outcome)
    judged = judge(model.ids, model.kept, model.delays)
    assert judged[D].verdict is Verdict.OVERLOADED
    assert not judged[D].verdict.is_bad
    assert "busy" in " ".join(judged[D].evidence)


def test_where_nobody_can_be_told_from_another_nobody_is_named() -> None:
    """Three relays on every path: one of them does it, but which?"""
    model = Model(1, relays=3, bad={0: "destroys"}).run(200)
    assert model.named() == {}
    assert Model(1, relays=3, bad={0: "destroys"}).run(400, hops=2).named() == {IDS[0]: Verdict.DESTROYS}


def test_few_trials_say_nothing() -> None:
    model = Model(1).run(5)
    assert {one.verdict for one in judge(model.ids, model.kept, model.delays).values()} == {Verdict.UNTESTED}
    assert find([]) == []


def test_evidence_is_in_words_and_numbers() -> None:
    model = Model(4, bad={0: "refuses"}).run(300)
    judged = judge(model.ids, model.kept, model.delays)[A]
    assert "it was to extend a circuit" in judged.evidence[0]
    assert "odds against chance" in judged.evidence[0]
    tried, failed = judged.figures["extends"]
    assert 60 < tried < 140
    assert 8 < failed < 40


# trials of one probe


def test_a_failed_step_suspects_who_was_there() -> None:
    assert step_suspects((A, B, C), 0) == ((A, Role.ACCEPTS),)
    assert step_suspects((A, B, C), 1) == ((A, Role.EXTENDS), (B, Role.ACCEPTS))
    assert step_suspects((A, B, C), 2) == ((A, Role.CARRIES), (B, Role.EXTENDS), (C, Role.ACCEPTS))


def test_a_probe_that_ends_early_is_a_trial_of_all_its_relays() -> None:
    found = trials(Outcome((A, B, C), 1.0, 3, 2.0, True, int(DestroyReason.DESTROYED)))
    assert [trial.failed for trial in found] == [False, False, False, True]
    assert {relay for relay, _ in found[-1].suspects} == {A, B, C}


@pytest.mark.parametrize("reason", [DestroyReason.RESOURCE_LIMIT, DestroyReason.CHANNEL_CLOSED])
def test_what_the_first_hop_says_of_itself_suspects_nobody_else(reason: DestroyReason) -> None:
    last = trials(Outcome((A, B, C), 1.0, 3, 2.0, True, int(reason)))[-1]
    assert last.suspects == ((A, Role.CARRIES),)
    assert last.busy == (reason is DestroyReason.RESOURCE_LIMIT)


def test_a_probe_that_we_ended_ourselves_says_nothing() -> None:
    assert trials(Outcome((A, B), 1.0, 2, 2.0, void=True)) == []
    assert not any(one.failed for one in trials(Outcome((A, B), 1.0, 2, 2.0, True, int(DestroyReason.FINISHED))))


def test_failures_of_one_moment_are_one() -> None:
    one, two = ((A, Role.CARRIES), (B, Role.CARRIES)), ((A, Role.CARRIES), (C, Role.CARRIES))
    merged = merge_bursts([Trial(5.0, one, True), Trial(5.2, two, True), Trial(5.3, one, False), Trial(9.0, two, True)])
    assert [(trial.suspects, trial.failed) for trial in merged] == [
        (((A, Role.CARRIES),), True),
        (one, False),
        (two, True),
    ]


def test_late_is_what_takes_much_longer_than_the_quickest() -> None:
    trips = [(float(number), 0.05 + 0.001 * number) for number in range(16)]
    assert late_trips(trips) == []
    assert late_trips([*trips, (20.0, 0.25), (21.0, 0.45)]) == [20.0, 21.0]


def test_where_all_round_trips_vary_none_is_late() -> None:
    rng = random.Random(1)
    trips = [(float(number), 0.3 + sum(rng.uniform(0, 0.08) for _ in range(4))) for number in range(40)]
    assert len(late_trips(trips)) <= 1


def test_a_few_round_trips_say_nothing_about_delay() -> None:
    few = Outcome((A, B), 0.0, 2, 5.0, trips=[(float(number), 0.1) for number in range(7)])
    assert delay_trial(few) is None
