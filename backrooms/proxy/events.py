"""What a proxy's session tells its driver, and its limits. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from backrooms.node.requests import StreamRequest
from backrooms.proxy.request import Kind


@dataclass(frozen=True, slots=True)
class PauseReading:
    """Read no more from the application."""


@dataclass(frozen=True, slots=True)
class ResumeReading:
    """Read from the application again."""


@dataclass(frozen=True, slots=True)
class CloseWrite:
    """The application has been given all it will get: send it EOF, go on reading."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection once all is written."""


@dataclass(frozen=True, slots=True)
class Abort:
    """The stream broke with this `EndReason`: reset the connection, lest this be taken for a proper end."""

    reason: int


@dataclass(frozen=True, slots=True)
class LookUp:
    """Resolve `request` and call `resolved`, `resolved_ptr` or `failed`."""

    kind: Kind
    request: StreamRequest


@dataclass(frozen=True, slots=True)
class Refused:
    """The request was refused; `reason` is fit for a log."""

    reason: str


@dataclass(frozen=True, slots=True)
class DeadlineChanged:
    """`deadline` changed outside `receive` and `tick`."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """This session is done, but not the connection: what the application sent last, `data`, is for another one."""

    data: bytes


Event = PauseReading | ResumeReading | CloseWrite | Close | Abort | LookUp | Refused | DeadlineChanged | HandOver


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds."""

    request: float = 30.0
    """Until the request is complete."""
    answer: float = 120.0
    """Until the stream is connected or the name looked up."""
    half_closed: float = 600.0
    """That the application may be silent after the network sent its last byte."""
    linger: float = 2.0
    """For the application to read what we last said, before the connection is closed."""
    idle: float = 120.0
    """Between two plain HTTP requests on one connection."""


class State(Enum):
    """Where a session is."""

    REQUEST = auto()
    ANSWER = auto()
    TUNNEL = auto()
    BROKEN = auto()
    """The stream ended with an error; what came before it is still handed over."""
    LINGER = auto()
    """The last word is said. Reading goes on, for closing with unread bytes would reset the connection."""
    CLOSED = auto()
