"""One node as a process of its own, with a service manager that it tells how it is."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from backrooms.netdir.network import NetworkFile
from tests import keys

START_TIME = 60.0
TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")

RELAY = """
socks = []
http = []
[client]
enabled = false
[relay]
enabled = true
addresses = ["tls:127.0.0.1:9"]
listen = ["tls:127.0.0.1:0"]
contact = "operator@example.org"
[control]
listen = ["unix:control.sock:mode=600"]
"""


class NodeProcess:
    """A folder with a node's configuration, state and log, and the process while there is one.

    `told` is what the node told the service manager, without its signs of life.
    """

    def __init__(self, folder: Path, config: str = RELAY, number: int | None = 0) -> None:
        """`number` is that of its keys in `tests.keys`; None for a client, or for new keys."""
        self.folder = folder
        self.state = folder / "state"
        self.told: list[str] = []
        self.process: subprocess.Popen[bytes]
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "network.toml").write_text(NetworkFile("alone", keys.NETWORK_ID, ()).to_toml())
        (folder / "backrooms.toml").write_text(config)
        if number is not None:
            self.state.mkdir(mode=0o700)
            keys.key_store(self.state / "keys", number, time.time())
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(folder / "notify"))

    def start(
        self,
        command: Sequence[str] = TWISTD,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Start it; `before` runs in the child, and `command` stands for twistd."""
        added = {"NOTIFY_SOCKET": str(self.folder / "notify"), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        arguments = ["-n", "--pidfile=", "backrooms", "-c", str(self.folder / "backrooms.toml")]
        self.told.clear()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **added, **(environment or {})},
                preexec_fn=before,
            )

    def wait_for(self, word: str, seconds: float = START_TIME) -> str:
        """The next message to the manager with `word` in it; `AssertionError` if the node ends or takes long."""
        end = time.monotonic() + seconds
        self._manager.settimeout(0.1)
        while True:
            try:
                text = self._manager.recv(4096).decode()
            except TimeoutError:
                over = self.process.poll() is not None or time.monotonic() > end
                assert not over, f"no {word}, status {self.process.returncode}, log:\n{self.log()}"
                continue
            if text != "WATCHDOG=1":
                self.told.append(text)
            if word in text:
                return text

    def ready(self) -> str:
        """Wait until it is up."""
        return self.wait_for("READY=1")

    def wait(self, seconds: float = 30.0) -> int:
        """Its exit status, when it ends."""
        return self.process.wait(seconds)

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def lines(self, words: str) -> list[str]:
        """The lines of the log with these words."""
        return [line for line in self.log().splitlines() if words in line]

    def close(self) -> None:
        """End it, whatever it does, and the service manager."""
        if hasattr(self, "process") and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._manager.close()
