"""The HTTP proxy's requests and answers."""

from __future__ import annotations

import base64

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.proxy.http import GRANTED, MAX_HEAD, HttpParser
from backrooms.proxy.request import Request, RequestRefused
from backrooms.wire.relay import EndReason


def basic(text: str) -> bytes:
    return b"Proxy-Authorization: Basic " + base64.b64encode(text.encode()) + b"\r\n"


def connect(target: bytes = b"example.com:443", *headers: bytes, version: bytes = b"1.1") -> bytes:
    return b"CONNECT %s HTTP/%s\r\nHost: %s\r\n" % (target, version, target) + b"".join(headers) + b"\r\n"


def drive(pieces: list[bytes]) -> tuple[Request | None, bytes, bytes]:
    """The request, the answer to a refused one, the early data."""
    parser = HttpParser()
    for index, piece in enumerate(pieces):
        try:
            request = parser.receive(piece)
        except RequestRefused as refusal:
            return None, refusal.reply, b""
        assert len(parser._head) <= MAX_HEAD
        if request is not None:
            return request, b"", parser.early + b"".join(pieces[index + 1 :])
    return None, b"", b""


def trickle(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def status(reply: bytes) -> tuple[int, dict[str, str], str]:
    """What an HTTP client makes of a complete answer; it must be one, and the last one."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(reply)
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)
        body += event.data
    assert client.their_state is h11.MUST_CLOSE
    headers = {name.decode(): value.decode() for name, value in head.headers}
    assert headers["server"] == "backrooms"
    assert headers["via"] == "1.1 backrooms"
    return head.status_code, headers, body.decode()


# As curl 7.88 sends it with -x http://alice:secret@127.0.0.1:PORT -p.
CURL = (
    b"CONNECT example.com:443 HTTP/1.1\r\n"
    b"Host: example.com:443\r\n"
    b"Proxy-Authorization: Basic YWxpY2U6c2VjcmV0\r\n"
    b"User-Agent: curl/7.88.1\r\n"
    b"Proxy-Connection: Keep-Alive\r\n"
    b"\r\n"
)

GOOD = {
    "curl": (CURL, Request("connect", "example.com", 443, "HTTPCONNECT", b"alice", b"secret")),
    "1.0 without Host": (
        b"CONNECT example.com:80 HTTP/1.0\r\n\r\n",
        Request("connect", "example.com", 80, "HTTPCONNECT"),
    ),
    "bare newlines": (
        b"CONNECT example.com:80 HTTP/1.0\n\n",
        Request("connect", "example.com", 80, "HTTPCONNECT"),
    ),
    "IPv6": (connect(b"[2001:DB8::1]:22"), Request("connect", "2001:db8::1", 22, "HTTPCONNECT")),
    "IPv4": (connect(b"10.1.2.3:22"), Request("connect", "10.1.2.3", 22, "HTTPCONNECT")),
    "token": (
        connect(b"a.b:1", b"Tor-Stream-Isolation: one\r\n", b"X-Tor-Stream-Isolation: two\r\n"),
        Request("connect", "a.b", 1, "HTTPCONNECT", token=b"one,two"),
    ),
    "password with colon": (
        connect(b"a.b:1", basic("u:p:q")),
        Request("connect", "a.b", 1, "HTTPCONNECT", b"u", b"p:q"),
    ),
    "empty user and password": (connect(b"a.b:1", basic(":")), Request("connect", "a.b", 1, "HTTPCONNECT")),
}

BAD = {
    "no port": (connect(b"example.com"), 400),
    "port 0": (connect(b"example.com:0"), 400),
    "port 65536": (connect(b"example.com:65536"), 400),
    "port with sign": (connect(b"example.com:+80"), 400),
    "bare IPv6": (connect(b"2001:db8::1:22"), 400),
    "user in target": (connect(b"me@example.com:80"), 400),
    "hidden address": (connect(b"0x7f000001:80"), 400),
    "IPv4 in brackets": (connect(b"[1.2.3.4]:80"), 400),
    "absolute": (connect(b"http://example.com/"), 400),
    "no Host": (b"CONNECT example.com:80 HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (connect(b"a.b:1", b"Host: c.d\r\n"), 400),
    "Bearer": (connect(b"a.b:1", b"Proxy-Authorization: Bearer x\r\n"), 400),
    "no base64": (connect(b"a.b:1", b"Proxy-Authorization: Basic ~~~\r\n"), 400),
    "two users": (connect(b"a.b:1", basic("a:b"), basic("c:d")), 400),
    "reserved user": (connect(b"a.b:1", basic("<torS0X>0:x")), 400),
    "control byte in header": (connect(b"a.b:1", b"X: \x00\r\n"), 400),
    "no HTTP": (b"SSH-2.0-x\r\n\r\n", 400),
    "SOCKS": (b"\x05\x01\x00", 400),
    "TLS": (b"\x16\x03\x01", 400),
    "empty line first": (b"\r\n\r\n", 400),
    "too long": (b"CONNECT " + b"a" * MAX_HEAD, 414),
    "GET": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8118\r\n\r\n", 405),
    "GET localhost": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "GET IPv6": (b"GET / HTTP/1.1\r\nHost: [::1]:8118\r\n\r\n", 405),
    "POST": (b"POST / HTTP/1.0\r\n\r\n", 405),
    "GET of a word": (b"GET page HTTP/1.1\r\nHost: evil.example\r\n\r\n", 400),
    "GET rebound": (b"GET / HTTP/1.1\r\nHost: evil.example:8118\r\n\r\n", 400),
    "OPTIONS rebound": (b"OPTIONS * HTTP/1.1\r\nHost: evil.example\r\n\r\n", 400),
    "OPTIONS": (b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1:8118\r\n\r\n", 200),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("early", [b"", b"\x16\x03\x01\r\n\r\n"])
def test_good(name: str, early: bytes) -> None:
    data, expected = GOOD[name]
    for pieces in ([data + early], trickle(data + early)):
        assert drive(pieces) == (expected, b"", early)


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    data, expected = BAD[name]
    request, reply, _ = drive([data])
    assert request is None
    code, headers, body = status(reply)
    assert code == expected
    assert ("allow" in headers) == (code in (200, 405))
    if code != 200:
        assert body
    if len(data) < 1000:
        assert drive(trickle(data)) == (None, reply, b"")


def test_head_of_the_greatest_length() -> None:
    start = b"CONNECT a.b:1 HTTP/1.1\r\nHost: a.b:1\r\nX: "
    fill = MAX_HEAD - len(start) - 4
    assert drive([start + b"x" * fill + b"\r\n\r\n"])[0] is not None
    for pieces in ([start + b"x" * (fill + 1) + b"\r\n\r\n"], [start, b"x" * (fill + 1), b"\r\n\r\n"]):
        assert status(drive(pieces)[1])[0] == 414


def test_long_garbage_is_bounded() -> None:
    parser = HttpParser()
    for _ in range(MAX_HEAD // 1000):
        assert parser.receive(b"A" * 1000) is None
    with pytest.raises(RequestRefused):
        parser.receive(b"A" * 1000)
    assert len(parser._head) <= MAX_HEAD


@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    assert drive([data]) == drive(trickle(data))


@given(st.integers(0, len(CURL) - 1), st.integers(0, 255))
def test_one_byte_changed(position: int, value: int) -> None:
    changed = bytearray(CURL)
    changed[position] = value
    request, reply, _ = drive([bytes(changed)])
    assert (request is None) == bool(reply) or b"\r\n\r\n" not in changed
    if reply:
        assert status(reply)[0] in (400, 405)


def test_granted() -> None:
    assert HttpParser().granted() == GRANTED
    assert GRANTED.startswith(b"HTTP/1.1 200 ")
    assert GRANTED.endswith(b"\r\n\r\n")
    assert b"Content-Length" not in GRANTED


CODES = {
    503: {"RESOLVEFAILED", "NOROUTE"},
    403: {"CONNECTREFUSED", "EXITPOLICY", "CONNRESET"},
    504: {"TIMEOUT"},
    502: {"DESTROY", "DONE", "HIBERNATING", "INTERNAL", "RESOURCELIMIT", "TORPROTOCOL"},
    500: {"MISC", "NOTDIRECTORY"},
}


def test_failures() -> None:
    seen: dict[int, set[str]] = {}
    for reason in EndReason:
        code, headers, _ = status(HttpParser().failed(reason))
        assert headers["tor-request-failed"] == f"end/{reason.name}"
        seen.setdefault(code, set()).add(reason.name)
    assert seen == CODES
    code, headers, _ = status(HttpParser().failed(200))
    assert (code, headers["tor-request-failed"]) == (500, "end/MISC")


def test_refusal_says_why() -> None:
    code, _, body = status(HttpParser().refused("no level 'hügh'"))
    assert code == 400
    assert "no level" in body
    assert status(HttpParser().timed_out())[0] == 408


@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT secret.example:443\r\n\r\n",
        b"CONNECT secret.example:443 HTTP/1.1\r\nProxy-Authorization : Basic c2VjcmV0\r\n\r\n",
        "CONNECT secret.exämple:443 HTTP/1.1\r\n\r\n".encode(),
    ],
)
def test_a_refusal_does_not_quote_the_request(head: bytes) -> None:
    """Its reason goes to the log."""
    with pytest.raises(RequestRefused) as refused:
        HttpParser().receive(head)
    assert "secret" not in refused.value.reason
    assert "c2VjcmV0" not in refused.value.reason
