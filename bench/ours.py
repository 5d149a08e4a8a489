"""A loopback network of Backrooms: what `backrooms testnet` starts, found through its testnet.json."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.control import ControlError
from bench.network import Network, NetworkError, Relay, open_control

NAME = "ours"
RELAYS = 6


def find_command() -> str:
    """The `backrooms` command of the environment that runs the benchmark, else of the PATH."""
    beside = Path(sys.executable).parent / "backrooms"
    found = str(beside) if beside.exists() else shutil.which("backrooms")
    if found is None:
        raise NetworkError("the backrooms command is not installed: run `make run` once, or pip install -e .")
    return found


def parse_identities(ns_all: str) -> dict[str, str]:
    """Nickname to identity (40 hex digits) from the `r NICKNAME BASE64 ...` lines of GETINFO ns/all."""
    identities = {}
    for line in ns_all.splitlines():
        words = line.split(" ")
        if words[0] == "r" and len(words) > 2:
            identities[words[1]] = base64.b64decode(words[2] + "=" * (-len(words[2]) % 4)).hex().upper()
    return identities


def parse_testnet(description: Mapping[str, Any], identities: Mapping[str, str]) -> Network:
    """The network of a testnet.json, its relays named as circuit paths name them."""
    try:
        relays = tuple(
            Relay(relay["nickname"], identities[relay["nickname"]], int(relay["pid"]))
            for relay in description["relays"]
        )
        return Network(NAME, description["socks"], description["control"], int(description["client"]["pid"]), relays)
    except (KeyError, TypeError) as error:
        raise NetworkError(f"testnet.json or the client's list of relays lacks {error}") from None


class OurNetwork:
    """A `Testbed` of `backrooms testnet` in `folder`."""

    name = NAME

    def __init__(self, folder: Path, relays: int = RELAYS, exits: int | None = None) -> None:
        self.folder = folder.absolute()
        self._size = ["--relays", str(relays)] + ([] if exits is None else ["--exits", str(exits)])
        self._process: subprocess.Popen[bytes] | None = None
        self._log = self.folder.with_name(self.folder.name + ".log")

    def launch(self) -> None:
        """Start the testnet."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        command = [find_command(), "testnet", "--dir", str(self.folder), *self._size]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is handled by the parent, in its own order
            )

    def started(self, timeout: float) -> dict[str, Any]:
        """What testnet.json says, once the network is usable."""
        end = time.monotonic() + timeout
        while (description := self._description()) is None:
            if self._process is None or self._process.poll() is not None:
                code = None if self._process is None else self._process.returncode
                raise NetworkError(f"{self.name}: the testnet ended with {code}\n{self._log_end()}")
            if time.monotonic() > end:
                raise NetworkError(f"{self.name}: no testnet.json after {timeout:.0f} s\n{self._log_end()}")
            time.sleep(0.1)
        return description

    def wait(self, timeout: float) -> Network:
        """The network, once it says that it is usable."""
        description = self.started(timeout)
        try:
            with open_control(description["control"], 10) as control:
                return parse_testnet(description, parse_identities(control.getinfo("ns/all")))
        except (ControlError, OSError, KeyError) as error:
            raise NetworkError(f"{self.name}: {error!r}\n{self._log_end()}") from error

    def stop(self) -> None:
        """Interrupt the testnet as a person would; what then still runs of it is killed."""
        process, self._process = self._process, None
        if process is None:
            return
        description = self._description() or {"relays": [], "client": {}}
        process.send_signal(signal.SIGINT)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        pids = [relay.get("pid") for relay in description["relays"]] + [description["client"].get("pid")]
        for pid in pids:
            if pid is not None and self._is_ours(int(pid)):
                os.kill(int(pid), signal.SIGKILL)

    def _is_ours(self, pid: int) -> bool:
        """Whether `pid` is a process of this very testnet: numbers are used again."""
        try:
            return os.fsencode(self.folder) in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    def _description(self) -> dict[str, Any] | None:
        try:
            description: dict[str, Any] = json.loads((self.folder / "testnet.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return description

    def _log_end(self, lines: int = 15) -> str:
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(no log)"
