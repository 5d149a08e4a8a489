"""The machine that finds out who is dead, driven by hand and, many of them together, in simulated time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backrooms.errors import CryptoError
from backrooms.gossip.detector import REMIND, TICK, TIMING, Detector, Outgoing
from backrooms.gossip.suspicions import SuspicionTable
from backrooms.wire.heartbeat import Heartbeat, Probe, ProbeAnswer, Refutation, Rumours, Suspicion
from bench.sim.watching import WALL, World, key
from tests.gossip.watching import Cast

NOW = 1000.0


class Alone:
    """The detector of one relay, and what came to it and when."""

    def __init__(self, cast: Cast, number: int) -> None:
        self.cast, self.number, self.now = cast, number, NOW
        self.heard: dict[bytes, float] = {}
        table = SuspicionTable(cast.directory, cast.neighbours)
        self.machine = Detector(
            cast.id(number), cast.directory, cast.neighbours, table, key(number).sign,
            lambda one: self.heard.get(one, -1.0), random.Random(1), NOW, WALL,
        )  # fmt: skip

    @property
    def wall(self) -> float:
        return WALL + self.now - NOW

    def take(self, number: int, message: object) -> list[Outgoing]:
        """A message of another relay; what is sent because of it."""
        self.heard[self.cast.id(number)] = self.now
        self.machine.message(self.cast.id(number), message, self.now, self.wall)  # type: ignore[arg-type]
        return self.sent()

    def sent(self) -> list[Outgoing]:
        out, self.machine.outbox = self.machine.outbox, []
        return [one for one in out if not isinstance(one.message, Heartbeat)]

    def run(self, seconds: float, beating: list[int] | None = None, cut_off: bool = False) -> list[Outgoing]:
        """Let time pass; some relays send a heartbeat every eight seconds meanwhile.

        Unless this one is cut off, others that it asks about a relay say that they do not know.
        """
        found = []
        dead = {self.cast.id(one) for one in self.wards() if one not in (beating or [])}
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            if self.now % 8 == 0:
                for number in beating or []:
                    found += self.take(number, Heartbeat(7, 8_000))
            self.machine.tick(self.now, self.wall)
            sent = self.sent()
            for one in sent:
                if isinstance(one.message, Probe) and one.to and one.to not in dead and not cut_off:
                    no = ProbeAnswer(one.message.nonce, one.message.subject, False, 0)
                    sent += self.take(self.cast.numbers[one.to], no)
            found += sent
        return found

    def wards(self) -> list[int]:
        """The relays that it watches."""
        count = len(self.cast.relays)
        return [one for one in range(count) if one != self.number and self.number in self.cast.watchers(one)]


@pytest.fixture
def alone() -> Alone:
    """A relay of 40 that all its wards have sent some heartbeats."""
    one = Alone(Cast(40), 4)
    one.run(33, one.wards())
    assert len(one.wards()) >= 4
    assert one.machine.accusations == 0
    return one


def test_heartbeats_go_round() -> None:
    one = Alone(Cast(40), 4)
    beats = []
    for _ in range(400):
        one.now += TICK
        one.machine.tick(one.now, one.wall)
        beats += [out for out in one.machine.outbox if isinstance(out.message, Heartbeat)]
        one.machine.outbox.clear()
    assert abs(len(beats) - 100 / TIMING.beat) <= 2
    assert [one.cast.numbers[out.to] for out in beats[:8] if out.to] != []
    assert {out.to for out in beats[:8]} == set(one.cast.neighbours.watchers(one.cast.id(4), WALL))
    assert all(isinstance(out.message, Heartbeat) and out.message.following == 8_000 for out in beats)


def test_a_silent_relay_is_asked_then_the_others_then_accused(alone: Alone) -> None:
    victim, *others = alone.wards()
    asked = alone.run(10, others)
    probes = [one for one in asked if isinstance(one.message, Probe) and one.message.subject == alone.cast.id(victim)]
    fellows = [number for number in alone.cast.watchers(victim) if number != 4]
    assert {alone.cast.numbers[one.to] for one in probes if one.to} == {victim, *fellows}
    said = [one for one in asked if isinstance(one.message, Rumours)]
    assert {alone.cast.numbers[one.to] for one in said if one.to} == {victim, *fellows}
    assert alone.machine.accusations == 1
    assert alone.machine.news == [], "one alone is not believed"
    for fellow in fellows[:2]:
        alone.take(fellow, Rumours((alone.cast.suspicion(fellow, victim, 7, alone.wall),)))
    assert [len(one.suspicions) for one in alone.machine.news] == [3]
    assert alone.machine.dead() == [alone.cast.id(victim)]


def test_any_traffic_is_a_sign_of_life(alone: Alone) -> None:
    victim, *others = alone.wards()
    for _ in range(100):
        alone.heard[alone.cast.id(victim)] = alone.now
        assert not [one for one in alone.run(0.25, others) if isinstance(one.message, Rumours)]
    assert alone.machine.accusations == 0


def test_an_answer_to_the_probe_ends_the_question(alone: Alone) -> None:
    victim, *others = alone.wards()
    fellow = next(number for number in alone.cast.watchers(victim) if number != 4)
    probe: list[Outgoing] = []
    while not probe:
        probe = [one for one in alone.run(0.25, others) if isinstance(one.message, Probe)]
    alone.take(fellow, Probe(99, alone.cast.id(victim)))
    assert isinstance(probe[0].message, Probe)
    alone.take(victim, ProbeAnswer(probe[0].message.nonce, alone.cast.id(victim), True, 7))
    answers = alone.run(0.5, others)
    assert [(one.to, one.message) for one in answers if isinstance(one.message, ProbeAnswer)] == [
        (alone.cast.id(fellow), ProbeAnswer(99, alone.cast.id(victim), True, 7))
    ], "and who asked us meanwhile is told"
    assert alone.machine.accusations == 0


def test_when_most_others_hear_it_the_fault_is_between_us(alone: Alone) -> None:
    victim, *others = alone.wards()
    fellows = [number for number in alone.cast.watchers(victim) if number != 4]
    for hearing, accusations in ((3, 1), (4, 0)):
        one = Alone(alone.cast, 4)
        one.run(33, one.wards())
        for _ in range(48):
            for out in one.run(0.25, others):
                if isinstance(out.message, Probe) and out.to in [alone.cast.id(each) for each in fellows[:hearing]]:
                    one.take(alone.cast.numbers[out.to], ProbeAnswer(out.message.nonce, out.message.subject, True, 7))
        assert one.machine.accusations == accusations, hearing


def test_answers_of_strangers_and_to_other_questions_count_for_nothing(alone: Alone) -> None:
    victim, *others = alone.wards()
    stranger = alone.cast.stranger(victim)
    for _ in range(44):
        for out in alone.run(0.25, others):
            if isinstance(out.message, Probe):
                for number in (stranger, *alone.cast.watchers(victim)):
                    alone.take(
                        number, ProbeAnswer(out.message.nonce ^ (number != stranger), out.message.subject, True, 7)
                    )
    assert alone.machine.accusations == 1


def test_only_watchers_are_asked_about_others_and_all_about_themselves(alone: Alone) -> None:
    victim = alone.wards()[0]
    stranger = alone.cast.stranger(victim)
    assert alone.take(stranger, Probe(1, alone.cast.id(victim))) == []
    not_mine = next(number for number in range(40) if number != 4 and number not in alone.wards())
    assert alone.take(alone.cast.watchers(not_mine)[0], Probe(1, alone.cast.id(not_mine))) == []
    (answer,) = alone.take(stranger, Probe(5, alone.cast.id(4)))
    assert answer.message == ProbeAnswer(5, alone.cast.id(4), True, int(WALL))


def test_our_own_pause_is_nobodys_silence(alone: Alone) -> None:
    alone.now += 60.0
    alone.machine.tick(alone.now, alone.wall)
    assert alone.sent() == []
    assert alone.machine.health > 1
    alone.run(30, alone.wards())
    assert alone.machine.accusations == 0


def test_when_nobody_is_heard_it_is_us(alone: Alone) -> None:
    alone.run(40, cut_off=True)
    assert alone.machine.accusations == 0
    some = alone.wards()[0]
    fellow = next(number for number in alone.cast.watchers(some) if number != 4)
    alone.take(fellow, Rumours((alone.cast.suspicion(fellow, some, 7, alone.wall),)))
    alone.run(10, cut_off=True)
    assert alone.machine.accusations == 1, "but what others say too is said"


def test_when_most_are_silent_at_once_it_may_be_us(alone: Alone) -> None:
    alone.run(14, alone.wards()[:1])
    assert alone.machine.accusations == 0


def test_we_refute_what_is_said_of_us_and_doubt_ourselves(alone: Alone) -> None:
    accuser = alone.cast.watchers(4)[0]
    incarnation = alone.machine.incarnation
    sent = alone.take(accuser, Rumours((alone.cast.suspicion(accuser, 4, incarnation, alone.wall),)))
    refutations = {one.message for one in sent}
    assert len(refutations) == 1
    (message,) = refutations
    assert isinstance(message, Rumours)
    assert message.refutations[0].incarnation == incarnation + 1 == alone.machine.incarnation
    assert SuspicionTable(alone.cast.directory, alone.cast.neighbours).refute(message.refutations[0], WALL) is False
    assert {one.to for one in sent} == {*alone.cast.neighbours.watchers(alone.cast.id(4), WALL), None}
    assert alone.machine.health > 0
    assert alone.take(accuser, Rumours((alone.cast.suspicion(accuser, 4, 2**40, alone.wall),))) == []


def test_a_dead_relay_that_comes_back_is_told_and_refutes(alone: Alone) -> None:
    victim, *others = alone.wards()
    alone.run(12, others)
    assert alone.machine.accusations == 1
    back = alone.take(victim, Heartbeat(7, 8_000))
    told = [one for one in back if isinstance(one.message, Rumours)]
    assert [one.to for one in told] == [alone.cast.id(victim)], "it must know, to refute it"
    alone.take(victim, Rumours((), (alone.cast.refutation(victim, 8),)))
    assert alone.machine.table.suspicions(alone.cast.id(victim)) == []
    alone.run(60, alone.wards())
    assert alone.machine.accusations == 1


def test_who_stays_dead_is_accused_again_each_hour(alone: Alone) -> None:
    victim, *others = alone.wards()
    del victim
    alone.run(12, others)
    assert alone.machine.accusations == 1
    alone.run(REMIND + 5, others)
    assert alone.machine.accusations == 2


def test_a_relay_that_never_was_heard_is_found_dead(alone: Alone) -> None:
    fresh = Alone(alone.cast, 4)
    fresh.run(60, fresh.wards()[1:])
    assert fresh.machine.accusations == 1


def test_a_lost_link_is_asked_after_at_once(alone: Alone) -> None:
    victim, *others = alone.wards()
    alone.run(1, others)
    alone.machine.gone(alone.cast.id(victim))
    alone.machine.gone(alone.cast.id(alone.cast.stranger(victim)))
    assert any(isinstance(one.message, Probe) for one in alone.run(0.5, others))


def test_forged_statements_cost_whoever_passes_them_on(alone: Alone) -> None:
    victim = alone.wards()[0]
    with pytest.raises(CryptoError):
        alone.take(5, Rumours((alone.cast.suspicion(alone.cast.watchers(victim)[1], victim, 7, alone.wall, by=5),)))
    with pytest.raises(CryptoError):
        alone.take(5, Rumours((), (alone.cast.refutation(victim, 99, by=5),)))


def test_a_flood_of_lies_by_one_grows_nothing(alone: Alone) -> None:
    for step in range(200):
        for number in alone.wards():
            accuser = alone.cast.watchers(number)[0]
            lie = alone.cast.suspicion(accuser, number, step, alone.wall)
            alone.machine.message(alone.cast.id(accuser), Rumours((lie,)), alone.now, alone.wall)
    assert alone.machine.news == []
    assert alone.machine.outbox == []
    assert sum(len(alone.machine.table.suspicions(one.id)) for one in alone.cast.relays) <= len(alone.wards())


def test_ids_that_are_made_up_are_not_watched() -> None:
    """In a small network everybody is a watcher of any id."""
    one = Alone(Cast(6), 4)
    before = set(one.machine.watched)
    for number in range(50):
        made_up = bytes([number]) * 32
        one.machine.message(one.cast.id(1), Probe(number, made_up), one.now, one.wall)
        one.machine.message(made_up, Heartbeat(1, 1000), one.now, one.wall)
    assert set(one.machine.watched) <= before | {one.cast.id(1)}
    assert one.sent() == []


_CAST = Cast(12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 11), st.integers(0, 11), st.integers(0, 9)), max_size=60))
def test_every_input_in_every_state(steps: list[tuple[int, int, int, int]]) -> None:
    """Whatever comes, in whichever order: no error, no suspicion of ourselves, and no more than is there to know."""
    one = Alone(_CAST, 0)
    for what, peer, about, number in steps:
        if peer == 0:
            one.run(number, [about] if about else [])
            continue
        subject = _CAST.id(about)
        if what == 0:
            one.take(peer, Heartbeat(number, 1 + 1000 * number))
        elif what == 1:
            one.take(peer, Probe(number, subject))
        elif what == 2:
            one.take(peer, ProbeAnswer(number, subject, number % 2 == 0, number))
        elif what == 3 and peer != about:
            one.take(peer, Rumours((_CAST.suspicion(peer, about, number, one.wall),)))
        elif what == 4:
            one.take(peer, Rumours((), (_CAST.refutation(about, number),) if about else ()))
        elif what == 5:
            one.machine.gone(subject)
        else:
            one.now += number * 3.0
            one.machine.tick(one.now, one.wall)
        one.sent()
    assert _CAST.id(0) not in one.machine.dead()
    assert set(one.machine.watched) <= {each.id for each in _CAST.relays}
    for out in one.machine.news:
        for statement in (*out.suspicions, *out.refutations):
            assert isinstance(statement, Suspicion | Refutation)


# many of them


def test_a_stopped_relay_is_known_within_seconds_and_back_when_it_goes_on() -> None:
    world = World(24, 3, seed=5)
    world.run(20)
    victim = world.relays[7]
    world.freeze(victim)
    assert world.run(5, lambda: world.doubters(victim) == 3)
    world.run(20)
    assert world.doubters(victim) == 3
    assert sum(world.doubters(one) for one in world.relays if one is not victim) == 0
    world.thaw(victim)
    assert world.run(3, lambda: world.doubters(victim) == 0)
    world.run(60)
    assert world.doubters(victim) == 0


def test_w15_no_false_alarm_under_jitter_and_loss() -> None:
    world = World(16, 2, seed=6, jitter=0.2, loss=0.05)
    for _ in range(120):
        world.run(1)
        assert not any(client.doubts.doubted(world.now) for client in world.clients)


def test_an_event_loop_that_stood_still_accuses_nobody() -> None:
    world = World(16, 2, seed=7)
    world.run(20)
    for number in (3, 9):
        before = world.relays[number].detector.accusations
        world.freeze(world.relays[number])
        world.run(3)
        world.thaw(world.relays[number])
        world.run(10)
        assert world.relays[number].detector.accusations == before


def test_a_relay_that_is_cut_off_accuses_nobody_but_is_accused() -> None:
    world = World(16, 2, seed=8)
    world.run(20)
    lonely = world.relays[2]
    post = world.post
    world.post = lambda one, to, message: None if lonely.id in (one.id, to) else post(one, to, message)  # type: ignore[method-assign]
    assert world.run(8, lambda: world.doubters(lonely) == 2)
    world.run(60)
    assert lonely.detector.accusations == 0
