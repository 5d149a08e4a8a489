"""The tables of the configuration and their options, each with its default."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backrooms.config.listen import Listen, check_address_port, check_local, check_network, is_private_socket
from backrooms.config.reader import option
from backrooms.errors import ConfigError

LEAST_MEMORY = 16 << 20
"""Bytes in queues that a node must allow: a circuit alone may need ten million."""
IsolationWord = Literal["auth", "client", "protocol", "host", "port"]
LiteralWord = Literal["allow", "warn", "refuse"]
AccountingRule = Literal["max", "sum", "in", "out"]
LogLevel = Literal["debug", "info", "warn", "error", "critical"]

_LEVEL = re.compile(r"none|low|medium|high|custom:([1-9]|1[0-2])", re.ASCII)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]"
_PERIOD = re.compile(rf"(month ([1-9]|1[0-9]|2[0-8])|week [1-7]|day) {_TIME}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """`[node]`: what every node has."""

    nickname: str = "Unnamed"
    state: Path = Path("state")
    network: Path = Path("network.toml")

    def check(self) -> None:
        if not (self.nickname.isascii() and self.nickname.isalnum() and len(self.nickname) <= 19):
            raise ConfigError("nickname: must be 1 to 19 letters and digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """`[log]`: `safe` keeps addresses and destinations out of the log."""

    level: LogLevel = "info"
    safe: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysOptions:
    """`[keys]`: `store` is the name of a keystore plugin."""

    store: str = "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyOptions:
    """One `[[socks]]` or `[[http]]`: a local listener with its own level and isolation.

    The level "default" stands for `client.level`; in a `Config` it is already replaced by it.
    """

    listen: Listen
    level: str = "default"
    isolate: tuple[IsolationWord, ...] = ("auth", "client")
    password: str = ""
    allow_remote: bool = False

    def check(self) -> None:
        if self.level != "default":
            check_level(self.level)
        check_local(self.listen, self.allow_remote or bool(self.password), "listen", "give it a password")


@dataclass(frozen=True, slots=True, kw_only=True)
class SocksOptions(ProxyOptions):
    """One `[[socks]]`. An application that names its destination by address has probably leaked it to the DNS."""

    literal_addresses: LiteralWord = "warn"
    extended_errors: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SpareOptions:
    """`[client.spares]`: how many unused circuits are kept ready, by level."""

    none: int = option(0, least=0, most=16)
    low: int = option(0, least=0, most=16)
    medium: int = option(2, least=0, most=16)
    high: int = option(0, least=0, most=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """`[client]`: circuits of our own. Times in seconds; after `dormant_after` without a stream the client sleeps.

    `allow_private` lets applications ask for private addresses, and exits answer with them.
    """

    enabled: bool = True
    level: str = "medium"
    max_dirtiness: float = option(600.0, least=1)
    build_timeout: float = option(10.0, least=0.1)
    retries: int = option(3, least=0, most=20)
    dormant_after: float = option(86400.0, least=10)
    allow_private: bool = False
    spares: SpareOptions = SpareOptions()

    def check(self) -> None:
        check_level(self.level)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """`[relay]`: carrying circuits of others.

    `capacity` is in bytes per second and weighs path choice; `rate` (bytes per second) and `burst` (bytes) bound what
    all links together carry each way, 0 for no bound. `admission` is what lets it into a network with a charter.
    """

    enabled: bool = False
    addresses: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    contact: str = ""
    operator: str = ""
    family: tuple[str, ...] = ()
    admission: str = ""
    capacity: int = option(10_000_000, least=1)
    rate: int = option(0, least=0)
    burst: int = option(0, least=0)
    assume_reachable: bool = False

    def check(self) -> None:
        if self.enabled and not self.addresses:
            raise ConfigError("addresses: a relay needs one, such as 'tls:203.0.113.5:9001'")
        for key, addresses in (("addresses", self.addresses), ("listen", self.listen)):
            for index, address in enumerate(addresses):
                if ":" not in address:
                    raise ConfigError(f"{key}[{index}]: must be TRANSPORT:ADDRESS, such as 'tls:203.0.113.5:9001'")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitOptions:
    """`[exit]`: connecting to the outside for others; needs `relay.enabled`.

    `policy` has rules such as "accept *:443", the first that fits decides; empty stands for the ports of the
    usual services. `single_hop` lets circuits of one hop exit here.
    """

    enabled: bool = False
    policy: tuple[str, ...] = ()
    allow_private: bool = False
    single_hop: bool = False
    connect_rate: float = option(50.0, least=0.1)
    connect_burst: int = option(500, least=1)
    nameservers: tuple[str, ...] = ()
    notice: tuple[Listen, ...] = ()
    notice_file: str = ""

    def check(self) -> None:
        for index, server in enumerate(self.nameservers):
            check_address_port(server, f"nameservers[{index}]")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountingOptions:
    """`[accounting]`: at most `max` bytes per period, then the node hibernates; 0 for no bound."""

    max: int = option(0, least=0)
    period: str = "month 1 00:00"
    rule: AccountingRule = "max"

    def check(self) -> None:
        if not _PERIOD.fullmatch(self.period):
            raise ConfigError(
                "period: must be 'month DAY HH:MM' (day 1 to 28), 'week DAY HH:MM' (1 is Monday) or 'day HH:MM'"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions:
    """`[limits]`: what strangers may take of this node. Rates are new links per second, `memory` is in bytes.

    `memory` bounds what waits in queues; 0 stands for a quarter of the machine's memory, 1 GiB at most.
    """

    memory: int = option(0, least=0)
    pending_links: int = option(512, least=8, most=65536)
    address_rate: float = option(5.0, least=0.01)
    address_burst: int = option(30, least=1)
    subnet_rate: float = option(20.0, least=0.01)
    subnet_burst: int = option(120, least=1)
    handshake_cpu: float = option(0.25, least=0.01, most=1)
    circuits_per_link: int = option(8192, least=16)

    def check(self) -> None:
        if 0 < self.memory < LEAST_MEMORY:
            raise ConfigError(f"memory: must be 0 or at least {LEAST_MEMORY} (16 MiB)")


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsOptions:
    """`[dns]`: a local DNS server that asks through circuits, at addresses such as "udp:5353:interface=127.0.0.1"."""

    listen: tuple[str, ...] = ()
    level: str = "default"
    allow_remote: bool = False

    def check(self) -> None:
        if self.level != "default":
            check_level(self.level)
        for index, listen in enumerate(self.listen):
            if not listen.startswith("udp:"):
                raise ConfigError(
                    f"listen[{index}]: must be udp:PORT:interface=ADDRESS, such as 'udp:5353:interface=127.0.0.1'"
                )
            check_local(Listen(listen), self.allow_remote, f"listen[{index}]")


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOptions:
    """`[map]`: names that stand for others, and addresses given to names that only this network can reach."""

    addresses: tuple[str, ...] = ()
    automap: bool = False
    automap_suffixes: tuple[str, ...] = (".backrooms",)
    ipv4: str = "127.192.0.0/10"
    ipv6: str = "fe80::/10"

    def check(self) -> None:
        for index, rule in enumerate(self.addresses):
            old, equals, new = rule.partition("=")
            if not (old and equals and new):
                raise ConfigError(f"addresses[{index}]: must be FROM=TO, such as 'search.example=search.example.org'")
        for index, suffix in enumerate(self.automap_suffixes):
            if not suffix.startswith(".") or len(suffix) < 2:
                raise ConfigError(f"automap_suffixes[{index}]: must be a dot and a name, such as '.backrooms'")
        for key, text, version in (("ipv4", self.ipv4, 4), ("ipv6", self.ipv6, 6)):
            check_network(text, version, key)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlOptions:
    """`[control]`: the control port, which can do anything to this node."""

    listen: tuple[Listen, ...] = (Listen("unix:control.sock:mode=600"),)
    cookie: bool = True
    allow_remote: bool = False

    def check(self) -> None:
        for index, listen in enumerate(self.listen):
            check_local(listen, self.allow_remote, f"listen[{index}]")
            if not self.cookie and not is_private_socket(listen):
                raise ConfigError(
                    f"cookie: must be true while every local user can open listen[{index}]; "
                    "a unix socket with mode=600 needs none"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOptions:
    """`[link]`: connections to nodes. `require_pq` refuses those without a post-quantum key exchange."""

    require_pq: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PathLevelOptions:
    """`[path.levels]`: what paths of one level avoid beyond `path.avoid`; `custom` stands for every custom:N."""

    none: tuple[str, ...] = ()
    low: tuple[str, ...] = ()
    medium: tuple[str, ...] = ()
    high: tuple[str, ...] = ()
    custom: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PathOptions:
    """`[path]`: what no path may break. The lists to avoid have rules about known entities (`path.rules`).

    `geo` is the table of countries and networks; empty for the one in the state folder, or that of tor-geoipdb.
    """

    distinct_subnets: bool = True
    distinct_families: bool = True
    avoid: tuple[str, ...] = ()
    avoid_entry: tuple[str, ...] = ()
    avoid_middle: tuple[str, ...] = ()
    avoid_exit: tuple[str, ...] = ()
    blocs: tuple[str, ...] = ()
    geo: str = ""
    levels: PathLevelOptions = PathLevelOptions()


def check_level(level: str) -> None:
    """`ConfigError` unless `backrooms.levels.parse_level` takes it, too."""
    if level == "max":
        raise ConfigError("level: max needs mixing, which this version does not have; nothing weaker takes its place")
    if not _LEVEL.fullmatch(level):
        raise ConfigError("level: must be none, low, medium, high or custom:N with N relays, 1 to 12")
