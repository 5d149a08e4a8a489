"""Directory messages on a stream (docs/protocol.md, "Directory streams").

    type u8 | length u16 | payload

The types are those of link messages.
"""

from __future__ import annotations

from backrooms.errors import LocalProtocolError, WireError
from backrooms.wire.codec import Writer
from backrooms.wire.documents import MAX_MESSAGE

FRAME_HEADER_SIZE = 3
MAX_REQUEST = 8192
"""Bytes of the payload of a message to a relay; those to a client may have `MAX_MESSAGE`."""


def frame(kind: int, payload: bytes) -> bytes:
    """One message with its header."""
    if len(payload) > MAX_MESSAGE:
        raise LocalProtocolError(f"a directory message of {len(payload)} bytes, {MAX_MESSAGE} are allowed")
    return Writer().u8(kind).bytes16(payload).done()


class Unframer:
    """Takes messages out of a stream of bytes, one at a time; payloads have at most `limit` bytes."""

    __slots__ = ("_buffer", "_offset", "limit")

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self.limit = limit
        self._buffer = b""
        self._offset = 0

    def __len__(self) -> int:
        """Bytes that wait here."""
        return len(self._buffer) - self._offset

    def feed(self, data: bytes) -> None:
        """More bytes have come."""
        self._buffer = self._buffer[self._offset :] + data
        self._offset = 0

    def next(self) -> tuple[int, bytes] | None:
        """Type and payload of the next message, None when it is not all there; `WireError` when it is too long."""
        start = self._offset + FRAME_HEADER_SIZE
        if len(self._buffer) < start:
            return None
        length = int.from_bytes(self._buffer[start - 2 : start], "big")
        if length > self.limit:
            raise WireError(f"a directory message of {length} bytes, {self.limit} are allowed")
        if len(self._buffer) < start + length:
            return None
        kind = self._buffer[self._offset]
        self._offset = start + length
        return kind, self._buffer[start : start + length]
