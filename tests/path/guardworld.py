"""A network of equal relays and one client's guards, without anything else."""

from __future__ import annotations

import random

from backrooms.path.guards import Guard, GuardSample, Ids

START = 1_800_000_000.0


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


class World:
    """A network of `count` relays of equal weight, and one client's guards."""

    def __init__(self, count: int = 100, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.listed = {name(number): None for number in range(count)}
        self.sample = GuardSample()
        self.now = START
        self.extend()

    def draw(self, fits: Ids, unwanted: Ids) -> bytes | None:
        left = [one for one in self.listed if one in fits and one not in unwanted]
        return left[self.rng.randrange(0, len(left))] if left else None

    def extend(self, fits: Ids | None = None) -> None:
        allowed = self.listed.keys() if fits is None else fits
        fitting = sum(one in allowed for one in self.listed)
        self.sample.extend(
            allowed, fitting, len(self.listed), lambda unwanted: self.draw(allowed, unwanted), self.now, self.rng
        )

    def update(self) -> None:
        self.sample.update(self.listed, self.now, self.rng)

    def candidates(self, fits: Ids | None = None) -> list[Guard]:
        return self.sample.candidates(self.listed.keys() if fits is None else fits, self.now)

    def first(self) -> Guard:
        return self.candidates()[0]

    def reached(self, guard: Guard) -> None:
        self.sample.reached(guard.id, self.now, self.rng)

    def failed(self, guard: Guard) -> None:
        self.sample.failed(guard.id, self.now)
