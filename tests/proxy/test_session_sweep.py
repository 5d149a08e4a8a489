"""Every state of a session meets every input, and any sequence of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backrooms.proxy.events import CloseWrite, PauseReading, ResumeReading, State
from backrooms.proxy.http import HttpParser
from backrooms.wire.relay import EndReason
from tests.proxy.application import CONNECT_4A, RESOLVE_4A, Application
from tests.proxy.fakes import FakeStream, Server

STATES: dict[str, Callable[[], Application]] = {
    "new": lambda: Application(),
    "request begun": lambda: Application().send(b"\x04\x01"),
    "authenticated": lambda: Application().send(b"\x05\x01\x02\x01\x00\x00"),
    "connecting": lambda: Application().send(CONNECT_4A % b"silent.example"),
    "connecting, EOF": lambda: Application().send(CONNECT_4A % b"silent.example").eof(),
    "looking up": lambda: Application().send(RESOLVE_4A % b"some.example"),
    "tunnel": lambda: Application().send(CONNECT_4A % b"echo.example"),
    "tunnel, EOF": lambda: Application(q_example=Server()).send(CONNECT_4A % b"q.example").eof(),
    "failed": lambda: Application().send(CONNECT_4A % b"refused.example"),
    "refused": lambda: Application().send(b"GET /"),
    "closed": lambda: Application().send(b"\xff"),
    "http": lambda: Application(HttpParser()),
    "http head": lambda: Application(HttpParser()).send(b"CONNECT a"),
}


def stream_does(action: Callable[[FakeStream], None]) -> Callable[[Application], None]:
    def act(app: Application) -> None:
        if app.opener.streams and app.stream.ended is None and app.stream.aborted is None:
            action(app.stream)

    return act


def receives(data: bytes) -> Callable[[Application], None]:
    def act(app: Application) -> None:
        if not app.session._read_eof:
            app.session.receive(data, 50.0)

    return act


INPUTS: dict[str, Callable[[Application], None]] = {
    "nothing": receives(b""),
    "data": receives(b"data"),
    "request": receives(CONNECT_4A % b"echo.example"),
    "zeros": receives(bytes(2000)),
    "eof": lambda app: app.session.receive_eof(50.0),
    "tick": lambda app: app.session.tick(50.0),
    "late tick": lambda app: app.session.tick(5000.0),
    "resolved": lambda app: app.session.resolved(["1.2.3.4"]),
    "resolved_ptr": lambda app: app.session.resolved_ptr(["a.b"]),
    "failed": lambda app: app.session.failed(EndReason.TIMEOUT),
    "connected": stream_does(lambda stream: stream.connect()),
    "network data": stream_does(lambda stream: stream.send(b"z" * 70_000)),
    "network ends": stream_does(lambda stream: stream.end()),
    "network breaks": stream_does(lambda stream: stream.end(EndReason.DESTROY)),
    "pause": stream_does(lambda stream: stream.pause(True)),
    "resume": stream_does(lambda stream: stream.pause(False)),
}


def check(app: Application) -> None:
    assert len(app.endings) <= 1
    assert len(app.of(CloseWrite)) <= 1
    assert (app.session.state is State.CLOSED) == bool(app.endings)
    pauses = app.of(PauseReading, ResumeReading)
    assert all(isinstance(event, PauseReading) == (i % 2 == 0) for i, event in enumerate(pauses))
    assert app.session.paused == (len(pauses) % 2 == 1)
    if app.endings:
        assert app.session.deadline() is None or app.opener.streams
    # whoever is neither in a tunnel nor done has a moment at which it will be
    half_closed = bool(app.of(CloseWrite))
    if app.session.state is not State.CLOSED and (app.session.state is not State.TUNNEL or half_closed):
        assert app.session.deadline() is not None


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("given_input", INPUTS)
def test_sweep(state: str, given_input: str) -> None:
    app = STATES[state]()
    INPUTS[given_input](app)
    check(app.turn())
    finish(app)


def finish(app: Application) -> None:
    """Whatever happened, time or the end of the stream ends the session."""
    if app.session.state is State.TUNNEL:
        INPUTS["network ends"](app)
        app.turn()
    for now in (6000.0, 6001.0, 7000.0, 8000.0, 9000.0):
        app.session.tick(now)
        check(app.turn())
    assert app.session.state is State.CLOSED


@settings(max_examples=300)
@given(st.sampled_from(sorted(STATES)), st.lists(st.sampled_from(sorted(INPUTS)), max_size=12))
def test_any_sequence(state: str, inputs: list[str]) -> None:
    app = STATES[state]()
    for name in inputs:
        INPUTS[name](app)
        check(app.turn())
    finish(app)
