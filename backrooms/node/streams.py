"""Streams of this client: each waits for a circuit that it may use, and is given it."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from backrooms.circuit.stream import Stream
from backrooms.errors import PathError, StreamError
from backrooms.node.requests import Answer, StreamRequest, TryAgain, stays_here
from backrooms.path.constraints import Target
from backrooms.path.route import Route
from backrooms.path.selector import ANYWHERE
from backrooms.wire.relay import EndReason, Resolved

if TYPE_CHECKING:
    from backrooms.node.circuits import Circuits, ClientCircuit

CONNECT_TIMEOUT = 60.0
"""Seconds until a stream without CONNECTED gives up."""
SLOW = 5.0
"""Seconds without an answer after which its circuit is asked whether it still passes cells."""
RETRY_FIRST = 0.25
"""Seconds until a stream whose circuit could not be built gets another, doubled each time."""

_EXIT_REASONS = frozenset({EndReason.EXITPOLICY, EndReason.RESOURCELIMIT, EndReason.HIBERNATING})
"""Ends of a stream that another exit may spare it."""


class OpenStream:
    """A stream an application asked for, until it ends."""

    def __init__(self, number: int, request: StreamRequest, route: Route) -> None:
        self.number = number
        self.request = request
        self.route = route
        self.stream: Stream | None = None
        self.on_resolved: Callable[[Resolved | None], None] | None = None
        """Takes the answer to a look-up; None when the circuit was lost or nobody could be asked."""
        self.reverse = False
        self.circuit: ClientCircuit | None = None
        self.status = "NEW"
        self.attempts = 0
        """Circuits that were given to it, or that were to be and failed."""
        self.avoid: set[bytes] = set()
        """Exits that would not have it."""
        self.not_before = 0.0
        """When it may be given another circuit."""
        self.reason = 0
        """Why it ended; before that, why the last attempt did."""
        self.deadline: Any = None
        self.retry: Any = None
        self.slow: Any = None

    @property
    def target(self) -> Target:
        """What the exit must allow."""
        request = self.request
        if self.on_resolved is not None:
            return ANYWHERE
        try:
            ipaddress.ip_address(request.host)
        except ValueError:
            return Target(None, request.port)
        return Target(request.host, request.port)


class Streams:
    """All streams and look-ups of this client (`proxy.opener.Opener`)."""

    def __init__(self, circuits: Circuits) -> None:
        self.streams: dict[int, OpenStream] = {}
        self.on_stream: Callable[[OpenStream], None] = lambda item: None
        self._circuits = circuits
        self._timers = circuits.timers
        self._numbers = itertools.count(1)
        self._waiting: dict[OpenStream, None] = {}
        self._stopped = False

    def start(self) -> None:
        """Take streams; also after `stop`."""
        self._stopped = False

    def stop(self) -> None:
        """End what still waits for a circuit, and what comes."""
        self._stopped = True
        for item in list(self._waiting):
            self._give_up(item, EndReason.HIBERNATING)

    # what applications ask

    def open(self, request: StreamRequest) -> Stream:
        """A stream, at once; it is attached to a circuit as soon as one is there."""
        item = self._item(request)
        stream = item.stream = Stream()
        stream.on_refused = lambda reason: self._refused(item, reason)
        stream.on_change = lambda: self._changed(item, stream)
        self._enter(item)
        return stream

    def resolve(self, request: StreamRequest) -> Deferred[list[Answer]]:
        """The addresses of `request.host`, asked at an exit."""
        return self._look_up(request, reverse=False)

    def resolve_ptr(self, request: StreamRequest) -> Deferred[list[Answer]]:
        """The names of the address `request.host`, asked at an exit."""
        return self._look_up(request, reverse=True)

    def _item(self, request: StreamRequest) -> OpenStream:
        return OpenStream(next(self._numbers), request, request.route or self._circuits.default)

    def _look_up(self, request: StreamRequest, reverse: bool) -> Deferred[list[Answer]]:
        item = self._item(request)
        item.status = "NEWRESOLVE"
        item.reverse = reverse
        waiter: Deferred[list[Answer]] = Deferred(lambda _: self._leave(item, "CLOSED", EndReason.DONE))

        def resolved(answer: Resolved | None) -> None:
            if answer is None and item.circuit is not None and self._refused(item, EndReason.DESTROY):
                return
            if item.number not in self.streams:
                return
            if answer is None or not answer.answers:
                reason = (item.reason if answer is None else 0) or EndReason.RESOLVEFAILED
                self._leave(item, "FAILED", reason)
                waiter.errback(TryAgain(reason) if answer is not None and answer.again else StreamError(reason))
            else:
                item.status = "SUCCEEDED"
                self.on_stream(item)
                self._leave(item, "CLOSED", EndReason.DONE)
                waiter.callback([Answer(one.value, one.ttl) for one in answer.answers])

        item.on_resolved = resolved
        self._enter(item)
        return waiter

    def _enter(self, item: OpenStream) -> None:
        self.streams[item.number] = item
        item.deadline = self._timers.at(self._timers.now() + CONNECT_TIMEOUT, lambda: self._too_late(item))
        self.on_stream(item)
        self._waiting[item] = None
        if self._stopped:
            self._give_up(item, EndReason.HIBERNATING)
        elif stays_here(item.request.host):
            self._give_up(item, EndReason.RESOLVEFAILED)
        else:
            self._circuits.go_active()
            self._attach(item)

    # attaching to circuits

    def attach_waiting(self) -> None:
        """Circuits have changed: look again for each stream that has none."""
        hopeless: set[tuple[Hashable, ...]] = set()
        for item in list(self._waiting):
            if item in self._waiting:
                key = (item.route, item.target, item.request.isolation, frozenset(item.avoid))
                if key not in hopeless and not self._attach(item):
                    hopeless.add(key)  # the same would be looked for in vain

    def _attach(self, item: OpenStream) -> bool:
        """Give a waiting stream a circuit, or see to it that one is built; False when neither can be done now."""
        if self._timers.now() < item.not_before:
            return True
        isolation = self._circuits.isolation(item.request.isolation)
        circuit = self._circuits.find(item.route, item.target, isolation, item.avoid)
        if circuit is not None:
            self._give(item, circuit, isolation)
            return True
        try:
            return self._circuits.want(item.route, item.target, isolation, item.avoid)
        except PathError:
            # Nothing is relaxed for it. If exits have refused it, that says more than that there are no others.
            self._give_up(item, item.reason if item.avoid else EndReason.NOROUTE)
            return True

    def _give(self, item: OpenStream, circuit: ClientCircuit, isolation: tuple[Hashable, ...]) -> None:
        del self._waiting[item]
        machine = self._circuits.use(circuit, isolation)
        item.circuit = circuit
        item.attempts += 1
        request = item.request
        try:
            if item.stream is not None:
                machine.begin(item.stream, request.host, request.port)
                item.status = "SENTCONNECT"
            elif item.on_resolved is not None:
                machine.resolve(request.host, item.reverse, item.on_resolved)
                item.status = "SENTRESOLVE"
        except StreamError:  # no stream id is free
            circuit.retired = True
            item.circuit = None
            self._waiting[item] = None
            self._circuits.wake()
            return
        item.slow = self._timers.at(self._timers.now() + SLOW, circuit.probe)
        self.on_stream(item)

    def build_failed(self, route: Route, isolation: tuple[Hashable, ...]) -> None:
        """A circuit did not come up: another path is tried after a pause, a limited number of times."""
        for item in self._waiting_for(route, isolation):
            item.attempts += 1
            if item.attempts > self._circuits.options.retries:
                self._give_up(item, EndReason.NOROUTE)
            else:
                item.not_before = self._timers.now() + RETRY_FIRST * 2 ** (item.attempts - 1)
                self._cancel_retry(item)
                item.retry = self._timers.at(item.not_before, self._circuits.wake)

    def _cancel_retry(self, item: OpenStream) -> None:
        if item.retry is not None:
            item.retry.cancel()
            item.retry = None

    def _waiting_for(self, route: Route, isolation: tuple[Hashable, ...]) -> list[OpenStream]:
        return [
            item
            for item in self._waiting
            if item.route == route and self._circuits.isolation(item.request.isolation) == isolation
        ]

    # ends

    def _refused(self, item: OpenStream, reason: int) -> bool:
        """A stream ended before it was connected; whether it gets another try on another circuit."""
        if self._stopped or item.number not in self.streams or item.circuit is None:
            return False
        if reason != EndReason.DESTROY and reason not in _EXIT_REASONS:
            return False
        if item.attempts > self._circuits.options.retries:
            return False
        if reason in _EXIT_REASONS:
            item.avoid.add(item.circuit.exit.id)
        item.reason = reason
        item.circuit = None
        item.slow.cancel()
        item.status = "DETACHED"
        self.on_stream(item)
        self._waiting[item] = None
        self._circuits.wake()
        return True

    def _changed(self, item: OpenStream, stream: Stream) -> None:
        if stream.connected and item.status == "SENTCONNECT":
            item.status = "SUCCEEDED"
            item.deadline.cancel()
            item.slow.cancel()
            self.on_stream(item)
        if stream.closed:
            reason = stream.ended or EndReason.DONE
            self._leave(item, "CLOSED" if item.status == "SUCCEEDED" else "FAILED", reason)

    def _too_late(self, item: OpenStream) -> None:
        if item.stream is None or not item.stream.connected:
            self._give_up(item, EndReason.TIMEOUT)

    def _give_up(self, item: OpenStream, reason: int) -> None:
        self._waiting.pop(item, None)
        item.reason = reason
        if item.stream is not None:
            item.stream.on_refused = None
            item.stream.abort(reason)
        elif item.on_resolved is not None:
            item.circuit = None
            item.on_resolved(None)

    def _leave(self, item: OpenStream, status: str, reason: int) -> None:
        if self.streams.pop(item.number, None) is not None:
            self._waiting.pop(item, None)
            item.deadline.cancel()
            if item.slow is not None:
                item.slow.cancel()
            self._cancel_retry(item)
            item.status, item.reason = status, reason
            self.on_stream(item)
            self._circuits.wake()
