"""Relay messages: what the body of a RELAY cell carries, several to a cell (docs/protocol.md, "Relay messages").

    command u8 | stream id u16 | length u16 | data

Command 0 ends the messages; whatever follows it is ignored. Stream id 0 belongs to the circuit's own messages and
to nothing else.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from backrooms.errors import WireError
from backrooms.wire.cell import BODY_SIZE, CELL_SIZE, IGNORABLE
from backrooms.wire.codec import Reader, Writer

MESSAGE_HEADER = Struct(">BHH")
MESSAGE_HEADER_SIZE = MESSAGE_HEADER.size
MAX_MESSAGES = 16
"""Relay messages in one cell, at most; those that are ignored count too."""
ACK_PADDING = 16
"""Random bytes in every cell that a SENDME will name, so that nobody can compute its tag without reading it."""
MAX_DATA = BODY_SIZE - MESSAGE_HEADER_SIZE
"""Bytes of stream data that fit one cell."""
MAX_DATA_ACK = MAX_DATA - 1 - ACK_PADDING
"""Bytes of stream data that fit a cell which a SENDME will name."""
SENDME_CELLS = 65536 // CELL_SIZE
"""Cells with DATA that one SENDME acknowledges: 64 KB."""
INITIAL_CREDIT = 65536
"""Bytes of stream data either side may send before its first CREDIT."""


class RelayCommand(IntEnum):
    """What a relay message is. Unknown below 0x80: the circuit is destroyed. From 0x80 on: ignored."""

    END_OF_CELL = 0
    BEGIN = 1
    CONNECTED = 2
    DATA = 3
    END = 4
    CREDIT = 5
    RESOLVE = 6
    RESOLVED = 7
    SENDME = 8
    EXTEND = 9
    EXTENDED = 10
    BEGIN_DIR = 11


CIRCUIT_COMMANDS = frozenset({RelayCommand.SENDME, RelayCommand.EXTEND, RelayCommand.EXTENDED})


class EndReason(IntEnum):
    """Why a stream ended; Tor's numbers. DONE closes one direction, every other reason both."""

    MISC = 1
    RESOLVEFAILED = 2
    CONNECTREFUSED = 3
    EXITPOLICY = 4
    DESTROY = 5
    DONE = 6
    TIMEOUT = 7
    NOROUTE = 8
    HIBERNATING = 9
    INTERNAL = 10
    RESOURCELIMIT = 11
    CONNRESET = 12
    TORPROTOCOL = 13
    NOTDIRECTORY = 14


Message = tuple[int, int, bytes]
"""Command, stream id, data."""


def pack_message(command: int, stream_id: int, data: bytes) -> bytes:
    """One message with its header."""
    return MESSAGE_HEADER.pack(command, stream_id, len(data)) + data


def parse_messages(body: bytes) -> list[Message]:
    """All messages of a cell's body, in order; `WireError` when one breaks the rules."""
    messages: list[Message] = []
    offset = 0
    size = len(body)
    count = extends = 0
    while offset < size and body[offset]:
        if offset + MESSAGE_HEADER_SIZE > size:
            raise WireError("relay message header runs past the cell")
        command, stream_id, length = MESSAGE_HEADER.unpack_from(body, offset)
        offset += MESSAGE_HEADER_SIZE
        if offset + length > size:
            raise WireError("relay message runs past the cell")
        count += 1
        if count > MAX_MESSAGES:
            raise WireError("too many relay messages in one cell")
        if command < IGNORABLE:
            if (stream_id == 0) != (command in CIRCUIT_COMMANDS):
                raise WireError("relay message with the wrong kind of stream id")
            extends += command == RelayCommand.EXTEND
            if extends > 1:
                raise WireError("two EXTENDs in one cell")
            messages.append((command, stream_id, body[offset : offset + length]))
        offset += length
    return messages


@dataclass(frozen=True, slots=True)
class Begin:
    """Open a stream to `host` (a name or an address literal; names are resolved at the exit)."""

    host: str
    port: int
    flags: int = 0

    IPV6_OK = 1
    IPV4_NOT_OK = 2
    IPV6_PREFERRED = 4

    @classmethod
    def decode(cls, data: bytes) -> Begin:
        reader = Reader(data)
        flags, port, host = reader.u8(), reader.u16(), reader.text8()
        reader.end()
        if not host or port == 0:
            raise WireError("BEGIN without a host or a port")
        return cls(host, port, flags)

    def encode(self) -> bytes:
        return Writer().u8(self.flags).u16(self.port).text8(self.host).done()


@dataclass(frozen=True, slots=True)
class Connected:
    """The exit has connected to `address` (empty when it does not say); `ttl` in seconds."""

    address: str
    ttl: int

    @classmethod
    def decode(cls, data: bytes) -> Connected:
        reader = Reader(data)
        packed, ttl = reader.bytes8(), reader.u32()
        reader.end()
        if not packed:
            return cls("", ttl)
        try:
            return cls(str(ipaddress.ip_address(packed)), ttl)
        except ValueError:
            raise WireError("CONNECTED with an address of the wrong length") from None

    def encode(self) -> bytes:
        packed = ipaddress.ip_address(self.address).packed if self.address else b""
        return Writer().bytes8(packed).u32(self.ttl).done()


@dataclass(frozen=True, slots=True)
class End:
    """A stream's end."""

    reason: int

    @classmethod
    def decode(cls, data: bytes) -> End:
        reader = Reader(data)
        reason = reader.u8()
        reader.end()
        return cls(reason)

    def encode(self) -> bytes:
        return Writer().u8(self.reason).done()


@dataclass(frozen=True, slots=True)
class Credit:
    """The receiver of a stream takes `count` more bytes of DATA."""

    count: int

    @classmethod
    def decode(cls, data: bytes) -> Credit:
        reader = Reader(data)
        count = reader.u32()
        reader.end()
        if count == 0:
            raise WireError("CREDIT of nothing")
        return cls(count)

    def encode(self) -> bytes:
        return Writer().u32(self.count).done()


@dataclass(frozen=True, slots=True)
class Resolve:
    """Look up a name, or the name of an address literal (`reverse`)."""

    host: str
    reverse: bool

    @classmethod
    def decode(cls, data: bytes) -> Resolve:
        reader = Reader(data)
        reverse, host = reader.u8(), reader.text8()
        reader.end()
        if not host or reverse > 1:
            raise WireError("malformed RESOLVE")
        return cls(host, bool(reverse))

    def encode(self) -> bytes:
        return Writer().u8(self.reverse).text8(self.host).done()


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of RESOLVED: an address or a host name, with its life in seconds."""

    value: str
    ttl: int


@dataclass(frozen=True, slots=True)
class Resolved:
    """Answers to RESOLVE; no answers means the look-up failed, `again` that trying later may help."""

    answers: tuple[Answer, ...]
    again: bool = False

    @classmethod
    def decode(cls, data: bytes) -> Resolved:
        reader = Reader(data)
        again = reader.u8()
        answers = tuple(reader.vector(lambda r: Answer(r.text8(), r.u32()), limit=16))
        reader.end()
        if again > 1:
            raise WireError("malformed RESOLVED")
        return cls(answers, bool(again))

    def encode(self) -> bytes:
        writer = Writer().u8(self.again)
        return writer.vector(list(self.answers), lambda w, a: w.text8(a.value).u32(a.ttl)).done()


@dataclass(frozen=True, slots=True)
class Extend:
    """Grow the circuit to the relay `relay_id` (32 bytes); its addresses are the extending relay's own knowledge."""

    relay_id: bytes
    handshake: bytes

    @classmethod
    def decode(cls, data: bytes) -> Extend:
        reader = Reader(data)
        relay_id, handshake = reader.bytes(32), reader.bytes16()
        reader.end()
        return cls(relay_id, handshake)

    def encode(self) -> bytes:
        return Writer().bytes(self.relay_id).bytes16(self.handshake).done()
