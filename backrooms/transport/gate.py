"""What a transport asks before it works for a stranger. The answers are given elsewhere: see `node.admission`."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol


class Visitor(Protocol):
    """An accepted connection, as a gate sees it."""

    def turn_away(self, reason: str) -> None:
        """End the connection at once, without a word to the peer."""


class Ticket(Protocol):
    """Stands for one accepted connection until its peer has proven what it has to, or is gone.

    `with ticket:` around work for this peer measures what it costs.
    """

    visitor: Visitor | None

    def wait(self, work: Callable[[], None]) -> None:
        """Call `work()` when it is this connection's turn, never from within; not at all after `done`."""

    def done(self) -> None:
        """Nothing more is to be decided about this connection."""

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Gate(Protocol):
    """Decides who may come in, and who comes first."""

    def arrive(self, address: Any) -> Ticket | None:
        """A connection from a Twisted address was accepted; None: close it."""
