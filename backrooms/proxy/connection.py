"""One application's connection to a local proxy: its session, its driver, and what it waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.python.failure import Failure

from backrooms.errors import StreamError
from backrooms.node.driver import Driver
from backrooms.node.requests import StreamRequest
from backrooms.proxy.events import (
    Abort,
    Close,
    CloseWrite,
    DeadlineChanged,
    Event,
    HandOver,
    LookUp,
    PauseReading,
    Refused,
    ResumeReading,
)
from backrooms.proxy.forward import ForwardSession
from backrooms.proxy.http import HttpParser
from backrooms.proxy.opener import Stream
from backrooms.proxy.request import Dialect, Request
from backrooms.proxy.session import ProxySession
from backrooms.proxy.socks import SocksParser
from backrooms.proxy.tunnel import Tunnel
from backrooms.wire.relay import EndReason

if TYPE_CHECKING:
    from backrooms.proxy.listeners import ProxyListener

log = Logger()

FAREWELL_TIME = 30.0
"""Seconds a server is given to close a connection on which all has been said."""


def client_of(peer: IAddress) -> tuple[str, str]:
    """An application's address for isolation, and its "ip:port"; "unix" and "unix:0" on a unix socket."""
    if isinstance(peer, IPv4Address):
        return peer.host, f"{peer.host}:{peer.port}"
    if isinstance(peer, IPv6Address):
        return peer.host, f"[{peer.host}]:{peer.port}"
    return "unix", "unix:0"


class Connection:
    """One application. An HTTP application may have several sessions, one after the other."""

    session: Tunnel

    def __init__(self, listener: ProxyListener, peer: IAddress) -> None:
        self._listener = listener
        self._client, self._source = client_of(peer)
        self._look_up: Deferred[None] | None = None
        self.driver = Driver(None, listener.timers, listener.turn, self._event, self._lost)
        if listener.kind == "http":
            self._become(self._forward())
        else:
            self._become(self._serve(SocksParser(listener.password, extended_errors=listener.extended_errors)))

    def _become(self, session: Tunnel) -> None:
        self.session = self.driver.machine = session
        session.on_dirty = self.driver.dirty

    def _serve(self, dialect: Dialect) -> ProxySession:
        listener = self._listener
        return ProxySession(dialect, self._plan, listener.opener.open, listener.timers.now(), listener.limits)

    def _forward(self) -> ForwardSession:
        listener = self._listener
        return ForwardSession(
            self._plan,
            listener.opener.open,
            listener.farewells.add,
            listener.timers.now(),
            listener.limits,
            listener.password,
        )

    def _plan(self, request: Request) -> StreamRequest:
        return self._listener.rules.plan(request, self._client, self._source)

    def _event(self, event: Event) -> None:
        match event:
            case PauseReading():
                self.driver.pause()
            case ResumeReading():
                self.driver.resume()
            case CloseWrite():
                self.driver.close_write()
            case Close():
                self.driver.close()
            case Abort(reason):
                self.driver.fail(StreamError(reason))
            case LookUp():
                self._start(event)
            case Refused(reason):
                log.info("{name} refused a request: {reason}", name=self._listener.name, reason=reason)
            case DeadlineChanged():
                self._listener.timers.set(self.driver, self.session.deadline())
            case HandOver(data):
                self._hand_over(data)

    def _hand_over(self, data: bytes) -> None:
        """The request is none to be forwarded."""
        old, session = self.session, self._serve(HttpParser(self._listener.password))
        old.on_dirty = None
        self._become(session)
        now = self._listener.timers.now()
        session.receive(data, now)
        if old.at_eof:
            session.receive_eof(now)
        self.driver.dirty()

    def _start(self, wanted: LookUp) -> None:
        session = self.session
        assert isinstance(session, ProxySession)
        opener, rules = self._listener.opener, self._listener.rules
        done: Deferred[None]
        if wanted.kind == "resolve":
            answers = maybeDeferred(opener.resolve, wanted.request)
            done = answers.addCallback(
                lambda found: session.resolved([one.address for one in found if rules.believes(one.address)])
            )
        else:
            names = maybeDeferred(opener.resolve_ptr, wanted.request)
            done = names.addCallback(lambda found: session.resolved_ptr([one.address for one in found]))
        self._look_up = done
        done.addErrback(self._look_up_failed)
        done.addBoth(self._look_up_over)

    def _look_up_failed(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, CancelledError):
            return
        if isinstance(error, StreamError):
            self.session.failed(error.reason)
            return
        log.failure("{name}: a look-up failed", failure=failure, name=self._listener.name)
        self.session.failed(EndReason.INTERNAL)

    def _look_up_over(self, _: object) -> None:
        self._look_up = None

    def _lost(self, _: BaseException | None) -> None:
        self.session.lost()
        if self._look_up is not None:
            self._look_up.cancel()
        self._listener.forget(self)


class Farewells:
    """Streams whose applications are done with them: the servers have yet to close their side.

    A reset instead would cut off what a server still sends, and look to it like nothing a browser does.
    """

    def __init__(self, timers: Any) -> None:
        self._timers = timers
        self._calls: dict[Stream, Any] = {}

    def add(self, stream: Stream) -> None:
        """End our side; the stream is reset if the server says more, or does not end its own."""
        now = self._timers.now()
        stream.receive_eof(now)
        if not stream.finished:
            self._calls[stream] = self._timers.at(now + FAREWELL_TIME, self._ender(stream))
            stream.on_dirty = lambda: self._look(stream)
            self._look(stream)

    def _ender(self, stream: Stream) -> Callable[[], None]:
        return lambda: self._end(stream, reset=True)

    def _look(self, stream: Stream) -> None:
        if stream.output():
            self._end(stream, reset=True)
        elif stream.finished:
            self._end(stream, reset=False)

    def _end(self, stream: Stream, reset: bool) -> None:
        call = self._calls.pop(stream, None)
        stream.on_dirty = None
        if call is not None:
            call.cancel()
            if reset:
                stream.abort(EndReason.MISC)

    def stop(self) -> None:
        """Reset what is left."""
        for stream in list(self._calls):
            self._end(stream, reset=True)
