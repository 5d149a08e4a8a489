"""The configuration: one strict TOML file, read into frozen dataclasses.

Every table is a dataclass and every key a field with its default: `options` is the list of all of them.
`etc/backrooms.toml` shows them with comments, `backrooms.toml(5)` explains them. An unknown key is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from backrooms.config.investigate import InvestigateOptions
from backrooms.config.listen import Listen
from backrooms.config.options import (
    AccountingOptions,
    ClientOptions,
    ControlOptions,
    DnsOptions,
    ExitOptions,
    KeysOptions,
    LimitOptions,
    LinkOptions,
    LogOptions,
    MapOptions,
    NodeOptions,
    PathOptions,
    ProxyOptions,
    RelayOptions,
    SocksOptions,
)
from backrooms.config.reader import read_table, read_toml
from backrooms.config.routes import RouteOptions
from backrooms.errors import ConfigError

__all__ = ["Config", "LimitOptions", "Listen", "ProxyOptions", "SocksOptions"]

SOCKS_DEFAULT = (SocksOptions(listen=Listen("tcp:9050:interface=127.0.0.1")),)
HTTP_DEFAULT = (ProxyOptions(listen=Listen("tcp:9080:interface=127.0.0.1")),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All options of a node. The default is a client and nothing else."""

    node: NodeOptions = field(default=NodeOptions())
    log: LogOptions = field(default=LogOptions())
    keys: KeysOptions = field(default=KeysOptions())
    socks: tuple[SocksOptions, ...] = SOCKS_DEFAULT
    http: tuple[ProxyOptions, ...] = HTTP_DEFAULT
    client: ClientOptions = field(default=ClientOptions())
    relay: RelayOptions = field(default=RelayOptions())
    exit: ExitOptions = field(default=ExitOptions())
    accounting: AccountingOptions = field(default=AccountingOptions())
    limits: LimitOptions = field(default=LimitOptions())
    dns: DnsOptions = field(default=DnsOptions())
    map: MapOptions = field(default=MapOptions())
    control: ControlOptions = field(default=ControlOptions())
    link: LinkOptions = field(default=LinkOptions())
    path: PathOptions = field(default=PathOptions())
    routes: tuple[RouteOptions, ...] = ()
    investigate: InvestigateOptions = field(default=InvestigateOptions())
    file: Path | None = field(default=None, compare=False, metadata={"option": False})
    """Where this was read from; not an option."""

    def __post_init__(self) -> None:
        for name in ("socks", "http"):
            listeners = (
                replace(one, level=self.client.level) if one.level == "default" else one for one in getattr(self, name)
            )
            object.__setattr__(self, name, tuple(listeners))
        if self.dns.level == "default":
            object.__setattr__(self, "dns", replace(self.dns, level=self.client.level))

    def check(self) -> None:
        if self.exit.enabled and not self.relay.enabled:
            raise ConfigError("exit.enabled: an exit must be a relay too; set relay.enabled = true")
        if self.exit.enabled and not self.relay.contact:
            raise ConfigError(
                "relay.contact: an exit needs one, such as 'abuse@example.org': "
                "who is bothered by what comes out of it must be able to reach you"
            )

    def geo_file(self) -> Path | None:
        """`path.geo` as a path from the folder of the file; None if it is empty."""
        if not self.path.geo:
            return None
        return Path(self.path.geo) if self.file is None else self.file.parent / self.path.geo

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
        return read_table(cls, read_toml(text), "", folder, file=file)
