"""What an application asks of a local proxy, whichever dialect it speaks. Pure."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from backrooms.errors import WireError

Kind = Literal["connect", "resolve", "resolve_ptr"]

RESERVED_USER = b"<torS0X>"
"""User names that start so carry Tor's extended parameters. We have none: refused, never taken as text."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    `host` is an IP literal (canonical, no brackets) or a lower-case name; it is never resolved here. `port`
    is 1 to 65535 for "connect" and means nothing otherwise. `user` and `password` are whatever the client
    gave, `token` is HTTP's stream isolation header; all three only isolate, and `user` and `token` may name
    a level.
    """

    kind: Kind
    host: str = field(repr=False)
    port: int
    protocol: str
    user: bytes = field(default=b"", repr=False)
    password: bytes = field(default=b"", repr=False)
    token: bytes = field(default=b"", repr=False)
    literal: bool = False
    """Whether the client sent `host` as a number where it could have sent a name (SOCKS)."""


class RequestRefused(WireError):
    """A request that opens nothing: wrong, not served, or answered here (OPTIONS).

    `reply` is the answer in the client's dialect; empty where there is none.
    """

    def __init__(self, reason: str, reply: bytes) -> None:
        super().__init__(reason)
        self.reply = reply


class Dialect(Protocol):
    """A sans-IO parser of one request, and the answers to it."""

    early: bytes
    """What the client sent behind its request: data for the stream."""

    def receive(self, data: bytes) -> Request | None:
        """Take bytes; the request once it is complete, `RequestRefused` when it will not be.

        Not called after either.
        """

    def output(self) -> bytes:
        """Answers that belong before the request is complete (SOCKS 5 methods and authentication)."""

    def granted(self) -> bytes:
        """The stream is connected."""

    def resolved(self, addresses: Sequence[str]) -> bytes | None:
        """The answer to "resolve"; None when no address fits the dialect."""

    def resolved_ptr(self, names: Sequence[str]) -> bytes | None:
        """The answer to "resolve_ptr"; None when no name fits."""

    def failed(self, reason: int) -> bytes:
        """The stream or the look-up failed with this `EndReason`."""

    def refused(self, text: str) -> bytes:
        """The request is well formed, but we will not serve it; HTTP says why by `text`."""

    def timed_out(self) -> bytes:
        """The request did not come in time."""


def check_user(user: bytes) -> None:
    """`WireError` for a reserved user name."""
    if user.startswith(RESERVED_USER):
        raise WireError("user names that start with <torS0X> are reserved")


def password_fits(given: bytes, required: bytes) -> bool:
    """Whether a client may in; everybody may where no password is `required`. Takes the same time for any guess."""
    return not required or hmac.compare_digest(given, required)
