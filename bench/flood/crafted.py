"""Floods by somebody who speaks our protocol: links, CREATEs, EXTENDs and BEGINs, faster than any limit allows."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.python.failure import Failure

from backrooms.circuit.events import CircuitBuilt
from backrooms.circuit.origin import HopKeys, OriginCircuit
from backrooms.circuit.stream import Stream
from backrooms.crypto.keys import parse_id
from backrooms.errors import BackroomsError
from backrooms.netdir.network import NetworkFile
from backrooms.node.channels import Channels
from backrooms.node.driver import Turn
from backrooms.node.link import Link
from backrooms.node.timers import Timers
from backrooms.transport import tls
from backrooms.wire.cell import DestroyReason
from backrooms.wire.extensions import ClientExtensions
from bench.flood.attacks import sources

TICK = 0.01
LINKS = 5
"""Links that the floods of circuits use, each from an address of its own."""
WAITING = 200
"""Attempts per link that may be under way."""
BEGINS = 50
"""On each circuit of that flood, as soon as it is built."""
CLOSED_PORT = 9

reactor: Any = global_reactor


class FromAddress(tls.TlsTransport):
    """Dials from one address of 127/8."""

    source = ""

    def client_endpoint(self, reactor: Any, address: str) -> Any:
        where = self.parse(address)
        tcp = TCP4ClientEndpoint(reactor, where.host, where.port, 10, (self.source, 0))
        return tls._ClientEndpoint(self, reactor, tcp)


class Attempt:
    """One circuit of one hop, as the owner of its id."""

    def __init__(self, attacker: Attacker, link: Link) -> None:
        self._attacker = attacker
        self.link = link
        self.machine: OriginCircuit | None = None
        self.circuit_id = 0

    def start(self, path: list[HopKeys]) -> None:
        """Send CREATE."""
        attacker = self._attacker
        queue = self.link.open_circuit(self, attacker.rng)
        self.circuit_id = queue.circuit_id
        self.machine = OriginCircuit(
            path,
            attacker.network.id,
            queue,
            lambda handshake: self.link.channel.create(self.circuit_id, handshake),
            lambda: ClientExtensions(int(time.time()) // 60).encode(),
            attacker.timers.now,
            attacker.rng,
            self._event,
        )
        self.link.handle(self.circuit_id, self.machine.receive)
        self.machine.start()

    def created(self, handshake: bytes) -> None:
        if self.machine is not None:
            self.machine.created(handshake)

    def destroyed(self, reason: int) -> None:
        self._attacker.counts[DestroyReason(reason).name.lower()] += 1
        self._attacker.over(self)

    def _event(self, event: Any) -> None:
        if isinstance(event, CircuitBuilt):
            self._attacker.counts["built"] += 1
            self._attacker.built(self)


class Attacker:
    """Floods the first relay of `relays` in one way."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.kind = options.kind
        self.rng = random.SystemRandom()
        self.timers = Timers(reactor)
        self.network = NetworkFile.parse(Path(options.network).read_text())
        self.counts: Counter[str] = Counter()
        self._turn = Turn(reactor)
        self._rate = options.rate
        self._relays = json.loads(options.relays)
        self._target = self._hop(0)
        self._sources: Iterator[str] = sources(options.subnets, options.hosts)
        self._links: list[Link] = []
        self._under_way: Counter[Link] = Counter()
        self._began = 0.0
        self._attempts = 0

    def _hop(self, index: int) -> HopKeys:
        relay = self._relays[index % len(self._relays)]
        return HopKeys(parse_id(relay["id"]), bytes.fromhex(relay["onion_key"]))

    async def run(self, seconds: float) -> dict[str, int]:
        """Attack for so long."""
        if self.kind != "links":
            for _ in range(LINKS):
                await self._open_link(keep=True)
        self._began = time.monotonic()
        while (passed := time.monotonic() - self._began) < seconds:
            due = int(passed * self._rate) - self._attempts
            for _ in range(min(due, 500)):
                self._attempts += 1
                self._attempt()
            await self.timers.sleep(TICK)
        return {"attempts": self._attempts, "links": len(self._links), **self.counts}

    async def _open_link(self, keep: bool) -> None:
        transport = FromAddress(self.network.id)
        transport.source = next(self._sources)
        address = self._relays[0]["address"]
        channels = Channels(
            reactor, self.timers, self._turn, self.rng, self.network.id, {"tls": transport}, lambda _: [address]
        )
        try:
            link = await channels.link(self._target.relay_id)
        except BackroomsError:
            self.counts["no link"] += 1
            return
        self.counts["linked"] += 1
        if keep:
            self._links.append(link)

    def _attempt(self) -> None:
        if self.kind == "links":
            if self.counts["started"] - self.counts["linked"] - self.counts["no link"] < 500:
                self.counts["started"] += 1
                Deferred.fromCoroutine(self._open_link(keep=False))
            return
        open_links = [link for link in self._links if link.open]
        if not open_links:
            return
        link = open_links[self._attempts % len(open_links)]
        if self._under_way[link] < WAITING:
            self._under_way[link] += 1
            path = [self._target, self._hop(1 + self._attempts % 2)] if self.kind == "extends" else [self._target]
            try:
                Attempt(self, link).start(path)
            except BackroomsError:
                self.counts["link closed"] += 1

    def built(self, attempt: Attempt) -> None:
        """A circuit is there: what is done with it."""
        if self.kind == "begins":
            assert attempt.machine is not None
            for _ in range(BEGINS):
                attempt.machine.begin(Stream(), "127.0.0.1", CLOSED_PORT)
        self._under_way[attempt.link] -= 1

    def over(self, attempt: Attempt) -> None:
        """The relay ended it."""
        self._under_way[attempt.link] = max(0, self._under_way[attempt.link] - 1)


def run_to_end(work: Coroutine[Any, Any, Any]) -> None:
    """Run the reactor until the coroutine is done; what goes wrong goes to standard error."""

    def failed(failure: Failure) -> None:
        failure.printTraceback()  # type: ignore[no-untyped-call]

    def start() -> None:
        Deferred.fromCoroutine(work).addErrback(failed).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(start)
    reactor.run()


def attack(options: argparse.Namespace) -> dict[str, int]:
    """Run the attack; what was done."""
    done: dict[str, int] = {}

    async def whole() -> None:
        done.update(await Attacker(options).run(options.seconds))

    run_to_end(whole())
    return done
