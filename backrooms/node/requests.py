"""What an application asks of the client half of a node."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from backrooms.errors import StreamError
from backrooms.levels import Level
from backrooms.path.route import Route

_NO_EXITS_BUSINESS = (".backrooms", ".onion", ".exit")


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """Where a stream shall go, and what it may share a circuit with.

    Streams may share a circuit only when `route` and `isolation` are equal. `route` is None for the node's default.
    `source` is "ip:port" of the application ("unix:0" on a unix socket). Destination and isolation stay out of logs.
    """

    host: str = field(repr=False)
    port: int
    isolation: tuple[Hashable, ...] = field(repr=False)
    route: Route | None
    source: str
    protocol: str

    @property
    def level(self) -> Level | None:
        """The route's level."""
        return None if self.route is None else self.route.level


@dataclass(frozen=True, slots=True)
class Answer:
    """One address or name, good for `ttl` seconds."""

    address: str = field(repr=False)
    ttl: int


class TryAgain(StreamError):
    """A look-up failed for now: asking later may help."""


def stays_here(host: str) -> bool:
    """Whether a name must never reach an exit: those of this network's services, and of Tor (RFC 7686)."""
    return f".{host}".removesuffix(".").endswith(_NO_EXITS_BUSINESS)
