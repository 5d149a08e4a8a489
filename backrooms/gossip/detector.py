"""Finds out which relays are dead: one relay's part in it, as a machine (docs/protocol.md, "Failure detection").

It sends heartbeats to those who watch it, watches others, asks around when one is silent, signs a suspicion when nobody
can say that it lives, and refutes what is said of itself. Like Lifeguard (Dadgar et al., 2017) it doubts itself first:
time in which it did not run itself counts as nobody's silence, and when many seem dead at once it waits for others to
say so first. `now` is monotonic, `wall` unix seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from backrooms.gossip.neighbours import Neighbours
from backrooms.gossip.silence import Question, Watched
from backrooms.gossip.suspicions import INCARNATION_AHEAD, SuspicionTable, make_refutation, make_suspicion
from backrooms.interfaces import Rng
from backrooms.netdir.directory import Directory
from backrooms.wire.heartbeat import (
    MAX_RUMOURS,
    AnyHeartbeatMessage,
    Heartbeat,
    Probe,
    ProbeAnswer,
    Refutation,
    Rumours,
    Suspicion,
)

TICK = 0.25
"""Seconds between calls of `tick`."""
LAG = 0.5
"""Seconds by which a tick is late from which on we doubt ourselves."""
HEALTH_MAX = 3.0
"""Our patience grows by this factor at most, and one."""
HEALING = 30.0
"""Seconds for one step back to full trust in ourselves."""
PUT_OFF = 6
"""How often a verdict is put off while many relays seem dead at once."""
REMIND = 3_600.0
"""Seconds after which a suspicion is signed anew if the relay is still dead."""
SCAN = 50
"""Relays of the list looked at in one tick, to find those that we watch."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How often and how patiently, in seconds. The numbers come from bench/sim/failures.py."""

    beat: float = 1.0
    """Between two heartbeats of a relay; its watchers get them in turn."""
    wait: float = 1.0
    """For an answer to a probe."""
    phi: float = 3.0
    """The level of suspicion at which others are asked."""
    fresh: float = 0.5
    """A relay that was heard so recently lives."""


TIMING = Timing()


@dataclass(slots=True)
class Outgoing:
    """A message to a relay, or to some neighbours at random where `to` is None."""

    to: bytes | None
    message: AnyHeartbeatMessage
    dial: bool = True
    """Whether a link is opened for it if there is none."""


class Detector:
    """`heard(relay_id)` tells when anything came from a relay over a link, `sign` is Ed25519 by our identity."""

    def __init__(
        self,
        my_id: bytes,
        directory: Directory,
        neighbours: Neighbours,
        table: SuspicionTable,
        sign: Callable[[bytes], bytes],
        heard: Callable[[bytes], float],
        rng: Rng,
        now: float,
        wall: float,
        timing: Timing = TIMING,
    ) -> None:
        self.outbox: list[Outgoing] = []
        self.news: list[Rumours] = []
        """For clients: what is now believed, and what no longer is."""
        self.watched: dict[bytes, Watched] = {}
        self.incarnation = int(wall)
        self.health = 0.0
        """0 while all is well with us; our patience grows with it."""
        self.accusations = 0
        """Suspicions that we have signed."""
        self.table = table
        self._my_id = my_id
        self._directory = directory
        self._neighbours = neighbours
        self._sign = sign
        self._heard = heard
        self._rng = rng
        self._timing = timing
        self._ticked = now
        self._deaf_until = now
        self._beat_due = now + timing.beat * rng.random()
        self._beat_number = 0
        self._scanned = 0
        self._expired = now
        self._announced: dict[bytes, tuple[int, int]] = {}

    # time

    def tick(self, now: float, wall: float) -> None:
        """Every `TICK` seconds; that it is called late says something about ourselves."""
        lag = now - self._ticked - TICK
        self._ticked = now
        if lag > LAG:
            self._was_away(lag, now)
        self.health = max(0.0, self.health - TICK / HEALING)
        self._scan(now, wall)
        if now >= self._beat_due:
            self._beat_due = max(self._beat_due + self._timing.beat, now + self._timing.beat / 2)
            self._beat(wall)
        if now - self._expired >= 60:
            self._expired = now
            self.table.expire(wall)
            self._announced = {one: what for one, what in self._announced.items() if self.table.suspicions(one)}
        for relay_id, watched in list(self.watched.items()):
            self._look(relay_id, watched, now, wall)

    def _was_away(self, lag: float, now: float) -> None:
        """We did not run: what came meanwhile is still to be read, and our silence was ours alone."""
        self.health = min(HEALTH_MAX, self.health + lag)
        self._deaf_until = now + self._timing.wait
        for watched in self.watched.values():
            watched.beat_at += lag
            watched.steady = False
            if watched.question is not None:
                watched.question.deadline = max(watched.question.deadline, now + self._patience())

    def _patience(self) -> float:
        return self._timing.wait * (1 + self.health)

    def _beat(self, wall: float) -> None:
        """One heartbeat, to the next of those who watch us."""
        watchers = self._neighbours.all_watchers(self._my_id, wall)
        if watchers:
            self._beat_number += 1
            to = watchers[self._beat_number % len(watchers)]
            following = round(1000 * self._timing.beat * len(watchers))
            self.outbox.append(Outgoing(to, Heartbeat(self.incarnation, following)))

    def _scan(self, now: float, wall: float) -> None:
        """Look at a part of the list, for relays that we should watch, or need not any more."""
        relays = self._directory.relays()
        for one in relays[self._scanned : self._scanned + SCAN]:
            mine = self._watch(one.id, wall)
            if not mine:
                self.watched.pop(one.id, None)
            elif one.id not in self.watched:
                self.watched[one.id] = Watched(now)
        self._scanned += SCAN
        if self._scanned >= len(relays):
            self._scanned = 0
            for relay_id in [one for one in self.watched if one not in self._directory]:
                del self.watched[relay_id]

    def _watch(self, relay_id: bytes, wall: float) -> bool:
        # Watchers are drawn for any id, also for one that somebody has made up.
        known = relay_id in self._directory and relay_id != self._my_id
        return known and self._my_id in self._neighbours.watchers(relay_id, wall)

    def _look(self, relay_id: bytes, watched: Watched, now: float, wall: float) -> None:
        watched.heard = max(watched.heard, self._heard(relay_id))
        question = watched.question
        if watched.accused_at is not None:
            if watched.heard > watched.accused_at:
                self._lives_again(relay_id, watched, now)
            elif now - watched.accused_at >= REMIND:
                self._accuse(relay_id, watched, now, wall)
        elif question is not None:
            if watched.heard >= question.started:
                self._lives(relay_id, watched, now)
            elif now >= question.deadline:
                self._conclude(relay_id, watched, question, now, wall)
        elif now < self._deaf_until or now - watched.heard < self._timing.fresh:
            return
        elif watched.gone or watched.phi(now) >= self._timing.phi:
            self._ask(relay_id, watched, now, wall)

    # asking

    def _ask(self, relay_id: bytes, watched: Watched, now: float, wall: float, ours: bool = True) -> Question:
        """Ask the relay itself, and unless somebody did that already, all who watch it."""
        nonce = int.from_bytes(self._rng.randbytes(8), "big")
        others = [one for one in self._neighbours.watchers(relay_id, wall) if one != self._my_id] if ours else []
        question = Question(nonce, now, now + self._patience(), frozenset(others))
        watched.question = question
        for to in (relay_id, *others):
            self.outbox.append(Outgoing(to, Probe(nonce, relay_id)))
        return question

    def _lives(self, relay_id: bytes, watched: Watched, now: float) -> None:
        """What was asked is answered: it lives."""
        question, watched.question = watched.question, None
        watched.lives(now)
        if question is not None:
            for asker, nonce in question.askers.items():
                self._answer(asker, nonce, relay_id, True, watched.incarnation)

    def _conclude(self, relay_id: bytes, watched: Watched, question: Question, now: float, wall: float) -> None:
        """No sign of life came in time."""
        if question.asked and 2 * len(question.alive) >= len(question.asked):
            self._lives(relay_id, watched, now)  # most others hear it: the way between us is broken
            return
        if self._doubt_ourselves(relay_id, question, now) and not self.table.suspicions(relay_id):
            question.put_off += 1
            if question.put_off > PUT_OFF:
                self._lives(relay_id, watched, now)
            else:
                question.deadline = now + self._patience()
            return
        self._accuse(relay_id, watched, now, wall)

    def _doubt_ourselves(self, relay_id: bytes, question: Question, now: float) -> bool:
        """Whether nobody else has been heard since we asked, or so many are silent that it is rather us."""
        others = {*question.asked, *question.askers, *self.watched} - {relay_id}
        if not any(self._heard(one) >= question.started for one in others):
            return True
        silent = sum(one.accused_at is None and now - one.heard >= one.expected for one in self.watched.values())
        return silent > max(1.0, len(self.watched) / 2)

    def _accuse(self, relay_id: bytes, watched: Watched, now: float, wall: float) -> None:
        watched.question, watched.accused_at, watched.gone = None, now, False
        known = max(watched.incarnation, self.table.incarnation(relay_id))
        incarnation = min(known, int(wall) + INCARNATION_AHEAD)
        one = make_suspicion(self._sign, self._directory.network_id, self._my_id, relay_id, incarnation, wall)
        if not self.table.suspect(one, wall):
            return
        self.accusations += 1
        message = Rumours((one,))
        for to in (relay_id, *(w for w in self._neighbours.watchers(relay_id, wall) if w != self._my_id)):
            self.outbox.append(Outgoing(to, message))
        self._announce([relay_id], wall)

    def _lives_again(self, relay_id: bytes, watched: Watched, now: float) -> None:
        """It must hear of what we said, so that it can refute it."""
        watched.accused_at = None
        watched.lives(now)
        ours = [one for one in self.table.suspicions(relay_id) if one.accuser == self._my_id]
        if ours:
            self.outbox.append(Outgoing(relay_id, Rumours(tuple(ours))))

    # messages

    def gone(self, relay_id: bytes) -> None:
        """The last link to a relay was lost."""
        if (watched := self.watched.get(relay_id)) is not None:
            watched.gone = True

    def message(self, peer: bytes, message: AnyHeartbeatMessage, now: float, wall: float) -> None:
        """A message of another relay. `CryptoError` when it handed on a wrong signature."""
        if isinstance(message, Heartbeat):
            self._heartbeat(peer, message, now, wall)
        elif isinstance(message, Probe):
            self._probed(peer, message, now, wall)
        elif isinstance(message, ProbeAnswer):
            watched = self.watched.get(message.subject)
            if watched is None:
                return
            if message.subject == peer:
                watched.heard = now
                watched.incarnation = max(watched.incarnation, message.incarnation)
            elif message.alive and watched.question is not None and watched.question.nonce == message.nonce:
                watched.question.alive |= watched.question.asked & {peer}
        elif isinstance(message, Rumours):
            self.rumours(message, wall)

    def _heartbeat(self, peer: bytes, message: Heartbeat, now: float, wall: float) -> None:
        watched = self.watched.get(peer)
        if watched is None:
            if not self._watch(peer, wall):
                return
            watched = self.watched[peer] = Watched(now)
            for told in self.believed(wall):
                self.outbox.append(Outgoing(peer, told))
        watched.heard = now
        watched.beat(message.incarnation, message.following / 1000, now)
        self._look(peer, watched, now, wall)

    def _probed(self, peer: bytes, probe: Probe, now: float, wall: float) -> None:
        subject = probe.subject
        if subject == self._my_id:
            self._answer(peer, probe.nonce, subject, True, self.incarnation)
            return
        if not self._watch(subject, wall) or peer not in self._neighbours.all_watchers(subject, wall):
            return
        watched = self.watched.setdefault(subject, Watched(now))
        watched.heard = max(watched.heard, self._heard(subject))
        if now - watched.heard < self._timing.fresh:
            self._answer(peer, probe.nonce, subject, True, watched.incarnation)
            return
        self._answer(peer, probe.nonce, subject, False, 0)
        if watched.accused_at is None:
            question = watched.question or self._ask(subject, watched, now, wall, ours=False)
            question.askers[peer] = probe.nonce

    def _answer(self, to: bytes, nonce: int, subject: bytes, alive: bool, incarnation: int) -> None:
        self.outbox.append(Outgoing(to, ProbeAnswer(nonce, subject, alive, incarnation), dial=False))

    # rumours

    def rumours(self, message: Rumours, wall: float) -> None:
        """What somebody hands on."""
        self._refuted([one for one in message.refutations if self.table.refute(one, wall)])
        accused = [one.accused for one in message.suspicions if self.table.suspect(one, wall)]
        if self._my_id in accused:
            self._refute(wall)
        self._announce([one for one in accused if one != self._my_id], wall)

    def _refute(self, wall: float) -> None:
        """We live. Who says otherwise may be right about how slow we are."""
        self.health = min(HEALTH_MAX, self.health + 0.5)
        highest = max(one.incarnation for one in self.table.suspicions(self._my_id))
        self.incarnation = max(self.incarnation, highest + 1)
        one = make_refutation(self._sign, self._directory.network_id, self._my_id, self.incarnation)
        self.table.refute(one, wall)
        message = Rumours((), (one,))
        for to in (*self._neighbours.all_watchers(self._my_id, wall), None):
            self.outbox.append(Outgoing(to, message))
        self.news.append(message)

    def _refuted(self, news: list[Refutation]) -> None:
        """Relays live that were called dead."""
        for one in news:
            self._announced.pop(one.relay, None)
            watched = self.watched.get(one.relay)
            if watched is not None and watched.accused_at is not None:
                watched.accused_at = None
                watched.lives(self._ticked)
                self.health = min(HEALTH_MAX, self.health + 0.5)
            message = Rumours((), (one,))
            self.outbox.append(Outgoing(None, message))
            self.news.append(message)

    def _announce(self, accused: Iterable[bytes], wall: float) -> None:
        """Tell neighbours and clients of relays that are now believed to be dead."""
        for relay_id in accused:
            evidence = self.table.evidence(relay_id, wall)
            if not evidence:
                continue
            newest = max(one.incarnation for one in evidence), max(one.made for one in evidence) // int(REMIND / 2)
            if self._announced.get(relay_id) == newest:
                continue
            self._announced[relay_id] = newest
            message = Rumours(tuple(evidence))
            self.outbox.append(Outgoing(None, message))
            self.outbox.append(Outgoing(relay_id, message, dial=False))
            self.news.append(message)

    def believed(self, wall: float) -> list[Rumours]:
        """All that is believed now, for somebody who comes new."""
        return bundle([one for accused in self._announced for one in self.table.evidence(accused, wall)])

    def dead(self) -> list[bytes]:
        """Relays that are believed to be dead."""
        return list(self._announced)


def bundle(suspicions: list[Suspicion]) -> list[Rumours]:
    """Many suspicions in as few messages as can be."""
    return [Rumours(tuple(suspicions[start : start + MAX_RUMOURS])) for start in range(0, len(suspicions), MAX_RUMOURS)]
