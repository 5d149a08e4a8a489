"""Twisted endpoint strings in the configuration: where they listen, and for whom."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import NewType

from backrooms.errors import ConfigError

Listen = NewType("Listen", str)
"""A Twisted server endpoint string; a relative `unix:` path in it counts from the config file's folder."""


def anchor_unix(listen: str, folder: Path) -> Listen:
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


def check_local(listen: str, allow_remote: bool, key: str, instead: str = "") -> None:
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
            f"{key}: {listen!r} can be reached from other machines; add ':interface=127.0.0.1'"
            f"{', ' if instead else ''}{instead} or set allow_remote = true"
        )


def is_private_socket(listen: str) -> bool:
    """Whether the endpoint string is a unix socket that its owner (and group) alone may open."""
    kind, parameters = _endpoint(listen)
    try:
        return kind == "unix" and int(parameters.get("mode", "666"), 8) & 0o007 == 0
    except ValueError:
        return False


def check_address_port(text: str, key: str) -> None:
    """`ConfigError` unless it is "IP", "IP:PORT" or "[IPv6]:PORT"."""
    host, port = text, "53"
    if text.startswith("["):
        host, _, port = text[1:].partition("]:")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        ipaddress.ip_address(host)
        good = port.isascii() and port.isdecimal() and 0 < int(port) < 65536
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"{key}: {text!r} is not an address with or without a port, such as '192.0.2.1:53'")


def check_network(text: str, version: int, key: str) -> None:
    """`ConfigError` unless it is a network of that IP version."""
    try:
        good = ipaddress.ip_network(text).version == version
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"{key}: {text!r} is not an IPv{version} network")
