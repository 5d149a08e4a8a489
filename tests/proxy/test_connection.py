"""What a listener's connections do beyond one session: rules, warnings, sessions that follow each other, farewells."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from twisted.internet import reactor
from twisted.internet.task import Clock, deferLater
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from backrooms.node.timers import Timers
from backrooms.proxy.addressmap import AddressMap
from backrooms.proxy.connection import FAREWELL_TIME, Farewells
from backrooms.proxy.events import Limits
from backrooms.proxy.socks import socks5_reply
from backrooms.wire.relay import EndReason
from tests.proxy.fakes import FakeStream, Server
from tests.proxy.loopback import CONNECT_4A, GRANTED_4A, REJECTED_4A, Proxies, exchange, until
from tests.proxy.web import Website

HELLO_5 = b"\x05\x01\x00"
CONNECT_IPV4 = HELLO_5 + b"\x05\x01\x00\x01%s\x00\x50"
GET = b"GET http://site.example/%d HTTP/1.1\r\nHost: site.example\r\n\r\n"
CONNECT = b"CONNECT echo.example:80 HTTP/1.1\r\nHost: echo.example\r\n\r\n"


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What the proxies warned of."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event["log_level"].name == "warn" and str(event.get("log_namespace", "")).startswith("backrooms.proxy"):
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


# HTTP


async def test_pages_then_a_tunnel_on_one_connection(proxies: Proxies) -> None:
    site = Website()
    proxies.opener.servers["site.example"] = site
    port = await proxies.start("http")
    answer = await exchange(port, GET % 1 + GET % 2 + CONNECT + b"through the tunnel", end=True)
    assert answer.count(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n/") == 2
    assert answer.endswith(b"\r\n\r\nthrough the tunnel")
    assert site.connections == 1
    await until(lambda: len(proxies.listener) == 0)
    assert all(stream.eof and stream.aborted is None for stream in proxies.opener.streams)


async def test_requests_for_the_proxy_itself_end_the_connection(proxies: Proxies) -> None:
    port = await proxies.start("http")
    hidden = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n" + GET % 1
    answer = await exchange(port, hidden)
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not proxies.opener.requests


async def test_an_idle_connection_is_closed(proxies: Proxies) -> None:
    proxies.opener.servers["site.example"] = Website()
    port = await proxies.start("http", limits=Limits(idle=0.1))
    assert (await exchange(port, GET % 1)).endswith(b"\r\n\r\n/1")
    await until(lambda: len(proxies.listener) == 0)


async def test_chunks_by_the_megabyte(proxies: Proxies) -> None:
    port = await proxies.start("http", limits=Limits(idle=0.1))
    talk = exchange(port, b"GET http://quiet.example/ HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(lambda: bool(proxies.opener.streams))
    stream = proxies.opener.streams[0]
    stream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(100):
        stream.send(b"10000\r\n" + bytes(0x10000) + b"\r\n")
    stream.send(b"0\r\n\r\n")
    answer = await talk
    assert answer.endswith(b"0\r\n\r\n")
    assert answer.count(b"\0") == 100 * 0x10000


# rules


async def granted(proxies: Proxies, port: int, sent: bytes) -> None:
    """Connect, and have the network end it."""
    before = len(proxies.opener.streams)
    talk = exchange(port, sent, end=True)
    await until(lambda: len(proxies.opener.streams) > before and proxies.opener.streams[-1].eof)
    proxies.opener.streams[-1].end()
    answer = await talk
    assert answer.startswith((GRANTED_4A, b"\x05\x00\x05\x00"))


async def test_unsafe_applications_are_warned_of_once(proxies: Proxies, warnings: list[str]) -> None:
    port = await proxies.start("socks", literal_addresses="warn")
    proxies.opener.servers["9.8.7.6"] = Server()
    four = b"\x04\x01\x00\x50\x09\x08\x07\x06\x00"
    for sent in (CONNECT_IPV4 % b"\x09\x08\x07\x06", four, CONNECT_4A % b"9.8.7.6"):
        await granted(proxies, port, sent)
    assert len(warnings) == 1
    assert "names resolved by the proxy" in warnings[0]
    assert "9.8.7.6" not in warnings[0]


async def test_unsafe_applications_are_refused(proxies: Proxies) -> None:
    port = await proxies.start("socks", literal_addresses="refuse")
    assert await exchange(port, CONNECT_IPV4 % b"\x09\x08\x07\x06") == b"\x05\x00" + socks5_reply(2)
    assert await exchange(port, b"\x04\x01\x00\x50\x09\x08\x07\x06\x00") == REJECTED_4A
    assert not proxies.opener.requests
    ask = HELLO_5 + b"\x05\xf1\x00\x01\x09\x08\x07\x06\x00\x00"
    proxies.opener.names["9.8.7.6"] = ["web.example"]
    assert await exchange(port, ask) == b"\x05\x00" + socks5_reply(0, "web.example")


async def test_automapped_hosts(proxies: Proxies) -> None:
    mapped = AddressMap(random.Random(1), ["same.example=echo.example"], automap=True)
    proxies.opener.servers["some.backrooms"] = proxies.opener.servers["echo.example"]
    port = await proxies.start("socks", addresses=mapped, literal_addresses="refuse", allow_private=False)
    answer = await exchange(port, HELLO_5 + b"\x05\xf0\x00\x03\x0esome.backrooms\x00\x00")
    assert answer[:6] == b"\x05\x00\x05\x00\x00\x01"
    address = answer[6:10]
    assert not proxies.opener.requests
    again = await exchange(port, CONNECT_IPV4 % address + b"hello", end=True)
    assert again.endswith(b"hello")
    assert proxies.request.host == "some.backrooms"
    name = await exchange(port, HELLO_5 + b"\x05\xf1\x00\x01" + address + b"\x00\x00")
    assert name == b"\x05\x00" + socks5_reply(0, "some.backrooms")
    unknown = await exchange(port, CONNECT_IPV4 % b"\x7f\xc0\x00\x01")
    assert unknown == b"\x05\x00" + socks5_reply(4)
    await exchange(port, CONNECT_4A % b"same.example", end=True)
    assert proxies.request.host == "echo.example"
    http = await proxies.start("http", addresses=mapped)
    await exchange(http, CONNECT.replace(b"echo", b"same"), end=True)
    assert proxies.request.host == "echo.example"
    site = proxies.opener.servers["echo.example"] = Website()
    answer = await exchange(http, GET.replace(b"site", b"same") % 7, end=True)
    assert answer.endswith(b"/7")
    assert dict(site.requests[0].headers)[b"host"] == b"same.example"  # the server is who it says it is


async def test_private_answers_are_not_believed(proxies: Proxies) -> None:
    port = await proxies.start("socks", allow_private=False)
    proxies.opener.addresses["rebound.example"] = ["192.168.0.1", "::1"]
    proxies.opener.addresses["mixed.example"] = ["127.0.0.1", "9.8.7.6"]
    ask = HELLO_5 + b"\x05\xf0\x00\x03%c%s\x00\x00"
    assert await exchange(port, ask % (15, b"rebound.example")) == b"\x05\x00" + socks5_reply(4)
    assert await exchange(port, ask % (13, b"mixed.example")) == b"\x05\x00" + socks5_reply(0, "9.8.7.6")


async def test_other_machines_without_a_password_are_warned_of(proxies: Proxies, warnings: list[str]) -> None:
    await proxies.start("socks", "tcp:0:interface=0.0.0.0", password="secret")
    await proxies.start("http", allow_remote=True)
    assert warnings == []
    await proxies.start("http", "tcp:0:interface=0.0.0.0", allow_remote=True)
    assert len(warnings) == 1
    assert "has no password" in warnings[0]


# farewells


class Parting:
    """Streams in the care of `Farewells`, in simulated time."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.timers = Timers(self.clock)
        self.farewells = Farewells(self.timers)

    def stream(self) -> FakeStream:
        stream = FakeStream(Server())
        self.farewells.add(stream)
        return stream


def test_a_server_that_closes() -> None:
    parting = Parting()
    stream = parting.stream()
    assert stream.eof
    stream.end()
    parting.clock.advance(FAREWELL_TIME * 2)
    assert stream.aborted is None
    assert stream.on_dirty is None


def test_a_server_that_does_not_close() -> None:
    parting = Parting()
    stream = parting.stream()
    parting.clock.advance(FAREWELL_TIME)
    assert stream.aborted == EndReason.MISC


def test_a_server_that_goes_on() -> None:
    parting = Parting()
    stream = parting.stream()
    stream.send(b"more")
    assert stream.aborted == EndReason.MISC
    parting.clock.advance(FAREWELL_TIME)


def test_a_server_that_has_closed_before() -> None:
    stream = FakeStream(Server())
    stream.end()
    Parting().farewells.add(stream)
    assert stream.eof
    assert stream.on_dirty is None


def test_farewells_end_with_the_listener() -> None:
    parting = Parting()
    streams = [parting.stream() for _ in range(3)]
    parting.farewells.stop()
    assert [stream.aborted for stream in streams] == [EndReason.MISC] * 3
    parting.timers.close()


async def test_stopping_leaves_no_farewell_behind(proxies: Proxies) -> None:
    proxies.opener.servers["site.example"] = Website()
    port = await proxies.start("http")
    talk = exchange(port, GET % 1)
    await until(lambda: bool(proxies.opener.streams))
    (stream,) = proxies.opener.streams
    await until(lambda: not stream._out)
    await proxies.listener.stop()
    assert (await talk).startswith((b"HTTP/1.1 200 OK", b"RESET"))
    assert stream.on_dirty is None
    assert not proxies.listener.farewells._calls


async def test_a_page_leaves_no_reset_behind(proxies: Proxies) -> None:
    proxies.opener.servers["site.example"] = Website()
    port = await proxies.start("http")
    await exchange(port, GET % 1, end=True)
    await until(lambda: len(proxies.listener) == 0)
    await deferLater(reactor, 0.01)
    (stream,) = proxies.opener.streams
    assert (stream.eof, stream.aborted) == (True, None)
