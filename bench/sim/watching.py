"""A network of failure detectors in simulated time: the real machines, messages and signatures; only links are not.

A message takes `delay` plus a random part of `jitter`; with the chance `loss` it is late as a TCP segment is that has
to be sent again. Messages of one pair stay in order. Where there is no link, one is made first, in three round trips.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from backrooms.crypto.keys import PublicIdentity
from backrooms.gossip.detector import TICK, TIMING, Detector, Outgoing, Timing
from backrooms.gossip.doubts import Doubts
from backrooms.gossip.neighbours import Neighbours
from backrooms.gossip.suspicions import SuspicionTable
from backrooms.netdir.descriptor import Descriptor, IdentityCertificate
from backrooms.netdir.directory import Directory
from backrooms.wire.cell import CELL_SIZE
from backrooms.wire.heartbeat import AnyHeartbeatMessage, Rumours
from backrooms.wire.link import FRAGMENT_SIZE
from backrooms.wire.records import Address, CertificateBody, ContactRecord, Roles

WALL = 1_800_000_000.0
"""Unix time at which simulations begin."""
NETWORK_ID = bytes(32)
FAN = 4
"""Neighbours to whom news are passed on (node.heartbeats.FAN)."""
_RSA = bytes.fromhex("30820222300d06092a864886f70d01010105000382020f003082020a0282020100")


@cache
def key(number: int) -> Ed25519PrivateKey:
    """The signing key of a relay."""
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


@cache
def relay(number: int, place: int, family: int, exit_: bool, capacity: int = 1_000_000) -> Descriptor:
    """A relay in a /16 and a family; 0 for no family. Only its Ed25519 key is real."""
    modulus = b"\xc0" + number.to_bytes(4, "big") * 127 + bytes(2) + b"\x01"
    public = PublicIdentity(
        key(number).public_key().public_bytes_raw(), bytes(1952), _RSA + modulus + bytes.fromhex("0203010001")
    )
    created = int(WALL)
    body = CertificateBody(public.ed25519, public.ml_dsa, public.rsa, created, created + 86_400)
    record = ContactRecord(
        public.id,
        created,
        created + 86_400,
        f"relay{number}",
        bytes(32),
        (Address.parse(f"tls:{11 + place // 200}.{place % 200}.0.{1 + number % 250}:443"),),
        int(Roles.EXIT if exit_ else Roles(0)),
        (),
        capacity,
    )
    keys = frozenset({family.to_bytes(32, "big")} if family else ())
    return Descriptor(IdentityCertificate(public, body, keys, b"", bytes(32)), record, b"")


class SimRelay:
    """One relay with its detector."""

    def __init__(self, world: World, number: int, me: Descriptor, directory: Directory, timing: Timing) -> None:
        self.number = number
        self.id = me.id
        self.heard: dict[bytes, float] = {}
        self.frozen = False
        self.waiting: list[tuple[bytes, AnyHeartbeatMessage]] = []
        self.sent = 0
        self.clients: list[SimClient] = []
        self.dead = False
        self.detector = Detector(
            me.id,
            directory,
            world.neighbours,
            SuspicionTable(directory, world.neighbours),
            lambda message: key(number).sign(message),
            lambda relay_id: self.heard.get(relay_id, -1e9),
            random.Random(f"{world.seed}/{number}"),
            world.now,
            world.wall,
            timing,
        )


class SimClient:
    """A client that hears rumours from some relays."""

    def __init__(self, doubts: Doubts) -> None:
        self.doubts = doubts


class World:
    """Relays and clients. `places(number)` and `families(number)` say where and whose they are."""

    def __init__(
        self,
        relays: int = 64,
        clients: int = 4,
        *,
        seed: int = 0,
        delay: float = 0.05,
        jitter: float = 0.0,
        loss: float = 0.0,
        timing: Timing = TIMING,
        bounded: bool = True,
        places: Callable[[int], int] = lambda number: number,
        families: Callable[[int], int] = lambda number: 0,
    ) -> None:
        self.seed = seed
        self.now, self.rng = 1000.0, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self._delay, self._jitter, self._loss = delay, jitter, loss
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._arrivals: dict[tuple[bytes, bytes], float] = {}
        self.links: set[frozenset[bytes]] = set()
        self.directory = Directory(NETWORK_ID)
        descriptors = [relay(one, places(one), families(one), one % 4 == 0) for one in range(relays)]
        for one in descriptors:
            self.directory.insert(one, WALL)
        self.neighbours = Neighbours(self.directory)
        self.weights = {one.id: float(one.capacity) for one in descriptors}
        self.relays = [SimRelay(self, number, one, self.directory, timing) for number, one in enumerate(descriptors)]
        self.by_id = {one.id: one for one in self.relays}
        self.clients: list[SimClient] = []
        for _ in range(clients):
            doubts = Doubts(self.directory, self.neighbours, lambda: self.weights, bounded)
            client = SimClient(doubts)
            self.clients.append(client)
            for source in self.rng.sample(self.relays, min(3, relays)):
                source.clients.append(client)
        for node in self.relays:
            for watcher in self.neighbours.watchers(node.id, self.wall):
                self.links.add(frozenset((node.id, watcher)))
            self.at(self.now + TICK * self.rng.random(), self._ticker(node))

    @property
    def wall(self) -> float:
        return WALL + self.now

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call this at a time."""
        self._number += 1
        heapq.heappush(self._heap, (when, self._number, call))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; whether `until` came true."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, call = heapq.heappop(self._heap)
            call()
            if until is not None and until():
                return True
        self.now = end
        return False

    # relays

    def _ticker(self, one: SimRelay) -> Callable[[], None]:
        def tick() -> None:
            if one.dead:
                return
            if not one.frozen:
                one.detector.tick(self.now, self.wall)
                self.flush(one)
            self.at(self.now + TICK, tick)

        return tick

    def freeze(self, one: SimRelay) -> None:
        """SIGSTOP."""
        one.frozen = True

    def thaw(self, one: SimRelay) -> None:
        """SIGCONT: timers that are due come first, then what waits in sockets, as in a reactor."""
        one.frozen = False
        one.detector.tick(self.now, self.wall)
        waiting, one.waiting = one.waiting, []
        for peer, message in waiting:
            self._receive(one, peer, message)
        self.flush(one)

    def flush(self, one: SimRelay) -> None:
        """Send what a relay has to say."""
        outbox, one.detector.outbox = one.detector.outbox, []
        for out in outbox:
            self._send(one, out)
        news, one.detector.news = one.detector.news, []
        for message in news:
            for client in one.clients:
                self._tell(client, message)

    def _tell(self, client: SimClient, message: Rumours) -> None:
        # Over a circuit of three relays.
        delay = sum(self._travel() for _ in range(4))
        self.at(self.now + delay, lambda: client.doubts.rumours(message, self.now, self.wall))

    def _send(self, one: SimRelay, out: Outgoing) -> None:
        if out.to is None:
            near = [peer for link in self.links if one.id in link for peer in link if peer != one.id]
            for peer in self.rng.sample(sorted(near), min(FAN, len(near))):
                self.post(one, peer, out.message)
            return
        linked = frozenset((one.id, out.to)) in self.links
        if linked or out.dial:
            self.post(one, out.to, out.message)

    def post(self, one: SimRelay, to: bytes, message: AnyHeartbeatMessage) -> None:
        """Put a message on its way."""
        link = frozenset((one.id, to))
        delay = self._travel()
        if link not in self.links:
            if self.by_id[to].frozen or self.by_id[to].dead:
                return  # nobody answers the handshake
            self.links.add(link)
            delay += sum(self._travel() for _ in range(6))
            one.sent += 3 * CELL_SIZE
        size = 1 + len(message.encode())
        cells = -(-size // FRAGMENT_SIZE) * CELL_SIZE
        one.sent += cells
        self.counts[type(message).__name__] += 1
        arrives = max(self.now + delay, self._arrivals.get((one.id, to), 0.0))
        self._arrivals[one.id, to] = arrives
        self.at(arrives, lambda: self._arrive(one.id, self.by_id[to], message))

    def _travel(self) -> float:
        """Seconds for one message: lost segments are sent again after 200 ms, then after twice as long."""
        delay = self._delay + self._jitter * self.rng.random()
        again = 0.2 + 2 * self._delay + self._jitter
        while self._loss and self.rng.random() < self._loss:
            delay += again
            again *= 2
        return delay

    def _arrive(self, peer: bytes, to: SimRelay, message: AnyHeartbeatMessage) -> None:
        if to.dead:
            return
        if to.frozen:
            to.waiting.append((peer, message))
            return
        self._receive(to, peer, message)
        self.flush(to)

    def _receive(self, to: SimRelay, peer: bytes, message: AnyHeartbeatMessage) -> None:
        to.heard[peer] = self.now
        to.detector.message(peer, message, self.now, self.wall)

    # what came of it

    def doubters(self, one: SimRelay) -> int:
        """Clients that avoid a relay."""
        return sum(one.id in client.doubts.doubted(self.now) for client in self.clients)

    def accusations(self) -> int:
        """Suspicions signed by anybody."""
        return sum(one.detector.accusations for one in self.relays)

    def bytes_per_hour(self, seconds: float) -> float:
        """Bytes that one relay sends, and receives, in an hour."""
        return sum(one.sent for one in self.relays) / len(self.relays) / seconds * 3600


def reset(world: World) -> Any:
    """Begin to count bytes anew."""
    for one in world.relays:
        one.sent = 0
