"""A network of real processes on this machine: its folder, its configuration files, its processes."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shutil import which
from typing import IO, Any

from backrooms.crypto.keys import parse_id
from backrooms.errors import BackroomsError
from backrooms.keystore.file import write_atomic
from backrooms.netdir.network import Contact, NetworkFile

HOST = "127.0.0.1"
CLIENT = "client"
KEY_PROCESSES = 2
CONTACTS = 3
"""Relays in the network file; the others are learnt from these."""
LOG_LINES = 20
STOP_CLIENT = 3.0
STOP_RELAYS = 8.0
MAX_UNIX_PATH = 107
"""Bytes of a unix socket's path on Linux."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


class TestnetError(BackroomsError):
    """The local network cannot be started or was lost."""

    __test__ = False  # pytest should not take it for a test


@dataclass(frozen=True, slots=True)
class LocalRelay:
    """One relay of the network: what is remembered from one start to the next. `id` is base32 text."""

    nickname: str
    port: int
    exit: bool
    id: str = ""

    @property
    def address(self) -> str:
        """What it publishes."""
        return f"tls:{HOST}:{self.port}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Who is in the network, and which TCP ports of 127.0.0.1 they use."""

    relays: tuple[LocalRelay, ...]
    socks: int
    http: int
    control: int

    @classmethod
    def plan(cls, relays: int, exits: int, ports: list[int]) -> Layout:
        """`ports` has one for each relay and three for the client."""
        names = [f"relay{n + 1}" for n in range(relays - exits)] + [f"exit{n + 1}" for n in range(exits)]
        nodes = (LocalRelay(name, port, name.startswith("exit")) for name, port in zip(names, ports, strict=False))
        return cls(tuple(nodes), *ports[relays : relays + 3])

    @classmethod
    def load(cls, file: Path) -> Layout | None:
        """What `save` wrote; None when there is nothing usable."""
        try:
            table = json.loads(file.read_text(encoding="utf-8"))
            table["relays"] = tuple(LocalRelay(**relay) for relay in table["relays"])
            return cls(**table)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def with_ids_of(self, last: Layout) -> Layout:
        """The same with the ids that relays of these names had before: their keys are still there."""
        ids = {relay.nickname: relay.id for relay in last.relays}
        return replace(self, relays=tuple(replace(one, id=ids.get(one.nickname, "")) for one in self.relays))

    def save(self, file: Path) -> None:
        """Write it for the next start."""
        write_atomic(file, (json.dumps(asdict(self), indent=2) + "\n").encode(), 0o644)

    def ports(self) -> list[int]:
        """All ports, the client's last."""
        return [*(relay.port for relay in self.relays), self.socks, self.http, self.control]

    def exits(self) -> int:
        """How many of the relays are exits."""
        return sum(relay.exit for relay in self.relays)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def busy_ports(ports: Iterable[int]) -> list[int]:
    """Those of `ports` that cannot be listened on."""
    busy = []
    for port in ports:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Twisted does
            try:
                one.bind((HOST, port))
            except (OSError, OverflowError):
                busy.append(port)
    return busy


class Folder:
    """The network's folder. Only one network can run in it at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: IO[bytes] | None = None

    @property
    def layout_file(self) -> Path:
        return self.path / "layout.json"

    @property
    def testnet_file(self) -> Path:
        """There while the network is usable."""
        return self.path / "testnet.json"

    @property
    def network_file(self) -> Path:
        return self.path / "network.toml"

    def node(self, name: str) -> Path:
        return self.path / name

    def log(self, name: str) -> Path:
        return self.node(name) / "log"

    def config(self, name: str) -> Path:
        return self.node(name) / "backrooms.toml"

    def open(self) -> None:
        """Make the folder if need be and take it for ourselves."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.path / "lock").open("ab")
        except OSError as error:
            raise TestnetError(f"{self.path}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise TestnetError(f"a network is running in {self.path} already") from None
        self._lock = lock
        self.testnet_file.unlink(missing_ok=True)

    def close(self) -> None:
        """Say that the network is gone, and let others have the folder; nothing if it is not ours."""
        if self._lock is not None:
            self.testnet_file.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def write_configs(self, layout: Layout) -> None:
        """The network file and a configuration file for every node."""
        try:
            network_id = NetworkFile.parse(self.network_file.read_text(encoding="utf-8")).id
        except (OSError, BackroomsError):
            network_id = secrets.token_bytes(32)
        contacts = (Contact(parse_id(relay.id), relay.address) for relay in layout.relays[:CONTACTS])
        network = NetworkFile("testnet", network_id, tuple(contacts))
        write_atomic(self.network_file, network.to_toml().encode(), 0o644)
        for relay in layout.relays:
            write_atomic(self.config(relay.nickname), self._relay_config(relay).encode(), 0o644)
        write_atomic(self.config(CLIENT), self._client_config(layout).encode(), 0o644)

    def _control_sockets(self, name: str) -> list[str]:
        path = self.node(name) / "control.sock"
        return ["unix:control.sock:mode=600"] if len(os.fsencode(path)) <= MAX_UNIX_PATH else []

    def _relay_config(self, relay: LocalRelay) -> str:
        text = f"""\
socks = []
http = []

[node]
nickname = "{relay.nickname}"
network = "../network.toml"

[client]
enabled = false

[control]
listen = {json.dumps(self._control_sockets(relay.nickname))}

[relay]
enabled = true
addresses = ["{relay.address}"]
contact = "whoever runs this test network"

[path]
distinct_subnets = false
"""
        if relay.exit:
            text += """
[exit]
enabled = true
policy = ["accept *:*"]
allow_private = true
single_hop = true
"""
        return text

    def _client_config(self, layout: Layout) -> str:
        control = [f"tcp:{layout.control}:interface={HOST}", *self._control_sockets(CLIENT)]
        return f"""\
[node]
nickname = "{CLIENT}"
network = "../network.toml"

[[socks]]
listen = "tcp:{layout.socks}:interface={HOST}"

[[http]]
listen = "tcp:{layout.http}:interface={HOST}"

[control]
listen = {json.dumps(control)}

[client]
allow_private = true

[path]
distinct_subnets = false
"""


def child_environment() -> dict[str, str]:
    """Ours, without a way to load modules from the folder a child runs in."""
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes its program: end when its parent ends, however that happens."""

    def prepare() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
            if os.getppid() != parent:  # too late: it is gone already
                os._exit(1)

    return prepare


def spawn(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a child that a terminal's Ctrl-C does not reach, as we stop it ourselves, and that ends with us.

    Children are started while there is one thread, so what runs between fork and exec is safe.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        env=child_environment(),
        start_new_session=True,
        preexec_fn=_die_with(os.getpid()),
        **options,
    )


def make_keys(folder: Folder, relays: Iterable[LocalRelay], done: Callable[[], object]) -> dict[str, str]:
    """Make keys for relays, two processes at a time; the ids by nickname. `done` is called after each."""
    waiting = deque(relays)
    running: dict[str, subprocess.Popen[bytes]] = {}
    ids: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < KEY_PROCESSES:
                name = waiting.popleft().nickname
                directory = folder.node(name) / "state" / "keys"
                verb = "show" if (directory / "identity.pem").exists() else "new"
                command = [sys.executable, "-m", "backrooms.cli.main", "keys", verb, str(directory)]
                running[name] = spawn(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                output, errors = process.communicate()
                if process.returncode:
                    raise TestnetError(f"keys for {name}: {errors.decode(errors='replace').strip()}")
                ids[name] = output.split()[1].decode("ascii")
                done()
            time.sleep(0.01)
    finally:
        for process in running.values():
            process.kill()
            process.communicate()
    return ids


def with_keys(folder: Folder, layout: Layout, done: Callable[[], object]) -> Layout:
    """The layout with every relay's id; keys that are missing are made."""
    missing = []
    for relay in layout.relays:
        state = folder.node(relay.nickname) / "state"
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if relay.id and (state / "keys" / "identity.pem").exists():
            done()
        else:
            missing.append(relay)
    folder.node(CLIENT).mkdir(mode=0o700, exist_ok=True)
    ids = make_keys(folder, missing, done)
    relays = (replace(relay, id=ids.get(relay.nickname, relay.id)) for relay in layout.relays)
    return replace(layout, relays=tuple(relays))


class Processes:
    """The nodes that run."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start `twistd -n backrooms -c FILE` for a node."""
        beside = Path(sys.executable).with_name("twistd")
        twistd = str(beside) if beside.exists() else which("twistd")
        if twistd is None:
            raise TestnetError(f"there is no twistd beside {sys.executable} nor on PATH")
        command = [twistd, "-n", "--pidfile=", "backrooms", "-c", str(self._folder.config(name))]
        with self._folder.log(name).open("ab") as log:
            self._running[name] = spawn(command, stdout=log, stderr=subprocess.STDOUT, cwd=self._folder.node(name))

    def pid(self, name: str) -> int:
        """A node's process id."""
        return self._running[name].pid

    def ended(self) -> dict[str, int]:
        """Nodes that ended since the last call, with their exit status."""
        ended = {name: process.returncode for name, process in self._running.items() if process.poll() is not None}
        for name in ended:
            del self._running[name]
        return ended

    def end_of_log(self, name: str) -> str:
        """The last lines a node wrote."""
        with self._folder.log(name).open(encoding="utf-8", errors="replace") as log:
            return "".join(deque(log, LOG_LINES))

    def stop(self) -> None:
        """Stop the client, then the relays, which have nothing to drain by then; kill what does not stop."""
        self._terminate([name for name in self._running if name == CLIENT], STOP_CLIENT)
        self._terminate(list(self._running), STOP_RELAYS)

    def _terminate(self, names: list[str], seconds: float) -> None:
        processes = [self._running.pop(name) for name in names]
        for process in processes:
            process.terminate()
        end = time.monotonic() + seconds
        for process in processes:
            try:
                process.wait(max(0.01, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
