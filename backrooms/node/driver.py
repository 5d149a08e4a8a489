"""The one class that feeds protocol machines from the network (docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.interfaces import IHalfCloseableProtocol, IPullProducer, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from backrooms.errors import RemoteProtocolError
from backrooms.interfaces import Machine
from backrooms.node.timers import Timers
from backrooms.transport.direct import write_now

if TYPE_CHECKING:
    from backrooms.node.bandwidth import Throttle

log = Logger()

ROUNDS = 4
"""How often one turn goes through the drivers it made dirty."""
UNASKED_LIMIT = 131072
"""Bytes written without being asked by the reactor. With TCP_NOTSENT_LOWAT this bounds what waits in a socket."""


class Turn:
    """The drivers that have something to send or to tell, flushed once when a turn ends.

    A turn is what one read from one socket causes (`with turn:`), however many records it brought. What is marked
    outside of one is flushed before the reactor sleeps.
    """

    def __init__(self, reactor: Any) -> None:
        self.received = 0
        """Bytes that all drivers have read."""
        self.watch_at = inf
        self.watch: Callable[[], None] = lambda: None
        """Called at the end of the turn in which `received` reaches `watch_at`."""
        self._reactor = reactor
        self._dirty: list[Driver] = []
        self._depth = 0
        self._scheduled = False

    def mark(self, driver: Driver) -> None:
        """Flush `driver` at the end of this turn. A driver marks itself once per turn."""
        self._dirty.append(driver)
        if not self._depth and not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        self._reactor.callLater(0, self._late)

    def _late(self) -> None:
        self._scheduled = False
        with self:
            pass

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        # Flushing one driver may give others something to send; who goes on longer than that has to wait its turn.
        if self._depth == 1:
            if self.received >= self.watch_at:
                self.watch()
            for _round in range(ROUNDS):
                if not self._dirty:
                    break
                self._flush()
            if self._dirty and not self._scheduled:
                self._schedule()
        self._depth -= 1

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for driver in dirty:
            try:
                driver.end_turn()
            except Exception as error:  # a bug of ours: it must not keep the other drivers from being flushed
                log.failure("a connection failed because of a bug")
                driver.fail(error)


@implementer(IPullProducer, IHalfCloseableProtocol)
class Driver(Protocol):
    """Joins a machine to a transport.

    `on_made(driver)` is called when there is a connection; it may set `machine`, if that needs to know the transport.
    `on_event(event)` gets each of the machine's events; `on_lost(reason)` is called once at the end. A
    `RemoteProtocolError` out of the machine aborts the connection and is handed to `on_lost`.
    """

    machine: Machine
    throttle: Throttle | None = None
    """Says what may be written, and hears what is read; None without a limit."""
    _write_now: Callable[[bytes], bool]

    def __init__(
        self,
        machine: Machine | None,
        timers: Timers,
        turn: Turn,
        on_event: Callable[[Any], None],
        on_lost: Callable[[BaseException | None], None],
        on_made: Callable[[Driver], None] | None = None,
    ) -> None:
        if machine is not None:
            self.machine = machine
        self.lost = False
        self.bytes_in = self.bytes_out = 0
        self.unsent = 0
        """Bytes, at most, that the transport has taken and not got rid of."""
        self._now = timers.now
        self._timers = timers
        self.turn = turn
        """A TLS pipe holds it while it delivers the records of one read."""
        self._on_event = on_event
        self._on_lost = on_lost
        self._on_made = on_made
        self._room = False
        self._unasked = 0
        self._asked = False
        self._error: BaseException | None = None
        self._closing = False
        self._marked = False
        self._write_closed = False
        self._reading = True

    def connectionMade(self) -> None:
        with self.turn:
            if self._on_made is not None:
                self._on_made(self)
            tcp = self.tcp
            pipe_write = getattr(tcp, "write_now", None)
            self._write_now = pipe_write or partial(write_now, tcp)
            # Twisted asks at registration. A TLS pipe may then still hold a handshake that must go first.
            self._asked = pipe_write is None
            tcp.registerProducer(self, False)
            if not self._asked:
                self._asked = True
                _ask(tcp)
            self.dirty()

    @property
    def tcp(self) -> Any:
        """The transport; typed loosely because TLS pipes, TCP and unix sockets all serve."""
        return cast(ITCPTransport, self.transport)

    def dataReceived(self, data: bytes) -> None:
        size = len(data)
        self.bytes_in += size
        turn = self.turn
        turn.received += size
        if self.throttle is not None:
            self.throttle.received(size)
        with turn:
            try:
                self.machine.receive(data, self._now())
            except RemoteProtocolError as error:
                self.fail(error)
                return
            self.dirty()

    def tick(self, now: float) -> None:
        """Called by `Timers` when the machine's deadline has come."""
        try:
            self.machine.tick(now)
        except RemoteProtocolError as error:
            self.fail(error)
            return
        self.dirty()

    def dirty(self) -> None:
        """The machine has something to send or to tell; give this to it as `on_dirty`."""
        if not self._marked:
            self._marked = True
            self.turn.mark(self)

    def end_turn(self) -> None:
        """Called by `Turn`: dispatch events, write, and keep the deadline."""
        self._marked = False
        if not self.lost:
            self.flush()
            if not self.lost:
                self._timers.set(self, self.machine.deadline())

    def flush(self) -> None:
        """Tell what there is to tell, and write what the machine has while the transport has room."""
        while not self.lost:
            events = self.machine.events()
            for event in events:
                self._on_event(event)
            if not self._room or self.lost:
                return
            data = self.machine.output() if self.throttle is None else self.throttle.output()
            if data:
                self._write(data)
            elif data is None:
                return  # it is not its turn, and will be told when it is
            elif not events:
                # Giving its last output may have been an event for the machine, so it is asked once more.
                if self._closing:
                    self._lose()
                return

    def _write(self, data: bytes) -> None:
        """Send at once while the socket surely has room; then wait to be asked, or cells would pile up in it."""
        size = len(data)
        self.bytes_out += size
        self._unasked -= size
        tcp = self.tcp
        if not self._write_now(data):
            self._room = False
            self.unsent = size
        elif self._unasked <= 0:
            self._room = False
            _ask(tcp)

    def _lose(self) -> None:
        if not self._write_closed:
            self._room = False
            self.tcp.unregisterProducer()
        self.tcp.loseConnection()

    @property
    def unread(self) -> int:
        """Bytes, at most, that the transport has read and holds back because of `pause`."""
        return 0 if self._reading else getattr(self.transport, "held", 0)

    def pause(self) -> None:
        """Stop reading: the machine has nowhere to put more."""
        if self._reading and not self.lost:
            self._reading = False
            self.tcp.pauseProducing()

    def resume(self) -> None:
        """Read again."""
        if not self._reading and not self.lost:
            self._reading = True
            self.tcp.resumeProducing()

    def close(self) -> None:
        """Close once everything the machine has to say is written."""
        self._closing = True
        if self._write_closed and not self.lost:
            self._lose()
        self.dirty()

    def close_write(self) -> None:
        """Send EOF behind what is written already; go on reading."""
        if not self.lost and not self._write_closed:
            self._write_closed = True
            self._room = False
            self.tcp.unregisterProducer()
            self.tcp.loseWriteConnection()

    def fail(self, error: BaseException) -> None:
        """Close at once, because of `error`."""
        self._error = self._error or error
        if not self.lost:
            self.tcp.abortConnection()

    def resumeProducing(self) -> None:
        if self._asked and not self._write_closed:
            self._room = True
            self.unsent = 0
            self._unasked = UNASKED_LIMIT
            with self.turn:
                self.flush()

    def stopProducing(self) -> None:
        self._room = False

    def readConnectionLost(self) -> None:
        with self.turn:
            try:
                self.machine.receive_eof(self._now())
            except RemoteProtocolError as error:
                self.fail(error)
                return
            self.dirty()

    def writeConnectionLost(self) -> None:
        self._room = False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.lost:
            return
        with self.turn:
            if self._error is None:
                for event in self.machine.events():
                    self._on_event(event)
            self.lost = True
            self._timers.set(self, None)
            self._on_lost(self._error or reason.value)


def _ask(tcp: Any) -> None:
    """Have the producer asked as soon as the transport has room."""
    if tcp.connected:
        tcp.startWriting()
