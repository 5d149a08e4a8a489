"""Who accuses whom of being dead, and who has refuted it: every statement signed by whoever makes it.

Relays and clients keep one of these tables each, and take from others whole statements only, so nobody has to be
trusted with passing them on (docs/protocol.md, "Failure detection"). `wall` is in unix seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

from backrooms.crypto.keys import labelled, verify_ed25519
from backrooms.gossip.neighbours import LEAST_CONFIRMERS, Neighbours
from backrooms.netdir.directory import Directory
from backrooms.wire.heartbeat import Refutation, Suspicion

CLOCK_SKEW = 120
"""Seconds by which the clock of an accuser may be wrong."""
RELAY_LIFE = 7_200
"""Seconds for which a relay keeps a suspicion."""
CLIENT_LIFE = 300
"""The same for a client."""
INCARNATION_AHEAD = 600
"""Seconds that an incarnation, which is a time, may be ahead of our clock."""
REPEAT = 20
"""Seconds between two suspicions of one relay by another that are taken."""
PAUSE_FIRST = 15
"""Seconds for which an accuser is not believed about a relay that has refuted it,"""
PAUSE_FACTOR = 4
"""longer by this factor each time,"""
PAUSE_MAX = 3_600
"""and at most so long; after as long a time without a refutation it begins anew."""
_SUSPICION_LABEL = "backrooms-suspicion-1"
_REFUTATION_LABEL = "backrooms-refutation-1"


def suspicion_message(network_id: bytes, one: Suspicion) -> bytes:
    """What an accuser signs."""
    return labelled(_SUSPICION_LABEL, network_id + one.body)


def refutation_message(network_id: bytes, one: Refutation) -> bytes:
    """What a relay signs to say that it lives."""
    return labelled(_REFUTATION_LABEL, network_id + one.body)


def make_suspicion(
    sign: Callable[[bytes], bytes], network_id: bytes, accuser: bytes, accused: bytes, incarnation: int, wall: float
) -> Suspicion:
    """A suspicion of ours; `sign` gives the Ed25519 signature."""
    bare = Suspicion(accuser, accused, incarnation, int(wall), b"")
    return Suspicion(accuser, accused, incarnation, int(wall), sign(suspicion_message(network_id, bare)))


def make_refutation(sign: Callable[[bytes], bytes], network_id: bytes, relay: bytes, incarnation: int) -> Refutation:
    """A refutation of ours."""
    bare = Refutation(relay, incarnation, b"")
    return Refutation(relay, incarnation, sign(refutation_message(network_id, bare)))


class SuspicionTable:
    """The statements held. At most one suspicion for each pair of a relay and one of its watchers."""

    def __init__(self, directory: Directory, neighbours: Neighbours, life: float = RELAY_LIFE) -> None:
        self.verified = 0
        """Signatures looked at."""
        self._directory = directory
        self._neighbours = neighbours
        self._life = life
        self._suspicions: dict[bytes, dict[bytes, Suspicion]] = {}
        self._refutations: dict[bytes, Refutation] = {}
        self._pauses: dict[tuple[bytes, bytes], tuple[int, float]] = {}

    def accused(self) -> list[bytes]:
        """Relays that anybody accuses."""
        return list(self._suspicions)

    def suspicions(self, accused: bytes) -> list[Suspicion]:
        """All suspicions against one."""
        return list(self._suspicions.get(accused, {}).values())

    def refutation(self, relay: bytes) -> Refutation | None:
        """The last refutation of a relay."""
        return self._refutations.get(relay)

    def incarnation(self, relay: bytes) -> int:
        """The highest incarnation that a relay has signed; 0 if none."""
        found = self._refutations.get(relay)
        return found.incarnation if found is not None else 0

    def evidence(self, accused: bytes, wall: float) -> list[Suspicion]:
        """Suspicions against one, as few as are enough to believe it; none where all are not enough."""
        held = self._suspicions.get(accused)
        if not held or not self._neighbours.enough(accused, list(held), wall):
            return []
        for size in range(LEAST_CONFIRMERS, len(held)):
            for some in combinations(held, size):
                if self._neighbours.enough(accused, some, wall):
                    return [held[accuser] for accuser in some]
        return list(held.values())

    def suspect(self, one: Suspicion, wall: float) -> bool:
        """Take a suspicion; whether it is news. `CryptoError` when the signature is wrong.

        What cannot count is not news and not looked at further: of relays not in the list, by one that is no watcher,
        out of date, refuted already, or too soon after the last one of the same two.
        """
        accuser = self._directory.get(one.accuser)
        if accuser is None or one.accused not in self._directory:
            return False
        if not -CLOCK_SKEW <= wall - one.made <= self._life + CLOCK_SKEW:
            return False
        if one.incarnation > one.made + INCARNATION_AHEAD or one.incarnation < self.incarnation(one.accused):
            return False
        held = self._suspicions.get(one.accused, {}).get(one.accuser)
        if held is not None and one.made < held.made + REPEAT and one.incarnation <= held.incarnation:
            return False
        pause = self._pauses.get((one.accuser, one.accused))
        if pause is not None and wall < pause[1]:
            return False
        if one.accuser not in self._neighbours.all_watchers(one.accused, wall):
            return False
        self.verified += 1
        verify_ed25519(
            accuser.certificate.facts.ed25519, one.signature, suspicion_message(self._directory.network_id, one)
        )
        self._suspicions.setdefault(one.accused, {})[one.accuser] = one
        return True

    def refute(self, one: Refutation, wall: float) -> bool:
        """Take a refutation; whether it voids a suspicion that we hold. `CryptoError` when the signature is wrong."""
        relay = self._directory.get(one.relay)
        if relay is None or one.incarnation <= self.incarnation(one.relay):
            return False
        if one.incarnation > wall + 2 * INCARNATION_AHEAD:
            return False
        self.verified += 1
        verify_ed25519(
            relay.certificate.facts.ed25519, one.signature, refutation_message(self._directory.network_id, one)
        )
        self._refutations[one.relay] = one
        held = self._suspicions.get(one.relay, {})
        void = [accuser for accuser, suspicion in held.items() if suspicion.incarnation < one.incarnation]
        for accuser in void:
            del held[accuser]
            self._pause(accuser, one.relay, wall)
        if not held:
            self._suspicions.pop(one.relay, None)
        return bool(void)

    def _pause(self, accuser: bytes, accused: bytes, wall: float) -> None:
        """Who was wrong about a relay is not believed about it for a while."""
        count, until = self._pauses.get((accuser, accused), (0, 0.0))
        if wall > until + PAUSE_MAX:
            count = 0
        length = min(PAUSE_FIRST * PAUSE_FACTOR**count, PAUSE_MAX)
        self._pauses[accuser, accused] = (min(count + 1, 8), wall + length)

    def expire(self, wall: float) -> None:
        """Forget what is old, and what is of relays that are in the list no more."""
        for accused, held in list(self._suspicions.items()):
            for accuser, one in list(held.items()):
                if wall - one.made > self._life or accuser not in self._directory:
                    del held[accuser]
            if not held or accused not in self._directory:
                del self._suspicions[accused]
        for relay in [one for one in self._refutations if one not in self._directory]:
            del self._refutations[relay]
        for pair in [pair for pair, (_, until) in self._pauses.items() if wall > until + PAUSE_MAX]:
            del self._pauses[pair]
