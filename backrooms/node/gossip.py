"""Gossips for a relay: carries the messages of `gossip.exchange` over links, fetches and verifies what it asks for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from backrooms.errors import BackroomsError, RemoteProtocolError, WireError
from backrooms.gossip.exchange import Ask, Check, Drop, Gossip, Result, Send, Silent
from backrooms.interfaces import Rng
from backrooms.netdir.directory import Directory
from backrooms.node.channels import Channels
from backrooms.node.link import Link
from backrooms.node.questions import Questions
from backrooms.node.timers import Timers
from backrooms.wire.documents import DirDocs, Documents
from backrooms.wire.gossip import GOSSIP_MESSAGES, AnyGossipMessage

log = Logger()

IN_TOUCH = 120.0
"""Seconds without an answer from a partner after which this relay counts as cut off."""
MESSAGES_WAITING = 64
"""Control cells that wait on a link, at most, when a further message is sent."""


class Gossiping:
    """The gossip of this relay. `take` verifies documents and takes them in; `may_dial` says whom we can reach."""

    def __init__(
        self,
        timers: Timers,
        channels: Channels,
        directory: Directory,
        questions: Questions,
        rng: Rng,
        take: Callable[[Sequence[Documents]], Awaitable[list[Result]]],
        may_dial: Callable[[bytes], bool],
    ) -> None:
        assert channels.my_id is not None  # clients do not gossip
        self.machine = Gossip(directory, channels.my_id, rng, timers.now(), may_dial)
        self.on_news: Callable[[], None] = lambda: None
        """Called when gossip has changed the list."""
        self._timers = timers
        self._channels = channels
        self._directory = directory
        self._questions = questions
        self._take = take
        self._running = False
        self._read: dict[bytes, int] = {}
        """Bytes read on the link to each partner when a summary was sent on it."""
        for kind, message in GOSSIP_MESSAGES.items():
            channels.handlers[kind] = partial(self._message, message)

    def start(self) -> None:
        """Gossip from now on, at once with those who are in the list."""
        self._running = True
        self.hurry()

    def stop(self) -> None:
        """Say nothing more, until `start`."""
        self._running = False
        self._timers.set(self, None)

    @property
    def in_touch(self) -> bool:
        """Whether some partner has answered lately: then all news comes by itself."""
        return self._timers.now() - self.machine.heard_at < IN_TOUCH

    def news(self, relay_id: bytes) -> None:
        """There is a new document of a relay, from itself: tell others."""
        self.machine.news(relay_id, self._timers.now())
        self._flush()

    def hurry(self) -> None:
        """Talk to partners soon."""
        self.machine.hurry(self._timers.now())
        self._flush()

    def may_change(self, relay_id: bytes) -> bool:
        """Whether this relay may publish once more now."""
        return self.machine.may_change(relay_id, self._timers.now())

    def may_verify(self, peer: bytes) -> bool:
        """Whether one more document that this peer sends may be verified now."""
        return self.machine.may_verify(peer, self._timers.now())

    def tick(self, now: float) -> None:
        """It is time."""
        self.machine.tick(now)
        self._flush()

    def _message(self, kind: type[AnyGossipMessage], link: Link, payload: bytes) -> None:
        if link.peer_id is None:
            link.driver.fail(WireError("a client that gossips"))
            return
        try:
            message = kind.decode(payload)
        except RemoteProtocolError as error:
            link.driver.fail(error)
            return
        if self._running:
            self.machine.receive(link.peer_id, message, self._timers.now())
            self._flush(link)

    def _flush(self, link: Link | None = None) -> None:
        """Do what the machine says; replies go over `link`."""
        out, self.machine.out = self.machine.out, []
        for one in out if self._running else ():
            if isinstance(one, Send):
                if link is not None and one.reply:
                    self._transmit(link, one.message)
                else:
                    self._begin(self._send(one))
            elif isinstance(one, Ask):
                self._begin(self._ask(one))
            elif isinstance(one, Check):
                self._begin(self._check(one))
            elif isinstance(one, Drop):
                for bad in [bad for bad in self._channels.links if bad.peer_id == one.peer]:
                    bad.driver.fail(RemoteProtocolError(one.reason))
            elif isinstance(one, Silent):
                self._set_aside(one.peer)
        if self._running:
            self._timers.set(self, self.machine.deadline())

    @staticmethod
    def _begin(work: Coroutine[Any, Any, None]) -> None:
        Deferred.fromCoroutine(work).addErrback(lambda failure: log.failure("bug in gossip", failure))

    @staticmethod
    def _transmit(link: Link, message: AnyGossipMessage) -> None:
        # Who does not read, or has a busy link, is told later.
        if link.open and link.channel.mux.control_waiting <= MESSAGES_WAITING:
            link.channel.send_message(message.TYPE, message.encode())

    async def _send(self, one: Send) -> None:
        try:
            link = await self._channels.link(one.peer)
        except BackroomsError:
            self.machine.unreachable(one.peer, self._timers.now())
        else:
            self._read[one.peer] = link.driver.bytes_in
            self._transmit(link, one.message)
        self._flush()

    def _set_aside(self, peer: bytes) -> None:
        """If nothing at all has come over its link since we spoke, try a new one the next time."""
        read = self._read.pop(peer, None)
        for link in self._channels.links:
            if link.peer_id == peer and link.driver.bytes_in == read:
                self._channels.set_aside(link)

    async def _ask(self, one: Ask) -> None:
        docs: DirDocs | None = None
        try:
            docs = await self._questions.ask(await self._channels.link(one.peer), one.request, DirDocs)
        except BackroomsError:
            pass  # the link is lost, or busy: others have it, too
        self.machine.fetched(one.peer, docs, self._timers.now())
        self._flush()

    async def _check(self, one: Check) -> None:
        before = self._directory.revision
        results = await self._take(one.documents)
        self.machine.took(one.peer, one.documents, results, self._timers.now())
        self._flush()
        if self._directory.revision != before and self._running:
            self.on_news()
