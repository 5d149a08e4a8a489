"""A relay that may have few open files: it closes idle links for new ones, and says so."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor as global_reactor
from twisted.internet.threads import deferToThread

from backrooms.cli.client import ControlAddress, ControlClient
from backrooms.crypto.keys import OnionKey
from backrooms.crypto.ntor import NtorClient
from backrooms.node.channels import Channels
from backrooms.node.driver import Turn
from backrooms.node.link import Link
from backrooms.node.timers import Timers
from backrooms.transport.tls import TlsTransport
from backrooms.wire.extensions import ClientExtensions
from tests import keys
from tests.live.node import RELAY, NodeProcess

pytestmark = pytest.mark.live

FILES = 128
LINKS = 150
"""More than so few files allow."""
UNHURRIED = """
[limits]
address_rate = 10000.0
address_burst = 10000
subnet_rate = 10000.0
subnet_burst = 10000
handshake_cpu = 1.0
"""

reactor: Any = global_reactor


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    made = NodeProcess(tmp_path / "relay", RELAY + UNHURRIED)
    made.start(before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES)))
    made.ready()
    yield made
    made.close()


@asynccontextmanager
async def channels_to(node: NodeProcess) -> AsyncIterator[tuple[Channels, str]]:
    """What makes links to the relay, and the address to make them to."""
    timers = Timers(reactor)
    transports = {"tls": TlsTransport(keys.NETWORK_ID)}
    made = Channels(reactor, timers, Turn(reactor), random.Random(1), keys.NETWORK_ID, transports, lambda _: ())
    try:
        address = await deferToThread(ask, node, "net/listeners/or")
        yield made, "tls:" + address.strip('"')
    finally:
        links = list(made.links)
        await made.stop()
        made.abort()
        while any(not link.driver.lost for link in links):
            await timers.sleep(0.01)
        timers.close()


def ask(node: NodeProcess, key: str) -> str:
    """The answer to GETINFO."""
    with ControlClient(ControlAddress(path=str(node.folder / "control.sock")), 10.0) as control:
        return control.info(key)


def open_files(node: NodeProcess) -> int:
    """How many files the relay has open now."""
    return len(list(Path(f"/proc/{node.process.pid}/fd").iterdir()))


class Owner:
    """The owner of a circuit."""

    accepted = False
    ended: int | None = None

    def created(self, handshake: bytes) -> None:
        self.accepted = True

    def destroyed(self, reason: int) -> None:
        self.ended = reason


def create(node: NodeProcess, link: Link) -> Owner:
    """Ask the relay for a circuit."""
    pem = sorted((node.state / "keys").glob("onion-*.pem"))[-1]
    onion_key = OnionKey.from_pem(pem.read_bytes()).public
    message = ClientExtensions(int(time.time()) // 60).encode()
    rng = random.Random(2)
    handshake = NtorClient.start(keys.identity(0).public.id, onion_key, keys.NETWORK_ID, message, rng)[1]
    owner = Owner()
    link.channel.create(link.open_circuit(owner, rng).circuit_id, handshake)
    return owner


async def test_idle_links_make_room_for_new_ones(node: NodeProcess) -> None:
    async with channels_to(node) as (channels, address):
        relay_id = keys.identity(0).public.id
        links: list[Link] = []
        most = 0
        owner: Owner | None = None
        for _ in range(LINKS):
            links.append(await channels.connect(address, relay_id))
            owner = owner or create(node, links[0])
            most = max(most, open_files(node))
        assert owner is not None
        assert owner.accepted
        assert owner.ended is None, "who uses a link keeps it"
        assert links[0].open
        assert links[-1].open
        assert not links[1].open
        assert most < FILES - 8, "what is kept in reserve was never touched"
        limits = dict(line.rsplit("=", 1) for line in (await deferToThread(ask, node, "backrooms/limits")).splitlines())
        closed = int(limits["link: idle, and too many"])
        assert closed >= LINKS - FILES
        assert sum(link.open for link in links) <= LINKS - closed + 1
        command = [sys.executable, "-m", "backrooms.cli.main", "status", "--control", str(node.folder / "control.sock")]
        done = await deferToThread(subprocess.run, command, capture_output=True, text=True, timeout=60)
        assert f"{closed} link: idle, and too many" in done.stdout
        assert node.process.poll() is None
        assert len(node.lines("idle ones are closed")) == 1
        assert "Traceback" not in node.log()
