"""The reactor of one simulated host: Twisted's own TCP transports over simulated sockets and time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet import main, tcp
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import (
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorThreads,
    IReactorTime,
)
from twisted.internet.posixbase import _DisconnectSelectableMixin
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.simnet.clock import SimCall, SimClock
from tests.simnet.names import First, Names, is_literal
from tests.simnet.sockets import SimSocket
from tests.simnet.threads import InlinePool

if TYPE_CHECKING:
    from tests.simnet.network import Host

_log = Logger()


class _Client(tcp.Client):
    def createInternetSocket(self) -> Any:
        reactor: SimReactor = self.connector.reactor
        return reactor.host.socket(reactor, self.addressFamily)


class _Connector(tcp.Connector):
    def _makeTransport(self) -> Any:
        client: Any = _Client
        return client(self.host, self.port, self.bindAddress, self, self.reactor)


class _Port(tcp.Port):
    def createInternetSocket(self) -> Any:
        reactor: Any = self.reactor
        return reactor.host.socket(reactor, self.addressFamily)


@implementer(IReactorTime, IReactorTCP, IReactorThreads, IReactorPluggableNameResolver)
class SimReactor(_DisconnectSelectableMixin):
    """A reactor for the one process of a simulated host.

    It has `addReader` and its kin for simulated sockets alone, and does not claim IReactorFDSet: nothing real
    can be waited for.
    """

    running = True

    def __init__(self, host: Host) -> None:
        self.host = host
        self.frozen = False
        self.dead = False
        self.nameResolver: Any = Names(self)
        self._clock: SimClock = host.net.clock
        self._pool = InlinePool(host.net)
        self._calls: dict[SimCall, None] = {}
        self._held: list[tuple[SimCall, int]] = []
        self._readers: dict[Any, SimSocket] = {}
        self._writers: dict[Any, SimSocket] = {}
        self._triggers: dict[tuple[str, str], list[tuple[Any, ...]]] = {}

    def __repr__(self) -> str:
        return f"<SimReactor of {self.host.name}>"

    # time

    def seconds(self) -> float:
        return self._clock.now

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> SimCall:
        call = self._clock.call_later(delay, self, callable, *args, **kwargs)
        call.on_end = self._calls.pop
        self._calls[call] = None
        return call

    def getDelayedCalls(self) -> list[Any]:
        return [] if self.dead else list(self._calls)

    def soon(self, func: Callable[..., Any], *args: Any) -> None:
        """Call `func` in this process's next turn."""
        self._clock.call_later(0.0, self, func, *args)

    def hold(self, call: SimCall) -> None:
        """The process is frozen: keep what is due."""
        self._held.append((call, call.seq))

    def thaw(self) -> None:
        """Go on; what was held happens now, in its order."""
        self.frozen = False
        held, self._held = self._held, []
        for call, seq in held:
            if call.seq == seq:  # neither cancelled nor moved meanwhile
                self._clock.push(call, self._clock.now)

    def run(self, seconds: float = 0.0) -> None:
        """Let `seconds` pass, for the whole network."""
        self._clock.run(seconds)

    def run_until(
        self, target: Callable[[], Any] | Deferred[Any] | Coroutine[Any, Any, Any], limit: float = 60.0
    ) -> Any:
        """Let time pass until `target` comes true or fires; see `SimClock.run_until`."""
        return self._clock.run_until(target, limit)

    # the process

    def callWhenRunning(self, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        callable(*args, **kwargs)

    def addSystemEventTrigger(
        self, phase: str, eventType: str, callable: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        entry = (phase, eventType, callable, args, kwargs)
        self._triggers.setdefault((eventType, phase), []).append(entry)
        return entry

    def removeSystemEventTrigger(self, triggerID: tuple[Any, ...]) -> None:
        self._triggers[triggerID[1], triggerID[0]].remove(triggerID)

    def stop(self) -> None:
        """Run the "shutdown" triggers ("during" ones after the Deferreds of all "before" ones), then end."""
        waiting = [
            maybeDeferred(func, *args, **kwargs)
            for _, _, func, args, kwargs in self._triggers.pop(("shutdown", "before"), [])
        ]
        left = len(waiting)

        def finish() -> None:
            for phase in ("during", "after"):
                for _, _, func, args, kwargs in self._triggers.pop(("shutdown", phase), []):
                    func(*args, **kwargs)
            self.running = False
            self.host.kill("close")

        def one_done(result: Any) -> None:
            nonlocal left
            left -= 1
            if isinstance(result, Failure):
                _log.failure("while shutting a simulated process down", failure=result)
            if left == 0:
                self.soon(finish)

        if not waiting:
            self.soon(finish)
        for deferred in waiting:
            deferred.addBoth(one_done)

    # threads

    def callFromThread(self, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._clock.call_later(0.0, self, callable, *args, **kwargs)

    def callInThread(self, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._pool.callInThread(callable, *args, **kwargs)

    def getThreadPool(self) -> Any:
        return self._pool

    def suggestThreadPoolSize(self, size: int) -> None:
        """There are no threads."""

    # names

    def installNameResolver(self, resolver: Any) -> Any:
        previous, self.nameResolver = self.nameResolver, resolver
        return previous

    def resolve(self, name: str, timeout: Sequence[int] = ()) -> Deferred[str]:
        if is_literal(name):
            return succeed(name)
        done: Deferred[str] = Deferred()
        self.nameResolver.resolveHostName(First(name, done), name, addressTypes=[IPv4Address])
        return done

    # TCP

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 30.0, bindAddress: Any = None) -> Any:
        connector = _Connector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        return connector

    def listenTCP(self, port: Any, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        listening = _Port(port, factory, backlog, interface, self)
        listening.startListening()
        return listening

    # readiness

    def addReader(self, reader: Any) -> None:
        if self.dead:
            return
        sock = self._readers[reader] = self._socket(reader)
        sock.reader = reader
        sock.poke()

    def addWriter(self, writer: Any) -> None:
        if self.dead:
            return
        sock = self._writers[writer] = self._socket(writer)
        sock.writer = writer
        sock.poke()

    def removeReader(self, reader: Any) -> None:
        sock = self._readers.pop(reader, None)
        if sock is not None and sock.reader is reader:
            sock.reader = None

    def removeWriter(self, writer: Any) -> None:
        sock = self._writers.pop(writer, None)
        if sock is not None and sock.writer is writer:
            sock.writer = None

    def getReaders(self) -> list[Any]:
        return list(self._readers)

    def getWriters(self) -> list[Any]:
        return list(self._writers)

    def _socket(self, selectable: Any) -> SimSocket:
        sock = self.host.sockets.get(selectable.fileno())
        if sock is None:
            raise ValueError(f"not a simulated socket of {self.host.name}: {selectable!r}")
        return sock

    def poll(self, sock: SimSocket) -> None:
        """The socket is ready: read and write, as `posixbase._PollLikeMixin` does."""
        sock.told = False
        selectable = sock.reader or sock.writer
        if selectable is None:
            return
        why: Any = None
        reading = False
        try:
            if sock.reader is None and sock.error and sock.connected:
                why = main.CONNECTION_LOST  # epoll tells of a reset to those who only write, too
            else:
                if sock.reader is not None and sock.readable():
                    reading = True
                    why = sock.reader.doRead()
                if not why and sock.writer is not None and sock.writable():
                    reading = False
                    why = sock.writer.doWrite()
        except Exception as error:
            _log.failure("in a simulated transport")
            why = error
        if why:
            self._disconnectSelectable(selectable, why, reading)  # type: ignore[no-untyped-call]
        sock.poke()
