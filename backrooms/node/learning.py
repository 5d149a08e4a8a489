"""Asks others for a relay that somebody wants a circuit extended to and that is not in the list yet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from backrooms.errors import BackroomsError
from backrooms.gossip.exchange import Result
from backrooms.netdir.directory import Directory
from backrooms.node.channels import Channels
from backrooms.node.questions import Questions
from backrooms.node.timers import Timers
from backrooms.wire.documents import DirDocs, DirFetch, Documents, Parts

log = Logger()

LEARN_TIME = 3.0
"""Seconds that whoever asks for an unknown relay waits for."""
LEARN_PAUSE = 10.0
"""Seconds between questions for relays that we do not know: clients can name as many as they like."""
LEARN_SOURCES = 3
"""Relays that are asked for one."""


class Learning:
    """Looks for single relays. `sources` are whom to ask, best first; `on_news` is called when one was found."""

    def __init__(
        self,
        timers: Timers,
        channels: Channels,
        directory: Directory,
        questions: Questions,
        sources: Callable[[], list[bytes]],
        take: Callable[[Sequence[Documents]], Awaitable[list[Result]]],
        on_news: Callable[[], None],
    ) -> None:
        self._timers = timers
        self._channels = channels
        self._directory = directory
        self._questions = questions
        self._sources = sources
        self._take = take
        self._on_news = on_news
        self._looking = False
        self._waiting: list[Deferred[None]] = []
        self._looked_at = -LEARN_PAUSE
        self._stopped = False

    def stop(self) -> None:
        """Whoever waits does so no longer."""
        self._stopped = True
        self._wake_all()

    async def learn(self, relay_id: bytes) -> bool:
        """Whether a relay is in the list, after a look around if it is not and there was none a moment ago."""
        now = self._timers.now()
        end = now + LEARN_TIME
        if relay_id not in self._directory and now - self._looked_at >= LEARN_PAUSE and not self._stopped:
            self._looked_at, self._looking = now, True
            looking = Deferred.fromCoroutine(self._look_for(relay_id))
            looking.addErrback(lambda failure: log.failure("bug while looking for a relay", failure))
        while relay_id not in self._directory and self._looking and not self._stopped and self._timers.now() < end:
            waiter: Deferred[None] = Deferred()
            self._waiting.append(waiter)
            timeout = self._timers.at(end, partial(self._wake, waiter))
            await waiter
            timeout.cancel()
        return relay_id in self._directory

    async def _look_for(self, relay_id: bytes) -> None:
        asked = [Deferred.fromCoroutine(self._ask(relay_id, one)) for one in self._sources()[:LEARN_SOURCES]]
        for one in asked:
            await one
        self._looking = False
        self._wake_all()

    async def _ask(self, relay_id: bytes, source: bytes) -> None:
        request = DirFetch((relay_id,), Parts.BOTH)
        try:
            docs = await self._questions.ask(await self._channels.link(source), request, DirDocs)
        except BackroomsError:
            return
        before = self._directory.revision
        await self._take([one for one in docs.documents if one.id == relay_id])
        if relay_id in self._directory and not self._stopped:
            self._wake_all()
            if self._directory.revision != before:
                self._on_news()

    def _wake(self, waiter: Deferred[None]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
            waiter.callback(None)

    def _wake_all(self) -> None:
        for waiter in list(self._waiting):
            self._wake(waiter)
