"""What an application asks of the client half of a node."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from backrooms.levels import Level


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """Where a stream shall go, and what it may share a circuit with.

    Streams may share a circuit only when `isolation` is equal. `level` is None for the node's default. `source` is
    "ip:port" of the application ("unix:0" on a unix socket). Destination and isolation stay out of logs.
    """

    host: str = field(repr=False)
    port: int
    isolation: tuple[Hashable, ...] = field(repr=False)
    level: Level | None
    source: str
    protocol: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One address or name, good for `ttl` seconds."""

    address: str = field(repr=False)
    ttl: int
