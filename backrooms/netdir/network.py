"""The network file: what a node must be told to join a network (docs/protocol.md, "Directory").

    name = "example"
    id = "…52 characters of base32, or 64 hex digits…"

    [[contacts]]
    id = "…"
    address = "tls:192.0.2.1:5001"

    [versions]
    required = 1
    recommended = 1

Optional `charter` lists keys: only relays that one of them has admitted are then in the network. Optional `versions`
says which version of the protocol a relay must speak, and which it should. Reading and writing the file is the
caller's part: here are only text and values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from backrooms.config.reader import read_toml
from backrooms.crypto.keys import parse_id, text_id
from backrooms.errors import ConfigError
from backrooms.netdir.policy import is_private
from backrooms.wire.records import Address

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_KEYS = {"name", "id", "contacts", "charter", "versions"}


@dataclass(frozen=True, slots=True)
class Contact:
    """A relay to ask first."""

    id: bytes
    address: str


@dataclass(frozen=True, slots=True)
class NetworkFile:
    """A network: its name, its id (32 bytes, mixed into every handshake and signature) and first contacts."""

    name: str
    id: bytes
    contacts: tuple[Contact, ...] = ()
    charter: tuple[bytes, ...] = ()
    required: int = 0
    """The least version of the protocol that a relay may speak."""
    recommended: int = 0
    """The least version that it should speak."""

    @classmethod
    def parse(cls, text: str) -> NetworkFile:
        """The network that the TOML describes. `ConfigError` names the missing, unknown or wrong key."""
        try:
            table = read_toml(text)
        except ConfigError as error:
            raise ConfigError(f"network file: {error}") from None
        _known(table, _KEYS, "")
        name = _string(table, "name", "name")
        if not _NAME.fullmatch(name):
            raise ConfigError("network file: name: 1 to 63 letters, digits, dots, dashes and underscores")
        contacts = tuple(_contact(item, f"contacts[{i}]") for i, item in enumerate(_list(table, "contacts")))
        if len({contact.id for contact in contacts}) != len(contacts):
            raise ConfigError("network file: contacts: one relay stands there twice")
        charter = tuple(_id(item, f"charter[{i}]") for i, item in enumerate(_list(table, "charter")))
        versions = table.get("versions", {})
        if not isinstance(versions, dict):
            raise ConfigError("network file: versions: must be a table with required and recommended")
        _known(versions, {"required", "recommended"}, "versions.")
        required = _version(versions, "required", 0)
        recommended = _version(versions, "recommended", required)
        if recommended < required:
            raise ConfigError("network file: versions.recommended: must not be below versions.required")
        return cls(name, _id(_string(table, "id", "id"), "id"), contacts, charter, required, recommended)

    @property
    def is_local(self) -> bool:
        """Whether a contact has a private address. Only in such a network are relays with private addresses dialled."""
        hosts = [Address.parse(contact.address).host for contact in self.contacts]
        return any(host is not None and is_private(host) for host in hosts)

    def to_toml(self) -> str:
        """The text that `parse` reads."""
        lines = [f'name = "{self.name}"', f'id = "{text_id(self.id)}"']
        if self.charter:
            keys = ", ".join(f'"{text_id(key)}"' for key in self.charter)
            lines.append(f"charter = [{keys}]")
        if self.recommended:
            lines += ["", "[versions]", f"required = {self.required}", f"recommended = {self.recommended}"]
        for contact in self.contacts:
            lines += ["", "[[contacts]]", f'id = "{text_id(contact.id)}"', f'address = "{contact.address}"']
        return "\n".join(lines) + "\n"


def _known(table: dict[str, Any], keys: set[str], where: str) -> None:
    unknown = sorted(table.keys() - keys)
    if unknown:
        raise ConfigError(f"network file: {where}{unknown[0]}: unknown key; known are {', '.join(sorted(keys))}")


def _string(table: dict[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if value is None:
        raise ConfigError(f"network file: {where}: missing")
    if not isinstance(value, str):
        raise ConfigError(f"network file: {where}: must be a string")
    return value


def _list(table: dict[str, Any], key: str) -> list[Any]:
    value = table.get(key, [])
    if not isinstance(value, list):
        raise ConfigError(f"network file: {key}: must be a list")
    return value


def _version(table: dict[str, Any], key: str, default: int) -> int:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0xFFFF:
        raise ConfigError(f"network file: versions.{key}: must be a number from 0 to 65535")
    return value


def _id(value: Any, where: str) -> bytes:
    if not isinstance(value, str):
        raise ConfigError(f"network file: {where}: must be a string")
    if re.fullmatch(r"[0-9a-fA-F]{64}", value):
        return bytes.fromhex(value)
    try:
        return parse_id(value)
    except ValueError as error:
        raise ConfigError(f"network file: {where}: {error}; 64 hex digits will also do") from None


def _contact(item: Any, where: str) -> Contact:
    if not isinstance(item, dict):
        raise ConfigError(f"network file: {where}: must be a table with id and address")
    _known(item, {"id", "address"}, f"{where}.")
    node_id = _id(_string(item, "id", f"{where}.id"), f"{where}.id")
    address = _string(item, "address", f"{where}.address")
    try:
        Address.parse(address)
    except ValueError as error:
        raise ConfigError(f"network file: {where}.address: {error}") from None
    return Contact(node_id, address)
