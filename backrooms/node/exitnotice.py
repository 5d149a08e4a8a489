"""The page that tells who looks up an exit's address what it is, and whom to write to."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from http import HTTPStatus
from pathlib import Path
from typing import Any

import h11
from twisted.internet import error as net
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory, Protocol

from backrooms.errors import ConfigError, RemoteProtocolError
from backrooms.node.driver import Driver, Turn
from backrooms.node.timers import Timers

MAX_CONNECTIONS = 200
MAX_HEAD = 8192
"""Bytes of a request."""
MAX_PAGE = 262144
"""Bytes of a page from a file."""
OUTPUT_LIMIT = 65536
TIME = 15.0
"""Seconds for a whole connection."""

_HEADERS = (
    ("Server", "backrooms"),
    ("Connection", "close"),
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>This is an exit of the Backrooms network</title>
</head>
<body>
<h1>This is an exit of the Backrooms network</h1>
<p>You are most likely here because of traffic from this address. This server is an <em>exit relay</em> of Backrooms,
an onion router. Its users send their traffic through several relays, one after the other, so that nobody can see
both who they are and whom they talk to. The last of these relays, the exit, opens the connection to the destination.
This server is such a last relay: <strong>what you have seen came from a user of the network, not from whoever runs
this server.</strong></p>
<h2>Nothing about the traffic is known here</h2>
<p>An exit does not know who its users are: what reaches it comes from another relay. It keeps no record of
connections, of destinations or of what is sent. There is nothing on this server by which a user could be found, and
taking it away will find nobody.</p>
<h2>If traffic from here bothers you</h2>
<ul>
<li>This exit can be told not to connect to certain addresses and ports. Ask for that at the contact below.</li>
<li>You can block exits on your side. Which relays are exits, and their addresses, is no secret inside the network: a
Backrooms node prints the list with the command <code>backrooms relays</code>. Please block no longer and no wider than
you need to: most who come this way do nothing wrong.</li>
</ul>
<h2>Contact</h2>
<p>The operator of this exit: <strong>{contact}</strong></p>
</body>
</html>
"""


def built_in_page(contact: str) -> bytes:
    """The page for an exit that gives no file of its own."""
    return _PAGE.format(contact=escape(contact or "not given")).encode()


def read_page(file: str | Path) -> bytes:
    """A page of the operator's own; `ConfigError` says why it cannot be had."""
    try:
        page = Path(file).read_bytes()
        page.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"exit.notice_file: {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"exit.notice_file: {file} is not UTF-8 text") from None
    if len(page) > MAX_PAGE:
        raise ConfigError(f"exit.notice_file: {file} has {len(page)} bytes, {MAX_PAGE} are allowed")
    return page


class Answered:
    """The answer is written; the connection may be closed."""


class NoticeMachine:
    """One HTTP connection (`interfaces.Machine`): one request, one answer."""

    def __init__(self, page: bytes, now: float) -> None:
        self._page = page
        self._deadline = now + TIME
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._output = b""
        self._events: list[Answered] = []
        self._answered = False
        self._head = False

    def receive(self, data: bytes, now: float) -> None:
        if self._answered:
            return
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            self._answer(error.error_status_hint, b"This is no request.\n")
            return
        if isinstance(event, h11.Request):
            self._serve(event)

    def receive_eof(self, now: float) -> None:
        if not self._answered:
            raise RemoteProtocolError("closed without a request")

    def events(self) -> list[Answered]:
        events, self._events = self._events, []
        return events

    def output(self) -> bytes:
        output, self._output = self._output[:OUTPUT_LIMIT], self._output[OUTPUT_LIMIT:]
        return output

    def deadline(self) -> float | None:
        return self._deadline

    def tick(self, now: float) -> None:
        if now >= self._deadline:
            raise RemoteProtocolError("too slow")

    def _serve(self, request: h11.Request) -> None:
        self._head = request.method == b"HEAD"
        if request.method not in (b"GET", b"HEAD"):
            self._answer(405, b"Only GET and HEAD.\n", ("Allow", "GET, HEAD"))
        elif request.target.partition(b"?")[0] != b"/":
            self._answer(404, b"There is only one page, /.\n")
        else:
            self._answer(200, self._page)

    def _answer(self, status: int, body: bytes, *more: tuple[str, str]) -> None:
        kind = "text/html" if status == 200 else "text/plain"
        headers = [("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body))), *_HEADERS, *more]
        answer = h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase)
        sent = self._http.send(answer) or b""
        self._output = sent if self._head else sent + (self._http.send(h11.Data(data=body)) or b"")
        self._answered = True
        self._events.append(Answered())


class ExitNotice(Factory):
    """Serves the page at Twisted endpoints, such as "tcp:80".

    `file` is a page of the operator's own, which is sent in place of the built-in one that names `contact`.
    """

    noisy = False

    def __init__(
        self, reactor: Any, timers: Timers, turn: Turn, listen: Sequence[str], contact: str, file: str | Path = ""
    ) -> None:
        self._timers = timers
        self._turn = turn
        self._connections: set[Driver] = set()
        self._ports: list[IListeningPort] = []
        self._endpoints = []
        for index, text in enumerate(listen):
            try:
                endpoint = serverFromString(reactor, text)  # type: ignore[no-untyped-call]
            except (ValueError, TypeError) as error:
                raise ConfigError(f"exit.notice[{index}]: {text!r} is not an endpoint string: {error}") from None
            self._endpoints.append((f"exit.notice[{index}]: {text!r}", endpoint))
        self.configure(contact, file)

    def __len__(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    def configure(self, contact: str, file: str | Path = "") -> None:
        """Change the page; `ConfigError` when the file cannot be used, and nothing has changed then."""
        self._page = read_page(file) if file else built_in_page(contact)

    async def start(self) -> list[IListeningPort]:
        """Listen; `ConfigError` when that is not possible."""
        for name, endpoint in self._endpoints:
            try:
                self._ports.append(await endpoint.listen(self))
            except net.CannotListenError as error:
                await self.stop()
                raise ConfigError(f"{name}: cannot listen: {error.socketError}") from None
        return list(self._ports)

    async def stop(self) -> None:
        """Stop listening and reset what is still connected."""
        ports, self._ports = self._ports, []
        for port in ports:
            await maybeDeferred(port.stopListening)
        for driver in list(self._connections):
            driver.fail(RemoteProtocolError("the page is no longer served"))

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        if len(self._connections) >= MAX_CONNECTIONS or not self._ports:
            return None
        machine = NoticeMachine(self._page, self._timers.now())
        driver: Driver

        def event(_: Answered) -> None:
            driver.close()

        def lost(_: BaseException | None) -> None:
            self._connections.discard(driver)

        driver = Driver(machine, self._timers, self._turn, event, lost)
        self._connections.add(driver)
        return driver
