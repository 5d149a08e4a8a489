"""Bytes to values and back: the only place that slices raw bytes of control messages.

All integers are big-endian. A short read and a trailing byte are both a `WireError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from backrooms.errors import LocalProtocolError, WireError

T = TypeVar("T")
Bytes = bytes
"""The type, where a method called `bytes` hides it."""


class Reader:
    """Takes fields off the front of a byte string, in wire order."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = bytes(data)
        self._offset = 0

    def bytes(self, count: int) -> Bytes:
        """The next `count` bytes."""
        end = self._offset + count
        if count < 0 or end > len(self._data):
            raise WireError(f"short read: {count} bytes wanted, {len(self._data) - self._offset} there")
        piece = self._data[self._offset : end]
        self._offset = end
        return piece

    def u8(self) -> int:
        return self.bytes(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.bytes(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.bytes(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.bytes(8), "big")

    def bytes8(self) -> Bytes:
        """A byte string behind its length as u8."""
        return self.bytes(self.u8())

    def bytes16(self) -> Bytes:
        """A byte string behind its length as u16."""
        return self.bytes(self.u16())

    def text8(self) -> str:
        """UTF-8 text behind its length as u8."""
        try:
            return self.bytes8().decode("utf-8")
        except UnicodeDecodeError:
            raise WireError("text is not UTF-8") from None

    def vector(self, decode: Callable[[Reader], T], limit: int) -> list[T]:
        """A list behind its count as u16; more than `limit` items is an error."""
        count = self.u16()
        if count > limit:
            raise WireError(f"{count} items where at most {limit} may stand")
        return [decode(self) for _ in range(count)]

    def accept(self, piece: Bytes) -> bool:
        """Whether `piece` comes next; then it is taken."""
        found = self._data.startswith(piece, self._offset)
        if found:
            self._offset += len(piece)
        return found

    @property
    def position(self) -> int:
        """Bytes taken so far."""
        return self._offset

    def since(self, position: int) -> Bytes:
        """What was taken from `position` on."""
        return self._data[position : self._offset]

    def rest(self) -> Bytes:
        """All that is left."""
        return self.bytes(len(self._data) - self._offset)

    @property
    def remaining(self) -> int:
        return len(self._data) - self._offset

    def end(self) -> None:
        """Nothing may be left."""
        if self._offset != len(self._data):
            raise WireError(f"{len(self._data) - self._offset} trailing bytes")


class Writer:
    """Puts fields at the end of a byte string, in wire order."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[Bytes] = []

    def bytes(self, data: Bytes) -> Writer:
        self._parts.append(data)
        return self

    def _integer(self, value: int, size: int) -> Writer:
        try:
            self._parts.append(value.to_bytes(size, "big"))
        except OverflowError:
            raise LocalProtocolError(f"{value} does not fit in {size} bytes") from None
        return self

    def u8(self, value: int) -> Writer:
        return self._integer(value, 1)

    def u16(self, value: int) -> Writer:
        return self._integer(value, 2)

    def u32(self, value: int) -> Writer:
        return self._integer(value, 4)

    def u64(self, value: int) -> Writer:
        return self._integer(value, 8)

    def bytes8(self, data: Bytes) -> Writer:
        return self.u8(len(data)).bytes(data)

    def bytes16(self, data: Bytes) -> Writer:
        return self.u16(len(data)).bytes(data)

    def text8(self, text: str) -> Writer:
        return self.bytes8(text.encode("utf-8"))

    def vector(self, items: list[T], encode: Callable[[Writer, T], object]) -> Writer:
        """A list behind its count as u16."""
        self.u16(len(items))
        for item in items:
            encode(self, item)
        return self

    def done(self) -> Bytes:
        """The bytes written so far."""
        return b"".join(self._parts)
