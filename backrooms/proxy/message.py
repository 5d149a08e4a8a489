"""Heads of plain HTTP requests and answers, and what a proxy changes in them (RFC 9110, section 7.6). Pure.

h11 reads and writes the heads on both sides, so that what we pass on is in one form only, whatever came in. What tells
the destination of a proxy is left out: there is no `Via`, and nothing is said of who asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus

import h11

from backrooms.errors import WireError
from backrooms.proxy.body import Body, Chunked, Counted, Endless
from backrooms.proxy.http import ISOLATION, MAX_HEAD, bad_request, credentials, parse_authority
from backrooms.proxy.request import Request

MAX_ANSWER_HEAD = 64 * 1024
HTTP_PORT = 80

_FORWARDED = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [A-Za-z][A-Za-z0-9+.-]*://")
_URL = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([/?][^#]*)?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_HOP_BY_HOP = {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings"}
_OF_THE_CLIENT = {b"host", b"via", b"forwarded", b"x-forwarded-for", *ISOLATION}
"""Headers that are not for the destination: ours, and what proxies before us told of the client."""
_KEPT = {b"host", b"content-length"}
"""Headers that `Connection` cannot make hop-by-hop, or it could move the end of a message."""

Headers = list[tuple[bytes, bytes]]
Message = h11.Request | h11.Response | h11.InformationalResponse


def is_forwarded(head: bytes | bytearray) -> bool:
    """Whether a request's head starts like one in absolute form, such as `GET http://...`."""
    return _FORWARDED.match(head) is not None


@dataclass(slots=True)
class PlainRequest:
    """A request to be forwarded. `head` is what the server is sent; `body` reads what the application sends behind."""

    request: Request
    head: bytes = field(repr=False)
    body: Body
    keep_alive: bool
    """Whether the application's connection may go on afterwards."""
    repeatable: bool
    """Whether it may be sent again if the server closed the connection without an answer."""
    chunks: bool
    """Whether the application knows chunked bodies."""
    client: h11.Connection = field(repr=False)
    """Writes heads to the application."""
    server: h11.Connection = field(repr=False)
    """Reads heads of the server."""


@dataclass(slots=True)
class Answer:
    """A head of the server. `head` is what the application gets; `body` is None when more heads follow (1xx)."""

    head: bytes
    body: Body | None
    rest: bytes = b""
    """What came behind the head."""
    in_chunks: bool = False
    """Whether the application gets the body in chunks."""
    close: bool = False
    """Whether the application's connection ends with this answer."""
    reusable: bool = False
    """Whether the server's connection may carry another request."""
    switched: bool = False
    """Whether both sides now speak another protocol (101)."""


def read_request(head: bytes, password: bytes = b"") -> PlainRequest:
    """A request in absolute form; `RequestRefused` with the answer for anything else."""
    client = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    client.receive_data(head)
    try:
        event = client.next_event()
    except h11.RemoteProtocolError:
        raise bad_request("not a valid HTTP request") from None  # its text quotes the request
    if not isinstance(event, h11.Request) or event.http_version not in (b"1.0", b"1.1"):
        raise bad_request("not a valid HTTP request")
    host, port, path = _target(event)
    user, token_password = credentials(event, password)
    token = b",".join(_values(event, *ISOLATION))
    request = Request("connect", host, port, "HTTP", user, token_password, token)
    modern = event.http_version == b"1.1"
    body = _request_body(event, modern)
    options = _words(event, b"connection") | _words(event, b"proxy-connection")
    upgrade = modern and body.done and _asks_for_websocket(event, options)
    keep_alive = modern and b"close" not in options
    headers = _kept(event, _OF_THE_CLIENT if modern else _OF_THE_CLIENT | {b"expect"})
    if isinstance(body, Chunked):
        headers.append((b"Transfer-Encoding", b"chunked"))
    if upgrade:
        headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    elif not keep_alive:
        headers.append((b"Connection", b"close"))
    server = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER_HEAD)
    written = server.send(
        h11.Request(method=event.method, target=path, headers=[(b"Host", _authority(host, port)), *headers])
    )
    repeatable = event.method in (b"GET", b"HEAD", b"OPTIONS") and body.done and not upgrade
    return PlainRequest(request, written or b"", body, keep_alive, repeatable, modern, client, server)


def read_answer(plain: PlainRequest, data: bytes, close: bool) -> Answer | None:
    """The server's next head, once `data` completes it; `WireError` when it is none.

    `close` says that the application's connection shall end with this answer.
    """
    server = plain.server
    if data:
        server.receive_data(data)
    try:
        event = server.next_event()
    except h11.RemoteProtocolError:
        raise WireError("the server's answer is not valid HTTP") from None
    if event is h11.NEED_DATA:
        if not b"HTTP/".startswith(server.trailing_data[0][:5]):
            raise WireError("the server's answer is not valid HTTP")  # it may wait for us, and never end its line
        return None
    if isinstance(event, h11.InformationalResponse):
        return _informational(plain, event)
    if not isinstance(event, h11.Response):
        raise WireError("the server's answer is not valid HTTP")
    if event.status_code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        # Taken for ours, it would have the application show the password that it has for us.
        raise WireError("the server asks for a proxy's password")
    body = _answer_body(plain, event)
    # For want of a length, the end of the body is told by chunks, or else by closing.
    in_chunks = not isinstance(body, Counted) and plain.chunks
    close = close or not plain.keep_alive or (isinstance(body, Endless | Chunked) and not in_chunks)
    headers = _kept(event, {b"tor-request-failed"})
    if close:
        headers.append((b"Connection", b"close"))
    head = plain.client.send(h11.Response(status_code=event.status_code, headers=headers, reason=event.reason))
    reusable = (
        event.http_version == b"1.1"
        and plain.keep_alive
        and not isinstance(body, Endless)
        and b"close" not in _words(event, b"connection")
    )
    return Answer(head or b"", body, server.trailing_data[0], in_chunks, close, reusable)


def _informational(plain: PlainRequest, event: h11.InformationalResponse) -> Answer:
    headers = _kept(event, set())
    switched = event.status_code == HTTPStatus.SWITCHING_PROTOCOLS
    if switched:
        headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    elif not plain.chunks:
        return Answer(b"", None)  # HTTP/1.0 has no such answers
    again = h11.InformationalResponse(status_code=event.status_code, headers=headers, reason=event.reason)
    rest = plain.server.trailing_data[0] if switched else b""
    return Answer(plain.client.send(again) or b"", None, rest, switched=switched)


# targets


def _target(event: h11.Request) -> tuple[str, int, bytes]:
    """Host, port and the path that the server is asked for."""
    url = _URL.fullmatch(event.target)
    if url is None:
        raise bad_request("the target is not a URL")
    scheme = url[1].lower()
    if scheme in (b"https", b"wss"):
        raise bad_request(f"{scheme.decode()}:// goes through this proxy by CONNECT only")
    if scheme not in (b"http", b"ws"):
        raise bad_request("this proxy forwards http:// and ws:// only")
    if b"@" in url[2]:
        raise bad_request("a URL with a user name is not forwarded; use the Authorization header")
    host, port = parse_authority(url[2], HTTP_PORT)
    path = url[3] or (b"*" if event.method == b"OPTIONS" else b"/")
    return host, port, path if path[:1] != b"?" else b"/" + path


def _authority(host: str, port: int) -> bytes:
    """What `Host` says."""
    name = f"[{host}]" if ":" in host else host
    return (name if port == HTTP_PORT else f"{name}:{port}").encode("ascii")


# headers


def _values(message: Message, *names: bytes) -> list[bytes]:
    return [value for name, value in message.headers if name in names]


def _words(message: Message, name: bytes) -> set[bytes]:
    """The words of a header that is a list, in lower case."""
    return {word.strip().lower() for value in _values(message, name) for word in value.split(b",")}


def _kept(message: Message, dropped: Iterable[bytes]) -> Headers:
    """The end-to-end headers, as they were written and in their order."""
    gone = _HOP_BY_HOP | set(dropped) | (_words(message, b"connection") - _KEPT)
    return [
        (raw, value)
        for raw, value in message.headers.raw_items()
        if (name := raw.lower()) not in gone and not name.startswith(b"proxy-")
    ]


def _asks_for_websocket(event: h11.Request, options: set[bytes]) -> bool:
    """The one protocol that we let a connection switch to. A wish for another (h2c) is not passed on."""
    return event.method == b"GET" and b"upgrade" in options and _words(event, b"upgrade") == {b"websocket"}


# bodies


def _length(message: Message) -> int | None:
    """What `Content-Length` says. Together with `Transfer-Encoding` it would let two readers see two messages."""
    values = _values(message, b"content-length")
    if not values:
        return None
    if len(values) > 1 or not _LENGTH.fullmatch(values[0]) or _values(message, b"transfer-encoding"):
        raise WireError("the length of the body is given in more ways than one")
    return int(values[0])


def _request_body(event: h11.Request, modern: bool) -> Body:
    try:
        length = _length(event)
    except WireError as error:
        raise bad_request(error.reason) from None
    if not _values(event, b"transfer-encoding"):
        return Counted(length or 0)
    if not modern:
        raise bad_request("HTTP/1.0 has no Transfer-Encoding")
    return Chunked()  # h11 refuses every other coding


def _answer_body(plain: PlainRequest, event: h11.Response) -> Body:
    length = _length(event)
    chunked = bool(_values(event, b"transfer-encoding"))
    if plain.head.startswith(b"HEAD ") or event.status_code in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return Counted(0)
    if chunked:
        if _values(event, b"transfer-encoding") != [b"chunked"]:
            raise WireError("the server's answer has an unknown coding")
        return Chunked()
    return Endless() if length is None else Counted(length)
