"""A list of 10,000 relays: verified cold, saved, loaded again, and what a client takes for it.

    python -m bench.directory [--relays N] [--write]

The descriptors have real keys and signatures, but for RSA, of which one key serves all: nothing here is signed by it.
Each measurement is a process of its own with a whole client node on the real reactor. A turn is what happens between
two waits of the reactor; a delay is how late a call comes that was due every millisecond. On a busy machine only the
figures of CPU time say anything.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from backrooms.crypto.keys import ED25519, PublicIdentity
from backrooms.netdir.descriptor import make_descriptor
from backrooms.netdir.network import NetworkFile
from backrooms.netdir.policy import ExitPolicy
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.documents import Documents

RESULTS = Path(__file__).parent / "DIRECTORY.md"
NETWORK_ID = bytes(range(32))
PER_MESSAGE = 9
"""Descriptors that one DOCS message carries."""
READERS = 3
"""Messages that are taken in at once."""
TICK = 0.001
CONFIG = """
socks = []
http = []
[node]
network = "network.toml"
[control]
listen = []
"""


def make_documents(job: tuple[int, int, bytes, float]) -> bytes:
    """Documents of relays `first` to `last`, each as certificate and record behind their lengths."""
    first, last, rsa_key, now = job
    writer = Writer()
    for number in range(first, last):
        ed, ml_dsa = ed25519.Ed25519PrivateKey.generate(), mldsa.MLDSA65PrivateKey.generate()
        public = PublicIdentity(ed.public_key().public_bytes_raw(), ml_dsa.public_key().public_bytes_raw(), rsa_key)

        def sign(message: bytes, names: Any, ed: Any = ed, ml_dsa: Any = ml_dsa) -> dict[str, bytes]:
            return {name: (ed if name == ED25519 else ml_dsa).sign(message) for name in names}

        relay = make_descriptor(
            sign, public, NETWORK_ID, now,
            nickname=f"relay{number}", onion_key=os.urandom(32), capacity=10**6 + number,
            operator=f"group {number // 7}",
            addresses=[f"tls:{number % 200 + 11}.{number // 200}.0.1:443"],
            exit_policy=ExitPolicy.reduced() if number % 5 == 0 else None,
        )  # fmt: skip
        writer.bytes16(relay.certificate.raw).bytes16(relay.record_raw)
    return writer.done()


def make_file(path: Path, relays: int) -> None:
    """Write the documents of so many new relays; takes 2.5 ms each."""
    key = rsa.generate_private_key(65537, 4096).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    step = max(1, relays // 20)
    jobs = [(first, min(relays, first + step), der, time.time()) for first in range(0, relays, step)]
    with ProcessPoolExecutor() as pool, path.open("wb") as file:
        for data in pool.map(make_documents, jobs):
            file.write(data)


def read_file(path: Path) -> Iterator[list[Documents]]:
    """The documents in messages, read as they are wanted."""
    with path.open("rb") as file:
        message: list[Documents] = []
        while head := file.read(2):
            certificate = file.read(int.from_bytes(head, "big"))
            record = file.read(int.from_bytes(file.read(2), "big"))
            relay_id = Reader(Reader(record).bytes16()[1:33]).bytes(32)
            message.append(Documents(relay_id, certificate, record))
            if len(message) == PER_MESSAGE:
                yield message
                message = []
        if message:
            yield message


def memory() -> int:
    """Bytes of this process in memory."""
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1]
    return int(fields.split()[0]) * 1024


class Watch:
    """How long the reactor's turns are, and how late its calls."""

    def __init__(self, reactor: Any) -> None:
        self.turns: list[float] = []
        self.work: list[float] = []
        self.delays: list[float] = []
        self._reactor = reactor
        self._poller = reactor._poller
        self._woke, self._worked = time.perf_counter(), time.thread_time()
        self._due = 0.0
        reactor._poller = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)

    def poll(self, *arguments: Any) -> Any:
        self.turns.append(time.perf_counter() - self._woke)
        self.work.append(time.thread_time() - self._worked)
        found = self._poller.poll(*arguments)
        self._woke, self._worked = time.perf_counter(), time.thread_time()
        return found

    def start(self) -> None:
        """Forget what was, and call every millisecond."""
        self.turns.clear()
        self.work.clear()
        self.delays.clear()
        if not self._due:
            self._reactor.callLater(TICK, self._tick)
        self._due = time.perf_counter() + TICK

    def _tick(self) -> None:
        now = time.perf_counter()
        self.delays.append(now - self._due)
        self._due = now + TICK
        self._reactor.callLater(TICK, self._tick)

    def report(self, name: str) -> dict[str, float]:
        """The longest in milliseconds, and that which one of a thousand delays exceeds."""
        return {
            f"{name}: longest turn ms": max(self.turns) * 1e3,
            f"{name}: longest turn, ms of CPU": max(self.work) * 1e3,
            f"{name}: longest delay ms": max(self.delays, default=0) * 1e3,
            f"{name}: delay ms, p99.9": statistics.quantiles(self.delays, n=1000)[-1] * 1e3,
        }


def run(folder: Path, work: Callable[[Any, Watch], Any]) -> dict[str, float]:
    """Run a client node of `folder` and `work` in it; what that found."""
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred

    from backrooms.config import Config
    from backrooms.service import Node

    (folder / "network.toml").write_text(NetworkFile("bench", NETWORK_ID).to_toml())
    found: dict[str, float] = {}
    watch = Watch(reactor)

    async def measured() -> None:
        node = Node(Config.parse(CONFIG, folder), reactor, random.SystemRandom())
        found["before, MB"] = memory() / 1e6
        try:
            found.update(await work(node, watch))
        finally:
            reactor.stop()

    failed: list[Any] = []
    start = lambda: Deferred.fromCoroutine(measured()).addErrback(failed.append)  # noqa: E731
    reactor.callWhenRunning(start)
    reactor.run()
    for failure in failed:
        failure.raiseException()
    return found


async def cold(node: Any, watch: Watch, documents: Path) -> dict[str, float]:
    """Verify all, then save."""
    from twisted.internet.defer import Deferred, gatherResults

    keeper, messages = node.keeper, read_file(documents)
    keeper._saved.load()

    async def take() -> None:
        for message in messages:
            for result in await keeper.verifier.take(message):
                assert not isinstance(result, Exception), result

    watch.start()
    began, cpu = time.perf_counter(), time.process_time()
    await gatherResults([Deferred.fromCoroutine(take()) for _ in range(READERS)])
    found = {"cold: verified in s": time.perf_counter() - began, "cold: CPU s": time.process_time() - cpu}
    found |= watch.report("cold")
    saved = keeper._saved
    watch.start()
    while saved._busy:
        await node.timers.sleep(0.01)
    saved._saved = 0
    saved.save()
    while saved._busy:
        await node.timers.sleep(0.01)
    found |= watch.report("saving")
    saved.stop()
    return found | {"cold: in memory MB": memory() / 1e6}


async def warm(node: Any, watch: Watch) -> dict[str, float]:
    """Load what was saved."""
    keeper = node.keeper
    began, cpu = time.perf_counter(), time.process_time()
    keeper._saved.load()
    found = {"warm: loaded in s": time.perf_counter() - began, "warm: CPU s": time.process_time() - cpu}
    found["warm: relays"] = len(node.directory)
    await node.timers.sleep(0.01)
    found["warm: in memory MB"] = memory() / 1e6
    began = time.perf_counter()
    for relay in node.directory.relays():
        assert relay.subnets()
        assert relay.exit_policy is not None
    found["warm: looked at by path choice, s"] = time.perf_counter() - began
    began = time.perf_counter()
    size = sum(len(relay.certificate.raw) for relay in node.directory.relays())
    found["warm: all certificates read, s"] = time.perf_counter() - began
    return found | {"warm: certificates MB": size / 1e6, "warm: in memory after it MB": memory() / 1e6}


def child(arguments: list[str]) -> dict[str, float]:
    """One measurement in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.directory", *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--relays", type=int, default=10_000)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--child", choices=("cold", "warm"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder: Path = options.folder
        work = (lambda node, watch: cold(node, watch, folder / "documents")) if options.child == "cold" else warm
        print(json.dumps(run(folder, work)))
        return
    with tempfile.TemporaryDirectory() as name:
        make_file(Path(name) / "documents", options.relays)
        found = {**child(["--child", "cold", "--folder", name]), **child(["--child", "warm", "--folder", name])}
    table = ["| what | figure |", "|---|---|", *(f"| {key} | {value:.4g} |" for key, value in found.items())]
    text = f"# A list of {options.relays:,} relays\n\nWritten by `python -m bench.directory --write`.\n\n"
    text += "\n".join(table) + "\n"
    print(text)
    if options.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
