"""The list of all relays that a node knows, every one verified (docs/protocol.md, "Directory").

Of one relay the record with the highest revision and the certificate made last are kept. Times are unix
seconds, handed in. `revision` counts changes, so that whoever derives something from the list knows when to
do it again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

from backrooms.errors import ConfigError, CryptoError, RemoteProtocolError, WireError
from backrooms.netdir.descriptor import (
    CLOCK_TOLERANCE,
    Descriptor,
    IdentityCertificate,
    SignedCertificate,
    SignedRecord,
)
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.documents import (
    MAX_DOCS,
    MAX_FETCH_IDS,
    MAX_LIST_ENTRIES,
    MAX_MESSAGE,
    DirDocs,
    DirFetch,
    DirList,
    DirListRequest,
    Documents,
    ListEntry,
    Parts,
)

MAX_RELAYS = 20_000
"""Relays in one list; more are refused, so that made-up relays cannot fill the memory."""
_MAGIC = b"backrooms-directory-1\n"
_DOCS_HEADER = 2


class Directory:
    """Relays by id, verified against one network id. `verify` may run in a thread, all else may not."""

    def __init__(self, network_id: bytes, now: float = 0.0) -> None:
        if len(network_id) != 32:
            raise ConfigError(f"a network id has 32 bytes, not {len(network_id)}")
        self.network_id = network_id
        self.revision = 0
        """Counts changes of the list."""
        self.changed_at = now
        """When the list last changed, unix seconds."""
        self.on_change: list[Callable[[bytes, Descriptor | None], None]] = []
        """Called with a relay's id and what is now known of it, None where it was dropped."""
        self._relays: dict[bytes, Descriptor] = {}
        self._sorted: list[Descriptor] | None = None
        self._by_nickname: dict[str, Descriptor | None] | None = None
        self._by_fingerprint: dict[str, Descriptor] | None = None

    def __len__(self) -> int:
        return len(self._relays)

    def __contains__(self, node_id: bytes) -> bool:
        return node_id in self._relays

    def get(self, node_id: bytes) -> Descriptor | None:
        return self._relays.get(node_id)

    def relays(self) -> Sequence[Descriptor]:
        """All relays by rising id. The same object until the list changes: do not alter it."""
        if self._sorted is None:
            self._sorted = sorted(self._relays.values(), key=lambda relay: relay.id)
        return self._sorted

    def by_fingerprint(self, text: str) -> Descriptor | None:
        """The relay with these 40 hex digits, in either case and with or without Tor's leading `$`."""
        if self._by_fingerprint is None:
            self._by_fingerprint = {relay.fingerprint: relay for relay in self._relays.values()}
        return self._by_fingerprint.get(text.removeprefix("$").upper())

    def by_nickname(self, nickname: str) -> Descriptor | None:
        """The only relay of this nickname, case ignored as in Tor; None where there are none or several."""
        if self._by_nickname is None:
            names: dict[str, Descriptor | None] = {}
            for relay in self._relays.values():
                key = relay.nickname.lower()
                names[key] = None if key in names else relay
            self._by_nickname = names
        return self._by_nickname.get(nickname.lower())

    # --- taking in

    def verify(self, certificate: bytes | None, record: bytes, now: float) -> Descriptor:
        """The verified descriptor, without changing the list: may run in a thread.

        Without a certificate, or with one no newer than ours, ours is used. What we hold already, or hold in
        a newer revision, comes back as it is, at no cost. `WireError`, `CryptoError`, `DocumentTimeError`, or
        `RemoteProtocolError` for a record whose certificate nobody has and for two records of one revision.
        """
        signed = SignedRecord.decode(record)
        known = self._relays.get(signed.record.id)
        newer = self._newer_certificate(certificate, known, now)
        kept = newer or (known.certificate if known is not None else None)
        if kept is None:
            raise RemoteProtocolError("contact record without an identity certificate")
        if known is None or signed.record.revision > known.record.revision:
            return signed.verify(now, self.network_id, kept)
        if newer is not None:
            # Also for an old record: a new certificate is worth having, under the record we trust more.
            known = Descriptor(newer, known.record, known.record_raw)
        if signed.record.revision == known.record.revision and record != known.record_raw:
            signed.verify(now, self.network_id, kept)
            raise RemoteProtocolError("two contact records of one revision")
        return known

    def _newer_certificate(
        self, certificate: bytes | None, known: Descriptor | None, now: float
    ) -> IdentityCertificate | None:
        """The certificate, verified, if it is newer than what we have."""
        if not certificate or (known is not None and certificate == known.certificate.raw):
            return None
        signed = SignedCertificate.decode(certificate)
        if known is not None:
            if signed.body.created < known.certificate.body.created:
                return None
            if signed.digest == known.certificate.digest:
                return None
        verified = signed.verify(now, self.network_id)
        if known is not None:
            if verified.identity.id != known.id:
                raise CryptoError("contact record and identity certificate are of different relays")
            if signed.body.created == known.certificate.body.created:
                raise RemoteProtocolError("two identity certificates of one time")
        return verified

    def insert(self, relay: Descriptor, now: float) -> Descriptor:
        """Take in a descriptor that `verify` returned, unless we have a newer one; returns what is kept.

        `RemoteProtocolError` when the list is full.
        """
        known = self._relays.get(relay.id)
        if known is None:
            if len(self._relays) >= MAX_RELAYS:
                raise RemoteProtocolError(f"the directory holds {MAX_RELAYS} relays and takes no more")
        elif relay is known:
            return known
        else:
            record = max(known, relay, key=lambda each: each.record.revision)
            certificate = max(known, relay, key=lambda each: each.certificate.body.created).certificate
            if record is known and certificate is known.certificate:
                return known
            relay = Descriptor(certificate, record.record, record.record_raw)
        self._relays[relay.id] = relay
        self._changed(now, [relay.id])
        return relay

    def add(self, certificate: bytes | None, record: bytes, now: float) -> Descriptor:
        """`verify`, then `insert`. Whether anything changed shows in `revision`."""
        return self.insert(self.verify(certificate, record, now), now)

    def expire(self, now: float) -> list[Descriptor]:
        """Drop what has expired or, since our clock was set back, is from the future; returns the dropped."""
        late, early = now - CLOCK_TOLERANCE, now + CLOCK_TOLERANCE
        gone = [one for one in self._relays.values() if one.expires < late or one.record.revision > early]
        for relay in gone:
            del self._relays[relay.id]
        if gone:
            self._changed(now, [relay.id for relay in gone])
        return gone

    def _changed(self, now: float, ids: Sequence[bytes]) -> None:
        self.revision += 1
        self.changed_at = now
        self._sorted = self._by_nickname = self._by_fingerprint = None
        for call in self.on_change:
            for node_id in ids:
                call(node_id, self._relays.get(node_id))

    # --- passing on

    def entries(self) -> list[ListEntry]:
        """The whole list in short, ids rising."""
        return [_entry(relay) for relay in self.relays()]

    def answer_list(self, request: DirListRequest) -> DirList:
        """The page of the list that was asked for."""
        relays = self.relays()
        start = bisect_right(relays, request.after, key=lambda relay: relay.id)
        end = start + MAX_LIST_ENTRIES
        return DirList(tuple(_entry(relay) for relay in relays[start:end]), end < len(relays))

    def answer_fetch(self, request: DirFetch) -> DirDocs:
        """Documents of the first ids of the request, as many as fit into one message."""
        answer: list[Documents] = []
        room = MAX_MESSAGE - _DOCS_HEADER
        for node_id in request.ids[:MAX_DOCS]:
            documents = self._documents(node_id, request.what)
            room -= documents.size
            if room < 0:
                break
            answer.append(documents)
        return DirDocs(tuple(answer))

    def _documents(self, node_id: bytes, what: Parts) -> Documents:
        relay = self._relays.get(node_id)
        if relay is None:
            return Documents(node_id)
        return Documents(
            node_id,
            relay.certificate.raw if what & Parts.CERTIFICATE else b"",
            relay.record_raw if what & Parts.RECORD else b"",
        )

    def wanted(self, entries: Sequence[ListEntry]) -> list[DirFetch]:
        """What to ask another node for, having seen these entries of its list."""
        both: list[bytes] = []
        records: list[bytes] = []
        for entry in entries:
            known = self._relays.get(entry.id)
            if known is None:
                both.append(entry.id)
            elif entry.revision > known.record.revision:
                changed = entry.certificate != known.certificate.digest
                (both if changed else records).append(entry.id)
        return [
            DirFetch(tuple(ids[start : start + MAX_FETCH_IDS]), what)
            for ids, what in ((sorted(both), Parts.BOTH), (sorted(records), Parts.RECORD))
            for start in range(0, len(ids), MAX_FETCH_IDS)
        ]

    # --- keeping

    def to_bytes(self) -> bytes:
        """The documents of all relays, for a file: magic | count u32 | certificate and record, u16 each."""
        writer = Writer().bytes(_MAGIC).u32(len(self._relays))
        for relay in self.relays():
            writer.bytes16(relay.certificate.raw).bytes16(relay.record_raw)
        return writer.done()

    def restore(self, data: bytes, now: float) -> int:
        """Add what `to_bytes` wrote, verified anew; returns how many relays were refused (often: expired).

        `WireError` when the file as such is damaged.
        """
        reader = Reader(data)
        if reader.remaining < len(_MAGIC) or reader.bytes(len(_MAGIC)) != _MAGIC:
            raise WireError("not a saved directory")
        count = reader.u32()
        if count > MAX_RELAYS:
            raise WireError(f"a saved directory of {count} relays, {MAX_RELAYS} are allowed")
        documents = [(reader.bytes16(), reader.bytes16()) for _ in range(count)]
        reader.end()
        refused = 0
        for certificate, record in documents:
            try:
                self.add(certificate, record, now)
            except RemoteProtocolError:
                refused += 1
        return refused

    @classmethod
    def from_bytes(cls, network_id: bytes, data: bytes, now: float) -> Directory:
        """A directory with what `to_bytes` wrote. `WireError` when the file is damaged."""
        directory = cls(network_id, now)
        directory.restore(data, now)
        return directory


def _entry(relay: Descriptor) -> ListEntry:
    return ListEntry(relay.id, relay.certificate.digest, relay.record.revision)
