"""What a process of its own does: limits, secrets, signals, exit status, and words for the service manager."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backrooms.node import process

PROCESS = """
import os, resource, signal, sys
from pathlib import Path
from twisted.internet import reactor
from backrooms.keystore.state import StateFolder
from backrooms.node import process
from backrooms.node.timers import Timers
def say(*words):
    print(*words, flush=True)
own = process.OwnProcess(reactor, StateFolder.open(Path(sys.argv[1]), with_keys=False))
timers = Timers(reactor)
own.start(timers, lambda: say("hang up"), lambda: say("hurry"))
"""


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """A service manager's end; `address` begins with @ for a name without a file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.settimeout(20)
        end.bind(address.replace("@", "\0"))
        yield end


@pytest.fixture(params=["file", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "file" else f"@backrooms-test-{os.getpid()}-{id(tmp_path)}"


def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


# limits and secrets


def test_hardened_processes_have_no_core_and_share_nothing() -> None:
    code = """
import ctypes, os, resource
from backrooms.node import process
process.harden()
dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
print(resource.getrlimit(resource.RLIMIT_CORE), dumpable, oct(os.umask(0)))
"""
    assert run(code).stdout == "(0, 0) 0 0o77\n"


def test_a_hardened_process_leaves_no_core_where_the_limit_says_it_may(tmp_path: Path) -> None:
    """What the kernel would do is told by the bit 0x80 of the status that a crash leaves."""
    code = """
import os, resource, sys
from backrooms.node import process
if sys.argv[1] == "yes":
    process.harden()
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
if hard:
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
os.chdir(sys.argv[2])
os.abort()
"""
    for harden in ("yes", "no"):
        child = subprocess.Popen([sys.executable, "-c", code, harden, tmp_path], stderr=subprocess.DEVNULL)
        _, status = os.waitpid(child.pid, 0)
        child.returncode = -signal.SIGABRT
        assert os.WTERMSIG(status) == signal.SIGABRT
        if harden == "yes":
            assert not os.WCOREDUMP(status)
            assert list(tmp_path.iterdir()) == []


def test_files_are_raised_to_what_is_allowed() -> None:
    code = """
import resource
from backrooms.node import process
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 2000))
print(process.raise_nofile(), resource.getrlimit(resource.RLIMIT_NOFILE), process.raise_nofile())
"""
    assert run(code).stdout == "2000 (2000, 2000) 2000\n"
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert process.raise_nofile() <= max(process.MAX_FILES, before[0])
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


# the service manager


def test_the_service_manager_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with manager(address) as end:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert process.notify("READY=1", "STATUS=node is up: relay")
        assert end.recv(1000) == b"READY=1\nSTATUS=node is up: relay"


@pytest.mark.parametrize("where", ["", "relative", "vsock:2:1", "/nonexistent/socket"])
def test_without_a_service_manager_nothing_happens(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", where)
    assert not process.notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not process.notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [
        ("60000000", None, 30.0),
        ("60000000", "ours", 30.0),
        ("60000000", "1", None),
        ("0", None, None),
        ("", None, None),
        ("soon", None, None),
    ],
)
def test_the_watchdog(usec: str, pid: str | None, interval: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    if pid is None:
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
    else:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)
    assert process.watchdog_interval() == interval


def test_the_life_of_a_process_as_the_service_manager_sees_it(address: str, tmp_path: Path) -> None:
    code = (
        PROCESS
        + """
own.ready("node is up")
own.reloading()
own.ready("node is up again")
timers.at(timers.now() + 0.5, reactor.stop)
reactor.addSystemEventTrigger("before", "shutdown", own.stopping)
reactor.run()
"""
    )
    with manager(address) as end:
        done = run(code, tmp_path / "state", NOTIFY_SOCKET=address, WATCHDOG_USEC="200000")
        assert done.returncode == 0, done.stderr
        told: list[str] = []
        while not told or not told[-1].startswith("STOPPING"):
            told.append(end.recv(1000).decode())
    reloading = next(one for one in told if one.startswith("RELOADING=1\nMONOTONIC_USEC="))
    assert int(reloading.rpartition("=")[2]) > 0
    assert told.count("WATCHDOG=1") >= 2
    assert [one for one in told if one not in ("WATCHDOG=1", reloading)] == [
        "READY=1\nSTATUS=node is up",
        "READY=1\nSTATUS=node is up again",
        "STOPPING=1\nSTATUS=stopping",
    ]


# exit status and signals


@pytest.mark.parametrize("failed", [True, False])
def test_a_failure_is_the_exit_status(tmp_path: Path, failed: bool) -> None:
    code = PROCESS + "reactor.callWhenRunning(reactor.stop)\n"
    code += "own.failed('no port')\n" if failed else ""
    code += "reactor.run()\nsys.stdout.write('the end')"
    done = run(code, tmp_path / "state")
    assert done.returncode == int(failed)
    assert done.stdout == "the end", "nothing that was written is lost"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_stops_the_second_hurries_the_third_kills(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        PROCESS
        + """
from twisted.internet.defer import Deferred
reactor.addSystemEventTrigger("before", "shutdown", lambda: say("stopping") or Deferred())
reactor.callWhenRunning(reactor.callLater, 0, say, "running")
reactor.run()
"""
    )
    command = [sys.executable, "-c", code, str(tmp_path / "state")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "running\n"
            child.send_signal(signal.SIGHUP)
            assert child.stdout.readline() == "hang up\n"
            child.send_signal(number)
            assert child.stdout.readline() == "stopping\n"
            child.send_signal(number)
            assert child.stdout.readline() == "hurry\n"
            child.send_signal(number)
            assert child.wait(20) == -number
        finally:
            child.kill()


def test_the_state_is_signed_by_the_process_that_runs_and_what_was_found_is_told(tmp_path: Path) -> None:
    """The parent of a daemon opens the folder, its child runs."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / ".relays.1.new").touch()
    code = PROCESS.replace("timers = ", "if os.fork(): os._exit(0)\ntimers = ")
    code += "say(os.getpid(), open(sys.argv[1] + '/lock').read())"
    log = "from twisted.logger import globalLogBeginner, textFileLogObserver\nimport sys\n"
    log += "globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)\n"
    done = run(log + code, state)
    lines = done.stdout.splitlines()
    mine, written = next(line for line in lines if line[0].isdigit() and "[" not in line).split()
    assert mine == written
    assert [line for line in lines if f"removed {state}/.relays.1.new" in line], done.stdout
