"""Keeps a client's list of relays current over circuits: asks random relays what has changed, fetches and verifies it.

No single relay is believed: two are asked in turn, others take their places after some hours, and views are compared
(`node.viewcheck`). What one of them says can only add to the list: a relay leaves it when its record expires, or by its
own word.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from backrooms.errors import BackroomsError, CryptoError, RemoteProtocolError, WireError
from backrooms.interfaces import Rng
from backrooms.netdir.directory import MAX_RELAYS, Directory, EquivocationError
from backrooms.node.dirserving import record_digest
from backrooms.node.dirstreams import AskingConnection, DirStreams
from backrooms.node.logs import Seldom, without_numbers
from backrooms.node.schedule import Schedule
from backrooms.node.timers import Timers
from backrooms.node.verifying import Verifier
from backrooms.wire.documents import (
    MAX_FETCH_IDS,
    DirDocs,
    DirFetch,
    DirList,
    DirListRequest,
    Documents,
    ListEntry,
    Parts,
)
from backrooms.wire.records import SCHEMA
from backrooms.wire.views import INSTANCE_SIZE, SHORT_DIGEST, Change, Changes, ChangesRequest

log = Logger()

SOURCES = 2
"""Relays that are asked in turn."""
SOURCE_LIFE = 8 * 3600.0
"""Seconds, about, after which another relay takes a source's place."""
NEW_SOURCE = 0.1
"""How often that is one that was never asked before: it has to be asked for its whole list, 72 bytes a relay."""
KNOWN_SOURCES = 8
"""Relays whose revision is remembered."""
POLL_FIRST = 5.0
POLL_LEAST = 30.0
POLL_MOST = 480.0
"""Seconds until the first question, about, and between the others: the more changes, the shorter."""
MANY_CHANGES = 0.01
"""Part of the list that must have changed for the next question to come sooner."""
ATTEMPTS = 3
"""Relays that are tried before a question counts as unanswered."""
RETRY_TIME = 10.0
"""Seconds after which no further one is tried."""
EXCHANGE_TIME = 120.0
"""Seconds that one relay may take to tell what it knows."""
BAD_TIME = 3600.0
"""Seconds for which a relay that broke the rules is not asked."""
CHANGES_MOST = 4 * MAX_RELAYS
"""Changes in one exchange: each relay of a full list some times."""


def next_pause(pause: float, changes: int, relays: int) -> float:
    """Seconds to the next question, about, when the last one came after `pause` and brought so many changes."""
    much = changes > MANY_CHANGES * relays
    return max(POLL_LEAST, pause / 2) if much else min(POLL_MOST, pause * 1.5)


class DirectoryClient:
    """Asks relays over circuits for what this client's list lacks."""

    def __init__(self, timers: Timers, directory: Directory, streams: DirStreams, verifier: Verifier, rng: Rng) -> None:
        self.on_change: Callable[[], None] = lambda: None
        """Called when the list has changed."""
        self.counts: Counter[str] = Counter()
        """Exchanges, and what was wrong in them."""
        self.last: float | None = None
        """When a relay last told all that it knows, by the monotonic clock."""
        self._timers = timers
        self._directory = directory
        self._streams = streams
        self._verifier = verifier
        self._rng = rng
        self._known: OrderedDict[bytes, tuple[bytes, int]] = OrderedDict()
        """Instance and revision of relays that were asked, the last one at the end."""
        self._sources: dict[AskingConnection, float] = {}
        """Connections by when they are to be replaced, the one to be asked next at the front."""
        self._bad: dict[bytes, float] = {}
        self._seldom = Seldom()
        self._pause = POLL_LEAST
        self._schedule = Schedule(timers, "the directory over circuits")
        self._waiting: list[Deferred[bool]] | None = None
        """Who waits for the question that is being asked; None when none is."""

    def start(self) -> None:
        """Ask soon, and from then on."""
        self._schedule.set("poll", POLL_FIRST * (1 + self._rng.random()), self._poll)

    def stop(self) -> None:
        """Ask no more."""
        self._schedule.stop()

    def rest(self) -> None:
        """Ask nothing until `resume`."""
        self._schedule.rest()

    def resume(self) -> None:
        """Go on; what is overdue is asked at once."""
        self._schedule.resume()

    @property
    def received(self) -> int:
        """Bytes of directory messages that have come over circuits, for whatever reason."""
        return self._streams.received + sum(one.received for one in self._streams.connections)

    # asking

    async def _poll(self) -> None:
        before = self._directory.revision
        await self.update()
        self._pause = next_pause(self._pause, self._directory.revision - before, len(self._directory))
        self._schedule.set("poll", self._pause * (0.75 + self._rng.random() / 2), self._poll)

    async def update(self) -> bool:
        """Bring the list up to date; who asks meanwhile waits for that. True when a relay told all that it knows."""
        if self._waiting is not None:
            waiter: Deferred[bool] = Deferred()
            self._waiting.append(waiter)
            return await waiter
        self._waiting = []
        done = False
        before, began = self._directory.revision, self._timers.now()
        try:
            for _ in range(ATTEMPTS if self._directory else 0):
                done = await self._update()
                if done or self._timers.now() - began > RETRY_TIME:
                    break
        finally:
            waiting, self._waiting = self._waiting, None
            for waiter in waiting:
                waiter.callback(done)
            if self._directory.revision != before:
                self.on_change()
        return done

    async def _update(self) -> bool:
        source = None
        try:
            source = await self._source()
            await self._changes(source)
        except CancelledError:
            raise
        except RemoteProtocolError as error:
            self.counts[without_numbers(error.reason)] += 1
            if source is not None:
                self.blame(source, error)
        except BackroomsError as error:
            self.counts["no answer"] += 1
            if self._seldom.is_due("asking", self._timers.now()):
                log.info("a relay did not tell what has changed: {error}", error=str(error))
        else:
            self.counts["told"] += 1
            self.last = self._timers.now()
            return True
        return False

    def blame(self, connection: AskingConnection, error: RemoteProtocolError) -> None:
        """A relay broke the rules: it is not asked for some time."""
        connection.fail(error)
        relay_id = connection.relay.id
        self._known.pop(relay_id, None)
        self._bad[relay_id] = self._timers.now() + BAD_TIME

    def bad(self) -> set[bytes]:
        """Relays that are not asked now."""
        now = self._timers.now()
        self._bad = {one: until for one, until in self._bad.items() if until > now}
        return set(self._bad)

    async def _source(self) -> AskingConnection:
        """The next relay to ask, over a connection that is there or a new one."""
        now = self._timers.now()
        for connection, until in list(self._sources.items()):
            if connection.closed or now >= until:
                del self._sources[connection]
                connection.close()
        if len(self._sources) >= min(SOURCES, len(self._directory)):
            connection, until = next(iter(self._sources.items()))
            del self._sources[connection]
        else:
            connection = await self._streams.connect(*self._choose())
            until = self._timers.now() + SOURCE_LIFE * (0.5 + self._rng.random())
        self._sources[connection] = until
        return connection

    def _choose(self) -> tuple[bytes | None, Collection[bytes]]:
        """The id of a relay that was asked before, or None for any other than these."""
        taken = {one.relay.id for one in self._sources} | self.bad()
        known = [one for one in self._known if one not in taken and one in self._directory]
        if len(known) >= SOURCES and self._rng.random() >= NEW_SOURCE:
            return known[self._rng.randrange(0, len(known))], ()
        avoid = taken | set(known)
        if all(relay.id in avoid for relay in self._directory.relays()):
            avoid = taken
        return None, avoid

    async def _changes(self, source: AskingConnection) -> None:
        """Take over what has changed at a relay since it was asked last."""
        relay_id = source.relay.id
        instance, revision = self._known.pop(relay_id, (bytes(INSTANCE_SIZE), 0))
        end, seen, starts = self._timers.now() + EXCHANGE_TIME, 0, 0
        while True:
            page = await source.ask(ChangesRequest(instance, revision), Changes)
            if page.anew and page.instance != instance:
                instance, revision = page.instance, 0  # all that it remembers: as a rule, everything
                starts += 1
                if starts > 1:
                    raise WireError("changes of ever other instances")
                continue
            if page.anew:
                await self._whole(source, end)
            else:
                if page.instance != instance or page.revision < revision or (page.more and page.revision == revision):
                    raise WireError("changes that go round in circles")
                await self._take(source, page.changed, end)
            instance, revision = page.instance, page.revision
            if not page.more:
                break
            seen += len(page.changed) + len(page.gone)
            if seen > CHANGES_MOST or self._timers.now() > end:
                raise WireError("changes without end")
        self._known[relay_id] = instance, revision
        while len(self._known) > KNOWN_SOURCES:
            self._known.popitem(last=False)

    async def _take(self, source: AskingConnection, changed: Sequence[Change], end: float) -> None:
        """Fetch what is new to us of these, and prove it where a relay signed two records of one revision."""
        entries: list[ListEntry] = []
        twice: dict[bytes, int] = {}
        for change in changed:
            known = self._directory.held(change.id)
            digest = change.certificate.ljust(len(change.id), b"\0")
            if known is not None:
                if known.certificate.digest[:SHORT_DIGEST] == change.certificate:
                    digest = known.certificate.digest
                if known.record.revision == change.revision and record_digest(known.record_raw) != change.record:
                    twice[change.id] = change.revision
            entries.append(ListEntry(change.id, digest, change.revision))
        for request in self._directory.wanted(entries):
            await self.fetch(source, request, end)
        ids = list(twice)
        for start in range(0, len(ids), MAX_FETCH_IDS):
            proved = await self.fetch(source, DirFetch(tuple(ids[start : start + MAX_FETCH_IDS]), Parts.BOTH), end)
            for node_id in ids[start : start + MAX_FETCH_IDS]:
                known = self._directory.get(node_id)
                if known is not None and known.record.revision == twice[node_id] and node_id not in proved:
                    raise WireError("a record whose digest is not the one that was told")

    async def _whole(self, source: AskingConnection, end: float) -> None:
        """Compare the whole list, and fetch what is new to us."""
        after, seen = bytes(32), 0
        while True:
            page = await source.ask(DirListRequest(after), DirList)
            if page.entries and page.entries[0].id <= after:
                raise WireError("a list of relays that goes round in circles")
            for request in self._directory.wanted(page.entries):
                await self.fetch(source, request, end)
            if not page.more:
                return
            seen += len(page.entries)
            if seen > MAX_RELAYS or self._timers.now() > end:
                raise WireError("a list of relays without end")
            after = page.entries[-1].id

    async def fetch(self, source: AskingConnection, request: DirFetch, end: float) -> set[bytes]:
        """Fetch documents, verify them and keep what is good; ids of relays that they prove signed two records.

        `RemoteProtocolError` when the relay that gave them is at fault.
        """
        missing = list(request.ids)
        proved: set[bytes] = set()
        while missing:
            if self._timers.now() > end:
                raise WireError("documents that take too long")
            docs = await source.ask(DirFetch(tuple(missing), request.what), DirDocs)
            got = [one.id for one in docs.documents]
            if got != missing[: len(got)]:
                raise WireError("documents nobody asked for")
            missing = missing[len(got) :]
            held = [one for one in docs.documents if one.record]
            for one, result in zip(held, await self._verifier.take(held), strict=True):
                if isinstance(result, EquivocationError):
                    proved.add(one.id)
                elif _is_forged(one, result):
                    raise WireError("documents that do not verify")
        return proved


def _is_forged(one: Documents, result: object) -> bool:
    """Whether nobody honest passes this on: clocks, network files and the versions of documents may differ."""
    return isinstance(result, CryptoError) or (isinstance(result, WireError) and one.record[2:3] == bytes([SCHEMA]))
