"""Targets of what the local ports read besides a proxy's requests: plain HTTP, DNS questions, mappings of addresses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from twisted.names import dns as untyped_dns

from backrooms.errors import ConfigError, StreamError, WireError
from backrooms.node import resolvers
from backrooms.proxy.addressmap import AddressMap
from backrooms.proxy.body import Chunked, chunks
from backrooms.proxy.dns import MAX_ANSWER, Code, Query, Unanswerable
from backrooms.proxy.events import State
from backrooms.proxy.message import MAX_ANSWER_HEAD, read_answer, read_request
from backrooms.proxy.request import RequestRefused
from backrooms.wire.codec import Writer
from backrooms.wire.names import check_host, ip_literal
from tests.fuzz.ports import HTTP
from tests.fuzz.target import Target, in_any_pieces
from tests.proxy.application import Browser
from tests.proxy.fakes import Server

dns: Any = untyped_dns

# plain HTTP

REQUESTS = tuple(one for one in HTTP if b" http://" in one)
HEADS = tuple(one[: one.index(b"\r\n\r\n") + 4] for one in REQUESTS)
ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA:\r\n\r\n",
    b"HTTP/1.0 404 Not Found\r\nServer: x\r\nConnection: x-a\r\nX-A: gone\r\n\r\nuntil the end",
    b"HTTP/1.1 304 Not Modified\r\nETag: y\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nframes",
)
WEBSOCKET = (
    b"GET ws://echo.example/s HTTP/1.1\r\nHost: echo.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
)


def _request(data: bytes) -> None:
    plain = read_request(data)
    assert check_host(plain.request.host.encode()) == plain.request.host
    assert 0 < plain.request.port < 65536
    # One request, and no second one hidden in it.
    assert plain.head.endswith(b"\r\n\r\n")
    assert plain.head.count(b"\r\n\r\n") == 1
    assert b"\n" not in plain.head.replace(b"\r\n", b"")


def _answer(data: bytes) -> Any:
    """What the head of an answer becomes does not depend on how it comes."""

    def feed(pieces: Sequence[bytes]) -> Any:
        plain = read_request(HEADS[0])
        said = []
        for number, piece in enumerate(pieces):
            answer = read_answer(plain, piece, False) if piece else None
            while answer is not None:
                said.append(answer.head)
                if answer.body is not None or answer.switched:
                    return said, answer.rest + b"".join(pieces[number + 1 :]), answer.close, answer.reusable
                answer = read_answer(plain, b"", False)
        return said

    return in_any_pieces(_or_error(feed))(data)


def _or_error(feed: Any) -> Any:
    def run(pieces: Sequence[bytes]) -> Any:
        try:
            return feed(pieces)
        except WireError:
            return None

    return run


def _chunked(data: bytes) -> Any:
    def feed(pieces: Sequence[bytes]) -> Any:
        body = Chunked()
        payload = rest = b""
        for piece in pieces:
            if body.done:
                rest += piece
            else:
                taken, rest = body.take(piece)
                payload += taken
        again = b"".join(chunks(payload))
        assert Chunked().take(again) == (payload, b"")
        return payload, rest, body.done

    return in_any_pieces(_or_error(feed))(data)


class _Scripted(Server):
    """Connects, and answers each read of a request with the next part of a script."""

    def __init__(self, script: bytes) -> None:
        self._parts = [script[at : at + 700] for at in range(0, len(script), 700)]

    def on_data(self, stream: Any, data: bytes) -> None:
        if self._parts and stream.ended is None:
            stream.send(self._parts.pop(0))
            if not self._parts:
                stream.end()


def _forward(data: bytes) -> None:
    """`length u16`, so many bytes of an application, then what servers say."""
    size = int.from_bytes(data[:2], "big")
    asked, said = data[2 : 2 + size], data[2 + size :]
    browser = Browser(a_example=_Scripted(said))
    browser.opener.servers["echo.example"] = _Scripted(said)
    for start in range(0, len(asked), 1000):
        if browser.session.state is not State.CLOSED:
            browser.send(asked[start : start + 1000])
    for stream in browser.opener.streams:
        if stream.ended is None and stream.aborted is None and browser.session.state is not State.CLOSED:
            stream.send(said[:2000])
            browser.turn()
    if browser.session.state is not State.CLOSED:
        browser.eof()
    for stream in browser.opener.streams:
        if stream.ended is None and stream.aborted is None:
            stream.end()  # a server may be silent for as long as it likes
            browser.turn()
    for now in (70.0, 130.0, 800.0, 803.0, 1500.0, 1503.0):
        browser.tick(now)
    assert browser.session.state is State.CLOSED
    assert len(browser.endings) + len(browser.handed_over) == 1


# DNS


def question(name: bytes, kind: int, flags: int = 0x0100) -> bytes:
    """A DNS message with one question."""
    writer = Writer().u16(7).u16(flags).u16(1).u16(0).u16(0).u16(0)
    for label in name.split(b"."):
        writer.bytes8(label)
    return writer.u8(0).u16(kind).u16(1).done()


def _dns(data: bytes) -> None:
    query = Query.decode(data)
    assert data[12:].startswith(query.question)
    values = [("192.0.2.1", 60), ("2001:db8::1", 1 << 32), ("some.example", 5), ("", 0), ("a" * 300, 0)]
    for answer in (query.answer(values * 20), *map(query.failure, Code)):
        assert len(answer) <= MAX_ANSWER
        assert answer[:2] == data[:2]
        assert answer[12 : 12 + len(query.question)] == query.question
    try:
        kind, host = query.request()
    except Unanswerable:
        return
    assert check_host(host.encode()) == host
    assert (ip_literal(host) is not None) == (kind == "resolve_ptr")


def _nameserver_answer(data: bytes) -> None:
    """What an exit reads out of a nameserver's answer once Twisted has parsed it."""
    message: Any = dns.Message()
    try:
        message.fromStr(data)
    except Exception:  # whatever it is, Twisted's protocol drops the message
        raise WireError("not DNS") from None
    for kind in (dns.A, dns.AAAA, dns.PTR):
        values, name, ttl = resolvers.read_answer(message, b"some.example", kind)
        assert isinstance(name, bytes)
        assert ttl >= 0
        for value in values:
            assert value.encode() or kind == dns.PTR
            if kind != dns.PTR:
                assert ip_literal(value) is not None


def _nameserver_answers() -> list[bytes]:
    records = (
        (b"some.example", dns.Record_CNAME(b"other.example", 60)),
        (b"other.example", dns.Record_A("192.0.2.1", 60)),
        (b"other.example", dns.Record_AAAA("2001:db8::1", 60)),
        (b"some.example", dns.Record_PTR(b"name.example", 60)),
    )
    made = []
    for some in (records[:3], records[1:2], records[3:]):
        message: Any = dns.Message(7, answer=1)
        message.addQuery(b"some.example")
        message.answers = [dns.RRHeader(name, one.TYPE, payload=one, ttl=60) for name, one in some]
        made.append(message.toStr())
    return made


# mappings


def _address_map(data: bytes) -> None:
    """Lines FROM=TO, all of which must be right."""
    mapping = AddressMap(random.Random(1), data.decode("utf-8", "replace").split("\n"), automap=True)
    for host in ("some.example", "a.below.example", "x.backrooms", "192.0.2.1", "127.192.0.5", "::1"):
        for kind in ("connect", "resolve", "resolve_ptr"):
            try:
                assert mapping.apply(kind, host)
            except StreamError:
                pass
    assert mapping.mappings()


def targets() -> list[Target]:
    """All targets of this module."""
    mappings = b"some.example=192.0.2.1\n*.below.example=*.above.example\n192.0.2.1=[2001:db8::1]"
    pairs = [Writer().bytes16(ask).bytes(say).done() for ask in (*REQUESTS, WEBSOCKET) for say in ANSWERS[:5]]
    reverse = b"1.2.0.192.in-addr.arpa", b".".join([b"1", *[b"0"] * 31, b"ip6", b"arpa"])
    return [
        Target("proxy.message.request", _request, lambda: (*HEADS, WEBSOCKET), (RequestRefused,)),
        Target(
            "proxy.message.answer", _answer, lambda: ANSWERS, (), fixed=2 * MAX_ANSWER_HEAD + (1 << 20), longest=4_000
        ),
        Target(
            "proxy.body.chunked", _chunked, lambda: [b"5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\nT: u\r\n\r\nnext"], ()
        ),
        Target("proxy.forward", _forward, lambda: pairs, (), fixed=2 << 20),
        Target(
            "proxy.dns",
            _dns,
            lambda: [question(b"some.example", 1), question(b"some.example", 28), *(question(r, 12) for r in reverse)],
        ),
        Target("node.resolvers.answer", _nameserver_answer, _nameserver_answers),
        Target("proxy.addressmap", _address_map, lambda: [mappings], (ConfigError,)),
    ]
