"""Nameservers of Twisted's on loopback, which answer as a test says and note what they were asked."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.names import dns as twisted_dns
from twisted.names.server import DNSServerFactory

_reactor: Any = reactor
dns: Any = twisted_dns
"""Typed loosely: most of it has no types."""
_Server: Any = DNSServerFactory


def a(name: str, address: str, ttl: int = 600) -> Any:
    """An A record."""
    return dns.RRHeader(name.encode(), dns.A, ttl=ttl, payload=dns.Record_A(address, ttl))


def aaaa(name: str, address: str, ttl: int = 600) -> Any:
    """An AAAA record."""
    return dns.RRHeader(name.encode(), dns.AAAA, ttl=ttl, payload=dns.Record_AAAA(address, ttl))


def cname(name: str, target: str, ttl: int = 600) -> Any:
    """An alias."""
    return dns.RRHeader(name.encode(), dns.CNAME, ttl=ttl, payload=dns.Record_CNAME(target.encode(), ttl))


def ptr(address: str, name: bytes, ttl: int = 600) -> Any:
    """The name of an address."""
    pointer = ipaddress.ip_address(address).reverse_pointer
    return dns.RRHeader(pointer.encode(), dns.PTR, ttl=ttl, payload=dns.Record_PTR(name, ttl))


class Nameserver(_Server):  # type: ignore[misc]
    """Knows `records`; what it has none for does not exist. Over UDP its answers are cut at 512 bytes.

    `silent` and `broken` have the kinds of records about which it says nothing, or SERVFAIL. When it is `confused`, its
    answers are to another question, as are those of somebody who guesses ids.
    """

    def __init__(self, records: Iterable[Any] = (), address: str = "127.0.0.1") -> None:
        super().__init__()
        self.records = list(records)
        self.silent: set[int] = set()
        self.broken: set[int] = set()
        self.confused = False
        self.asked: list[tuple[str, int, str]] = []
        self.sources: set[int] = set()
        self.ids: set[int] = set()
        self.address = address
        self._ports: list[Any] = []

    @property
    def where(self) -> str:
        """What a configuration says for it."""
        port = self._ports[0].getHost().port
        return f"[{self.address}]:{port}" if ":" in self.address else f"{self.address}:{port}"

    def count(self, name: str, kind: int) -> int:
        """How often it was asked for these records."""
        return sum(one[:2] == (name, kind) for one in self.asked)

    def start(self) -> Nameserver:
        """Listen on one port, over UDP and TCP."""
        for attempt in range(20):
            port = _reactor.listenTCP(0, self, interface=self.address)
            try:
                udp = dns.DNSDatagramProtocol(self)
                self._ports = [port, _reactor.listenUDP(port.getHost().port, udp, interface=self.address)]
                return self
            except CannotListenError:
                port.stopListening()
                if attempt == 19:
                    raise
        raise AssertionError

    async def stop(self) -> None:
        """Close both ports."""
        for protocol in list(self.connections):
            protocol.transport.abortConnection()
        for port in self._ports:
            await maybeDeferred(port.stopListening)

    def handleQuery(self, message: Any, protocol: Any, address: Any) -> None:
        query = message.queries[0]
        name, kind = str(query.name).lower(), query.type
        self.asked.append((name, kind, "TCP" if address is None else "UDP"))
        self.ids.add(message.id)
        if address is not None:
            self.sources.add(address[1])
        if kind in self.silent:
            return
        answers = self._answers(query)
        names = {record.name for record in self.records}
        code = dns.ESERVER if kind in self.broken else dns.OK if answers or query.name in names else dns.ENAME
        response = self._responseFromMessage(message=message, rCode=code, answers=answers)
        if self.confused:
            response.queries = [dns.Query(b"other.example", kind)]
        response.maxSize = 0 if address is None else 512
        self.sendReply(protocol, response, address)

    def _answers(self, query: Any) -> list[Any]:
        found: list[Any] = []
        names = [query.name]
        for name in names:
            for record in self.records:
                if record.name == name and record.type in (query.type, dns.CNAME):
                    found.append(record)
                    if record.type == dns.CNAME and record.payload.name not in names:
                        names.append(record.payload.name)
        return found


def has_ipv6() -> bool:
    """Whether this machine has ::1."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True
