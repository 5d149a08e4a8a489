"""How much others may have of a node at once, and who goes without when that is too much.

Every limit here is shared by *holders*: a neighbouring relay, a client's address, or a circuit. When there is no room,
the holder that has most gives something up (docs/decisions/017-limits-of-a-node.md).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace, nsmallest
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from twisted.logger import Logger

from backrooms.circuit.hop import MAX_STREAMS
from backrooms.circuit.stream import Stream
from backrooms.config.options import LEAST_MEMORY, LimitOptions
from backrooms.errors import RemoteProtocolError
from backrooms.node.buckets import Buckets, Key
from backrooms.node.channels import Channels
from backrooms.node.link import Link
from backrooms.node.logs import Seldom
from backrooms.node.timers import Timers
from backrooms.wire.cell import DestroyReason
from backrooms.wire.relay import EndReason

if TYPE_CHECKING:
    from backrooms.node.relayedcircuit import RelayedCircuit

log = Logger()

Holder = TypeVar("Holder", bound=Hashable)
Thing = TypeVar("Thing", bound=Hashable)

MEMORY_SHARE = 4
MEMORY_MOST = 1 << 30
"""What may wait in queues, unless the configuration says: one part in so many of the memory, so many bytes at most."""
CIRCUIT_MEMORY = 20 * 1024
LINK_MEMORY = 60 * 1024
STREAM_MEMORY = 16 * 1024
"""Bytes of memory of an idle circuit, link and exit connection, measured."""
PROXY_CONNECTIONS = 4096
"""Connections of local applications, over all proxies."""

RELAY_CREATES, RELAY_CREATES_BURST = 500.0, 2000
CLIENT_CREATES, CLIENT_CREATES_BURST = 50.0, 500
"""CREATEs per second from a relay and from a client's address, and how many may come at once."""
CLIENT_REFUSALS, CLIENT_REFUSALS_BURST = 50.0, 1000
"""The same for CREATEs of a client beyond that, before its link is closed."""
MAX_PEERS = 16_384
"""How many peers' CREATEs are remembered."""

EXTENDS_WAITING = 2048
"""EXTENDs under way, over all circuits."""
EXTENDS_OF_RELAY = 1024
EXTENDS_OF_CLIENT = 128
"""The same for one peer's circuits."""
EXTENDS_TO_RELAY = 512
"""The same to one next relay: it does not answer, or too slowly."""
TOO_MANY_EXTENDS: Final = "too many EXTENDs under way"
TOO_MANY_STREAMS: Final = "too many streams"
"""What is counted when there is no room."""


# how much there is


def machine_memory(cgroups: Path = Path("/sys/fs/cgroup"), of_process: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that this process may have: the machine's, or less where a control group says so (cgroups(7))."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError):
        for line in of_process.read_text().splitlines():
            if line.startswith("0::/"):
                group = cgroups / line[4:]
                for folder in (group, *group.parents):
                    with suppress(OSError, ValueError):  # there is no limit, or none that we may see
                        found = min(found, int((folder / "memory.max").read_text()))
                    if folder == cgroups:
                        break
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """How many of each a node has at once; `memory` is in bytes.

    `streams` are an exit's and `half_open` those of them that are not connected, `proxies` connections of local
    applications.
    """

    memory: int
    links: int
    pending_links: int
    circuits: int
    circuits_per_link: int
    streams: int
    half_open: int
    proxies: int


def caps(options: LimitOptions, files: int, memory: int, is_exit: bool, is_client: bool) -> Caps:
    """What a process can afford that may have `files` open files and has `memory` bytes.

    An eighth of the files stays in reserve, an eighth of the rest is for links that are not open yet and an eighth for
    local applications, and an exit takes three eighths: two for connections and one for more attempts at addresses,
    of which a stream makes up to three. All others are links. Beside what waits in queues, idle circuits may take half
    as much memory again, links too, and streams a quarter.
    """
    queues = options.memory or max(LEAST_MEMORY, min(memory // MEMORY_SHARE, MEMORY_MOST))
    eighth = (files - min(max(32, files // 8), 1024)) // 8
    links = 7 * eighth - is_client * eighth - is_exit * 3 * eighth
    streams = max(1, min(2 * eighth, queues // 4 // STREAM_MEMORY))
    return Caps(
        memory=queues,
        links=max(8, min(links, queues // 2 // LINK_MEMORY)),
        pending_links=max(1, min(options.pending_links, eighth)),
        circuits=max(16, queues // 2 // CIRCUIT_MEMORY),
        circuits_per_link=options.circuits_per_link,
        streams=streams,
        half_open=max(1, min(streams, eighth // 3)),
        proxies=max(1, min(PROXY_CONNECTIONS, eighth)),
    )


# fair shares


class Shares(Generic[Holder, Thing]):
    """Things that are there for somebody: at most `limit`, and what one holder may have is said at each.

    When there is no room for one more, the holder that has most gives up its newest, which is handed to `give_up`. So
    nobody loses anything who has no more than an equal share. Every operation takes the same short time.
    """

    def __init__(self, limit: int, give_up: Callable[[Thing], None]) -> None:
        self.limit = limit
        self._give_up = give_up
        self._things: dict[Holder, dict[Thing, None]] = {}
        self._levels: dict[int, dict[Holder, None]] = {}
        """Holders by how many things they have."""
        self._most = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def count(self, holder: Holder) -> int:
        """How many things a holder has."""
        return len(self._things.get(holder, ()))

    def has_room(self, holder: Holder, most: int) -> bool:
        """Whether `admit` would take one more of a holder, who may have at most so many."""
        count = self.count(holder)
        return count < most and (self._size < self.limit or self._most > count + 1)

    def admit(self, holder: Holder, thing: Thing, most: int) -> bool:
        """Take a thing in, if there is room."""
        if not self.has_room(holder, most):
            return False
        if self._size >= self.limit:
            biggest = next(iter(self._levels[self._most]))
            newest = next(reversed(self._things[biggest]))
            self.remove(biggest, newest)
            self._give_up(newest)
        things = self._things.setdefault(holder, {})
        things[thing] = None
        self._size += 1
        self._move(holder, len(things) - 1, len(things))
        return True

    def remove(self, holder: Holder, thing: Thing) -> None:
        """A thing is gone; harmless when it is not there."""
        things = self._things.get(holder)
        if things is None or thing not in things:
            return
        del things[thing]
        self._size -= 1
        self._move(holder, len(things) + 1, len(things))
        if not things:
            del self._things[holder]

    def drop(self, holder: Holder) -> None:
        """A holder is gone with all that it had."""
        things = self._things.pop(holder, None)
        if things is not None:
            self._size -= len(things)
            self._move(holder, len(things), 0)

    def _move(self, holder: Holder, before: int, after: int) -> None:
        if before:
            level = self._levels[before]
            del level[holder]
            if not level:
                del self._levels[before]
        if after:
            self._levels.setdefault(after, {})[holder] = None
        if after > self._most:
            self._most = after
        elif before == self._most and before not in self._levels:
            self._most = max(self._levels, default=0) if after < before - 1 else after


def choose(holdings: dict[Holder, list[tuple[int, Thing]]], excess: int) -> list[Thing]:
    """What has to go so that `excess` bytes are free: each time the next thing of the holder that has most then.

    `holdings` are sizes in bytes and things, by holder and in the order in which they may go. All of them, if that is
    not enough.
    """
    rows = enumerate(things for things in holdings.values() if things)
    heap = [(-sum(size for size, _ in things), number, things[::-1]) for number, things in rows]
    heapify(heap)
    chosen: list[Thing] = []
    while excess > 0 and heap:
        total, number, things = heap[0]
        size, thing = things.pop()
        chosen.append(thing)
        excess -= size
        if things:
            heapreplace(heap, (total + size, number, things))
        else:
            heappop(heap)
    return chosen


# links


class LinkLimit:
    """Closes links when there are too many: those that have been idle longest, or of the client that has most."""

    def __init__(self, channels: Channels, timers: Timers, limit: int, counts: Counter[str]) -> None:
        self.limit = limit
        self._channels = channels
        self._timers = timers
        self._counts = counts
        self._accepted: Shares[Key, Link] = Shares(limit, self._close)
        self._dialled = 0
        self._seldom = Seldom()
        channels.on_opened.append(self._opened)
        channels.on_gone.append(self._gone)

    def _opened(self, link: Link) -> None:
        if len(self._accepted) + self._dialled >= self.limit:
            self._close_idle(link)
        if link.channel.initiator:
            self._dialled += 1
            return
        self._accepted.limit = max(1, self.limit - self._dialled)
        if not self._accepted.admit(link.peer, link, self.limit):
            self._close(link)

    def _gone(self, link: Link) -> None:
        if link.channel.initiator:
            self._dialled -= 1
        else:
            self._accepted.remove(link.peer, link)

    def _close_idle(self, new: Link) -> None:
        """Make room for some at once, since all have to be looked at for that."""
        now = self._timers.now()
        links = [one for one in self._channels.links if one.open and one is not new]
        idle = [one for one in links if not one.owners and now >= one.held_until]
        for link in nsmallest(max(1, self.limit // 64), idle, key=lambda one: one.last_used):
            self._counts["link: idle, and too many"] += 1
            self._accepted.remove(link.peer, link)
            link.drop("there are too many links, and this one was idle")
        if self._seldom.is_due("idle", now):
            log.warn("{count} links are all that this node can have: idle ones are closed", count=self.limit)

    def _close(self, link: Link) -> None:
        self._counts["link: too many"] += 1
        link.drop("there are too many links")


# circuits


class CircuitLimits:
    """What others may have of a relay: circuits, CREATEs, EXTENDs that are under way, and streams."""

    def __init__(self, caps: Caps, timers: Timers, counts: Counter[str]) -> None:
        self._timers = timers
        self._counts = counts
        self._per_peer = caps.circuits_per_link
        self._circuits: Shares[Key, RelayedCircuit] = Shares(caps.circuits, self._end_circuit)
        self._extends: Shares[Key, RelayedCircuit] = Shares(EXTENDS_WAITING, self._end_extend)
        self._extends_to: Counter[bytes] = Counter()
        self._streams: Shares[RelayedCircuit, Stream] = Shares(caps.streams, self._end_stream)
        self._half_open: Shares[RelayedCircuit, Stream] = Shares(caps.half_open, self._end_stream)
        self._relay_creates = Buckets(RELAY_CREATES, RELAY_CREATES_BURST, MAX_PEERS)
        self._client_creates = Buckets(CLIENT_CREATES, CLIENT_CREATES_BURST, MAX_PEERS)
        self._refusals = Buckets(CLIENT_REFUSALS, CLIENT_REFUSALS_BURST, MAX_PEERS)

    # circuits

    def may_create(self, link: Link) -> bool:
        """Whether a CREATE of this link's may wait for its handshake. A client that goes on and on loses its link."""
        now, peer, is_client = self._timers.now(), link.peer, link.peer_id is None
        creates = self._client_creates if is_client else self._relay_creates
        if creates.has(peer, now):
            creates.take(peer, now)
            return self.has_room(link)
        self._counts["CREATEs too fast"] += 1
        if is_client:
            if self._refusals.has(peer, now):
                self._refusals.take(peer, now)
            else:
                link.driver.fail(RemoteProtocolError("a flood of CREATEs"))
        return False

    def has_room(self, link: Link) -> bool:
        """Whether there is room for one more circuit of this link's."""
        if self._circuits.has_room(link.peer, self._per_peer):
            return True
        self._counts["too many circuits of one peer, or in all"] += 1
        return False

    def created(self, circuit: RelayedCircuit) -> None:
        """There is one more."""
        self._circuits.admit(circuit.peer, circuit, self._per_peer)

    def _end_circuit(self, circuit: RelayedCircuit) -> None:
        self._counts["ended for another peer's circuit"] += 1
        circuit.end(DestroyReason.RESOURCE_LIMIT)

    def ended(self, circuit: RelayedCircuit) -> None:
        """A circuit is gone with all that belonged to it."""
        self._circuits.remove(circuit.peer, circuit)
        self.extended(circuit)
        self._streams.drop(circuit)
        self._half_open.drop(circuit)

    # EXTENDs

    def extend(self, circuit: RelayedCircuit, relay_id: bytes) -> bool:
        """Whether a circuit may be extended to a relay now; if so, `extended` must follow."""
        most = EXTENDS_OF_CLIENT if circuit.link.peer_id is None else EXTENDS_OF_RELAY
        if self._extends_to[relay_id] >= EXTENDS_TO_RELAY or not self._extends.admit(circuit.peer, circuit, most):
            return False
        self._extends_to[relay_id] += 1
        circuit.extending = relay_id
        return True

    def extended(self, circuit: RelayedCircuit) -> None:
        """It is extended, or will not be; harmless when it never was to be."""
        relay_id, circuit.extending = circuit.extending, b""
        if relay_id:
            self._extends.remove(circuit.peer, circuit)
            self._extends_to[relay_id] -= 1
            if not self._extends_to[relay_id]:
                del self._extends_to[relay_id]

    def _end_extend(self, circuit: RelayedCircuit) -> None:
        circuit.fail(DestroyReason.RESOURCE_LIMIT, TOO_MANY_EXTENDS)

    # streams

    def begin(self, circuit: RelayedCircuit, stream: Stream) -> bool:
        """Whether there is room for a stream; if so, `settled` and `stream_gone` must follow."""
        streams, half_open = self._streams, self._half_open
        if not (streams.has_room(circuit, MAX_STREAMS) and half_open.has_room(circuit, MAX_STREAMS)):
            return False
        return half_open.admit(circuit, stream, MAX_STREAMS) and streams.admit(circuit, stream, MAX_STREAMS)

    def settled(self, circuit: RelayedCircuit, stream: Stream) -> None:
        """A stream is connected, or will not be."""
        self._half_open.remove(circuit, stream)

    def stream_gone(self, circuit: RelayedCircuit, stream: Stream) -> None:
        """A stream has ended."""
        self._half_open.remove(circuit, stream)
        self._streams.remove(circuit, stream)

    def _end_stream(self, stream: Stream) -> None:
        self._counts[TOO_MANY_STREAMS] += 1
        stream.abort(EndReason.RESOURCELIMIT)
