"""The honest side of a flood: requests through the network, and a new peer that links in."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUEST_EACH = 0.1
LINK_EACH = 2.0
PATIENCE = 15.0
PAGE = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(frozen=True, slots=True)
class Figures:
    """Milliseconds from a request to its answer, and from nothing to a new peer's proven link."""

    seconds: float
    requests: int
    failed: int
    median_ms: float
    p95_ms: float
    links_failed: int
    link_ms: float
    link_most_ms: float


def p95(values: list[float]) -> float:
    """The value that 95 in 100 do not exceed; infinite when there is none."""
    return sorted(values)[max(0, round(0.95 * len(values)) - 1)] if values else float("inf")


class _Site:
    """Answers everybody with the same page."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            one, _ = self._listener.accept()
            try:
                one.recv(4096)
                one.sendall(PAGE)
            except OSError:
                pass
            one.close()


class Prober:
    """Asks for the page all the time, and links in now and then."""

    def __init__(
        self, socks: str, network: Path, target: Mapping[str, Any], memory: Callable[[], float] = lambda: 0.0
    ) -> None:
        host, _, port = socks.partition(":")
        self.memory_most = 0.0
        self._socks = (host, int(port))
        self._network = network
        self._target = target
        self._memory = memory
        self._site = _Site()

    def request(self) -> float:
        """Milliseconds of one request on a ready circuit; `OSError` when it failed."""
        began = time.monotonic()
        with socket.create_connection(self._socks, timeout=PATIENCE) as one:
            one.sendall(b"\x05\x01\x00")
            read_exactly(one, 2)
            one.sendall(b"\x05\x01\x00\x03\x09127.0.0.1" + self._site.port.to_bytes(2, "big"))
            if read_exactly(one, 10)[1]:
                raise OSError("SOCKS refused")
            one.sendall(b"GET / HTTP/1.0\r\n\r\n")
            read_exactly(one, len(PAGE))
        return (time.monotonic() - began) * 1000

    def measure(self, seconds: float, settle: float = 0.0) -> Figures:
        """Probe for so long, after `settle` seconds that do not count."""
        self.rest(settle)
        times: list[float] = []
        failed = 0
        self.memory_most = 0.0
        command = [sys.executable, "-m", "bench.flood.peer", str(self._network)]
        command += [self._target["id"], self._target["address"], str(LINK_EACH), str(seconds)]
        peer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            try:
                times.append(self.request())
            except OSError:
                failed += 1
            self.memory_most = max(self.memory_most, self._memory())
            time.sleep(max(0.0, now + REQUEST_EACH - time.monotonic()))
        out, _ = peer.communicate(timeout=60)
        links = [float(line) for line in out.split()]
        good = [value for value in links if value >= 0]
        return Figures(
            seconds,
            len(times) + failed,
            failed,
            round(statistics.median(times), 2) if times else float("inf"),
            round(p95(times), 2),
            len(links) - len(good),
            round(statistics.median(good), 1) if good else float("inf"),
            round(max(good), 1) if good else float("inf"),
        )

    def rest(self, seconds: float) -> None:
        """Let time pass, the circuits in use."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self.request()
            except OSError:
                pass
            time.sleep(REQUEST_EACH)


def read_exactly(one: socket.socket, size: int) -> bytes:
    """So many bytes; `OSError` if the other end closes before."""
    data = b""
    while len(data) < size:
        piece = one.recv(size - len(data))
        if not piece:
            raise OSError("closed early")
        data += piece
    return data
