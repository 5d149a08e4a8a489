"""A node as a service: readiness, exit status, limits, its state folder, signals, and the sandbox of its unit."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backrooms.cli.client import ControlAddress, ControlClient
from backrooms.keystore.state import SCHEMA, write_schema
from tests.live.network import Network, is_alive, start, wait_until
from tests.live.node import RELAY, NodeProcess
from tests.live.site import Site

pytestmark = pytest.mark.live

UNIT = Path(__file__).parents[2] / "etc" / "backrooms.service"
CLIENT = """
[[socks]]
listen = "tcp:0:interface=127.0.0.1"
[[http]]
listen = "tcp:0:interface=127.0.0.1"
[control]
listen = ["unix:control.sock:mode=600"]
"""

Make = Callable[..., NodeProcess]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[NodeProcess] = []

    def make_node(*arguments: Any, **options: Any) -> NodeProcess:
        made.append(NodeProcess(tmp_path / f"n{len(made)}", *arguments, **options))
        return made[-1]

    yield make_node
    for node in made:
        node.close()


def listening(node: NodeProcess, kind: str) -> str:
    with ControlClient(ControlAddress(path=str(node.folder / "control.sock")), 10.0) as control:
        return control.info(f"net/listeners/{kind}").strip('"')


# the service manager


def test_ready_means_that_everything_listens(make: Make) -> None:
    for config, number, kinds in ((RELAY, 0, ["or"]), (CLIENT, None, ["socks", "httptunnel"])):
        node = make(config, number)
        node.start()
        role = "relay" if number == 0 else "client"
        assert node.ready() == f"READY=1\nSTATUS=node is up: {role}"
        for kind in kinds:  # at once
            host, _, port = listening(node, kind).rpartition(":")
            socket.create_connection((host, int(port)), 5).close()


def test_the_life_of_a_service(make: Make) -> None:
    node = make()
    node.start(environment={"WATCHDOG_USEC": "400000"})
    node.ready()
    node.kill(signal.SIGHUP)
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", node.wait_for("RELOADING"))
    node.ready()
    (node.folder / "backrooms.toml").write_text("nonsense")
    node.kill(signal.SIGHUP)
    node.wait_for("RELOADING")
    node.ready()
    assert node.lines("the configuration stays as it was")
    node.kill(signal.SIGTERM)
    assert node.wait_for("STOPPING") == "STOPPING=1\nSTATUS=stopping"
    assert node.wait() == -signal.SIGTERM, "twistd ends by the signal; systemd takes that for a clean exit"


def test_limits_of_a_running_node(make: Make) -> None:
    node = make()
    node.start()
    node.ready()
    process = Path(f"/proc/{node.process.pid}")
    limits = (process / "limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.M)
    soft, hard = re.search(r"^Max open files +(\d+) +(\d+) ", limits, re.M).groups()  # type: ignore[union-attr]
    assert int(soft) == min(int(hard), 1 << 20)
    assert "Umask:\t0077" in (process / "status").read_text()


# what cannot start


def fails(node: NodeProcess, words: str) -> None:
    """It ends with status 1, one line that says why, and no word of being ready."""
    node.start()
    assert node.wait() == 1
    log = node.log()
    assert len(node.lines(words)) == 1, log
    assert "Traceback" not in log
    assert not node.lines("node is up")
    assert not [told for told in node.told if "READY" in told]


def test_a_port_in_use(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = make(CLIENT.replace("tcp:0", f"tcp:{port}", 1), None)
        fails(node, "cannot start: ")
        assert node.wait_for("STATUS=cannot start").splitlines()[1] == "EXIT_STATUS=1"
        assert node.lines(f"127.0.0.1:{port}")
        fails(make(RELAY.replace("127.0.0.1:0", f"127.0.0.1:{port}")), "cannot start: ")


def test_keys_that_are_open_to_others(make: Make) -> None:
    node = make()
    (node.state / "keys" / "identity.pem").chmod(0o644)
    fails(node, "chmod 600")


def test_a_state_folder_of_a_newer_version(make: Make) -> None:
    node = make()
    write_schema(node.state, SCHEMA + 1)
    fails(node, "was written by a newer version")


def test_two_processes_on_one_state_folder(make: Make) -> None:
    first, second = make(), make()
    config = second.folder / "backrooms.toml"
    config.write_text(f'{RELAY}[node]\nstate = "{first.state}"\n')
    first.start()
    first.ready()
    fails(second, f"{first.state} is in use by process {first.process.pid}; stop that first")
    keys_new = [sys.executable, "-m", "backrooms.cli.main", "keys", "new", str(first.state / "keys")]
    assert os.spawnv(os.P_WAIT, sys.executable, keys_new) == 1
    first.kill()
    first.wait()
    second.start()
    second.ready()


# a full disk

FULL = 1
"""Bytes that a file may have: not even the lock's number fits in."""
IMPATIENT = """
import backrooms.control.server, backrooms.sides.relay
backrooms.control.server.COOKIE_RETRY = backrooms.sides.relay.ONION_KEY_CHECK = 1.0
from twisted.scripts.twistd import run
run()
"""


def test_a_node_serves_on_a_full_disk_and_recovers(make: Make) -> None:
    """As much room as RLIMIT_FSIZE gives; the log goes to a pipe, which it does not bound."""
    resource = pytest.importorskip("resource")
    node = make(RELAY)
    week_old = next(node.state.glob("keys/onion-*"))
    week_old.rename(week_old.with_name(f"onion-000001-{int(time.time()) - 8 * 86400}.pem"))
    node.start()
    node.ready()
    node.kill(signal.SIGTERM)
    node.wait()
    assert len(list(node.state.glob("keys/onion-*"))) == 2, "the key was due"
    newest = max(node.state.glob("keys/onion-*"))
    newest.rename(newest.with_name(f"onion-000002-{int(time.time()) - 8 * 86400}.pem"))
    before = {path: path.read_bytes() for path in node.state.rglob("*") if path.is_file() and path.name != "lock"}
    (node.folder / "log").unlink()
    os.mkfifo(node.folder / "log")
    reader = os.open(node.folder / "log", os.O_RDONLY | os.O_NONBLOCK)
    said = b""

    def has_said(words: bytes) -> bool:
        nonlocal said
        try:
            said += os.read(reader, 65536)
        except BlockingIOError:
            pass
        return words in said

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, resource.RLIM_INFINITY))

    node.start((sys.executable, "-c", IMPATIENT), before=fill)
    try:
        assert wait_until(lambda: has_said(b"node is up: relay"), 60), said
        assert wait_until(lambda: has_said(b"the onion key stays as it is: "), 10), said
        assert b"cannot write the cookie: File too large; no controller can come in" in said
        after = {path: path.read_bytes() for path in node.state.rglob("*") if path.is_file() and path.name != "lock"}
        assert after == before, "nothing is lost, and nothing left half-written"
        assert node.process.poll() is None
        resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert wait_until(lambda: has_said(b"the cookie is written: controllers can come in"), 10), said
        assert wait_until(lambda: any("onion-000003" in path.name for path in node.state.glob("keys/*")), 10)
        assert listening(node, "or").startswith("127.0.0.1:")
        assert b"Traceback" not in said
    finally:
        os.close(reader)


# the sandbox, and stopping


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory, require: Any) -> Iterator[Network]:
    """Three relays, one of them an exit, and a client, all under the kernel filters of the unit."""
    require("curl")
    require("systemd-analyze")
    sandbox = (sys.executable, str(Path(__file__).with_name("sandbox.py")), str(UNIT))
    made = start(tmp_path_factory.mktemp("boxed") / "net", 3, 1, sandbox)
    yield made
    made.stop()
    assert made.faults() == []


def test_a_whole_network_works_in_the_sandbox(boxed: Network, site: Site) -> None:
    for process in [boxed.state["client"], *boxed.state["relays"]]:
        status = Path(f"/proc/{process['pid']}/status").read_text()
        assert re.search(r"^Seccomp:\t2$", status, re.M)
        assert re.search(r"^NoNewPrivs:\t1$", status, re.M)
    assert boxed.fetch(site.url("sandboxed")) == b"/sandboxed"
    assert len(boxed.fetch(site.url("3000000"))) == 3_000_000


def test_a_second_signal_ends_a_relay_at_once(boxed: Network, site: Site) -> None:
    with boxed.open_stream(site.url("slow")) as (_, circuit):
        relay = boxed.relay_at(circuit["path"][0])
        os.kill(relay["pid"], signal.SIGTERM)
        time.sleep(1)
        assert is_alive(relay["pid"]), "the first one waits for the download"
        os.kill(relay["pid"], signal.SIGTERM)
        assert wait_until(lambda: not is_alive(relay["pid"]), 2.5), "it would take 5 s"
    log = boxed.log(relay["nickname"])
    assert "stopping at once" in log
    assert "Traceback" not in log
