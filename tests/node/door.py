"""A node's door for tests: its admission under a simulated clock, and the guests who come."""

from __future__ import annotations

from collections import Counter

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.task import Clock

from backrooms.config.options import LimitOptions
from backrooms.node.admission import Admission, Ticket
from backrooms.node.timers import Timers

WIDE = LimitOptions(address_rate=1000, address_burst=5000, subnet_rate=1000, subnet_burst=5000)
"""Nobody comes too often."""
COST = 0.0025


class Guest:
    """An accepted connection. `ask` has it wait for work of a cost, and `served` says when that was done."""

    def __init__(self, house: House, host: str, ticket: Ticket) -> None:
        self.house = house
        self.host = host
        self.ticket = ticket
        self.served: list[float] = []
        self.away = ""
        ticket.visitor = self

    def turn_away(self, reason: str) -> None:
        assert not self.away
        assert not self.ticket.open
        self.away = reason

    def ask(self, cost: float = COST) -> Guest:
        self.ticket.wait(lambda: self._work(cost))
        return self

    def _work(self, cost: float) -> None:
        assert not self.away
        with self.ticket:
            self.house.worked += cost
        self.served.append(self.house.now)
        self.house.order.append(self)


class House:
    """An admission under a simulated clock, where work takes the time that it says."""

    def __init__(self, limits: LimitOptions = WIDE, known: str = "") -> None:
        self.clock = Clock()
        self.clock.advance(10_000)
        self.worked = 0.0
        self.order: list[Guest] = []
        self.refused: Counter[str] = Counter()
        self.timers = Timers(self.clock)
        self.timers.cpu = lambda: self.worked
        self.door = Admission(self.timers, limits, lambda host: host.startswith(known or "-"), self._refuse)

    def _refuse(self, kind: str) -> None:
        self.refused[kind] += 1

    @property
    def now(self) -> float:
        return float(self.clock.seconds())

    def try_in(self, host: str) -> Guest | None:
        kind = IPv6Address if ":" in host else IPv4Address
        ticket = self.door.arrive(kind("TCP", host, 40_000))
        return Guest(self, host, ticket) if ticket is not None else None

    def come(self, host: str) -> Guest:
        guest = self.try_in(host)
        assert guest is not None
        return guest

    def run(self, seconds: float, step: float = 0.001) -> None:
        for _ in range(round(seconds / step)):
            self.clock.advance(step)

    def turn(self) -> None:
        """One turn of a reactor: what it brings up is left to the next one."""
        for call in [call for call in self.clock.calls if call.getTime() <= self.clock.seconds()]:
            self.clock.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)

    def spend(self) -> None:
        """Use up what CPU time has been saved."""
        self.door.links.charge(self.door.links.left, self.now)


def wave(house: House, subnets: int, each: int, first: int = 0) -> list[Guest]:
    """`each` connections from each of so many subnets, in turn."""
    hosts = [f"10.{first}.{subnet}.{1 + number}" for number in range(each) for subnet in range(subnets)]
    return [house.come(host) for host in hosts]
