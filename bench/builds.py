"""What it costs the client to build a circuit: new isolation names force new circuits, known ones do not."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.control import Control
from bench.cpu import cpu_between, cpu_sample
from bench.load import Load
from bench.network import Network, NetworkError
from bench.rounds import HOPS, SETTLE


@dataclass(frozen=True, slots=True)
class Builds:
    """Circuits built; the median wall time and the client's CPU time of one, in milliseconds."""

    count: int
    wall_ms: float
    client_cpu_ms: float


def new_builds(circuits: list[dict[str, Any]], known: int) -> list[float]:
    """`build_ms` of the 3-hop circuits in GETINFO backrooms/circuits that are younger than id `known`."""
    return [
        float(circuit["build_ms"])
        for circuit in circuits
        if int(circuit["id"]) > known and circuit["build_ms"] is not None and len(circuit["path"]) == HOPS
    ]


def cpu_per_build(with_builds: float, without: float, builds: int) -> float:
    """Milliseconds of CPU per build from CPU seconds of the same requests with and without building."""
    return 1000 * (with_builds - without) / builds


def measure_builds(network: Network, load: Load, count: int = 50) -> Builds:
    """Build about `count` circuits.

    The same number of requests through one ready circuit, in the same time, gives what the requests and the
    passing time cost without building.
    """
    with Control(network.control) as control:
        known = max((int(circuit["id"]) for circuit in _circuits(control)), default=0)
        fresh, seconds = _requests(network, load, [f"build-{i}" for i in range(count)])
        built = new_builds(_circuits(control), known)
        load.warm_up(network.socks, ["build-again"])
        time.sleep(SETTLE)
        again, _ = _requests(network, load, ["build-again"] * count, at_least=seconds)
    if len(built) < count // 2:
        raise NetworkError(f"{network.name}: {count} isolated requests built only {len(built)} circuits")
    return Builds(len(built), median(built), cpu_per_build(fresh, again, len(built)))


def _circuits(control: Control) -> list[dict[str, Any]]:
    circuits: list[dict[str, Any]] = json.loads(control.getinfo("backrooms/circuits"))
    return circuits


def _requests(network: Network, load: Load, users: list[str], at_least: float = 0.0) -> tuple[float, float]:
    """A tiny request for each user, one after the other; the client's CPU seconds and the wall seconds."""
    before, started = cpu_sample(network.client_pid), time.monotonic()
    for user in users:
        load.warm_up(network.socks, [user])
    time.sleep(max(1.0, at_least - (time.monotonic() - started)))  # spares are still being built
    seconds = time.monotonic() - started
    return cpu_between(before, cpu_sample(network.client_pid)), seconds
