"""The saved list of relays, as bytes: an index in one file, certificates in another (docs/decisions/019).

    index     magic | network id 32 | rules 32 | generation u32 | count u32 | rows | BLAKE2b of all before, 32
    row       since u64 | place u64 | size u16 | check 16 | created u64 | expires u64 | admitted u64 |
              digest 32 | Ed25519 key 32 | list16 of family ids | list16 of family keys |
              text8(operator) | text8(contact) | bytes16(record)

The certificate of a row lies in the file of certificates number `generation`, `size` bytes at `place`. What is in these
files was verified before it was written; `rules` names what it was verified by. Checksums tell damage, no more: who
could forge an index, in a folder that is ours alone, could as well change the program.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from sys import intern

from backrooms.crypto.kdf import tagged_hash
from backrooms.errors import WireError
from backrooms.netdir.certificate import Facts, IdentityCertificate, Shelf
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import MAX_RELAYS, MAX_REVOKED
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.records import ID_SIZE, MAX_FAMILY, MAX_FAMILY_PROOFS, ContactRecord

_MAGIC = b"backrooms-relays-2\n"
_FIRST_MAGIC = b"backrooms-directory-1\n"
_ROW = struct.Struct(">QQH16sQQQ32s32s")
_CHECK_SIZE = 32
_RULES_LABEL = b"backrooms-saved-rules-1"

Row = tuple[Descriptor, int]
"""A descriptor whose certificate is on the shelf, and its time, as `Directory.times` gives it."""


@dataclass(frozen=True, slots=True)
class Head:
    """What an index says of itself."""

    network_id: bytes
    rules: bytes
    generation: int
    """The number of its file of certificates."""


def rules_of(charter: Collection[bytes]) -> bytes:
    """32 bytes that name what descriptors were verified by: others, and they have to be verified anew."""
    return tagged_hash(_RULES_LABEL, b"".join(sorted(charter)))


def encode_row(row: Row) -> bytes:
    """One row of an index. The certificate must lie on a shelf."""
    relay, since = row
    facts = relay.certificate.facts
    _, place, size, check = relay.certificate.place
    writer = Writer().bytes(
        _ROW.pack(since, place, size, check, facts.created, facts.expires, facts.admitted, facts.digest, facts.ed25519)
    )
    writer.vector(list(facts.family), _write_id).vector(sorted(facts.family_keys), _write_id)
    return writer.text8(facts.operator).text8(facts.contact).bytes16(relay.record_raw).done()


def encode_index(head: Head, rows: Sequence[bytes]) -> bytes:
    """A whole index out of encoded rows."""
    start = Writer().bytes(_MAGIC).bytes(head.network_id).bytes(head.rules).u32(head.generation).u32(len(rows))
    data = b"".join([start.done(), *rows])
    return data + hashlib.blake2b(data, digest_size=_CHECK_SIZE).digest()


def decode_head(data: bytes) -> Head:
    """The head of an index, once its checksum is seen to hold. `WireError` when anything is wrong."""
    return _head(_checked(data))[0]


def decode_rows(data: bytes, shelf: Shelf, limit: int) -> Iterator[Row]:
    """The rows of an index that `decode_head` took. Those behind `limit` in the file of certificates are left out."""
    reader = Reader(data)
    _, count = _head(reader)
    for _ in range(count):
        since, place, size, check, created, expires, admitted, digest, key = _ROW.unpack(reader.bytes(_ROW.size))
        family = tuple(reader.vector(_read_id, MAX_FAMILY))
        family_keys = frozenset(reader.vector(_read_id, MAX_FAMILY_PROOFS))
        operator, contact = intern(reader.text8()), intern(reader.text8())
        raw = reader.bytes16()
        record = ContactRecord.decode(Reader(raw).bytes16())
        facts = Facts(record.id, key, created, expires, digest, family, family_keys, operator, contact, admitted)
        if place + size <= limit:
            yield Descriptor(IdentityCertificate.shelved(facts, shelf, place, size, check), record, raw), since


def _checked(data: bytes) -> Reader:
    if not data.startswith(_MAGIC):
        raise WireError("not a saved list of relays")
    reader = Reader(data)
    body = reader.bytes(reader.remaining - _CHECK_SIZE)
    if hashlib.blake2b(body, digest_size=_CHECK_SIZE).digest() != reader.rest():
        raise WireError("its checksum is wrong")
    return Reader(data)


def _head(reader: Reader) -> tuple[Head, int]:
    reader.bytes(len(_MAGIC))
    head = Head(reader.bytes(ID_SIZE), reader.bytes(32), reader.u32())
    count = reader.u32()
    if count > MAX_RELAYS + MAX_REVOKED:
        raise WireError(f"a saved list of {count} relays")
    return head, count


def _write_id(writer: Writer, value: bytes) -> None:
    writer.bytes(value)


def _read_id(reader: Reader) -> bytes:
    return reader.bytes(ID_SIZE)


# --- the first form: certificate and record of each relay in one file


def is_first_form(data: bytes) -> bool:
    """Whether a file is of the form that came before this one."""
    return data.startswith(_FIRST_MAGIC)


def decode_first_form(data: bytes) -> Iterable[tuple[bytes, bytes]]:
    """The signed certificate and record of each relay, to be verified. `WireError` when the file is damaged."""
    reader = Reader(data)
    reader.bytes(len(_FIRST_MAGIC))
    count = reader.u32()
    if count > MAX_RELAYS:
        raise WireError(f"a saved list of {count} relays, {MAX_RELAYS} are allowed")
    documents = [(reader.bytes16(), reader.bytes16()) for _ in range(count)]
    reader.end()
    return documents
