"""Verifying descriptors in threads, so that no turn of the reactor gets long.

A descriptor takes 0.5 ms, nearly all of it in three signatures, and checking a signature lets go of the interpreter:
two threads do twice the work of one, and the reactor waits for no more than the 0.1 ms of Python between two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet import threads
from twisted.internet.defer import DeferredList, DeferredSemaphore

from backrooms.errors import RemoteProtocolError, WireError
from backrooms.gossip.exchange import Result
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory, EquivocationError
from backrooms.wire.documents import Documents

CHUNK = 16
"""Descriptors verified in one go in a thread, 8 ms; the reactor takes them in within 1 ms."""
WORKERS = 2
"""Chunks that are verified at once, whoever asked for it."""


class Verifier:
    """Takes documents of foreign relays into a directory. `wall` gives unix seconds."""

    def __init__(self, reactor: Any, directory: Directory, wall: Callable[[], float]) -> None:
        self._reactor = reactor
        self._directory = directory
        self._wall = wall
        self._places = DeferredSemaphore(WORKERS)

    async def take(self, documents: Sequence[Documents]) -> list[Result]:
        """Verify, and keep what is good. For each document with a record, in order: what is in the list now, or
        why it was refused. `DocumentTimeError` and a full list are nobody's fault; all else is the sender's, who
        should have refused it, too.
        """
        held = [one for one in documents if one.record]
        size = max(1, min(CHUNK, -(-len(held) // WORKERS)))
        chunks = [held[start : start + size] for start in range(0, len(held), size)]
        done: list[Result] = []
        for success, result in await DeferredList(
            [self._places.run(self._take, chunk) for chunk in chunks], consumeErrors=True
        ):
            if not success:  # a bug of ours: `_verify` gives errors of senders back
                result.raiseException()
            done += result
        return done

    def _take(self, chunk: Sequence[Documents]) -> Any:
        pool = self._reactor.getThreadPool()
        return threads.deferToThreadPool(self._reactor, pool, self._verify, chunk, self._wall()).addCallback(self._keep)

    def _verify(self, chunk: Sequence[Documents], now: float) -> list[Result]:
        """In a thread."""
        results: list[Result] = []
        for one in chunk:
            try:
                relay = self._directory.verify(one.certificate or None, one.record, now)
                if relay.id != one.id:
                    raise WireError("documents of another relay than they were sent for")
                results.append(relay)
            except RemoteProtocolError as error:
                results.append(error)
        return results

    def _keep(self, results: Sequence[Result]) -> list[Result]:
        now = self._wall()
        kept: list[Result] = []
        for result in results:
            if isinstance(result, EquivocationError):
                for call in self._directory.on_equivocation:
                    call(result)
            try:
                kept.append(self._directory.insert(result, now) if isinstance(result, Descriptor) else result)
            except RemoteProtocolError as error:
                kept.append(error)
        return kept
