"""What a channel tells its owner."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SignRequest:
    """Sign `message` with our identity's `algorithms` and give the result to `Channel.signed`."""

    message: bytes = field(repr=False)
    algorithms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LinkOpen:
    """The link handshake is done."""

    peer_id: bytes | None
    """None: a client."""
    version: int
    skew_seconds: int | None
    """How far the peer's clock is ahead of ours, in whole minutes; None when it does not tell."""


@dataclass(frozen=True, slots=True)
class LinkMessage:
    """A message for the owner of the link (`wire.link.is_handed_on`): its type and its unread payload."""

    type: int
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Create:
    """The peer wants a circuit. Answer with `created` or `destroy`."""

    circuit_id: int
    handshake: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Created:
    """The peer accepted a circuit of ours."""

    circuit_id: int
    handshake: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Destroyed:
    """The circuit is gone: the peer's DESTROY, or its breach of the protocol. Handler and queue are dropped already."""

    circuit_id: int
    reason: int


@dataclass(frozen=True, slots=True)
class LinkClosed:
    """The link and all circuits in it are gone; nothing comes after this."""

    reason: str
