"""What a local proxy asks of the node: streams and look-ups. Pure; the node implements it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from backrooms.node.requests import Answer, StreamRequest

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred


class Stream(Protocol):
    """The application's end of a stream: a Machine that takes application bytes and gives network bytes.

    Its events are `StreamConnected` and `StreamEnded` (circuit/events.py). END(DONE) closes the network's
    side only.
    """

    on_dirty: Callable[[], None] | None
    """Called when there is output or an event, or when `paused` changed."""

    @property
    def paused(self) -> bool:
        """Stop reading from the application."""

    @property
    def finished(self) -> bool:
        """The network sent its last byte, and `output` has given it."""

    def receive(self, data: bytes, now: float) -> None: ...

    def receive_eof(self, now: float) -> None: ...

    def events(self) -> list[Any]: ...

    def output(self) -> bytes: ...

    def deadline(self) -> float | None: ...

    def tick(self, now: float) -> None: ...

    def abort(self, reason: int) -> None:
        """Drop both directions; the far end is told `reason`."""


class Opener(Protocol):
    """Opens streams. The failures of its Deferreds are `StreamError`s."""

    def open(self, request: StreamRequest) -> Stream:
        """A stream, at once; what it is given before `StreamConnected` goes out optimistically."""

    def resolve(self, request: StreamRequest) -> Deferred[list[Answer]]:
        """The addresses of `request.host`, asked at an exit."""

    def resolve_ptr(self, request: StreamRequest) -> Deferred[list[Answer]]:
        """The names of the address `request.host`, asked at an exit."""
