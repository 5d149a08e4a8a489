"""What a client hears of dead relays, from three relays over circuits, and what it makes of that.

The relays pass on what watchers have signed, so each of them alone can tell the truth and none of them can make
anything up; three are there because one might keep silent (docs/protocol.md, "Failure detection").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from backrooms.crypto.keys import fingerprint
from backrooms.errors import BackroomsError, CircuitError, PathError, WireError
from backrooms.gossip.doubts import Doubts
from backrooms.gossip.neighbours import Neighbours, unrelated
from backrooms.gossip.partners import sample
from backrooms.interfaces import Rng
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory
from backrooms.node.circuits import Circuits
from backrooms.node.dirstreams import AskingConnection, DirStreams
from backrooms.path.weights import cap_weights, max_share
from backrooms.wire.heartbeat import Liveness, LivenessRequest, Rumours, list_root, unpack_bits

log = Logger()

SOURCES = 3
"""Relays that a client hears from at a time."""
LOOK = 2.0
"""Seconds between looks at whether there are as many."""
FIRST_LOOK = 5.0
"""Seconds after the first circuit was built until the first of them is asked."""
ASK_AGAIN = 240.0
"""Seconds after which each is asked for the long dead again."""
REST = 10.0
"""Seconds for which a relay that did not answer is left alone."""


class Hearsay:
    """Keeps directory streams to some relays and gives what they say to `doubts`."""

    def __init__(
        self,
        directory: Directory,
        circuits: Circuits,
        streams: DirStreams,
        rng: Rng,
        settled: Callable[[], bool],
    ) -> None:
        self.doubts = Doubts(directory, Neighbours(directory), self._weights)
        self.doubts.on_ignored = self._ignored
        self._directory = directory
        self._circuits = circuits
        self._streams = streams
        self._timers = circuits.timers
        self._rng = rng
        self._settled = settled
        self._sources: dict[AskingConnection, float] = {}
        self._resting: dict[bytes, float] = {}
        self._opening = False
        self._built_at: float | None = None
        self._known: tuple[int, dict[bytes, float]] = -1, {}
        self._told_of: frozenset[bytes] = frozenset()
        self._looker: Any = None

    def doubted(self) -> frozenset[bytes]:
        """Relays that had better not be in new paths."""
        return self.doubts.doubted(self._timers.now())

    def sources(self) -> list[bytes]:
        """The relays that we hear from."""
        return [connection.relay.id for connection in self._sources]

    def _weights(self) -> Mapping[bytes, float]:
        if self._known[0] != self._directory.revision:
            relays = self._directory.relays()
            weights = cap_weights([float(max(1, one.capacity)) for one in relays], max_share(len(relays)))
            self._known = (
                self._directory.revision,
                {one.id: weight for one, weight in zip(relays, weights, strict=True)},
            )
        return self._known[1]

    def _ignored(self, count: int) -> None:
        log.warn("rumours call so many relays dead that {count} of them are used all the same", count=count)

    # life

    def start(self) -> None:
        """Listen from now on."""
        if self._looker is None:
            self._look()

    def stop(self) -> None:
        """Listen no more; `start` again is possible."""
        if self._looker is not None:
            self._looker.cancel()
            self._looker = None
        for connection in list(self._sources):
            connection.close()

    rest, resume = stop, start

    def _look(self) -> None:
        now = self._timers.now()
        self._looker = self._timers.at(now + LOOK, self._look)
        if self._built_at is None and self._circuits.ever_built and self._settled():
            self._built_at = now
        doubted = self.doubted()
        for connection, asked_at in list(self._sources.items()):
            if any(relay.id in doubted for relay in connection.circuit.path):
                connection.close()  # nothing more will come through it
            elif now - asked_at >= ASK_AGAIN:
                self._ask(connection)
        if self._built_at is None or now < self._built_at + FIRST_LOOK or self._opening:
            return
        if len(self._sources) < SOURCES and (source := self._choose(now)) is not None:
            self._opening = True
            opening = Deferred.fromCoroutine(self._open(source))
            opening.addErrback(lambda failure: log.failure("bug while asking who is dead", failure))

    def _choose(self, now: float) -> Descriptor | None:
        """One more relay to hear from, unrelated to the others if there is such a one."""
        self._resting = {one: until for one, until in self._resting.items() if until > now}
        used = [connection.relay for connection in self._sources]
        left_out = {
            *self._resting,
            *(one.id for one in used),
            *self.doubted(),
            *self._circuits.options.constraints.exclude,
        }
        last: Descriptor | None = None
        for relay in sample(list(self._directory.relays()), 32, self._rng):
            if relay.id in left_out:
                continue
            if all(unrelated(relay, other) for other in used):
                return relay
            last = last or relay
        return last

    async def _open(self, source: Descriptor) -> None:
        """Open a stream to a relay, through others than the streams that there are."""
        shared = {relay.id for one in self._sources for relay in one.circuit.path[1:]} - {source.id}
        try:
            try:
                connection = await self._streams.connect(source.id, shared)
            except (CircuitError, PathError):  # there is no such path, or none that works
                connection = await self._streams.connect(source.id)
        except BackroomsError as error:
            log.debug("a relay does not tell who is dead: {error}", error=str(error))
            self._resting[source.id] = self._timers.now() + REST
            return
        finally:
            self._opening = False
        if self._looker is None:
            connection.close()
            return
        connection.on_message = self._heard
        connection.on_closed.append(partial(self._closed, connection))
        self._ask(connection)

    def _closed(self, connection: AskingConnection) -> None:
        self._sources.pop(connection, None)

    def _ask(self, connection: AskingConnection) -> None:
        self._sources[connection] = self._timers.now()
        ids = [one.id for one in self._directory.relays()]
        root = list_root(ids)
        answer = connection.ask(LivenessRequest(root), Liveness)
        answer.addCallback(partial(self._told, connection, root, ids))
        answer.addErrback(self._untold)

    def _told(self, connection: AskingConnection, root: bytes, ids: list[bytes], answer: Liveness) -> None:
        """A relay says who has been dead for long."""
        if answer.bits and answer.root != root:
            connection.fail(WireError("a bitmap over another list"))
            return
        dead = unpack_bits(ids, answer.bits) if answer.root == root else frozenset(answer.dead)
        self.doubts.long_dead(connection.relay.id, dead, self._timers.now())
        self._changed()

    def _untold(self, failure: Failure) -> None:
        if not isinstance(failure.value, BackroomsError):
            log.failure("bug in the list of the dead", failure)

    def _heard(self, kind: int, payload: bytes) -> None:
        """A relay passes on what watchers say."""
        if kind != Rumours.TYPE:
            raise WireError("a message about failures nobody asked for")
        self.doubts.rumours(Rumours.decode(payload), self._timers.now(), self._timers.wall())
        self._changed()

    def _changed(self) -> None:
        """Tell who is avoided from now on; spares through them give way."""
        doubted = self.doubted()
        for relay_id in doubted - self._told_of:
            log.info("relay {relay} is avoided: it is said to be dead", relay=fingerprint(relay_id)[:8])
        self._told_of = doubted
        if doubted:
            self._circuits.wake()
