"""`[[routes]]`: rules for destinations, and the patterns that they match by."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from backrooms.config.options import IsolationWord, check_level
from backrooms.errors import ConfigError

_ALLOWED = (
    "allowed are a name, *.name, an IP address or network, or *, each with :PORT, :PORT-PORT or several by commas"
)
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.ASCII)
_BRACKETS = re.compile(r"\[([^\[\]]*:[^\[\]]*)\](/\d{1,3})?(?::(.*))?", re.ASCII | re.DOTALL)
_MAPPED_BITS = 96


@dataclass(frozen=True, slots=True)
class Pattern:
    """Destinations: a name, all names below one, a network, or everything; of these some ports or all.

        HOST[:PORTS]    example.org   *.example.org:443   10.0.0.0/8   [2001:db8::]/32:22,8000-8100   *:25

    Names are compared as they are asked for and never looked up: networks match numeric addresses only.
    """

    name: str = ""
    """Empty for none; with a leading dot for all names that end so."""
    network: IPv4Network | IPv6Network | None = None
    ports: tuple[tuple[int, int], ...] = ()
    """First and last of each range; empty for all."""

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern written so; `ConfigError` says what is wrong and what is allowed."""
        host, ports = _split(text)
        try:
            return cls(*_host(host), _ports(ports))
        except ValueError as error:
            raise ConfigError(f"{text[:100]!r}: {error}; {_ALLOWED}") from None

    def matches(self, host: str, port: int | None) -> bool:
        """Whether it names this destination. Without a port only the host counts: so look-ups go where streams go."""
        if port is not None and self.ports and not any(first <= port <= last for first, last in self.ports):
            return False
        if self.network is not None:
            try:
                address = ip_address(host)
            except ValueError:
                return False
            if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
                address = address.ipv4_mapped
            return address.version == self.network.version and address in self.network
        if not self.name:
            return True
        host = host.lower().removesuffix(".")
        return host.endswith(self.name) if self.name.startswith(".") else host == self.name


def _split(text: str) -> tuple[str, str | None]:
    """Host and ports; None where there are no ports."""
    match = _BRACKETS.fullmatch(text)
    if match is not None:
        return match[1] + (match[2] or ""), match[3]
    if text.count(":") > 1:  # an IPv6 address without brackets has no ports behind it
        return text, None
    host, colon, ports = text.partition(":")
    return host, ports if colon else None


def _host(text: str) -> tuple[str, IPv4Network | IPv6Network | None]:
    """The name and the network of a pattern, one of which is empty; both for `*`. `ValueError` if it is neither."""
    if text == "*":
        return "", None
    if ":" in text or "/" in text or text.rpartition(".")[2].isdecimal():
        network = ip_network(text)
        if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED_BITS:
            mapped = network.network_address.ipv4_mapped
            if mapped is not None:
                network = ip_network(f"{mapped}/{network.prefixlen - _MAPPED_BITS}")
        return "", network
    below = text.startswith("*.")
    name = text.removeprefix("*.").lower().removesuffix(".")
    if not name.isascii():
        raise ValueError("names with other letters than a to z are written as applications send them, xn--...")
    if not _NAME.fullmatch(name):
        raise ValueError("is no name or network")
    return f".{name}" if below else name, None


def _ports(text: str | None) -> tuple[tuple[int, int], ...]:
    if text is None or text == "*":
        return ()
    found = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not all(one.isascii() and one.isdecimal() and len(one) <= 5 for one in (first, last if dash else "0")):
            raise ValueError(f"{part[:20]!r} is no port")
        low, high = int(first), int(last or first)
        if not 1 <= low <= high <= 65535:
            raise ValueError(f"{part!r} is not between 1 and 65535, or its end is before its beginning")
        found.append((low, high))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteOptions:
    """One `[[routes]]`: what streams to some destinations ask of their circuits.

    The first table with a pattern that matches counts. `level` "default" leaves the level to the listener; `avoid` and
    `exit` have rules of `path.rules`, `isolate` adds to what the listener isolates by.
    """

    match: tuple[str, ...]
    level: str = "default"
    avoid: tuple[str, ...] = ()
    exit: tuple[str, ...] = ()
    isolate: tuple[IsolationWord, ...] = ()

    def check(self) -> None:
        if not self.match:
            raise ConfigError("match: needs at least one pattern, such as '*.example.org:443'")
        for index, text in enumerate(self.match):
            try:
                Pattern.parse(text)
            except ConfigError as error:
                raise ConfigError(f"match[{index}]: {error}") from None
        if self.level != "default":
            check_level(self.level)

    def patterns(self) -> tuple[Pattern, ...]:
        """What it matches."""
        return tuple(map(Pattern.parse, self.match))
