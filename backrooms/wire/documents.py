"""The link messages by which nodes tell each other of relays (docs/protocol.md, "Directory").

The messages have no type byte of their own: `TYPE` is the type of the link message whose payload they are.
Each takes at most `MAX_MESSAGE` bytes, so lists come in pages and documents in several answers. Documents are
carried as bytes: whoever takes them in verifies them (`netdir.descriptor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from itertools import pairwise
from typing import ClassVar, Protocol, TypeAlias

from backrooms.errors import LocalProtocolError, WireError
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.records import ID_SIZE, MAX_CERTIFICATE, MAX_RECORD

DIGEST_SIZE = 32
ZERO_ID = bytes(ID_SIZE)
"""As `DirListRequest.after`: from the start."""
MAX_MESSAGE = 60_000
"""Bytes of one directory message."""
MAX_LIST_ENTRIES = 800
"""Entries in one page of the list; 72 bytes each."""
MAX_FETCH_IDS = 128
"""Relays asked for at once."""
MAX_DOCS = MAX_FETCH_IDS
MAX_STATUS_TEXT = 200
"""Bytes of the text of PUBLISHED."""
DOC_OVERHEAD = ID_SIZE + 4
"""Bytes that one entry of DOCS takes beside its documents."""


class DirectoryMessageType(IntEnum):
    """Types of link messages, 16 to 21."""

    LIST_REQUEST = 16
    LIST = 17
    FETCH = 18
    DOCS = 19
    PUBLISH = 20
    PUBLISHED = 21


class Parts(IntFlag):
    """Which of the two documents of a relay are asked for."""

    CERTIFICATE = 1
    RECORD = 2
    BOTH = 3


class PublishStatus(IntEnum):
    """What became of published documents. Statuses that this version does not know count as REFUSED."""

    ACCEPTED = 0
    """They are in the list now."""
    UNCHANGED = 1
    """The list had these, or newer ones."""
    REFUSED = 2
    """They did not verify, or came too often. The text says why."""


def bounded(payload: bytes, what: str) -> bytes:
    """Our own message, of at most `MAX_MESSAGE` bytes."""
    if len(payload) > MAX_MESSAGE:
        raise LocalProtocolError(f"{what} of {len(payload)} bytes, {MAX_MESSAGE} are allowed")
    return payload


def message_reader(payload: bytes, what: str) -> Reader:
    """The reader of a foreign message; `WireError` when it is longer than it may be."""
    if len(payload) > MAX_MESSAGE:
        raise WireError(f"{what} of {len(payload)} bytes, {MAX_MESSAGE} are allowed")
    return Reader(payload)


def check_rising(ids: Sequence[bytes], what: str) -> None:
    """`WireError` unless each id is higher than the one before."""
    if any(a >= b for a, b in pairwise(ids)):
        raise WireError(f"{what}: ids are not in rising order")


def _document(reader: Reader, limit: int, what: str) -> bytes:
    data = reader.bytes16()
    if len(data) > limit:
        raise WireError(f"{what} of {len(data)} bytes, {limit} are allowed")
    return data


@dataclass(frozen=True, slots=True)
class ListEntry:
    """One relay in a list: id 32 | SHA3-256 of its certificate's body 32 | its record's revision u64."""

    id: bytes
    certificate: bytes
    revision: int

    def encode(self, writer: Writer) -> None:
        writer.bytes(self.id).bytes(self.certificate).u64(self.revision)

    @classmethod
    def decode(cls, reader: Reader) -> ListEntry:
        return cls(reader.bytes(ID_SIZE), reader.bytes(DIGEST_SIZE), reader.u64())


@dataclass(frozen=True, slots=True)
class DirListRequest:
    """Asks for the page of the list that starts after an id: id 32."""

    TYPE: ClassVar[int] = DirectoryMessageType.LIST_REQUEST
    after: bytes = ZERO_ID

    def encode(self) -> bytes:
        return Writer().bytes(self.after).done()

    @classmethod
    def decode(cls, payload: bytes) -> DirListRequest:
        reader = message_reader(payload, "LIST_REQUEST")
        message = cls(reader.bytes(ID_SIZE))
        reader.end()
        return message


@dataclass(frozen=True, slots=True)
class DirList:
    """One page of the list: more u8 (0 or 1) | entries, u16 and 72 bytes each, ids rising.

    `more` says that the next page starts after this page's last id, so a page with `more` is never empty.
    """

    TYPE: ClassVar[int] = DirectoryMessageType.LIST
    entries: tuple[ListEntry, ...]
    more: bool

    def encode(self) -> bytes:
        writer = Writer().u8(int(self.more)).vector(list(self.entries), lambda w, entry: entry.encode(w))
        return bounded(writer.done(), "LIST")

    @classmethod
    def decode(cls, payload: bytes) -> DirList:
        reader = message_reader(payload, "LIST")
        more = reader.u8()
        if more > 1:
            raise WireError(f"LIST with more = {more}")
        entries = reader.vector(ListEntry.decode, MAX_LIST_ENTRIES)
        reader.end()
        check_rising([entry.id for entry in entries], "LIST")
        if more and not entries:
            raise WireError("LIST: an empty page that promises more")
        return cls(tuple(entries), bool(more))


@dataclass(frozen=True, slots=True)
class DirFetch:
    """Asks for documents of some relays: what u8 (`Parts`) | ids, u16 and 32 bytes each, rising."""

    TYPE: ClassVar[int] = DirectoryMessageType.FETCH
    ids: tuple[bytes, ...]
    what: Parts = Parts.BOTH

    def encode(self) -> bytes:
        writer = Writer().u8(self.what).vector(list(self.ids), lambda w, node_id: w.bytes(node_id))
        return bounded(writer.done(), "FETCH")

    @classmethod
    def decode(cls, payload: bytes) -> DirFetch:
        reader = message_reader(payload, "FETCH")
        what = reader.u8()
        if not 1 <= what <= Parts.BOTH:
            raise WireError(f"FETCH of parts {what}")
        ids = reader.vector(lambda r: r.bytes(ID_SIZE), MAX_FETCH_IDS)
        reader.end()
        if not ids:
            raise WireError("FETCH of nothing")
        check_rising(ids, "FETCH")
        return cls(tuple(ids), Parts(what))


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents of one relay: id 32 | certificate, u16 and bytes | record, u16 and bytes.

    A part that was not asked for is empty; both are empty when the sender does not know the relay.
    """

    id: bytes
    certificate: bytes = field(default=b"", repr=False)
    record: bytes = field(default=b"", repr=False)

    @property
    def size(self) -> int:
        """Bytes it takes in DOCS."""
        return DOC_OVERHEAD + len(self.certificate) + len(self.record)

    def encode(self, writer: Writer) -> None:
        writer.bytes(self.id).bytes16(self.certificate).bytes16(self.record)

    @classmethod
    def decode(cls, reader: Reader) -> Documents:
        return cls(
            reader.bytes(ID_SIZE),
            _document(reader, MAX_CERTIFICATE, "identity certificate"),
            _document(reader, MAX_RECORD, "contact record"),
        )


@dataclass(frozen=True, slots=True)
class DirDocs:
    """Answers FETCH: documents, u16 and each as `Documents`, ids rising.

    It answers the first ids of the request, as many as fit and at least one; the rest is asked for again.
    """

    TYPE: ClassVar[int] = DirectoryMessageType.DOCS
    documents: tuple[Documents, ...]

    def encode(self) -> bytes:
        writer = Writer().vector(list(self.documents), lambda w, documents: documents.encode(w))
        return bounded(writer.done(), "DOCS")

    @classmethod
    def decode(cls, payload: bytes) -> DirDocs:
        reader = message_reader(payload, "DOCS")
        documents = reader.vector(Documents.decode, MAX_DOCS)
        reader.end()
        if not documents:
            raise WireError("DOCS without documents")
        check_rising([entry.id for entry in documents], "DOCS")
        return cls(tuple(documents))


@dataclass(frozen=True, slots=True)
class DirPublish:
    """A relay's own documents: certificate, u16 and bytes | record, u16 and bytes.

    The certificate is empty when the receiver is known to have it.
    """

    TYPE: ClassVar[int] = DirectoryMessageType.PUBLISH
    certificate: bytes = field(repr=False)
    record: bytes = field(repr=False)

    def encode(self) -> bytes:
        return bounded(Writer().bytes16(self.certificate).bytes16(self.record).done(), "PUBLISH")

    @classmethod
    def decode(cls, payload: bytes) -> DirPublish:
        reader = message_reader(payload, "PUBLISH")
        certificate = _document(reader, MAX_CERTIFICATE, "identity certificate")
        record = _document(reader, MAX_RECORD, "contact record")
        reader.end()
        if not record:
            raise WireError("PUBLISH without a contact record")
        return cls(certificate, record)


@dataclass(frozen=True, slots=True)
class DirPublished:
    """Answers PUBLISH: status u8 (`PublishStatus`) | text8, one printable line for the operator's log."""

    TYPE: ClassVar[int] = DirectoryMessageType.PUBLISHED
    status: int
    text: str = ""

    def encode(self) -> bytes:
        if len(self.text.encode()) > MAX_STATUS_TEXT or not self.text.isprintable():
            raise LocalProtocolError("the text of PUBLISHED is too long or not printable")
        return Writer().u8(self.status).text8(self.text).done()

    @classmethod
    def decode(cls, payload: bytes) -> DirPublished:
        reader = message_reader(payload, "PUBLISHED")
        message = cls(reader.u8(), reader.text8())
        reader.end()
        if len(message.text.encode()) > MAX_STATUS_TEXT or not message.text.isprintable():
            raise WireError("PUBLISHED: the text is too long or not printable")
        return message


class DirectoryMessage(Protocol):
    """What every message of this module can do."""

    TYPE: ClassVar[int]

    def encode(self) -> bytes: ...


AnyDirectoryMessage: TypeAlias = DirListRequest | DirList | DirFetch | DirDocs | DirPublish | DirPublished
_MESSAGES: dict[int, type[AnyDirectoryMessage]] = {
    message.TYPE: message for message in (DirListRequest, DirList, DirFetch, DirDocs, DirPublish, DirPublished)
}


def decode_message(kind: int, payload: bytes) -> AnyDirectoryMessage:
    """The directory message of link message type `kind`; `WireError` when it is none or malformed."""
    message = _MESSAGES.get(kind)
    if message is None:
        raise WireError(f"link message {kind} is not of the directory")
    return message.decode(payload)
