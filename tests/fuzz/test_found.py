"""What fuzzing led to and no single input shows."""

from __future__ import annotations

import tracemalloc

import pytest

from backrooms.errors import RemoteProtocolError
from backrooms.wire.cell import CellCommand, pack_cell
from backrooms.wire.link import MAX_HANDSHAKE_MESSAGE
from tests.channel.links import NOW, responder


def test_a_stranger_cannot_fill_the_memory_with_a_message_that_does_not_end() -> None:
    """A cell may carry a single byte of a message, and 16,384 of them come before it is too long."""
    end = responder()
    cell = pack_cell(0, CellCommand.MESSAGE, b"\0\0\1x")
    tracemalloc.start()
    try:
        for _ in range(MAX_HANDSHAKE_MESSAGE):
            end.channel.receive(cell, NOW)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    with pytest.raises(RemoteProtocolError, match="more than 16384 bytes"):
        end.channel.receive(cell, NOW)
