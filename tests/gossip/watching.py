"""Relays with real Ed25519 keys, and signed statements of theirs, for the tests of failure detection."""

from __future__ import annotations

from backrooms.gossip.neighbours import Neighbours
from backrooms.gossip.suspicions import make_refutation, make_suspicion
from backrooms.netdir.directory import Directory
from backrooms.wire.heartbeat import Refutation, Suspicion
from bench.sim.watching import NETWORK_ID, WALL, key, relay


class Cast:
    """A list of relays, by number. `places` gives the /16 of each, `families` its family, 0 for none."""

    def __init__(
        self,
        count: int,
        places: dict[int, int] | None = None,
        families: dict[int, int] | None = None,
        exits: frozenset[int] = frozenset(),
        one_place: bool = False,
    ) -> None:
        self.directory = Directory(NETWORK_ID)
        self.relays = [
            relay(
                number,
                0 if one_place else (places or {}).get(number, number),
                (families or {}).get(number, 0),
                number in exits,
            )
            for number in range(count)
        ]
        for one in self.relays:
            self.directory.insert(one, WALL)
        self.neighbours = Neighbours(self.directory)
        self.numbers = {one.id: number for number, one in enumerate(self.relays)}

    def id(self, number: int) -> bytes:
        return self.relays[number].id

    def watchers(self, number: int, wall: float = WALL) -> list[int]:
        """The numbers of those who watch a relay."""
        return [self.numbers[one] for one in self.neighbours.watchers(self.id(number), wall)]

    def stranger(self, number: int) -> int:
        """A relay that does not watch this one."""
        return next(one for one in range(len(self.relays)) if one != number and one not in self.watchers(number))

    def suspicion(
        self, accuser: int, accused: int, incarnation: int = 0, wall: float = WALL, by: int | None = None
    ) -> Suspicion:
        """What `accuser` says, signed by its key or by that of another."""
        sign = key(accuser if by is None else by).sign
        return make_suspicion(sign, NETWORK_ID, self.id(accuser), self.id(accused), incarnation, wall)

    def against(self, accused: int, count: int = 3, incarnation: int = 0, wall: float = WALL) -> tuple[Suspicion, ...]:
        """Suspicions of some of its watchers."""
        return tuple(self.suspicion(one, accused, incarnation, wall) for one in self.watchers(accused)[:count])

    def refutation(self, number: int, incarnation: int, by: int | None = None) -> Refutation:
        return make_refutation(key(number if by is None else by).sign, NETWORK_ID, self.id(number), incarnation)
