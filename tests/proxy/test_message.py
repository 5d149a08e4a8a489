"""Heads of plain requests and answers: what is passed on, what is left out, what is refused."""

from __future__ import annotations

import base64

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import WireError
from backrooms.proxy.body import Chunked, Counted, Endless
from backrooms.proxy.message import MAX_ANSWER_HEAD, Answer, PlainRequest, is_forwarded, read_answer, read_request
from backrooms.proxy.request import RequestRefused
from tests.proxy.test_http import basic, status

GET = b"GET http://web.example/page?x=1 HTTP/1.1\r\nHost: web.example\r\n"


def request(*headers: bytes, start: bytes = GET) -> PlainRequest:
    return read_request(start + b"".join(header + b"\r\n" for header in headers) + b"\r\n")


def refused(head: bytes, password: bytes = b"") -> tuple[int, dict[str, str], str]:
    with pytest.raises(RequestRefused) as caught:
        read_request(head, password)
    return status(caught.value.reply)


def names(plain: PlainRequest) -> set[bytes]:
    return {line.partition(b":")[0].lower() for line in plain.head.splitlines()[1:] if line}


# requests


def test_a_request_as_curl_sends_it() -> None:
    plain = request(b"User-Agent: curl/7.88.1", b"Accept: */*", b"Proxy-Connection: Keep-Alive")
    assert plain.head == (
        b"GET /page?x=1 HTTP/1.1\r\nHost: web.example\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n"
    )
    assert (plain.request.host, plain.request.port, plain.request.protocol) == ("web.example", 80, "HTTP")
    assert plain.keep_alive
    assert plain.repeatable


TARGETS = {
    b"http://web.example": ("web.example", 80, b"/", b"web.example"),
    b"http://web.example/": ("web.example", 80, b"/", b"web.example"),
    b"HTTP://Web.Example:8080/A?B": ("web.example", 8080, b"/A?B", b"web.example:8080"),
    b"http://web.example:80/": ("web.example", 80, b"/", b"web.example"),
    b"http://web.example:/": ("web.example", 80, b"/", b"web.example"),
    b"http://web.example?x": ("web.example", 80, b"/?x", b"web.example"),
    b"http://[2001:DB8::1]/": ("2001:db8::1", 80, b"/", b"[2001:db8::1]"),
    b"http://[2001:DB8::1]:81/": ("2001:db8::1", 81, b"/", b"[2001:db8::1]:81"),
    b"http://10.1.2.3/%20//": ("10.1.2.3", 80, b"/%20//", b"10.1.2.3"),
    b"ws://web.example/socket": ("web.example", 80, b"/socket", b"web.example"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_targets(target: bytes) -> None:
    host, port, path, said = TARGETS[target]
    # whatever Host says
    plain = read_request(b"GET %s HTTP/1.1\r\nHost: other.example\r\n\r\n" % target)
    assert (plain.request.host, plain.request.port) == (host, port)
    assert plain.head == b"GET %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (path, said)


def test_options_of_the_server_itself() -> None:
    assert request(start=b"OPTIONS http://a.b HTTP/1.1\r\nHost: a.b\r\n").head.startswith(b"OPTIONS * HTTP/1.1\r\n")


def test_nothing_tells_the_destination_of_the_proxy() -> None:
    gone = (
        b"Connection: close, X-Hop, Host, Content-Length",
        b"X-Hop: 1",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: keep-alive",
        b"Proxy-Whatever: 1",
        b"Proxy-Authorization: Basic " + base64.b64encode(b"alice:secret"),
        b"TE: trailers",
        b"Trailer: Digest",
        b"Upgrade: h2c",
        b"HTTP2-Settings: AAMAAABkAAQAAP__",
        b"Via: 1.1 proxy.home",
        b"Forwarded: for=192.0.2.60",
        b"X-Forwarded-For: 192.0.2.60",
        b"Tor-Stream-Isolation: one",
        b"X-Tor-Stream-Isolation: two",
    )
    plain = request(*gone, b"Cookie: a", b"Content-Length: 0")
    assert names(plain) == {b"host", b"cookie", b"content-length", b"connection"}
    assert b"Connection: close\r\n" in plain.head
    assert b"alice" not in plain.head
    assert (plain.request.user, plain.request.password) == (b"alice", b"secret")
    assert plain.request.token == b"one,two"
    assert not plain.keep_alive


def test_order_and_writing_of_headers_stay() -> None:
    plain = request(b"b: 1", b"A: 2", b"B: 3", b"x-BIN: \xff\x80")
    assert plain.head.split(b"\r\n")[2:-2] == [b"b: 1", b"A: 2", b"B: 3", b"x-BIN: \xff\x80"]


def test_folded_lines_and_bare_newlines_are_written_anew() -> None:
    plain = read_request(b"GET http://a.b/ HTTP/1.1\nHost: a.b\nX: one\n  two\n\n")
    assert plain.head == b"GET / HTTP/1.1\r\nHost: a.b\r\nX: one two\r\n\r\n"


def test_bodies() -> None:
    post = GET.replace(b"GET", b"POST")
    counted = request(b"Content-Length: 7", start=post)
    assert isinstance(counted.body, Counted)
    assert not counted.body.done
    assert not counted.repeatable
    chunked = request(b"Transfer-Encoding: Chunked", start=post)
    assert isinstance(chunked.body, Chunked)
    assert chunked.head.count(b"Transfer-Encoding: chunked\r\n") == 1
    assert not request(start=post).repeatable
    assert request(b"Expect: 100-continue", b"Content-Length: 7", start=post).head.count(b"Expect: 100-continue") == 1


def test_http_1_0() -> None:
    plain = request(b"Connection: keep-alive", b"Expect: 100-continue", start=GET.replace(b"1.1", b"1.0"))
    assert plain.head == b"GET /page?x=1 HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n"
    assert not plain.keep_alive
    assert not plain.chunks


def test_websockets_may_be_asked_for() -> None:
    plain = request(b"Connection: keep-alive, Upgrade", b"Upgrade: WebSocket", b"Sec-WebSocket-Key: x")
    assert plain.head.endswith(b"Sec-WebSocket-Key: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert not plain.repeatable
    for other in (b"Upgrade: h2c", b"Upgrade: websocket, h2c"):
        assert names(request(b"Connection: Upgrade", other)) == {b"host"}
    assert names(request(b"Upgrade: websocket")) == {b"host"}


BAD = {
    "https": GET.replace(b"http:", b"https:"),
    "wss": GET.replace(b"http:", b"wss:"),
    "ftp": GET.replace(b"http:", b"ftp:"),
    "user in the URL": GET.replace(b"web", b"me:pw@web", 1),
    "fragment": GET.replace(b"page", b"page#there"),
    "no host": b"GET http:///page HTTP/1.1\r\nHost: a.b\r\n",
    "hidden address": b"GET http://0x7f000001/ HTTP/1.1\r\nHost: a.b\r\n",
    "port 0": b"GET http://a.b:0/ HTTP/1.1\r\nHost: a.b\r\n",
    "port of words": b"GET http://a.b:http/ HTTP/1.1\r\nHost: a.b\r\n",
    "bare IPv6": b"GET http://2001:db8::1/ HTTP/1.1\r\nHost: a.b\r\n",
    "two Hosts": GET + b"Host: other.example\r\n",
    "HTTP/2": GET.replace(b"1.1", b"2.0"),
    "HTTP/0.9": b"GET http://a.b/\r\n",
    "length and chunks": GET + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "chunks and length": GET + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "two lengths": GET + b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "list of lengths": GET + b"Content-Length: 5, 6\r\n",
    "signed length": GET + b"Content-Length: +5\r\n",
    "endless length": GET + b"Content-Length: " + b"9" * 19 + b"\r\n",
    "negative length": GET + b"Content-Length: -5\r\n",
    "two codings": GET + b"Transfer-Encoding: gzip, chunked\r\n",
    "unknown coding": GET + b"Transfer-Encoding: identity\r\n",
    "coding twice": GET + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "hidden coding": GET + b"Transfer-Encoding: xchunked\r\n",
    "coding in HTTP/1.0": GET.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n",
    "blank before the colon": GET + b"Transfer-Encoding : chunked\r\n",
    "return inside": GET + b"X: a\rTransfer-Encoding: chunked\r\n",
    "NUL": GET + b"X: \x00\r\n",
    "bad user": GET + basic("<torS0X>0:x"),
    "Bearer": GET + b"Proxy-Authorization: Bearer x\r\n",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(name: str) -> None:
    code, _, text = refused(BAD[name] + b"\r\n")
    assert code == 400
    assert text


def test_password() -> None:
    for head in (GET, GET + basic("alice:wrong"), GET + basic("secret:"), GET + basic("alice:secretX")):
        code, headers, _ = refused(head + b"\r\n", b"secret")
        assert code == 407
        assert headers["proxy-authenticate"] == 'Basic realm="backrooms"'
    plain = read_request(GET + basic("level=low:secret") + b"\r\n", b"secret")
    assert (plain.request.user, plain.request.password) == (b"level=low", b"secret")


def test_what_is_forwarded() -> None:
    for head in (b"GET http://", b"PROPFIND HTTP://a", b"GET ws://a", b"GET urn://"):
        assert is_forwarded(head)
    for head in (
        b"CONNECT a.b:443",
        b"OPTIONS * H",
        b"GET / H",
        b"GET /http://a",
        b"GET  http://a",
        b"",
        b"\r\nGET h://",
    ):
        assert not is_forwarded(head)


@given(st.integers(0, 400), st.integers(0, 255))
def test_one_byte_changed(position: int, value: int) -> None:
    head = bytearray(GET + b"Content-Length: 5\r\nX-Y: z\r\nCookie: a=b\r\nConnection: keep-alive, x-y\r\n\r\n")
    head[position % len(head)] = value
    reply = b""
    try:
        plain = read_request(bytes(head))
    except RequestRefused as refusal:
        reply = refusal.reply
    if reply:
        assert status(reply)[0] == 400
        return
    other = h11.Connection(h11.SERVER)  # what we send is what a strict server reads
    other.receive_data(plain.head)
    event = other.next_event()
    assert isinstance(event, h11.Request)
    assert event.target.startswith((b"/", b"*"))
    assert [value for name, value in event.headers if name == b"host"] == [
        f"{plain.request.host}{'' if plain.request.port == 80 else f':{plain.request.port}'}".encode()
    ]


# answers


def answer(head: bytes, plain: PlainRequest | None = None, close: bool = False) -> Answer:
    found = read_answer(plain or request(), head, close)
    assert found is not None
    return found


def test_an_answer_with_a_length() -> None:
    found = answer(b"HTTP/1.1 200 Fine\r\nServer: x\r\nContent-Length: 5\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\nhel")
    assert found.head == (
        b"HTTP/1.1 200 Fine\r\nServer: x\r\nContent-Length: 5\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\n"
    )
    assert found.rest == b"hel"
    assert isinstance(found.body, Counted)
    assert (found.in_chunks, found.close, found.reusable) == (False, False, True)


def test_hop_by_hop_headers_of_answers_end_here() -> None:
    found = answer(
        b"HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2\r\n"
        b"Proxy-Authenticate: Basic\r\nTrailer: X\r\nTransfer-Encoding: chunked\r\nTor-Request-Failed: end/DONE\r\n\r\n"
    )
    assert found.head == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert isinstance(found.body, Chunked)
    assert (found.in_chunks, found.close, found.reusable) == (True, False, False)


def test_an_answer_that_ends_with_its_connection() -> None:
    found = answer(b"HTTP/1.0 200 OK\r\n\r\nabc")
    assert found.head == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert isinstance(found.body, Endless)
    assert (found.in_chunks, found.close, found.reusable) == (True, False, False)


@pytest.mark.parametrize("coding", [b"", b"Transfer-Encoding: chunked\r\n"])
def test_http_1_0_gets_no_chunks(coding: bytes) -> None:
    plain = request(start=GET.replace(b"1.1", b"1.0"))
    found = answer(b"HTTP/1.1 200 OK\r\n" + coding + b"\r\n", plain)
    assert found.head == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    assert (found.in_chunks, found.close, found.reusable) == (False, True, False)


@pytest.mark.parametrize("head", [b"HTTP/1.1 204 No\r\n\r\n", b"HTTP/1.1 304 Not\r\nContent-Length: 5\r\n\r\n"])
def test_answers_without_a_body(head: bytes) -> None:
    found = answer(head)
    assert found.body is not None
    assert found.body.done
    assert found.reusable


def test_answer_to_head() -> None:
    plain = request(start=GET.replace(b"GET", b"HEAD"))
    found = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", plain)
    assert found.body is not None
    assert found.body.done
    assert b"Content-Length: 5\r\n" in found.head


def test_close_is_said_once() -> None:
    for start in (GET, GET.replace(b"1.1", b"1.0")):
        found = answer(
            b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", request(start=start), True
        )
        assert found.head == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        assert found.close


def test_interim_answers_are_passed_on() -> None:
    plain = request()
    first = answer(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\nConnection: y\r\n\r\n", plain)
    assert (first.head, first.body) == (b"HTTP/1.1 100 Continue\r\n\r\n", None)
    assert answer(b"", plain).head == b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n"
    assert read_answer(plain, b"HTTP/1.1 2", False) is None
    assert answer(b"00 OK\r\nContent-Length: 0\r\n\r\n", plain).body is not None
    old = request(start=GET.replace(b"1.1", b"1.0"))
    assert answer(b"HTTP/1.1 100 Continue\r\n\r\n", old).head == b""


def test_switching_protocols() -> None:
    plain = request(b"Connection: Upgrade", b"Upgrade: websocket")
    found = answer(
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX: y\r\n\r\n\x81\x00", plain
    )
    assert found.switched
    assert found.rest == b"\x81\x00"
    assert found.head == b"HTTP/1.1 101 Switching\r\nX: y\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA b: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n",
        b"HTTP/1.1 407 Password\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * MAX_ANSWER_HEAD,
    ],
    ids=lambda head: head[:60],
)
def test_bad_answers(head: bytes) -> None:
    with pytest.raises(WireError):
        read_answer(request(), head, False)


@given(st.binary(max_size=200), st.integers(0, 100), st.integers(0, 255))
def test_any_answer(data: bytes, position: int, value: int) -> None:
    good = bytearray(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\nConnection: x\r\n\r\nhello")
    good[position % len(good)] = value
    for sent in (data, bytes(good)):
        try:
            found = read_answer(request(), sent, False)
        except WireError:
            continue
        if found is not None and found.body is not None:
            reader = h11.Connection(h11.CLIENT)
            reader.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
            reader.receive_data(found.head)
            assert isinstance(reader.next_event(), h11.Response)
