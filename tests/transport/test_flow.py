"""Bytes through a TLS connection: order and back-pressure, and a link on top."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.error import ConnectionDone

from backrooms.channel.machine import Channel, LinkOpen, SignRequest
from backrooms.transport.tls import TlsTransport
from backrooms.transport.tuning import READ_SIZE
from backrooms.wire.cell import CELL_SIZE, CELLS_PER_RECORD, CellCommand, pack_cell
from tests.keys import NETWORK_ID, identity
from tests.transport.loopback import Loopback, PlainFactory, Recorder, Source, pause, until

KERNEL_BYTES = 24_000_000
"""More than Linux keeps in the two buffers of a loopback connection."""


class Digest(Recorder):
    """Keeps a hash and the size of each piece instead of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.hash = hashlib.sha256()
        self.size = 0
        self.largest = 0
        self.broken = 0

    def dataReceived(self, data: bytes) -> None:
        self.hash.update(data)
        self.size += len(data)
        self.largest = max(self.largest, len(data))
        self.broken += len(data) % CELL_SIZE != 0


async def test_bulk_both_ways_in_order() -> None:
    server = await Loopback(make=Digest).start()
    client, accepted = await server.pair()
    count = 400
    up = Source(client.pipe, 2 * count).start()
    down = Source(accepted.pipe, count).start()
    await up.done
    await down.done
    await until(lambda: accepted.size == 2 * count * 65_536 and len(client.data) == count * 65_536)
    expected = hashlib.sha256()
    for number in range(2 * count):
        expected.update(up.piece(number))
    assert accepted.size == 52_428_800
    assert accepted.hash.digest() == expected.digest()
    assert client.data == b"".join(down.piece(number) for number in range(count))
    # One record is eight whole cells, so nothing has to be put together again.
    assert accepted.largest == CELL_SIZE * CELLS_PER_RECORD
    assert accepted.broken == 0
    await server.stop(client)


@pytest.mark.parametrize("sizes", [[1] * 300, [0, 16_384, 16_385, 65_536, 65_537], [1_000_003], [CELL_SIZE] * 33])
async def test_writes_of_any_size(sizes: list[int]) -> None:
    server = await Loopback().start()
    client, accepted = await server.pair()
    pieces = [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]
    for piece in pieces:
        client.pipe.write(piece)
    await until(lambda: sum(map(len, accepted.pieces)) == sum(sizes))
    assert accepted.data == b"".join(pieces)
    await server.stop(client)


async def test_writing_at_once_keeps_the_order() -> None:
    server = await Loopback().start()
    client, accepted = await server.pair()
    pieces = [bytes([number]) * (number * 997 % 65_537) for number in range(100)]
    for piece in pieces:
        if not client.pipe.write_now(piece):
            await until(lambda: not client.pipe._tcp.dataBuffer and not client.pipe._tcp._tempDataLen)
    await until(lambda: len(accepted.data) == sum(map(len, pieces)))
    assert accepted.data == b"".join(pieces)
    await server.stop(client)


async def test_a_stalled_reader_stops_the_source() -> None:
    """What is not read is not even made: it stays in the mux, where it can be overtaken."""
    server = await Loopback(make=Digest).start()
    client, accepted = await server.pair()
    accepted.pipe.pauseProducing()
    source = Source(client.pipe, 1_000).start()
    last = -1
    while source.sent != last:
        last = source.sent
        await pause(0.15)
    assert source.sent * source.size < KERNEL_BYTES
    assert accepted.size == 0
    assert accepted.pipe.held == 0, "nothing was read"
    unsent = client.pipe._tcp
    waiting = len(unsent.dataBuffer) - unsent.offset + unsent._tempDataLen
    assert waiting < source.size + 4_096  # one write, encrypted
    with pytest.raises(SSL.WantReadError):
        client.pipe._tls.bio_read(1)
    accepted.pipe.resumeProducing()
    await source.done
    await until(lambda: accepted.size == 1_000 * source.size)
    expected = hashlib.sha256(b"".join(source.piece(number) for number in range(1_000)))
    assert accepted.hash.digest() == expected.digest()
    await server.stop(client)


class Sipping(Recorder):
    """Stops reading after every piece."""

    paused = False

    def dataReceived(self, data: bytes) -> None:
        assert not self.paused, "data while paused"
        super().dataReceived(data)
        self.paused = True
        self.pipe.pauseProducing()
        assert 0 < self.pipe.held <= READ_SIZE
        reactor.callLater(0, self.again)

    def again(self) -> None:
        self.paused = False
        self.pipe.resumeProducing()


async def test_a_reader_that_pauses_all_the_time_gets_everything_once() -> None:
    server = await Loopback(make=Sipping).start()
    client, accepted = await server.pair()
    source = Source(client.pipe, 20).start()
    await source.done
    client.pipe.loseConnection()
    assert isinstance(await accepted.lost, ConnectionDone)
    assert accepted.data == b"".join(source.piece(number) for number in range(20))
    await client.lost
    await server.stop()


async def test_pause_and_resume_inside_one_piece() -> None:
    class Blinking(Recorder):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            self.pipe.pauseProducing()
            self.pipe.resumeProducing()
            self.pipe.resumeProducing()

    server = await Loopback(make=Blinking).start()
    client, accepted = await server.pair()
    client.pipe.write(bytes(300_000))
    await until(lambda: len(accepted.data) == 300_000)
    await server.stop(client)


class Linked(Recorder):
    """A channel on a pipe, as the driver does it: output only when there is room."""

    def __init__(self, key: int, expected: int | None, relay: bool = True) -> None:
        super().__init__()
        self.key = identity(key)
        self.expected = expected
        self.relay = relay
        self.channel: Channel
        self.events: list[Any] = []
        self.room = False

    def connectionMade(self) -> None:
        super().connectionMade()
        binding, rng = self.pipe.binding(), random.Random(self.expected)
        me = self.key.public.id
        if self.expected is None:
            self.channel = Channel.respond(binding, NETWORK_ID, me, (1,), rng, 0.0, 1e9)
        else:
            other = identity(self.expected).public.id
            mine = me if self.relay else None
            self.channel = Channel.initiate(binding, NETWORK_ID, other, mine, (1,), rng, 0.0, 1e9)
        self.pipe.registerProducer(self, False)

    def dataReceived(self, data: bytes) -> None:
        self.channel.receive(data, 0.0)
        self.look()

    def look(self) -> None:
        for event in self.channel.events():
            self.events.append(event)
            if isinstance(event, SignRequest):
                self.channel.signed(self.key.public, self.key.sign(event.message, event.algorithms), 0.0)
        self.events += self.channel.events()
        self.flush()

    def flush(self) -> None:
        if self.room and (data := self.channel.output()):
            self.room = False
            self.pipe.write(data)

    def resumeProducing(self) -> None:
        self.room = True
        self.flush()

    def stopProducing(self) -> None:
        self.room = False


@pytest.mark.parametrize("relay", [False, True], ids=["client", "relay"])
async def test_a_link_over_tls(relay: bool) -> None:
    server = await Loopback(make=lambda: Linked(1, None)).start()
    client: Linked = await _dial(server, Linked(0, 1, relay))
    await until(lambda: client.channel.open and server.accepted[0].channel.open)
    accepted: Linked = server.accepted[0]
    me = identity(0).public.id if relay else None
    assert client.events[-1] == LinkOpen(identity(1).public.id, 1, 0)
    assert accepted.events[-1] == LinkOpen(me, 1, 0 if relay else None)
    # A reader that stalls leaves the cells in the mux.
    circuit_id = client.channel.new_circuit_id()
    client.channel.create(circuit_id, b"")
    client.flush()
    await until(lambda: accepted.channel.circuits)
    accepted.channel.created(circuit_id, b"")
    accepted.flush()
    got: list[int] = []
    accepted.channel.handlers[circuit_id] = lambda command, buffer, offset: got.append(buffer[offset + 8])
    await until(lambda: any("Created" in repr(event) for event in client.events))
    accepted.pipe.pauseProducing()
    queue = client.channel.mux.open(circuit_id)
    fed = 0
    stuck = 0
    while stuck < 20 and fed < KERNEL_BYTES // CELL_SIZE:
        before = len(queue)
        for _ in range(1_000 - before):
            queue.append(pack_cell(circuit_id, CellCommand.RELAY, bytes((fed % 251,))))
            fed += 1
        client.flush()
        await pause(0.002)
        stuck = stuck + 1 if len(queue) == 1_000 else 0
    assert len(queue) > 900
    accepted.pipe.resumeProducing()
    await until(lambda: len(got) == fed)
    assert got == [number % 251 for number in range(fed)]
    assert accepted.channel.counts == {}
    await server.stop(client)


async def _dial(server: Loopback, protocol: Linked) -> Any:
    endpoint = TlsTransport(NETWORK_ID).client_endpoint(reactor, server.address)
    return await endpoint.connect(PlainFactory(lambda: protocol))
