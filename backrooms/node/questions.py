"""Requests and answers on links: one request at a time on each."""

from __future__ import annotations

from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from backrooms.errors import BackroomsError
from backrooms.node.link import Link
from backrooms.node.timers import Timers
from backrooms.wire.documents import DirectoryMessage

ANSWER_TIMEOUT = 20.0
"""Seconds the other end has to answer."""

T = TypeVar("T")


class Questions:
    """The requests that wait for an answer."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._asked: dict[Link, tuple[type[Any], Deferred[Any]]] = {}
        self._queues: dict[Link, list[Deferred[None]]] = {}

    async def ask(self, link: Link, request: DirectoryMessage, kind: type[T]) -> T:
        """Send `request` when the ones before it are answered; its answer, of type `kind`.

        `BackroomsError` when none comes in time or the link is lost.
        """
        while link in self._asked:
            turn: Deferred[None] = Deferred()
            self._queues.setdefault(link, []).append(turn)
            await turn
        try:
            return await self._ask(link, request, kind)
        finally:
            self._asked.pop(link, None)
            queue = self._queues.get(link)
            if queue:
                queue.pop(0).callback(None)
            else:
                self._queues.pop(link, None)

    async def _ask(self, link: Link, request: DirectoryMessage, kind: type[T]) -> T:
        if not link.open:
            raise BackroomsError("the link is closed")
        answer: Deferred[T] = Deferred()
        self._asked[link] = (kind, answer)
        now = link.last_used = self._timers.now()
        link.channel.send_message(request.TYPE, request.encode())
        timeout = self._timers.at(now + ANSWER_TIMEOUT, lambda: self._fail(link, "no answer in time"))
        try:
            return await answer
        finally:
            timeout.cancel()

    def answered(self, link: Link, message: object) -> bool:
        """Take an answer. False when nobody asked for it."""
        kind, answer = self._asked.get(link, (type(None), None))
        if answer is None or answer.called or not isinstance(message, kind):
            return False
        answer.callback(message)
        return True

    def gone(self, link: Link) -> None:
        """The link is lost: there will be no answer."""
        self._fail(link, "the link was lost before the answer came")

    def _fail(self, link: Link, why: str) -> None:
        answer = self._asked[link][1] if link in self._asked else None
        if answer is not None and not answer.called:
            answer.errback(BackroomsError(why))
