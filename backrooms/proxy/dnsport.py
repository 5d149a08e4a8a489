"""A local DNS port: questions of this machine's programs, answered through circuits. Nothing is looked up here.

As Tor's DNSPort: UDP only, questions for A, AAAA and PTR; any other is told that it is not implemented.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Hashable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from backrooms.errors import ConfigError, StreamError, WireError
from backrooms.levels import Level
from backrooms.netdir.policy import is_private
from backrooms.node.requests import Answer, TryAgain
from backrooms.node.timers import Timers
from backrooms.proxy.addressmap import AddressMap
from backrooms.proxy.dns import Code, Query, Type, Unanswerable
from backrooms.proxy.isolation import Isolation
from backrooms.proxy.opener import Opener
from backrooms.proxy.request import Request
from backrooms.proxy.rules import Rules
from backrooms.wire.names import ip_literal
from backrooms.wire.relay import EndReason

log = Logger()

MAX_QUESTIONS = 256
"""Questions that wait for their answers; more are answered by SERVFAIL."""
KNOWN_TTL = 60
"""Seconds that our own mappings are good for."""

_LISTEN = re.compile(r"udp:(\d{1,5})(?::interface=(.+))?")
Where = tuple[str, int]


def parse_listen(text: str) -> Where:
    """Interface and port of a text such as "udp:5353:interface=127.0.0.1", colons of IPv6 written `\\:`."""
    match = _LISTEN.fullmatch(text)
    interface = (match[2] or "0.0.0.0").replace("\\:", ":") if match is not None else ""
    try:
        ipaddress.ip_address(interface)
    except ValueError:
        match = None
    if match is None or int(match[1]) > 65535:
        raise ConfigError(f"DNS port: {text!r} is not udp:PORT:interface=ADDRESS, such as udp:5353:interface=127.0.0.1")
    return interface, int(match[1])


class DnsPort(DatagramProtocol):
    """Answers DNS questions at `listen`, such as "udp:5353:interface=127.0.0.1".

    `level`, `isolation`, `addresses` and `allow_private` are as for `listeners.ProxyListener`. Only this machine is
    served, with `allow_remote` its local networks too: a port that answered everybody could be used to flood others.
    """

    noisy = False

    def __init__(
        self,
        listen: str,
        opener: Opener,
        timers: Timers,
        reactor: Any,
        *,
        level: Level | None = None,
        isolation: Isolation | None = None,
        addresses: AddressMap | None = None,
        allow_private: bool = True,
        allow_remote: bool = False,
        max_questions: int = MAX_QUESTIONS,
    ) -> None:
        self.name = f"DNS port {listen}"
        self.rules = Rules(isolation or Isolation(self.name, level), addresses, "allow", allow_private)
        self._interface, self._number = parse_listen(listen)
        self._opener = opener
        self._timers = timers
        self._reactor = reactor
        self._allow_remote = allow_remote
        self._max_questions = max_questions
        self._full = False
        self._asked: dict[Hashable, Deferred[Any]] = {}
        self._port: Any = None

    def __len__(self) -> int:
        """Questions that wait for an answer."""
        return len(self._asked)

    async def start(self) -> Any:
        """Listen, and return the port; `ConfigError` when that would let other machines in unasked."""
        if not ipaddress.ip_address(self._interface).is_loopback:
            if not self._allow_remote:
                raise ConfigError(
                    f"{self.name}: other machines could use it. Add interface=127.0.0.1, or set allow_remote"
                )
            log.warn("{name}: every machine of the local networks can use it", name=self.name)
        self._port = self._reactor.listenUDP(self._number, self, interface=self._interface)
        return self._port

    async def stop(self) -> None:
        """Stop listening; who still waits for an answer gets none."""
        port, self._port = self._port, None
        for asked in list(self._asked.values()):
            asked.cancel()
        if port is not None:
            await maybeDeferred(port.stopListening)

    # questions

    def datagramReceived(self, datagram: bytes, addr: Where) -> None:
        if not self._is_near(addr[0]):
            return
        try:
            query = Query.decode(datagram)
        except WireError:
            return
        try:
            kind, host = query.request()
            self._ask(query, Request(kind, host, 0, "DNS"), addr)
        except Unanswerable as error:
            self._send(query.failure(error.code), addr)

    def _is_near(self, host: str) -> bool:
        address = ipaddress.ip_address(host.partition("%")[0])
        return address.is_loopback or (self._allow_remote and is_private(address))

    def _ask(self, query: Query, request: Request, addr: Where) -> None:
        key = (addr, query.id, query.question)
        if key in self._asked:
            return  # the same program lost patience; the first question is still on its way
        client, source = addr[0], f"[{addr[0]}]:{addr[1]}" if ":" in addr[0] else f"{addr[0]}:{addr[1]}"
        try:
            planned = self.rules.plan(request, client, source, ipv6=query.type == Type.AAAA)
        except StreamError as error:
            raise Unanswerable(_code(error)) from None
        if (ip_literal(planned.host) is None) == (request.kind == "resolve_ptr"):
            self._send(query.answer([(planned.host, KNOWN_TTL)]), addr)
            return
        if len(self._asked) >= self._max_questions:
            if not self._full:
                log.warn("{name}: {count} questions wait, no more are asked", name=self.name, count=len(self))
            self._full = True
            raise Unanswerable(Code.SERVFAIL)
        look_up = self._opener.resolve if request.kind == "resolve" else self._opener.resolve_ptr
        asked: Deferred[list[Answer]] = maybeDeferred(look_up, planned)
        self._asked[key] = asked
        asked.addBoth(self._over, key)
        asked.addCallback(lambda found: self._answer(query, found, addr))
        asked.addErrback(self._failed, query, addr)

    def _over(self, result: Any, key: Hashable) -> Any:
        self._asked.pop(key, None)
        self._full = False
        return result

    def _answer(self, query: Query, found: list[Answer], addr: Where) -> None:
        believed = [one for one in found if query.type == Type.PTR or self.rules.believes(one.address)]
        if believed:
            self._send(query.answer((one.address, one.ttl) for one in believed), addr)
        else:
            self._send(query.failure(Code.NXDOMAIN), addr)

    def _failed(self, failure: Failure, query: Query, addr: Where) -> None:
        error = failure.value
        if isinstance(error, CancelledError):
            return
        if not isinstance(error, StreamError):
            log.failure("{name}: a look-up failed", failure=failure, name=self.name)
            error = StreamError(EndReason.INTERNAL)
        self._send(query.failure(_code(error)), addr)

    def _send(self, answer: bytes, addr: Where) -> None:
        if self.transport is not None:
            self.transport.write(answer, addr)


def _code(error: StreamError) -> Code:
    """Whether there is no such name, or it could not be found out."""
    nothing = error.reason in (EndReason.RESOLVEFAILED, EndReason.EXITPOLICY) and not isinstance(error, TryAgain)
    return Code.NXDOMAIN if nothing else Code.SERVFAIL
