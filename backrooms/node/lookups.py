"""Look-ups of names for the circuits that end here.

Each circuit has a cache of its own: what one has looked up makes no answer to another any faster, so nobody can find
out by asking which names others have asked for (docs/decisions/012-each-circuit-has-its-own-dns-cache.md). For the
same reason only questions of one circuit are asked together. The places at the resolver are given to the circuits in
turn, and no circuit holds more than half of them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from backrooms.errors import StreamError, WireError
from backrooms.node.resolvers import Found, Resolver, Unanswered
from backrooms.node.timers import Call, Timers
from backrooms.wire.names import check_host, ip_literal
from backrooms.wire.relay import EndReason

log = Logger()

RESOLVE_TIMEOUT = 10.0
"""Seconds for a look-up, and before that for its turn to come."""
MIN_TTL = 60.0
MAX_TTL = 3600.0
"""Answers are kept no shorter and no longer than this, whatever they say; that there is none is not prolonged."""
CACHE_SIZE = 20_000
"""Answers that are kept for all circuits together."""
MAX_VALUES = 32
"""Addresses or names of one answer that count."""
CIRCUIT_WAITING = 256
"""Names of one circuit that may wait."""
WAITING = 4096
"""Names of all circuits that may wait; beyond it a circuit may have one."""

_Key = tuple[bool, str]
"""Whether a name of an address is asked for, and the name or the address."""


class _LookUp:
    """One name that is being looked up for one circuit, and who waits for it."""

    __slots__ = ("asker", "key", "patience", "queued", "waiters")

    def __init__(self, asker: _Asker, key: _Key) -> None:
        self.asker = asker
        self.key = key
        self.waiters: dict[Deferred[tuple[str, ...]], None] = {}
        self.queued = True
        self.patience: Call | None = None

    def tell(self, result: Any) -> None:
        """Give everybody who waits the same answer, or failure."""
        waiters, self.waiters = self.waiters, {}
        for waiter in waiters:
            if not waiter.called:  # what one makes of it may end the circuit, and with it the wish of others
                waiter.callback(result)


class _Answer:
    """A cached answer; `values` is empty when there is none."""

    __slots__ = ("asker", "key", "until", "values")

    def __init__(self, asker: _Asker, key: _Key, values: tuple[str, ...], until: float) -> None:
        self.asker = asker
        self.key = key
        self.values = values
        self.until = until


class _Asker:
    """One circuit: what it remembers, waits for, and still has to ask."""

    __slots__ = ("cache", "gone", "pending", "queue", "running")

    def __init__(self) -> None:
        self.cache: dict[_Key, _Answer] = {}
        self.pending: dict[_Key, _LookUp] = {}
        self.queue: deque[_LookUp] = deque()
        self.running = 0
        self.gone = False


class LookUps:
    """Look-ups for one exit. Each fails with a `StreamError`, `Unanswered` if asking later may help.

    `circuit` may be anything that stands for one. What happens is counted in `counts`.
    """

    def __init__(self, timers: Timers, resolver: Resolver, counts: Counter[str]) -> None:
        self._timers = timers
        self._resolver = resolver
        self._counts = counts
        self._free = resolver.places
        self._share = max(1, resolver.places // 2)
        self._askers: dict[Hashable, _Asker] = {}
        self._turns: OrderedDict[_Asker, None] = OrderedDict()
        self._recent: OrderedDict[_Answer, None] = OrderedDict()
        self._waiting = 0
        self._running: set[Deferred[None]] = set()
        self._serving = False

    async def addresses(self, circuit: Hashable, name: str) -> tuple[str, ...]:
        """The addresses of a name, at least one."""
        try:
            name = check_host(name.encode())  # a client that is not ours may send anything
        except WireError:
            raise StreamError(EndReason.RESOLVEFAILED, "no host name") from None
        if ip_literal(name) is not None:
            return (name,)
        return await self._look_up(circuit, (False, name.removesuffix(".")))

    async def name_of(self, circuit: Hashable, address: str) -> str:
        """The name of an address literal."""
        for name in await self._look_up(circuit, (True, address)):
            try:
                checked = check_host(name.encode())  # whoever holds the address wrote it
            except WireError:
                continue
            if ip_literal(checked) is None:
                return checked
        raise StreamError(EndReason.RESOLVEFAILED, "no such name")

    def clear_cache(self) -> None:
        """Forget all answers."""
        self._recent.clear()
        for asker in self._askers.values():
            asker.cache.clear()

    def forget(self, circuit: Hashable) -> None:
        """The circuit is gone, with all that it asked and was told."""
        asker = self._askers.pop(circuit, None)
        if asker is None:
            return
        asker.gone = True
        for answer in asker.cache.values():
            del self._recent[answer]
        asker.cache.clear()
        for look_up in list(asker.pending.values()):
            self._drop(look_up, StreamError(EndReason.DESTROY))

    def stop(self) -> None:
        """Give everything up."""
        for circuit in list(self._askers):
            self.forget(circuit)
        for running in list(self._running):
            running.cancel()

    # asking

    async def _look_up(self, circuit: Hashable, key: _Key) -> tuple[str, ...]:
        asker = self._askers.get(circuit)
        if asker is None:
            asker = self._askers[circuit] = _Asker()
        values = self._remembered(asker, key)
        if values is None:
            values = await self._ask(asker, key)
        if not values:
            raise StreamError(EndReason.RESOLVEFAILED, "no such name")
        return values

    def _remembered(self, asker: _Asker, key: _Key) -> tuple[str, ...] | None:
        answer = asker.cache.get(key)
        if answer is None:
            return None
        if self._timers.now() >= answer.until:
            del asker.cache[key], self._recent[answer]
            return None
        self._recent.move_to_end(answer)
        self._counts["look-ups answered from the cache"] += 1
        return answer.values

    def _ask(self, asker: _Asker, key: _Key) -> Deferred[tuple[str, ...]]:
        """Wait for an answer, together with others of this circuit who ask the same."""
        look_up = asker.pending.get(key)
        fresh = look_up is None
        if look_up is None:
            if len(asker.queue) >= CIRCUIT_WAITING or (self._waiting >= WAITING and asker.queue):
                raise StreamError(EndReason.RESOURCELIMIT, "too many look-ups")
            look_up = asker.pending[key] = _LookUp(asker, key)
        asked = look_up
        waiter: Deferred[tuple[str, ...]] = Deferred(lambda waiter: self._leave(asked, waiter))
        look_up.waiters[waiter] = None
        if fresh:
            asker.queue.append(look_up)
            self._waiting += 1
            self._wait(look_up)
            self._line_up(asker)
            self._serve()
        return waiter

    def _leave(self, look_up: _LookUp, waiter: Deferred[tuple[str, ...]]) -> None:
        """Who waited does so no more. A look-up that has begun is finished all the same."""
        look_up.waiters.pop(waiter, None)
        if look_up.queued and not look_up.waiters:
            self._drop(look_up)

    def _drop(self, look_up: _LookUp, error: Exception | None = None) -> None:
        """Wait no longer for this look-up. If it runs, its place stays taken until the resolver lets go of it."""
        asker = look_up.asker
        if look_up.patience is not None:
            look_up.patience.cancel()
        if asker.pending.get(look_up.key) is look_up:
            del asker.pending[look_up.key]
        if look_up.queued:
            look_up.queued = False
            asker.queue.remove(look_up)
            self._waiting -= 1
            if not asker.queue:
                self._turns.pop(asker, None)
        if error is not None:
            look_up.tell(_failure(error))

    def _wait(self, look_up: _LookUp) -> None:
        """Have patience with it, once more."""
        if look_up.patience is not None:
            look_up.patience.cancel()
        look_up.patience = self._timers.at(self._timers.now() + RESOLVE_TIMEOUT, lambda: self._late(look_up))

    def _late(self, look_up: _LookUp) -> None:
        self._drop(look_up, Unanswered("the look-up took too long"))

    # turns

    def _line_up(self, asker: _Asker) -> None:
        """Let the circuit wait for its turn, if it has something to ask and may."""
        if asker.queue and asker.running < self._share:
            self._turns[asker] = None

    def _serve(self) -> None:
        if self._serving:  # a look-up ended at once: the loop goes on
            return
        self._serving = True
        while self._free and self._turns:
            asker, _ = self._turns.popitem(last=False)
            look_up = asker.queue.popleft()
            look_up.queued = False
            self._waiting -= 1
            self._free -= 1
            asker.running += 1
            self._line_up(asker)
            self._wait(look_up)
            self._counts["look-ups"] += 1
            running = Deferred.fromCoroutine(self._run(look_up))
            if not running.called:
                self._running.add(running)
                running.addBoth(self._ended, running)
        self._serving = False

    def _ended(self, _: object, running: Deferred[None]) -> None:
        self._running.discard(running)

    async def _run(self, look_up: _LookUp) -> None:
        """Ask the resolver, and give the place to the next when it lets go of it."""
        reverse, what = look_up.key
        try:
            found = await (self._resolver.names(what) if reverse else self._resolver.addresses(what))
            values = found.values[:MAX_VALUES]
            self._keep(look_up, Found(values, found.ttl))
            result: Any = values
        except StreamError as error:
            result = _failure(error)
        except CancelledError:
            result = _failure(StreamError(EndReason.DESTROY))
        except Exception:
            log.failure("bug in a look-up")
            result = _failure(StreamError(EndReason.INTERNAL))
        asker = look_up.asker
        self._free += 1
        asker.running -= 1
        self._drop(look_up)
        self._line_up(asker)
        look_up.tell(result)
        self._serve()

    def _keep(self, look_up: _LookUp, found: Found) -> None:
        """Remember an answer, for the circuit that asked."""
        asker, key = look_up.asker, look_up.key
        if asker.gone:
            return
        ttl = min(MAX_TTL, max(MIN_TTL, found.ttl)) if found.values else found.ttl
        old = asker.cache.get(key)
        if old is not None:
            del self._recent[old]
        answer = asker.cache[key] = _Answer(asker, key, found.values, self._timers.now() + ttl)
        self._recent[answer] = None
        if len(self._recent) > CACHE_SIZE:
            oldest, _ = self._recent.popitem(last=False)
            del oldest.asker.cache[oldest.key]


def _failure(error: Exception) -> Failure:
    return Failure(error)  # type: ignore[no-untyped-call]
