"""One network under one load: throughput, and CPU by role with the idle cost of an equal time taken off."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.control import Control
from bench.cpu import cpu_by_pid, cpu_samples, machine_busy_seconds
from bench.load import KINDS, Load, LoadResult, Running
from bench.network import Network, NetworkError, Relay, used_circuits

HOPS = 3
SETTLE = 0.3
"""Seconds between a load and what comes next: acknowledgements and closing streams still cost."""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds per GB (10^9 payload bytes): of one relay hop, and of the client."""

    relay: float
    client: float


@dataclass(slots=True)
class Round:
    """What one network did in one round."""

    network: str
    mb_per_s: dict[str, float] = field(default_factory=dict)
    cost: dict[str, Cost] = field(default_factory=dict)
    paths: dict[str, list[str]] = field(default_factory=dict)
    ttfb_ms: float = 0.0
    idle_cpu_percent: float = 0.0
    machine_busy_percent: float = 0.0
    """How busy all processors were while all networks were idle: what else disturbed the measurement."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network under a load: the result, the paths of its circuits, CPU seconds by process, wall seconds."""

    result: LoadResult
    paths: list[list[Relay]]
    spent: dict[int, float]
    seconds: float


def cost_per_gb(spent: Mapping[int, float], idle: Mapping[int, float], client: int, hops: set[int], size: int) -> Cost:
    """CPU-s/GB from CPU seconds by process under load and idle for the same time.

    Every byte passes HOPS of the relays `hops`, however many circuits there were, so their sum is divided by
    HOPS.
    """
    net = {pid: seconds - idle[pid] for pid, seconds in spent.items()}
    gigabytes = size / 1e9
    return Cost(sum(net[pid] for pid in hops) / HOPS / gigabytes, net[client] / gigabytes)


def watch_paths(network: Network, running: Running, streams: int, port: int) -> list[list[Relay]]:
    """The circuits that carry the running transfers, asked of the client until all `streams` are seen."""
    found: dict[str, list[Relay]] = {}
    carrying: set[str] = set()
    with Control(network.control) as control:
        while len(carrying) < streams and running.active():
            circuits = used_circuits(control, port)
            for circuit, hops in zip(circuits, network.hops(circuits), strict=True):
                found[circuit.id] = hops
                # Streams with different SOCKS user names never share a circuit, so circuits count streams.
                carrying.add(circuit.fields.get("CONFLUX_ID", circuit.id))
            time.sleep(0.05)
    if len(carrying) < streams:
        running.finish()  # a transfer that failed is the better explanation
        raise NetworkError(
            f"{network.name}: {len(carrying)} of {streams} circuits were seen before the transfers ended: "
            "use more megabytes"
        )
    wrong = [path for path in found.values() if len(path) != HOPS]
    if wrong:
        raise NetworkError(f"{network.name}: a circuit of {len(wrong[0])} hops, not {HOPS}, was used")
    return list(found.values())


def measure_load(network: Network, load: Load, kind: str, prefix: str) -> Loaded:
    """Run `kind` once on fresh circuits that are ready."""
    users = load.users(kind, prefix)
    load.warm_up(network.socks, users)
    time.sleep(SETTLE)
    before, started = cpu_samples(network.pids), time.monotonic()
    running = load.start(kind, network.socks, users)
    try:
        paths = watch_paths(network, running, len(users), load.port)
        result = running.finish()
    except BaseException:
        running.abandon()
        raise
    spent = cpu_by_pid(before, cpu_samples(network.pids))
    return Loaded(result, paths, spent, time.monotonic() - started)


class NetworkRound:
    """One network in one round: loads first; the figures need an idle interval, which all networks share."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._loaded: dict[str, Loaded] = {}
        self._ttfb_ms = 0.0

    @property
    def idle_seconds(self) -> float:
        """How long the idle interval has to be: as long as the first load was."""
        return self._loaded[KINDS[0]].seconds

    def run(self, load: Load, number: int, repetitions: int) -> None:
        """All loads and the time to first byte."""
        for kind in KINDS:
            self._loaded[kind] = measure_load(self.network, load, kind, f"round{number}")
        self._ttfb_ms = load.first_byte_ms(self.network.socks, f"round{number}-ttfb", repetitions)

    def finish(self, idle: Mapping[int, float]) -> Round:
        """The figures, given the CPU seconds by process of `idle_seconds` without load.

        For the other loads they are scaled to their time.
        """
        result = Round(self.network.name, ttfb_ms=self._ttfb_ms)
        result.idle_cpu_percent = 100 * sum(idle.values()) / self.idle_seconds
        for kind, loaded in self._loaded.items():
            hops = {relay.pid for path in loaded.paths for relay in path}
            scale = loaded.seconds / self.idle_seconds
            scaled = {pid: seconds * scale for pid, seconds in idle.items()}
            size = loaded.result.size
            result.mb_per_s[kind] = loaded.result.mb_per_s
            result.cost[kind] = cost_per_gb(loaded.spent, scaled, self.network.client_pid, hops, size)
            result.paths[kind] = sorted({" ".join(r.nickname for r in path) for path in loaded.paths})
        return result


def idle_together(rounds: Sequence[NetworkRound]) -> list[Round]:
    """Leave all networks alone at once, and look at each when its own idle interval is over."""
    time.sleep(SETTLE)
    started, busy = time.monotonic(), machine_busy_seconds()
    before = {r.network.name: cpu_samples(r.network.pids) for r in rounds}
    finished: dict[str, Round] = {}
    for r in sorted(rounds, key=lambda r: r.idle_seconds):
        time.sleep(max(0.0, started + r.idle_seconds - time.monotonic()))
        name = r.network.name
        finished[name] = r.finish(cpu_by_pid(before[name], cpu_samples(r.network.pids)))
    available = (time.monotonic() - started) * (os.cpu_count() or 1)
    for result in finished.values():
        result.machine_busy_percent = 100 * (machine_busy_seconds() - busy) / available
    return [finished[r.network.name] for r in rounds]
