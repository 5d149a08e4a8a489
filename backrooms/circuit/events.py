"""What circuits and streams tell their managers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HopAdded:
    """A circuit reached one hop further; `count` hops now."""

    count: int


@dataclass(frozen=True, slots=True)
class CircuitBuilt:
    """All hops of a circuit are there."""


@dataclass(frozen=True, slots=True)
class CircuitClosed:
    """A circuit is gone: `reason` is a `DestroyReason`, `text` says more, `remote` who did it."""

    reason: int
    text: str = ""
    remote: bool = True


@dataclass(frozen=True, slots=True)
class StreamConnected:
    """The far end of a stream is connected to `address`, when the exit said it."""

    address: str | None = None


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """A stream ended with an `EndReason`. DONE: the network has sent all; any other: nothing goes either way."""

    reason: int


@dataclass(frozen=True, slots=True)
class ExtendRequested:
    """A client asks a relay to extend its circuit."""

    relay_id: bytes
    handshake: bytes


@dataclass(frozen=True, slots=True)
class BeginRequested:
    """A client asks an exit for a connection. `stream_id` names the stream, which is already in the edge's table."""

    stream_id: int
    host: str
    port: int
    flags: int


@dataclass(frozen=True, slots=True)
class DirectoryRequested:
    """A client asks a relay for a stream to its directory; the stream is already in the edge's table."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class ResolveRequested:
    """A client asks an exit for a look-up."""

    stream_id: int
    host: str
    reverse: bool
