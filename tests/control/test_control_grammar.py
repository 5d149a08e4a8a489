"""Lines, quoted strings, replies and the machine, with any bytes and in any pieces."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backrooms.control.grammar import (
    MAX_DATA,
    MAX_LINE,
    MAX_REPLY_LINE,
    OK,
    OUTPUT_CHUNK,
    BadLine,
    Command,
    ControlEvent,
    ControlMachine,
    EndOfInput,
    Line,
    Reply,
    ReplyReader,
    ascii_safe,
    parse_command,
    quote,
    reply,
    split_words,
    unquote,
)
from backrooms.errors import RemoteProtocolError, WireError

PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E) | st.just("\t"), max_size=40)
LINES = st.builds(Line, PRINTABLE, st.none() | st.lists(PRINTABLE, max_size=4).map(tuple))
REPLIES = st.builds(
    lambda code, lines, last: Reply(code, (*lines, Line(last))),
    st.integers(100, 999),
    st.lists(LINES, max_size=4),
    PRINTABLE,
)
# Bytes that are likely to mean something.
WIRE = st.lists(
    st.sampled_from([b"\r\n", b"\n", b"\r", b"+", b".", b"..", b"GETINFO", b" ", b'"', b"\\", b"250", b"-", b"\0"])
    | st.binary(max_size=6),
    max_size=30,
).map(b"".join)


def events_of(*pieces: bytes) -> list[ControlEvent]:
    machine = ControlMachine()
    found: list[ControlEvent] = []
    for piece in pieces:
        machine.receive(piece, 0.0)
        found += machine.events()
    return found


# -- text --


@given(st.text(st.characters()))
@example("\ud800")
@example("\udc80\udcff")
def test_anything_becomes_one_line_of_printable_ascii(text: str) -> None:
    safe = ascii_safe(text)
    assert safe.isascii()
    assert safe.replace("\t", " ").isprintable()


@given(st.text())
@example("/srv/r\udce9seau")  # a path whose bytes are not UTF-8
@example('"\\\r\n\t\0\x7f')
@example("\u0661")  # a digit, but not for an octal escape
@example("\x012")
def test_quoted_strings_come_back(text: str) -> None:
    quoted = quote(text)
    assert quoted.isascii()
    assert quoted.isprintable()
    assert unquote(quoted) == (text.encode("utf-8", "surrogateescape"), len(quoted))
    assert split_words(f"a key={quoted}  {quoted}") == ["a", f"key={text}", text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('""', b""),
        (r'"a\"b\\c"', b'a"b\\c'),
        (r'"\n\r\t\'"', b"\n\r\t'"),
        (r'"\101\12\377\400"', b"A\n\xff 0"),
        (r'"\8\x"', b"8x"),
    ],
)
def test_escapes(text: str, expected: bytes) -> None:
    assert unquote(text)[0] == expected


@pytest.mark.parametrize("text", ["", "a", '"', '"abc', '"abc\\', '"abc\\"', ' "a"'])
def test_a_quoted_string_must_be_whole(text: str) -> None:
    with pytest.raises(WireError):
        unquote(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \t ", []),
        ("a  b\tc ", ["a", "b", "c"]),
        ('"a b" c="d e" f=', ["a b", "c=d e", "f="]),
        ('x=""', ["x="]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@pytest.mark.parametrize("text", ['a"b"', '"a"b', 'a="b"c', '"a""b"', 'a="b'])
def test_words_with_misplaced_quotes_are_refused(text: str) -> None:
    with pytest.raises(WireError):
        split_words(text)


@given(st.text())
def test_words_of_any_text(text: str) -> None:
    try:
        words = split_words(text)
    except WireError:
        return
    assert all(isinstance(word, str) for word in words)


# -- commands --


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"QUIT", Command("QUIT")),
        (b"getinfo  version ", Command("GETINFO", "version")),
        (b"SETEVENTS ", Command("SETEVENTS")),
        (b"SIGNAL\tNEWNYM", Command("SIGNAL", "NEWNYM")),
        (b'A "x\ty" z', Command("A", '"x\ty" z')),
        (b"", Command("")),
        (b" x", Command("", "x")),
    ],
)
def test_commands(line: bytes, command: Command) -> None:
    assert parse_command(line) == command
    assert events_of(line + b"\r\n") == events_of(line + b"\n") == [command]


def test_a_command_does_not_show_its_arguments() -> None:
    assert "secret" not in repr(Command("AUTHENTICATE", "secret", b"secret"))


@pytest.mark.parametrize("line", [b"GETINFO \0", b"GETINFO \xc3\xa9", b"\x1b[2J", b"GET\rINFO", b"\x7f"])
def test_what_is_not_printable_ascii_is_a_bad_line(line: bytes) -> None:
    first, second = events_of(line + b"\r\nQUIT\r\n")
    assert isinstance(first, BadLine)
    assert not first.fatal
    assert second == Command("QUIT")


@given(WIRE)
def test_any_bytes_in_any_pieces(data: bytes) -> None:
    whole = events_of(data)
    assert all(isinstance(event, Command | BadLine) for event in whole)
    assert events_of(*(bytes([byte]) for byte in data)) == whole


def test_data_block() -> None:
    data = b"+loadconf  x\r\nSocksPort 1\r\n..dot\r\n...\r\n\xc3\xa9\r\n.\r\nQUIT\r\n"
    block = Command("LOADCONF", "x", b"SocksPort 1\n.dot\n..\n\xc3\xa9\n")
    assert events_of(data) == [block, Command("QUIT")]
    assert events_of(b"+A\n.\n") == [Command("A", "", b"")]
    assert events_of(b"+A\nQUIT\n") == []


def test_a_bad_line_with_a_data_block_is_one_bad_line() -> None:
    bad, good = events_of(b"+\xff\r\nQUIT\r\n.\r\nQUIT\r\n")
    assert isinstance(bad, BadLine)
    assert good == Command("QUIT")


def test_the_longest_line_is_taken_and_a_longer_one_ends_it() -> None:
    assert events_of(b"x" * MAX_LINE + b"\r\n") == [Command("X" * MAX_LINE)]
    for data in (b"x" * (MAX_LINE + 1) + b"\r\nQUIT\r\n", b"x" * 10_000_000, b"\0" * 10_000_000):
        (event,) = events_of(data, b"\r\nQUIT\r\n")
        assert isinstance(event, BadLine)
        assert event.fatal


def test_commands_before_an_endless_line_are_still_heard() -> None:
    first, second = events_of(b"QUIT\r\n" + b"x" * 100_000)
    assert first == Command("QUIT")
    assert isinstance(second, BadLine)


def test_too_much_data_ends_it() -> None:
    (event,) = events_of(b"+A\n", (b"x" * 1023 + b"\n") * (MAX_DATA // 1024 + 1), b".\nQUIT\n")
    assert event == BadLine(f"data of more than {MAX_DATA} bytes", fatal=True)


def test_end_of_input() -> None:
    machine = ControlMachine()
    machine.receive(b"QUIT", 0.0)
    machine.receive_eof(0.0)
    assert machine.events() == [EndOfInput()]


def test_ignored_input_is_not_kept() -> None:
    machine = ControlMachine()
    machine.receive(b"QU", 0.0)
    machine.ignore_input()
    machine.receive(b"IT\r\n", 0.0)
    assert machine.events() == []


# -- output and time --


def test_output_comes_in_pieces_and_tells_when_there_is_room() -> None:
    machine = ControlMachine()
    told: list[str] = []
    machine.on_dirty = lambda: told.append("dirty")
    machine.on_room = lambda: told.append(f"room {machine.pending}")
    sent = bytes(range(256)) * 600
    machine.send(sent)
    assert machine.pending == len(sent)
    pieces = [machine.output() for _ in range(4)]
    assert b"".join(pieces) == sent
    assert [len(piece) for piece in pieces] == [OUTPUT_CHUNK, OUTPUT_CHUNK, len(sent) - 2 * OUTPUT_CHUNK, 0]
    assert told == [
        "dirty",
        f"room {len(sent) - OUTPUT_CHUNK}",
        f"room {len(sent) - 2 * OUTPUT_CHUNK}",
        "room 0",
    ]


def test_expiry() -> None:
    machine = ControlMachine()
    assert machine.deadline() is None
    machine.tick(1e9)
    machine.expire(5.0, "too late")
    assert machine.deadline() == 5.0
    machine.tick(4.9)
    with pytest.raises(RemoteProtocolError, match="too late"):
        machine.tick(5.0)
    machine.expire(None)
    machine.tick(6.0)


# -- replies --


def test_replies_on_the_wire() -> None:
    assert OK.encode() == b"250 OK\r\n"
    assert reply(250, ["a=1", "OK"]).encode() == b"250-a=1\r\n250 OK\r\n"
    block = Reply(250, (Line("k=", ("a", ".", "..b", "")), Line("e=", ()), Line("OK")))
    assert block.encode() == b"250+k=\r\na\r\n..\r\n...b\r\n\r\n.\r\n250+e=\r\n.\r\n250 OK\r\n"


@given(st.text(st.characters()), st.text(st.characters()))
def test_no_text_can_add_a_line(text: str, data: str) -> None:
    encoded = Reply(250, (Line(text, (data,)), Line(text))).encode()
    assert encoded.isascii()
    assert encoded.count(b"\n") == encoded.count(b"\r\n") == 4
    assert len(ReplyReader().feed(encoded)) == 1


@given(st.lists(REPLIES, max_size=4))
def test_replies_come_back_whole_and_byte_by_byte(replies: list[Reply]) -> None:
    encoded = b"".join(answer.encode() for answer in replies)
    assert ReplyReader().feed(encoded) == replies
    reader = ReplyReader()
    assert [answer for byte in encoded for answer in reader.feed(bytes([byte]))] == replies


@given(WIRE)
def test_a_reader_gives_replies_or_a_wire_error(data: bytes) -> None:
    try:
        replies = ReplyReader().feed(data)
    except WireError:
        return
    assert all(isinstance(answer, Reply) for answer in replies)


@pytest.mark.parametrize(
    "data",
    [b"\n", b"OK\n", b"25 OK\n", b"250OK\n", b"050 OK\n", b"250-a\n251 OK\n", b"250 \xe9\n", b"250+a\n\0\n"],
)
def test_what_is_no_reply(data: bytes) -> None:
    with pytest.raises(WireError):
        ReplyReader().feed(data)


def test_a_reply_line_has_a_limit() -> None:
    assert len(ReplyReader().feed(b"250 " + b"x" * (MAX_REPLY_LINE - 4) + b"\r\n")) == 1
    with pytest.raises(WireError, match="more than"):
        ReplyReader().feed(b"250 " + b"x" * MAX_REPLY_LINE)
