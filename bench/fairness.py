"""Many backlogged streams through one client: are all served, equally, in bounded memory?

`python -m bench.fairness --streams 1000 --seconds 30` starts a local network of three relays (one of them the exit), a
source that never stops sending, and one process that opens all streams through the client's SOCKS port, all on one
circuit, and reads as fast as it can. Prints what the streams got, Jain's index of it, and the memory of the nodes.
"""

from __future__ import annotations

import argparse
import json
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.cpu import parse_kb
from bench.ours import OurNetwork

CHUNK = bytes(65536)
START_TIME = 60.0
OPEN_TIME = 60.0
"""Seconds until all streams must be open."""
LOOK_EACH = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. Memory in megabytes (10^6) by node: before the streams, and the most while they ran."""

    streams: int
    seconds: float
    open_seconds: float
    lost: int
    starved: int
    mb_per_s: float
    jain: float
    least: int
    most: int
    memory_before: Mapping[str, float]
    memory_most: Mapping[str, float]


def jain(shares: Sequence[float]) -> float:
    """Jain's fairness index: 1 when all get the same, 1/n when one gets everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def serve() -> None:
    """Send zeros to everybody who connects, until standard input ends. Prints its port first."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    with selectors.DefaultSelector() as waiting:
        waiting.register(listener, selectors.EVENT_READ)
        waiting.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                one: Any = key.fileobj
                if one is sys.stdin:
                    return
                if one is listener:
                    accepted, _ = listener.accept()
                    accepted.setblocking(False)
                    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
                    waiting.register(accepted, selectors.EVENT_WRITE)
                    continue
                try:
                    one.send(CHUNK)
                except BlockingIOError:
                    pass
                except OSError:
                    waiting.unregister(one)
                    one.close()


class Streams:
    """SOCKS connections that only read. Byte counts are of the source's data."""

    def __init__(self, socks: tuple[str, int], port: int, count: int) -> None:
        self.counts = [0] * count
        self.lost = 0
        self._headers = [10] * count  # the SOCKS reply, before the data
        self._waiting = selectors.DefaultSelector()
        request = b"\x05\x01\x00\x03\x09127.0.0.1" + port.to_bytes(2, "big")
        for number in range(count):
            one = socket.create_connection(socks)
            one.sendall(b"\x05\x01\x00" + request)
            self._expect(one, b"\x05\x00")
            one.setblocking(False)
            self._waiting.register(one, selectors.EVENT_READ, number)

    @staticmethod
    def _expect(one: socket.socket, answer: bytes) -> None:
        got = b""
        while len(got) < len(answer):
            got += one.recv(len(answer) - len(got))
        if got != answer:
            raise RuntimeError(f"SOCKS answered {got!r}")

    def all_open(self) -> bool:
        """Whether every stream has brought data."""
        return all(self.counts)

    def read_until(self, end: float) -> None:
        """Read what comes until the monotonic time `end`."""
        while (left := end - time.monotonic()) > 0:
            for key, _ in self._waiting.select(left):
                one: Any = key.fileobj
                try:
                    data = one.recv(262144)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                if not data:
                    self.lost += 1
                    self._waiting.unregister(one)
                    one.close()
                    continue
                header = min(self._headers[key.data], len(data))
                self._headers[key.data] -= header
                self.counts[key.data] += len(data) - header

    def close(self) -> None:
        for key in list(self._waiting.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._waiting.close()


def memory(pids: Mapping[str, int]) -> dict[str, float]:
    """Resident megabytes by node."""
    return {name: parse_kb(Path(f"/proc/{pid}/status").read_text(), "VmRSS") for name, pid in pids.items()}


def measure(network: Mapping[str, Any], port: int, count: int, seconds: float) -> Outcome:
    """Run the streams through a network that is described as in its testnet.json."""
    host, _, socks_port = network["socks"].partition(":")
    pids = {relay["nickname"]: relay["pid"] for relay in network["relays"]} | {"client": network["client"]["pid"]}
    before = memory(pids)
    most = dict(before)

    def look() -> None:
        for name, value in memory(pids).items():
            most[name] = max(most[name], value)

    began = time.monotonic()
    streams = Streams((host, int(socks_port)), port, count)
    while not streams.all_open() and time.monotonic() < began + OPEN_TIME:
        streams.read_until(time.monotonic() + LOOK_EACH)
        look()
    opened = time.monotonic() - began
    counts = list(streams.counts)
    start = time.monotonic()
    while time.monotonic() < start + seconds:
        streams.read_until(min(time.monotonic() + LOOK_EACH, start + seconds))
        look()
    passed = time.monotonic() - start
    shares = [after - before for before, after in zip(counts, streams.counts, strict=True)]
    outcome = Outcome(
        count,
        round(passed, 2),
        round(opened, 2),
        streams.lost,
        sum(not share for share in shares),
        round(sum(shares) / passed / 1e6, 2),
        round(jain(shares), 4),
        min(shares),
        max(shares),
        before,
        most,
    )
    streams.close()
    return outcome


def run(count: int, seconds: float, folder: Path) -> Outcome:
    """Start the network and the source in `folder`, measure, stop them."""
    network = OurNetwork(folder / "net", relays=3, exits=1)
    command = [sys.executable, "-m", "bench.fairness", "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as source:
        try:
            network.launch()
            state = network.started(START_TIME)
            assert source.stdout is not None
            return measure(state, int(source.stdout.readline()), count, seconds)
        finally:
            network.stop()
            source.kill()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.fairness", description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else max(soft, 65536), hard))
    if options.serve:
        serve()
        return
    with tempfile.TemporaryDirectory(prefix="backrooms-fair-") as folder:
        print(json.dumps(asdict(run(options.streams, options.seconds, Path(folder))), indent=2))


if __name__ == "__main__":
    main()
