"""Targets of circuits: what a client and a relay make of cells and of the messages inside them."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from backrooms.channel.mux import CircuitQueue, Mux
from backrooms.circuit.edge import Edge
from backrooms.circuit.events import BeginRequested, CircuitClosed, DirectoryRequested, ResolveRequested
from backrooms.circuit.hop import MAX_STREAMS, RelayCircuit, RelayEdge
from backrooms.circuit.origin import ClientEdge
from backrooms.circuit.stream import CREDIT_MAX, Stream
from backrooms.crypto.onion import HOP_KEY_BYTES, Layer, split_hop_keys
from backrooms.errors import StreamError
from backrooms.wire.cell import BODY_SIZE, CELL_SIZE, HEADER, TAG_SIZE, ZERO3, CellCommand
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.relay import (
    SENDME_CELLS,
    Answer,
    Begin,
    Connected,
    Credit,
    End,
    EndReason,
    Extend,
    RelayCommand,
    Resolve,
    Resolved,
    pack_message,
)
from tests.fuzz.target import Target

_ID = 0x80000001


class _Party:
    """One end of a circuit without cryptography. A script says what it receives and what its owner does."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sealed = 0
        self.received = 0
        self.streams: list[Stream] = []
        self.edge: Edge

    def seal(self, body: bytes) -> tuple[bytes, bytes]:
        """The n-th cell's tag is n, so that a script can name it in a SENDME."""
        assert len(body) == BODY_SIZE
        self.sealed += 1
        return body, self.sealed.to_bytes(TAG_SIZE, "big")

    def run(self, script: bytes) -> None:
        """Steps, each `step u8 | argument u8`; step 0 is a cell, `length u16` and so much of its body."""
        reader = Reader(script)
        steps = self.steps()
        try:
            while reader.remaining >= 2 and not self.edge.closed:
                step, argument = reader.u8(), reader.u8()
                if step == 0:
                    size = argument << 8 | (reader.u8() if reader.remaining else 0)
                    self.cell(reader.bytes(min(size, reader.remaining, BODY_SIZE)))
                else:
                    steps[step % len(steps)](argument)
                self.check()
        finally:
            self.edge.close()
            for stream in self.streams:
                assert stream.closed or not stream.stream_id
            self.edge.receive(bytes(BODY_SIZE), bytes(TAG_SIZE))

    def cell(self, body: bytes) -> None:
        self.received += 1
        self.edge.receive(body.ljust(BODY_SIZE, b"\0"), self.received.to_bytes(TAG_SIZE, "big"))

    def check(self) -> None:
        """What must hold whatever the peer does."""
        edge = self.edge
        assert len(edge.streams) <= MAX_STREAMS
        for stream in self.streams:
            assert 0 <= stream._granted <= CREDIT_MAX
            assert stream._inbox_size <= CREDIT_MAX
            assert 0 <= stream.credit <= 0xFFFFFFFF
            assert stream.unsent == sum(map(len, stream._outbox)) - stream._offset
        assert edge.vegas.inflight >= 0

    def steps(self) -> list[Callable[[int], object]]:
        """What an owner does; `argument` chooses the stream, or says how much."""
        return [
            self.fill,
            self.on_stream(lambda stream, n: stream.receive(bytes(100 + 300 * (n >> 4)), self.now)),
            self.on_stream(lambda stream, n: stream.receive_eof(self.now)),
            self.on_stream(lambda stream, n: stream.output()),
            self.on_stream(lambda stream, n: stream.abort(EndReason.MISC)),
            self.on_stream(lambda stream, n: stream.events()),
            self.wait,
            self.on_stream(lambda stream, n: stream.receive(bytes(70_000), self.now)),
        ]

    def fill(self, count: int) -> None:
        assert len(self.edge.fill(count % 33)) <= count % 33

    def wait(self, count: int) -> None:
        self.now += count / 100

    def on_stream(self, act: Callable[[Stream, int], object]) -> Callable[[int], object]:
        def step(argument: int) -> object:
            return act(self.streams[argument % len(self.streams)], argument) if self.streams else None

        return step


class _Client(_Party):
    """A client's edge, with a stream that waits for CONNECTED and a look-up from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.handshakes: list[bytes] = []
        queue = Mux().open(_ID)
        self.client = ClientEdge(
            self.seal,
            queue,
            lambda: self.now,
            random.Random(1),
            on_extended=self.handshakes.append,
            on_idle=lambda: None,
        )
        self.edge = self.client
        queue.on_overflow = self.client.close
        self.begin(0)
        self.resolve(0)

    def begin(self, argument: int) -> None:
        """As `OriginCircuit.begin` does."""
        try:
            stream_id = self.client.free_id()
        except StreamError:
            return
        stream = Stream()
        self.client.add(stream, stream_id)
        self.client.send(RelayCommand.BEGIN, stream_id, Begin("example.org", 80).encode())
        stream.attach(self.client, stream_id)
        self.streams.append(stream)

    def resolve(self, argument: int) -> None:
        try:
            self.client.resolving[self.client.free_id()] = lambda answer: None
        except StreamError:
            return

    def steps(self) -> list[Callable[[int], object]]:
        return [*super().steps(), self.begin, self.resolve]


class _Exit(_Party):
    """An exit's edge."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []
        queue = Mux().open(_ID)
        self.exit = RelayEdge(self.seal, queue, lambda: self.now, random.Random(1), emit=self.emit)
        self.edge = self.exit
        queue.on_overflow = self.exit.close

    def emit(self, event: object) -> None:
        self.asked.append(event)
        if isinstance(event, BeginRequested | DirectoryRequested):
            self.streams.append(self.exit.streams[event.stream_id])

    def cell(self, body: bytes) -> None:
        self.exit.early = body[:1] == bytes([RelayCommand.EXTEND])
        super().cell(body)

    def answer(self, argument: int) -> None:
        """Connect the oldest stream that waits, or answer the oldest look-up."""
        if not self.asked:
            return
        event = self.asked.pop(0)
        if isinstance(event, BeginRequested | DirectoryRequested):
            stream = self.exit.streams.get(event.stream_id)
            if stream is not None:
                self.exit.connected(stream, "192.0.2.1", 60)
        elif isinstance(event, ResolveRequested):
            self.exit.resolved(event.stream_id, Resolved((Answer("192.0.2.1", 60),)))

    def steps(self) -> list[Callable[[int], object]]:
        return [*super().steps(), self.answer, self.answer]


# Whole cells. All keys are fixed, so that a seed is a cell that is recognised.

_KEYS = bytes(i % 251 for i in range(HOP_KEY_BYTES))


def _cells(data: bytes) -> list[bytes]:
    return [data[at : at + CELL_SIZE].ljust(CELL_SIZE, b"\0") for at in range(0, len(data), CELL_SIZE)]


def _queue() -> CircuitQueue:
    return Mux().open(_ID)


def _relay_cells(extended: bool, data: bytes) -> None:
    """A relay gets cells from both sides: those of even commands from the next hop."""
    events: list[object] = []
    circuit = RelayCircuit(_KEYS, _queue(), lambda: 0.0, random.Random(1), events.append)
    if extended:
        circuit.extend(_queue(), b"welcome")
    for cell in _cells(data):
        command = CellCommand.RELAY_EARLY if cell[4] == CellCommand.RELAY_EARLY else CellCommand.RELAY
        if cell[4] & 0x80:
            circuit.backward(command, cell, 0)
        else:
            circuit.forward(command, cell, 0)
    assert sum(isinstance(event, CircuitClosed) for event in events) == circuit.closed
    circuit.close()


def _client_cells() -> bytes:
    """What a client with these keys sends."""
    layer = Layer(split_hop_keys(_KEYS)[0], encrypting=False)
    out = bytearray()
    for command, body in (
        (CellCommand.RELAY_EARLY, _message(RelayCommand.BEGIN, 1, Begin("example.org", 80).encode())),
        (CellCommand.RELAY, _message(RelayCommand.DATA, 1, b"hello")),
    ):
        left, right = layer.client_originate(command, body.ljust(BODY_SIZE, b"\0"))
        out += HEADER.pack(_ID, command, ZERO3) + left + right
    return bytes(out)


# Seeds

_message = pack_message


def _step(body: bytes) -> bytes:
    """The step that receives a cell."""
    return Writer().u8(0).u16(len(body)).bytes(body).done()


def _tag(number: int) -> bytes:
    return number.to_bytes(TAG_SIZE, "big")


def _client_scripts() -> list[bytes]:
    connected = _message(RelayCommand.CONNECTED, 1, Connected("192.0.2.1", 60).encode())
    data = _message(RelayCommand.DATA, 1, b"hello")
    end = _message(RelayCommand.END, 1, End(EndReason.DONE).encode())
    error = _message(RelayCommand.END, 1, End(EndReason.CONNECTREFUSED).encode())
    credit = _message(RelayCommand.CREDIT, 1, Credit(100_000).encode())
    resolved = _message(RelayCommand.RESOLVED, 2, Resolved((Answer("192.0.2.1", 60),)).encode())
    extended = _message(RelayCommand.EXTENDED, 0, Writer().bytes16(bytes(1152)).done())
    sendme = _message(RelayCommand.SENDME, 0, _tag(SENDME_CELLS + 1))
    # Steps go by their place in `steps`, which has ten entries.
    fill, send, eof, read = b"\x0a\x20", b"\x0b\xf0", b"\x02\0", b"\x03\0"
    return [
        _step(connected + data) + read + _step(data + end) + read + eof + fill,
        _step(connected) + send + fill + _step(credit) + fill + _step(end) + eof + fill,
        _step(resolved) + _step(extended) + _step(error) + fill,
        fill + _step(connected) + b"\x07\0" + fill + fill + b"\x06\x05" + _step(sendme) + fill,
        _step(data.join([connected, b""]) + _message(0x90, 1, b"new")) + b"\x08\0" + b"\x09\0" + fill,
    ]


def _exit_scripts() -> list[bytes]:
    begin = _message(RelayCommand.BEGIN, 1, Begin("example.org", 80).encode())
    second = _message(RelayCommand.BEGIN, 2, Begin("::1", 443).encode())
    data = _message(RelayCommand.DATA, 1, b"hello")
    end = _message(RelayCommand.END, 1, End(EndReason.DONE).encode())
    resolve = _message(RelayCommand.RESOLVE, 3, Resolve("example.org", False).encode())
    extend = _message(RelayCommand.EXTEND, 0, Extend(bytes(32), bytes(1312)).encode())
    credit = _message(RelayCommand.CREDIT, 1, Credit(100_000).encode())
    sendme = _message(RelayCommand.SENDME, 0, _tag(SENDME_CELLS + 1))
    fill, send, eof, read, answer = b"\x0a\x20", b"\x0b\xf0", b"\x02\0", b"\x03\0", b"\x08\0"
    return [
        _step(begin + data) + answer + read + _step(data + end) + read + send + eof + fill,
        _step(begin + second + resolve) + answer * 3 + fill + _step(credit) + fill,
        _step(extend) + fill,
        _step(_message(RelayCommand.BEGIN_DIR, 1, b"") + data) + answer + read + send + _step(end) + eof + fill,
        _step(begin) + answer + fill + b"\x07\0" + fill + fill + b"\x06\x05" + _step(sendme) + fill,
        _step(begin) + _step(end) + _step(second) + b"\x04\1" + fill,
        b"".join(_step(data) if n else _step(begin) for n in range(18)),
    ]


def targets() -> list[Target]:
    """All targets of this module."""
    # A script of two bytes can hand over 70 kB of an application, and be answered by 32 cells.
    script: dict[str, Any] = {"factor": 100_000, "fixed": 1 << 20, "longest": 6_000}
    cells = partial(Target, make_seeds=lambda: [_client_cells(), _client_cells()[:CELL_SIZE]], fixed=1 << 20)
    return [
        Target("circuit.edge.client", lambda data: _Client().run(data), _client_scripts, **script),
        Target("circuit.edge.exit", lambda data: _Exit().run(data), _exit_scripts, **script),
        cells("circuit.hop.last", partial(_relay_cells, False)),
        cells("circuit.hop.middle", partial(_relay_cells, True)),
    ]
