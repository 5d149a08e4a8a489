"""What a path must hold to: every rule is hard, none is ever relaxed (docs/protocol.md, "Paths")."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address

from backrooms.netdir.descriptor import Descriptor


class Position(Enum):
    """A place in a path that rules speak of."""

    ENTRY = "entry"
    MIDDLE = "middle"
    EXIT = "exit"
    ONLY = "only"
    """The one relay of a path of one: entry and exit at once."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the exit shall connect to. Without a host or port, any exit will do that fits the rest."""

    host: str | None = None
    """A name or an IP address; names are resolved by the exit only."""
    port: int | None = None
    address: IPv4Address | IPv6Address | None = field(init=False, repr=False, compare=False)
    """The host, if it is an IP address: then the policy can be asked about it, not only about the port."""

    def __post_init__(self) -> None:
        try:
            address = None if self.host is None else ip_address(self.host)
        except ValueError:
            address = None
        object.__setattr__(self, "address", address)


@dataclass(frozen=True, slots=True)
class Constraints:
    """Rules for all relays of one path.

    That they are distinct relays, of distinct operators and autonomous systems as far as these are known, always holds.
    """

    distinct_subnets: bool = True
    """No two in one IPv4 /16 or IPv6 /32. Off only for networks on one machine."""
    distinct_families: bool = True
    exclude: frozenset[bytes] = frozenset()
    """Ids of relays that may not be used: avoided ones, and this node itself."""


def same_family(a: Descriptor, b: Descriptor) -> bool:
    """Whether a family key vouches for both, or both name each other.

    One side's word is not enough: a relay could name all honest ones and so steer every path that it is on.
    """
    return not a.family_keys.isdisjoint(b.family_keys) or (b.id in a.family and a.id in b.family)


def may_exit(relay: Descriptor, port: int | None, *, single_hop: bool = False) -> bool:
    """Whether a relay is an exit that opens this port to some address."""
    if not (relay.allows_single_hop if single_hop else relay.is_exit):
        return False
    return port is None or relay.exit_policy.may_allow_port(port)


def allows(relay: Descriptor, target: Target) -> bool:
    """Whether the exit policy lets the target pass, as far as a client can know without resolving names."""
    if target.port is None:
        return True
    if target.address is not None:
        return relay.exit_policy.allows(target.address, target.port)
    return relay.exit_policy.may_allow_port(target.port)
