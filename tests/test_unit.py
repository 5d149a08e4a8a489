"""The systemd unit: what it must say, that it fits the node, and what systemd itself thinks of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from backrooms.node.drain import DRAIN_TIME
from tests.live.sandbox import allowed, settings

ROOT = Path(__file__).parent.parent
UNIT = ROOT / "etc" / "backrooms.service"
SETTINGS = settings(UNIT)

MOST_EXPOSED = 2.0
"""Of `systemd-analyze security`: from 0, locked up, to 10, open."""


def test_it_is_ready_when_the_node_says_so() -> None:
    assert SETTINGS["Type"] == ["notify"]
    assert SETTINGS["NotifyAccess"] == ["main"]
    (command,) = SETTINGS["ExecStart"]
    assert re.fullmatch(r"/\S+/twistd -n --pidfile= backrooms -c /etc/backrooms/backrooms.toml", command)
    assert SETTINGS["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert int(SETTINGS["WatchdogSec"][0]) >= 30


def test_it_waits_longer_than_the_node_drains() -> None:
    assert SETTINGS["KillSignal"] == ["SIGTERM"]
    assert int(SETTINGS["TimeoutStopSec"][0]) >= DRAIN_TIME + 10
    assert SETTINGS["Restart"] == ["on-failure"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DynamicUser", "yes"),
        ("UMask", "0077"),
        ("StateDirectory", "backrooms"),
        ("StateDirectoryMode", "0700"),
        ("RuntimeDirectoryMode", "0700"),
        ("LimitCORE", "0"),
        ("CapabilityBoundingSet", ""),
        ("AmbientCapabilities", ""),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("PrivateDevices", "yes"),
        ("MemoryDenyWriteExecute", "yes"),
        ("SystemCallArchitectures", "native"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
    ],
)
def test_it_is_locked_up(key: str, value: str) -> None:
    assert SETTINGS[key] == [value]


def test_it_has_room_for_connections_and_loads_nothing_from_where_it_stands() -> None:
    assert int(SETTINGS["LimitNOFILE"][0]) >= 65536
    (environment,) = SETTINGS["Environment"]
    assert "PYTHONSAFEPATH=1" in environment.split()


def test_systemd_takes_it(tmp_path: Path, require: Callable[[str], str]) -> None:
    """Every key and value; but the program is where it is here."""
    unit = tmp_path / UNIT.name
    twistd = Path(sys.executable).with_name("twistd")
    unit.write_text(UNIT.read_text().replace("/opt/backrooms/bin/twistd", str(twistd)))
    command = [require("systemd-analyze"), "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert ours == []


def test_systemd_finds_it_hardly_exposed(require: Callable[[str], str]) -> None:
    command = [require("systemd-analyze"), "security", "--offline=true", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposure is not None, done.stdout + done.stderr
    assert float(exposure[1]) < MOST_EXPOSED


def test_the_filter_is_read_as_systemd_reads_it(require: Callable[[str], str]) -> None:
    """What the live tests take for the allowed system calls; see `tests.live.sandbox`."""
    require("systemd-analyze")
    calls = allowed(SETTINGS["SystemCallFilter"])
    assert {"epoll_wait", "timerfd_create", "connect", "flock", "fsync", "prlimit64", "prctl"} <= calls
    assert not {"ptrace", "mount", "bpf", "setuid", "chown", "keyctl", "mlock", "init_module", "reboot"} & calls
