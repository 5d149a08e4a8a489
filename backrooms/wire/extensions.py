"""Extension fields inside handshake messages (docs/protocol.md, "Circuit handshake").

    type u8 | length u16 | data        repeated, types strictly rising

An unknown type below 0x80 is an error, from 0x80 on it is skipped. One order and no repeats: a set of
fields has one encoding only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum

from backrooms.errors import WireError
from backrooms.wire.cell import IGNORABLE
from backrooms.wire.codec import Reader, Writer


class ExtensionType(IntEnum):
    """What an extension field of a circuit handshake says."""

    TIMESTAMP = 1
    """The client's clock: minutes since 1970, u32. Bounds how long a relay must remember a handshake."""


def encode_extensions(fields: Mapping[int, bytes]) -> bytes:
    """The fields in rising order of type. What does not fit (u8, u16) is a `LocalProtocolError`."""
    writer = Writer()
    for kind in sorted(fields):
        writer.u8(kind).bytes16(fields[kind])
    return writer.done()


def decode_extensions(data: bytes, known: Collection[int]) -> dict[int, bytes]:
    """The fields whose type is in `known`, by type; those from 0x80 on that are not are skipped.

    `WireError` for a cut field, a repeated or falling type, or an unknown type below 0x80.
    """
    reader = Reader(data)
    fields: dict[int, bytes] = {}
    last = -1
    while reader.remaining:
        kind = reader.u8()
        value = reader.bytes16()
        if kind <= last:
            raise WireError(f"extension {kind} after extension {last}")
        last = kind
        if kind in known:
            fields[kind] = value
        elif kind < IGNORABLE:
            raise WireError(f"unknown extension {kind}")
    return fields


@dataclass(frozen=True, slots=True)
class ClientExtensions:
    """What a client tells a relay inside CREATE. It has no forward secrecy: no secrets go here."""

    minute: int
    """The client's clock in minutes since 1970."""

    def encode(self) -> bytes:
        return encode_extensions({ExtensionType.TIMESTAMP: Writer().u32(self.minute).done()})

    @classmethod
    def decode(cls, data: bytes) -> ClientExtensions:
        """`WireError` when the timestamp is missing or anything is malformed."""
        fields = decode_extensions(data, (ExtensionType.TIMESTAMP,))
        timestamp = fields.get(ExtensionType.TIMESTAMP)
        if timestamp is None:
            raise WireError("handshake without a timestamp")
        reader = Reader(timestamp)
        minute = reader.u32()
        reader.end()
        return cls(minute)
