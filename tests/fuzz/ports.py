"""Targets of the local ports: SOCKS, HTTP, and both sides of the control protocol."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from backrooms.control.grammar import (
    MAX_LINE,
    BadLine,
    Command,
    ControlMachine,
    ReplyReader,
    ascii_safe,
    parse_command,
    quote,
    split_words,
    unquote,
)
from backrooms.proxy.http import HttpParser
from backrooms.proxy.request import Dialect, RequestRefused
from backrooms.proxy.session import State
from backrooms.proxy.socks import SocksParser
from backrooms.wire.names import check_host
from backrooms.wire.relay import EndReason
from tests.control.sessions import COOKIE, Controller
from tests.fuzz.target import Target, in_any_pieces
from tests.proxy.application import CONNECT_4A, RESOLVE_4A, Application
from tests.proxy.fakes import Echo, Web

SOCKS = (
    b"\x04\x01\x00\x50\xc0\x00\x02\x01user\x00",
    CONNECT_4A % b"echo.example" + b"early",
    RESOLVE_4A % b"some.example",
    b"\x05\x01\x00\x05\x01\x00\x03\x0cecho.example\x00\x50early",
    b"\x05\x02\x00\x02\x01\x04user\x06secret\x05\x01\x00\x04" + bytes(15) + b"\x01\x01\xbb",
    b"\x05\x01\x02\x01\x09level=low\x00\x05\xf0\x00\x03\x0csome.example\x00\x00",
    b"\x05\x01\x00\x05\xf1\x00\x01\xc0\x00\x02\x01\x00\x00",
)
HTTP = (
    b"CONNECT echo.example:80 HTTP/1.1\r\nHost: echo.example:80\r\n\r\nearly",
    b"CONNECT [2001:db8::1]:443 HTTP/1.0\r\nProxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n\r\n",
    b"CONNECT echo.example:80 HTTP/1.1\nX-Tor-Stream-Isolation: level=low\nHost: x\n\n",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost:9080\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET http://echo.example/path?x HTTP/1.1\r\nHost: echo.example\r\nConnection: keep-alive\r\nAccept: */*\r\n\r\n",
    b"POST http://echo.example:8080/ HTTP/1.1\r\nHost: echo.example:8080\r\nContent-Length: 5\r\n\r\nhello",
    b"PUT http://a.example/ HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
)


def _dialect(make: Callable[[], Dialect]) -> Callable[[bytes], Any]:
    """The request out of any pieces; what comes behind it is data for the stream."""

    def feed(pieces: Sequence[bytes]) -> Any:
        parser = make()
        said = b""
        for number, piece in enumerate(pieces):
            try:
                request = parser.receive(piece)
            except RequestRefused as refusal:
                return said + parser.output() + refusal.reply, refusal.reason
            said += parser.output()
            if request is not None:
                assert check_host(request.host.encode()) == request.host
                assert request.kind != "connect" or 0 < request.port < 65536
                _answers(parser)
                return request, said, parser.early + b"".join(pieces[number + 1 :])
        return said, parser.timed_out()

    return in_any_pieces(feed)


def _answers(parser: Dialect) -> None:
    """All that may be said to a request."""
    assert parser.granted() is not None
    for reason in (*EndReason, 0, 255):
        assert parser.failed(reason)
    for one in ("192.0.2.1", "2001:db8::1", "some.example", ""):
        parser.resolved([one])
        parser.resolved_ptr([one])
    assert parser.refused("no \N{SNOWMAN}") is not None


def _session(make: Callable[[], Dialect]) -> Callable[[bytes], Any]:
    """A whole session with streams that answer: it comes to rest, and ends when the application does."""

    def feed(pieces: Sequence[bytes]) -> Any:
        app = Application(make(), web_example=Web(b"page"), some_example=Echo())
        for piece in pieces:
            if app.session.state is not State.CLOSED:
                app.send(piece)
        app.session.resolved(["192.0.2.1"])
        app.session.resolved_ptr(["some.example"])
        app.turn()
        if app.session.state is not State.CLOSED:
            app.eof()
        for now in (700.0, 703.0, 1400.0, 1403.0):
            app.tick(now)
        assert app.session.state is State.CLOSED
        assert len(app.endings) == 1
        return app.seen

    return in_any_pieces(feed)


# control


def _control_machine(data: bytes) -> Any:
    def feed(pieces: Sequence[bytes]) -> Any:
        machine = ControlMachine()
        for piece in pieces:
            machine.receive(piece, 0.0)
        machine.receive_eof(0.0)
        events = machine.events()
        for event in events:
            assert not isinstance(event, Command) or len(event.args) <= MAX_LINE
        return [(event, event.data) if isinstance(event, Command) else event for event in events]

    return in_any_pieces(feed)(data)


def _controller(data: bytes) -> None:
    """Every line is answered by one reply that a controller can read, whatever it was."""
    controller = Controller()
    if data[:1] == b"+":
        controller.answer(f"AUTHENTICATE {COOKIE.hex()}")
    machine = ControlMachine()
    machine.receive(data + b"\r\n", 0.0)
    for command in machine.events():
        if not isinstance(command, Command | BadLine):
            continue
        answer = controller.session.handle(command)
        (reply,) = ReplyReader().feed(answer.reply.encode())
        assert reply.code == answer.reply.code
        if answer.close:
            return


def _reply_reader(data: bytes) -> Any:
    """Replies in pieces: which ones came before an error depends on the cut, nothing else does."""
    whole = ReplyReader().feed(data)
    single = ReplyReader()
    found = [reply for at in range(len(data)) for reply in single.feed(data[at : at + 1])]
    assert found == whole
    for reply in whole:
        assert reply.encode().endswith(b"\r\n")


def _words(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for word in split_words(text):
        assert ascii_safe(word).isascii()
    value, end = unquote(text)
    assert 0 < end <= len(text)
    again = quote(value.decode("utf-8", "surrogateescape"))
    assert unquote(again) == (value, len(again))


def _line(data: bytes) -> None:
    command = parse_command(data)
    if isinstance(command, Command):
        assert re.fullmatch(r"[^ \t\na-z]*", command.name)


_COMMANDS = (
    b"PROTOCOLINFO 1\r\nAUTHCHALLENGE SAFECOOKIE 00ff\r\nAUTHENTICATE " + COOKIE.hex().encode() + b"\r\nQUIT",
    b"+\n.\nGETINFO version ns/all backrooms/status circuit-status\r\nGETINFO ns/id/" + b"AB" * 20,
    b"+x\n.\nGETCONF SocksPort nickname\nSETEVENTS CIRC STREAM extended\nSIGNAL NEWNYM\nSIGNAL RELOAD\nSIGNAL HALT",
    b'+\n.\nUSEFEATURE VERBOSE_NAMES\nCLOSECIRCUIT 7 IfUnused\nGETINFO "net/listeners/socks" a="b\\n\\101"',
    b'AUTHCHALLENGE SAFECOOKIE "nonce\\377"\nAUTHENTICATE "secret\\"" \n',
    b"+POSTDESCRIPTOR purpose\r\n..dots\r\nline\r\n.\r\n",
)
_REPLIES = (
    b"250 OK\r\n250-a=b\r\n250+ns/all=\r\nr x\r\n..dot\r\n.\r\n250 OK\r\n650 CIRC 1 BUILT\r\n",
    b'552-Unrecognized key "x"\r\n552 Unrecognized key "y"\r\n',
)


def targets() -> list[Target]:
    """All targets of this module."""
    refused = (RequestRefused,)
    # An empty line of a controller is a command, and the answer to a short question is long.
    control: dict[str, Any] = {"factor": 4096, "fixed": 4 << 20}
    return [
        Target("proxy.socks", _dialect(SocksParser), lambda: SOCKS, refused),
        Target("proxy.http", _dialect(HttpParser), lambda: HTTP, refused),
        Target("proxy.session.socks", _session(SocksParser), lambda: SOCKS, ()),
        Target("proxy.session.http", _session(HttpParser), lambda: HTTP, ()),
        Target("control.machine", _control_machine, lambda: _COMMANDS, (), **control),
        Target("control.session", _controller, lambda: _COMMANDS, (), **control),
        Target("control.replies", _reply_reader, lambda: _REPLIES, factor=1024),
        Target("control.words", _words, lambda: [b'"a b"', b'"\\101\\n" key="a b" word']),
        Target("control.line", _line, lambda: [b"GETINFO version", b"+LOADCONF"], ()),
    ]
