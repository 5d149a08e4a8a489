"""Half an hour of mixed load while relays are killed and come back: nothing grows, nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.live.mill import Mill
from tests.live.network import Network, is_alive, kill, resident, start
from tests.live.site import Site

MINUTES = float(os.environ.get("BACKROOMS_SOAK_MINUTES", "30"))
WARM_UP = 0.25
"""Share of the time in which memory may still grow."""
VICTIMS = ("relay1", "relay2", "exit1")
KILL_EACH = 60.0
DOWN = 10.0
LOOK_EACH = 5.0
SLOPE = 1.0
"""MiB in ten minutes."""


def slope(samples: list[tuple[float, float]]) -> float:
    """The least squares line through (seconds, MiB), as MiB in ten minutes."""
    count = len(samples)
    middle = sum(x for x, _ in samples) / count
    height = sum(y for _, y in samples) / count
    return 600 * sum((x - middle) * (y - height) for x, y in samples) / sum((x - middle) ** 2 for x, _ in samples)


def test_slope() -> None:
    assert slope([(0, 5), (60, 5.1), (120, 5.2)]) == pytest.approx(1.0)
    assert slope([(0, 5), (60, 5), (120, 5)]) == 0


class Victims:
    """Kills one relay after the other, and starts it again a little later."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._pids = {relay["nickname"]: relay["pid"] for relay in network.state["relays"]}
        self._started: list[subprocess.Popen[bytes]] = []
        self._next = time.monotonic() + KILL_EACH
        self._down: tuple[str, float] | None = None
        self.kills = 0

    def act(self) -> None:
        now = time.monotonic()
        if self._down is not None and now > self._down[1]:
            self._start(self._down[0])
            self._down = None
        elif self._down is None and now > self._next:
            name = VICTIMS[self.kills % len(VICTIMS)]
            kill(self._pids[name])
            self.kills += 1
            self._down = name, now + DOWN
            self._next = now + KILL_EACH

    def _start(self, name: str) -> None:
        folder = self._network.folder / name
        command = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "backrooms"]
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*command, "-c", str(folder / "backrooms.toml")], stdout=log, stderr=log, cwd=folder
            )
        self._started.append(process)
        self._pids[name] = process.pid

    def stop(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.timeout(MINUTES * 60 + 300)
@pytest.mark.soak
def test_half_an_hour_of_load_while_relays_die(tmp_path: Path, require: Any) -> None:
    require("curl")
    network = start(tmp_path / "net", relays=8, exits=3)
    site = Site(tmp_path)
    pids = {one["nickname"]: one["pid"] for one in network.state["relays"] if one["nickname"] not in VICTIMS}
    pids["client"] = network.state["client"]["pid"]
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in pids}
    victims = Victims(network)
    try:
        mill = Mill(network.socks, site)
        began = time.monotonic()
        end = began + MINUTES * 60
        while (now := time.monotonic()) < end:
            victims.act()
            for name, pid in pids.items():
                assert is_alive(pid), name
                if now > began + MINUTES * 60 * WARM_UP:
                    samples[name].append((now - began, resident(pid)))
            time.sleep(LOOK_EACH)
        busy = {name: descriptors(pid) for name, pid in pids.items()}
        mill.stop()
        time.sleep(15)
        network.signal("NEWNYM")
        time.sleep(15)
        rest = {name: descriptors(pid) for name, pid in pids.items()}
        slopes = {name: round(slope(values), 2) for name, values in samples.items()}
        report = {
            "minutes": MINUTES,
            "kills": victims.kills,
            "done": dict(mill.done),
            "failed": dict(mill.failed),
            "slopes": slopes,
            "memory": {name: round(values[-1][1], 1) for name, values in samples.items()},
            "descriptors busy": busy,
            "descriptors at rest": rest,
            "client's timers": network.ask("status")["timers"],
        }
        print(json.dumps(report, indent=2))
        assert mill.wrong == []
        assert network.faults() == []
        assert sum(mill.failed.values()) < 0.02 * sum(mill.done.values()) + 20 * victims.kills, report
        assert max(slopes.values()) < SLOPE, report
        # A link to every other node, listeners, logs, the reactor's own: no more than that is open at rest.
        assert max(rest.values()) < 60, report
        # The client's circuits, links and keepers of house; each stream had one or two more.
        assert report["client's timers"] < 60, report
    finally:
        victims.stop()
        network.stop()
        site.stop()
