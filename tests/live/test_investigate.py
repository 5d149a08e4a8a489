"""`backrooms investigate all` in a network of real processes, one of which may do harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backrooms.crypto.keys import fingerprint, parse_id
from tests.live.network import Network, is_alive, start, wait_until
from tests.live.site import Site

ROOT = Path(__file__).parent.parent.parent
FOUND_BAD = 4
MOST_SECONDS = 180
pytestmark = [pytest.mark.soak, pytest.mark.timeout(420)]


class Spoilt:
    """Takes a relay out of a network and puts one that does harm in its place, with its keys and address."""

    def __init__(self, network: Network, name: str, kind: str, share: float = 0.2) -> None:
        self.relay: dict[str, Any] = next(one for one in network.state["relays"] if one["nickname"] == name)
        self.fingerprint = fingerprint(parse_id(self.relay["id"]))
        folder = network.folder / name
        os.kill(self.relay["pid"], signal.SIGTERM)
        assert wait_until(lambda: not is_alive(self.relay["pid"]))
        node = ["-n", "--pidfile=", "backrooms", "-c", str(folder / "backrooms.toml")]
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.spoil", kind, str(share), *node],
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        assert wait_until(lambda: network.log(name).count("node is up") == 2)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@pytest.fixture
def own(tmp_path: Path, require: Callable[[str], str]) -> Iterator[Network]:
    """A network that may be harmed."""
    require("curl")
    network = start(tmp_path / "net")
    yield network
    network.stop()


def investigate(network: Network, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the report of `backrooms investigate`."""
    command = [sys.executable, "-m", "backrooms.cli.main", "investigate", *arguments]
    run = subprocess.run(
        [*command, "--json", "--control", network.state["control"]],
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        check=False,
    )
    assert run.stdout, run.stderr
    return run.returncode, json.loads(run.stdout)


def paths(network: Network, site: Site, count: int) -> list[set[str]]:
    """The fingerprints on the paths of so many new circuits that carry streams."""
    network.signal("NEWNYM")
    found = {}
    for number in range(count):
        network.fetch(site.url("/hello"), user=f"investigate-{number}")
        for circuit in network.ask("circuits"):
            if circuit["isolation"]:
                found[circuit["id"]] = {hop["fingerprint"] for hop in circuit["path"]}
    return list(found.values())


@pytest.mark.parametrize(("kind", "verdict"), [
    ("destroys", "destroys circuits"), ("refuses", "refuses to extend"), ("delays", "delays cells"),
])  # fmt: skip
def test_b10_a_relay_that_does_harm_is_named_and_avoided(own: Network, site: Site, kind: str, verdict: str) -> None:
    spoilt = Spoilt(own, "relay3", kind)
    try:
        status, report = investigate(own, "all")
        bad = {relay["fingerprint"]: relay["verdict"] for relay in report["relays"] if relay["bad"]}
        assert bad == {spoilt.fingerprint: verdict}, report
        assert status == FOUND_BAD
        named = next(relay for relay in report["relays"] if relay["bad"])
        assert named["named_after"] < MOST_SECONDS
        assert named["avoided"]
        found = paths(own, site, 12)
        assert len(found) >= 6
        assert not any(spoilt.fingerprint in path for path in found)
    finally:
        spoilt.stop()


def test_b10_no_honest_relay_is_named(own: Network) -> None:
    status, report = investigate(own, "all")
    assert status == 0, [relay for relay in report["relays"] if relay["verdict"] != "fine"]
    assert {relay["verdict"] for relay in report["relays"]} == {"fine"}
