"""Link messages: what two nodes of a link say to each other outside circuits (docs/protocol.md, "Links").

A message is `type u8 | payload` and travels in one or more MESSAGE cells of circuit 0, each with the payload

    flags u8 (1 = last fragment) | length u16 | data | zeros

Fragments of two messages never mix. Types below 16 are the link's own; 16 to 127 carry directory documents, 144 and
145 tests of reachability.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar, Protocol

from backrooms.errors import LocalProtocolError, WireError
from backrooms.wire.cell import IGNORABLE, PAYLOAD_SIZE, CellCommand, pack_cell
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.extensions import decode_extensions

VERSIONS = (1,)
"""Link versions that this code speaks."""
MAX_MESSAGE = 64_000
"""Bytes of a message, its type included."""
MAX_HANDSHAKE_MESSAGE = 16_384
"""The same before the link is open, when the peer is nobody yet."""
MAX_VERSIONS = 16
FIRST_DIRECTORY_TYPE = 16
"""Message types from here to 0x7F are handed on unread."""
REACH_TYPES = range(0x90, 0x92)
"""Handed on as well (`wire.reach`). A node that does not know them ignores them, as it does all from 0x80 on."""
FRAGMENT_HEADER_SIZE = 3
FRAGMENT_SIZE = PAYLOAD_SIZE - FRAGMENT_HEADER_SIZE
"""Bytes of a message in one cell."""
_LAST = 1


class LinkMessageType(IntEnum):
    """The link's own messages. An unknown type below 0x80 closes the link; from 0x80 on it is ignored."""

    HELLO = 1
    PROOF = 2
    LINK_OK = 3
    PING = 4
    PONG = 5


class Message(Protocol):
    """A link message: a type, and a payload that it can write."""

    @property
    def TYPE(self) -> int: ...

    def encode(self, writer: Writer, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Hello:
    """versions, u16 and u16 each | id_R 32 | id_I 32 or zeros | knock 32 | extensions to the end."""

    TYPE: ClassVar[int] = LinkMessageType.HELLO

    versions: tuple[int, ...]
    responder_id: bytes
    initiator_id: bytes
    """32 zeros from a client, which proves nothing."""
    knock: bytes = field(repr=False)

    def encode(self, writer: Writer) -> None:
        writer.vector(list(self.versions), Writer.u16)
        writer.bytes(self.responder_id).bytes(self.initiator_id).bytes(self.knock)

    @classmethod
    def decode(cls, reader: Reader) -> Hello:
        versions = tuple(reader.vector(Reader.u16, MAX_VERSIONS))
        if not versions or 0 in versions:
            raise WireError("HELLO without a valid link version")
        hello = cls(versions, reader.bytes(32), reader.bytes(32), reader.bytes(32))
        decode_extensions(reader.rest(), ())
        return hello


@dataclass(frozen=True, slots=True)
class Proof:
    """version u16 | identity u16 | time u64 | Ed25519 u16, ML-DSA-65 u16 and RSA-PSS u16 signatures."""

    TYPE: ClassVar[int] = LinkMessageType.PROOF

    version: int
    """The link version that the responder chose."""
    identity: bytes = field(repr=False)
    """An encoded `crypto.keys.PublicIdentity`."""
    time: int
    """The prover's clock, seconds since 1970, cut to the minute; 0 when it does not tell."""
    ed25519: bytes = field(repr=False)
    ml_dsa: bytes = field(repr=False)
    rsa: bytes = field(repr=False)
    """Empty in a proof to a client."""

    def encode(self, writer: Writer) -> None:
        writer.u16(self.version).bytes16(self.identity).u64(self.time)
        writer.bytes16(self.ed25519).bytes16(self.ml_dsa).bytes16(self.rsa)

    @classmethod
    def decode(cls, reader: Reader) -> Proof:
        proof = cls(reader.u16(), reader.bytes16(), reader.u64(), reader.bytes16(), reader.bytes16(), reader.bytes16())
        reader.end()
        return proof


@dataclass(frozen=True, slots=True)
class LinkOk:
    """The responder's word that the link is open: extensions to the end."""

    TYPE: ClassVar[int] = LinkMessageType.LINK_OK

    def encode(self, writer: Writer) -> None:
        """There is nothing to write as long as there are no extensions."""

    @classmethod
    def decode(cls, reader: Reader) -> LinkOk:
        decode_extensions(reader.rest(), ())
        return cls()


@dataclass(frozen=True, slots=True)
class Ping:
    """nonce u64: asks for a `Pong` with the same number."""

    TYPE: ClassVar[int] = LinkMessageType.PING

    nonce: int

    def encode(self, writer: Writer) -> None:
        writer.u64(self.nonce)

    @classmethod
    def decode(cls, reader: Reader) -> Ping:
        ping = cls(reader.u64())
        reader.end()
        return ping


@dataclass(frozen=True, slots=True)
class Pong:
    """nonce u64 of the `Ping` it answers."""

    TYPE: ClassVar[int] = LinkMessageType.PONG

    nonce: int

    def encode(self, writer: Writer) -> None:
        writer.u64(self.nonce)

    @classmethod
    def decode(cls, reader: Reader) -> Pong:
        pong = cls(reader.u64())
        reader.end()
        return pong


def encode_message(message: Message) -> bytes:
    """type u8 | payload."""
    writer = Writer().u8(message.TYPE)
    message.encode(writer)
    return writer.done()


def is_handed_on(kind: int) -> bool:
    """Whether messages of this type are for the owner of the link."""
    return FIRST_DIRECTORY_TYPE <= kind < IGNORABLE or kind in REACH_TYPES


def split_message(message: bytes) -> tuple[int, bytes]:
    """Type and payload of a whole message."""
    reader = Reader(message)
    return reader.u8(), reader.rest()


def fragment(message: bytes) -> list[bytes]:
    """The whole MESSAGE cells that carry `message` (type and payload), in order."""
    if not message or len(message) > MAX_MESSAGE:
        raise LocalProtocolError(f"a link message of {len(message)} bytes, 1 to {MAX_MESSAGE} are allowed")
    cells = []
    for start in range(0, len(message), FRAGMENT_SIZE):
        piece = message[start : start + FRAGMENT_SIZE]
        flags = _LAST if start + FRAGMENT_SIZE >= len(message) else 0
        cells.append(pack_cell(0, CellCommand.MESSAGE, Writer().u8(flags).bytes16(piece).done()))
    return cells


class Reassembler:
    """Joins fragments to messages of at most `limit` bytes; holds no more than one unfinished message."""

    __slots__ = ("_partial", "limit")

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self.limit = limit
        self._partial = bytearray()

    def __len__(self) -> int:
        """Bytes of the unfinished message."""
        return len(self._partial)

    def feed(self, payload: bytes) -> bytes | None:
        """Take one MESSAGE cell's payload; the message if this was its last fragment.

        `WireError` for unknown flags, an empty fragment, a filling that is not zero, or a message that grows beyond
        the limit.
        """
        reader = Reader(payload)
        flags = reader.u8()
        piece = reader.bytes16()
        if flags > _LAST:
            raise WireError(f"unknown fragment flags {flags:#x}")
        if not piece:
            raise WireError("empty fragment of a link message")
        if reader.rest().strip(b"\0"):
            raise WireError("bytes behind the fragment of a link message")
        if len(self._partial) + len(piece) > self.limit:
            raise WireError(f"link message of more than {self.limit} bytes")
        self._partial += piece
        if not flags:
            return None
        message = bytes(self._partial)
        self._partial.clear()
        return message
