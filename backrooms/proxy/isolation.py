"""Which streams may share a circuit, and at which level a request runs. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from backrooms.errors import ConfigError
from backrooms.levels import Level, parse_level
from backrooms.node.requests import StreamRequest
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
class Isolation:
    """A listener's rules. The defaults are Tor's: listener, credentials and client address isolate."""

    listener: str
    level: Level | None = None
    credentials: bool = True
    client_address: bool = True
    client_protocol: bool = False
    destination_host: bool = False
    destination_port: bool = False

    def stream_request(self, request: Request, client: str, source: str) -> StreamRequest:
        """What to open for `request` of the application at `client`; `ConfigError` for a wrong level."""
        level = requested_level(request)
        if level is None:
            level = self.level
        key = (
            self.listener,
            (request.user, request.password, request.token) if self.credentials else None,
            client if self.client_address else None,
            request.protocol if self.client_protocol else None,
            request.host if self.destination_host else None,
            request.port if self.destination_port else None,
            level,
        )
        return StreamRequest(request.host, request.port, key, level, source, request.protocol)
