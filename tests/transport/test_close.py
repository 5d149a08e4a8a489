"""How a TLS connection ends."""

from __future__ import annotations

import socket

import pytest
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost

from backrooms.transport import handshake
from backrooms.transport.tls import TransportError
from tests.transport.loopback import Loopback, Recorder, Source, pause, until

KERNEL_BYTES = 24_000_000
"""More than Linux keeps in the two buffers of a loopback connection."""


async def test_everything_written_arrives_before_the_end() -> None:
    server = await Loopback().start()
    client, accepted = await server.pair()
    client.pipe.write(bytes(1_000_000))
    client.pipe.loseConnection()
    client.pipe.loseConnection()
    client.pipe.write(b"too late")
    assert isinstance(await accepted.lost, ConnectionDone)
    assert isinstance(await client.lost, ConnectionDone)
    assert accepted.data == bytes(1_000_000)
    await server.stop()


async def test_the_end_arrives_although_the_other_end_is_sending() -> None:
    """Closing a socket with unread bytes in it resets the connection, and our last ones could be lost."""
    server = await Loopback().start()
    client, accepted = await server.pair()
    down = Source(accepted.pipe, 10_000).start()
    await until(lambda: len(client.pieces) > 20)
    client.pipe.pauseProducing()
    await pause(0.05)
    client.pipe.write(b"last words")
    client.pipe.loseConnection()
    assert isinstance(await accepted.lost, ConnectionDone)
    assert accepted.data == b"last words"
    assert down.stopped == 1
    assert isinstance(await client.lost, ConnectionDone)
    await server.stop()


async def test_a_registered_producer_may_finish() -> None:
    server = await Loopback().start()
    client, accepted = await server.pair()
    source = Source(client.pipe, 30)
    source.start()
    client.pipe.loseConnection()
    assert client.pipe.disconnecting
    assert isinstance(await accepted.lost, ConnectionDone)
    assert accepted.data == b"".join(source.piece(number) for number in range(30))
    await client.lost
    await server.stop()


async def test_both_close_at_once() -> None:
    server = await Loopback().start()
    client, accepted = await server.pair()
    Source(client.pipe, 10_000).start()  # never finished: the peer's close ends it
    client.pipe.unregisterProducer()
    client.pipe.loseConnection()
    accepted.pipe.loseConnection()
    assert isinstance(await client.lost, ConnectionDone)
    assert isinstance(await accepted.lost, ConnectionDone)
    await server.stop()


async def test_abort() -> None:
    server = await Loopback().start()
    client, accepted = await server.pair()
    source = Source(client.pipe, 10_000).start()
    client.pipe.abortConnection()
    client.pipe.abortConnection()
    client.pipe.loseConnection()
    client.pipe.write(b"too late")
    assert isinstance(await client.lost, ConnectionAborted)
    assert isinstance(await accepted.lost, ConnectionLost)
    assert source.stopped == 1
    await server.stop()


async def test_abort_inside_a_piece() -> None:
    class Offended(Recorder):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            self.pipe.abortConnection()

    server = await Loopback(make=Offended).start()
    client, accepted = await server.pair()
    client.pipe.write(bytes(100_000))
    await accepted.lost
    assert len(accepted.pieces) == 1
    await client.lost
    await server.stop()


async def test_what_comes_after_the_end_is_ignored() -> None:
    server = await Loopback().start()
    client, accepted = await server.pair()
    client.pipe.loseConnection()
    await client.lost
    await accepted.lost
    for end in (client.pipe, accepted.pipe):
        end.write(b"x")
        end.writeSequence([b"x"])
        assert end.write_now(b"x")
        end.startWriting()
        end.loseConnection()
        end.abortConnection()
        end.pauseProducing()
        end.resumeProducing()
        end.stopProducing()
        end.unregisterProducer()
        end.dataReceived(b"x")
        end.connectionLost()
        late = Source(end, 1).start()
        assert (late.sent, late.stopped) == (0, 1)
        assert end.binding().value
    await server.stop()


async def test_one_producer_at_a_time() -> None:
    server = await Loopback().start()
    client, _ = await server.pair()
    Source(client.pipe, 0).start()
    Source(client.pipe, 0).start()  # the first one unregistered itself
    client.pipe.registerProducer(Recorder(), True)
    with pytest.raises(RuntimeError, match="registered already"):
        Source(client.pipe, 0).start()
    client.pipe.unregisterProducer()
    await server.stop(client)


async def test_a_cut_connection_is_not_a_closed_one() -> None:
    server = await Loopback().start()
    client, accepted = await server.pair()
    client.pipe.write(b"a message cut ")
    client.pipe._tcp.loseConnection()
    reason = await accepted.lost
    assert isinstance(reason, ConnectionLost)
    assert "without a TLS close_notify" in str(reason)
    assert accepted.data == b"a message cut "
    assert isinstance(await client.lost, ConnectionLost)
    await server.stop()


async def test_changed_bytes_end_the_connection() -> None:
    server = await Loopback().start()
    client, accepted = await server.pair()
    down = Source(accepted.pipe, 10_000)
    client.pipe.pauseProducing()
    down.start()
    client.pipe._tls.send(b"x" * 100)
    record = bytearray(client.pipe._tls.bio_read(1_000))
    record[50] ^= 1
    client.pipe._tcp.write(bytes(record))
    reason = await accepted.lost
    assert isinstance(reason, TransportError)
    assert "bad record mac" in str(reason)
    assert accepted.data == b""
    assert down.stopped == 1
    client.pipe.resumeProducing()
    assert isinstance(await client.lost, TransportError)  # it got the alert
    await server.stop()


async def test_a_peer_that_never_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert handshake.CLOSE_SECONDS == 5
    monkeypatch.setattr(handshake, "CLOSE_SECONDS", 0.1)
    server = await Loopback().start()
    client, accepted = await server.pair()
    client.pipe.pauseProducing()  # hears no close_notify
    accepted.pipe.loseConnection()
    assert isinstance(await accepted.lost, ConnectionDone)
    client.pipe.resumeProducing()
    await client.lost
    await server.stop()


async def test_a_peer_that_reads_nothing_can_still_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "CLOSE_SECONDS", 0.1)
    server = await Loopback().start()
    client, accepted = await server.pair()
    client.pipe.pauseProducing()
    accepted.pipe.write(bytes(KERNEL_BYTES))
    accepted.pipe.loseConnection()
    assert isinstance(await accepted.lost, ConnectionDone)
    client.pipe.abortConnection()
    await client.lost
    await server.stop()


async def test_a_connection_reset() -> None:
    server = await Loopback().start()
    client, accepted = await server.pair()
    below: socket.socket = client.pipe._tcp.socket
    below.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.pipe._tcp.abortConnection()
    assert isinstance(await accepted.lost, ConnectionLost)
    assert isinstance(await client.lost, ConnectionAborted)
    await server.stop()
