"""Bodies of HTTP messages: where they end, and how they are sent on (RFC 9112, section 6). Pure.

A reader's `take` is given what came and returns what of it is body, and what lies behind the body's end. The bytes of
bodies whose length is known are passed on as they are, without a copy.
"""

from __future__ import annotations

import re

from backrooms.errors import WireError

MAX_LINE = 1024
"""Bytes of the line before a chunk."""
MAX_TRAILERS = 16 * 1024
MAX_CHUNK = 65536 - 16
"""Bytes of a chunk that we write; with its frame it is an output of less than 64 KiB."""

LAST_CHUNK = b"0\r\n\r\n"

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")


class Counted:
    """A body of `size` bytes."""

    def __init__(self, size: int) -> None:
        self._left = size

    @property
    def done(self) -> bool:
        """Whether the body has been taken whole."""
        return not self._left

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        left = self._left
        if len(data) <= left:
            self._left = left - len(data)
            return data, b""
        self._left = 0
        return data[:left], data[left:]


class Endless:
    """A body that goes on until its connection ends."""

    done = False

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        return data, b""


class Chunked:
    """A chunked body (RFC 9112, section 7.1). Extensions of chunks and trailers are dropped.

    Lines end with CRLF and nothing else: what two readers could read in two ways is a `WireError`.
    """

    def __init__(self) -> None:
        self.done = False
        self._left = 0
        """Bytes of the chunk's data that are still to come."""
        self._line = b""
        """The beginning of a line that is not complete."""
        self._after_data = False
        self._in_trailers = False
        self._trailers = 0

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        parts: list[bytes] = []
        start = 0
        if self._line:
            data, self._line = self._line + data, b""
        while start < len(data) and not self.done:
            if self._left:
                part = data[start : start + self._left]
                parts.append(part)
                self._left -= len(part)
                start += len(part)
                self._after_data = not self._left
                continue
            end = data.find(b"\n", start)
            if end < 0:
                self._line = data[start:]
                self._check_length(len(self._line))
                start = len(data)
                break
            self._check_length(end - start)
            self._read_line(data[start : end + 1])
            start = end + 1
        return b"".join(parts), data[start:]

    def _check_length(self, size: int) -> None:
        if self._after_data and size > 1:
            raise WireError("a chunk does not end where its size says")
        if size > (MAX_TRAILERS - self._trailers if self._in_trailers else MAX_LINE):
            raise WireError("a line of a chunked body is too long")

    def _read_line(self, line: bytes) -> None:
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise WireError("a line of a chunked body does not end with CRLF")
        if self._after_data:
            if len(line) > 2:
                raise WireError("a chunk does not end where its size says")
            self._after_data = False
        elif self._in_trailers:
            self._trailers += len(line)
            self.done = line == b"\r\n"
        else:
            size = _SIZE.fullmatch(line, 0, len(line) - 2)
            if size is None:
                raise WireError("the size of a chunk is not a hexadecimal number")
            self._left = int(size[1], 16)
            self._in_trailers = not self._left


Body = Counted | Endless | Chunked


def chunks(payload: bytes) -> list[bytes]:
    """`payload` as chunks of at most `MAX_CHUNK` bytes each; of nothing there are none."""
    if len(payload) <= MAX_CHUNK:
        return [b"%x\r\n%b\r\n" % (len(payload), payload)] if payload else []
    pieces = (payload[start : start + MAX_CHUNK] for start in range(0, len(payload), MAX_CHUNK))
    return [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
