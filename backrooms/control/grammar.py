"""The grammar of Tor's control protocol (control-spec), without a network.

Everything that is sent is printable ASCII: what is not is escaped, since Tor's controllers lose the
connection over anything else. `ControlMachine` is the node's side, `ReplyReader` the controller's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from backrooms.errors import RemoteProtocolError, WireError

MAX_LINE = 64 * 1024
"""Bytes of a command line, its end not counted. A longer one ends the connection."""
MAX_DATA = 1024 * 1024
"""Bytes of a `+` command's data block."""
MAX_REPLY_LINE = 1024 * 1024
MAX_REPLY = 64 * 1024 * 1024
"""Bytes of one whole reply that a controller accepts."""
OUTPUT_CHUNK = 64 * 1024

_BLANKS = " \t"
_UNPRINTABLE = re.compile(r"[^\t\x20-\x7e]")
_BAD_BYTES = re.compile(rb"[^\t\x20-\x7e]")
_TO_ESCAPE = re.compile(rb"[^\x20-\x7e]|[\"\\]")
_ESCAPES = {b"\\": b"\\\\", b'"': b'\\"', b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}
_NAMED = {"n": b"\n", "r": b"\r", "t": b"\t"}
_OCTAL = re.compile(r"[0-3]?[0-7]{1,2}")
_KEYWORD = re.compile(r"[^ \t]*")
_STATUS = re.compile(rb"([1-9][0-9][0-9])([-+ ])(.*)", re.DOTALL)


# -- text --


def ascii_safe(text: str) -> str:
    """`text` as one line of printable ASCII: anything else becomes a backslash escape as in Python."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def quote(text: str) -> str:
    """`text` as a quoted string: `"` and backslash escaped, bytes outside ASCII in octal."""
    try:
        raw = text.encode("utf-8", "surrogateescape")  # a path may hold any byte
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "surrogatepass")

    def escape(match: re.Match[bytes]) -> bytes:
        return _ESCAPES.get(match[0]) or b"\\%03o" % match[0][0]

    return '"' + _TO_ESCAPE.sub(escape, raw).decode("ascii") + '"'


def unquote(text: str, start: int = 0) -> tuple[bytes, int]:
    """The bytes of the quoted string that begins at `text[start]`, and the index after its closing quote."""
    if text[start : start + 1] != '"':
        raise WireError("a quoted string must begin with a double quote")
    result = bytearray()
    at = start + 1
    while at < len(text):
        char = text[at]
        at += 1
        if char == '"':
            return bytes(result), at
        if char != "\\":
            result += char.encode("utf-8", "surrogatepass")
        elif octal := _OCTAL.match(text, at):
            result.append(int(octal[0], 8))
            at = octal.end()
        elif at < len(text):
            result += _NAMED.get(text[at]) or text[at].encode("utf-8", "surrogatepass")
            at += 1
    raise WireError("a quoted string has no end")


def split_words(text: str) -> list[str]:
    """The words of an argument list, cut at blanks; `"a b"` and `key="a b"` are one word each, unquoted."""
    words: list[str] = []
    at = 0
    while True:
        while at < len(text) and text[at] in _BLANKS:
            at += 1
        if at == len(text):
            return words
        begin = at
        while at < len(text) and text[at] not in _BLANKS and text[at] != '"':
            at += 1
        word = text[begin:at]
        if text[at : at + 1] == '"':
            if word and not word.endswith("="):
                raise WireError("a double quote in the middle of a word")
            value, at = unquote(text, at)
            if at < len(text) and text[at] not in _BLANKS:
                raise WireError("text right after a quoted string")
            word += value.decode("utf-8", "surrogateescape")
        words.append(word)


# -- replies and events --


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a reply; `data` is the lines of the block that follows it (`250+`), None for none."""

    text: str
    data: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply, or an event when the code is 650."""

    code: int
    lines: tuple[Line, ...]

    @property
    def text(self) -> str:
        """The last line: `OK`, or what went wrong."""
        return self.lines[-1].text

    def encode(self) -> bytes:
        """The bytes on the wire. The last line cannot have data."""
        out: list[str] = []
        for line in self.lines[:-1]:
            if line.data is None:
                out.append(f"{self.code}-{ascii_safe(line.text)}")
                continue
            out.append(f"{self.code}+{ascii_safe(line.text)}")
            for item in map(ascii_safe, line.data):
                out.append(f".{item}" if item.startswith(".") else item)
            out.append(".")
        out.append(f"{self.code} {ascii_safe(self.text)}\r\n")
        return "\r\n".join(out).encode("ascii")


def reply(code: int, texts: Iterable[str]) -> Reply:
    """A reply of plain lines."""
    return Reply(code, tuple(Line(text) for text in texts))


OK = reply(250, ["OK"])


class _Lines:
    """Cuts bytes at LF or CRLF; a line may have at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def clear(self) -> None:
        self._buffer.clear()
        self._searched = 0

    def next(self) -> bytes | None:
        """The next line without its end, or None when there is none yet."""
        end = self._buffer.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            if self._searched > self._limit + 1:
                raise WireError(f"line of more than {self._limit} bytes")
            return None
        line = bytes(self._buffer[:end]).removesuffix(b"\r")
        del self._buffer[: end + 1]
        self._searched = 0
        if len(line) > self._limit:
            raise WireError(f"line of more than {self._limit} bytes")
        return line


class ReplyReader:
    """Puts replies and events together out of bytes, for a controller."""

    def __init__(self) -> None:
        self._in = _Lines(MAX_REPLY_LINE)
        self._code = 0
        self._lines: list[Line] = []
        self._text = ""
        self._data: list[str] | None = None
        self._size = 0

    def feed(self, data: bytes) -> list[Reply]:
        """Take bytes; the replies that are complete by now. `WireError` when they are none."""
        self._in.feed(data)
        done: list[Reply] = []
        while (line := self._in.next()) is not None:
            self._size += len(line)
            if self._size > MAX_REPLY:
                raise WireError(f"reply of more than {MAX_REPLY} bytes")
            if (whole := self._take(line)) is not None:
                self._size = 0
                done.append(whole)
        return done

    def _take(self, line: bytes) -> Reply | None:
        if _BAD_BYTES.search(line):
            raise WireError("reply with bytes that are not printable ASCII")
        if self._data is not None:
            self._take_data(line.decode("ascii"), self._data)
            return None
        match = _STATUS.fullmatch(line)
        if match is None:
            raise WireError("reply line without a status code")
        code, kind, text = int(match[1]), match[2], match[3].decode("ascii")
        if self._lines and code != self._code:
            raise WireError(f"status code {code} inside a reply of code {self._code}")
        self._code = code
        if kind == b"+":
            self._text, self._data = text, []
            return None
        self._lines.append(Line(text))
        if kind == b"-":
            return None
        whole, self._lines = Reply(code, tuple(self._lines)), []
        return whole

    def _take_data(self, line: str, data: list[str]) -> None:
        if line == ".":
            self._lines.append(Line(self._text, tuple(data)))
            self._data = None
        else:
            data.append(line[1:] if line.startswith(".") else line)


# -- commands --


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its keyword in upper case, the rest of its line, and the data block of a `+` command.

    What is in `args` and `data` may be a secret (an authentication cookie), so neither is shown.
    """

    name: str
    args: str = ""
    data: bytes | None = None

    def __repr__(self) -> str:
        return f"<Command {self.name}>"


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no command. When `fatal`, no further line will be read."""

    reason: str
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class EndOfInput:
    """The controller will send nothing more."""


ControlEvent: TypeAlias = Command | BadLine | EndOfInput


def parse_command(line: bytes) -> Command | BadLine:
    """A line without its end as a command; any bytes will do."""
    if _BAD_BYTES.search(line):
        return BadLine("control characters or bytes outside ASCII")
    text = line.decode("ascii")
    name = _KEYWORD.match(text)[0]  # type: ignore[index]  # it matches anything, if only nothing
    return Command(name.upper(), text[len(name) :].strip(_BLANKS))


class ControlMachine:
    """A control connection, seen from the node (`interfaces.Machine`).

    Its events are `Command`, `BadLine` and `EndOfInput`; answers go to `send`. A connection that outlives the
    deadline given to `expire` ends with a `RemoteProtocolError`.
    """

    def __init__(self) -> None:
        self.on_dirty: Callable[[], None] = _nothing
        """Called when `send` was."""
        self.on_room: Callable[[], None] = _nothing
        """Called when `output` has handed out something."""
        self._in = _Lines(MAX_LINE)
        self._out = bytearray()
        self._events: list[ControlEvent] = []
        self._deaf = False
        self._block: Command | BadLine | None = None
        self._data = bytearray()
        self._deadline: float | None = None
        self._overdue = ""

    @property
    def pending(self) -> int:
        """Bytes that wait to be sent."""
        return len(self._out)

    def receive(self, data: bytes, now: float) -> None:
        if self._deaf:
            return
        self._in.feed(data)
        try:
            while not self._deaf and (line := self._in.next()) is not None:
                self._take(line)
        except WireError as error:
            self.ignore_input()
            self._events.append(BadLine(error.reason, fatal=True))

    def receive_eof(self, now: float) -> None:
        self._events.append(EndOfInput())

    def events(self) -> list[ControlEvent]:
        events, self._events = self._events, []
        return events

    def output(self) -> bytes:
        chunk = bytes(self._out[:OUTPUT_CHUNK])
        del self._out[:OUTPUT_CHUNK]
        if chunk:
            self.on_room()
        return chunk

    def deadline(self) -> float | None:
        return self._deadline

    def tick(self, now: float) -> None:
        if self._deadline is not None and now >= self._deadline:
            raise RemoteProtocolError(self._overdue)

    def send(self, data: bytes) -> None:
        """Queue bytes for the controller."""
        self._out += data
        self.on_dirty()

    def expire(self, deadline: float | None, reason: str = "") -> None:
        """End the connection at `deadline` for `reason`; None lifts an earlier one."""
        self._deadline = deadline
        self._overdue = reason

    def ignore_input(self) -> None:
        """Read no more commands, not even those received already."""
        self._deaf = True
        self._in.clear()
        self._data.clear()

    def _take(self, line: bytes) -> None:
        if self._block is not None:
            self._take_data(line, self._block)
        elif line.startswith(b"+"):
            self._block = parse_command(line[1:])
        else:
            self._events.append(parse_command(line))

    def _take_data(self, line: bytes, head: Command | BadLine) -> None:
        if line != b".":
            self._data += line.removeprefix(b".") + b"\n"
            if len(self._data) > MAX_DATA:
                raise WireError(f"data of more than {MAX_DATA} bytes")
            return
        if isinstance(head, Command):
            head = Command(head.name, head.args, bytes(self._data))
        self._events.append(head)
        self._block = None
        self._data.clear()


def _nothing() -> None:
    """What callbacks are before somebody sets them."""
