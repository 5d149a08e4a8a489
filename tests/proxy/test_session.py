"""One connection to a proxy, without a network: request, tunnel, endings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backrooms.errors import CircuitError, PathError, StreamError
from backrooms.node.requests import StreamRequest
from backrooms.proxy.events import (
    Abort,
    Close,
    CloseWrite,
    DeadlineChanged,
    LookUp,
    PauseReading,
    Refused,
    ResumeReading,
)
from backrooms.proxy.http import GRANTED, HttpParser
from backrooms.proxy.opener import Stream
from backrooms.proxy.socks import HTTP_PAGE, SocksParser, socks5_reply
from backrooms.wire.relay import EndReason
from tests.proxy.application import CONNECT_4A, GRANTED_4A, REJECTED_4A, RESOLVE_4A, Application
from tests.proxy.fakes import BreaksOff, Ends, Server


def test_granted_only_when_connected() -> None:
    app = Application().send(CONNECT_4A % b"silent.example")
    assert app.seen == b""
    app.send(b"early")
    assert app.stream.received == b"early"
    app.stream.send(b"too soon to be true")
    assert app.turn().seen == b""
    app.stream.connect("1.2.3.4")
    assert app.turn().seen == GRANTED_4A + b"too soon to be true"


def test_early_data_goes_to_the_stream() -> None:
    app = Application().send(CONNECT_4A % b"echo.example" + b"hello")
    assert app.stream.received == b"hello"
    assert app.seen == GRANTED_4A + b"hello"


def test_trickle() -> None:
    app = Application()
    for byte in CONNECT_4A % b"echo.example" + b"hello":
        app.send(bytes([byte]))
    assert app.seen == GRANTED_4A + b"hello"


def test_failure_is_answered_and_closed() -> None:
    app = Application().send(CONNECT_4A % b"refused.example" + b"data")
    assert app.seen == REJECTED_4A
    assert app.of(CloseWrite)
    assert not app.endings
    app.eof()
    assert app.endings == [Close()]


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
        app = Application(HttpParser())
        app.session._open_stream = refuses(error)
        app.send(b"CONNECT a.b:1 HTTP/1.0\r\n\r\n")
        assert app.seen.startswith(b"HTTP/1.1 %d " % code)
        assert bool(app.of(Refused)) == (code != 403)


@pytest.mark.parametrize("reason", list(EndReason))
def test_failure_in_each_dialect(reason: EndReason) -> None:
    for dialect, request in (
        (SocksParser(), CONNECT_4A % b"x.example"),
        (SocksParser(), b"\x05\x01\x00\x05\x01\x00\x03\x09x.example\x00\x50"),
        (HttpParser(), b"CONNECT x.example:80 HTTP/1.0\r\n\r\n"),
    ):
        app = Application(dialect, x_example=Ends(reason)).send(request)
        assert app.seen.endswith(dialect.failed(reason))
        assert app.tick(2.0).tick(5.0).endings == [Close()]


def test_application_ends_first() -> None:
    app = Application().send(CONNECT_4A % b"echo.example" + b"last words").eof()
    assert app.stream.eof
    assert app.seen == GRANTED_4A + b"last words"
    assert app.endings == [Close()]
    app.session.lost()
    assert app.stream.aborted is None


def test_network_ends_first() -> None:
    app = Application(quiet_example=Server()).send(CONNECT_4A % b"quiet.example")
    app.stream.send(b"x" * 200_000)
    app.stream.end()
    app.turn()
    assert app.seen == GRANTED_4A + b"x" * 200_000
    assert app.of(CloseWrite) == [CloseWrite()]
    assert not app.endings
    app.send(b"still sending")
    assert app.stream.received == b"still sending"
    app.eof()
    assert app.endings == [Close()]
    app.session.lost()
    assert app.stream.aborted is None


def test_half_closed_and_silent() -> None:
    app = Application(quiet_example=Server()).send(CONNECT_4A % b"quiet.example")
    app.stream.end()
    app.turn().tick(1000.0)
    assert app.session.deadline() == 1600.0
    app.send(b"x", 1500.0)
    assert not app.tick(2099.0).endings
    assert len(app.tick(2100.0).endings) == 1


def test_broken_stream_resets_after_what_came() -> None:
    app = Application(breaks_example=BreaksOff(b"half")).send(CONNECT_4A % b"breaks.example" + b"GET")
    assert app.seen == GRANTED_4A + b"half"
    assert app.endings == [Abort(EndReason.DESTROY)]


def test_broken_stream_does_not_wait_for_a_stalled_application() -> None:
    app = Application(breaks_example=BreaksOff(b"x" * 200_000))
    app.session.receive(CONNECT_4A % b"breaks.example" + b"GET", 1.0)
    app.session.events()
    assert app.session.output() == GRANTED_4A
    assert len(app.session.output()) == 65536  # and no room from here on
    assert app.session.events() == []
    app.session.tick(10.0)
    app.session.tick(12.0)
    assert Abort(EndReason.DESTROY) in app.session.events()


def test_network_ends_before_it_connects() -> None:
    app = Application(x_example=Ends(EndReason.DONE)).send(CONNECT_4A % b"x.example")
    assert app.seen == REJECTED_4A


def test_backpressure() -> None:
    app = Application(quiet_example=Server()).send(CONNECT_4A % b"quiet.example")
    app.stream.pause(True)
    assert app.turn().session.paused
    app.turn()
    app.stream.pause(False)
    app.turn()
    assert app.of(PauseReading, ResumeReading) == [PauseReading(), ResumeReading()]
    assert not app.session.paused


def test_reading_goes_on_after_a_failure() -> None:
    app = Application().send(CONNECT_4A % b"silent.example")
    app.stream.pause(True)
    app.turn()
    app.stream.end(EndReason.TIMEOUT)
    app.turn()
    assert app.of(PauseReading, ResumeReading) == [PauseReading(), ResumeReading()]


def test_no_resume_after_eof() -> None:
    app = Application(quiet_example=Server()).send(CONNECT_4A % b"quiet.example").eof()
    app.stream.pause(True)
    app.turn()
    app.stream.pause(False)
    app.turn()
    assert not app.of(PauseReading, ResumeReading)


@pytest.mark.parametrize("sent", [b"", b"\x04", b"\x05\x01\x00"])
def test_slow_request(sent: bytes) -> None:
    app = Application().send(sent)
    assert app.session.deadline() == 30.0
    assert not app.tick(29.9).endings
    app.tick(30.0)
    assert app.of(Refused) == [Refused("the request did not come in time")]
    app.eof()
    assert app.endings == [Close()]


def test_slow_http_request() -> None:
    app = Application(HttpParser()).send(b"CONNECT").tick(30.0)
    assert app.seen.startswith(b"HTTP/1.1 408 ")


def test_stream_that_never_connects() -> None:
    app = Application().send(CONNECT_4A % b"silent.example", 5.0)
    assert app.session.deadline() == 125.0
    app.tick(125.0)
    assert app.seen == REJECTED_4A
    assert app.stream.aborted == EndReason.MISC
    assert app.tick(127.0).endings == [Close()]


def test_connected_stream_has_no_deadline() -> None:
    app = Application().send(CONNECT_4A % b"echo.example")
    assert app.session.deadline() is None


def test_application_goes_away() -> None:
    for sent, aborted in ((b"silent.example", EndReason.MISC), (b"echo.example", EndReason.MISC)):
        app = Application().send(CONNECT_4A % sent)
        app.session.lost()
        assert app.stream.aborted == aborted
        assert app.stream.on_dirty is None
        assert app.session.deadline() is None
        assert app.session.events() == []
        assert app.session.output() == b""


def test_page_for_browsers() -> None:
    app = Application().send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert app.seen == HTTP_PAGE
    assert app.of(CloseWrite)
    assert app.send(b"more" * 10_000).seen == HTTP_PAGE


def test_garbage_is_closed_at_once() -> None:
    app = Application().send(b"\xff" * 10_000)
    assert app.seen == b""
    assert app.endings == [Close()]


@pytest.mark.parametrize("user", [b"level=hugh", b"a,level=", b"level=custom:0", b"level=low;level=medium"])
def test_wrong_level(user: bytes) -> None:
    request = b"\x05\x01\x02\x01%c%s\x00\x05\x01\x00\x03\x0cecho.example\x00\x50" % (len(user), user)
    app = Application().send(request)
    assert app.seen == b"\x05\x02\x01\x00" + socks5_reply(1)
    assert not app.opener.requests
    assert len(app.of(Refused)) == 1
    app = Application(HttpParser())
    app.send(b"CONNECT echo.example:80 HTTP/1.0\r\nTor-Stream-Isolation: %s\r\n\r\n" % user)
    assert app.seen.startswith(b"HTTP/1.1 400 ")
    assert b"level" in app.seen.partition(b"\r\n\r\n")[2]
    assert not app.opener.requests


def test_look_ups() -> None:
    app = Application().send(RESOLVE_4A % b"some.example")
    look_up = app.of(LookUp)[0]
    assert isinstance(look_up, LookUp)
    assert (look_up.kind, look_up.request.host) == ("resolve", "some.example")
    app.send(b"noise")
    app.session.resolved(["::1", "1.2.3.4"])
    app.turn()
    assert app.seen == b"\x00\x5a\x00\x00\x01\x02\x03\x04"
    app.session.resolved(["5.6.7.8"])
    assert app.turn().tick(1.0).tick(3.0).endings == [Close()]
    assert len(app.seen) == 8


def test_look_up_of_an_address_asks_nobody() -> None:
    app = Application().send(b"\x05\x01\x00\x05\xf0\x00\x01\x01\x02\x03\x04\x00\x00")
    assert app.seen == b"\x05\x00\x05\x00\x00\x01\x01\x02\x03\x04\x00\x00"
    assert not app.of(LookUp)


def test_reverse_look_up() -> None:
    request = b"\x05\x01\x00\x05\xf1\x00\x01\x01\x02\x03\x04\x00\x00"
    app = Application().send(request)
    app.session.resolved_ptr(["host.example"])
    assert app.turn().seen == b"\x05\x00\x05\x00\x00\x03\x0chost.example\x00\x00"
    app = Application().send(request)
    app.session.resolved_ptr([])
    assert app.turn().seen == b"\x05\x00" + socks5_reply(4)


def test_look_up_answered_after_eof() -> None:
    app = Application().send(RESOLVE_4A % b"some.example").eof()
    assert not app.endings
    app.session.resolved(["1.2.3.4"])
    assert app.turn().seen == b"\x00\x5a\x00\x00\x01\x02\x03\x04"
    assert app.endings == [Close()]


def test_look_up_that_takes_too_long() -> None:
    app = Application().send(RESOLVE_4A % b"some.example", 0.0).tick(120.0)
    assert app.seen == REJECTED_4A
    app.session.resolved(["1.2.3.4"])
    assert app.turn().seen == REJECTED_4A


def test_http_tunnel() -> None:
    app = Application(HttpParser()).send(b"CONNECT echo.example:80 HTTP/1.1\r\nHost: x\r\n\r\nhello")
    assert app.seen == GRANTED + b"hello"


def test_deadline_is_told() -> None:
    app = Application().send(CONNECT_4A % b"silent.example")
    before = len(app.of(DeadlineChanged))
    app.stream.connect()
    app.turn()
    assert len(app.of(DeadlineChanged)) > before
