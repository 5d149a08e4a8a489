"""A relay process under attack from many addresses of this machine."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater

from backrooms.cli.localnet import free_ports
from backrooms.errors import CircuitError
from backrooms.netdir.network import Contact, NetworkFile
from backrooms.node.channels import Channels
from backrooms.node.driver import Turn
from backrooms.node.timers import Timers
from backrooms.transport.tls import TlsTransport
from tests import keys
from tests.live.network import START_TIME, resident, wait_until
from tests.transport.loopback import client_hello

pytestmark = pytest.mark.live

ATTEMPTS = 10_000
SUBNETS = 40
MAX_GROWTH = 40
"""MiB."""
PATIENCE = 2.0
"""Seconds within which a new peer must have its link."""

_CONFIG = """
socks = []
http = []
[node]
network = "network.toml"
[client]
enabled = false
[control]
listen = []
[relay]
enabled = true
addresses = ["tls:127.0.0.1:{port}"]
contact = "operator@example.org"
"""


class Target:
    """A relay, alone in its network."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self.id = keys.identity(0).public.id
        self.address = f"tls:127.0.0.1:{self.port}"
        keys.key_store(folder / "state" / "keys", 0, time.time())
        network = NetworkFile("flooded", keys.NETWORK_ID, (Contact(self.id, self.address),))
        (folder / "network.toml").write_text(network.to_toml(), "utf-8")
        (folder / "backrooms.toml").write_text(_CONFIG.format(port=self.port), "utf-8")
        self._log = folder / "log"
        twistd = Path(sys.executable).with_name("twistd")
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                [twistd, "-n", "--pidfile=", "backrooms", "-c", str(folder / "backrooms.toml")],
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        if not wait_until(lambda: "node is up" in self.log, START_TIME):
            self.process.kill()
            raise AssertionError(self.log)

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    tmp_path.chmod(0o700)
    made = Target(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def link(target: Target) -> Iterator[Callable[[], Any]]:
    """`await link()` opens a new link to the relay, from 127.0.0.1, as a client does, and closes it."""
    timers = Timers(reactor)
    channels = Channels(
        reactor,
        timers,
        Turn(reactor),
        random.SystemRandom(),
        keys.NETWORK_ID,
        {"tls": TlsTransport(keys.NETWORK_ID)},
        lambda relay_id: [],
    )

    async def open_one() -> None:
        end = timers.now() + PATIENCE
        while True:
            try:
                made = await channels.connect(target.address, target.id)
                break
            except CircuitError:  # now and then the first attempt is reset; whoever tries again must get in
                if timers.now() > end:
                    raise
                await deferLater(reactor, 0.2)
        assert made.open
        made.driver.close()
        while not made.driver.lost:
            await deferLater(reactor, 0.01)

    yield open_one
    timers.close()


@pytest.mark.parametrize("words", [b"", b"hello"], ids=["half-open", "TLS"])
async def test_a_flood_costs_little_memory_and_keeps_no_one_out(
    target: Target, link: Callable[[], Any], words: bytes
) -> None:
    await link()
    idle = resident(target.process.pid)
    hello = words and client_hello()
    attackers: list[socket.socket] = []
    for number in range(ATTEMPTS):
        attacker = socket.socket()
        attacker.bind((f"127.{10 + number % SUBNETS}.0.{1 + number // SUBNETS % 50}", 0))
        attacker.setblocking(False)
        attacker.connect_ex(("127.0.0.1", target.port))
        attackers.append(attacker)
        if number >= 200 and hello:
            try:
                attackers[number - 200].send(hello)
            except OSError:
                pass  # refused
        if number >= 4_000:
            attackers[number - 4_000].close()
        if number % 50 == 0:
            await deferLater(reactor, 0.01)
        if number % 2_000 == 1_999:
            await link()
    await link()
    growth = resident(target.process.pid) - idle
    for attacker in attackers:
        attacker.close()
    assert growth < MAX_GROWTH
    await link()
    refusals = [line for line in target.log.splitlines() if "an incoming link was refused" in line]
    assert 1 <= len(refusals) < 10
    assert "127." not in "".join(refusals)
