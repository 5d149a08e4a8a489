"""Cells: the fixed-size units that everything on an authenticated link travels in (docs/protocol.md, "Cells").

    circuit id u32 | command u8 | 3 zero bytes | body

`RELAY` and `RELAY_EARLY` bodies are a 16-byte tag and `BODY_SIZE` encrypted bytes; a relay never changes the
command. The three zero bytes are never copied from one link to another.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

from backrooms.errors import LocalProtocolError, WireError

CELL_SIZE = 4096
"""Bytes of a cell. Frozen under link version 1; docs/decisions/001-cell-size.md has the measurements."""

HEADER_SIZE = 8
TAG_SIZE = 16
PAYLOAD_SIZE = CELL_SIZE - HEADER_SIZE
"""Bytes of a cell after its header."""
BODY_SIZE = PAYLOAD_SIZE - TAG_SIZE
"""Bytes of relay messages in one RELAY cell."""
CELLS_PER_RECORD = 16384 // CELL_SIZE
"""Cells in one full TLS record: links write whole records so that readers get whole cells."""

HEADER = Struct(">IB3s")
ZERO3 = bytes(3)


class CellCommand(IntEnum):
    """What a cell is. An unknown command below 0x80 closes the link; from 0x80 on it is ignored."""

    PADDING = 0
    RELAY = 1
    RELAY_EARLY = 2
    CREATE = 3
    CREATED = 4
    DESTROY = 5
    MESSAGE = 6


IGNORABLE = 0x80
"""Commands, message types and field types from here on may be skipped by a node that does not know them."""


class DestroyReason(IntEnum):
    """Why a circuit ended. Clients always send NONE; relays send DESTROYED for what they heard from others."""

    NONE = 0
    PROTOCOL = 1
    INTERNAL = 2
    REQUESTED = 3
    RESOURCE_LIMIT = 4
    CONNECT_FAILED = 5
    HANDSHAKE = 6
    CHANNEL_CLOSED = 7
    FINISHED = 8
    TIMEOUT = 9
    DESTROYED = 10
    SHUTTING_DOWN = 11


def pack_cell(circuit_id: int, command: int, payload: bytes) -> bytes:
    """A whole cell; `payload` is filled up with zeros."""
    if len(payload) > PAYLOAD_SIZE:
        raise LocalProtocolError(f"payload of {len(payload)} bytes in a cell of {CELL_SIZE}")
    return HEADER.pack(circuit_id, command, ZERO3) + payload.ljust(PAYLOAD_SIZE, b"\0")


def unpack_cell(cell: bytes) -> tuple[int, int, bytes]:
    """Circuit id, command and payload of a whole cell."""
    if len(cell) != CELL_SIZE:
        raise WireError(f"a cell of {len(cell)} bytes")
    circuit_id, command, zero = HEADER.unpack_from(cell)
    if zero != ZERO3:
        raise WireError("reserved header bytes are not zero")
    return circuit_id, command, cell[HEADER_SIZE:]


def pack_handshake(data: bytes) -> bytes:
    """The payload of CREATE and CREATED: the handshake behind its length as u16."""
    if len(data) > PAYLOAD_SIZE - 2:
        raise LocalProtocolError(f"handshake of {len(data)} bytes does not fit a cell")
    return len(data).to_bytes(2, "big") + data


def unpack_handshake(payload: bytes) -> bytes:
    """The handshake inside the payload of CREATE or CREATED."""
    length = int.from_bytes(payload[:2], "big")
    if length > len(payload) - 2:
        raise WireError("handshake longer than its cell")
    return payload[2 : 2 + length]
