"""Connecting to whichever of several addresses answers first ("Happy Eyeballs", RFC 8305)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet import error as net
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from backrooms.errors import StreamError
from backrooms.node.timers import Call, Timers
from backrooms.wire.relay import EndReason

log = Logger()

CONNECT_TIMEOUT = 15
"""Seconds for one address of a destination."""
CONNECT_TOTAL = 20.0
"""Seconds for all of them."""
ADDRESS_LIMIT = 4
"""Addresses of a name that are tried."""
ATTEMPT_DELAY = 0.25
"""Seconds until the next address is tried beside those that have not answered (RFC 8305, section 5)."""

_ERRNO = {
    errno.EMFILE: EndReason.RESOURCELIMIT,
    errno.ENFILE: EndReason.RESOURCELIMIT,
    errno.ENOBUFS: EndReason.RESOURCELIMIT,
    errno.ENOMEM: EndReason.RESOURCELIMIT,
    errno.EADDRNOTAVAIL: EndReason.RESOURCELIMIT,  # no local port left
    errno.ECONNREFUSED: EndReason.CONNECTREFUSED,
    errno.ECONNRESET: EndReason.CONNECTREFUSED,
    errno.ETIMEDOUT: EndReason.TIMEOUT,
    errno.ENETUNREACH: EndReason.NOROUTE,
    errno.EHOSTUNREACH: EndReason.NOROUTE,
}
_TELLING = {
    EndReason.RESOURCELIMIT: "no file descriptors left",
    EndReason.CONNECTREFUSED: "refused by the destination",
    EndReason.TIMEOUT: "the destination timed out",
    EndReason.NOROUTE: "no route to the destination",
    EndReason.EXITPOLICY: "the policy changed",
    EndReason.MISC: "could not connect",
}
"""Why no address answered: of several reasons the first of these is told. The texts are for counting."""


def in_turns(addresses: Iterable[str], six_first: bool) -> list[str]:
    """The addresses with IPv4 and IPv6 in turns, each kind in its order (RFC 8305, section 4)."""
    kinds: dict[bool, list[str]] = {six_first: [], not six_first: []}
    for address in addresses:
        kinds[":" in address].append(address)
    first, second = kinds.values()
    both = min(len(first), len(second))
    paired = [address for pair in zip(first, second, strict=False) for address in pair]
    return [*paired, *first[both:], *second[both:]]


class Race:
    """Attempts at the addresses of one destination.

    `build(address)` makes the protocol for a connection to that address. It must call `won` from its
    `connectionMade`, before anything else: no other attempt gets further then.
    """

    def __init__(
        self, reactor: Any, timers: Timers, addresses: Iterable[str], port: int, build: Callable[[str], Protocol]
    ) -> None:
        self.port = port
        self._reactor = reactor
        self._timers = timers
        self._left = list(addresses)[:ADDRESS_LIMIT]
        self._build = build
        self._trying: dict[str, Deferred[Any]] = {}
        self._reasons: set[int] = set()
        self._next_call: Call | None = None
        self._end_call: Call | None = None
        self._done: Deferred[None] = Deferred(lambda _: self._stop())

    def run(self) -> Deferred[None]:
        """Fires when there is a connection, or fails with a `StreamError`; cancelling it ends all attempts."""
        self._end_call = self._timers.at(self._timers.now() + CONNECT_TOTAL, self._late)
        self._next()
        return self._done

    def won(self, address: str) -> None:
        """`address` has answered."""
        self._trying.pop(address, None)
        self._stop()

    def keep(self, allowed: Callable[[str], bool]) -> None:
        """Go on with the allowed addresses only."""
        self._left = [address for address in self._left if allowed(address)]
        refused = [address for address in self._trying if not allowed(address)]
        cancelled = [self._trying.pop(address) for address in refused]
        for attempt in cancelled:
            attempt.cancel()
        if not self._trying and self._end_call is not None:
            self._reasons = self._reasons or {EndReason.EXITPOLICY}
            self._next()

    def _next(self) -> None:
        """Try the next address, and some time later the one after it."""
        if self._next_call is not None:
            self._next_call.cancel()
            self._next_call = None
        if not self._left:
            if not self._trying:
                self._fail()
            return
        address = self._left.pop(0)
        kind = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
        endpoint = kind(self._reactor, address, self.port, CONNECT_TIMEOUT)
        factory = Factory.forProtocol(lambda: self._build(address))
        factory.noisy = False
        if self._left:
            self._next_call = self._timers.at(self._timers.now() + ATTEMPT_DELAY, self._next)
        attempt = self._trying[address] = endpoint.connect(factory)
        attempt.addCallbacks(self._connected, self._failed, errbackArgs=(address, attempt))

    def _connected(self, _: object) -> None:
        if not self._done.called:
            self._done.callback(None)

    def _failed(self, failure: Failure, address: str, attempt: Deferred[Any]) -> None:
        if self._trying.get(address) is not attempt:  # we gave it up ourselves
            return
        del self._trying[address]
        if not isinstance(failure.value, net.ConnectError | OSError):
            log.failure("bug while connecting", failure)
        self._reasons.add(reason_of(failure.value))
        self._next()

    def _late(self) -> None:
        self._reasons.add(EndReason.TIMEOUT)
        self._fail()

    def _fail(self) -> None:
        self._stop()
        reason, text = next((reason, text) for reason, text in _TELLING.items() if reason in self._reasons)
        self._done.errback(StreamError(reason, text))

    def _stop(self) -> None:
        for call in (self._next_call, self._end_call):
            if call is not None:
                call.cancel()
        self._next_call = self._end_call = None
        self._left.clear()
        trying, self._trying = self._trying, {}
        for attempt in trying.values():
            attempt.cancel()


def reason_of(error: BaseException | None) -> int:
    """The `EndReason` for a failed attempt at connecting."""
    if isinstance(error, net.TimeoutError):
        return EndReason.TIMEOUT
    number: int | None = getattr(error, "osError", None) or getattr(error, "errno", None)
    return EndReason.MISC if number is None else _ERRNO.get(number, EndReason.MISC)
