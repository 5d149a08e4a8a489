"""`backrooms testnet` as a person or a script uses it: real processes, signals, restarts."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.live, pytest.mark.slow]

Network = tuple["subprocess.Popen[str]", dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all tests here, so that keys are made once."""
    return tmp_path_factory.mktemp("live") / "net"


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "backrooms.cli.main", "testnet", "--dir", str(folder), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until(done: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.05)
    return done()


@pytest.fixture
def network(folder: Path) -> Iterator[Network]:
    """A running network of three relays; it must not need the fixture to be stopped."""
    (folder / "testnet.json").unlink(missing_ok=True)  # a killed one leaves it
    process = start(folder, "--relays", "3", "--exits", "1")
    try:
        assert wait_until(lambda: (folder / "testnet.json").exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()[0]
        state = json.loads((folder / "testnet.json").read_text())
        assert state["pid"] == process.pid
        yield process, state
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


def pids(state: dict[str, Any]) -> list[int]:
    return [state["client"]["pid"], *(relay["pid"] for relay in state["relays"])]


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits to be noticed does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What the command prints, up to the line with `text`; it is killed if that takes a minute."""
    assert process.stdout is not None
    lines = []
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            lines.append(line)
            if text in line:
                break
    finally:
        watchdog.cancel()
    return "".join(lines)


def test_it_prints_curl_lines_that_work_and_stops_on_ctrl_c(network: Network, folder: Path, require: Any) -> None:
    process, state = network
    require("curl")
    printed = read_until(process, "Ctrl-C stops")
    assert re.search(r"path used +client > relay\d > relay\d > exit1 > http://", printed)
    curls = re.findall(r"^ *(curl .*)$", printed, re.MULTILINE)
    assert len(curls) == 2
    for line in curls:
        done = subprocess.run([*shlex.split(line), "-sS", "--noproxy", "", "--max-time", "20"], capture_output=True)
        assert b"It works" in done.stdout, done.stderr
    assert [relay["exit"] for relay in state["relays"]] == [False, False, True]
    assert all(is_alive(pid) for pid in pids(state))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert not any(is_alive(pid) for pid in pids(state))
    assert not (folder / "testnet.json").exists()


def test_a_restart_keeps_ids_and_ports_and_a_second_one_is_refused(network: Network, folder: Path) -> None:
    process, state = network
    second = start(folder)
    assert "is running in" in second.communicate(timeout=30)[0]
    assert second.returncode == 1
    assert (folder / "testnet.json").exists()
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 0
    again = start(folder)  # as many relays as before, though not said again
    try:
        assert wait_until(lambda: (folder / "testnet.json").exists() or again.poll() is not None)
        after = json.loads((folder / "testnet.json").read_text())
        assert (after["socks"], after["control"]) == (state["socks"], state["control"])
        for key in ("id", "address", "nickname"):
            assert [relay[key] for relay in after["relays"]] == [relay[key] for relay in state["relays"]]
    finally:
        again.terminate()
        again.communicate(timeout=30)


def test_nobody_survives_a_killed_parent(network: Network, folder: Path) -> None:
    process, state = network
    process.kill()
    process.communicate()
    assert wait_until(lambda: not any(is_alive(pid) for pid in pids(state)), 20)
    again = start(folder)  # what was left behind is in nobody's way
    assert "ready after" in read_until(again, "ready after")
    again.terminate()
    again.communicate(timeout=30)
    assert again.returncode == 0


def test_a_relay_that_ends_is_told_and_a_client_that_ends_is_the_end(network: Network) -> None:
    process, state = network
    os.kill(state["relays"][0]["pid"], signal.SIGKILL)
    assert "relay1 has ended with status -9" in read_until(process, "has ended")
    os.kill(state["client"]["pid"], signal.SIGKILL)
    assert "the client ended with status -9" in process.communicate(timeout=30)[0]
    assert process.returncode == 1
    assert not any(is_alive(pid) for pid in pids(state))


def test_a_node_that_cannot_start_shows_the_end_of_its_log(folder: Path) -> None:
    keys = folder / "relay1" / "state" / "keys"
    keys.chmod(0o755)
    try:
        process = start(folder)
        printed = process.communicate(timeout=60)[0]
    finally:
        keys.chmod(0o700)
    assert process.returncode == 1
    assert "relay1 ended with status 1" in printed
    assert f"chmod 700 {keys}" in printed
