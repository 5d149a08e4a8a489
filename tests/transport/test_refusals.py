"""Peers that are refused, each with its reason."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.threads import deferToThread

from backrooms.transport import handshake
from backrooms.transport.tls import TlsTransport, TransportError
from tests.keys import NETWORK_ID
from tests.transport.loopback import (
    Loopback,
    dial,
    files,
    foreign_client,
    foreign_server,
    p256,
    raw_server,
    rsa_2048,
    until,
)

TLS12 = ssl.TLSVersion.TLSv1_2


async def refusal(address: str, transport: TlsTransport | None = None) -> str:
    """Why the connection fails."""
    with pytest.raises(TransportError) as caught:
        await dial(address, transport)
    return str(caught.value)


async def test_a_client_of_tls_12() -> None:
    server = await Loopback().start()
    heard = await deferToThread(foreign_client, server.port, TLS12)
    assert "protocol version" in heard.lower()
    await until(lambda: server.refused)
    (reason,) = server.refused
    assert reason.startswith("TLS 1.3 is required, the peer does not speak it")
    assert server.accepted == []
    await server.stop()


async def test_a_server_of_tls_12() -> None:
    async with foreign_server(*files(), TLS12) as address:
        assert (await refusal(address)).startswith("TLS 1.3 is required, the peer does not speak it")


async def test_a_client_without_ml_kem() -> None:
    server = await Loopback().start()
    await deferToThread(foreign_client, server.port)
    await until(lambda: server.refused)
    assert server.refused == ["the key exchange group is x25519, X25519MLKEM768 is required"]
    assert server.accepted == []
    await server.stop()


async def test_a_server_without_ml_kem() -> None:
    async with foreign_server(*files()) as address:
        assert await refusal(address) == "the key exchange group is x25519, X25519MLKEM768 is required"


async def test_a_classical_group_where_it_is_allowed() -> None:
    server = await Loopback(require_pq=False).start()
    heard = deferToThread(foreign_client, server.port, say=b"hello")
    await until(lambda: server.accepted and server.accepted[0].data == b"hello")
    server.accepted[0].pipe.write(b"welcome")
    assert await heard == "b'welcome'"
    assert server.accepted[0].pipe.group() == "x25519"
    await server.stop()
    async with foreign_server(*files()) as address:
        client = await dial(address, TlsTransport(NETWORK_ID, require_pq=False))
        client.pipe.write(b"echo")
        await until(lambda: client.data == b"echo")
        client.pipe.loseConnection()
        await client.lost


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (rsa_2048, "TLS certificate: RSA key of 2048 bits, exactly 4096 are required"),
        (p256, "TLS certificate is not RSA"),
    ],
)
async def test_a_weak_certificate(pair: Any, reason: str) -> None:
    async with foreign_server(*pair()) as address:
        assert await refusal(address, TlsTransport(NETWORK_ID, require_pq=False)) == reason
    with pytest.raises(TransportError, match=reason):
        TlsTransport(NETWORK_ID, *pair()).server_endpoint(None, "127.0.0.1:0")


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(70_000), b"\0" * 64])
async def test_garbage(words: bytes) -> None:
    server = await Loopback().start()

    def probe() -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            try:
                connection.sendall(words)
                return connection.recv(1000)
            except ConnectionResetError:
                return b""

    heard = await deferToThread(probe)
    assert len(heard) <= 7  # nothing, or one alert
    await until(lambda: server.refused)
    assert "TLS" in server.refused[0]
    assert server.accepted == []
    await server.stop()


async def test_a_server_that_is_no_tls_server() -> None:
    async with raw_server(lambda connection: connection.sendall(b"220 mail.example ESMTP\r\n")) as address:
        assert "TLS" in await refusal(address)
    async with raw_server(lambda connection: None) as address:
        assert (await refusal(address)).startswith("the connection ")


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await dial(f"127.0.0.1:{port}")


async def test_a_silent_peer_costs_ten_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    assert handshake.HANDSHAKE_SECONDS == 10
    monkeypatch.setattr(handshake, "HANDSHAKE_SECONDS", 0.05)
    server = await Loopback().start()

    def wait() -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            try:
                return connection.recv(1)
            except ConnectionResetError:
                return b""

    assert await deferToThread(wait) == b""
    assert server.refused == ["the TLS handshake took over 0 s"]
    await server.stop()
    async with raw_server(lambda connection: _until_closed(connection)) as address:
        assert await refusal(address) == "the TLS handshake took over 0 s"


def _until_closed(connection: socket.socket) -> None:
    try:
        while connection.recv(65536):
            pass
    except OSError:
        pass


async def test_cancelling_closes_the_connection() -> None:
    async with raw_server(_until_closed) as address:  # which joins its thread, so the connection must end
        connecting = dial(address)
        failed: list[Any] = []
        connecting.addErrback(failed.append)
        await until(lambda: connecting.paused)
        connecting.cancel()
        await until(lambda: failed)
        assert failed[0].check(TransportError)


async def test_a_factory_may_decline() -> None:
    server = await Loopback(make=lambda: None).start()
    client = await server.connect()
    assert isinstance(await client.lost, ConnectionLost)
    assert server.refused == ["the connection is not wanted"]
    server.accepted.clear()
    await server.stop()


async def test_an_inner_protocol_that_fails_at_once(clean: Any) -> None:
    class Broken:
        def makeConnection(self, transport: Any) -> None:
            raise ZeroDivisionError("a bug above")

        def connectionLost(self, reason: Any) -> None:
            lost.append(reason.value)

    lost: list[Any] = []
    server = await Loopback(make=Broken).start()
    client = await server.connect()
    await client.lost
    await until(lambda: lost)
    assert [type(error) for error in lost] == [ZeroDivisionError]
    clean.flush(ZeroDivisionError)
    server.accepted.clear()
    await server.stop()
