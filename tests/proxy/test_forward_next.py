"""Several plain requests on one connection: order, limits, streams that are used again, other protocols."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.levels import LOW
from backrooms.proxy.events import Close, CloseWrite, PauseReading, ResumeReading, State
from backrooms.proxy.http import MAX_HEAD
from backrooms.wire.relay import EndReason
from tests.proxy.application import Browser
from tests.proxy.fakes import FakeStream, Server

PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
GET = b"GET http://web.example/%d HTTP/1.1\r\nHost: web.example\r\n\r\n"


def test_the_stream_is_used_again() -> None:
    app = Browser()
    for _ in range(3):
        app.get()
        assert app.serve(PAGE).read() == PAGE
    assert len(app.opener.streams) == 1
    assert app.stream.received.count(b"GET / HTTP/1.1") == 3
    assert app.stream.aborted is None


DIFFERENT: dict[str, tuple[str, ...]] = {
    "host": ("http://other.example/",),
    "port": ("http://web.example:81/",),
    "user": ("http://web.example/", "Proxy-Authorization: Basic YTpi"),
    "level": ("http://web.example/", "Tor-Stream-Isolation: level=low"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_place_or_isolation_has_another_stream(name: str) -> None:
    app = Browser(other_example=Server()).get().serve(PAGE)
    app.get(*DIFFERENT[name])
    first, second = app.opener.streams
    assert app.let_go == [first]
    assert first.aborted is None
    assert second.received.startswith(b"GET / HTTP/1.1\r\n")
    assert app.serve(PAGE).seen == PAGE * 2
    if name == "level":
        assert app.opener.requests[1].level == LOW


@pytest.mark.parametrize(
    "answer",
    [
        PAGE.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"),
        PAGE.replace(b"1.1", b"1.0"),
        PAGE + b"and something that nobody asked for",
    ],
)
def test_a_stream_that_may_not_be_used_again(answer: bytes) -> None:
    app = Browser().get().serve(answer)
    assert app.let_go == app.opener.streams
    app.get().serve(PAGE)
    assert len(app.opener.streams) == 2
    assert app.read() == PAGE * 2


def test_a_post_has_a_fresh_stream() -> None:
    """It could not be repeated if the server had closed the old one."""
    app = Browser().get().serve(PAGE)
    app.get("http://web.example/", "Content-Length: 0", method="POST")
    assert len(app.opener.streams) == 2
    app.serve(PAGE).get()
    assert len(app.opener.streams) == 2


def test_a_server_that_closes_an_idle_stream() -> None:
    app = Browser().get().serve(PAGE)
    app.stream.end()
    app.turn()
    assert app.let_go == app.opener.streams
    assert app.get().serve(PAGE).read() == PAGE * 2


def test_a_server_that_speaks_unasked() -> None:
    app = Browser().get().serve(PAGE)
    first = app.stream
    app.serve(b"HTTP/1.1 408 Too Late\r\n\r\n").get()
    assert app.stream is not first
    assert app.serve(PAGE).seen == PAGE * 2


@pytest.mark.parametrize("reason", [EndReason.DONE, EndReason.CONNRESET])
def test_a_request_into_a_closing_stream_is_repeated(reason: EndReason) -> None:
    app = Browser().get().serve(PAGE).get("http://web.example/again")
    assert len(app.opener.streams) == 1
    app.stream.end(reason)
    app.turn()
    assert len(app.opener.streams) == 2
    assert app.stream.received == b"GET /again HTTP/1.1\r\nHost: web.example\r\n\r\n"
    app.stream.end(reason)  # once is enough
    app.turn()
    assert len(app.opener.streams) == 2
    assert b"HTTP/1.1 %d " % (502 if reason == EndReason.DONE else 403) in app.seen


def test_a_server_that_has_begun_to_answer_is_not_asked_again() -> None:
    app = Browser().get().serve(PAGE).get().serve(b"HTTP/1.1 2")
    app.stream.end(EndReason.CONNRESET)
    app.turn()
    assert len(app.opener.streams) == 1
    assert b"HTTP/1.1 403 " in app.seen


def test_requests_ahead_wait_for_their_turn() -> None:
    app = Browser().send(GET % 1 + GET % 2 + b"\r\n" + GET % 3)
    for number in (1, 2, 3):
        assert app.opener.streams[0].received.count(b"GET ") == number
        app.stream.send(PAGE)
        assert app.turn().seen == PAGE * number
    assert len(app.opener.streams) == 1


def test_what_is_sent_ahead_is_bounded() -> None:
    app = Browser().get()
    while not app.session.paused:
        app.send(GET % 7 * 10)
        assert len(app.session._buffer) < MAX_HEAD + 1000
    answered = 0
    while app.session._buffer:
        app.stream.send(PAGE)
        app.turn()
        answered += 1
    assert app.of(PauseReading, ResumeReading) == [PauseReading(), ResumeReading()]
    assert app.seen == PAGE * answered


def test_a_limit_counts_from_the_request_even_after_a_long_download() -> None:
    app = Browser(slow_example=Server()).get(now=1.0)
    app.send(b"GET http://silent.example/ HTTP/1.1\r\nHost: a\r\n\r\n", 2.0)
    app.serve(PAGE)  # much later, but nobody has told the session what time it is
    assert app.session.deadline() == 2.0
    app.tick(5000.0)
    assert app.seen == PAGE
    assert app.session.deadline() == 5120.0
    assert b"HTTP/1.1 504 " in app.tick(5120.0).seen


def test_an_idle_connection_is_closed_in_silence() -> None:
    app = Browser().get().serve(PAGE)
    app.tick(10.0)
    assert app.session.deadline() == 70
    app.tick(70.0)
    assert app.seen == PAGE
    assert app.endings == [Close()]
    assert app.let_go == app.opener.streams


def test_a_second_head_that_does_not_come() -> None:
    app = Browser().get().serve(PAGE).send(b"GET http://web", 50.0)
    assert app.session.deadline() == 80
    app.send(b".example/", 79.0)
    assert b"HTTP/1.1 408 " in app.tick(80.0).seen


def test_close_is_kept() -> None:
    app = Browser().get("http://web.example/", "Connection: close")
    assert b"Connection: close\r\n" in app.stream.received
    app.serve(PAGE).send(GET % 2)
    assert b"Connection: close\r\n" in app.seen
    assert app.of(CloseWrite)
    assert len(app.opener.streams) == 1


# other protocols

WEBSOCKET = ("http://web.example/socket", "Connection: Upgrade", "Upgrade: websocket")
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_websockets() -> None:
    app = Browser().get(*WEBSOCKET).send(b"early ")
    head = bytes(app.stream.received)
    assert head.endswith(b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert app.serve(SWITCHED + b"frames").read() == SWITCHED + b"frames"
    app.send(b"GET http://this.is.data/")
    assert app.stream.received == head + b"early GET http://this.is.data/"
    app.stream.pause(True)
    assert app.turn().of(PauseReading)
    app.stream.pause(False)
    assert app.tick(1000.0).serve(b"more").read() == b"more"
    app.eof(1001.0)
    assert app.stream.eof
    app.stream.end()
    assert app.turn().endings == [Close()]


def test_a_websocket_that_is_refused_is_an_answer() -> None:
    app = Browser().get(*WEBSOCKET).serve(PAGE)
    assert app.read() == PAGE
    assert app.session.state is State.REQUEST


def test_a_websocket_that_breaks() -> None:
    app = Browser().get(*WEBSOCKET).serve(SWITCHED)
    app.stream.end(EndReason.DESTROY)
    app.turn()
    assert [type(event).__name__ for event in app.endings] == ["Abort"]


# anything


class Pages(Server):
    """Answers each request with its own path."""

    def on_data(self, stream: FakeStream, data: bytes) -> None:
        while (end := stream.received.find(b"\r\n\r\n")) >= 0:
            path = bytes(stream.received).split(b" ")[1]
            del stream.received[: end + 4]
            stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path))


THREE = (
    b"GET http://pages.example/1 HTTP/1.1\r\nHost: a\r\n\r\n"
    b"\r\nGET http://pages.example/22 HTTP/1.1\r\nHost: a\r\n\r\n"
    b"CONNECT a.b:1 HTTP/1.1\r\nHost: a\r\n\r\n"
)


@given(st.lists(st.integers(0, len(THREE)), max_size=8))
def test_pieces_make_no_difference(cuts: list[int]) -> None:
    app = Browser(pages_example=Pages())
    for start, end in itertools.pairwise([0, *sorted(cuts), len(THREE)]):
        app.send(THREE[start:end])
    line = b"HTTP/1.1 200 OK\r\nContent-Length: "
    assert app.seen == line + b"2\r\n\r\n/1" + line + b"3\r\n\r\n/22"
    assert [data[:11] for data in app.handed_over] == [b"CONNECT a.b"]


ACTIONS: dict[str, Callable[[Browser], object]] = {
    "get": lambda app: app.send(GET % 1),
    "post": lambda app: app.send(b"POST http://web.example/ HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab"),
    "chunks": lambda app: app.send(
        b"POST http://web.example/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab"
    ),
    "old": lambda app: app.send(b"GET http://echo.example/ HTTP/1.0\r\n\r\n"),
    "nowhere": lambda app: app.send(b"GET http://refused.example/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "websocket": lambda app: app.get(*WEBSOCKET),
    "data": lambda app: app.send(b"0123456"),
    "connect": lambda app: app.send(b"CONNECT a.b:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "page": lambda app: app.stream.send(PAGE),
    "half a page": lambda app: app.stream.send(PAGE[:-2]),
    "endless": lambda app: app.stream.send(b"HTTP/1.1 200 OK\r\n\r\nhello"),
    "interim": lambda app: app.stream.send(b"HTTP/1.1 103 Early\r\n\r\n"),
    "switched": lambda app: app.stream.send(SWITCHED),
    "noise": lambda app: app.stream.send(b"\xff\x00\r\n\r\n"),
    "ends": lambda app: app.stream.end(),
    "breaks": lambda app: app.stream.end(EndReason.DESTROY),
    "pause": lambda app: app.stream.pause(True),
    "resume": lambda app: app.stream.pause(False),
    "eof": lambda app: app.eof(),
    "tick": lambda app: app.tick(40.0),
    "late": lambda app: app.tick(2000.0),
}
OF_THE_STREAM = {"page", "half a page", "endless", "interim", "switched", "noise", "ends", "breaks", "pause", "resume"}
OF_THE_APPLICATION = {"get", "post", "chunks", "old", "nowhere", "websocket", "data", "connect"}


def act(app: Browser, name: str) -> None:
    if name in OF_THE_STREAM:
        if not app.opener.streams or app.stream.on_dirty is None or app.stream.ended is not None:
            return
    elif name in OF_THE_APPLICATION and app.session.at_eof:
        return
    if not app.handed_over:
        ACTIONS[name](app)
        app.turn()


@given(st.lists(st.sampled_from(sorted(ACTIONS)), max_size=14))
def test_any_sequence(names: list[str]) -> None:
    app = Browser()
    for name in names:
        act(app, name)
        assert len(app.endings) <= 1
        assert len(app.of(CloseWrite)) <= 1
        pauses = app.of(PauseReading, ResumeReading)
        assert all(isinstance(event, PauseReading) == (i % 2 == 0) for i, event in enumerate(pauses))
        assert len(app.session._buffer) < MAX_HEAD + 1000
    if not app.handed_over and app.session.state is not State.CLOSED:
        if app.session.state in (State.ANSWER, State.TUNNEL):
            act(app, "ends")
        for now in (3000.0, 3700.0, 4400.0, 5100.0, 5800.0):
            app.tick(now)
        waits_for_server = app.opener.streams and app.stream.on_dirty is not None and app.stream.ended is None
        assert app.session.state is State.CLOSED or waits_for_server
    app.session.lost()
    for stream in app.opener.streams:
        assert stream.on_dirty is None
        assert stream.aborted is not None or stream.ended is not None or stream in app.let_go or stream.eof
