"""Local proxies on Twisted endpoints: SOCKS and HTTP."""

from __future__ import annotations

import ipaddress
from typing import Any, Literal, get_args

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

from backrooms.errors import ConfigError, StreamError
from backrooms.levels import Level
from backrooms.node.driver import Turn
from backrooms.node.logs import Seldom
from backrooms.node.timers import Timers
from backrooms.proxy.addressmap import AddressMap
from backrooms.proxy.connection import Connection, Farewells
from backrooms.proxy.events import Limits
from backrooms.proxy.isolation import Isolation
from backrooms.proxy.opener import Opener
from backrooms.proxy.rules import Literals, Rules
from backrooms.wire.relay import EndReason

log = Logger()

Kind = Literal["socks", "http"]

MAX_CONNECTIONS = 1024


def is_local(host: IAddress) -> bool:
    """Whether only programs of this machine can reach a port that listens at `host`."""
    if isinstance(host, IPv4Address | IPv6Address):
        return ipaddress.ip_address(host.host.partition("%")[0]).is_loopback
    return isinstance(host, UNIXAddress)


class ProxyListener(Factory):
    """A local proxy at a Twisted endpoint.

    `endpoint` is a string such as "tcp:9050:interface=127.0.0.1" or "unix:/run/backrooms/socks". `level` is
    what a request runs at that names none (None: the node's default). `isolation` overrides the default
    rules, its listener name and level included. `addresses`, `literal_addresses` and `allow_private` are those of
    `rules.Rules`. With a `password` only applications are served that show it; without that and without `allow_remote`
    only this machine may reach it. `extended_errors` are those of Tor's proposal 304 (SOCKS only).
    """

    noisy = False

    def __init__(
        self,
        kind: Kind,
        endpoint: str,
        opener: Opener,
        timers: Timers,
        turn: Turn,
        reactor: Any,
        *,
        level: Level | None = None,
        isolation: Isolation | None = None,
        addresses: AddressMap | None = None,
        literal_addresses: Literals = "allow",
        allow_private: bool = True,
        password: str = "",
        extended_errors: bool = False,
        allow_remote: bool = False,
        max_connections: int = MAX_CONNECTIONS,
        limits: Limits | None = None,
    ) -> None:
        if kind not in get_args(Kind):
            raise ConfigError(f"no proxy of kind {kind!r}; there are {', '.join(get_args(Kind))}")
        self.kind = kind
        self.name = f"{kind} proxy {endpoint}"
        self.opener = opener
        self.timers = timers
        self.turn = turn
        self.limits = limits or Limits()
        self.isolation = isolation or Isolation(self.name, level)
        self.rules = Rules(self.isolation, addresses, literal_addresses, allow_private, self._warn_of_literal)
        self.password = password.encode()
        self.extended_errors = extended_errors
        self.farewells = Farewells(timers)
        self._seldom = Seldom()
        self._allow_remote = allow_remote
        self._max_connections = max_connections
        self.refused = 0
        """Connections that were one too many."""
        self._full = False
        self._connections: set[Connection] = set()
        self._port: IListeningPort | None = None
        self._stopped: Deferred[None] | None = None
        try:
            self._endpoint = serverFromString(reactor, endpoint)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{kind} proxy: {endpoint!r} is not an endpoint string: {error}") from None

    def __len__(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    async def start(self) -> IListeningPort:
        """Listen; `ConfigError` when that would let other machines in unasked."""
        port: IListeningPort = await self._endpoint.listen(self)
        # Asked of the port, not of the string: only the port knows where an inherited socket (systemd:) is.
        if not self.password and not is_local(port.getHost()):
            if not self._allow_remote:
                await maybeDeferred(port.stopListening)
                raise ConfigError(
                    f"{self.name}: other machines could use it. "
                    "Add interface=127.0.0.1 to the endpoint, set a password, or set allow_remote"
                )
            log.warn("{name} has no password: whoever reaches this machine can use it", name=self.name)
        self._port = port
        return port

    async def stop(self) -> None:
        """Stop listening and reset what is still connected."""
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        if self._connections:
            self._stopped = Deferred()
            for connection in list(self._connections):
                connection.driver.fail(StreamError(EndReason.DESTROY, "the proxy was stopped"))
            if self._connections:
                await self._stopped
        self.farewells.stop()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        if len(self._connections) >= self._max_connections or self._port is None:
            if not self._full:
                log.warn("{name}: {count} connections, no more are taken", name=self.name, count=len(self))
            self._full = True
            self.refused += 1
            return None
        connection = Connection(self, addr if addr is not None else UNIXAddress(None))
        self._connections.add(connection)
        return connection.driver

    def _warn_of_literal(self) -> None:
        if self._seldom.is_due("literal", self.timers.now()):
            log.warn(
                "{name}: an application asked for an IP address. It has probably looked the name up by itself, where "
                "others can see it; use SOCKS 4a, or SOCKS 5 with names resolved by the proxy",
                name=self.name,
            )

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        self._full = False
        if self._stopped is not None and not self._connections:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)
