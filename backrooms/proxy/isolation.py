"""Which streams may share a circuit, and by which route a request goes. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from backrooms.config.routes import Pattern
from backrooms.errors import ConfigError
from backrooms.levels import DEFAULT, Level, parse_level
from backrooms.node.requests import StreamRequest
from backrooms.path.route import Route
from backrooms.proxy.request import Request

MAX_LEVEL = 64
"""Bytes of a level's name that are looked at; no level has a name as long."""

_SEPARATOR = re.compile(rb"[,;]")


def requested_level(request: Request) -> Level | None:
    """The level named by a word `level=NAME` of the user name or the isolation token, or None.

    Words are separated by commas or semicolons. An unknown level, and two different ones, are a
    `ConfigError`: a request that names a level never runs at another.
    """
    found: Level | None = None
    for word in _SEPARATOR.split(request.user) + _SEPARATOR.split(request.token):
        key, equals, value = word.partition(b"=")
        if key.strip().lower() != b"level" or not equals:
            continue
        level = parse_level(value.strip()[:MAX_LEVEL].decode("ascii", "backslashreplace"))
        if found is not None and level != found:
            raise ConfigError("the request names two different levels")
        found = level
    return found


@dataclass(frozen=True, slots=True)
class RouteRule:
    """One `[[routes]]`: what requests for some destinations ask for. Without a level the listener's stands."""

    name: str
    patterns: tuple[Pattern, ...]
    level: Level | None = None
    avoid: tuple[str, ...] = ()
    exit: tuple[str, ...] = ()
    isolate: frozenset[str] = frozenset()

    def matches(self, host: str, port: int | None) -> bool:
        """Whether it is for this destination, whose port is None in a look-up."""
        return any(pattern.matches(host, port) for pattern in self.patterns)

    def route(self, requested: Level | None, listener: Level | None) -> Route | None:
        """The route of a request that names a level or none. None: whatever is the node's default."""
        level = requested or self.level or listener
        if level is None and not self.patterns:
            return None
        return Route(level or DEFAULT, self.avoid, self.exit, self.name)


_NO_RULE = RouteRule("", ())


class RouteRules:
    """The node's rules for destinations, which all listeners have in common. `rules` may be replaced."""

    def __init__(self, rules: Sequence[RouteRule] = ()) -> None:
        self.rules = tuple(rules)

    def find(self, host: str, port: int | None) -> RouteRule:
        """The first rule for this destination; one that asks for nothing if there is none."""
        return next((rule for rule in self.rules if rule.matches(host, port)), _NO_RULE)


@dataclass(frozen=True, slots=True)
class Isolation:
    """A listener's rules. The defaults are Tor's: listener, credentials and client address isolate."""

    listener: str
    level: Level | None = None
    credentials: bool = True
    client_address: bool = True
    client_protocol: bool = False
    destination_host: bool = False
    destination_port: bool = False
    routes: RouteRules = field(default_factory=RouteRules, compare=False)

    def stream_request(self, request: Request, client: str, source: str) -> StreamRequest:
        """What to open for `request` of the application at `client`; `ConfigError` for a wrong level."""
        port = request.port if request.kind == "connect" else None
        rule = self.routes.find(request.host, port)
        route = rule.route(requested_level(request), self.level)
        more = rule.isolate
        by_host = self.destination_host or "host" in more or (route is not None and route.isolate_host)
        key = (
            self.listener,
            (request.user, request.password, request.token) if self.credentials or "auth" in more else None,
            client if self.client_address or "client" in more else None,
            request.protocol if self.client_protocol or "protocol" in more else None,
            request.host if by_host else None,
            request.port if self.destination_port or "port" in more else None,
            route,
        )
        return StreamRequest(request.host, request.port, key, route, source, request.protocol)
