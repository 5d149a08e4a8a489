"""Who looks names up for an exit: the system, or nameservers asked by ourselves."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol, TypeVar

from twisted.internet import error as net
from twisted.internet import threads
from twisted.internet._resolver import GAIResolver
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IHostResolution, IResolutionReceiver
from twisted.internet.protocol import Factory
from twisted.names import dns
from twisted.names.error import DNSQueryTimeoutError
from zope.interface import implementer

from backrooms.errors import ConfigError, StreamError
from backrooms.wire.relay import EndReason

T = TypeVar("T")

UNKNOWN_TTL = 300.0
"""Seconds that answers of the system's resolver are kept; it does not tell."""
NEGATIVE_TTL = 30.0
"""Seconds that "there is none" is kept."""
DNS_PORT = 53
QUERY_TIMEOUTS = (1.5, 3.0)
"""Seconds that each nameserver is given in the first round, and in the second."""
LOOK_UP_TIME = 9.0
"""Seconds after which a look-up by nameservers is given up."""
LAGGARD_TIME = 1.0
"""Seconds that addresses of one kind wait for those of the other."""
CNAME_LIMIT = 8
"""Aliases that are followed for one name."""


@dataclass(frozen=True, slots=True)
class Found:
    """What there is for a name: addresses, or names of an address, for `ttl` seconds. Empty: there is nothing."""

    values: tuple[str, ...]
    ttl: float


class Unanswered(StreamError):
    """A look-up has failed for now: asking later may help."""

    def __init__(self, text: str) -> None:
        super().__init__(EndReason.RESOLVEFAILED, text)


class Resolver(Protocol):
    """Looks names up. Failures are `StreamError`s; that there is nothing is none."""

    places: int
    """Look-ups at a time."""

    def addresses(self, name: str) -> Coroutine[Any, Any, Found]:
        """The addresses of a name. It ends when it holds no thread or socket any more, and no sooner."""

    def names(self, address: str) -> Coroutine[Any, Any, Found]:
        """The names of an address literal."""


@implementer(IResolutionReceiver)
class _Addresses:
    """Collects what Twisted's name resolver finds."""

    def __init__(self) -> None:
        self.done: Deferred[tuple[str, ...]] = Deferred()
        self._found: dict[str, None] = {}

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Twisted starts."""

    def addressResolved(self, address: Any) -> None:
        self._found[address.host] = None

    def resolutionComplete(self) -> None:
        self.done.callback(tuple(self._found))


class SystemResolver:
    """The system's resolver (getaddrinfo), which blocks a thread for as long as it likes.

    The threads of the reactor's pool also sign link proofs and verify descriptors, so look-ups have some of them only.
    """

    places = 6  # of ten

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        resolver = reactor.nameResolver
        safe: Any = _getaddrinfo
        self._resolver = GAIResolver(reactor, None, safe) if isinstance(resolver, GAIResolver) else resolver

    async def addresses(self, name: str) -> Found:
        receiver = _Addresses()
        self._resolver.resolveHostName(receiver, name)
        return _found(await receiver.done, UNKNOWN_TTL)

    async def names(self, address: str) -> Found:
        def look_up() -> tuple[str, ...]:
            try:
                return (socket.gethostbyaddr(address)[0],)
            except OSError:
                return ()

        pool = self._reactor.getThreadPool()
        return _found(await threads.deferToThreadPool(self._reactor, pool, look_up), UNKNOWN_TTL)


def _getaddrinfo(*args: Any) -> Any:
    """The system's, which fails with an `OSError` that is no `gaierror` when it has no file descriptor left, say.

    Twisted's resolver would never answer then, and a place would be lost.
    """
    try:
        return socket.getaddrinfo(*args)
    except OSError as error:
        raise socket.gaierror(socket.EAI_FAIL, "the system could not look it up") from error


def _found(values: tuple[str, ...], ttl: float) -> Found:
    return Found(values, ttl if values else NEGATIVE_TTL)


def parse_nameserver(text: str) -> tuple[str, int]:
    """Address and port of "192.0.2.1", "192.0.2.1:53", "2001:db8::1" or "[2001:db8::1]:53"."""
    host, port = text, str(DNS_PORT)
    if text.startswith("["):
        host, _, port = text[1:].partition("]:")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError:
        address = ""
    if not address or not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 65536:
        raise ConfigError(f"nameserver {text!r}: write an IP address, with or without a port")
    return address, int(port)


class Nameservers:
    """Recursive nameservers, asked over UDP, and over TCP where an answer does not fit.

    Each question has a socket with a random port and a random id of its own (RFC 5452). The servers are asked in their
    order; the next one when one is silent or cannot tell.
    """

    places = 64

    def __init__(self, reactor: Any, servers: Sequence[str]) -> None:
        self._reactor = reactor
        self._servers = [parse_nameserver(server) for server in servers]

    async def addresses(self, name: str) -> Found:
        """IPv4 and IPv6 are asked for at once. If only one of them is answered, that will do."""
        raw = name.removesuffix(".").encode("ascii")
        lookups = [self._start(self._records(raw, kind)) for kind in (dns.A, dns.AAAA)]
        for one, other in (lookups, reversed(lookups)):
            one.addCallback(self._hurry, other)
        results: Any = await DeferredList(lookups, consumeErrors=True)
        (four_came, four), (six_came, six) = results
        if four_came and six_came:
            values = (*four.values, *six.values)
            return Found(values, min(one.ttl for one in (four, six) if one.values or not values))
        for came, answer in ((four_came, four), (six_came, six)):
            if came and answer.values:
                return Found(answer.values, answer.ttl)
        raise (six if four_came else four).value

    async def names(self, address: str) -> Found:
        """PTR records."""
        pointer = ipaddress.ip_address(address).reverse_pointer
        return await self._start(self._records(pointer.encode(), dns.PTR))

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> Deferred[T]:
        """Run it, for a bounded time."""
        return Deferred.fromCoroutine(coroutine).addTimeout(LOOK_UP_TIME, self._reactor, _unanswered)

    def _hurry(self, found: Found, other: Deferred[Found]) -> Found:
        """There are addresses of one kind: those of the other have little time left."""
        if found.values and not other.called:
            other.addTimeout(LAGGARD_TIME, self._reactor, lambda result, _: result)
        return found

    async def _records(self, name: bytes, kind: int) -> Found:
        """The records of this kind at the end of the name's aliases."""
        ttl = inf
        for _ in range(CNAME_LIMIT):
            message = await self._ask(name, kind)
            values, last, life = read_answer(message, name, kind)
            ttl = min(ttl, life)
            if values or last == name:
                return _found(values, ttl)
            name = last
        return Found((), NEGATIVE_TTL)

    async def _ask(self, name: bytes, kind: int) -> Any:
        """The answer of the first server that has one: a `dns.Message`."""
        query = dns.Query(name, kind)
        for timeout in QUERY_TIMEOUTS:
            for server in self._servers:
                try:
                    message = await self._udp(server, query, timeout)
                    if message.trunc:
                        message = await self._tcp(server, query, timeout)
                except (DNSQueryTimeoutError, net.ConnectError, OSError):
                    continue
                asked = [(one.name, one.type) for one in message.queries]
                if message.answer and asked == [(query.name, kind)] and message.rCode in (dns.OK, dns.ENAME):
                    return message
        raise Unanswered("no nameserver answered")

    async def _udp(self, server: tuple[str, int], query: dns.Query, timeout: float) -> Any:
        protocol: Any = dns.DNSDatagramProtocol(self, self._reactor)  # type: ignore[no-untyped-call]
        port = self._listen(protocol, "::" if ":" in server[0] else "")
        try:
            return await protocol.query(server, [query], timeout)
        finally:
            _forget(protocol)
            port.stopListening()

    def _listen(self, protocol: Any, interface: str) -> Any:
        """A socket whose port the system draws."""
        try:
            return self._reactor.listenUDP(0, protocol, interface)
        except net.CannotListenError as error:
            if getattr(error.socketError, "errno", None) in (errno.EMFILE, errno.ENFILE):
                raise StreamError(EndReason.RESOURCELIMIT, "no file descriptors left") from None
            raise Unanswered("no socket for a question") from None

    async def _tcp(self, server: tuple[str, int], query: dns.Query, timeout: float) -> Any:
        protocol: Any = dns.DNSProtocol(self, self._reactor)  # type: ignore[no-untyped-call]
        factory = Factory.forProtocol(lambda: protocol)
        factory.noisy = False
        kind = TCP6ClientEndpoint if ":" in server[0] else TCP4ClientEndpoint
        await kind(self._reactor, *server, timeout).connect(factory)
        try:
            return await protocol.query([query], timeout)
        finally:
            _forget(protocol)
            protocol.transport.abortConnection()

    # what Twisted's protocols ask of their controller

    def connectionMade(self, protocol: object) -> None:
        """A connection to a server is there."""

    def connectionLost(self, protocol: object) -> None:
        """It is gone: its question times out."""

    def messageReceived(self, message: object, protocol: object, address: object = None) -> None:
        """A message that answers no question: somebody guesses."""


def _unanswered(result: Any, seconds: float) -> Any:
    raise Unanswered("the look-up took too long")


def _forget(protocol: Any) -> None:
    """Stop the timers of questions that were given up."""
    for _, timer in (protocol.liveMessages or {}).values():
        if timer.active():
            timer.cancel()


def read_answer(message: Any, name: bytes, kind: int) -> tuple[tuple[str, ...], bytes, float]:
    """The values for `name`, the name its aliases led to, and the seconds for which all of that holds.

    Records of other names, which nobody asked about, count for nothing.
    """
    ttl = inf
    for _ in range(CNAME_LIMIT):
        own = [record for record in message.answers if record.name == dns.Name(name)]
        records = [record for record in own if record.type == kind]
        if records:
            values = tuple(dict.fromkeys(_value(record.payload, kind) for record in records))
            return values, name, min(ttl, *(record.ttl for record in records))
        aliases = [record for record in own if record.type == dns.CNAME]
        if not aliases:
            break
        ttl = min(ttl, aliases[0].ttl)
        name = aliases[0].payload.name.name
    return (), name, ttl


def _value(payload: Any, kind: int) -> str:
    if kind == dns.PTR:
        return str(payload.name.name, "ascii", "replace")
    return socket.inet_ntop(socket.AF_INET if kind == dns.A else socket.AF_INET6, payload.address)
