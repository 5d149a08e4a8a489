"""Local proxies on Twisted endpoints: SOCKS and HTTP."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Literal

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from backrooms.errors import ConfigError, StreamError
from backrooms.levels import Level
from backrooms.node.driver import Driver, Turn
from backrooms.node.timers import Timers
from backrooms.proxy.http import HttpParser
from backrooms.proxy.isolation import Isolation
from backrooms.proxy.opener import Opener
from backrooms.proxy.request import Dialect
from backrooms.proxy.session import (
    Abort,
    Close,
    CloseWrite,
    DeadlineChanged,
    Event,
    Limits,
    LookUp,
    PauseReading,
    ProxySession,
    Refused,
    ResumeReading,
)
from backrooms.proxy.socks import SocksParser
from backrooms.wire.relay import EndReason

log = Logger()

Kind = Literal["socks", "http"]

DIALECTS: dict[Kind, Callable[[], Dialect]] = {"socks": SocksParser, "http": HttpParser}
MAX_CONNECTIONS = 1024


def client_of(peer: IAddress) -> tuple[str, str]:
    """An application's address for isolation, and its "ip:port"; "unix" and "unix:0" on a unix socket."""
    if isinstance(peer, IPv4Address):
        return peer.host, f"{peer.host}:{peer.port}"
    if isinstance(peer, IPv6Address):
        return peer.host, f"[{peer.host}]:{peer.port}"
    return "unix", "unix:0"


def is_local(host: IAddress) -> bool:
    """Whether only programs of this machine can reach a port that listens at `host`."""
    if isinstance(host, IPv4Address | IPv6Address):
        return ipaddress.ip_address(host.host.partition("%")[0]).is_loopback
    return isinstance(host, UNIXAddress)


class Connection:
    """One application: its session, its driver, and the look-up it waits for."""

    def __init__(self, listener: ProxyListener, peer: IAddress) -> None:
        self._listener = listener
        client, source = client_of(peer)
        self.session = ProxySession(
            DIALECTS[listener.kind](),
            lambda request: listener.isolation.stream_request(request, client, source),
            listener.opener.open,
            listener.timers.now(),
            listener.limits,
        )
        self.driver = Driver(self.session, listener.timers, listener.turn, self._event, self._lost)
        self.session.on_dirty = self.driver.dirty
        self._look_up: Deferred[None] | None = None

    def _event(self, event: Event) -> None:
        match event:
            case PauseReading():
                self.driver.pause()
            case ResumeReading():
                self.driver.resume()
            case CloseWrite():
                self.driver.close_write()
            case Close():
                self.driver.close()
            case Abort(reason):
                self.driver.fail(StreamError(reason))
            case LookUp():
                self._start(event)
            case Refused(reason):
                log.info("{name} refused a request: {reason}", name=self._listener.name, reason=reason)
            case DeadlineChanged():
                self._listener.timers.set(self.driver, self.session.deadline())

    def _start(self, wanted: LookUp) -> None:
        opener, session = self._listener.opener, self.session
        if wanted.kind == "resolve":
            answers = maybeDeferred(opener.resolve, wanted.request)
            done = answers.addCallback(lambda found: session.resolved([answer.address for answer in found]))
        else:
            done = maybeDeferred(opener.resolve_ptr, wanted.request).addCallback(session.resolved_ptr)
        self._look_up = done
        done.addErrback(self._look_up_failed)
        done.addBoth(self._look_up_over)

    def _look_up_failed(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, CancelledError):
            return
        if isinstance(error, StreamError):
            self.session.failed(error.reason)
            return
        log.failure("{name}: a look-up failed", failure=failure, name=self._listener.name)
        self.session.failed(EndReason.INTERNAL)

    def _look_up_over(self, _: object) -> None:
        self._look_up = None

    def _lost(self, _: BaseException | None) -> None:
        self.session.lost()
        if self._look_up is not None:
            self._look_up.cancel()
        self._listener.forget(self)


class ProxyListener(Factory):
    """A local proxy at a Twisted endpoint.

    `endpoint` is a string such as "tcp:9050:interface=127.0.0.1" or "unix:/run/backrooms/socks". `level` is
    what a request runs at that names none (None: the node's default). `isolation` overrides the default
    rules, its listener name and level included. Without `allow_remote` only this machine may reach it.
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
        allow_remote: bool = False,
        max_connections: int = MAX_CONNECTIONS,
        limits: Limits | None = None,
    ) -> None:
        if kind not in DIALECTS:
            raise ConfigError(f"no proxy of kind {kind!r}; there are {', '.join(DIALECTS)}")
        self.kind = kind
        self.name = f"{kind} proxy {endpoint}"
        self.opener = opener
        self.timers = timers
        self.turn = turn
        self.limits = limits or Limits()
        self.isolation = isolation or Isolation(self.name, level)
        self._allow_remote = allow_remote
        self._max_connections = max_connections
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
        """Listen; `ConfigError` when that would let other machines in."""
        port: IListeningPort = await self._endpoint.listen(self)
        # Asked of the port, not of the string: only the port knows where an inherited socket (systemd:) is.
        if not self._allow_remote and not is_local(port.getHost()):
            await maybeDeferred(port.stopListening)
            raise ConfigError(
                f"{self.name}: other machines could use it. "
                "Add interface=127.0.0.1 to the endpoint, or set allow_remote"
            )
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

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        if len(self._connections) >= self._max_connections or self._port is None:
            if not self._full:
                log.warn("{name}: {count} connections, no more are taken", name=self.name, count=len(self))
            self._full = True
            return None
        connection = Connection(self, addr if addr is not None else UNIXAddress(None))
        self._connections.add(connection)
        return connection.driver

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        self._full = False
        if self._stopped is not None and not self._connections:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)
