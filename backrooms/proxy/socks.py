"""SOCKS 4, 4a and 5: one sans-IO parser, and the answers.

SOCKS 4 and 4a as in their protocol notes, SOCKS 5 as in RFC 1928 and RFC 1929, with Tor's RESOLVE (4, 4a, 5)
and RESOLVE_PTR (5; a SOCKS 4 answer has no room for a name). No BIND, no UDP.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from enum import IntEnum

from backrooms.errors import WireError
from backrooms.proxy.request import Kind, Request, RequestRefused, check_user, password_fits
from backrooms.wire.names import check_host, ip_literal
from backrooms.wire.relay import EndReason

MAX_FIELD = 255
"""Bytes of a SOCKS 4 user id or 4a host name; SOCKS 5 fields have their length in one byte."""

NO_AUTHENTICATION, USER_PASSWORD, NO_METHOD = 0x00, 0x02, 0xFF
GRANTED_4, REJECTED_4 = 0x5A, 0x5B

_COMMANDS: dict[int, Kind] = {0x01: "connect", 0xF0: "resolve", 0xF1: "resolve_ptr"}


class Reply(IntEnum):
    """Reply codes of SOCKS 5 (RFC 1928, section 6), and Tor's extended ones (proposal 304) as far as we have a use."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8
    SERVICE_NOT_FOUND = 0xF0
    SERVICE_UNREACHABLE = 0xF3
    SERVICE_TIMEOUT = 0xF7


_REPLIES = {
    EndReason.RESOLVEFAILED: Reply.HOST_UNREACHABLE,
    EndReason.NOROUTE: Reply.HOST_UNREACHABLE,
    EndReason.CONNECTREFUSED: Reply.CONNECTION_REFUSED,
    EndReason.CONNRESET: Reply.CONNECTION_REFUSED,
    EndReason.EXITPOLICY: Reply.NOT_ALLOWED,
    EndReason.TIMEOUT: Reply.TTL_EXPIRED,
}

# The extended codes tell of services inside the network, and nothing else.
_SERVICE_REPLIES = {
    EndReason.RESOLVEFAILED: Reply.SERVICE_NOT_FOUND,
    EndReason.NOROUTE: Reply.SERVICE_UNREACHABLE,
    EndReason.DESTROY: Reply.SERVICE_UNREACHABLE,
    EndReason.TIMEOUT: Reply.SERVICE_TIMEOUT,
}
_SERVICES = (".backrooms", ".onion")

_PAGE = b"""<!DOCTYPE html>
<html>
<head><title>This is a SOCKS proxy, not an HTTP proxy</title></head>
<body>
<h1>This is a SOCKS proxy, not an HTTP proxy.</h1>
<p>Your program is set to use this address as an HTTP proxy, or opened it as a web page. Set it as a SOCKS
proxy instead (SOCKS 5 with host names resolved by the proxy), or use the HTTP proxy of Backrooms, which has
a port of its own.</p>
</body>
</html>
"""

HTTP_PAGE = (
    b"HTTP/1.0 501 This is a SOCKS proxy, not an HTTP proxy\r\n"
    b"Server: backrooms\r\n"
    b"Content-Type: text/html; charset=us-ascii\r\n"
    b"Content-Length: %d\r\n"
    b"Connection: close\r\n"
    b"\r\n%s" % (len(_PAGE), _PAGE)
)
"""The answer to a client that speaks HTTP to a SOCKS port."""


def reply_code(reason: int) -> Reply:
    """The SOCKS 5 reply for an `EndReason`; what has none of its own is a general failure."""
    return _REPLIES.get(EndReason(reason), Reply.GENERAL_FAILURE) if reason in set(EndReason) else Reply.GENERAL_FAILURE


def socks4_reply(code: int, address: str = "0.0.0.0", port: int = 0) -> bytes:
    """`00 | code | port u16 | IPv4 address`."""
    return bytes([0, code]) + port.to_bytes(2, "big") + ipaddress.IPv4Address(address).packed


def socks5_reply(code: int, host: str = "0.0.0.0", port: int = 0) -> bytes:
    """`05 | code | 00 | type | address | port u16`; `host` is an IP literal or a name of up to 255 bytes."""
    address = ip_literal(host)
    if address is None:
        name = host.encode("ascii")
        where = bytes([3, len(name)]) + name
    else:
        where = bytes([1 if address.version == 4 else 4]) + address.packed
    return bytes([5, code, 0]) + where + port.to_bytes(2, "big")


class SocksParser:
    """Parses one SOCKS request (`request.Dialect`). Holds less than 1 KB of it, whatever the client sends.

    With a `password` only clients are served that show it, which SOCKS 4 cannot. With `extended_errors`, failures of
    services inside the network have the codes of Tor's proposal 304.
    """

    def __init__(self, password: bytes = b"", *, extended_errors: bool = False) -> None:
        self.early = b""
        self._required = password
        self._extended_errors = extended_errors
        self._host = ""
        self._buffer = bytearray()
        self._out = bytearray()
        self._step: Callable[[], Request | bool] = self._version
        self._version_5 = False
        self._must_authenticate = False
        self._user = b""
        self._password = b""

    def receive(self, data: bytes) -> Request | None:
        self._buffer += data
        while True:
            done = self._step()
            if isinstance(done, Request):
                self.early = bytes(self._buffer)
                self._buffer.clear()
                return done
            if not done:
                return None

    def output(self) -> bytes:
        out = bytes(self._out)
        self._out.clear()
        return out

    # Steps: True when one message was taken, False when more bytes are needed.

    def _version(self) -> bool:
        if not self._buffer:
            return False
        first = self._buffer[0]
        if first == 4:
            self._step = self._socks4
        elif first == 5:
            self._version_5 = True
            self._step = self._methods
        elif first in b"GHPCODTghpcodt":  # GET, HEAD, POST, CONNECT, OPTIONS, DELETE, TRACE ...
            raise RequestRefused("the client speaks HTTP to a SOCKS port", HTTP_PAGE)
        else:
            raise RequestRefused(f"no SOCKS version starts with byte {first:#04x}", b"")
        return True

    def _socks4(self) -> Request | bool:
        # 04 | command | port u16 | address | user id, NUL | (4a) host name, NUL
        if self._required:
            raise RequestRefused("SOCKS 4 cannot show the password", socks4_reply(REJECTED_4))
        if len(self._buffer) < 8:
            return False
        command, port, address = (
            self._buffer[1],
            int.from_bytes(self._buffer[2:4], "big"),
            bytes(self._buffer[4:8]),
        )
        user = self._terminated(8, "user id")
        if user is None:
            return False
        end = 8 + len(user) + 1
        protocol, host = "SOCKS4", b"%d.%d.%d.%d" % tuple(address)
        if address[:3] == bytes(3) and address[3]:
            name = self._terminated(end, "host name")
            if name is None:
                return False
            end += len(name) + 1
            protocol, host = "SOCKS4A", name
        self._user = user
        self._check_user(socks4_reply(REJECTED_4))
        del self._buffer[:end]
        return self._request(command, host, port, protocol, protocol == "SOCKS4")

    def _terminated(self, start: int, what: str) -> bytes | None:
        end = self._buffer.find(0, start, start + MAX_FIELD + 1)
        if end >= 0:
            return bytes(self._buffer[start:end])
        if len(self._buffer) > start + MAX_FIELD:
            raise RequestRefused(f"SOCKS 4 {what} longer than {MAX_FIELD} bytes", socks4_reply(REJECTED_4))
        return None

    def _methods(self) -> bool:
        # 05 | count u8 | methods
        if len(self._buffer) < 2 or len(self._buffer) < 2 + self._buffer[1]:
            return False
        methods = bytes(self._buffer[2 : 2 + self._buffer[1]])
        del self._buffer[: 2 + len(methods)]
        # User and password isolate streams, so they are asked for whenever the client has them to give.
        if USER_PASSWORD in methods:
            self._must_authenticate = True
            self._out += bytes([5, USER_PASSWORD])
        elif NO_AUTHENTICATION in methods and not self._required:
            self._out += bytes([5, NO_AUTHENTICATION])
        else:
            raise RequestRefused("the client offers no SOCKS 5 method that we have", bytes([5, NO_METHOD]))
        self._step = self._authentication
        return True

    def _authentication(self) -> bool:
        # 01 | length u8 | user | length u8 | password; some clients send it without having been asked
        if not self._buffer:
            return False
        if self._buffer[0] == 5 and not self._must_authenticate:
            self._step = self._socks5
            return True
        if self._buffer[0] != 1:
            reason = f"byte {self._buffer[0]:#04x} where SOCKS 5 user and password should start"
            reply = b"\x01\x01" if self._must_authenticate else socks5_reply(Reply.GENERAL_FAILURE)
            raise RequestRefused(reason, reply)
        if len(self._buffer) < 2 or len(self._buffer) < 3 + self._buffer[1]:
            return False
        split = 2 + self._buffer[1]
        end = split + 1 + self._buffer[split]
        if len(self._buffer) < end:
            return False
        self._user, self._password = bytes(self._buffer[2:split]), bytes(self._buffer[split + 1 : end])
        self._check_user(b"\x01\x01")
        if not password_fits(self._password, self._required):
            raise RequestRefused("the password is wrong", b"\x01\x01")
        del self._buffer[:end]
        self._out += b"\x01\x00"
        self._step = self._socks5
        return True

    def _socks5(self) -> Request | bool:
        # 05 | command | 00 | type | address | port u16
        if len(self._buffer) < 5:
            return False
        version, command, _, kind, length = self._buffer[:5]
        if version != 5:
            raise RequestRefused(f"SOCKS 5 request with version {version}", socks5_reply(Reply.GENERAL_FAILURE))
        start = 4
        if kind == 1:
            size = 4
        elif kind == 4:
            size = 16
        elif kind == 3:
            start, size = 5, length
        else:
            reason = f"SOCKS 5 address type {kind}"
            raise RequestRefused(reason, socks5_reply(Reply.ADDRESS_TYPE_NOT_SUPPORTED))
        end = start + size + 2
        if len(self._buffer) < end:
            return False
        raw, port = bytes(self._buffer[start : end - 2]), int.from_bytes(self._buffer[end - 2 : end], "big")
        del self._buffer[:end]
        host = raw if kind == 3 else str(ipaddress.ip_address(raw)).encode()
        return self._request(command, host, port, "SOCKS5", kind != 3)

    def _check_user(self, reply: bytes) -> None:
        try:
            check_user(self._user)
        except WireError as error:
            raise RequestRefused(error.reason, reply) from None

    def _request(self, command: int, raw: bytes, port: int, protocol: str, literal: bool) -> Request:
        kind = _COMMANDS.get(command)
        if kind is None or (kind == "resolve_ptr" and not self._version_5):
            reason = f"command {command:#04x} of {protocol} is not supported"
            raise RequestRefused(reason, self._failure(Reply.COMMAND_NOT_SUPPORTED))
        try:
            host = check_host(raw)
        except WireError as error:
            raise RequestRefused(error.reason, self._failure(Reply.GENERAL_FAILURE)) from None
        if kind == "resolve_ptr" and ip_literal(host) is None:
            reason = "RESOLVE_PTR asks for an address, not for a name"
            raise RequestRefused(reason, self._failure(Reply.ADDRESS_TYPE_NOT_SUPPORTED))
        if kind == "connect" and port == 0:
            raise RequestRefused("CONNECT to port 0", self._failure(Reply.GENERAL_FAILURE))
        self._host = host
        return Request(kind, host, port, protocol, self._user, self._password, literal=literal)

    # Answers

    def _failure(self, code: Reply) -> bytes:
        return socks5_reply(code) if self._version_5 else socks4_reply(REJECTED_4)

    def granted(self) -> bytes:
        # As Tor does: no bound address. The exit's is not known here, and ours would say nothing.
        return socks5_reply(Reply.SUCCEEDED) if self._version_5 else socks4_reply(GRANTED_4)

    def resolved(self, addresses: Sequence[str]) -> bytes | None:
        for address in addresses:
            literal = ip_literal(address)
            if literal is None:
                continue
            if self._version_5:
                return socks5_reply(Reply.SUCCEEDED, str(literal))
            if literal.version == 4:
                return socks4_reply(GRANTED_4, str(literal))
        return None

    def resolved_ptr(self, names: Sequence[str]) -> bytes | None:
        for name in names:
            if name.isascii() and 0 < len(name) <= MAX_FIELD and ip_literal(name) is None:
                return socks5_reply(Reply.SUCCEEDED, name)
        return None

    def failed(self, reason: int) -> bytes:
        if self._extended_errors and self._host.removesuffix(".").endswith(_SERVICES):
            known = EndReason(reason) if reason in set(EndReason) else EndReason.MISC
            if known in _SERVICE_REPLIES:
                return self._failure(_SERVICE_REPLIES[known])
        return self._failure(reply_code(reason))

    def refused(self, text: str) -> bytes:
        return self._failure(Reply.GENERAL_FAILURE)

    def timed_out(self) -> bytes:
        return b""
