"""Keeps the list of relays: fetches it from contacts, serves it to others, publishes this relay.

The list spreads through the contacts of the network file: relays publish to them, every node fetches from them.
Requests and answers are link messages, one request at a time on a link.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet import threads
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from backrooms.errors import BackroomsError, RemoteProtocolError, WireError
from backrooms.interfaces import Rng
from backrooms.netdir.descriptor import CLOCK_TOLERANCE, Descriptor
from backrooms.netdir.directory import MAX_RELAYS, Directory
from backrooms.netdir.network import NetworkFile
from backrooms.netdir.policy import is_private
from backrooms.node.channels import Channels
from backrooms.node.link import Link
from backrooms.node.logs import Seldom, without_numbers
from backrooms.node.questions import Questions
from backrooms.node.savedlist import SavedList
from backrooms.node.schedule import Schedule
from backrooms.node.timers import Timers
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
LEARN_TIME = 3.0
"""Seconds that whoever asks for an unknown relay waits for."""
LEARN_PAUSE = 10.0
"""Seconds between fetches made because somebody asked for an unknown relay: clients can name as many as they like."""
PUBLISH_INTERVAL = 18 * 3600.0
PUBLISH_RETRY = 2.0
PUBLISH_RETRY_MAX = 600.0
ANSWERS_WAITING = 64
"""Control cells that wait on a link, at most, when a further question is answered; an answer takes up to 15."""
FETCH_TIME = 120.0
"""Seconds one contact may take over its whole list."""
SOURCES = 2
"""Contacts asked at each fetch; the answers are united."""
VERIFY_CHUNK = 16
"""Descriptors verified in one go in a thread."""


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
        self._reactor = reactor
        self._timers = timers
        self._channels = channels
        self._network = network
        self._rng = rng
        self._saved = SavedList(state, directory, timers)
        self.refused: Counter[str] = Counter()
        """Descriptors that were refused, by reason."""
        self._seldom = Seldom()
        self._describe = describe
        self._local = network.is_local
        self._own: Descriptor | None = None
        self._questions = Questions(timers)
        self._schedule = Schedule(timers, "the directory")
        self._later = self._schedule.set
        self._fetch_pause = FETCH_FIRST
        self._publish_pause = PUBLISH_RETRY
        self._unpublished: set[bytes] = set()
        self._published_at = 0.0
        self._fetching = False
        self._fetch_again = False
        self._learners: list[Deferred[None]] = []
        self._learned_at = -LEARN_PAUSE
        self._stopped = False
        channels.on_message = self._message
        channels.on_gone.append(self._questions.gone)

    def start(self) -> None:
        """Load what was saved, publish ourselves, and fetch."""
        self._saved.load()
        self.republish()
        self._later("fetch", 0.0, self._fetch)

    def stop(self) -> None:
        """Stop, and save the list."""
        self._stopped = True
        self._schedule.stop()
        self._wake_learners()
        self._saved.save()

    def rest(self) -> None:
        """Fetch and publish nothing until `resume`."""
        self._schedule.rest()

    def resume(self) -> None:
        """Go on. The list may be old: what has expired goes at once, and it counts as settled when it was fetched."""
        self.directory.expire(self._timers.wall())
        self.settled = self.settled and not self._schedule.overdue("fetch")
        self._schedule.resume()

    def addresses(self, relay_id: bytes) -> Sequence[str]:
        """Where a relay can be reached: by its descriptor, else by the network file."""
        relay = self.directory.get(relay_id)
        if relay is not None:
            # A record could send us to hosts of our own local network.
            dialled = (one for one in relay.addresses if self._local or one.host is None or not is_private(one.host))
            return [str(address) for address in dialled]
        return [contact.address for contact in self._network.contacts if contact.id == relay_id]

    async def learn(self, relay_id: bytes) -> bool:
        """Whether a relay is in the list. If it is not, look once more, but not for long and not too often."""
        now = self._timers.now()
        end = now + LEARN_TIME
        if relay_id not in self.directory and now - self._learned_at >= LEARN_PAUSE:
            self._learned_at = now
            self._fetch_pause = FETCH_FIRST
            self._fetch_soon()
        while relay_id not in self.directory and self._is_looking() and self._timers.now() < end:
            waiter: Deferred[None] = Deferred()
            self._learners.append(waiter)
            timeout = self._timers.at(end, partial(self._wake_learner, waiter))
            await waiter
            timeout.cancel()
        return relay_id in self.directory

    def _is_looking(self) -> bool:
        return (self._fetching or self._fetch_again) and not self._stopped

    def _fetch_soon(self) -> None:
        self._fetch_again = True
        if not self._fetching:
            self._later("fetch", 0.0, self._fetch)

    def _wake_learner(self, waiter: Deferred[None]) -> None:
        if waiter in self._learners:
            self._learners.remove(waiter)
            waiter.callback(None)

    def _wake_learners(self) -> None:
        for waiter in list(self._learners):
            self._wake_learner(waiter)

    # fetching

    async def _fetch(self) -> None:
        if self._fetching:
            self._fetch_again = True
            return
        self._fetching, self._fetch_again = True, False
        before = self.directory.revision
        self.directory.expire(self._timers.wall())
        try:
            answered = await self._fetch_all()
        except Exception:  # a bug: the list must go on being fetched
            log.failure("bug while fetching the list of relays")
            answered = False
        self._fetching = False
        if self._stopped:
            return
        self._saved.save()  # even if nothing is new: the last time there may have been no room on the disk
        was_settled = self.settled
        changed = self.directory.revision != before
        if changed:
            self._fetch_pause = FETCH_FIRST
        elif answered or not self._contacts():
            self._fetch_pause = min(self._fetch_pause * 1.5, FETCH_LAST)
        else:
            self._fetch_pause = min(max(self._fetch_pause, 1.0) * 1.5, 60.0)
        # An empty list, or one that nobody could be asked about, may grow as soon as a contact is reached.
        self.settled = bool(self.directory) and (answered or not self._contacts()) and self._fetch_pause >= SETTLED
        pause = 0.0 if self._fetch_again else self._fetch_pause * (0.75 + self._rng.random() / 2)
        self._later("fetch", pause, self._fetch)
        self._wake_learners()
        if changed or (self.settled and not was_settled):
            self.on_change()

    def _contacts(self) -> list[bytes]:
        return [contact.id for contact in self._network.contacts if contact.id != self._channels.my_id]

    async def _fetch_all(self) -> bool:
        """Ask some contacts for their lists; whether any answered."""
        sources = self._contacts()
        answered = 0
        while sources and answered < SOURCES and not self._stopped:
            source = sources.pop(self._rng.randrange(0, len(sources)))
            try:
                await self._fetch_from(await self._channels.link(source))
                answered += 1
            except BackroomsError as error:
                if self._seldom.is_due(str(error), self._timers.now()):
                    log.info("a contact gave no list of relays: {error}", error=str(error))
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

    async def _take(self, documents: Sequence[Documents]) -> None:
        """Verify in a thread, so that no reactor turn gets long, and keep what is good."""
        wall = self._timers.wall()

        def verify(chunk: Sequence[Documents]) -> list[Descriptor | RemoteProtocolError]:
            results: list[Descriptor | RemoteProtocolError] = []
            for one in chunk:
                try:
                    results.append(self.directory.verify(one.certificate or None, one.record, wall))
                except RemoteProtocolError as error:
                    results.append(error)
            return results

        held = [one for one in documents if one.record]
        for start in range(0, len(held), VERIFY_CHUNK):
            chunk = held[start : start + VERIFY_CHUNK]
            for result in await threads.deferToThreadPool(self._reactor, self._reactor.getThreadPool(), verify, chunk):
                if isinstance(result, Descriptor):
                    self.directory.insert(result, wall)
                    continue
                self.refused[without_numbers(result.reason)] += 1
                if self._seldom.is_due(without_numbers(result.reason), self._timers.now()):
                    log.warn("a descriptor was refused: {reason}", reason=result.reason)

    # publishing

    def _renew(self) -> None:
        assert self._describe is not None
        wall = self._timers.wall()
        last = self._own or self.directory.get(self._channels.my_id or b"")
        if last is not None and last.record.revision > wall + CLOCK_TOLERANCE:
            last = None  # made while our clock was ahead: nobody has taken it
            self.directory.expire(wall)
        self._own = self._describe(last)
        self.directory.insert(self._own, wall)
        self._published_at = self._timers.now()
        self._unpublished = {c.id for c in self._network.contacts if c.id != self._channels.my_id}

    async def _publish(self) -> None:
        if not self.may_publish():
            return
        if self._timers.now() - self._published_at >= PUBLISH_INTERVAL:
            self._renew()
        assert self._own is not None
        await DeferredList([self._channels.link(contact) for contact in self._unpublished], consumeErrors=True)
        if not self.may_publish() or self._stopped:
            return  # their links told what time it is, and ours is wrong
        message = DirPublish(self._own.certificate.raw, self._own.record_raw)
        for contact in list(self._unpublished):
            try:
                answer = await self._questions.ask(await self._channels.link(contact), message, DirPublished)
            except BackroomsError as error:
                if self._seldom.is_due(f"publish {error}", self._timers.now()):
                    log.info("a contact did not take our descriptor: {error}", error=str(error))
                continue
            if answer.status in (PublishStatus.ACCEPTED, PublishStatus.UNCHANGED):
                self._unpublished.discard(contact)
            else:
                log.warn("a contact refused our descriptor: {text}", text=answer.text)
        pause = PUBLISH_INTERVAL
        if self._unpublished:
            pause = self._publish_pause
            self._publish_pause = min(self._publish_pause * 1.5, PUBLISH_RETRY_MAX)
        self._later("publish", pause, self._publish)

    def republish(self) -> None:
        """Something we publish has changed."""
        if self._describe is not None and not self._stopped and self.may_publish():
            self._renew()
            self._publish_pause = PUBLISH_RETRY
            self._later("publish", 0.0, self._publish)

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
            if self._describe is None:
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

    def _published(self, link: Link, message: DirPublish) -> DirPublished:
        if link.peer_id is None:
            return DirPublished(PublishStatus.REFUSED, "only relays publish")
        before = self.directory.revision
        try:
            relay = self.directory.verify(message.certificate or None, message.record, self._timers.wall())
            if relay.id != link.peer_id:
                raise WireError("a relay publishes itself only")
            self.directory.insert(relay, self._timers.wall())
        except RemoteProtocolError as error:
            return DirPublished(PublishStatus.REFUSED, error.reason)
        if self.directory.revision == before:
            return DirPublished(PublishStatus.UNCHANGED)
        self._fetch_pause = FETCH_FIRST
        self.on_change()
        return DirPublished(PublishStatus.ACCEPTED)
