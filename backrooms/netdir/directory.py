"""The list of all relays that a node knows, every one verified (docs/protocol.md, "Directory").

Of one relay the record with the highest revision and the certificate made last are kept. A revoked relay is in the list
only to be passed on: `relays`, `get`, `in` and `len` do not know it, `everything` and `held` do. Times are unix
seconds, handed in. `revision` counts changes, so that whoever derives something from the list knows when to do it
again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from backrooms.errors import ConfigError, CryptoError, RemoteProtocolError
from backrooms.netdir.certificate import (
    CLOCK_TOLERANCE,
    REVOCATION_LIFE,
    IdentityCertificate,
    NotAdmittedError,
    ShelfError,
    SignedCertificate,
    check_admission,
)
from backrooms.netdir.descriptor import Descriptor, SignedRecord
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
MAX_REVOKED = 20_000
"""Revoked relays in one list; of more, those are forgotten that had been in the list for the shortest time, of equal
ones those whose certificates end first: else made-up relays that are revoked would bring back a stolen key."""
_DOCS_HEADER = 2


class EquivocationError(RemoteProtocolError):
    """A relay signed two different records of one revision: here they are."""

    def __init__(self, relay_id: bytes, held: bytes, offered: bytes) -> None:
        super().__init__("two contact records of one revision")
        self.relay_id = relay_id
        self.held = held
        self.offered = offered


class Directory:
    """Relays by id, verified against one network id. `verify` may run in a thread, all else may not.

    With `charter` keys only relays that one of them lets in are taken; `required` is the least protocol version.
    """

    def __init__(
        self, network_id: bytes, now: float = 0.0, *, charter: Iterable[bytes] = (), required: int = 0
    ) -> None:
        if len(network_id) != 32:
            raise ConfigError(f"a network id has 32 bytes, not {len(network_id)}")
        self.network_id = network_id
        self.charter = frozenset(charter)
        self.required = required
        self.revision = 0
        """Counts changes of the list."""
        self.changed_at = now
        """When the list last changed, unix seconds."""
        self.on_change: list[Callable[[bytes, Descriptor | None], None]] = []
        """Called with a relay's id and what is now known of it, perhaps its revocation; None where it was dropped."""
        self.on_equivocation: list[Callable[[EquivocationError], None]] = []
        """Called by those who verify, with proof that a relay signed two records of one revision."""
        self.seen: dict[bytes, int] = {}
        """Since when each relay has been in the list without a break, unix seconds; restarts are no break."""
        self._relays: dict[bytes, Descriptor] = {}
        self._revoked: dict[bytes, Descriptor] = {}
        self._worth: dict[bytes, tuple[int, int]] = {}
        """Of each revoked relay, for how many seconds it had been in the list before, and when it may be forgotten."""
        self._sorted: list[Descriptor] | None = None
        self._everything: list[Descriptor] | None = None

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

    def everything(self) -> Sequence[Descriptor]:
        """All relays and revoked ones, by rising id: what is passed on. Do not alter it."""
        if not self._revoked:
            return self.relays()
        if self._everything is None:
            self._everything = sorted(self.snapshot(), key=lambda relay: relay.id)
        return self._everything

    def snapshot(self) -> list[Descriptor]:
        """What `everything` has, in no order and at no cost: a list of its own, for a thread."""
        return [*self._relays.values(), *self._revoked.values()]

    def held(self, node_id: bytes) -> Descriptor | None:
        """A relay, or the revocation of one."""
        return self._relays.get(node_id) or self._revoked.get(node_id)

    def is_revoked(self, node_id: bytes) -> bool:
        return node_id in self._revoked

    # --- taking in

    def verify(self, certificate: bytes | None, record: bytes, now: float) -> Descriptor:
        """The verified descriptor, without changing the list: may run in a thread.

        Without a certificate, or with one no newer than ours, ours is used. What we hold already, or hold in
        a newer revision, comes back as it is, at no cost. `WireError`, `CryptoError`, `DocumentTimeError`,
        `NotAdmittedError`, `EquivocationError`, or `RemoteProtocolError` for a record whose certificate nobody has.
        """
        signed = SignedRecord.decode(record)
        known = self.held(signed.record.id)
        is_last = signed.record.is_revocation
        newer = self._newer_certificate(certificate, known, now, is_last or (known is not None and known.revoked))
        kept = newer or (known.certificate if known is not None else None)
        if kept is None:
            raise RemoteProtocolError("contact record without an identity certificate")
        if known is None or signed.record.revision > known.record.revision:
            if not is_last:
                self._check_version(signed.record.protocol_version)
                self._check_admitted(kept, now)
            return signed.verify(now, self.network_id, kept)
        if newer is not None:
            # Also for an old record: a new certificate is worth having, under the record we trust more.
            known = Descriptor(newer, known.record, known.record_raw)
        if signed.record.revision == known.record.revision and record != known.record_raw:
            signed.verify(now, self.network_id, kept)
            if not is_last:  # an end may be told in two ways
                raise EquivocationError(known.id, known.record_raw, record)
        return known

    def _check_version(self, version: int) -> None:
        if version < self.required:
            raise NotAdmittedError(f"a relay of protocol version {version}; this network requires {self.required}")

    def _check_admitted(self, certificate: IdentityCertificate, now: float) -> None:
        """For a certificate that was checked when it came: whether its admission has expired since."""
        if self.charter and certificate.facts.admitted < now - CLOCK_TOLERANCE:
            raise NotAdmittedError("a relay whose admission has expired")

    def _newer_certificate(
        self, certificate: bytes | None, known: Descriptor | None, now: float, is_last: bool
    ) -> IdentityCertificate | None:
        """The certificate, verified, if it is newer than what we have."""
        if not certificate or (known is not None and known.certificate.has_bytes(certificate)):
            return None
        signed = SignedCertificate.decode(certificate)
        if known is not None:
            if signed.body.created < known.certificate.facts.created:
                return None
            if signed.digest == known.certificate.digest:
                return None
        verified = signed.verify(now, self.network_id, after=REVOCATION_LIFE if is_last else 0)
        if known is not None:
            if verified.facts.id != known.id:
                raise CryptoError("contact record and identity certificate are of different relays")
            if signed.body.created == known.certificate.facts.created:
                raise RemoteProtocolError("two identity certificates of one time")
        if self.charter:
            try:
                # The admission of a revoked relay may have run out: then at least it was one of the network.
                when = min(now, verified.facts.admitted) if is_last else now
                check_admission(signed.body.admission, verified.facts.id, self.network_id, self.charter, when)
            except NotAdmittedError:
                if known is None or not is_last:
                    raise
                return None
        return verified

    def insert(self, relay: Descriptor, now: float) -> Descriptor:
        """Take in a descriptor that `verify` returned, unless we have a newer one; returns what is kept.

        `RemoteProtocolError` when the list is full.
        """
        known = self.held(relay.id)
        if known is None:
            if not relay.revoked and len(self._relays) >= MAX_RELAYS:
                raise RemoteProtocolError(f"the directory holds {MAX_RELAYS} relays and takes no more")
            if relay.revoked and len(self._revoked) >= MAX_REVOKED and (0, relay.expires) < min(self._worth.values()):
                raise RemoteProtocolError(f"the directory holds {MAX_REVOKED} revoked relays and takes no more")
        elif relay is known:
            return known
        else:
            record = max(known, relay, key=lambda each: each.record.revision)
            certificate = max(known, relay, key=lambda each: each.certificate.facts.created).certificate
            if record is known and certificate is known.certificate:
                return known
            relay = Descriptor(certificate, record.record, record.record_raw)
        self._keep(relay, self._was_known(relay.id, int(now)) if relay.revoked else int(now))
        self._changed(now, [relay.id])
        return relay

    def _was_known(self, node_id: bytes, now: int) -> int:
        """For how many seconds a relay that is or will be revoked had been in the list."""
        if node_id in self._worth:
            return self._worth[node_id][0]
        return max(0, now - self.seen.get(node_id, now))

    def times(self) -> dict[bytes, int]:
        """Since when each relay has been in the list, and of revoked ones for how long they had been: for `restore`."""
        return self.seen | {node_id: known for node_id, (known, _) in self._worth.items()}

    def _keep(self, relay: Descriptor, time: int) -> None:
        """`time` is as `times` gives it."""
        if not relay.revoked:
            self._relays[relay.id] = relay
            self.seen.setdefault(relay.id, time)
            return
        self._forget(relay.id)
        if len(self._revoked) >= MAX_REVOKED:
            self._forget(min(self._worth, key=self._worth.__getitem__))
        self._revoked[relay.id] = relay
        self._worth[relay.id] = time, relay.expires

    def _forget(self, node_id: bytes) -> None:
        for held in (self._relays, self._revoked, self._worth, self.seen):
            held.pop(node_id, None)

    def add(self, certificate: bytes | None, record: bytes, now: float) -> Descriptor:
        """`verify`, then `insert`. Whether anything changed shows in `revision`."""
        return self.insert(self.verify(certificate, record, now), now)

    def expire(self, now: float) -> list[Descriptor]:
        """Drop what has expired or, since our clock was set back, is from the future; returns the dropped."""
        late, early = now - CLOCK_TOLERANCE, now + CLOCK_TOLERANCE
        gone = [one for one in self._relays.values() if self.end(one) < late or one.record.revision > early]
        gone += [one for one in self._revoked.values() if one.expires < late]
        for relay in gone:
            self._forget(relay.id)
        if gone:
            self._changed(now, [relay.id for relay in gone])
        return gone

    def end(self, relay: Descriptor) -> int:
        """When a relay goes out of the list unless it renews its documents, unix seconds."""
        if self.charter and not relay.revoked:
            return min(relay.expires, relay.certificate.facts.admitted)
        return relay.expires

    def drop(self, node_id: bytes) -> None:
        """Let go of a relay whose documents were lost: others have them."""
        if self.held(node_id) is not None:
            self._forget(node_id)
            self._changed(self.changed_at, [node_id])

    def restore(self, relays: Iterable[tuple[Descriptor, int]], now: float) -> None:
        """Take in descriptors that were verified by this directory's rules before, and since when each was held.

        What expired meanwhile is left out, and what is there already stays.
        """
        late, early = now - CLOCK_TOLERANCE, now + CLOCK_TOLERANCE
        taken = []
        for relay, since in relays:
            is_early = relay.record.revision > early and not relay.revoked
            if self.end(relay) >= late and not is_early and self.held(relay.id) is None:
                self._keep(relay, since)
                taken.append(relay.id)
        if taken:
            self._changed(now, taken)

    def _changed(self, now: float, ids: Sequence[bytes]) -> None:
        self.revision += 1
        self.changed_at = now
        self._sorted = self._everything = None
        for call in self.on_change:
            for node_id in ids:
                call(node_id, self.held(node_id))

    # --- passing on

    def entries(self) -> list[ListEntry]:
        """The whole list in short, ids rising."""
        return [_entry(relay) for relay in self.everything()]

    def answer_list(self, request: DirListRequest) -> DirList:
        """The page of the list that was asked for."""
        relays = self.everything()
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
        relay = self.held(node_id)
        if relay is None:
            return Documents(node_id)
        try:
            certificate = relay.certificate.raw if what & Parts.CERTIFICATE else b""
        except ShelfError:
            self.drop(node_id)
            return Documents(node_id)
        return Documents(node_id, certificate, relay.record_raw if what & Parts.RECORD else b"")

    def wanted(self, entries: Sequence[ListEntry]) -> list[DirFetch]:
        """What to ask another node for, having seen these entries of its list."""
        both: list[bytes] = []
        records: list[bytes] = []
        for entry in entries:
            known = self.held(entry.id)
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


def _entry(relay: Descriptor) -> ListEntry:
    return ListEntry(relay.id, relay.certificate.digest, relay.record.revision)
