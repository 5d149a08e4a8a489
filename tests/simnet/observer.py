"""Who watches the wires: every byte with its time, so that claims about padding and paths can be asserted."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from tests.simnet.network import Host, SimNet
    from tests.simnet.pipe import Pipe


class Sighting(NamedTuple):
    """One segment: when (seconds), between which hosts, on which connection, and how many bytes.

    `outward`: it comes from the connection's initiator. `data` is empty if the observer keeps none.
    """

    time: float
    source: str
    target: str
    connection: int
    outward: bool
    size: int
    data: bytes


class Observer:
    """Sees the segments of the ways it watches, from its making until `stop`.

    `watch(source, target)` chooses ways by host names (None: all but loopback). `at` is where it sits: beside
    the sender ("departure": the moment a segment enters the way) or beside the receiver ("arrival": queueing,
    delay and losses included, but not an outage that begins later). A segment that TCP repeats is seen once.
    With `keep=False` it keeps sizes and times, not bytes.
    """

    def __init__(
        self,
        net: SimNet,
        watch: Callable[[str, str], bool] | None = None,
        at: Literal["departure", "arrival"] = "departure",
        keep: bool = True,
    ) -> None:
        self.sightings: list[Sighting] = []
        self._net = net
        self._watch = watch or _between_hosts
        self._at_arrival = at == "arrival"
        self._keep = keep
        net.observers.append(self)

    @classmethod
    def between(cls, net: SimNet, a: Host, b: Host, keep: bool = True) -> Observer:
        """An observer of the way between two hosts, both directions."""
        pair = {a.name, b.name}
        return cls(net, lambda source, target: {source, target} == pair, keep=keep)

    @classmethod
    def around(cls, net: SimNet, host: Host, keep: bool = True) -> Observer:
        """An observer of everything one host sends and gets, such as its provider."""
        name = host.name
        return cls(net, lambda source, target: source != target and name in (source, target), keep=keep)

    def saw(self, pipe: Pipe, arrival: float, data: bytes) -> None:
        """Called by the network."""
        source, target = pipe.path.source.name, pipe.path.target.name
        if self._watch(source, target):
            time = arrival if self._at_arrival else self._net.clock.now
            self.sightings.append(
                Sighting(time, source, target, pipe.number, pipe.outward, len(data), data if self._keep else b"")
            )

    def stop(self) -> None:
        """See nothing more; what was seen stays."""
        if self in self._net.observers:
            self._net.observers.remove(self)

    def clear(self) -> None:
        """Forget what was seen."""
        self.sightings.clear()

    # what it makes of it

    def of(self, source: Host | None = None, target: Host | None = None) -> list[Sighting]:
        """The segments from `source` to `target`; None means any."""
        return [
            seen
            for seen in self.sightings
            if (source is None or seen.source == source.name) and (target is None or seen.target == target.name)
        ]

    def bytes_by_link(self) -> dict[tuple[str, str], int]:
        """Bytes per direction between two hosts, by their names."""
        total: dict[tuple[str, str], int] = {}
        for seen in self.sightings:
            key = (seen.source, seen.target)
            total[key] = total.get(key, 0) + seen.size
        return total

    def total(self, source: Host | None = None, target: Host | None = None) -> int:
        """Bytes from `source` to `target`."""
        return sum(seen.size for seen in self.of(source, target))

    def gaps(self, source: Host | None = None, target: Host | None = None) -> list[float]:
        """Seconds between one segment and the next."""
        times = sorted(seen.time for seen in self.of(source, target))
        return [later - earlier for earlier, later in itertools.pairwise(times)]

    def peers(self, host: Host) -> set[str]:
        """The names of the hosts that `host` exchanged bytes with."""
        met = {seen.target for seen in self.of(source=host)} | {seen.source for seen in self.of(target=host)}
        return met - {host.name}

    def stream(self, connection: int, outward: bool) -> bytes:
        """All bytes of one direction of one connection."""
        self._needs_bytes()
        return b"".join(
            seen.data for seen in self.sightings if seen.connection == connection and seen.outward == outward
        )

    def where(self, canary: bytes) -> list[tuple[str, str]]:
        """The ways (source, target) on which `canary` passed, also if it was split between segments."""
        self._needs_bytes()
        if not canary:
            raise ValueError("an empty canary is everywhere")
        streams: dict[tuple[int, bool], bytearray] = {}
        ways: dict[tuple[int, bool], tuple[str, str]] = {}
        for seen in self.sightings:
            key = (seen.connection, seen.outward)
            streams.setdefault(key, bytearray()).extend(seen.data)
            ways[key] = (seen.source, seen.target)
        return sorted({ways[key] for key, data in streams.items() if canary in data})

    def contains(self, canary: bytes) -> bool:
        """Whether `canary` passed anywhere."""
        return bool(self.where(canary))

    def digest(self, contents: bool = True) -> str:
        """A hash of everything seen: equal for two runs only if they are the same.

        Without contents it is one of times, ways and sizes.
        """
        if contents:
            self._needs_bytes()
        sum_ = hashlib.sha256()
        for seen in self.sightings:
            sum_.update(repr(seen if contents else seen[:-1]).encode())
        return sum_.hexdigest()

    def _needs_bytes(self) -> None:
        if not self._keep:
            raise ValueError("this observer keeps no bytes")


def _between_hosts(source: str, target: str) -> bool:
    return source != target
