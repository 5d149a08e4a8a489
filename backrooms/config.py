"""The configuration: one strict TOML file, read into frozen dataclasses.

Every table is a dataclass and every key a field with its default, so this file is the list of all options.
`etc/backrooms.toml` shows them with comments, `backrooms.toml(5)` explains them. An unknown key is an error.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, NewType, TypeVar, get_args, get_origin, get_type_hints

from backrooms.errors import ConfigError

IsolationWord = Literal["auth", "client", "protocol", "host", "port"]
LogLevel = Literal["debug", "info", "warn", "error", "critical"]
Listen = NewType("Listen", str)
"""A Twisted server endpoint string; a relative `unix:` path in it counts from the config file's folder."""

T = TypeVar("T")

_LEVEL = re.compile(r"none|low|medium|custom:([1-9]|1[0-2])", re.ASCII)


def option(default: Any, *, least: float | None = None, most: float | None = None) -> Any:
    """A field with its default and, for numbers, the smallest and largest value."""
    return field(default=default, metadata={"least": least, "most": most})


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
    allow_remote: bool = False

    def check(self) -> None:
        if self.level != "default":
            _check_level(self.level)
        _check_local(self.listen, self.allow_remote, "listen")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpareOptions:
    """`[client.spares]`: how many unused circuits are kept ready, by level."""

    none: int = option(0, least=0, most=16)
    low: int = option(0, least=0, most=16)
    medium: int = option(2, least=0, most=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """`[client]`: circuits of our own. Times in seconds."""

    enabled: bool = True
    level: str = "medium"
    max_dirtiness: float = option(600.0, least=1)
    build_timeout: float = option(10.0, least=0.1)
    retries: int = option(3, least=0, most=20)
    spares: SpareOptions = SpareOptions()

    def check(self) -> None:
        _check_level(self.level)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """`[relay]`: carrying circuits of others. `capacity` is in bytes per second and weighs path choice."""

    enabled: bool = False
    addresses: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    contact: str = ""
    operator: str = ""
    family: tuple[str, ...] = ()
    capacity: int = option(10_000_000, least=1)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlOptions:
    """`[control]`: the control port, which can do anything to this node."""

    listen: tuple[Listen, ...] = (Listen("unix:control.sock:mode=600"),)
    cookie: bool = True
    allow_remote: bool = False

    def check(self) -> None:
        for index, listen in enumerate(self.listen):
            _check_local(listen, self.allow_remote, f"listen[{index}]")
            if not self.cookie and not _is_private(listen):
                raise ConfigError(
                    f"cookie: must be true while every local user can open listen[{index}]; "
                    "a unix socket with mode=600 needs none"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOptions:
    """`[link]`: connections to nodes. `require_pq` refuses those without a post-quantum key exchange."""

    require_pq: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PathOptions:
    """`[path]`: what no path may break. `exclude` has relays' ids."""

    distinct_subnets: bool = True
    distinct_families: bool = True
    exclude: tuple[str, ...] = ()


SOCKS_DEFAULT = (ProxyOptions(listen=Listen("tcp:9050:interface=127.0.0.1")),)
HTTP_DEFAULT = (ProxyOptions(listen=Listen("tcp:9080:interface=127.0.0.1")),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All options of a node. The default is a client and nothing else."""

    node: NodeOptions = NodeOptions()
    log: LogOptions = LogOptions()
    keys: KeysOptions = KeysOptions()
    socks: tuple[ProxyOptions, ...] = SOCKS_DEFAULT
    http: tuple[ProxyOptions, ...] = HTTP_DEFAULT
    client: ClientOptions = ClientOptions()
    relay: RelayOptions = RelayOptions()
    exit: ExitOptions = ExitOptions()
    control: ControlOptions = ControlOptions()
    link: LinkOptions = LinkOptions()
    path: PathOptions = PathOptions()
    file: Path | None = field(default=None, compare=False, metadata={"option": False})
    """Where this was read from; not an option."""

    def __post_init__(self) -> None:
        for name in ("socks", "http"):
            listeners = (
                replace(one, level=self.client.level) if one.level == "default" else one for one in getattr(self, name)
            )
            object.__setattr__(self, name, tuple(listeners))

    def check(self) -> None:
        if self.exit.enabled and not self.relay.enabled:
            raise ConfigError("exit.enabled: an exit must be a relay too; set relay.enabled = true")

    @classmethod
    def load(cls, path: Path | str) -> Config:
        """Read the file at `path`; `ConfigError` says which key is wrong and why."""
        file = Path(path).absolute()
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: is not UTF-8 text") from None
        try:
            return cls.parse(text, file.parent, file)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def parse(cls, text: str, folder: Path, file: Path | None = None) -> Config:
        """Read TOML `text`, whose relative paths count from `folder`."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"not TOML: {error}") from None
        return _read_table(cls, table, "", folder, file=file)


def _check_level(level: str) -> None:
    """`ConfigError` unless `backrooms.levels.parse_level` takes it, too."""
    if not _LEVEL.fullmatch(level):
        raise ConfigError("level: must be none, low, medium or custom:N with N relays, 1 to 12")


def _read_table(kind: type[T], table: Any, path: str, folder: Path, **extra: Any) -> T:
    """`table` as the dataclass `kind`; `path` is its dotted name, empty for the whole file."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path}: must be a table")
    prefix = f"{path}." if path else ""
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if f.metadata.get("option", True)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise ConfigError(f"{prefix}{key}: unknown option")
    values = dict(extra)
    for name, field_ in known.items():
        if name in table:
            value = _read_value(hints[name], table[name], prefix + name, folder)
            _check_range(value, field_.metadata, prefix + name)
            values[name] = value
        elif is_dataclass(hints[name]):
            values[name] = _read_table(hints[name], {}, prefix + name, folder)
        elif field_.default is MISSING:
            raise ConfigError(f"{prefix}{name}: must be given")
        else:
            values[name] = _anchor(hints[name], field_.default, folder)
    result = kind(**values)
    if check := getattr(result, "check", None):
        try:
            check()
        except ConfigError as error:
            raise ConfigError(f"{prefix}{error}") from None
    return result


def _read_value(hint: Any, value: Any, path: str, folder: Path) -> Any:
    """`value` as the type `hint`: a table, a list, one of several words, or a plain value."""
    origin, arguments = get_origin(hint), get_args(hint)
    words = arguments if origin is Literal else ()
    if is_dataclass(hint) and isinstance(hint, type):
        return _read_table(hint, value, path, folder)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{path}: must be a list")
        return tuple(_read_value(arguments[0], item, f"{path}[{i}]", folder) for i, item in enumerate(value))
    if words:
        if value not in words:
            raise ConfigError(f"{path}: must be one of {', '.join(words)}")
        return value
    plain = str if hint in (Path, Listen) else hint
    if plain is float and type(value) is int:
        value = float(value)
    if type(value) is not plain:  # exactly: for Python, true is an int too
        raise ConfigError(f"{path}: must be {_PLAIN[plain]}")
    if hint in (Path, Listen) and not value:
        raise ConfigError(f"{path}: must not be empty")
    if plain is str and not value.isprintable():
        raise ConfigError(f"{path}: must not contain control characters")
    return _anchor(hint, Path(value) if hint is Path else value, folder)


_PLAIN = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def _check_range(value: Any, metadata: Mapping[str, Any], path: str) -> None:
    least, most = metadata.get("least"), metadata.get("most")
    if least is not None and not value >= least:  # "not >=" refuses nan, too
        raise ConfigError(f"{path}: must be at least {least}")
    if most is not None and not value <= most:
        raise ConfigError(f"{path}: must be at most {most}")


def _anchor(hint: Any, value: Any, folder: Path) -> Any:
    """`value` with its relative paths made absolute."""
    if hint is Path:
        return folder / value.expanduser()
    if hint is Listen:
        return _anchor_unix(value, folder)
    if get_origin(hint) is tuple and get_args(hint)[0] is Listen:
        return tuple(_anchor_unix(item, folder) for item in value)
    return value


def _anchor_unix(listen: str, folder: Path) -> Listen:
    """A `unix:` endpoint string with an absolute path; any other as it is."""
    kind, _, rest = listen.partition(":")
    path = rest.removeprefix("address=")
    if kind != "unix" or path.startswith("/"):
        return Listen(listen)
    quoted = str(folder).replace("\\", "\\\\").replace(":", "\\:")
    return Listen(f"unix:{quoted}/{path}")


def _endpoint(listen: str) -> tuple[str, dict[str, str]]:
    """The kind and the named parameters of an endpoint string, in which a colon may be written `\\:`."""
    kind, *parts = (part.replace("\\:", ":") for part in re.split(r"(?<!\\):", listen))
    named = (part.partition("=") for part in parts)
    return kind, {name: value for name, _, value in named}


def _check_local(listen: str, allow_remote: bool, key: str) -> None:
    """`ConfigError` when the endpoint string listens to other machines and nobody said so.

    `unix:` is local by nature; what `systemd:` passes in is decided where the socket is declared.
    """
    kind, parameters = _endpoint(listen)
    if allow_remote or kind in ("unix", "systemd"):
        return
    interface = parameters.get("interface", "")
    try:
        local = interface == "localhost" or ipaddress.ip_address(interface).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ConfigError(
            f"{key}: {listen!r} can be reached from other machines; add ':interface=127.0.0.1' "
            "or set allow_remote = true"
        )


def _is_private(listen: str) -> bool:
    """Whether the endpoint string is a unix socket that its owner (and group) alone may open."""
    kind, parameters = _endpoint(listen)
    try:
        return kind == "unix" and int(parameters.get("mode", "666"), 8) & 0o007 == 0
    except ValueError:
        return False
