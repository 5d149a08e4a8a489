"""Look-ups of names by the system's resolver, a bounded number at a time.

The resolver blocks a thread for as long as it likes, and the threads of the reactor's pool also sign link proofs and
verify descriptors. So look-ups may hold only some of them, and a place is free again when its thread is, not when we
lost patience.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Any

from twisted.internet import threads
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHostResolution, IResolutionReceiver
from zope.interface import implementer

from backrooms.errors import StreamError, WireError
from backrooms.wire.names import check_host
from backrooms.wire.relay import EndReason

RESOLVE_TIMEOUT = 10.0
PLACES = 6
"""Threads that look-ups may hold; Twisted's pool has ten."""
WAITING = 256
"""Look-ups that may wait for one; more are refused."""


@implementer(IResolutionReceiver)
class _Addresses:
    """Collects what Twisted's name resolver finds, and gives the place back at its end."""

    def __init__(self, look_ups: LookUps) -> None:
        self.found: Deferred[list[str]] = Deferred()
        self._look_ups = look_ups
        self._addresses: list[str] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Twisted starts."""

    def addressResolved(self, address: Any) -> None:
        if address.host not in self._addresses:
            self._addresses.append(address.host)

    def resolutionComplete(self) -> None:
        self._look_ups.leave()
        if not self.found.called:
            self.found.callback(self._addresses)


class LookUps:
    """Look-ups for one exit. Each fails with a `StreamError`."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._free = PLACES
        self._waiting: deque[Deferred[None]] = deque()

    async def addresses(self, name: str) -> list[str]:
        """The addresses of a name."""
        try:
            name = check_host(name.encode())  # a client that is not ours may send anything
        except WireError:
            raise StreamError(EndReason.RESOLVEFAILED) from None
        await self._enter()
        receiver = _Addresses(self)
        receiver.found.addTimeout(RESOLVE_TIMEOUT, self._reactor)
        self._reactor.nameResolver.resolveHostName(receiver, name)
        try:
            found = await receiver.found
        except Exception:
            raise StreamError(EndReason.RESOLVEFAILED) from None
        if not found:
            raise StreamError(EndReason.RESOLVEFAILED)
        return found

    async def name_of(self, address: str) -> str:
        """The name of an address literal."""
        await self._enter()

        def look_up() -> str:
            try:
                return socket.gethostbyaddr(address)[0]
            finally:
                self._reactor.callFromThread(self.leave)

        looking: Deferred[str] = threads.deferToThreadPool(self._reactor, self._reactor.getThreadPool(), look_up)
        looking.addTimeout(RESOLVE_TIMEOUT, self._reactor)
        try:
            return await looking
        except Exception:
            raise StreamError(EndReason.RESOLVEFAILED) from None

    async def _enter(self) -> None:
        if self._free:
            self._free -= 1
            return
        if len(self._waiting) >= WAITING:
            raise StreamError(EndReason.RESOURCELIMIT)
        place: Deferred[None] = Deferred()
        self._waiting.append(place)
        place.addTimeout(RESOLVE_TIMEOUT, self._reactor)
        try:
            await place
        except Exception:
            raise StreamError(EndReason.RESOLVEFAILED) from None

    def leave(self) -> None:
        """A thread is free again: give its place to who waits longest."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.called:
                place.callback(None)
                return
        self._free += 1
