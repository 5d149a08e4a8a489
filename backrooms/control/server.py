"""The control port: listens on Twisted endpoints and serves controllers."""

from __future__ import annotations

import ipaddress
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from backrooms.control.auth import COOKIE_SIZE, Authenticator, write_cookie
from backrooms.control.commands import Answer, Session
from backrooms.control.formats import event_reply
from backrooms.control.grammar import BadLine, Command, ControlEvent, ControlMachine, EndOfInput, reply
from backrooms.control.information import Information
from backrooms.control.view import NodeEvent, NodeView
from backrooms.errors import ConfigError, RemoteProtocolError
from backrooms.keystore.disk import is_full
from backrooms.node.driver import Driver, Turn
from backrooms.node.timers import Timers

log = Logger()

MAX_CONTROLLERS = 64
MAX_PENDING = 8 * 1024 * 1024
"""Bytes that may wait for a controller when there is something new to tell it; with more it is dropped."""
ENOUGH_PENDING = 256 * 1024
"""Bytes waiting for a controller from which on its next command has to wait."""
AUTHENTICATION_TIME = 120.0
"""Seconds a controller has to authenticate."""
CLOSING_TIME = 10.0
"""Seconds a controller has to read the rest when its connection is being closed."""
COOKIE_RETRY = 60.0
"""Seconds between attempts to write the cookie while the disk is full."""
LINGER_TIME = 1.0
"""Seconds to go on swallowing the input of a controller that was refused, so that it can read why."""


class Connection:
    """One controller."""

    def __init__(self, server: ControlServer, session: Session) -> None:
        self.session = session
        self.machine = ControlMachine()
        self.gone: Deferred[None] = Deferred()
        """Fires when the connection is lost."""
        self._server = server
        self._inbox: deque[ControlEvent] = deque()
        self._closing = False
        self._paused = False
        self.machine.expire(server.timers.now() + AUTHENTICATION_TIME, "no authentication in time")
        self.driver = Driver(self.machine, server.timers, server.turn, self.on_event, self.on_lost)
        self.machine.on_dirty = self.driver.dirty
        self.machine.on_room = self.work

    def on_event(self, event: ControlEvent) -> None:
        """The controller has sent a line, or its last."""
        if self._closing:
            if isinstance(event, EndOfInput):
                self.driver.close()
            return
        self._inbox.append(event)
        self.work()

    def work(self) -> None:
        """Answer commands as long as the answers are read."""
        while self._inbox and not self._closing and self.machine.pending < ENOUGH_PENDING:
            event = self._inbox.popleft()
            if isinstance(event, EndOfInput):
                self.close()
            else:
                self._obey(event)
        if bool(self._inbox) == self._paused:
            return
        self._paused = not self._paused
        if self._paused:
            self.driver.pause()
        else:
            self.driver.resume()

    def _obey(self, command: Command | BadLine) -> None:
        session = self.session
        before = session.events
        new = not session.authenticated
        try:
            answer = session.handle(command)
        except Exception:
            log.failure("a control command failed: {name}", name=getattr(command, "name", "bad line"))
            answer = Answer(reply(551, ["Internal error"]))
        self.machine.send(answer.reply.encode())
        if answer.close:
            if isinstance(command, BadLine) and command.fatal:
                self.linger()
            else:
                self.close()
        elif new and session.authenticated:
            self.machine.expire(None)
        if session.events != before:
            self._server.events_changed()
        if answer.then is not None:
            try:
                answer.then()
            except Exception:
                log.failure("a signal from a controller failed")

    def tell(self, name: str, line: bytes) -> None:
        """Send an event, if this controller wants it; drop a controller that does not read."""
        if name not in self.session.events or self._closing:
            return
        if self.machine.pending > MAX_PENDING:
            self._forget()
            self.driver.fail(RemoteProtocolError("does not read its events"))
            return
        self.machine.send(line)

    def close(self, grace: float = CLOSING_TIME) -> None:
        """Obey nothing more and close when all is written, at the latest after `grace` seconds."""
        self._end(grace)
        self.driver.close()

    def linger(self) -> None:
        """Obey nothing more and close in a while.

        Who is in the middle of an endless line would not see our last words if we closed now: the unread
        input would reset the connection.
        """
        self._end(LINGER_TIME)

    def _end(self, grace: float) -> None:
        self._forget()
        if self.driver.lost:
            return
        deadline = self._server.timers.now() + grace
        self.machine.expire(min(deadline, self.machine.deadline() or deadline), "ended by us")
        self._server.timers.set(self.driver, self.machine.deadline())

    def _forget(self) -> None:
        self._closing = True
        self._inbox.clear()
        self.machine.ignore_input()

    def on_lost(self, reason: BaseException | None) -> None:
        """The connection is gone."""
        self._forget()
        if isinstance(reason, RemoteProtocolError):
            log.info("controller dropped: {reason}", reason=reason.reason)
        self._server.lost(self)
        self.gone.callback(None)


class _Factory(Factory):
    noisy = False

    def __init__(self, server: ControlServer) -> None:
        self._server = server

    def buildProtocol(self, addr: IAddress | None) -> Driver | None:
        return self._server.accept()


class ControlServer:
    """Serves `view` to controllers on `endpoints`.

    The endpoints are Twisted server strings (`unix:/path`, `tcp:9051:interface=127.0.0.1`, `systemd:...`)
    with absolute paths; a unix socket gets mode 600 unless the string says otherwise. What other machines
    could reach is refused with a `ConfigError` unless `allow_remote`. With `cookie` false nobody needs to
    authenticate.
    """

    def __init__(
        self,
        view: NodeView,
        endpoints: Sequence[str],
        cookie_path: Path,
        timers: Timers,
        turn: Turn,
        reactor: Any = None,
        *,
        cookie: bool = True,
        allow_remote: bool = False,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self.timers = timers
        self.turn = turn
        self._view = view
        self._endpoints = endpoints
        self._cookie_path = cookie_path.absolute()
        self._reactor = reactor
        self._cookie = cookie
        self._allow_remote = allow_remote
        self._authenticator: Authenticator | None = None
        self._information = Information(view, self.addresses)
        self._ports: list[IListeningPort] = []
        self._connections: set[Connection] = set()
        self._subscribed = False
        self._retry: Any = None

    async def start(self) -> None:
        """Write a new cookie and listen. `ConfigError` when that is not possible; nothing listens then."""
        for text in self._endpoints:
            if not self._allow_remote:
                _refuse_remote(text)
        secret = os.urandom(COOKIE_SIZE) if self._cookie else None
        try:
            if secret is not None:
                write_cookie(self._cookie_path, secret)
        except OSError as error:
            text = f"{self._cookie_path}: cannot write the cookie: {error.strerror}"
            if not is_full(error):
                raise ConfigError(text) from None
            log.warn("{text}; no controller can come in", text=text)
            self._retry = self.timers.at(self.timers.now() + COOKIE_RETRY, self._write_again)
        self._authenticator = Authenticator(secret, self._cookie_path)
        try:
            for text in self._endpoints:
                await self._listen(text)
        except BaseException:
            await self.stop()
            raise

    def _write_again(self) -> None:
        """There was no room for the cookie when we started."""
        assert self._authenticator is not None
        try:
            write_cookie(self._cookie_path, self._authenticator.cookie)
        except OSError:
            self._retry = self.timers.at(self.timers.now() + COOKIE_RETRY, self._write_again)
        else:
            log.info("the cookie is written: controllers can come in")

    async def _listen(self, text: str) -> None:
        is_unix = text.startswith("unix:")
        # between bind and chmod a socket has what the umask leaves of its mode
        old_umask = os.umask(0o177) if is_unix else None
        try:
            endpoint = serverFromString(  # type: ignore[no-untyped-call]
                self._reactor, _private(text) if is_unix else text
            )
            listening = endpoint.listen(_Factory(self))
        except (ValueError, TypeError, LookupError) as error:
            raise ConfigError(f"control.listen: {text!r} is not an endpoint: {error}") from None
        finally:
            if old_umask is not None:
                os.umask(old_umask)
        try:
            port = await listening
        except (CannotListenError, OSError) as error:
            raise ConfigError(f"control.listen: cannot listen on {text!r}: {error}") from None
        self._ports.append(port)
        if not self._allow_remote and not _is_local(port.getHost()):
            # a socket that somebody else made, such as systemd
            raise ConfigError(f"control.listen: {text!r} can be reached from other machines; {_REMEDY}")

    async def stop(self) -> None:
        """Stop listening and close all connections; done when the last one is gone."""
        if self._retry is not None:
            self._retry.cancel()
        ports, self._ports = self._ports, []
        for port in ports:
            await _result(port.stopListening())
        connections = list(self._connections)
        for connection in connections:
            connection.close(LINGER_TIME)
        await gatherResults([connection.gone for connection in connections])

    def addresses(self) -> list[str]:
        """Where we listen now: `IP:PORT` or `unix:/path`."""
        return [_address_text(port.getHost()) for port in self._ports]

    def accept(self) -> Driver | None:
        """A new controller, or None when there are too many."""
        if self._authenticator is None or len(self._connections) >= MAX_CONTROLLERS:
            log.warn("controller refused: there are {count} already", count=len(self._connections))
            return None
        connection = Connection(self, Session(self._view, self._information, self._authenticator))
        self._connections.add(connection)
        return connection.driver

    def lost(self, connection: Connection) -> None:
        """A controller is gone."""
        self._connections.discard(connection)
        self.events_changed()

    def events_changed(self) -> None:
        """Subscribe to the node while some controller wants to hear of it."""
        wanted = any(connection.session.events for connection in self._connections)
        if wanted == self._subscribed:
            return
        self._subscribed = wanted
        if wanted:
            self._view.subscribe(self._on_node_event)
        else:
            self._view.unsubscribe(self._on_node_event)

    def _on_node_event(self, event: NodeEvent) -> None:
        name, event_line = event_reply(event)
        line = event_line.encode()
        for connection in list(self._connections):
            connection.tell(name, line)


_REMEDY = "add ':interface=127.0.0.1' or set control.allow_remote = true"


def _refuse_remote(text: str) -> None:
    """`ConfigError` for a TCP endpoint string that does not name a loopback interface."""
    kind, *parts = _split_endpoint(text)
    if kind not in ("tcp", "tcp6"):
        return  # judged by its address when it listens
    interface = next((part.removeprefix("interface=") for part in parts if part.startswith("interface=")), "")
    if not _is_loopback(interface):
        raise ConfigError(f"control.listen: {text!r} can be reached from other machines; {_REMEDY}")


def _split_endpoint(text: str) -> list[str]:
    """The parts of an endpoint string, cut at colons that have no backslash before them."""
    parts = [""]
    escaped = False
    for char in text:
        if char == ":" and not escaped:
            parts.append("")
        elif char != "\\" or escaped:
            parts[-1] += char
        escaped = char == "\\" and not escaped
    return parts


def _private(text: str) -> str:
    """A `unix:` endpoint string with a mode."""
    modes = [part for part in _split_endpoint(text) if part.startswith("mode=")]
    return text if modes else f"{text}:mode=600"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_local(address: Any) -> bool:
    host = getattr(address, "host", None)
    return _is_loopback(host) if isinstance(host, str) else hasattr(address, "name")


def _address_text(address: Any) -> str:
    host = getattr(address, "host", None)
    if host is None:
        name = address.name
        return f"unix:{os.fsdecode(name)}" if name else "unix:"
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"


async def _result(value: Any) -> None:
    if isinstance(value, Deferred):
        await value
