"""Cells: the header, whole cells and the handshakes in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import LocalProtocolError, WireError
from backrooms.wire.cell import (
    BODY_SIZE,
    CELL_SIZE,
    CELLS_PER_RECORD,
    HEADER_SIZE,
    PAYLOAD_SIZE,
    TAG_SIZE,
    CellCommand,
    DestroyReason,
    pack_cell,
    pack_handshake,
    unpack_cell,
    unpack_handshake,
)

COMMANDS = {"PADDING": 0, "RELAY": 1, "RELAY_EARLY": 2, "CREATE": 3, "CREATED": 4, "DESTROY": 5, "MESSAGE": 6}
REASONS = [
    "NONE",
    "PROTOCOL",
    "INTERNAL",
    "REQUESTED",
    "RESOURCE_LIMIT",
    "CONNECT_FAILED",
    "HANDSHAKE",
    "CHANNEL_CLOSED",
    "FINISHED",
    "TIMEOUT",
    "DESTROYED",
    "SHUTTING_DOWN",
]


def test_frozen_numbers() -> None:
    assert CELL_SIZE == 4096
    assert HEADER_SIZE + PAYLOAD_SIZE == CELL_SIZE
    assert PAYLOAD_SIZE == TAG_SIZE + BODY_SIZE
    assert (PAYLOAD_SIZE, TAG_SIZE, BODY_SIZE, CELLS_PER_RECORD) == (4088, 16, 4072, 4)
    assert {command.name: int(command) for command in CellCommand} == COMMANDS
    assert [reason.name for reason in DestroyReason] == REASONS
    assert [int(reason) for reason in DestroyReason] == list(range(12))


def test_destroy_vector() -> None:
    cell = pack_cell(0x89ABCDEF, CellCommand.DESTROY, bytes([DestroyReason.DESTROYED]))
    assert cell == bytes.fromhex("89abcdef 05 000000 0a") + bytes(4087)


def test_create_vector() -> None:
    cell = pack_cell(1, CellCommand.CREATE, pack_handshake(b"\xaa\xbb\xcc"))
    assert cell == bytes.fromhex("00000001 03 000000 0003 aabbcc") + bytes(4096 - 13)
    assert unpack_handshake(unpack_cell(cell)[2]) == b"\xaa\xbb\xcc"


@given(st.integers(0, 2**32 - 1), st.integers(0, 255), st.binary(max_size=200))
def test_round_trip(circuit_id: int, command: int, payload: bytes) -> None:
    cell = pack_cell(circuit_id, command, payload)
    assert len(cell) == CELL_SIZE
    assert unpack_cell(cell) == (circuit_id, command, payload.ljust(PAYLOAD_SIZE, b"\0"))


@given(st.binary(max_size=20), st.sampled_from([0, 7, 8, CELL_SIZE - 1, CELL_SIZE, CELL_SIZE + 1]))
def test_any_bytes_give_a_cell_or_a_wire_error(head: bytes, size: int) -> None:
    data = head.ljust(size, b"\xff")[:size]
    try:
        circuit_id, command, payload = unpack_cell(data)
    except WireError:
        assert len(data) != CELL_SIZE or data[5:8] != bytes(3)
    else:
        assert circuit_id.to_bytes(4, "big") + bytes([command, 0, 0, 0]) + payload == data


@pytest.mark.parametrize("bit", range(24))
def test_each_reserved_bit_is_refused(bit: int) -> None:
    cell = bytearray(pack_cell(5, CellCommand.RELAY, b""))
    cell[5 + bit // 8] ^= 0x80 >> bit % 8
    with pytest.raises(WireError, match="reserved"):
        unpack_cell(bytes(cell))


def test_payload_that_does_not_fit_is_our_bug() -> None:
    assert len(pack_cell(1, 1, bytes(PAYLOAD_SIZE))) == CELL_SIZE
    with pytest.raises(LocalProtocolError):
        pack_cell(1, 1, bytes(PAYLOAD_SIZE + 1))
    assert len(pack_handshake(bytes(PAYLOAD_SIZE - 2))) == PAYLOAD_SIZE
    with pytest.raises(LocalProtocolError):
        pack_handshake(bytes(PAYLOAD_SIZE - 1))


@given(st.binary(max_size=PAYLOAD_SIZE - 2))
def test_handshake_round_trip(handshake: bytes) -> None:
    _, _, payload = unpack_cell(pack_cell(1, CellCommand.CREATED, pack_handshake(handshake)))
    assert unpack_handshake(payload) == handshake


@given(st.binary(max_size=40))
def test_any_payload_gives_a_handshake_or_a_wire_error(payload: bytes) -> None:
    try:
        handshake = unpack_handshake(payload)
    except WireError:
        assert len(payload) < 2 or int.from_bytes(payload[:2], "big") > len(payload) - 2
    else:
        assert pack_handshake(handshake) == payload[: 2 + len(handshake)]
