"""Proxies on loopback sockets, with bare sockets as their applications."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from backrooms.errors import ConfigError
from backrooms.node.requests import StreamRequest
from backrooms.proxy.events import Limits
from backrooms.proxy.isolation import Isolation
from backrooms.proxy.listeners import ProxyListener
from backrooms.proxy.request import Request
from backrooms.proxy.socks import HTTP_PAGE, socks5_reply
from backrooms.wire.relay import EndReason
from tests.proxy.fakes import FakeOpener
from tests.proxy.loopback import BODY, CONNECT_4A, GRANTED_4A, REJECTED_4A, Proxies, exchange, until

RESET_ON_CLOSE = b"\x01\0\0\0\0\0\0\0"
"""SO_LINGER: on, 0 seconds."""


async def test_unix_socket(proxies: Proxies, tmp_path: Path) -> None:
    await proxies.start("socks", f"unix:{tmp_path}/socks")
    answer = await exchange(f"{tmp_path}/socks", CONNECT_4A % b"web.example" + b"GET / HTTP/1.0\r\n\r\n")
    assert answer.startswith(GRANTED_4A + b"HTTP/1.0 200 OK")
    assert proxies.request.source == "unix:0"


async def test_bytes_on_the_wire(proxies: Proxies) -> None:
    proxies.opener.addresses["web.example"] = ["1.2.3.4"]
    proxies.opener.names["1.2.3.4"] = ["web.example"]
    port = await proxies.start("socks")
    hello5 = b"\x05\x01\x00"
    for sent, answer in (
        (CONNECT_4A % b"refused.example", REJECTED_4A),
        (hello5 + b"\x05\x01\x00\x03\x0frefused.example\x00\x50", b"\x05\x00" + socks5_reply(5)),
        (hello5 + b"\x05\xf0\x00\x03\x0bweb.example\x00\x00", b"\x05\x00" + socks5_reply(0, "1.2.3.4")),
        (hello5 + b"\x05\xf0\x00\x03\x0cnone.example\x00\x00", b"\x05\x00" + socks5_reply(4)),
        (hello5 + b"\x05\xf1\x00\x01\x01\x02\x03\x04\x00\x00", b"\x05\x00" + socks5_reply(0, "web.example")),
        (hello5 + b"\x05\x03\x00\x01\x01\x02\x03\x04\x00\x00", b"\x05\x00" + socks5_reply(7)),
        (b"\x05\x01\x02\x01\x09<torS0X>1\x00", b"\x05\x02\x01\x01"),
        (b"GET / HTTP/1.1\r\n" + b"x" * 10_000, HTTP_PAGE),
        (b"\xff" * 10_000, b""),
    ):
        assert await exchange(port, sent) == answer
    await until(lambda: len(proxies.listener) == 0)


async def test_half_close_by_the_application(proxies: Proxies) -> None:
    port = await proxies.start("socks")
    body = BODY[:500_000]
    answer = await exchange(port, CONNECT_4A % b"echo.example" + body, end=True)
    assert answer == GRANTED_4A + body
    await until(lambda: len(proxies.listener) == 0)
    assert proxies.opener.streams[0].aborted is None


async def test_half_close_by_the_network(proxies: Proxies) -> None:
    port = await proxies.start("socks")

    def talk() -> bytes:
        with socket.create_connection(("127.0.0.1", port), 10) as application:
            application.sendall(CONNECT_4A % b"web.example" + b"GET / HTTP/1.0\r\n\r\n")
            answer = b""
            while piece := application.recv(65536):
                answer += piece
            application.sendall(b"after the end")
            return answer

    answer = await deferToThread(talk)
    assert answer.endswith(b"hello from the web\n")
    await until(lambda: len(proxies.listener) == 0)
    stream = proxies.opener.streams[0]
    assert stream.received.endswith(b"after the end")
    assert stream.eof
    assert stream.aborted is None


async def test_broken_stream_resets_the_connection(proxies: Proxies) -> None:
    port = await proxies.start("socks")
    answer = await exchange(port, CONNECT_4A % b"breaks.example" + b"GET")
    assert answer == GRANTED_4A + b"HTTP/1.0 200 OK\r\n\r\nhalf of itRESET"


def send_now(application: socket.socket) -> int:
    """How many bytes the kernel takes at once; 0 when it takes none."""
    try:
        return application.send(BODY)
    except BlockingIOError:
        return 0


async def test_backpressure_reaches_the_application(proxies: Proxies) -> None:
    port = await proxies.start("socks")
    with socket.create_connection(("127.0.0.1", port), 10) as application:
        application.sendall(CONNECT_4A % b"quiet.example")
        await until(lambda: bool(proxies.opener.streams))
        stream = proxies.opener.streams[0]
        stream.pause(True)
        await deferLater(reactor, 0.05)
        application.setblocking(False)
        sent = 0
        while (taken := send_now(application)) > 0:
            sent += taken
            assert sent < 100_000_000
        await deferLater(reactor, 0.1)  # time in which a proxy that still reads would read
        assert len(stream.received) == 0
        stream.pause(False)
        await until(lambda: len(stream.received) == sent)
        assert application.recv(100) == GRANTED_4A  # closing with this unread would be a reset
    await until(lambda: stream.eof)
    stream.end()
    await until(lambda: len(proxies.listener) == 0)


async def test_stalled_application_does_not_fill_memory(proxies: Proxies) -> None:
    port = await proxies.start("socks")
    with socket.create_connection(("127.0.0.1", port), 10) as application:
        application.sendall(CONNECT_4A % b"quiet.example")
        await until(lambda: bool(proxies.opener.streams))
        stream = proxies.opener.streams[0]
        for _ in range(10):
            stream.send(BODY)
        await deferLater(reactor, 0.3)
        assert len(stream._out) > 0  # what does not fit in the kernel's buffers stays in the stream
    await until(lambda: stream.aborted is not None or stream.eof)


async def test_application_that_goes_away_aborts_its_stream(proxies: Proxies) -> None:
    port = await proxies.start("socks")
    with socket.create_connection(("127.0.0.1", port), 10) as application:
        application.sendall(CONNECT_4A % b"silent.example")
        await until(lambda: bool(proxies.opener.streams))
        application.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    await until(lambda: proxies.opener.streams[0].aborted == EndReason.MISC)
    assert len(proxies.listener) == 0


async def test_look_up_is_cancelled_with_its_application(proxies: Proxies) -> None:
    port = await proxies.start("socks")
    with socket.create_connection(("127.0.0.1", port), 10) as application:
        application.sendall(b"\x04\xf0\x00\x00\x00\x00\x00\x01\x00hang.example\x00")
        await until(lambda: bool(proxies.opener.hanging))
        application.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    await until(lambda: proxies.opener.hanging[0].called)


async def test_failing_look_up_is_logged_and_answered(proxies: Proxies, clean: Any) -> None:
    class Broken(FakeOpener):
        def resolve(self, request: StreamRequest) -> Any:
            raise ZeroDivisionError

    proxies.opener = Broken()
    port = await proxies.start("socks")
    answer = await exchange(port, b"\x04\xf0\x00\x00\x00\x00\x00\x01\x00some.example\x00")
    assert answer == REJECTED_4A
    assert len(clean.flush(ZeroDivisionError)) == 1


async def test_slow_request_is_closed(proxies: Proxies) -> None:
    port = await proxies.start("http", limits=Limits(request=0.2))
    answer = await exchange(port, b"CONNECT ")
    assert answer.startswith(b"HTTP/1.1 408 ")
    await until(lambda: len(proxies.listener) == 0)


async def test_application_that_never_closes_is_closed(proxies: Proxies) -> None:
    port = await proxies.start("socks", limits=Limits(linger=0.1))
    with socket.create_connection(("127.0.0.1", port), 10) as application:
        application.sendall(CONNECT_4A % b"refused.example")
        await until(lambda: bool(proxies.opener.streams))
        await until(lambda: len(proxies.listener) == 0)


async def test_stream_that_ends_later_half_closes_too_long(proxies: Proxies) -> None:
    port = await proxies.start("socks", limits=Limits(half_closed=0.1))
    with socket.create_connection(("127.0.0.1", port), 10) as application:
        application.sendall(CONNECT_4A % b"quiet.example")
        await until(lambda: bool(proxies.opener.streams))
        await deferLater(reactor, 0.05)
        proxies.opener.streams[0].end()
        await until(lambda: len(proxies.listener) == 0)


async def test_connections_are_limited(proxies: Proxies) -> None:
    port = await proxies.start("socks", max_connections=2)
    first = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(2)]
    await until(lambda: len(proxies.listener) == 2)
    assert await exchange(port, b"") == b""
    assert len(proxies.listener) == 2
    assert proxies.listener.refused == 1
    for application in first:
        application.close()
    await until(lambda: len(proxies.listener) == 0)
    assert await exchange(port, CONNECT_4A % b"refused.example") == REJECTED_4A


async def test_stop_resets_what_is_connected(proxies: Proxies) -> None:
    port = await proxies.start("socks")
    talk = exchange(port, CONNECT_4A % b"quiet.example")
    await until(lambda: bool(proxies.opener.streams))
    await proxies.listener.stop()
    assert len(proxies.listener) == 0
    assert (await talk).endswith(b"RESET")
    assert proxies.opener.streams[0].aborted == EndReason.MISC
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 10)


@pytest.mark.parametrize("endpoint", ["tcp:0", "tcp:0:interface=0.0.0.0", r"tcp6:0:interface=\:\:"])
async def test_other_machines_are_kept_out(proxies: Proxies, endpoint: str) -> None:
    with pytest.raises(ConfigError, match="other machines could use it"):
        await proxies.start("socks", endpoint)
    assert proxies.listener._port is None
    assert await proxies.start("http", "tcp:0:interface=0.0.0.0", allow_remote=True)


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp:x", "tcp:1:2:3:4:5", "zzz:1"])
def test_endpoint_that_is_none(proxies: Proxies, endpoint: str) -> None:
    with pytest.raises(ConfigError, match="is not an endpoint string"):
        ProxyListener("socks", endpoint, proxies.opener, proxies.timers, proxies.turn, reactor)


def test_isolation_rules() -> None:
    def key(rules: Isolation, *, host: str = "a.b", port: int = 1, user: bytes = b"u", client: str = "c") -> object:
        request = Request("connect", host, port, "SOCKS5", user)
        return rules.stream_request(request, client, "c:1").isolation

    default, other = Isolation("one"), Isolation("two")
    strict = Isolation("one", destination_host=True, destination_port=True)
    loose = Isolation("one", credentials=False, client_address=False)
    assert key(default) == key(default, host="c.d", port=2)
    assert len({key(default), key(other), key(default, user=b"v"), key(default, client="d")}) == 4
    assert len({key(strict), key(strict, host="c.d"), key(strict, port=2)}) == 3
    assert key(loose) == key(loose, user=b"v", client="d")
    assert key(loose) != key(loose, user=b"level=low")

    tokens = [Request("connect", "a.b", 1, "HTTPCONNECT", token=token) for token in (b"one", b"two", b"one")]
    first, second, again = (default.stream_request(token, "c", "c:1").isolation for token in tokens)
    assert first == again != second
