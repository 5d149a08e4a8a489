"""The HTTP proxy's requests for itself: CONNECT and OPTIONS (RFC 9110, and Tor's proposal 365).

One sans-IO parser, and the answers. Requests in absolute form (`GET http://...`) are `forward`'s.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from http import HTTPStatus

import h11

from backrooms.errors import WireError
from backrooms.proxy.request import Request, RequestRefused, check_user, password_fits
from backrooms.wire.names import check_host, ip_literal
from backrooms.wire.relay import EndReason

MAX_HEAD = 16 * 1024
"""Bytes of a request line with its headers."""

_END_OF_HEAD = re.compile(rb"\n\r?\n")
_TOKEN_START = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]")
_PORT = re.compile(rb"[0-9]{1,5}")
ISOLATION = (b"tor-stream-isolation", b"x-tor-stream-isolation")
"""Headers whose values separate circuits; they are for this proxy only."""

_ALLOW = ("Allow", "CONNECT, OPTIONS")

_STATUS = {
    EndReason.RESOLVEFAILED: HTTPStatus.SERVICE_UNAVAILABLE,
    EndReason.NOROUTE: HTTPStatus.SERVICE_UNAVAILABLE,
    EndReason.CONNECTREFUSED: HTTPStatus.FORBIDDEN,
    EndReason.EXITPOLICY: HTTPStatus.FORBIDDEN,
    EndReason.CONNRESET: HTTPStatus.FORBIDDEN,
    EndReason.TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
    EndReason.DESTROY: HTTPStatus.BAD_GATEWAY,
    EndReason.DONE: HTTPStatus.BAD_GATEWAY,
    EndReason.HIBERNATING: HTTPStatus.BAD_GATEWAY,
    EndReason.INTERNAL: HTTPStatus.BAD_GATEWAY,
    EndReason.RESOURCELIMIT: HTTPStatus.BAD_GATEWAY,
    EndReason.TORPROTOCOL: HTTPStatus.BAD_GATEWAY,
}

GRANTED = b"HTTP/1.1 200 Connection established\r\nServer: backrooms\r\nVia: 1.1 backrooms\r\n\r\n"


def response(status: HTTPStatus, text: str = "", *headers: tuple[str, str]) -> bytes:
    """A whole answer that ends the connection; `text` becomes its plain-text body."""
    body = f"{text}\n".encode("ascii", "backslashreplace") if text else b""
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", "Server: backrooms", "Via: 1.1 backrooms"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body:
        lines.append("Content-Type: text/plain; charset=us-ascii")
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode("ascii") + body


def failure(reason: int) -> bytes:
    """The answer for an `EndReason`; an unknown one counts as MISC."""
    known = EndReason(reason) if reason in set(EndReason) else EndReason.MISC
    status = _STATUS.get(known, HTTPStatus.INTERNAL_SERVER_ERROR)
    text = f"The connection could not be made: {known.name}."
    return response(status, text, ("Tor-Request-Failed", f"end/{known.name}"))


def bad_request(reason: str) -> RequestRefused:
    """A request that is wrong. `reason` goes to the application and into the log."""
    return RequestRefused(reason, response(HTTPStatus.BAD_REQUEST, reason))


class HttpParser:
    """Parses one HTTP request (`request.Dialect`). Holds at most `MAX_HEAD` bytes of it.

    With a `password` only CONNECT requests are served that show it.
    """

    def __init__(self, password: bytes = b"") -> None:
        self.early = b""
        self._head = bytearray()
        self._password = password

    def receive(self, data: bytes) -> Request | None:
        # The head's end may straddle two pieces, so the search starts a little before the new one.
        searched = max(0, len(self._head) - 2)
        self._head += data
        if self._head and not _TOKEN_START.match(self._head):
            raise bad_request("this is an HTTP proxy, and what it was sent is not HTTP")
        end = _END_OF_HEAD.search(self._head, searched, MAX_HEAD)
        if end is None:
            if len(self._head) >= MAX_HEAD:
                self._head.clear()
                reason = f"the request's head is longer than {MAX_HEAD} bytes"
                raise RequestRefused(reason, response(HTTPStatus.REQUEST_URI_TOO_LONG, reason))
            return None
        head, self.early = bytes(self._head[: end.end()]), bytes(self._head[end.end() :])
        self._head.clear()
        return _parse(head, self._password)

    def output(self) -> bytes:
        return b""

    def granted(self) -> bytes:
        return GRANTED

    def resolved(self, addresses: Sequence[str]) -> bytes | None:
        return None

    def resolved_ptr(self, names: Sequence[str]) -> bytes | None:
        return None

    def failed(self, reason: int) -> bytes:
        return failure(reason)

    def refused(self, text: str) -> bytes:
        return response(HTTPStatus.BAD_REQUEST, text)

    def timed_out(self) -> bytes:
        return response(HTTPStatus.REQUEST_TIMEOUT, "the request did not come in time")


def _parse(head: bytes, required: bytes) -> Request:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    connection.receive_data(head)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        # Its text quotes the request: where to and by whom must not get into a log.
        raise bad_request("not a valid HTTP request") from None
    if not isinstance(event, h11.Request):
        raise bad_request("not a valid HTTP request")
    if event.method != b"CONNECT":
        raise _not_connect(event)
    host, port = parse_authority(event.target)
    user, password = credentials(event, required)
    token = b",".join(value for name, value in event.headers if name in ISOLATION)
    return Request("connect", host, port, "HTTPCONNECT", user, password, token)


def _not_connect(event: h11.Request) -> RequestRefused:
    """The answer to any other method. A web page may have been led here by DNS rebinding: `Host` gives it away."""
    hosts = [value for name, value in event.headers if name == b"host"]
    if not all(_is_local(host) for host in hosts):
        return bad_request("the Host header must be localhost or an IP address")
    if event.method == b"OPTIONS":
        return RequestRefused("OPTIONS", response(HTTPStatus.OK, "", _ALLOW))
    text = "this is a proxy: it serves CONNECT, OPTIONS and requests with a whole URL"
    return RequestRefused(text, response(HTTPStatus.METHOD_NOT_ALLOWED, text, _ALLOW))


def _is_local(value: bytes) -> bool:
    host, colon, port = value.rpartition(b":")
    if not colon or not _PORT.fullmatch(port):
        host = value
    try:
        name = check_host(host)
    except WireError:
        return False
    return name == "localhost" or ip_literal(name) is not None


def parse_authority(authority: bytes, default: int | None = None) -> tuple[str, int]:
    """Host and port of `host:port`; the port may be missing if there is a `default`."""
    raw, colon, port = authority.rpartition(b":")
    if default is not None and (not colon or authority.endswith((b":", b"]"))):
        raw, port = authority.removesuffix(b":"), b"%d" % default
    elif not colon:
        port = b""
    if not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        raise bad_request("the target is host:port, with a port from 1 to 65535")
    if b":" in raw and not (raw.startswith(b"[") and raw.endswith(b"]")):
        raise bad_request("an IPv6 address stands in brackets")
    try:
        return check_host(raw), int(port)
    except WireError as error:
        raise bad_request(error.reason) from None


def credentials(event: h11.Request, required: bytes) -> tuple[bytes, bytes]:
    """User and password from `Proxy-Authorization: Basic`; the password must be `required` unless that is empty.

    What we cannot read is refused: it was meant to isolate.
    """
    given = [value for name, value in event.headers if name == b"proxy-authorization"]
    if not given:
        if required:
            raise _password_wanted("this proxy asks for a password")
        return b"", b""
    scheme, _, encoded = given[0].partition(b" ")
    if len(given) > 1 or scheme.lower() != b"basic":
        raise bad_request("Proxy-Authorization is given once, and its scheme is Basic")
    try:
        plain = base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        raise bad_request("Proxy-Authorization is not valid base64") from None
    user, _, password = plain.partition(b":")
    try:
        check_user(user)
    except WireError as error:
        raise bad_request(error.reason) from None
    if not password_fits(password, required):
        raise _password_wanted("the password is wrong")
    return user, password


def _password_wanted(reason: str) -> RequestRefused:
    answer = response(
        HTTPStatus.PROXY_AUTHENTICATION_REQUIRED, reason, ("Proxy-Authenticate", 'Basic realm="backrooms"')
    )
    return RequestRefused(reason, answer)
