"""Exit policies: which destinations an exit connects to (docs/protocol.md, "Exit policies").

    accept *:80-443        any address (and any name), ports 80 to 443
    reject 10.0.0.0/8:*    a network, every port
    accept [2000::]/3:443  IPv6 stands in brackets
    accept private:*       every private, loopback, link-local and multicast range

The first rule that fits decides; what no rule fits is refused. A private range is opened only by a rule that names
a network inside it, so that `accept *:*` never opens an operator's own network by accident.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from backrooms.errors import ConfigError
from backrooms.wire.records import MAX_RULES, PolicyRule

_IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

PRIVATE_NETWORKS: tuple[_IPNetwork, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        # All IPv6 that is not 2000::/3: loopback, link-local, unique local, multicast, NAT64 (which leads to IPv4
        # addresses, and so to private ones), and what nobody may use yet.
        "::/3",
        "4000::/2",
        "8000::/1",
        # Within 2000::/3: protocol assignments (Teredo and ORCHID among them), examples, 6to4.
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
    )
)
"""What `private` stands for: addresses not out on the Internet (RFC 6890 and IANA's special-purpose registries)."""

_PRIVATE_NUMBERS = {
    version: tuple(
        (
            int(network.network_address) >> (network.max_prefixlen - network.prefixlen),
            network.max_prefixlen - network.prefixlen,
        )
        for network in PRIVATE_NETWORKS
        if network.version == version
    )
    for version in (4, 6)
}

REDUCED_PORTS = (
    "20-21 22 23 43 53 79-81 88 110 143 194 220 389 443 464-465 531 543-544 554 563 587 636 706 749 853 873 "
    "902-904 981 989-995 1194 1220 1293 1500 1533 1677 1723 1755 1863 2082-2083 2086-2087 2095-2096 "
    "2102-2104 3128 3389 3690 4321 4643 5050 5190 5222-5223 5228 5900 6660-6669 6679 6697 8000 8008 8074 "
    "8080 8082 8087-8088 8232-8233 8332-8333 8443 8888 9418 9999 10000 11371 18080-18081 18089 19294 19638 50002 64738"
)
"""Ports of the default policy, after Tor's reduced exit policy: the usual services, without plain mail."""

_RULE = re.compile(
    r"(accept|reject)\s+(\*|\*4|\*6|private|[0-9./]+|\[[0-9a-fA-F:.]+\](?:/\d+)?):(\*|\d{1,5}(?:-\d{1,5})?)"
)


def _network_rule(accept: bool, network: _IPNetwork, low: int, high: int) -> PolicyRule:
    return PolicyRule(accept, network.version, network.network_address.packed, network.prefixlen, low, high)


def is_private(address: str | _IPAddress) -> bool:
    """Whether an IP address is not out on the Internet. `ValueError` if it is no IP address."""
    return _is_private(_normal(address))


def _is_private(address: _IPAddress) -> bool:
    number = int(address)
    return any(number >> shift == network for network, shift in _PRIVATE_NUMBERS[address.version])


def _names_private(rule: PolicyRule) -> bool:
    """Whether the rule names a network that lies inside a private range."""
    return rule.version != 0 and any(
        network.version == rule.version
        and rule.prefix >= network.prefixlen
        and ipaddress.ip_address(rule.network) in network
        for network in PRIVATE_NETWORKS
    )


def _parse_ports(text: str, rule: str) -> tuple[int, int]:
    if text == "*":
        return 0, 65535
    first, _, last = text.partition("-")
    low, high = int(first), int(last or first)
    if not 0 <= low <= high <= 65535:
        raise ConfigError(f"exit policy: {rule!r}: ports go from 0 to 65535, the lower one first")
    return low, high


def _parse_rule(text: str, allow_private: bool) -> list[PolicyRule]:
    match = _RULE.fullmatch(text.strip())
    if match is None or not text.isascii():
        raise ConfigError(f"exit policy: {text!r} is not a rule; write for example 'accept *:80-443' or 'reject *:*'")
    accept, where = match[1] == "accept", match[2]
    low, high = _parse_ports(match[3], text)
    private = [_network_rule(accept, network, low, high) for network in PRIVATE_NETWORKS]
    if where == "private":
        return private
    if where.startswith("*"):
        version = int(where[1:] or 0)
        size = {0: 0, 4: 4, 6: 16}[version]
        rules = [PolicyRule(accept, version, bytes(size), 0, low, high)]
        if accept and allow_private:
            rules += [rule for rule in private if version in (0, rule.version)]
        return rules
    try:
        network = ipaddress.ip_network(where.replace("[", "").replace("]", ""))
    except ValueError as error:
        raise ConfigError(f"exit policy: {text!r}: {error}") from None
    return [_network_rule(accept, network, low, high)]


def _normal(address: str | _IPAddress) -> _IPAddress:
    """The address; an IPv4 address wrapped in IPv6 is unwrapped, or it would slip past IPv4 rules."""
    parsed = ipaddress.ip_address(address) if isinstance(address, str) else address
    if parsed.version == 6 and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed


@dataclass(frozen=True)
class ExitPolicy:
    """An ordered list of rules, as it stands in a contact record."""

    rules: tuple[PolicyRule, ...]

    @classmethod
    def parse(cls, lines: Iterable[str], *, allow_private: bool = False) -> ExitPolicy:
        """The policy of these rules. With `allow_private`, `accept *` means private ranges too.

        `ConfigError` names the rule that is wrong, or says that there are too many.
        """
        return cls._bounded([rule for line in lines for rule in _parse_rule(line, allow_private)])

    @classmethod
    def _bounded(cls, rules: list[PolicyRule]) -> ExitPolicy:
        if len(rules) > MAX_RULES:
            raise ConfigError(f"exit policy: {len(rules)} rules after expansion, {MAX_RULES} are allowed")
        return cls(tuple(rules))

    @classmethod
    def reduced(cls) -> ExitPolicy:
        """The default for exits: the ports of usual services."""
        return cls.parse(f"accept *:{ports}" for ports in REDUCED_PORTS.split())

    @classmethod
    def reject_all(cls) -> ExitPolicy:
        """The policy of a relay that is no exit."""
        return cls(())

    def refusing(self, addresses: Iterable[str]) -> ExitPolicy:
        """This policy without those addresses, a relay's own, but for one that a rule accepts by its whole address.

        Private ones need no rule: they are refused already, or opened on purpose. `ConfigError` if the rules become
        too many.
        """
        new = []
        for text in addresses:
            address = _normal(text)
            named = any(
                rule.version == address.version
                and rule.prefix == address.max_prefixlen
                and rule.network == address.packed
                and (rule.accept or (rule.low, rule.high) == (0, 65535))
                for rule in self.rules
            )
            if not named and not _is_private(address):
                new.append(_network_rule(False, ipaddress.ip_network(address), 0, 65535))
        return self._bounded([*new, *self.rules]) if new else self

    @cached_property
    def _compiled(self) -> tuple[tuple[PolicyRule, int, int, bool], ...]:
        """Each rule with its network as a number, the bits to drop, and whether it names a private range."""
        return tuple(
            (
                rule,
                int.from_bytes(rule.network, "big") >> (len(rule.network) * 8 - rule.prefix),
                len(rule.network) * 8 - rule.prefix,
                _names_private(rule),
            )
            for rule in self.rules
        )

    def allows(self, address: str | _IPAddress, port: int) -> bool:
        """Whether a connection to this IP address and port is allowed. `ValueError` if it is no address."""
        target = _normal(address)
        number, version, private = int(target), target.version, _is_private(target)
        for rule, network, shift, names_private in self._compiled:
            if not rule.low <= port <= rule.high:
                continue
            if rule.version and (rule.version != version or number >> shift != network):
                continue
            if private and rule.accept and not names_private:
                continue
            return rule.accept
        return False

    def may_allow_address(self, address: str | _IPAddress) -> bool:
        """Whether some port is allowed at this address."""
        target = _normal(address)
        return any(rule.accept and self.allows(target, rule.low) for rule in self.rules)

    def may_allow_port(self, port: int) -> bool:
        """Whether some address is allowed on this port: all that can be asked for a name not resolved."""
        closed = set()
        for rule in self.rules:
            if not rule.low <= port <= rule.high:
                continue
            if rule.accept:
                if rule.version not in closed:
                    return True
            elif rule.prefix == 0:
                closed |= {rule.version} if rule.version else {4, 6}
                if closed >= {4, 6}:
                    return False
        return False

    def lines(self) -> list[str]:
        """The rules in the form that `parse` reads."""
        return [_format(rule) for rule in self.rules]


def _format(rule: PolicyRule) -> str:
    where = "*"
    if rule.version:
        network = ipaddress.ip_network((rule.network, rule.prefix))
        address = network.network_address
        where = f"{address}/{rule.prefix}" if rule.version == 4 else f"[{address}]/{rule.prefix}"
    ports = "*" if (rule.low, rule.high) == (0, 65535) else f"{rule.low}-{rule.high}"
    if rule.low == rule.high:
        ports = str(rule.low)
    return f"{'accept' if rule.accept else 'reject'} {where}:{ports}"
