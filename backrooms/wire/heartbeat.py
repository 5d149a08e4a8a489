"""The messages by which relays find out who is dead, and clients hear of it (docs/protocol.md, "Failure detection").

All of them travel as link messages between relays; RUMOURS, LIVENESS_REQUEST and LIVENESS also on directory streams of
clients. `TYPE` is the type of the message whose payload they are. A suspicion and a refutation carry a signature, since
they are handed on: whoever takes them in verifies them (`gossip.suspicions`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar, TypeAlias

from backrooms.errors import WireError
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.records import ID_SIZE

SIGNATURE_SIZE = 64
MAX_RUMOURS = 28
"""Suspicions in one message, and refutations: so many suspicions fit into one cell."""
MAX_FOLLOWING = 60_000
"""Milliseconds between two heartbeats."""
MAX_DEAD = 1_800
"""Ids in LIVENESS."""
MAX_BITS = 2_500
"""Bytes of its bitmap: one bit for each of 20,000 relays."""
ROOT_SIZE = 32
_ROOT_LABEL = b"backrooms-liveness-1"


class HeartbeatType(IntEnum):
    """Types of messages, 40 to 45."""

    HEARTBEAT = 40
    PROBE = 41
    PROBE_ANSWER = 42
    RUMOURS = 43
    LIVENESS_REQUEST = 44
    LIVENESS = 45


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A relay to one that watches it: incarnation u64 | following u32."""

    TYPE: ClassVar[int] = HeartbeatType.HEARTBEAT

    incarnation: int
    """Grows with every start and every refutation of the sender."""
    following: int
    """Milliseconds until the next one to the same watcher, 1 to `MAX_FOLLOWING`."""

    def encode(self) -> bytes:
        return Writer().u64(self.incarnation).u32(self.following).done()

    @classmethod
    def decode(cls, payload: bytes) -> Heartbeat:
        reader = Reader(payload)
        message = cls(reader.u64(), reader.u32())
        reader.end()
        if not 0 < message.following <= MAX_FOLLOWING:
            raise WireError(f"HEARTBEAT that announces the next one in {message.following} ms")
        return message


@dataclass(frozen=True, slots=True)
class Probe:
    """Asks whether a relay lives: nonce u64 | subject 32. The subject may be the receiver itself."""

    TYPE: ClassVar[int] = HeartbeatType.PROBE

    nonce: int
    subject: bytes

    def encode(self) -> bytes:
        return Writer().u64(self.nonce).bytes(self.subject).done()

    @classmethod
    def decode(cls, payload: bytes) -> Probe:
        reader = Reader(payload)
        message = cls(reader.u64(), reader.bytes(ID_SIZE))
        reader.end()
        return message


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """Answers PROBE: nonce u64 | subject 32 | alive u8 (0 or 1) | incarnation u64, 0 if unknown.

    0 says only that the question came: whoever asks learns that it is not cut off itself.
    """

    TYPE: ClassVar[int] = HeartbeatType.PROBE_ANSWER

    nonce: int
    subject: bytes
    alive: bool
    incarnation: int

    def encode(self) -> bytes:
        return Writer().u64(self.nonce).bytes(self.subject).u8(self.alive).u64(self.incarnation).done()

    @classmethod
    def decode(cls, payload: bytes) -> ProbeAnswer:
        reader = Reader(payload)
        nonce, subject, alive, incarnation = reader.u64(), reader.bytes(ID_SIZE), reader.u8(), reader.u64()
        reader.end()
        if alive > 1:
            raise WireError(f"PROBE_ANSWER that is neither yes nor no: {alive}")
        return cls(nonce, subject, alive == 1, incarnation)


@dataclass(frozen=True, slots=True)
class Suspicion:
    """One relay says that another is dead: accuser 32 | accused 32 | incarnation u64 | made u64 | Ed25519 64."""

    accuser: bytes
    accused: bytes
    incarnation: int
    """Of the accused, as far as the accuser knows; 0 if it never heard of it."""
    made: int
    """Unix seconds."""
    signature: bytes = field(repr=False)

    @property
    def body(self) -> bytes:
        """What is signed, behind label and network id."""
        return Writer().bytes(self.accuser).bytes(self.accused).u64(self.incarnation).u64(self.made).done()

    def encode(self, writer: Writer) -> None:
        writer.bytes(self.body).bytes(self.signature)

    @classmethod
    def decode(cls, reader: Reader) -> Suspicion:
        one = cls(
            reader.bytes(ID_SIZE), reader.bytes(ID_SIZE), reader.u64(), reader.u64(), reader.bytes(SIGNATURE_SIZE)
        )
        if one.accuser == one.accused:
            raise WireError("a relay that suspects itself")
        return one


@dataclass(frozen=True, slots=True)
class Refutation:
    """A relay lives: id 32 | incarnation u64 | Ed25519 64. It voids every suspicion of a lower incarnation."""

    relay: bytes
    incarnation: int
    signature: bytes = field(repr=False)

    @property
    def body(self) -> bytes:
        """What is signed, behind label and network id."""
        return Writer().bytes(self.relay).u64(self.incarnation).done()

    def encode(self, writer: Writer) -> None:
        writer.bytes(self.body).bytes(self.signature)

    @classmethod
    def decode(cls, reader: Reader) -> Refutation:
        return cls(reader.bytes(ID_SIZE), reader.u64(), reader.bytes(SIGNATURE_SIZE))


@dataclass(frozen=True, slots=True)
class Rumours:
    """list16 of suspicions | list16 of refutations, each at most `MAX_RUMOURS`, not both empty."""

    TYPE: ClassVar[int] = HeartbeatType.RUMOURS

    suspicions: tuple[Suspicion, ...] = ()
    refutations: tuple[Refutation, ...] = ()

    def encode(self) -> bytes:
        writer = Writer().vector(list(self.suspicions), lambda to, one: one.encode(to))
        return writer.vector(list(self.refutations), lambda to, one: one.encode(to)).done()

    @classmethod
    def decode(cls, payload: bytes) -> Rumours:
        reader = Reader(payload)
        message = cls(
            tuple(reader.vector(Suspicion.decode, MAX_RUMOURS)), tuple(reader.vector(Refutation.decode, MAX_RUMOURS))
        )
        reader.end()
        if not message.suspicions and not message.refutations:
            raise WireError("RUMOURS without any")
        return message


@dataclass(frozen=True, slots=True)
class LivenessRequest:
    """A client wants to know who is dead, now and from now on: root 32 of its list of relays."""

    TYPE: ClassVar[int] = HeartbeatType.LIVENESS_REQUEST

    root: bytes

    def encode(self) -> bytes:
        return Writer().bytes(self.root).done()

    @classmethod
    def decode(cls, payload: bytes) -> LivenessRequest:
        reader = Reader(payload)
        message = cls(reader.bytes(ROOT_SIZE))
        reader.end()
        return message


@dataclass(frozen=True, slots=True)
class Liveness:
    """Who is dead: root 32 | bytes16(bitmap) | list16 of ids 32, at most `MAX_DEAD`; one of the two is empty.

    To a client of the same root the bitmap, one bit for each relay of the list, ids rising, the highest bit first, set
    for the dead; zeros at its end may be left out. To others the ids.
    """

    TYPE: ClassVar[int] = HeartbeatType.LIVENESS

    root: bytes
    bits: bytes = b""
    dead: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        return Writer().bytes(self.root).bytes16(self.bits).vector(list(self.dead), Writer.bytes).done()

    @classmethod
    def decode(cls, payload: bytes) -> Liveness:
        reader = Reader(payload)
        message = cls(
            reader.bytes(ROOT_SIZE),
            reader.bytes16(),
            tuple(reader.vector(lambda one: one.bytes(ID_SIZE), MAX_DEAD)),
        )
        reader.end()
        if len(message.bits) > MAX_BITS or (message.bits and message.dead):
            raise WireError("LIVENESS with too long a bitmap, or with both forms of it")
        return message


AnyHeartbeatMessage: TypeAlias = Heartbeat | Probe | ProbeAnswer | Rumours | LivenessRequest | Liveness
_CLASSES: dict[int, type[AnyHeartbeatMessage]] = {
    one.TYPE: one for one in (Heartbeat, Probe, ProbeAnswer, Rumours, LivenessRequest, Liveness)
}


def decode_message(kind: int, payload: bytes) -> AnyHeartbeatMessage:
    """The message of this type; `WireError` for an unknown type and for what is malformed."""
    found = _CLASSES.get(kind)
    if found is None:
        raise WireError(f"unknown type {kind} of a message about failures")
    return found.decode(payload)


def list_root(ids: Sequence[bytes]) -> bytes:
    """What two nodes compare to see that they have the same list: SHA3-256 over a label and the rising ids."""
    return hashlib.sha3_256(_ROOT_LABEL + b"".join(ids)).digest()


def pack_bits(ids: Sequence[bytes], chosen: Collection[bytes]) -> bytes:
    """The bitmap of those of `ids` that are `chosen`."""
    bits = bytearray((len(ids) + 7) // 8)
    for place, one in enumerate(ids):
        if one in chosen:
            bits[place // 8] |= 0x80 >> place % 8
    return bytes(bits).rstrip(b"\0")


def unpack_bits(ids: Sequence[bytes], bits: bytes) -> frozenset[bytes]:
    """The ids whose bit is set. Bits behind the last id mean nothing."""
    return frozenset(one for place, one in enumerate(ids[: len(bits) * 8]) if bits[place // 8] & 0x80 >> place % 8)
