"""The driver: batches, back-pressure, and what a bug in one connection does to the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPullProducer
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from backrooms.errors import RemoteProtocolError, WireError
from backrooms.node.driver import UNASKED_LIMIT, Driver, Turn
from backrooms.node.timers import Timers


class Echo:
    """A machine that sends back what it gets, 64 KiB at a time, and tells about each piece."""

    def __init__(self) -> None:
        self.waiting = b""
        self.told: list[str] = []
        self.outputs = 0

    def receive(self, data: bytes, now: float) -> None:
        if data == b"bad":
            raise WireError("bad bytes")
        self.waiting += data
        self.told.append(f"{len(data)} bytes")

    def receive_eof(self, now: float) -> None:
        self.told.append("eof")

    def events(self) -> list[str]:
        told, self.told = self.told, []
        return told

    def output(self) -> bytes:
        self.outputs += 1
        data, self.waiting = self.waiting[:65536], self.waiting[65536:]
        return data

    def deadline(self) -> float | None:
        return None

    def tick(self, now: float) -> None:
        """Echo has no clock."""


class Socket:
    """A stream transport whose kernel buffer takes `room` bytes."""

    connected = True

    def __init__(self, room: int) -> None:
        self.room = room
        self.sent = b""
        self.queued = b""
        self.asked = 0
        self.aborted = self.closed = False
        self.producer: Any = None

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert IPullProducer.providedBy(producer)
        assert not streaming
        self.producer = producer
        producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self.producer = None

    def writeSomeData(self, data: bytes) -> int:
        assert not self.queued, "written past what waits"
        taken = data[: self.room]
        self.room -= len(taken)
        self.sent += taken
        return len(taken)

    def write(self, data: bytes) -> None:
        self.queued += data

    def startWriting(self) -> None:
        self.asked += 1

    def drain(self, room: int) -> None:
        """The kernel sent something on: what Twisted's `doWrite` does."""
        self.room = room
        data, self.queued = self.queued, b""
        assert self.writeSomeData(data) == len(data)
        if self.producer is not None:
            self.producer.resumeProducing()

    def loseConnection(self) -> None:
        self.closed = True

    def abortConnection(self) -> None:
        self.aborted = True


class Bench:
    """Drivers on one reactor that only moves when told to."""

    def __init__(self) -> None:
        self.reactor = Clock()
        self.timers = Timers(self.reactor)
        self.turn = Turn(self.reactor)
        self.lost: list[BaseException | None] = []

    def driver(
        self, room: int = 1 << 30, on_event: Callable[[Any], None] = lambda event: None
    ) -> tuple[Driver, Socket]:
        driver = Driver(Echo(), self.timers, self.turn, on_event, self.lost.append)
        socket = Socket(room)
        driver.makeConnection(socket)  # type: ignore[no-untyped-call]
        return driver, socket


def test_the_records_of_one_read_are_flushed_once() -> None:
    bench = Bench()
    driver, socket = bench.driver()
    machine = driver.machine
    assert isinstance(machine, Echo)
    before = machine.outputs
    with bench.turn:
        for _ in range(4):
            driver.dataReceived(b"x" * 1000)
        assert socket.sent == b""
    assert socket.sent == b"x" * 4000
    assert bench.turn.received == 4000
    assert machine.outputs == before + 2  # all of it, and the look that finds nothing more
    assert bench.reactor.getDelayedCalls() == []


def test_a_full_socket_leaves_the_rest_in_the_machine() -> None:
    bench = Bench()
    driver, socket = bench.driver(room=100_000)
    machine = driver.machine
    assert isinstance(machine, Echo)
    driver.dataReceived(b"y" * 1_000_000)
    assert len(socket.sent) == 100_000
    assert len(socket.sent) + len(socket.queued) + len(machine.waiting) == 1_000_000
    assert len(socket.queued) <= driver.unsent <= 65536
    for _ in range(20):
        socket.drain(100_000)
    assert len(socket.sent) == 1_000_000
    assert driver.unsent == 0


def test_no_more_is_written_unasked_than_the_limit() -> None:
    """However much the kernel would take: what is in a socket cannot be overtaken any more."""
    bench = Bench()
    driver, socket = bench.driver()
    driver.dataReceived(b"z" * 1_000_000)
    assert UNASKED_LIMIT <= len(socket.sent) <= UNASKED_LIMIT + 65536
    assert socket.asked == 1
    for _ in range(10):
        socket.drain(1 << 30)
    assert len(socket.sent) == 1_000_000


def test_a_bug_in_one_connection_leaves_the_others_alone(clean: Any) -> None:
    bench = Bench()

    def broken(event: Any) -> None:
        raise ZeroDivisionError

    first, first_socket = bench.driver(on_event=broken)
    second, second_socket = bench.driver()
    with bench.turn:
        first.dataReceived(b"one")
        second.dataReceived(b"two")
    assert first_socket.aborted
    assert second_socket.sent == b"two"
    assert len(clean.flush(ZeroDivisionError)) == 1


def test_bad_bytes_abort_their_connection_with_the_reason() -> None:
    bench = Bench()
    driver, socket = bench.driver()
    driver.dataReceived(b"bad")
    assert socket.aborted
    driver.connectionLost(Failure(ConnectionDone()))  # type: ignore[no-untyped-call]
    (reason,) = bench.lost
    assert isinstance(reason, RemoteProtocolError)
    assert reason.reason == "bad bytes"


def test_events_are_told_before_the_end() -> None:
    bench = Bench()
    told: list[Any] = []
    driver, _ = bench.driver(on_event=told.append)
    with bench.turn:
        driver.dataReceived(b"last words")
        driver.connectionLost(Failure(ConnectionDone()))  # type: ignore[no-untyped-call]
        assert told == ["10 bytes"]
    assert len(bench.lost) == 1


def test_a_machine_that_answers_itself_for_ever_does_not_stop_the_reactor() -> None:
    bench = Bench()
    calls = 0

    def again(event: Any) -> None:
        nonlocal calls
        calls += 1
        driver.dirty()

    driver, _ = bench.driver(on_event=again)
    machine = driver.machine
    assert isinstance(machine, Echo)
    machine.deadline = lambda: machine.told.append("more")  # type: ignore[method-assign]
    driver.dataReceived(b"go")
    assert 1 <= calls < 20
    assert len(bench.reactor.getDelayedCalls()) == 1


def test_closing_waits_for_the_last_byte() -> None:
    bench = Bench()
    driver, socket = bench.driver(room=10)
    driver.dataReceived(b"w" * 50)
    driver.close()
    bench.reactor.advance(0)
    assert not socket.closed
    socket.drain(1000)
    assert socket.sent == b"w" * 50
    assert socket.closed
