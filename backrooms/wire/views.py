"""Directory messages over circuits: what has changed since, and views to compare (docs/protocol.md, "Views").

As with other directory messages, `TYPE` is the message's type and each takes at most `documents.MAX_MESSAGE` bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from backrooms.errors import LocalProtocolError, WireError
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.documents import check_rising, message_reader
from backrooms.wire.records import ID_SIZE

INSTANCE_SIZE = 16
"""Bytes of the random number that a relay draws at each start: its revisions count from there."""
SHORT_DIGEST = 16
"""Bytes that are left of digests where they only find differences."""
ROOT_SIZE = 32
MAX_CHANGES = 400
"""Relays in one page of changes, and as many that are gone."""
BUCKETS = 256
"""Parts of a view: ids by their first byte."""
MAX_IDS = 1800
"""Ids in one page of a view."""
MAX_VIEW = 1_000_000
"""Ids in a view that anybody could believe in."""


class ViewMessageType(IntEnum):
    """Types of directory messages, 32 to 39."""

    CHANGES_REQUEST = 32
    CHANGES = 33
    VIEW_REQUEST = 34
    VIEW = 35
    BUCKETS_REQUEST = 36
    BUCKETS = 37
    IDS_REQUEST = 38
    IDS = 39


def _flags(reader: Reader, known: int, what: str) -> int:
    flags = reader.u8()
    if flags & ~known:
        raise WireError(f"{what} with unknown flags {flags:#x}")
    return flags


def _ids(reader: Reader, limit: int, what: str) -> tuple[bytes, ...]:
    ids = tuple(reader.vector(lambda r: r.bytes(ID_SIZE), limit))
    check_rising(ids, what)
    return ids


def _write_ids(writer: Writer, ids: tuple[bytes, ...]) -> Writer:
    return writer.vector(list(ids), lambda w, node_id: w.bytes(node_id))


@dataclass(frozen=True, slots=True)
class ChangesRequest:
    """Asks what has changed since a revision of an instance: instance 16 | revision u64."""

    TYPE: ClassVar[int] = ViewMessageType.CHANGES_REQUEST
    instance: bytes = bytes(INSTANCE_SIZE)
    since: int = 0

    def encode(self) -> bytes:
        return Writer().bytes(self.instance).u64(self.since).done()

    @classmethod
    def decode(cls, payload: bytes) -> ChangesRequest:
        reader = message_reader(payload, "CHANGES_REQUEST")
        message = cls(reader.bytes(INSTANCE_SIZE), reader.u64())
        reader.end()
        return message


@dataclass(frozen=True, slots=True)
class Change:
    """One relay as it is now: id 32 | revision of its record u64 | certificate's and record's short digests."""

    id: bytes
    revision: int
    certificate: bytes
    """The first bytes of the certificate's digest."""
    record: bytes
    """The first bytes of SHA3-256 of the signed record. Two of one revision prove that the relay signed both."""

    def encode(self, writer: Writer) -> None:
        writer.bytes(self.id).u64(self.revision).bytes(self.certificate).bytes(self.record)

    @classmethod
    def decode(cls, reader: Reader) -> Change:
        return cls(reader.bytes(ID_SIZE), reader.u64(), reader.bytes(SHORT_DIGEST), reader.bytes(SHORT_DIGEST))


@dataclass(frozen=True, slots=True)
class Changes:
    """What has changed: instance 16 | revision u64 | flags u8 (1 more, 2 anew) | entries | ids that are gone.

    `revision` is where the next question goes on. With `anew` nothing is told, since the relay does not remember so
    far back: whoever asked fetches the whole list, and goes on from `revision`.
    """

    TYPE: ClassVar[int] = ViewMessageType.CHANGES
    MORE: ClassVar[int] = 1
    ANEW: ClassVar[int] = 2

    instance: bytes
    revision: int
    changed: tuple[Change, ...] = ()
    gone: tuple[bytes, ...] = ()
    more: bool = False
    anew: bool = False

    def encode(self) -> bytes:
        flags = self.MORE * self.more | self.ANEW * self.anew
        writer = Writer().bytes(self.instance).u64(self.revision).u8(flags)
        writer.vector(list(self.changed), lambda w, change: change.encode(w))
        return _write_ids(writer, self.gone).done()

    @classmethod
    def decode(cls, payload: bytes) -> Changes:
        reader = message_reader(payload, "CHANGES")
        instance, revision = reader.bytes(INSTANCE_SIZE), reader.u64()
        flags = _flags(reader, cls.MORE | cls.ANEW, "CHANGES")
        changed = tuple(reader.vector(Change.decode, MAX_CHANGES))
        check_rising(tuple(change.id for change in changed), "CHANGES")
        gone = _ids(reader, MAX_CHANGES, "CHANGES")
        reader.end()
        more, anew = bool(flags & cls.MORE), bool(flags & cls.ANEW)
        if anew and (more or changed or gone):
            raise WireError("CHANGES that are to be fetched anew and are told")
        if more and not changed and not gone:
            raise WireError("CHANGES: an empty page that promises more")
        return cls(instance, revision, changed, gone, more, anew)


@dataclass(frozen=True, slots=True)
class ViewRequest:
    """Asks for the root of a view: epoch u32."""

    TYPE: ClassVar[int] = ViewMessageType.VIEW_REQUEST
    epoch: int

    def encode(self) -> bytes:
        return Writer().u32(self.epoch).done()

    @classmethod
    def decode(cls, payload: bytes) -> ViewRequest:
        reader = message_reader(payload, "VIEW_REQUEST")
        message = cls(reader.u32())
        reader.end()
        return message


@dataclass(frozen=True, slots=True)
class ViewRoot:
    """The root of a view: epoch u32 | known u8 | count u32 | root 32.

    A relay that has not been up for long enough, or counts other epochs, says that it is not known (0).
    """

    TYPE: ClassVar[int] = ViewMessageType.VIEW
    epoch: int
    known: bool = False
    count: int = 0
    root: bytes = bytes(ROOT_SIZE)

    def encode(self) -> bytes:
        return Writer().u32(self.epoch).u8(int(self.known)).u32(self.count).bytes(self.root).done()

    @classmethod
    def decode(cls, payload: bytes) -> ViewRoot:
        reader = message_reader(payload, "VIEW")
        epoch, known, count = reader.u32(), _flags(reader, 1, "VIEW"), reader.u32()
        message = cls(epoch, bool(known), count, reader.bytes(ROOT_SIZE))
        reader.end()
        if count > MAX_VIEW:
            raise WireError(f"VIEW of {count} relays")
        return message


@dataclass(frozen=True, slots=True)
class BucketsRequest:
    """Asks for the digests of the parts of a view: epoch u32."""

    TYPE: ClassVar[int] = ViewMessageType.BUCKETS_REQUEST
    epoch: int

    def encode(self) -> bytes:
        return Writer().u32(self.epoch).done()

    @classmethod
    def decode(cls, payload: bytes) -> BucketsRequest:
        reader = message_reader(payload, "BUCKETS_REQUEST")
        message = cls(reader.u32())
        reader.end()
        return message


@dataclass(frozen=True, slots=True)
class ViewBuckets:
    """Short digests of the parts of a view, by the first byte of the ids: epoch u32 | 256 of 16 bytes, or none."""

    TYPE: ClassVar[int] = ViewMessageType.BUCKETS
    epoch: int
    digests: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        if len(self.digests) not in (0, BUCKETS):
            raise LocalProtocolError(f"BUCKETS with {len(self.digests)} digests")
        return Writer().u32(self.epoch).vector(list(self.digests), lambda w, one: w.bytes(one)).done()

    @classmethod
    def decode(cls, payload: bytes) -> ViewBuckets:
        reader = message_reader(payload, "BUCKETS")
        message = cls(reader.u32(), tuple(reader.vector(lambda r: r.bytes(SHORT_DIGEST), BUCKETS)))
        reader.end()
        if len(message.digests) not in (0, BUCKETS):
            raise WireError(f"BUCKETS with {len(message.digests)} digests")
        return message


@dataclass(frozen=True, slots=True)
class IdsRequest:
    """Asks for the ids of some parts of a view: epoch u32 | a bit for each part 32, part 0 the highest | after 32."""

    TYPE: ClassVar[int] = ViewMessageType.IDS_REQUEST
    epoch: int
    parts: frozenset[int]
    after: bytes = bytes(ID_SIZE)
    """The page that starts behind this id; zeros for the first."""

    def encode(self) -> bytes:
        bits = sum(1 << (BUCKETS - 1 - part) for part in self.parts)
        return Writer().u32(self.epoch).bytes(bits.to_bytes(BUCKETS // 8, "big")).bytes(self.after).done()

    @classmethod
    def decode(cls, payload: bytes) -> IdsRequest:
        reader = message_reader(payload, "IDS_REQUEST")
        epoch, bits = reader.u32(), int.from_bytes(reader.bytes(BUCKETS // 8), "big")
        parts = frozenset(part for part in range(BUCKETS) if bits >> (BUCKETS - 1 - part) & 1)
        message = cls(epoch, parts, reader.bytes(ID_SIZE))
        reader.end()
        return message


@dataclass(frozen=True, slots=True)
class ViewIds:
    """Ids of a view: epoch u32 | more u8 | ids, rising. With `more` the next page starts behind the last of them."""

    TYPE: ClassVar[int] = ViewMessageType.IDS
    epoch: int
    ids: tuple[bytes, ...] = ()
    more: bool = False

    def encode(self) -> bytes:
        return _write_ids(Writer().u32(self.epoch).u8(int(self.more)), self.ids).done()

    @classmethod
    def decode(cls, payload: bytes) -> ViewIds:
        reader = message_reader(payload, "IDS")
        epoch, more = reader.u32(), _flags(reader, 1, "IDS")
        message = cls(epoch, _ids(reader, MAX_IDS, "IDS"), bool(more))
        reader.end()
        if message.more and not message.ids:
            raise WireError("IDS: an empty page that promises more")
        return message
