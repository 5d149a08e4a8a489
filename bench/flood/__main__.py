"""Measure what honest users of a relay notice while it is flooded.

A local network of three relays; every honest process on one core, the attacker on another. Honest are: a client whose
requests all pass the attacked relay (paths are three relays long), and a new peer that links in every other second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backrooms.crypto.keys import OnionKey
from bench.cpu import parse_kb
from bench.fairness import START_TIME
from bench.flood.attacks import CRAFTED, RAW
from bench.flood.honest import Figures, Prober
from bench.ours import OurNetwork

HONEST_CORE, ATTACK_CORE = 0, 1
RATES = {
    "links": 400.0,
    "handshakes": 1250.0,
    "half-open": 5000.0,
    "slow-loris": 2000.0,
    "garbage": 1250.0,
    "creates": 2500.0,
    "extends": 2500.0,
    "begins": 100.0,
}
"""Attempts per second, at least ten times what the limits let through; a circuit of `begins` brings 50 BEGINs."""


@dataclass(frozen=True, slots=True)
class Row:
    """One flood. Memory is of the attacked relay, in megabytes (10^6), before it and the most during it."""

    kind: str
    attack: dict[str, int]
    idle: Figures
    flooded: Figures
    memory_before: float
    memory_most: float

    @property
    def slower(self) -> float:
        """The honest p95 as a multiple of the idle one."""
        return self.flooded.p95_ms / self.idle.p95_ms


def pin(pid: int, core: int) -> None:
    """Keep a process on one core, with all threads it has."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            os.sched_setaffinity(int(task.name), {core})


def onion_key(folder: Path) -> str:
    """The onion key of the relay whose folder this is, in hexadecimal digits."""
    newest = sorted((folder / "state" / "keys").glob("onion-*.pem"))[-1]
    return OnionKey.from_pem(newest.read_bytes()).public.hex()


class Range:
    """The local network and what is measured in it."""

    def __init__(self, folder: Path, state: dict[str, Any], seconds: float) -> None:
        self._folder = folder
        self._state = state
        self._seconds = seconds
        # The exit: every one of our circuits passes it, and BEGINs have somewhere to go.
        exits = [relay for relay in state["relays"] if relay["exit"]]
        others = [relay for relay in state["relays"] if not relay["exit"]]
        self._relays = [dict(one, onion_key=onion_key(folder / one["nickname"])) for one in exits + others]
        self.target = self._relays[0]
        pids = [relay["pid"] for relay in state["relays"]] + [state["client"]["pid"]]
        for pid in pids:
            pin(pid, HONEST_CORE)
        os.sched_setaffinity(0, {HONEST_CORE})
        self.prober = Prober(state["socks"], self._folder / "network.toml", self.target, self.memory)

    def memory(self) -> float:
        """Resident megabytes of the attacked relay."""
        return parse_kb(Path(f"/proc/{self.target['pid']}/status").read_text(), "VmRSS")

    def flood(self, kind: str) -> Row:
        """Measure idle, then under one kind of flood."""
        idle = self.prober.measure(self._seconds)
        before = self.memory()
        with self._attack(kind) as attacker:
            flooded = self.prober.measure(self._seconds, settle=2.0)
            out, _ = attacker.communicate(timeout=60)
        attack = json.loads(out.splitlines()[-1])
        row = Row(kind, attack, idle, flooded, before, max(self.prober.memory_most, before))
        self.prober.rest(5.0)
        return row

    @contextmanager
    def _attack(self, kind: str) -> Iterator[subprocess.Popen[str]]:
        ports = [self.target["address"].rpartition(":")[2]]
        if kind == "garbage":
            ports += [self._state[name].rpartition(":")[2] for name in ("socks", "http", "control")]
        command = [sys.executable, "-m", "bench.flood.attacks", kind, "--ports", ",".join(ports)]
        command += ["--seconds", str(self._seconds + 4), "--rate", str(RATES[kind]), "--core", str(ATTACK_CORE)]
        command += ["--network", str(self._folder / "network.toml"), "--relays", json.dumps(self._relays)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attacker:
            try:
                yield attacker
            finally:
                attacker.kill()


def run(kinds: list[str], seconds: float, folder: Path) -> list[Row]:
    """Start the network in `folder`, flood it in each way, stop it."""
    network = OurNetwork(folder / "net", relays=3, exits=1)
    try:
        network.launch()
        field = Range(network.folder, network.started(START_TIME), seconds)
        return [field.flood(kind) for kind in kinds]
    finally:
        network.stop()


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| flood | attempts/s | idle p95 ms | flooded p95 ms | ratio | failed | new link ms (most) | memory MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = row.flooded.seconds + 4
        lines.append(
            f"| {row.kind} | {row.attack['attempts'] / seconds:.0f} | {row.idle.p95_ms:.1f} | {row.flooded.p95_ms:.1f} "
            f"| {row.slower:.2f} | {row.flooded.failed} of {row.flooded.requests} "
            f"| {row.flooded.link_ms:.0f} ({row.flooded.link_most_ms:.0f}, {row.flooded.links_failed} failed) "
            f"| {row.memory_before:.0f} to {row.memory_most:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.flood", description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*RAW, *CRAFTED, []], help="all by default")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each measurement")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="backrooms-flood-") as folder:
        rows = run(options.kinds or [*RAW, *CRAFTED], options.seconds, Path(folder))
    print(json.dumps([asdict(row) for row in rows], indent=2) if options.json else table(rows))
    if options.json:
        return
    for row in rows:
        print(f"{row.kind}: {json.dumps(row.attack)}")


if __name__ == "__main__":
    main()
