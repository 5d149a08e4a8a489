"""Where circuits end: connections to destinations, and look-ups of names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from backrooms.circuit.events import BeginRequested, ResolveRequested
from backrooms.circuit.hop import RelayEdge
from backrooms.circuit.stream import Stream
from backrooms.errors import StreamError
from backrooms.netdir.policy import ExitPolicy
from backrooms.node.buckets import Key
from backrooms.node.driver import Turn
from backrooms.node.exitconnection import HALF_CLOSED_TIME, ExitConnection
from backrooms.node.lookups import LookUps
from backrooms.node.pace import Pace
from backrooms.node.race import Race, in_turns
from backrooms.node.resolvers import Nameservers, SystemResolver, Unanswered
from backrooms.node.timers import Call, Timers
from backrooms.node.turns import Turns
from backrooms.wire.names import ip_literal
from backrooms.wire.relay import Answer, Begin, EndReason, Resolved

log = Logger()

TTL = 60
"""Seconds that answers are said to be good for. The same for all, since the true number would tell their age."""
MAX_ANSWERS = 16
"""Answers to a RESOLVE."""


class Exit:
    """Opens connections that the policy allows. A relay without a policy refuses every BEGIN."""

    def __init__(
        self,
        reactor: Any,
        timers: Timers,
        turn: Turn,
        policy: ExitPolicy | None,
        single_hop: bool = False,
        *,
        own_addresses: Iterable[str] = (),
        nameservers: Sequence[str] = (),
        connect_rate: float = 50.0,
        connect_burst: int = 500,
        max_connections: int = 0,
    ) -> None:
        """`own_addresses` are this relay's published IP addresses, which the policy refuses unless it names one.

        `nameservers` ("IP", "IP:port" or "[IPv6]:port") look names up instead of the system. A circuit opens
        `connect_burst` connections at once and then `connect_rate` a second; all circuits together have at most
        `max_connections` (0: any number).
        """
        self.single_hop = single_hop
        """Whether circuits of one hop may exit here: then this relay sees both ends."""
        self.max_connections = max_connections
        self.connect_rate = connect_rate
        """For circuits that come from now on, as is `connect_burst`."""
        self.connect_burst = connect_burst
        self.connections: set[ExitConnection] = set()
        self.counts: Counter[str] = Counter()
        """What happened to BEGINs, RESOLVEs and look-ups, by kind."""
        self._reactor = reactor
        self._timers = timers
        self._turn = turn
        self._own = tuple(own_addresses)
        self._given: ExitPolicy | None = None
        resolver = Nameservers(reactor, nameservers) if nameservers else SystemResolver(reactor)
        self._look_ups = LookUps(timers, resolver, self.counts)
        self._paces: dict[RelayEdge, Pace] = {}
        self._turns = Turns(timers)
        self._races: set[Race] = set()
        self._opening = 0
        self._outlived: set[Call] = set()
        self._policy: ExitPolicy | None = None
        self.policy = policy

    @property
    def policy(self) -> ExitPolicy | None:
        """Where this exit connects to; None: nowhere. What a new policy refuses is closed when it is set."""
        return self._policy

    @policy.setter
    def policy(self, policy: ExitPolicy | None) -> None:
        self._given = policy
        self._policy = None if policy is None else policy.refusing(self._own)
        for connection in list(self.connections):
            if not self._allows(connection.address, connection.port):
                self.counts["closed by a new policy"] += 1
                connection.end(EndReason.EXITPOLICY)
        for race in list(self._races):
            race.keep(partial(self._allows, port=race.port))

    @property
    def own_addresses(self) -> tuple[str, ...]:
        """IP addresses of this relay, which the policy refuses unless it names one."""
        return self._own

    @own_addresses.setter
    def own_addresses(self, addresses: Iterable[str]) -> None:
        self._own = tuple(addresses)
        self.policy = self._given

    def _allows(self, address: str, port: int) -> bool:
        return self._policy is not None and self._policy.allows(address, port)

    def clear_cache(self) -> None:
        """Look every name up anew."""
        self._look_ups.clear_cache()

    def circuit_ended(self, edge: RelayEdge) -> None:
        """A circuit is gone, and its streams with it: forget what was kept for it."""
        self._look_ups.forget(edge)
        pace = self._paces.pop(edge, None)
        if pace is not None:
            pace.close()

    # look-ups

    def resolve(self, edge: RelayEdge, event: ResolveRequested) -> None:
        """Answer a RESOLVE."""
        self._start(self._resolve(edge, event))

    async def _resolve(self, edge: RelayEdge, event: ResolveRequested) -> None:
        values: list[str] = []
        again = False
        try:
            values = await self._values(edge, event)
        except StreamError as error:
            self.counts[f"RESOLVE: {error}"] += 1
            again = isinstance(error, Unanswered) or error.reason == EndReason.RESOURCELIMIT
        answers = tuple(Answer(value, TTL) for value in values[:MAX_ANSWERS])
        edge.resolved(event.stream_id, Resolved(answers, again))

    async def _values(self, edge: RelayEdge, event: ResolveRequested) -> list[str]:
        """What a look-up gives. Clients may not look into the exit's own network, as they may not connect to it."""
        literal = ip_literal(event.host)
        if self._policy is None:
            raise StreamError(EndReason.EXITPOLICY, "this is no exit")
        if event.reverse:
            if literal is None or not self._policy.may_allow_address(literal):
                raise StreamError(EndReason.EXITPOLICY, "refused by the policy")
            return [await self._look_ups.name_of(edge, str(literal))]
        if literal is not None:
            return [event.host]
        found = await self._look_ups.addresses(edge, event.host)
        policy = self._policy  # as it is now
        return [address for address in found if policy is not None and policy.may_allow_address(address)]

    # connections

    def begin(self, edge: RelayEdge, event: BeginRequested, peer: Key = "") -> Deferred[None]:
        """Connect a stream, which already waits in the edge's table. Fires when it is connected, or will not be.

        `peer` is whose link the circuit came over.
        """
        stream = edge.streams[event.stream_id]
        if not self._turns.has_room(peer):
            self.counts["BEGIN: too many wait"] += 1
            stream.abort(EndReason.RESOURCELIMIT)
            return succeed(None)
        task = Deferred.fromCoroutine(self._begin(edge, stream, event, peer)).addErrback(_log_bug)
        if task.called:
            return task

        def changed() -> None:
            if stream.closed:
                task.cancel()  # nobody waits for it any more

        stream.on_change = changed
        return task

    async def _begin(self, edge: RelayEdge, stream: Stream, event: BeginRequested, peer: Key) -> None:
        try:
            if self._policy is None:
                raise StreamError(EndReason.EXITPOLICY, "this is no exit")
            await self._turn_of(edge)
            await self._turns.turn(peer, edge)
            if self.max_connections and len(self.connections) + self._opening >= self.max_connections:
                raise StreamError(EndReason.RESOURCELIMIT, "too many connections")
            self._opening += 1
            try:
                await self._connect(edge, stream, await self._candidates(edge, event), event.port)
            finally:
                self._opening -= 1
            stream.on_change = None
        except CancelledError:
            if stream.closed:
                self.counts["BEGIN: given up by the client"] += 1
            else:  # out of the line, for somebody who asks less
                self.counts["BEGIN: too many wait"] += 1
                stream.on_change = None
                stream.abort(EndReason.RESOURCELIMIT)
        except StreamError as error:
            self.counts[f"BEGIN: {error}"] += 1
            stream.on_change = None
            stream.abort(error.reason)

    def _turn_of(self, edge: RelayEdge) -> Deferred[None]:
        """Fires when the circuit may connect once more."""
        pace = self._paces.get(edge)
        if pace is None:
            pace = self._paces[edge] = Pace(self._timers, self.connect_rate, self.connect_burst)
        turn = pace.turn()
        if not turn.called:
            self.counts["BEGIN: delayed"] += 1
        return turn

    async def _candidates(self, edge: RelayEdge, event: BeginRequested) -> list[str]:
        """Addresses to try, in order; `StreamError` when none is allowed."""
        literal = ip_literal(event.host) is not None
        found = (event.host,) if literal else await self._look_ups.addresses(edge, event.host)
        allowed = [address for address in found if self._allows(address, event.port)]
        if not allowed:
            raise StreamError(EndReason.EXITPOLICY, "refused by the policy")
        if not event.flags & Begin.IPV6_OK:
            allowed = [address for address in allowed if ":" not in address]
        if event.flags & Begin.IPV4_NOT_OK:
            allowed = [address for address in allowed if ":" in address]
        if not allowed:
            raise StreamError(EndReason.NOROUTE, "no address of the wanted kind")
        return in_turns(allowed, bool(event.flags & Begin.IPV6_PREFERRED))

    async def _connect(self, edge: RelayEdge, stream: Stream, addresses: list[str], port: int) -> None:
        """Join `stream` to the address that answers first."""

        def made(connection: ExitConnection) -> None:
            race.won(connection.address)
            self.counts["BEGIN: connected"] += 1
            self.connections.add(connection)
            stream.on_dirty = connection.dirty
            edge.connected(stream, connection.address, TTL)

        def build(address: str) -> ExitConnection:
            return ExitConnection(stream, address, port, self._timers, self._turn, made, self._lost)

        race = Race(self._reactor, self._timers, addresses, port, build)
        self._races.add(race)
        try:
            await race.run()
        finally:
            self._races.discard(race)

    def _lost(self, connection: ExitConnection, why: BaseException | None) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        stream = connection.machine
        if isinstance(why, net.ConnectionDone):
            stream.receive_eof(self._timers.now())
        if stream.local_end is None:
            stream.abort(EndReason.CONNRESET)
        # What the destination sent before still goes to the client; what the client sends meets a closed door.
        stream.on_dirty = stream.discard_output
        if not stream.closed:
            self._outlive(stream)

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
        self._turns.close()
        for edge in list(self._paces):
            self.circuit_ended(edge)
        self._look_ups.stop()
        for connection in list(self.connections):
            connection.fail(StreamError(EndReason.HIBERNATING))


def _log_bug(failure: Failure) -> None:
    log.failure("bug in an exit stream", failure)
