"""What a listener makes of a request, before anything leaves the node. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from backrooms.errors import StreamError
from backrooms.netdir.policy import is_private
from backrooms.node.requests import StreamRequest
from backrooms.proxy.addressmap import AddressMap
from backrooms.proxy.isolation import Isolation
from backrooms.proxy.request import Request
from backrooms.wire.names import ip_literal
from backrooms.wire.relay import EndReason

Literals = Literal["allow", "warn", "refuse"]
"""What to do about applications that send an IP address: they have probably looked the name up themselves."""


@dataclass(slots=True)
class Rules:
    """A listener's rules.

    `addresses` are applied first, then what is left is isolated. `literals` counts for addresses that no mapping knows.
    Without `allow_private`, neither are private addresses connected to or asked about, nor are answers believed that
    name one: an exit could so lead a web page into the application's own network.
    """

    isolation: Isolation
    addresses: AddressMap | None = None
    literals: Literals = "allow"
    allow_private: bool = True
    on_literal: Callable[[], None] = field(default=lambda: None, repr=False)
    """Called for an address that is allowed, but worth a warning."""

    def plan(self, request: Request, client: str, source: str, *, ipv6: bool = False) -> StreamRequest:
        """What to open or look up for `request` of the application at `client`, whose "ip:port" is `source`.

        When `host` of the result is an address and a name was to be looked up, it is the answer already, and the same
        goes for the name of an address. `ConfigError` for a wrong level, `StreamError` for what must not leave.
        """
        host = request.host
        if self.addresses is not None:
            host = self.addresses.apply(request.kind, host, ipv6=ipv6)
        if host == request.host:
            self._check(request)
        else:
            request = replace(request, host=host)
        return self.isolation.stream_request(request, client, source)

    def _check(self, request: Request) -> None:
        if ip_literal(request.host) is None or request.kind == "resolve":
            return
        private = is_private(request.host)
        if private and not self.allow_private:
            # It would tell the exit about the network that the application is in.
            raise StreamError(EndReason.EXITPOLICY, "a private address")
        if not request.literal or request.kind != "connect" or self.literals == "allow":
            return
        if self.literals == "refuse":
            raise StreamError(EndReason.EXITPOLICY, "an address where a name was expected (literal_addresses)")
        if not private:  # nobody asks a public name server for these
            self.on_literal()

    def believes(self, address: str) -> bool:
        """Whether an exit's answer to a look-up may be given to an application."""
        if ip_literal(address) is None or (self.addresses is not None and self.addresses.is_virtual(address)):
            return False
        return self.allow_private or not is_private(address)
