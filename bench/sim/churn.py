"""Nodes that build circuits by their own lists while half of the network is replaced in ten minutes."""

from __future__ import annotations

from collections import Counter
from functools import partial

from backrooms.errors import PathError
from backrooms.gossip.doubts import Doubts
from backrooms.gossip.neighbours import Neighbours
from backrooms.netdir.descriptor import Descriptor
from backrooms.node.paths import SUSPICION
from backrooms.node.streams import CONNECT_TIMEOUT, RETRY_FIRST
from backrooms.path.constraints import Constraints, Target
from backrooms.path.selector import PathSelector
from bench.sim.gossipnet import DIAL_FAILS, GossipNet, SimRelay
from bench.sim.relays import make_relay

NODES = 60
SHARE = 0.5
SPAN = 600.0
"""Seconds in which that share of the nodes is replaced."""
EVERY = 40.0
"""Seconds between circuits that a node wants."""
HOPS = 3
KNOWN_DEAD = 5.0
"""Seconds after which relays know that another one is dead (the failure detector's bound; see its own simulation)."""
LISTS = 30.0
"""Seconds between lists of the dead that a client gets from three relays."""


class Client:
    """A node's client half: it chooses paths by the node's own list, around what it has reason to avoid."""

    def __init__(self, churn: Churn, relay: SimRelay) -> None:
        self._churn = churn
        self._net = churn.net
        self._relay = relay
        self._selector: PathSelector | None = None
        self._revision = -1
        self._suspects: dict[bytes, float] = {}
        self._doubts = Doubts(relay.directory, Neighbours(relay.directory), self._weights)
        self._want()
        self._net.later(LISTS * self._net.rng.random(), self._hear)

    def _weights(self) -> dict[bytes, float]:
        return {relay.id: float(relay.capacity) for relay in self._relay.directory.relays()}

    def _hear(self) -> None:
        """Three relays tell whom they hold for dead."""
        net = self._net
        if not self._relay.alive:
            return
        known = [one for one in net.living() if one.id in self._relay.directory]
        for one in net.rng.sample(known, min(3, len(known))):
            self._doubts.long_dead(one.id, self._churn.known_dead(), net.now)
        net.later(LISTS, self._hear)

    def _want(self) -> None:
        net = self._net
        if self._relay.alive:
            self._attempt(net.now, RETRY_FIRST, 1)
            net.later(EVERY * net.rng.uniform(0.5, 1.5), self._want)

    def _choose(self) -> list[Descriptor]:
        directory, now = self._relay.directory, self._net.now
        if self._selector is None or directory.revision != self._revision:
            self._revision = directory.revision
            self._selector = PathSelector.over(directory.relays(), Constraints(exclude=frozenset({self._relay.id})))
        self._suspects = {one: until for one, until in self._suspects.items() if until > now}
        avoid = self._doubts.doubted(now) | set(self._suspects)
        return self._selector.select(HOPS, Target(), self._net.rng, avoid=avoid)

    def _attempt(self, began: float, pause: float, number: int) -> None:
        """One try after another until a stream would give up, as `node.streams` does it."""
        net = self._net
        if not self._relay.alive:
            return
        if net.now - began >= CONNECT_TIMEOUT:
            self._churn.failed += 1
            return
        try:
            path = self._choose()
        except PathError:
            self._churn.no_path += 1
            self._suspects.clear()
            net.later(pause, partial(self._attempt, began, pause * 2, number))
            return
        dead = next((place for place, one in enumerate(path) if not net.relays[one.id].alive), None)
        if dead is None:
            self._churn.attempts[number] += 1
            return
        # The hop before it says that the next one cannot be reached: both may be to blame.
        for one in path[max(0, dead - 1) : dead + 1]:
            self._suspects[one.id] = net.now + DIAL_FAILS + SUSPICION
        net.later(DIAL_FAILS + pause, partial(self._attempt, began, pause * 2, number + 1))


class Churn:
    """The network and what became of its circuits."""

    def __init__(self, seed: int) -> None:
        self.net = GossipNet(seed)
        self.attempts: Counter[int] = Counter()
        """Circuits that were built, by the attempts it took."""
        self.failed = 0
        self.no_path = 0
        self._died: dict[bytes, float] = {}
        base = [make_relay(number, self.net.wall() - 4 * 3600) for number in range(NODES)]
        self._next = NODES
        for own in base:
            self.net.add(own, base)
        self.net.run(60)
        for relay in self.net.living():
            Client(self, relay)

    def known_dead(self) -> frozenset[bytes]:
        """Relays that have been dead for long enough to be known for it."""
        return frozenset(one for one, at in self._died.items() if self.net.now - at >= KNOWN_DEAD)

    def _replace(self) -> None:
        """One dies without a word; a new one comes, which knows the address of one other."""
        net = self.net
        gone = net.rng.choice(net.living())
        net.kill(gone)
        self._died[gone.id] = net.now
        contact = net.rng.choice(net.living())
        own = make_relay(self._next, net.wall())
        self._next += 1
        relay = net.add(own, contact.directory.relays())
        relay.publish(own)
        Client(self, relay)

    def run(self, spans: float = 1.0) -> None:
        """Replace nodes one after the other."""
        for _ in range(int(NODES * SHARE * spans)):
            self.net.run(SPAN / (NODES * SHARE))
            self._replace()
        self.net.run(CONNECT_TIMEOUT)

    @property
    def built(self) -> int:
        return sum(self.attempts.values())

    def share(self) -> float:
        """Of all circuits that were wanted, those that came up."""
        return self.built / max(1, self.built + self.failed)
