"""The link messages by which relays keep their lists equal (docs/protocol.md, "Gossip").

As with directory messages, `TYPE` is the type of the link message whose payload they are. What they lead to is
fetched by FETCH and DOCS (`wire.documents`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar, TypeAlias

from backrooms.errors import WireError
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.documents import (
    DIGEST_SIZE,
    MAX_LIST_ENTRIES,
    ListEntry,
    bounded,
    check_rising,
    message_reader,
)
from backrooms.wire.records import MAX_CERTIFICATE, MAX_RECORD

BUCKETS = 256
"""A list falls into buckets by the first byte of the ids."""
BUCKET_DIGEST = 12
"""Bytes of a bucket's digest in SUMMARY: all of them fit into one cell."""
ROOT_SIZE = 32
BITMAP_SIZE = BUCKETS // 8
MAX_NEWS = 64
"""Records in one SUMMARY."""
NEWS_OVERHEAD = DIGEST_SIZE + 4
"""Bytes that news takes in SUMMARY beside its documents."""
# body length u16 | schema u8 | relay id 32 | revision u64 | ...
_ID_AT, _REVISION_AT, _REVISION_END = 3, 35, 43


def revision_of(record: bytes) -> int:
    """The revision that the bytes of a contact record say it has."""
    return int.from_bytes(record[_REVISION_AT:_REVISION_END], "big")


class GossipMessageType(IntEnum):
    """Types of link messages, 22 to 24; 25 to 31 are kept for more."""

    SUMMARY = 22
    BUCKETS = 23
    OFFER = 24


@dataclass(frozen=True, slots=True)
class News:
    """A record that is passed on unasked: digest of its certificate 32 | bytes16(certificate) | bytes16(record).

    The certificate is empty unless it is as new as the record.
    """

    digest: bytes
    record: bytes = field(repr=False)
    certificate: bytes = field(default=b"", repr=False)

    @property
    def id(self) -> bytes:
        """The relay that the record says it is of. Nothing of it is verified."""
        return self.record[_ID_AT:_REVISION_AT]

    @property
    def revision(self) -> int:
        """The revision that the record says it has."""
        return revision_of(self.record)

    @property
    def size(self) -> int:
        """Bytes it takes in SUMMARY."""
        return NEWS_OVERHEAD + len(self.certificate) + len(self.record)

    def encode(self, writer: Writer) -> None:
        writer.bytes(self.digest).bytes16(self.certificate).bytes16(self.record)

    @classmethod
    def decode(cls, reader: Reader) -> News:
        digest, certificate, record = reader.bytes(DIGEST_SIZE), reader.bytes16(), reader.bytes16()
        if len(certificate) > MAX_CERTIFICATE:
            raise WireError(f"SUMMARY with an identity certificate of {len(certificate)} bytes")
        if not _REVISION_END <= len(record) <= MAX_RECORD:
            raise WireError(f"SUMMARY with a contact record of {len(record)} bytes")
        return cls(digest, record, certificate)


@dataclass(frozen=True, slots=True)
class Summary:
    """A list in short, and news: root 32 | bytes16(digests, 12 bytes for each bucket, or none) | news, u16 and each.

    With digests it asks to be answered, by `Buckets` where the roots differ or else by a `Summary` without digests.
    """

    TYPE: ClassVar[int] = GossipMessageType.SUMMARY
    root: bytes
    digests: bytes = field(default=b"", repr=False)
    news: tuple[News, ...] = ()

    def encode(self) -> bytes:
        writer = Writer().bytes(self.root).bytes16(self.digests)
        return bounded(writer.vector(list(self.news), lambda w, one: one.encode(w)).done(), "SUMMARY")

    @classmethod
    def decode(cls, payload: bytes) -> Summary:
        reader = message_reader(payload, "SUMMARY")
        root, digests = reader.bytes(ROOT_SIZE), reader.bytes16()
        if len(digests) not in (0, BUCKETS * BUCKET_DIGEST):
            raise WireError(f"SUMMARY with {len(digests)} bytes of digests")
        news = reader.vector(News.decode, MAX_NEWS)
        reader.end()
        return cls(root, digests, tuple(news))


@dataclass(frozen=True, slots=True)
class Buckets:
    """All that the sender holds in some buckets: bitmap 32, bucket 0 its first bit | entries, u16 and each, rising."""

    TYPE: ClassVar[int] = GossipMessageType.BUCKETS
    bitmap: bytes
    entries: tuple[ListEntry, ...]

    @classmethod
    def of(cls, buckets: list[int], entries: tuple[ListEntry, ...]) -> Buckets:
        """The message for buckets by number."""
        bits = sum(1 << (BUCKETS - 1 - bucket) for bucket in buckets)
        return cls(bits.to_bytes(BITMAP_SIZE, "big"), entries)

    def buckets(self) -> list[int]:
        """The numbers of the buckets, rising."""
        return [number for number in range(BUCKETS) if _has(self.bitmap, number)]

    def encode(self) -> bytes:
        writer = Writer().bytes(self.bitmap).vector(list(self.entries), lambda w, entry: entry.encode(w))
        return bounded(writer.done(), "BUCKETS")

    @classmethod
    def decode(cls, payload: bytes) -> Buckets:
        reader = message_reader(payload, "BUCKETS")
        bitmap, entries = reader.bytes(BITMAP_SIZE), reader.vector(ListEntry.decode, MAX_LIST_ENTRIES)
        reader.end()
        check_rising([entry.id for entry in entries], "BUCKETS")
        if not any(bitmap):
            raise WireError("BUCKETS of nothing")
        if not all(_has(bitmap, entry.id[0]) for entry in entries):
            raise WireError("BUCKETS with an entry of another bucket")
        return cls(bitmap, tuple(entries))


@dataclass(frozen=True, slots=True)
class Offer:
    """Entries that the receiver of BUCKETS has and its sender lacks: entries, u16 and each, rising."""

    TYPE: ClassVar[int] = GossipMessageType.OFFER
    entries: tuple[ListEntry, ...]

    def encode(self) -> bytes:
        return bounded(Writer().vector(list(self.entries), lambda w, entry: entry.encode(w)).done(), "OFFER")

    @classmethod
    def decode(cls, payload: bytes) -> Offer:
        reader = message_reader(payload, "OFFER")
        entries = reader.vector(ListEntry.decode, MAX_LIST_ENTRIES)
        reader.end()
        if not entries:
            raise WireError("OFFER of nothing")
        check_rising([entry.id for entry in entries], "OFFER")
        return cls(tuple(entries))


AnyGossipMessage: TypeAlias = Summary | Buckets | Offer
GOSSIP_MESSAGES: dict[int, type[AnyGossipMessage]] = {message.TYPE: message for message in (Summary, Buckets, Offer)}


def _has(bitmap: bytes, bucket: int) -> bool:
    return bool(bitmap[bucket >> 3] & (0x80 >> (bucket & 7)))
