"""Two sans-IO machines joined without a network."""

from __future__ import annotations

from typing import Any

from backrooms.interfaces import Machine

MAX_ROUNDS = 20_000


class Wire:
    """Joins two machines: what one puts out, the other receives, until both are silent.

    `chunk` cuts what is handed over into pieces of that many bytes (1: a trickle; 0: as it comes). Events are
    collected in `events_a` and `events_b`. Errors of a machine come out of the call that caused them.
    """

    def __init__(self, a: Machine, b: Machine, *, now: float = 1_000.0, chunk: int = 0) -> None:
        self.a = a
        self.b = b
        self.now = now
        self.chunk = chunk
        self.events_a: list[Any] = []
        self.events_b: list[Any] = []
        self.sent_a = 0
        self.sent_b = 0

    def exchange(self) -> None:
        """Hand bytes to and fro until neither has more."""
        for _ in range(MAX_ROUNDS):
            self._collect()
            from_a, from_b = self.a.output(), self.b.output()
            if not from_a and not from_b:
                return
            self.sent_a += len(from_a)
            self.sent_b += len(from_b)
            self._hand(from_a, self.b)
            self._hand(from_b, self.a)
        raise AssertionError(f"two machines still talk after {MAX_ROUNDS} rounds")

    def advance(self, seconds: float) -> None:
        """Let time pass: each machine ticks at its deadlines, and they talk after every tick."""
        end = self.now + seconds
        self.exchange()
        for _ in range(MAX_ROUNDS):
            due = [
                (when, machine)
                for machine in (self.a, self.b)
                if (when := machine.deadline()) is not None and when <= end
            ]
            if not due:
                self.now = end
                return
            when, machine = min(due, key=lambda pair: pair[0])
            self.now = max(self.now, when)
            machine.tick(self.now)
            self.exchange()
        raise AssertionError(f"a machine's deadline does not move on: {when} at {self.now}")

    def _hand(self, data: bytes, to: Machine) -> None:
        step = self.chunk or len(data) or 1
        for start in range(0, len(data), step):
            to.receive(data[start : start + step], self.now)
            self._collect()

    def _collect(self) -> None:
        self.events_a += self.a.events()
        self.events_b += self.b.events()


def wire_machines(a: Machine, b: Machine, *, now: float = 1_000.0, chunk: int = 0, trickle: bool = False) -> Wire:
    """Let `a` and `b` talk until both are silent; `trickle` hands over one byte at a time."""
    wire = Wire(a, b, now=now, chunk=1 if trickle else chunk)
    wire.exchange()
    return wire
