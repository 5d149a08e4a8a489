"""A network of real processes, as `backrooms testnet` makes it, and what tests do with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from backrooms.cli.client import ControlAddress, ControlClient
from backrooms.crypto.keys import fingerprint, parse_id
from tests import keys

START_TIME = 60.0
CANARY = "canary-b8f1c2"
"""Part of every host name and user name in these tests that must not be in any log."""

_ADDRESS = re.compile(r"\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b|\[[0-9a-f]*:[0-9a-f:]*\]|\blocalhost\b")


def wait_until(done: Callable[[], Any], seconds: float = 30.0, pause: float = 0.05) -> Any:
    """What `done` returns as soon as that is true; false when the time is up."""
    end = time.monotonic() + seconds
    while not (found := done()) and time.monotonic() < end:
        time.sleep(pause)
    return found


class Download(NamedTuple):
    """A running curl, and the circuit that its stream is on."""

    curl: subprocess.Popen[bytes]
    circuit: dict[str, Any]


class Network:
    """A running network. `relays` and `client` are as in testnet.json; `prefix` is a command that runs all of it."""

    def __init__(self, folder: Path, relays: int = 6, exits: int = 2, prefix: Sequence[str] = ()) -> None:
        self.folder = folder
        names = [f"relay{n + 1}" for n in range(relays - exits)] + [f"exit{n + 1}" for n in range(exits)]
        for number, name in enumerate(names):  # making RSA keys would take longer than all the rest
            state = folder / name / "state"
            state.mkdir(mode=0o700, parents=True)
            keys.key_store(state / "keys", number, time.time())
        command = [*prefix, sys.executable, "-m", "backrooms.cli.main", "testnet", "--dir", str(folder)]
        self._process = subprocess.Popen(
            [*command, "--relays", str(relays), "--exits", str(exits)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        state_file = folder / "testnet.json"
        if not wait_until(lambda: state_file.exists() or self._process.poll() is not None, START_TIME):
            self._process.kill()
        if not state_file.exists():
            raise AssertionError(f"the network did not start: {self._process.communicate()[0]}")
        # What it prints must not fill the pipe.
        threading.Thread(target=self._process.stdout.read, daemon=True).start()  # type: ignore[union-attr]
        self.state: dict[str, Any] = json.loads(state_file.read_text())

    @property
    def socks(self) -> str:
        return str(self.state["socks"])

    @property
    def http(self) -> str:
        return str(self.state["http"])

    def stop(self) -> None:
        """End all processes."""
        self._process.terminate()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()

    # asking

    def ask(self, keyword: str) -> Any:
        """The client's answer to `GETINFO backrooms/...`, which is JSON."""
        with self.control() as control:
            return control.json(f"backrooms/{keyword}")

    def control(self) -> ControlClient:
        """A connection to the client's control port, to be used with `with`."""
        host, _, port = self.state["control"].partition(":")
        return ControlClient(ControlAddress(host=host, port=int(port)), 10.0)

    def signal(self, name: str) -> None:
        with self.control() as control:
            control.command(f"SIGNAL {name}")

    @contextmanager
    def open_stream(self, url: str, *proxy: str, **options: Any) -> Iterator[Download]:
        """curl with its answer to `url` under way; it is killed in the end."""
        before = {stream["id"] for stream in self.ask("streams")}

        def circuit() -> dict[str, Any] | None:
            with self.control() as control:
                streams = control.json("backrooms/streams")
                circuits = {one["id"]: one for one in control.json("backrooms/circuits")}
            for stream in streams:
                if stream["id"] not in before and stream["status"] == "SUCCEEDED":
                    return circuits.get(stream["circuit_id"])
            return None

        command = ["curl", "-sS", "--noproxy", "", *(proxy or ("--socks5-hostname", self.socks)), url]
        with subprocess.Popen(command, **{"stdout": subprocess.DEVNULL, **options}) as curl:
            try:
                found = wait_until(circuit)
                assert found, "no circuit carries a new stream"
                yield Download(curl, found)
            finally:
                curl.kill()

    def relay_at(self, hop: dict[str, str]) -> dict[str, Any]:
        """The relay at a hop of a circuit."""
        relays = self.state["relays"]
        return next(one for one in relays if fingerprint(parse_id(one["id"])) == hop["fingerprint"])

    # doing

    def curl(self, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[bytes]:
        """Run curl to its end."""
        command = ["curl", "-sS", "--noproxy", "", "--max-time", str(seconds), *arguments]
        return subprocess.run(command, capture_output=True, timeout=seconds + 10, check=False)

    def fetch(self, url: str, user: str = "", **options: Any) -> bytes:
        """A page through the SOCKS port, by host name."""
        login = ["--proxy-user", f"{user}:x"] if user else []
        done = self.curl("--socks5-hostname", self.socks, *login, url, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # looking after

    def log(self, name: str) -> str:
        return (self.folder / name / "log").read_text(encoding="utf-8", errors="replace")

    def faults(self) -> list[str]:
        """Lines of logs that should not be there: tracebacks, destinations, addresses."""
        faults = []
        for path in sorted(self.folder.glob("*/log")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                if "Traceback" in line or "Unhandled" in line or CANARY in line or _ADDRESS.search(line):
                    faults.append(f"{path.parent.name}: {line}")
        return faults


def start(folder: Path, relays: int = 6, exits: int = 2, prefix: Sequence[str] = ()) -> Network:
    """A network in `folder`, which may be there from a network before."""
    shutil.rmtree(folder, ignore_errors=True)
    return Network(folder, relays, exits, prefix)


def kill(pid: int) -> None:
    """`kill -9`."""
    os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits to be noticed does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def resident(pid: int) -> float:
    """MiB of memory that a process has in RAM."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) / 1024  # type: ignore[index]
