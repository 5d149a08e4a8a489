"""Addresses that stand for others: what `[map]` and a controller's MAPADDRESS say, and automapped hosts. Pure.

As Tor's MapAddress and AutomapHostsOnResolve. Names and addresses are mapped before a request leaves the node, again
and again until nothing fits. A *virtual* address comes from a range of its own and stands for a name that an
application could only look up, not use: it never leaves the node.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Sequence

from backrooms.errors import ConfigError, StreamError, WireError
from backrooms.interfaces import Rng
from backrooms.proxy.request import Kind
from backrooms.wire.names import check_host, ip_literal
from backrooms.wire.relay import EndReason

IPV4 = "127.192.0.0/10"
IPV6 = "fe80::/10"
SUFFIXES = (".backrooms",)
VIRTUAL_NAMES = ".virtual"
"""What virtual names end with."""

MAX_STEPS = 16
"""Mappings that are followed for one request."""
MAX_MAPPINGS = 4096
"""Virtual addresses, and mappings of a controller. The virtual address unused longest makes room for a new one."""
_TRIES = 64
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"

Family = str
"""What a virtual address looks like: "ipv4", "ipv6" or "name"."""

_ALLOCATE: dict[str, Family] = {"0.0.0.0": "ipv4", "::": "ipv6", ".": "name"}
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AddressMap:
    """All mappings of a node.

    `addresses` are texts `FROM=TO`; FROM and TO are names or IP addresses, and FROM may be `*.NAME` for NAME and all
    names below, TO then `*.NAME` too. With `automap`, looking up a name that ends with one of `suffixes` gives a
    virtual address from `ipv4` or `ipv6`. Whatever is wrong with these is a `ConfigError`.
    """

    def __init__(
        self,
        rng: Rng,
        addresses: Sequence[str] = (),
        *,
        automap: bool = False,
        suffixes: Sequence[str] = SUFFIXES,
        ipv4: str = IPV4,
        ipv6: str = IPV6,
    ) -> None:
        self._rng = rng
        self._networks = {"ipv4": _network(ipv4, 4, 16), "ipv6": _network(ipv6, 6, 104)}
        self._suffixes = tuple(suffix.lower() for suffix in suffixes) if automap else ()
        self._exact: dict[str, str] = {}
        self._below: dict[str, str] = {}
        """TO by NAME of `*.NAME`."""
        self._controlled: dict[str, str] = {}
        self._virtual: OrderedDict[str, str] = OrderedDict()
        """Names by their virtual addresses, the one used last at the end."""
        self._virtual_of: dict[tuple[Family, str], str] = {}
        for index, text in enumerate(addresses):
            try:
                self._configure(text)
            except ConfigError as error:
                raise ConfigError(f"addresses[{index}]: {error}") from None
        for index, text in enumerate(addresses):
            self._try_out(text.partition("=")[0], f"addresses[{index}]")

    def _configure(self, text: str) -> None:
        original, equals, replacement = (part.strip() for part in text.partition("="))
        if not equals:
            raise ConfigError(f"{text!r} is not FROM=TO")
        wild = original.startswith("*.")
        if replacement.startswith("*.") and not wild:
            raise ConfigError(f"{text!r}: one address cannot be mapped to many")
        name = _host(original.removeprefix("*."), wild)
        target = _host(replacement.removeprefix("*."), replacement.startswith("*."))
        if wild:
            self._below[name] = f"*.{target}" if replacement.startswith("*.") else target
        else:
            self._exact[name] = target

    def _try_out(self, original: str, where: str) -> None:
        try:
            self._follow(original.strip().replace("*", "x").lower())
        except StreamError as error:
            raise ConfigError(f"{where}: {error}") from None

    # requests

    def apply(self, kind: Kind, host: str, *, ipv6: bool = False) -> str:
        """What a request for `host` is about.

        For "resolve" this may be the answer itself, an address (virtual ones in IPv6 on demand); for "resolve_ptr" the
        name that a virtual address stands for. `StreamError` when nothing may leave the node for it.
        """
        if kind == "resolve_ptr":
            found = self._use(host)
            if found is None and self.is_virtual(host):
                raise StreamError(EndReason.RESOLVEFAILED, "a virtual address without a name")
            return found or host
        host = self._follow(host)
        if self.is_virtual(host):
            raise StreamError(EndReason.RESOLVEFAILED, "a virtual address without a name")
        if kind == "resolve" and ip_literal(host) is None and _plain(host).endswith(self._suffixes):
            return self._allocate("ipv6" if ipv6 else "ipv4", host)
        return host

    def is_virtual(self, host: str) -> bool:
        """Whether an address lies in the virtual ranges, or a name is a virtual one."""
        address = ip_literal(host)
        if address is None:
            return _plain(host).endswith(VIRTUAL_NAMES)
        if address.version == 6 and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return address in self._networks[f"ipv{address.version}"]

    def _follow(self, host: str) -> str:
        for _ in range(MAX_STEPS):
            found = self._step(host)
            if found is None or found == host:
                return host
            host = found
        raise StreamError(EndReason.RESOLVEFAILED, "mappings of addresses form a loop")

    def _step(self, host: str) -> str | None:
        plain = _plain(host)
        found = self._use(plain) or self._controlled.get(plain) or self._exact.get(plain)
        if found is not None or ip_literal(plain) is not None:
            return found
        above = plain
        while above:
            target = self._below.get(above)
            if target is not None:
                return plain.removesuffix(above) + target[2:] if target.startswith("*.") else target
            above = above.partition(".")[2]
        return None

    def _use(self, address: str) -> str | None:
        name = self._virtual.get(address)
        if name is not None:
            self._virtual.move_to_end(address)
        return name

    # virtual addresses

    def _allocate(self, family: Family, name: str) -> str:
        known = self._virtual_of.get((family, name))
        if known is not None:
            self._virtual.move_to_end(known)
            return known
        for _ in range(_TRIES):
            address = self._draw(family)
            if address not in self._virtual and address not in self._controlled and address not in self._exact:
                break
        else:
            raise StreamError(EndReason.RESOURCELIMIT, "no virtual address is free")
        while len(self._virtual) >= MAX_MAPPINGS:
            old, its_name = self._virtual.popitem(last=False)
            self._virtual_of.pop((_family(old), its_name), None)
        self._virtual[address] = name
        self._virtual_of[family, name] = address
        return address

    def _draw(self, family: Family) -> str:
        if family == "name":
            return "".join(_LETTERS[byte & 31] for byte in self._rng.randbytes(16)) + VIRTUAL_NAMES
        network = self._networks[family]
        # Neither the first nor the last address: programs may take them for something else.
        return str(network[self._rng.randrange(1, network.num_addresses - 1)])

    # a controller's

    def map(self, original: str, replacement: str) -> tuple[str, str]:
        """MAPADDRESS of the control port: the mapping that is now in force.

        For "0.0.0.0", "::0" and "." a virtual address is chosen, mapping an address to itself removes its mapping.
        `ConfigError` for what is no address, or when there are too many.
        """
        target = _host(replacement, False)
        original = str(ip_literal(original) or original)
        if original in _ALLOCATE:
            try:
                return self._allocate(_ALLOCATE[original], target), target
            except StreamError as error:
                raise ConfigError(str(error)) from None
        name = _host(original, False)
        if name == target:
            self._forget(name)
        elif len(self._controlled) >= MAX_MAPPINGS and name not in self._controlled:
            raise ConfigError(f"there are {MAX_MAPPINGS} mappings already")
        else:
            self._forget(name)
            self._controlled[name] = target
        return name, target

    def _forget(self, name: str) -> None:
        self._controlled.pop(name, None)
        was = self._virtual.pop(name, None)
        if was is not None:
            self._virtual_of.pop((_family(name), was), None)

    def mappings(self, source: str = "all") -> list[tuple[str, str]]:
        """FROM and TO of what is mapped by "config", "control" (virtual addresses too) or "all"."""
        wild = {f"*.{name}": target for name, target in self._below.items()}
        configured = {**self._exact, **wild}
        controlled = {**self._controlled, **self._virtual}
        return list({"config": configured, "control": controlled, "all": {**configured, **controlled}}[source].items())


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")


def _family(address: str) -> Family:
    literal = ip_literal(address)
    return "name" if literal is None else f"ipv{literal.version}"


def _host(text: str, name_only: bool) -> str:
    try:
        host = _plain(check_host(text.encode()))
    except WireError as error:
        raise ConfigError(f"{text!r}: {error.reason}") from None
    if name_only and ip_literal(host) is not None:
        raise ConfigError(f"{text!r}: a name is wanted behind '*.'")
    if host.endswith(".exit"):
        raise ConfigError(f"{text!r}: nobody but the node itself chooses exits, there is no .exit")
    return host


def _network(text: str, version: int, longest: int) -> _Network:
    """A range of virtual addresses; IPv6 may be written with brackets."""
    try:
        network = ipaddress.ip_network(text.replace("[", "").replace("]", ""))
    except ValueError as error:
        raise ConfigError(f"ipv{version}: {error}") from None
    if network.version != version or network.prefixlen > longest:
        raise ConfigError(f"ipv{version}: {text!r} must be an IPv{version} network, /{longest} or larger")
    return network
