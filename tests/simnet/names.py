"""Simulated look-ups of host names."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IHostnameResolver, IHostResolution, IResolutionReceiver
from zope.interface import implementer

if TYPE_CHECKING:
    from tests.simnet.reactor import SimReactor


@implementer(IHostResolution)
class Resolution:
    """A look-up under way."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        raise NotImplementedError("as Twisted's own resolver")


@implementer(IHostnameResolver)
class Names:
    """The resolver of one host: answers from the network's `names`, and notes every question in `lookups`."""

    def __init__(self, reactor: SimReactor) -> None:
        self._reactor = reactor

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[Any] | None = None,
        transportSemantics: Any = "TCP",
    ) -> Resolution:
        net = self._reactor.host.net
        resolution = Resolution(hostName)
        literal = is_literal(hostName)
        if not literal:
            net.lookups.append((net.now, self._reactor.host.name, hostName))

        def answer() -> None:
            resolutionReceiver.resolutionBegan(resolution)
            found = [hostName] if literal else net.names.get(hostName.lower().rstrip("."), [])
            for ip in found:
                kind = IPv6Address if ":" in ip else IPv4Address
                if not addressTypes or kind in addressTypes:
                    resolutionReceiver.addressResolved(kind(transportSemantics, ip, portNumber))
            resolutionReceiver.resolutionComplete()

        net.clock.call_later(0.0 if literal else net.dns_delay, self._reactor, answer)
        return resolution


def is_literal(name: str) -> bool:
    """Whether the name is an IP address."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, name)
        except OSError:
            continue
        return True
    return False


@implementer(IResolutionReceiver)
class First:
    """Fires a Deferred with the first address of a look-up."""

    def __init__(self, name: str, done: Deferred[str]) -> None:
        self._name = name
        self._done = done
        self._address: str | None = None

    def resolutionBegan(self, resolution: Any) -> None:
        """Nothing to note."""

    def addressResolved(self, address: Any) -> None:
        self._address = self._address or address.host

    def resolutionComplete(self) -> None:
        if self._address is None:
            self._done.errback(DNSLookupError(f"no address for {self._name}"))
        else:
            self._done.callback(self._address)
