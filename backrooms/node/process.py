"""What a node that has a process to itself asks of the operating system and tells the service manager."""

from __future__ import annotations

import atexit
import ctypes
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from twisted.logger import Logger

from backrooms.keystore.state import StateFolder
from backrooms.node.timers import Timers

log = Logger()

MAX_FILES: Final = 1 << 20
"""Open files asked for at most: some containers allow a billion, which nobody needs."""
_PR_SET_DUMPABLE = 4


def harden() -> None:
    """Keep secrets in this process: no core dumps, nobody traces it, new files are for our user alone.

    A limit of 0 is not enough, since a core dump that is piped to a program is not subject to it (core(5)); a process
    that is not dumpable has none at all. Nor can other processes of the same user then read its memory by ptrace(2)
    or /proc/PID/mem; debuggers need root. Children are not concerned: exec(2) makes them dumpable again.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, *map(ctypes.c_ulong, (0, 0, 0, 0)))


def raise_nofile() -> int:
    """Allow this process as many open files as it may have; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # the system may allow fewer than it says
        return soft
    return wanted


# the service manager, sd_notify(3)


def notify(*fields: str) -> bool:
    """Send fields such as "READY=1" to the service manager; whether there is one that took them."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    if address[0] == "@":  # a name without a file
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as out:
            out.sendto("\n".join(field.replace("\n", " ") for field in fields).encode(), address)
    except OSError:
        return False  # it is told, not asked
    return True


def watchdog_interval() -> float | None:
    """Seconds between the signs of life that the service manager wants (`notify("WATCHDOG=1")`); None: it wants none.

    Half of the time after which it kills the process (sd_watchdog_enabled(3)).
    """
    text = os.environ.get("WATCHDOG_USEC", "")
    if not text.isdigit() or int(text) == 0:
        return None
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(text) / 2_000_000


# a node in a process of its own


class OwnProcess:
    """The process of one node: its limits, signals and exit status, its state folder, and its service manager.

    Make it before the node: keys are read into a process that is hardened, and what is registered with `atexit` first
    is called last, when all else has been put away.
    """

    def __init__(self, reactor: Any, state: StateFolder) -> None:
        harden()
        self.files = raise_nofile()
        """Open files that it may have."""
        self._reactor = reactor
        self._state = state
        self._status = 0
        self._stop_signals: dict[int, Any] = {}
        self._stops = 0
        self._watchdog: Any = None
        atexit.register(self._leave)

    def start(self, timers: Timers, hang_up: Callable[[], None], hurry: Callable[[], None]) -> None:
        """Answer signals, now that twistd has become a daemon or not: SIGHUP by `hang_up`, see `_stop_signal`."""
        self._timers = timers
        self._hurry = hurry
        self._state.sign()
        for note in self._state.notes:
            log.info("{note}", note=note)
        # The default would end the process; twistd leaves it at that.
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(hang_up))
        self._reactor.callWhenRunning(self._take_stop_signals)
        self._show_life()

    def ready(self, status: str) -> None:
        """Everything that the node listens on is there, for the first time or after a reload."""
        notify("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` must follow, whether it was good or not."""
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def tell(self, status: str) -> None:
        """One line for `systemctl status`."""
        notify(f"STATUS={status}")

    def stopping(self) -> None:
        """The node has begun to stop."""
        notify("STOPPING=1", "STATUS=stopping")
        if self._watchdog is not None:
            self._watchdog.cancel()

    def failed(self, why: str) -> None:
        """The node cannot start, and the process will end with status 1."""
        self._status = 1
        notify(f"STATUS=cannot start: {why}", "EXIT_STATUS=1")

    def _leave(self) -> None:
        # twistd knows only status 0 and signals.
        if self._status:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self._status)

    def _show_life(self) -> None:
        interval = watchdog_interval()
        if interval is not None:
            notify("WATCHDOG=1")
            self._watchdog = self._timers.at(self._timers.now() + interval, self._show_life)

    def _take_stop_signals(self) -> None:
        """Only now that the reactor runs are its own handlers there."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._stop_signals[number] = signal.signal(number, self._stop_signal)

    def _stop_signal(self, number: int, frame: Any) -> None:
        """The first one stops the node in good order, the second one without waiting for others, the third kills."""
        self._stops += 1
        first = self._stop_signals[number]
        if self._stops == 1 and callable(first):
            first(number, frame)
            return
        for one in self._stop_signals:
            signal.signal(one, signal.SIG_DFL)
        self._reactor.callFromThread(self._hurry)
