"""Many gossip machines and their directories on a simulated network: messages, losses, dead relays, partitions.

The machines and directories are the real ones. What stands for the node around them is here: links with a delay, dials
that fail, documents that are fetched and verified. Each pair of documents is verified once for all nodes, and counted.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from typing import Any

from backrooms.errors import RemoteProtocolError
from backrooms.gossip.exchange import Ask, Check, Drop, Gossip, Send, Silent
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory
from backrooms.wire.cell import CELL_SIZE
from backrooms.wire.documents import DirDocs, DirFetch, Documents
from backrooms.wire.link import FRAGMENT_SIZE
from bench.sim.relays import NETWORK_ID, START

DELAY = (0.02, 0.12)
"""Seconds that a message is under way, at least and at most."""
VERIFY_DELAY = 0.005
DIAL_FAILS = 5.0
"""Seconds until an attempt to reach a relay that is gone has failed."""
FETCH_FAILS = 20.0
LINK_IDLE = 180.0
"""Seconds after which a link that was not used has been closed."""


def cells(payload: bytes) -> int:
    """Bytes of the cells that a link message takes."""
    return -(-(len(payload) + 1) // FRAGMENT_SIZE) * CELL_SIZE


class SimRelay:
    """One relay: its directory, its gossip, what it sent."""

    def __init__(self, net: GossipNet, own: Descriptor, known: Iterable[Descriptor]) -> None:
        self.net = net
        self.id = own.id
        self.alive = True
        self.side = 0
        """Which part of a partitioned network it is in."""
        self.directory = Directory(NETWORK_ID, net.wall())
        self.directory.restore([(relay, int(net.wall())) for relay in known], net.wall())
        self.directory.insert(own, net.wall())
        self.gossip = Gossip(self.directory, own.id, net.rng, net.now)
        self.sent = 0
        self.received = 0
        self.links_made = 0
        self.dropped: list[tuple[bytes, str]] = []
        """Peers that this relay found to break the protocol."""
        self._links: dict[bytes, float] = {}
        self._wake_at = float("inf")
        self.flush()

    @property
    def own(self) -> Descriptor:
        found = self.directory.get(self.id)
        assert found is not None
        return found

    def publish(self, relay: Descriptor) -> None:
        """Make something known that this relay signed or was given."""
        self.directory.insert(relay, self.net.wall())
        self.gossip.news(relay.id, self.net.now)
        self.flush()

    def flush(self) -> None:
        """Do what the machine says is to be done, and come back when it wants."""
        out, self.gossip.out = self.gossip.out, []
        for one in out:
            if isinstance(one, Send):
                self._send(one)
            elif isinstance(one, Ask):
                self._ask(one)
            elif isinstance(one, Check):
                self.net.later(VERIFY_DELAY, partial(self._take, one))
            elif isinstance(one, Drop):
                self.dropped.append((one.peer, one.reason))
                self._links.pop(one.peer, None)
            elif isinstance(one, Silent):
                self._links.pop(one.peer, None)
        due = self.gossip.deadline()
        if due < self._wake_at:
            self._wake_at = due
            self.net.later(max(due - self.net.now, 0.0), partial(self._wake, due))

    def _wake(self, due: float) -> None:
        if self.alive and due == self._wake_at:
            self._wake_at = float("inf")
            self.gossip.tick(self.net.now)
            self.flush()

    def _link(self, peer: bytes) -> None:
        if self._links.get(peer, -LINK_IDLE) + LINK_IDLE <= self.net.now:
            self.links_made += 1
        self._links[peer] = self.net.now

    def _send(self, one: Send) -> None:
        net = self.net
        target = net.relays.get(one.peer)
        if target is None or not target.alive or target.side != self.side:
            if not one.reply:
                net.later(DIAL_FAILS, partial(self._unreachable, one.peer))
            return
        self._link(one.peer)
        size = cells(one.message.encode())
        self.sent += size
        if net.rng.random() >= net.loss:
            net.later(net.rng.uniform(*DELAY), partial(target.receive, self.id, one.message, size))

    def receive(self, peer: bytes, message: Any, size: int) -> None:
        """A message arrives."""
        if self.alive:
            self.received += size
            self._links[peer] = self.net.now
            self.gossip.receive(peer, message, self.net.now)
            self.flush()

    def _unreachable(self, peer: bytes) -> None:
        if self.alive:
            self.gossip.unreachable(peer, self.net.now)
            self.flush()

    def _ask(self, one: Ask) -> None:
        net = self.net
        target = net.relays.get(one.peer)
        lost = net.rng.random() < net.loss or net.rng.random() < net.loss
        if target is None or not target.alive or target.side != self.side or lost:
            net.later(FETCH_FAILS, partial(self._fetched, one.peer, None))
            return
        asked = DirFetch.decode(one.request.encode())
        answer = target.directory.answer_fetch(asked)
        there, back = cells(asked.encode()), cells(answer.encode())
        self.sent += there
        target.received += there
        target.sent += back
        self.received += back
        net.later(2 * net.rng.uniform(*DELAY), partial(self._fetched, one.peer, answer))

    def _fetched(self, peer: bytes, answer: DirDocs | None) -> None:
        if self.alive:
            self.gossip.fetched(peer, answer, self.net.now)
            self.flush()

    def _take(self, one: Check) -> None:
        if self.alive:
            results = [self.net.verify(self.directory, documents) for documents in one.documents]
            self.gossip.took(one.peer, one.documents, results, self.net.now)
            self.flush()


class GossipNet:
    """The relays, the clock, and what is known of every document."""

    def __init__(self, seed: int = 0, loss: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.now = 0.0
        self.relays: dict[bytes, SimRelay] = {}
        self.verified = 0
        """Documents verified, each for all nodes."""
        self.looked_up = 0
        """Documents whose verification was known."""
        self._good: dict[tuple[bytes, bytes], Descriptor] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = count()

    def wall(self) -> float:
        """Unix seconds."""
        return START + self.now

    def add(self, own: Descriptor, known: Iterable[Descriptor]) -> SimRelay:
        """A relay that knows some others."""
        relay = self.relays[own.id] = SimRelay(self, own, known)
        return relay

    def living(self) -> list[SimRelay]:
        return [relay for relay in self.relays.values() if relay.alive]

    def kill(self, relay: SimRelay) -> None:
        relay.alive = False

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._count), call))

    def run(self, seconds: float, until: Callable[[], bool] | None = None, look: float = 0.25) -> bool:
        """Let time pass; `until` is asked every `look` seconds. Whether it came true."""
        end, look_at = self.now + seconds, self.now
        while True:
            if until is not None and self.now >= look_at:
                look_at = self.now + look
                if until():
                    return True
            if not self._events or self._events[0][0] > end:
                self.now = end
                return until is not None and until()
            self.now, _, call = heapq.heappop(self._events)
            call()

    def verify(self, directory: Directory, one: Documents) -> Descriptor | RemoteProtocolError:
        """Verify and take in, as a node's verifier does, but each document once."""
        known = directory.get(one.id)
        certificate = one.certificate or (known.certificate.raw if known is not None else b"")
        found = self._good.get((certificate, one.record))
        try:
            if found is None or found.id != one.id:
                self.verified += 1
                found = directory.verify(one.certificate or None, one.record, self.wall())
                self._good[certificate, one.record] = found
            else:
                self.looked_up += 1
            return directory.insert(found, self.wall())
        except RemoteProtocolError as error:
            return error

    def equal(self, relays: Iterable[SimRelay]) -> bool:
        """Whether all lists are the same."""
        return len({relay.gossip.digests.root for relay in relays}) == 1
