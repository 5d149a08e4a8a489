"""A relay's own addresses as its configuration names them, and what IP addresses have in common.

tls:203.0.113.5:9001     this address
tls:[2001:db8::5]:9001
tls:auto:9001            the IPv4 address that other relays see this one at, with this port
tls:auto6:9001           the same for IPv6
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from backrooms.wire.records import Address

_AUTO = re.compile(r"([a-z][a-z0-9-]{0,15}):(auto6?):([1-9]\d{0,4})")
_FAMILIES = {"auto": 4, "auto6": 6}


@dataclass(frozen=True, slots=True)
class OwnAddress:
    """One entry of `relay.addresses`."""

    text: str
    fixed: Address | None
    """The address; None where the IP address is to be found out."""
    transport: str
    family: int
    """4 or 6; 0 where the transport's addresses have no IP address."""
    port: int
    """0 where they have none."""

    @classmethod
    def parse(cls, text: str) -> OwnAddress:
        """`ValueError` says what is wrong."""
        match = _AUTO.fullmatch(text)
        if match is not None:
            transport, word, port = match.groups()
            if int(port) > 65535:
                raise ValueError(f"{text!r}: the port must be a number up to 65535")
            return cls(text, None, transport, _FAMILIES[word], int(port))
        if text.partition(":")[2].startswith("auto"):
            raise ValueError(f"{text!r} is not TRANSPORT:auto:PORT or TRANSPORT:auto6:PORT")
        address = Address.parse(text)
        return cls(text, address, address.transport, family(address.host), address.port or 0)

    def at(self, ip: str) -> Address:
        """The address it stands for when the IP address is `ip`."""
        return self.fixed or Address.parse(f"{self.transport}:{_bracketed(ip)}:{self.port}")


def listen_addresses(texts: Iterable[str]) -> list[str]:
    """Where to listen for these entries of `relay.addresses`: `auto` means all addresses of this machine.

    Where both families are to be found out for one port, the IPv6 wildcard alone is listened on: it takes IPv4 too.
    """
    parsed = [OwnAddress.parse(text) for text in texts]
    both = {(one.transport, one.port) for one in parsed if one.fixed is None and one.family == 6}
    found = []
    for one in parsed:
        if one.fixed is not None:
            found.append(one.text)
        elif one.family == 6:
            found.append(f"{one.transport}:[::]:{one.port}")
        elif (one.transport, one.port) not in both:
            found.append(f"{one.transport}:0.0.0.0:{one.port}")
    return list(dict.fromkeys(found))


def family(host: str | None) -> int:
    """4 or 6; 0 if it is no IP address."""
    try:
        return ipaddress.ip_address(host or "").version
    except ValueError:
        return 0


def plain_ip(host: str) -> str:
    """An IP address in the one form that addresses have: IPv4 inside IPv6 is IPv4. Empty if it is none."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip)


def subnet(ip: str, ipv4_bits: int = 16, ipv6_bits: int = 32) -> str:
    """The network around an IP address, as text."""
    bits = ipv4_bits if family(ip) == 4 else ipv6_bits
    return str(ipaddress.ip_network(f"{ip}/{bits}", strict=False))


def _bracketed(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip
