"""Where circuits end: connections to destinations, and look-ups of names."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from backrooms.circuit.events import BeginRequested, ResolveRequested, StreamEnded
from backrooms.circuit.hop import RelayEdge
from backrooms.circuit.stream import Stream
from backrooms.errors import StreamError
from backrooms.netdir.policy import ExitPolicy
from backrooms.node.driver import Driver, Turn
from backrooms.node.lookups import LookUps
from backrooms.node.timers import Call, Timers
from backrooms.wire.names import ip_literal
from backrooms.wire.relay import Answer, Begin, EndReason, Resolved

log = Logger()

CONNECT_TIMEOUT = 15
"""Seconds for one address of a destination."""
ADDRESS_LIMIT = 4
"""Addresses of a name that are tried."""
HALF_CLOSED_TIME = 600.0
"""Seconds a connection of which one direction has ended may be silent. The peer may be gone without a word."""
KEEPALIVE_IDLE = 300
"""Seconds of silence after which the kernel asks whether a destination is still there."""
TTL = 60
"""Seconds that answers are good for; the system's resolver does not tell."""


class ExitConnection(Driver):
    """The socket to a destination, joined to its stream."""

    machine: Stream
    _patience: Any = None

    def flush(self) -> None:
        super().flush()
        if self.lost:
            return
        stream = self.machine
        if stream.paused:
            self.pause()
        else:
            self.resume()
        if stream.finished:
            if stream.closed:
                self.close()
            elif self._room:
                self.close_write()
        if self._patience is None and (stream.ended is not None or stream.local_end is not None):
            self._wait(self.bytes_in + self.bytes_out)

    def _wait(self, before: int) -> None:
        """One direction has ended: do not wait for the other for ever."""

        def late() -> None:
            now = self.bytes_in + self.bytes_out
            if now != before:
                self._wait(now)
            else:
                self.give_up()

        self._patience = self._timers.at(self._timers.now() + HALF_CLOSED_TIME, late)

    def give_up(self) -> None:
        """Nothing more is expected of either side."""
        self.machine.abort(EndReason.TIMEOUT)
        self.fail(StreamError(EndReason.TIMEOUT))

    def stop_waiting(self) -> None:
        """Both directions have ended."""
        if self._patience is not None:
            self._patience.cancel()


class Exit:
    """Opens connections that the policy allows. A relay without a policy refuses every BEGIN."""

    def __init__(
        self, reactor: Any, timers: Timers, turn: Turn, policy: ExitPolicy | None, single_hop: bool = False
    ) -> None:
        self.policy = policy
        self.single_hop = single_hop
        """Whether circuits of one hop may exit here: then this relay sees both ends."""
        self.connections: set[ExitConnection] = set()
        self._outlived: set[Call] = set()
        self._look_ups = LookUps(reactor)
        self._reactor = reactor
        self._timers = timers
        self._turn = turn

    # look-ups

    def resolve(self, edge: RelayEdge, event: ResolveRequested) -> None:
        """Answer a RESOLVE."""
        self._start(self._resolve(edge, event))

    async def _resolve(self, edge: RelayEdge, event: ResolveRequested) -> None:
        answers: tuple[Answer, ...] = ()
        again = False
        policy = self.policy
        if policy is not None:
            try:
                values = await self._values(policy, event)
                answers = tuple(Answer(value, TTL) for value in values[:16])
            except StreamError as error:
                again = error.reason == EndReason.RESOURCELIMIT
        edge.resolved(event.stream_id, Resolved(answers, again))

    async def _values(self, policy: ExitPolicy, event: ResolveRequested) -> list[str]:
        """What a look-up gives. Clients may not look into the exit's own network, as they may not connect to it."""
        literal = ip_literal(event.host)
        if event.reverse:
            if literal is None or not policy.may_allow_address(literal):
                return []
            return [await self._look_ups.name_of(str(literal))]
        if literal is not None:
            return [event.host]
        found = await self._look_ups.addresses(event.host)
        return [address for address in found if policy.may_allow_address(address)]

    # connections

    def begin(self, edge: RelayEdge, event: BeginRequested) -> None:
        """Connect a stream, which already waits in the edge's table."""
        stream = edge.streams[event.stream_id]
        if self.policy is None:
            stream.abort(EndReason.EXITPOLICY)
            return
        self._start(self._begin(edge, stream, event))

    async def _begin(self, edge: RelayEdge, stream: Stream, event: BeginRequested) -> None:
        try:
            for address in await self._candidates(event):
                failure = await self._connect(edge, stream, address, event.port)
                if failure is None:
                    return
                last = failure
            raise StreamError(last)
        except StreamError as error:
            stream.abort(error.reason)

    async def _candidates(self, event: BeginRequested) -> list[str]:
        """Addresses to try, in order; `StreamError` when none is allowed."""
        policy = self.policy or ExitPolicy.reject_all()
        literal = ip_literal(event.host) is not None
        found = [event.host] if literal else await self._look_ups.addresses(event.host)
        allowed = [address for address in found if policy.allows(address, event.port)]
        if not allowed:
            raise StreamError(EndReason.EXITPOLICY)
        if not event.flags & Begin.IPV6_OK:
            allowed = [address for address in allowed if ":" not in address]
        if event.flags & Begin.IPV4_NOT_OK:
            allowed = [address for address in allowed if ":" in address]
        if not allowed:
            raise StreamError(EndReason.NOROUTE)
        six_first = bool(event.flags & Begin.IPV6_PREFERRED)
        allowed.sort(key=lambda address: (":" in address) != six_first)
        return allowed[:ADDRESS_LIMIT]

    async def _connect(self, edge: RelayEdge, stream: Stream, address: str, port: int) -> int | None:
        """Join `stream` to one address; None, or the reason that it failed."""
        if stream.closed:
            return None
        endpoint_class = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
        endpoint = endpoint_class(self._reactor, address, port, CONNECT_TIMEOUT)

        def made(driver: Driver) -> None:
            assert isinstance(driver, ExitConnection)
            driver.tcp.setTcpNoDelay(True)
            _keep_alive(driver.tcp)
            stream.on_dirty = driver.dirty
            self.connections.add(driver)
            if stream.closed:
                driver.close()
            else:
                edge.connected(stream, address, TTL)

        def event(what: Any) -> None:
            if isinstance(what, StreamEnded) and what.reason != EndReason.DONE:
                connection.fail(StreamError(what.reason))

        def lost(reason: BaseException | None) -> None:
            self.connections.discard(connection)
            connection.stop_waiting()
            if isinstance(reason, net.ConnectionDone):
                stream.receive_eof(self._timers.now())
            if stream.local_end is None:
                stream.abort(EndReason.CONNRESET)
            # What the destination sent before still goes to the client; what the client sends meets a closed door.
            stream.on_dirty = stream.discard_output
            if not stream.closed:
                self._outlive(stream)

        connection = ExitConnection(stream, self._timers, self._turn, event, lost, made)
        factory = Factory.forProtocol(lambda: connection)
        factory.noisy = False
        attempt = endpoint.connect(factory)

        def changed() -> None:
            if stream.closed:
                attempt.cancel()  # nobody waits for it any more

        stream.on_change = changed
        try:
            await attempt
        except CancelledError:
            return None
        except net.ConnectionRefusedError:
            return EndReason.CONNECTREFUSED
        except (net.TimeoutError, net.TCPTimedOutError):
            return EndReason.TIMEOUT
        except net.NoRouteError:
            return EndReason.NOROUTE
        except (net.ConnectError, OSError):
            return EndReason.MISC
        finally:
            stream.on_change = None
        return None

    def _outlive(self, stream: Stream) -> None:
        """The connection is gone, its stream not yet: the client has the rest to read, and then to end its side."""
        unsent = stream.unsent

        def late() -> None:
            self._outlived.discard(call)
            if stream.closed:
                return
            if stream.unsent < unsent:
                self._outlive(stream)
            else:
                stream.abort(EndReason.TIMEOUT)

        call = self._timers.at(self._timers.now() + HALF_CLOSED_TIME, late)
        self._outlived.add(call)

    def _start(self, coroutine: Any) -> None:
        Deferred.fromCoroutine(coroutine).addErrback(_log_bug)

    def stop(self) -> None:
        """Close every connection."""
        for call in self._outlived:
            call.cancel()
        self._outlived.clear()
        for connection in list(self.connections):
            connection.fail(StreamError(EndReason.HIBERNATING))


def _keep_alive(tcp: Any) -> None:
    """Have the kernel find out when a destination is gone without a word."""
    tcp.setTcpKeepAlive(True)
    if hasattr(socket, "TCP_KEEPIDLE"):
        try:
            tcp.getHandle().setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        except OSError:
            pass  # the system's own idea, often two hours, must do


def _log_bug(failure: Failure) -> None:
    log.failure("bug in an exit stream", failure)
