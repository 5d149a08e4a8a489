"""Guards over months: how many relays a client enters by, and how many clients an attacker gets to see.

Guards, path selector and weights are the real code; relays and time are simulated. A client without guards draws the
first hop of each circuit. "Captured" is a client that has entered by a relay of the attacker at least once: from then
on the attacker knows its address, and sees both ends of those circuits whose exit is the attacker's, too.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from backrooms.netdir.descriptor import Descriptor
from backrooms.path.constraints import Constraints, Position
from backrooms.path.guards import Allowed, GuardSample, Ids, drawing
from backrooms.path.roster import Roster
from backrooms.path.selector import ANYWHERE, PathSelector
from backrooms.wire.records import Address
from bench.sim.relays import START, make_relay
from bench.sim.section import Section

HONEST = 400
DAYS = 120
LOOKS = (1, 30, 120)
CLIENTS = 60
CIRCUITS = 6
"""New circuits of a client in a day."""
LEAVE = 0.01
"""Part of the honest relays that is replaced by others each day."""
DOWN = 0.02
"""Part of the honest relays that cannot be reached at any time. The attacker's always can."""
NEAR = 10.0
"""How much more a client that weighs by location likes relays that are near."""
LARGE = 10_000
"""Relays in the measurement of a single choice."""
DAY = 86_400.0
_FIRST_BAD = 30_000


class World:
    """A network that changes day by day, with `bad` relays of an attacker that stay."""

    def __init__(self, bad: int, capacity: int) -> None:
        self.rng = random.Random("a network with guards")
        self.numbers = itertools.count()
        self.now = START
        self.bad = frozenset(relay.id for relay in self.relays(bad, _FIRST_BAD, capacity))
        self.roster = Roster()
        for relay in [*self.relays(bad, _FIRST_BAD, capacity), *(self.honest() for _ in range(HONEST))]:
            self.roster.put(relay.id, relay)
        self.down: frozenset[bytes] = frozenset()
        self.selector = self._selector()

    @staticmethod
    def relays(count: int, first: int, capacity: int) -> list[Descriptor]:
        return [make_relay(first + number, capacity=capacity) for number in range(count)]

    def honest(self) -> Descriptor:
        """One more."""
        return make_relay(next(self.numbers), capacity=int(1e6 * self.rng.lognormvariate(0.0, 1.0)))

    def _selector(self) -> PathSelector:
        return PathSelector(self.roster, Constraints())

    @property
    def share(self) -> float:
        """The attacker's part of the weight for entries."""
        table = self.selector.table(Position.ENTRY)
        return sum(w for row, w in zip(table.rows, table.weights, strict=True) if row.id in self.bad) / table.total

    def new_day(self) -> None:
        """Some leave, others come."""
        there = [one for one in self.roster.by_id if one not in self.bad]
        for gone in self.rng.sample(there, int(LEAVE * HONEST)):
            relay = self.honest()
            self.roster.put(gone, None)
            self.roster.put(relay.id, relay)
        self.selector = self._selector()

    def new_hour(self) -> None:
        """Others are down."""
        self.now += DAY / CIRCUITS
        there = [one for one in self.roster.by_id if one not in self.bad]
        self.down = frozenset(self.rng.sample(there, int(DOWN * HONEST)))


class Client:
    """Enters by guards, or by what a table gives."""

    def __init__(self, world: World, number: int, kind: str) -> None:
        self.world = world
        self.kind = kind
        self.near = number % 2 == 0
        self.rng = random.Random(f"client {number}")
        self.sample = GuardSample()
        self.entries: set[bytes] = set()
        self.captured_after: int | None = None

    def new_day(self) -> None:
        """Look at the list of relays."""
        if self.kind == "no guards":
            return
        world, sample = self.world, self.sample
        sample.update(world.roster.by_id, world.now, self.rng)
        draw = drawing(world.selector, Position.ENTRY, sample.guards, self.rng)
        if self.kind == "guards by location" and self.near:
            draw = self._by_location
        rows = world.roster.by_id
        sample.extend(Allowed(world.selector, Position.ENTRY), len(rows), len(rows), draw, world.now, self.rng)

    def _by_location(self, unwanted: Ids) -> bytes | None:
        table = self.world.selector.table(Position.ENTRY)
        weights = [
            0.0 if row.id in unwanted else weight * (NEAR if row.id in self.world.bad else 1.0)
            for row, weight in zip(table.rows, table.weights, strict=True)
        ]
        return self.rng.choices(table.rows, weights)[0].id

    def circuit(self, day: int) -> None:
        """Build one."""
        entry = self._enter()
        self.entries.add(entry)
        if self.captured_after is None and entry in self.world.bad:
            self.captured_after = day

    def _enter(self) -> bytes:
        world = self.world
        if self.kind == "no guards":
            row = world.selector.table(Position.ENTRY).draw_fitting(lambda row: row.id not in world.down, self.rng)
            assert row is not None
            return row.id
        while True:
            guard = self.sample.candidates(world.roster.by_id, world.now)[0]
            if guard.id not in world.down:
                self.sample.reached(guard.id, world.now, self.rng)
                return guard.id
            self.sample.failed(guard.id, world.now)


KINDS = ("no guards", "guards by location", "guards")


def months(bad: int, capacity: int) -> tuple[float, dict[str, list[Client]]]:
    """The attacker's share of the weight, and the clients of each kind after all days."""
    world = World(bad, capacity)
    share = world.share
    clients = {kind: [Client(world, number, kind) for number in range(CLIENTS)] for kind in KINDS}
    everybody = list(itertools.chain(*clients.values()))
    for day in range(1, DAYS + 1):
        for client in everybody:
            client.new_day()
        for _ in range(CIRCUITS):
            for client in everybody:
                client.circuit(day)
            world.new_hour()
        world.new_day()
    return share, clients


def captured(clients: Sequence[Client], day: int) -> float:
    """The part of the clients that were captured by the end of a day."""
    return sum(one.captured_after is not None and one.captured_after <= day for one in clients) / len(clients)


def choice_time(choose: Callable[[], object]) -> float:
    """Milliseconds of one call, the median of some."""
    times = []
    for _ in range(200):
        began = time.perf_counter()
        choose()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def one_choice() -> float:
    """Milliseconds for a path of three relays by guards among `LARGE`."""
    model = make_relay(0)  # nobody looks at signatures here, so one is enough
    roster, rng = Roster(), random.Random("ten thousand")
    for number in range(LARGE):
        record = replace(
            model.record,
            id=number.to_bytes(32, "big"),
            addresses=(Address.parse(f"tls:{number % 200 + 11}.{number // 200}.0.1:443"),),
            capacity=int(1e6 * rng.lognormvariate(0.0, 1.0)),
        )
        roster.put(record.id, Descriptor(model.certificate, record, b""))
    selector = PathSelector(roster, Constraints())
    sample = GuardSample()
    allowed = Allowed(selector, Position.ENTRY)
    sample.extend(allowed, LARGE, LARGE, drawing(selector, Position.ENTRY, sample.guards, rng), START, rng)

    def choose() -> None:
        sample.extend(allowed, LARGE, LARGE, drawing(selector, Position.ENTRY, sample.guards, rng), START, rng)
        guard = sample.candidates(allowed, START)[0]
        selector.select(3, ANYWHERE, rng, first=[roster.by_id[guard.id].relay])

    choose()
    return choice_time(choose)


def run() -> Section:
    """All of this module."""
    rows: list[list[str]] = []
    data: dict[str, object] = {}
    failures: list[str] = []
    for name, bad, capacity in (
        ("5 % of the relays", 21, 1_600_000),
        ("5 %, each claims 100 x", 21, 160_000_000),
        ("20 % of the relays", 100, 1_600_000),
    ):
        share, clients = months(bad, capacity)
        for kind in KINDS:
            entries = sorted(len(one.entries) for one in clients[kind])
            for where in ("near", "elsewhere") if kind == "guards by location" else ("",):
                some = [one for one in clients[kind] if not where or one.near == (where == "near")]
                parts = [captured(some, day) for day in LOOKS]
                label = f"{kind}, {where}" if where else kind
                rows.append(
                    [
                        name,
                        f"{share:.1%}",
                        label,
                        f"{statistics.median(entries):.0f} ({entries[0]} to {entries[-1]})",
                        *(f"{part:.0%}" for part in parts),
                    ]
                )
                data[f"{name}; {label}"] = {
                    "share": share,
                    "captured": dict(zip(map(str, LOOKS), parts, strict=True)),
                    "entries": statistics.median(entries),
                }
        near = captured([one for one in clients["guards"] if one.near], DAYS)
        far = captured([one for one in clients["guards"] if not one.near], DAYS)
        data[f"{name}; guards, near and elsewhere"] = [near, far]
        if statistics.median(len(one.entries) for one in clients["guards"]) > 15:
            failures.append(f"{name}: a client enters by more than 15 relays in {DAYS} days")
        if captured(clients["guards"], 1) > (0.35 if bad > 50 else 0.2):
            failures.append(f"{name}: guards are the attacker's more often than they may be")
    took = one_choice()
    data["milliseconds for a choice"] = took
    if took > 1.0:
        failures.append(f"a path by guards among {LARGE:,} relays takes {took:.2f} ms")
    return Section(
        f"Guards over {DAYS} days",
        ["attacker", "weight", "client", "entries used", *(f"captured by day {day}" for day in LOOKS)],
        rows,
        [
            f"{HONEST} honest relays of which {LEAVE:.0%} are replaced each day and {DOWN:.0%} are down at any time; "
            f"{CLIENTS} clients of each kind with {CIRCUITS} circuits a day. The attacker's relays never leave, are "
            "never down, are each in a network of its own, and all near to half of the clients.",
            f"Clients that weigh guards by location like those that are near {NEAR:.0f} times as much; ours have no "
            "notion of it. Of ours, "
            + "; ".join(
                f"{name.split(';')[0]}: {parts[0]:.0%} of those near and {parts[1]:.0%} elsewhere were captured"
                for name, parts in data.items()
                if isinstance(parts, list)
            )
            + " (chance alone makes them differ).",
            f"One path of three relays by guards among {LARGE:,} relays: {took:.2f} ms.",
        ],
        data,
        failures,
    )
