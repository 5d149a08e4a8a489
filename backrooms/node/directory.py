"""Keeps the list of relays: has it brought up to date, serves it to others, publishes this relay.

Relays gossip (`node.gossip`). Whoever knows too little, and every client without circuits, asks for the whole list:
contacts of the network file first, then relays that it knows from before. Requests and answers are link messages, one
request at a time on a link.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.logger import Logger

from backrooms.errors import BackroomsError, CryptoError, RemoteProtocolError, WireError
from backrooms.gossip.exchange import Result
from backrooms.gossip.partners import sample
from backrooms.interfaces import Rng
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import MAX_RELAYS, Directory, EquivocationError
from backrooms.netdir.network import NetworkFile
from backrooms.netdir.policy import is_private
from backrooms.node.channels import Channels
from backrooms.node.gossip import Gossiping
from backrooms.node.learning import Learning
from backrooms.node.link import Link
from backrooms.node.logs import Seldom, without_numbers
from backrooms.node.publishing import Publishing
from backrooms.node.questions import Questions
from backrooms.node.savedlist import SavedList
from backrooms.node.schedule import Schedule
from backrooms.node.timers import Timers
from backrooms.node.verifying import Verifier
from backrooms.wire.cell import IGNORABLE
from backrooms.wire.documents import (
    AnyDirectoryMessage,
    DirDocs,
    DirectoryMessage,
    DirFetch,
    DirList,
    DirListRequest,
    DirPublish,
    DirPublished,
    Documents,
    PublishStatus,
    decode_message,
)

log = Logger()

FETCH_FIRST = 0.5
"""Seconds until the next fetch while the list still changes."""
FETCH_LAST = 1800.0
"""Seconds between fetches once it does not."""
SETTLED = 3.0
"""Seconds between fetches from which on the list counts as settled: the last few of them brought nothing new."""
GOSSIP_LOOK = 60.0
"""Seconds between looks whether gossip goes on, at a relay that has the list."""
ANSWERS_WAITING = 64
"""Control cells that wait on a link, at most, when a further question is answered; an answer takes up to 15."""
FETCH_TIME = 120.0
"""Seconds one contact may take over its whole list."""
SOURCES = 2
"""Relays asked at each fetch; the answers are united."""
WARM = 3
"""Relays in the saved list from which on a client tries to ask over circuits first."""
CIRCUITS_TIME = 15.0
"""Seconds that this may take before it asks over a link."""
OTHERS = 4
"""Relays of the list that are tried when contacts give no list."""
COLD_ROUNDS = 6
"""Fetches in which a node that began without a list asks contacts that have not answered yet, before anybody else: what
two of them hide, a third tells."""


class DirectoryKeeper:
    """The directory's life on this node. `describe(last)` makes our own fresh descriptor, None on a client."""

    def __init__(
        self,
        reactor: Any,
        timers: Timers,
        channels: Channels,
        directory: Directory,
        network: NetworkFile,
        rng: Rng,
        state: Path,
        describe: Callable[[Descriptor | None], Descriptor] | None,
    ) -> None:
        self.directory = directory
        self.on_change: Callable[[], None] = lambda: None
        """Called when the list has changed, and when it has settled."""
        self.settled = False
        """Whether the list is as long as it is going to be, as far as we can tell."""
        self.may_publish: Callable[[], bool] = lambda: True
        """While it says no we are in no list, our own included. `republish` when that changes."""
        self.over_circuits: Callable[[], Coroutine[Any, Any, bool]] | None = None
        """Brings a client's list up to date over circuits, so that nobody sees who asks; whether it did."""
        self.gossip: Gossiping | None = None
        """A relay's gossip."""
        self._reactor = reactor
        self._timers = timers
        self._channels = channels
        self._network = network
        self._rng = rng
        self._saved = SavedList(reactor, timers, directory, state)
        self.verifier = Verifier(reactor, directory, timers.wall)
        self.refused: Counter[str] = Counter()
        """Descriptors that were refused, by reason."""
        self._seldom = Seldom()
        self._local = network.is_local
        self._questions = Questions(timers)
        self._schedule = Schedule(timers, "the directory")
        self._later = self._schedule.set
        self._fetch_pause = FETCH_FIRST
        self._fetching = False
        self._fetched = False
        """Whether somebody has given us the whole list since the start."""
        self._cold_rounds = 0
        """Fetches left of those in which all contacts are to be heard."""
        self._heard: set[bytes] = set()
        """Who has given us its list since the start."""
        self._learning = Learning(
            timers, channels, directory, self._questions, self._sources, self._take, lambda: self.on_change()
        )
        self._stopped = False
        channels.on_message = self._message
        channels.on_gone.append(self._questions.gone)
        self._publishing: Publishing | None = None
        if describe is not None:
            self.gossip = Gossiping(
                timers, channels, directory, self._questions, rng, self._take, lambda one: bool(self.addresses(one))
            )
            self.gossip.on_news = lambda: self.on_change()
            self._publishing = Publishing(
                timers,
                channels,
                directory,
                network,
                self._questions,
                self._schedule,
                self.gossip,
                describe,
                lambda: self.may_publish(),
            )

    def start(self) -> None:
        """Load what was saved, publish ourselves, and fetch."""
        self._saved.load()
        self._cold_rounds = 0 if self.directory else COLD_ROUNDS
        if self._saved.unverified:
            Deferred.fromCoroutine(self._take(self._saved.unverified))
        if self.gossip is not None:
            self.gossip.start()
        self.republish()
        self._later("fetch", 0.0, self._fetch)

    def stop(self) -> None:
        """Stop, and save the list."""
        self._stopped = True
        self._schedule.stop()
        if self.gossip is not None and self._publishing is not None:
            self.gossip.stop()
            self._publishing.stop()
        self._learning.stop()
        self._saved.stop()

    def rest(self) -> None:
        """Fetch and publish nothing until `resume`."""
        self._schedule.rest()
        if self.gossip is not None:
            self.gossip.stop()

    def resume(self) -> None:
        """Go on. The list may be old: what has expired goes at once, and it counts as settled when it was fetched."""
        self.directory.expire(self._timers.wall())
        self.settled = self.settled and not self._schedule.overdue("fetch")
        self._schedule.resume()
        if self.gossip is not None:
            self.gossip.start()

    def addresses(self, relay_id: bytes) -> Sequence[str]:
        """Where a relay can be reached: by its descriptor, then by the network file, which may be newer."""
        if self.directory.is_revoked(relay_id):
            return []
        named = [contact.address for contact in self._network.contacts if contact.id == relay_id]
        relay = self.directory.get(relay_id)
        if relay is None:
            return named
        # A record could send us to hosts of our own local network.
        dialled = (one for one in relay.addresses if self._local or one.host is None or not is_private(one.host))
        return list(dict.fromkeys([*map(str, dialled), *named]))

    async def learn(self, relay_id: bytes) -> bool:
        """Whether a relay is in the list. If it is not, ask some others for it, but not for long and not too often."""
        return await self._learning.learn(relay_id)

    # fetching

    async def _fetch(self) -> None:
        if self._fetching:
            return
        self._fetching = True
        before = self.directory.revision
        self.directory.expire(self._timers.wall())
        try:
            answered = await self._bring_up_to_date()
        except Exception:  # a bug: the list must go on being fetched
            log.failure("bug while fetching the list of relays")
            answered = False
        self._fetching = False
        if self._stopped:
            return
        was_settled = self.settled
        changed = self.directory.revision != before
        alone = not self._sources()
        if changed:
            self._fetch_pause = FETCH_FIRST
        elif answered or alone:
            self._fetch_pause = min(self._fetch_pause * 1.5, FETCH_LAST if self.gossip is None else GOSSIP_LOOK)
        else:
            self._fetch_pause = min(max(self._fetch_pause, 1.0) * 1.5, 60.0)
        # An empty list, or one that nobody could be asked about, may grow as soon as somebody is reached.
        self.settled = bool(self.directory) and (answered or alone) and self._fetch_pause >= SETTLED
        self._later("fetch", self._fetch_pause * (0.75 + self._rng.random() / 2), self._fetch)
        if changed or (self.settled and not was_settled):
            self.on_change()

    def _sources(self) -> list[bytes]:
        """Whom to ask for the list: the contacts, then some relays of the list, each in random order."""
        mine = self._channels.my_id
        contacts = sample(self._contacts(), len(self._network.contacts), self._rng)
        contacts.sort(key=self._heard.__contains__)
        relays = self.directory.relays()
        drawn = {relays[self._rng.randrange(0, len(relays))].id for _ in range(OTHERS) if relays}
        others = sorted(drawn - {mine, *contacts})
        return contacts + sample(others, len(others), self._rng)

    def _contacts(self) -> list[bytes]:
        return [contact.id for contact in self._network.contacts if contact.id != self._channels.my_id]

    async def _bring_up_to_date(self) -> bool:
        """Get what is new; whether anybody was there to tell."""
        if self.gossip is not None and self._fetched and self.gossip.in_touch:
            return True  # gossip tells all
        cold = self._cold_rounds > 0 and not self._heard.issuperset(self._contacts())
        self._cold_rounds -= cold
        if self.over_circuits is not None and (self.settled or len(self.directory) >= WARM) and not cold:
            asking = Deferred.fromCoroutine(self.over_circuits())
            asking.addTimeout(CIRCUITS_TIME, self._reactor)
            try:
                if await asking:
                    return True
            except (BackroomsError, TookTooLong):
                pass  # no circuit can be built with what we know
        return await self._fetch_all()

    async def _fetch_all(self) -> bool:
        """Ask some relays for their lists; whether any answered."""
        answered = 0
        for source in self._sources():
            if answered >= SOURCES or self._stopped:
                break
            try:
                await self._fetch_from(await self._channels.link(source))
                answered += 1
                self._heard.add(source)
            except BackroomsError as error:
                if self._seldom.is_due(str(error), self._timers.now()):
                    log.info("a relay gave no list of relays: {error}", error=str(error))
        if answered and self.gossip is not None and not self._fetched:
            self.gossip.hurry()
        self._fetched = self._fetched or answered > 0
        return answered > 0

    async def _fetch_from(self, link: Link) -> None:
        after = bytes(32)
        end, seen = self._timers.now() + FETCH_TIME, 0
        while True:
            page = await self._questions.ask(link, DirListRequest(after), DirList)
            for request in self.directory.wanted(page.entries):
                missing = list(request.ids)
                while missing:
                    if self._timers.now() > end:
                        raise WireError("a list of relays that takes too long")
                    docs = await self._questions.ask(link, DirFetch(tuple(missing), request.what), DirDocs)
                    got = {one.id for one in docs.documents}
                    if not got.issubset(missing):
                        raise WireError("documents nobody asked for")
                    missing = [relay_id for relay_id in missing if relay_id not in got]
                    await self._take(docs.documents)
            if not page.more:
                return
            seen += len(page.entries)
            if seen > MAX_RELAYS or self._timers.now() > end:
                raise WireError("a list of relays without end")
            if page.entries[-1].id <= after:
                raise WireError("a list of relays that goes round in circles")
            after = page.entries[-1].id

    async def _take(self, documents: Sequence[Documents]) -> list[Result]:
        """Verify in threads, and keep what is good."""
        results = await self.verifier.take(documents)
        for result in results:
            if isinstance(result, RemoteProtocolError):
                self.refused[without_numbers(result.reason)] += 1
                if self._seldom.is_due(without_numbers(result.reason), self._timers.now()):
                    log.warn("a descriptor was refused: {reason}", reason=result.reason)
        return results

    def republish(self) -> None:
        """Something we publish has changed."""
        if self._publishing is not None:
            self._publishing.republish()

    # messages

    def _message(self, link: Link, kind: int, payload: bytes) -> None:
        if kind >= IGNORABLE:
            return
        try:
            message = decode_message(kind, payload)
        except RemoteProtocolError as error:
            link.driver.fail(error)
            return
        if isinstance(message, DirListRequest | DirFetch | DirPublish):
            if self.gossip is None:
                link.driver.fail(WireError("a client was asked for the directory"))
                return
            if link.channel.mux.control_waiting > ANSWERS_WAITING:
                return  # it asks and does not read, or the link is busy: it may ask again
        answer = self._answer(link, message)
        if answer is not None:
            link.channel.send_message(answer.TYPE, answer.encode())
        elif not isinstance(message, DirPublish) and not self._questions.answered(link, message):
            link.driver.fail(WireError("a directory message nobody asked for"))

    def _answer(self, link: Link, message: AnyDirectoryMessage) -> DirectoryMessage | None:
        """What we answer as a server; None for what is not a request, or is answered later."""
        if isinstance(message, DirListRequest):
            return self.directory.answer_list(message)
        if isinstance(message, DirFetch):
            return self.directory.answer_fetch(message)
        if isinstance(message, DirPublish):
            return self._published(link, message)
        return None

    def _published(self, link: Link, message: DirPublish) -> DirPublished | None:
        if link.peer_id is None:
            return DirPublished(PublishStatus.REFUSED, "only relays publish")
        assert self.gossip is not None  # clients are not asked
        before = self.directory.revision
        if not self.gossip.may_change(link.peer_id) or not self.gossip.may_verify(link.peer_id):
            return DirPublished(PublishStatus.REFUSED, "too many records in a short time")
        try:
            relay = self.directory.verify(message.certificate or None, message.record, self._timers.wall())
            if relay.id != link.peer_id:
                raise WireError("a relay publishes itself only")
            self.directory.insert(relay, self._timers.wall())
        except RemoteProtocolError as error:
            if isinstance(error, CryptoError):
                link.driver.fail(error)
                return None
            if isinstance(error, EquivocationError):
                for call in self.directory.on_equivocation:
                    call(error)
            return DirPublished(PublishStatus.REFUSED, error.reason)
        if self.directory.revision == before:
            return DirPublished(PublishStatus.UNCHANGED)
        self._fetch_pause = FETCH_FIRST
        self.gossip.news(link.peer_id)
        self.on_change()
        return DirPublished(PublishStatus.ACCEPTED)
