"""Plain requests through the HTTP proxy, without a network: one exchange, and one after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backrooms.errors import CircuitError, ConfigError, PathError, StreamError
from backrooms.node.requests import StreamRequest
from backrooms.proxy.events import Abort, Close, CloseWrite, PauseReading, Refused, ResumeReading, State
from backrooms.proxy.http import MAX_HEAD
from backrooms.proxy.opener import Stream
from backrooms.wire.relay import EndReason
from tests.proxy.application import Browser
from tests.proxy.fakes import Ends, Silent

PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
NOTHING = b"HTTP/1.1 204 No Content\r\n\r\n"


def post(*headers: str, body: bytes = b"") -> bytes:
    lines = ["POST http://web.example/form HTTP/1.1", "Host: web.example", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


# one exchange


def test_a_page() -> None:
    app = Browser().get("http://web.example/page")
    assert app.stream.received == b"GET /page HTTP/1.1\r\nHost: web.example\r\n\r\n"
    assert app.read() == b""
    assert app.serve(PAGE).read() == PAGE
    assert app.session.state is State.REQUEST
    assert not app.endings


def test_request_and_answer_byte_by_byte() -> None:
    app = Browser()
    for byte in b"GET http://web.example/ HTTP/1.1\r\nHost: x\r\n\r\n":
        app.send(bytes([byte]))
    for byte in PAGE:
        app.serve(bytes([byte]))
    assert app.read() == PAGE
    assert app.session.state is State.REQUEST


def test_a_long_body_passes_as_it_comes() -> None:
    app = Browser().get()
    app.serve(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n")
    app.read()
    for _ in range(4):
        assert len(app.serve(bytes(50_000)).read()) == 50_000
    assert app.session.state is State.REQUEST


def test_chunks_are_written_anew() -> None:
    app = Browser().get()
    app.serve(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n2\r\nbc\r\n")
    assert app.read() == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    app.serve(b"10000\r\n" + bytes(65536) + b"\r\n")  # more than one chunk of ours
    app.read()
    assert app.serve(b"0\r\nTrailer: x\r\n\r\n").read() == b"0\r\n\r\n"
    assert app.session.state is State.REQUEST


def test_an_answer_that_ends_with_its_stream() -> None:
    app = Browser().get()
    app.serve(b"HTTP/1.0 200 OK\r\n\r\nhello")
    app.stream.end()
    app.turn()
    assert app.read() == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    assert app.session.state is State.REQUEST


def test_http_1_0_is_answered_and_closed() -> None:
    app = Browser().send(b"GET http://web.example/ HTTP/1.0\r\n\r\n")
    app.stream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    app.turn()
    assert app.seen == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"
    assert app.of(CloseWrite)
    assert app.eof().endings == [Close()]


def test_uploads() -> None:
    app = Browser()
    app.send(post("Content-Length: 10", body=b"01234"))
    assert app.stream.received.endswith(b"\r\n\r\n01234")
    app.send(b"56789")
    assert app.stream.received.endswith(b"\r\n\r\n0123456789")
    assert app.turn().seen == b""
    app.stream.send(PAGE)
    assert app.turn().seen == PAGE


def test_an_upload_in_chunks() -> None:
    app = Browser()
    app.send(post("Transfer-Encoding: chunked", body=b"3;a=b\r\nab"))
    app.send(b"c\r\n0\r\nX: y\r\n\r\n" + post("Content-Length: 0"))
    assert app.stream.received.endswith(b"\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
    app.stream.send(PAGE)
    app.turn()
    assert len(app.opener.streams) == 2  # the next request was not part of the body


def test_a_bad_chunk_is_refused() -> None:
    app = Browser().send(post("Transfer-Encoding: chunked", body=b"5\nhello\n0\n\n"))
    assert app.seen.startswith(b"HTTP/1.1 400 ")
    assert app.stream.aborted == EndReason.MISC
    app = Browser().send(post("Transfer-Encoding: chunked", body=b"1\r\na\r\n"))
    app.stream.send(PAGE[:-1])
    app.turn()
    app.send(b"hello\r\n")
    assert app.endings == [Abort(EndReason.TORPROTOCOL)]


def test_continue_is_asked_for_and_passed_on() -> None:
    app = Browser().send(post("Content-Length: 4", "Expect: 100-continue"))
    assert b"Expect: 100-continue" in app.stream.received
    app.stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert app.turn().seen == b"HTTP/1.1 100 Continue\r\n\r\n"
    app.send(b"data")
    assert app.stream.received.endswith(b"data")
    app.stream.send(PAGE)
    assert app.turn().seen.endswith(PAGE)
    assert app.session.state is State.REQUEST


def test_an_answer_before_the_upload_is_through_ends_the_connection() -> None:
    app = Browser().send(post("Content-Length: 1000000", "Expect: 100-continue"))
    app.stream.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!")
    app.turn()
    assert app.seen == b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!"
    assert app.stream.aborted == EndReason.MISC
    app.send(b"data that nobody wants")
    assert app.tick(5.0).endings == [Close()]


def test_an_upload_waits_for_the_network() -> None:
    app = Browser().send(post("Content-Length: 100"))
    app.stream.pause(True)
    assert app.turn().of(PauseReading, ResumeReading) == [PauseReading()]
    app.stream.pause(False)
    assert app.turn().of(PauseReading, ResumeReading) == [PauseReading(), ResumeReading()]


# failures


@pytest.mark.parametrize(
    ("reason", "code"), [(EndReason.RESOLVEFAILED, 503), (EndReason.CONNECTREFUSED, 403), (EndReason.TIMEOUT, 504)]
)
def test_streams_that_fail(reason: EndReason, code: int) -> None:
    app = Browser(bad_example=Ends(reason)).get("http://bad.example/")
    assert app.seen.startswith(b"HTTP/1.1 %d " % code)
    assert b"\r\nTor-Request-Failed: end/%s\r\n" % reason.name.encode() in app.seen
    assert app.of(CloseWrite)
    assert app.eof().endings == [Close()]


def test_what_the_opener_raises_is_answered() -> None:
    def refuses(error: Exception) -> Callable[[StreamRequest], Stream]:
        def open_stream(request: StreamRequest) -> Stream:
            raise error

        return open_stream

    for error, code in (
        (StreamError(EndReason.EXITPOLICY), 403),
        (PathError("3 relays of 20 fit"), 503),
        (CircuitError("lost"), 502),
    ):
        app = Browser()
        app.session._open_stream = refuses(error)
        assert app.get().seen.startswith(b"HTTP/1.1 %d " % code)


def test_what_the_plan_refuses() -> None:
    for error, code in ((ConfigError("no such level"), 400), (StreamError(EndReason.EXITPOLICY, "private"), 403)):
        app = Browser()

        def plan(_: object, error: Exception = error) -> StreamRequest:
            raise error

        app.session._plan = plan
        assert app.get().seen.startswith(b"HTTP/1.1 %d " % code)
        assert app.of(Refused)
        assert not app.opener.streams


def test_a_stream_that_never_connects() -> None:
    app = Browser(slow_example=Silent()).get("http://slow.example/")
    assert app.session.deadline() == 121
    assert app.tick(121.0).seen.startswith(b"HTTP/1.1 504 ")
    assert app.stream.aborted == EndReason.MISC


def test_a_connected_server_may_think_for_long() -> None:
    app = Browser().get()
    assert app.session.deadline() is None or app.tick(2.0).session.deadline() is None
    assert app.tick(5000.0).seen == b""


def test_a_server_that_says_nothing() -> None:
    app = Browser().get()
    app.stream.end()
    assert app.turn().seen.startswith(b"HTTP/1.1 502 ")
    assert b"Tor-Request-Failed: end/DONE" in app.seen


def test_a_server_that_does_not_speak_http() -> None:
    app = Browser().get()
    app.serve(b"SSH-2.0")
    assert app.seen.startswith(b"HTTP/1.1 502 ")
    assert b"not valid HTTP" in app.seen
    assert app.stream.aborted == EndReason.MISC


@pytest.mark.parametrize("reason", [EndReason.DONE, EndReason.CONNRESET])
def test_half_an_answer_resets_the_connection(reason: EndReason) -> None:
    app = Browser().get()
    app.serve(PAGE[:-1])
    app.stream.end(reason)
    app.turn()
    assert app.seen == PAGE[:-1]
    assert app.endings == [Abort(reason)]


def test_an_endless_body_that_breaks_is_not_ended() -> None:
    app = Browser().get()
    app.serve(b"HTTP/1.1 200 OK\r\n\r\nhello")
    app.stream.end(EndReason.DESTROY)
    app.turn()
    assert not app.seen.endswith(b"0\r\n\r\n")
    assert app.endings == [Abort(EndReason.DESTROY)]


def test_an_answer_before_a_reset_is_whole() -> None:
    app = Browser().send(post("Content-Length: 5", body=b"12345"))
    app.stream.send(PAGE)
    app.stream.end(EndReason.CONNRESET)
    assert app.turn().seen == PAGE
    assert not app.endings


def test_bad_chunks_of_a_server() -> None:
    app = Browser().get()
    app.serve(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert app.endings == [Abort(EndReason.TORPROTOCOL)]


# applications that go


def test_lost_application() -> None:
    app = Browser().get()
    app.session.lost()
    assert app.stream.aborted == EndReason.MISC
    idle = Browser().get().serve(PAGE)
    idle.session.lost()
    assert idle.stream.aborted is None
    assert idle.let_go == [idle.stream]


def test_an_application_that_shuts_its_side_gets_its_answer() -> None:
    app = Browser().get().eof()
    assert not app.stream.eof
    app.stream.send(b"HTTP/1.1 200 OK\r\n\r\nhel")
    app.turn()
    assert not app.endings
    app.stream.end()
    app.turn()
    assert b"\r\nConnection: close\r\n" in app.seen
    assert app.seen.endswith(b"\r\n\r\n3\r\nhel\r\n0\r\n\r\n")
    assert app.endings == [Close()]


def test_half_an_upload_is_none() -> None:
    app = Browser().send(post("Content-Length: 10", body=b"123")).eof()
    assert app.endings == [Close()]
    app.session.lost()
    assert app.stream.aborted == EndReason.MISC
    assert not app.stream.eof


# not to be forwarded


@pytest.mark.parametrize(
    "data",
    [
        b"CONNECT a.b:443 HTTP/1.1\r\nHost: a.b\r\n\r\n\x16\x03\x01",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"\x05\x01\x00",
        b"\r\n\r\n",
        b"A" * MAX_HEAD,
    ],
    ids=lambda data: data[:20],
)
def test_hand_over(data: bytes) -> None:
    app = Browser().send(data)
    assert app.handed_over == [data]
    assert app.session.state is State.CLOSED
    assert app.session.deadline() is None
    later = Browser().get().serve(PAGE).send(data.lstrip())
    assert later.handed_over == [data.lstrip()] or not data.strip()
    assert later.let_go == later.opener.streams or not data.strip()


def test_too_long_a_head() -> None:
    app = Browser()
    for _ in range(20):
        app.send(b"GET http://a.b/" + b"a" * 1000)
        if app.handed_over:
            break
    assert len(app.handed_over[0]) <= MAX_HEAD + 1100


def test_password() -> None:
    app = Browser(password=b"secret").get()
    assert app.seen.startswith(b"HTTP/1.1 407 ")
    assert not app.opener.streams
    app = Browser(password=b"secret").get("http://web.example/", "Proxy-Authorization: Basic OnNlY3JldA==")
    assert app.serve(PAGE).seen == PAGE


def test_a_slow_head() -> None:
    app = Browser().send(b"GET http://web")
    assert app.tick(30.0).seen.startswith(b"HTTP/1.1 408 ")
    app = Browser()
    assert app.session.deadline() == 30
    assert app.tick(30.0).seen.startswith(b"HTTP/1.1 408 ")
