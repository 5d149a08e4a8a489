"""How fast a dead relay is known, what it costs, and what lies about it can do."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from backrooms.gossip.detector import TIMING, Timing
from backrooms.gossip.suspicions import make_suspicion
from backrooms.wire.heartbeat import Rumours, Suspicion
from bench.sim.section import Section
from bench.sim.watching import NETWORK_ID, SimRelay, World, key

RELAYS = 64
RUNS = 12
BOUND = 5.0
"""Seconds within which 95 of 100 clients must know."""
QUIET = 600.0
"""Seconds without a false alarm."""
WEIGHT = 0.1
"""Of all weight that rumours may shift."""
LIARS = 0.2
ATTACK = 60.0
"""Seconds of lies."""


def percentile(values: list[float], share: float) -> float:
    """The value that this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def stopped(seed: int, relays: int = RELAYS, timing: Timing = TIMING, **network: float) -> list[float]:
    """Seconds from SIGSTOP of one relay until each of the clients avoids it."""
    world = World(relays, seed=seed, timing=timing, **network)  # type: ignore[arg-type]
    world.run(10 + 8 * timing.beat * world.rng.random() + 8 * (timing.beat - 1))
    victim = world.relays[world.rng.randrange(0, relays)]
    world.freeze(victim)
    began, known = world.now, dict[int, float]()

    def all_know() -> bool:
        for number, client in enumerate(world.clients):
            if number not in known and victim.id in client.doubts.doubted(world.now):
                known[number] = world.now - began
        return len(known) == len(world.clients)

    world.run(30, all_know)
    return [known.get(number, 30.0) for number in range(len(world.clients))]


def alarms(world: World, seconds: float, disturb: Callable[[], None] = lambda: None) -> tuple[int, int, float]:
    """Alarms (a relay that a client avoids), suspicions signed, and bytes an hour, in so much time without deaths."""
    world.run(30)
    for one in world.relays:
        one.sent = 0
    signed, seen = world.accusations(), set[tuple[int, bytes]]()
    disturb()
    for _ in range(int(seconds)):
        world.run(1)
        for number, client in enumerate(world.clients):
            seen.update((number, one) for one in client.doubts.doubted(world.now))
    return len(seen), world.accusations() - signed, world.bytes_per_hour(seconds)


def stalls(world: World, seconds: float) -> Callable[[], None]:
    """Event loops of some relays that stand still for three seconds, one after the other, two at a time."""

    def begin() -> None:
        for number in range(int(seconds / 10)):
            for one in world.rng.sample(world.relays, 2):
                world.at(world.now + 10 * number + 1, lambda one=one: world.freeze(one))  # type: ignore[misc]
                world.at(world.now + 10 * number + 4, lambda one=one: world.thaw(one))  # type: ignore[misc]

    return begin


class Liars:
    """Relays that say together that honest ones are dead, wherever they are watchers, again and again."""

    def __init__(self, world: World, share: float) -> None:
        self.world = world
        self.liars = world.relays[: int(share * len(world.relays))]
        self.honest = world.relays[len(self.liars) :]
        self.most = 0.0
        self.refuted_after: list[float] = []
        self._began: dict[tuple[int, bytes], float] = {}
        self._keys = {one.id: one for one in self.liars}

    def lie(self) -> None:
        """One round: every lie that can be told, told to every relay and every client."""
        world = self.world
        for victim in self.honest:
            accusers = [one for one in world.neighbours.watchers(victim.id, world.wall) if one in self._keys]
            if not accusers:
                continue
            incarnation = victim.detector.incarnation
            told = tuple(self._lie(self._keys[one], victim, incarnation) for one in accusers)
            for client in world.clients:
                client.doubts.rumours(Rumours(told), world.now, world.wall)
            for other in self.honest:
                world.post(self.liars[0], other.id, Rumours(told))

    def _lie(self, accuser: SimRelay, victim: SimRelay, incarnation: int) -> Suspicion:
        sign = key(accuser.number).sign
        return make_suspicion(sign, NETWORK_ID, accuser.id, victim.id, incarnation, self.world.wall)

    def look(self) -> None:
        """What clients avoid now."""
        world = self.world
        total = sum(world.weights.values())
        for number, client in enumerate(world.clients):
            doubted = client.doubts.doubted(world.now)
            self.most = max(self.most, sum(world.weights[one] for one in doubted) / total)
            for one in doubted:
                self._began.setdefault((number, one), world.now)
            for pair in [pair for pair in self._began if pair[0] == number and pair[1] not in doubted]:
                self.refuted_after.append(world.now - self._began.pop(pair))


def lies(bounded: bool, refute: bool, one_place: bool = False) -> tuple[float, float, float]:
    """The most weight that 20 % liars shift at a time, the mean over a minute, and how long a lie lives."""
    liars = int(LIARS * RELAYS)
    world = World(RELAYS, bounded=bounded, places=lambda one: 0 if one_place and one < liars else one)
    attack = Liars(world, LIARS)
    world.run(20)
    if not refute:
        for one in attack.honest:
            one.detector._refute = lambda wall: None  # type: ignore[method-assign]
    shares = []
    total = sum(world.weights.values())
    for step in range(int(ATTACK * 2)):
        if step % 10 == 0:
            attack.lie()
        world.run(0.5)
        attack.look()
        doubted = [client.doubts.doubted(world.now) for client in world.clients]
        shares.append(statistics.mean(sum(world.weights[one] for one in some) / total for some in doubted))
    lived = statistics.mean(attack.refuted_after) if attack.refuted_after else ATTACK
    return attack.most, statistics.mean(shares), lived


def run() -> Section:
    """All of it."""
    rows: list[tuple[str, ...]] = []
    data: dict[str, Any] = {}
    failures: list[str] = []

    def times(name: str, relays: int = RELAYS, runs: int = RUNS, **options: Any) -> float:
        found = [one for seed in range(runs) for one in stopped(seed, relays, **options)]
        p50, p95 = statistics.median(found), percentile(found, 0.95)
        shown = f"p50 {p50:.2f}, p95 {p95:.2f}, max {max(found):.2f} s ({len(found)} clients in {runs} runs)"
        rows.append((f"SIGSTOP of one of {relays}, {name}", shown))
        data[f"stop {name} {relays}"] = {"p50": p50, "p95": p95, "max": max(found)}
        return p95

    networks: dict[str, dict[str, Any]] = {
        "quiet network": {},
        "200 ms jitter": {"jitter": 0.2},
        "200 ms jitter, 5 % loss": {"jitter": 0.2, "loss": 0.05},
    }
    for name, options in networks.items():
        if (p95 := times(name, **options)) >= BOUND:
            failures.append(f"a stopped relay was known after {p95:.2f} s in {name}, {BOUND} are allowed")
    slower: dict[str, Any] = {"timing": Timing(beat=2.0), "jitter": 0.2, "loss": 0.05}
    times(f"the same, heartbeats every 2 s in place of {TIMING.beat:.0f} s", runs=8, **slower)
    for few in (6, 16):
        if times("quiet network", few, 8) >= BOUND:
            failures.append(f"a stopped relay is known too late in a network of {few}")
    for name, jitter, loss in (("200 ms jitter", 0.2, 0.0), ("200 ms jitter, 5 % loss", 0.2, 0.05)):
        world = World(RELAYS, seed=1, jitter=jitter, loss=loss)
        false, signed, rate = alarms(world, QUIET)
        rows.append((f"10 minutes of {name}", f"{false} false alarms, {signed} single suspicions, {mb(rate)}"))
        data[f"quiet {name}"] = {"alarms": false, "suspicions": signed, "bytes_per_hour": rate}
        if false:
            failures.append(f"{false} false alarms in 10 minutes of {name}")
    world = World(RELAYS, seed=2)
    own = Counting(world)
    alarms(world, 120, stalls(world, 120))
    rows.append(("24 event loops that stand still for 3 s", f"{own.against_others()} suspicions by them of others"))
    data["stalls"] = {"suspicions": own.against_others()}
    if own.against_others():
        failures.append("a relay whose event loop stood still suspected others")
    world = World(RELAYS, seed=3)
    _, _, rate = alarms(world, 120)
    naive = 2 * 8 * 4096 * 3600.0
    rows.append(
        ("heartbeats of an idle relay, each way", f"{mb(rate)} (pings of 8 neighbours each second: {mb(naive)})")
    )
    data["bytes_per_hour"] = rate

    for name, bounded, refute, one_place in (
        ("no defence: any watcher is believed", False, False, False),
        ("three confirmers and bounds, but nobody refutes", True, False, False),
        ("three confirmers, bounds and refutation", True, True, False),
        ("the same, all liars in one /16", True, True, True),
    ):
        most, mean, lived = lies(bounded, refute, one_place)
        rows.append((f"20 % liars, {name}", f"shift {most:.1%} of the weight at most, {mean:.1%} on average; 0 guards"))
        data[f"liars {name}"] = {"most": most, "mean": mean, "seconds": lived}
        if bounded and most > WEIGHT:
            failures.append(f"liars shifted {most:.1%} of the weight")
    return Section(
        "Failure detection",
        ("case", "outcome"),
        rows,
        (
            f"{RELAYS} relays with 4 clients of three sources each, 50 ms one way, the real machines and signatures.",
            "Known: a client has verified the suspicions of three watchers and leaves the relay out of new paths.",
            "A message over a link is one cell. Rumours have no way to a client's guards (gossip.doubts).",
        ),
        data,
        failures,
    )


class Counting:
    """Notes which relays were stopped, and what they then said of others."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._stalled: dict[bytes, tuple[float, int]] = {}
        self._found = 0
        freeze, thaw = world.freeze, world.thaw

        def freezing(one: SimRelay) -> None:
            self._stalled[one.id] = world.now, one.detector.accusations
            freeze(one)

        def thawing(one: SimRelay) -> None:
            thaw(one)
            world.at(world.now + 5, lambda: self._look(one))

        world.freeze, world.thaw = freezing, thawing  # type: ignore[method-assign]

    def _look(self, one: SimRelay) -> None:
        self._found += one.detector.accusations - self._stalled.pop(one.id)[1]

    def against_others(self) -> int:
        """Suspicions signed within five seconds after a stall by the one that stood still."""
        return self._found


def mb(rate: float) -> str:
    """Bytes an hour in words."""
    return f"{rate / 1e6:.1f} MB an hour"
