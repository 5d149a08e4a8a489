"""Descriptors: a relay's two signed documents, before and after verification (docs/protocol.md, "Directory").

    certificate    see `backrooms.netdir.certificate`
    record         body u16 and bytes | Ed25519 64
                   over ENC("backrooms-contact-record-1") | network id 32 | body

`SignedCertificate` and `SignedRecord` are what came from the network. Only what their `verify` returns is
used anywhere else. Times are unix seconds.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from backrooms.crypto.keys import (
    ED25519,
    SIGNATURE_SIZES,
    PublicIdentity,
    fingerprint,
    labelled,
    text_id,
    verify_ed25519,
)
from backrooms.errors import CryptoError, WireError
from backrooms.netdir.certificate import (
    CERTIFICATE_LIFE,
    CLOCK_TOLERANCE,
    REVOCATION_LIFE,
    DocumentTimeError,
    IdentityCertificate,
    NotAdmittedError,
    SignedCertificate,
    Signer,
    check_times,
    family_message,
    make_certificate,
)
from backrooms.netdir.policy import ExitPolicy
from backrooms.wire.admission import Admission
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.records import (
    MAX_RECORD,
    Address,
    ContactRecord,
    FamilyProof,
    Roles,
    check_nickname,
)

__all__ = [
    "CERTIFICATE_LIFE",
    "CLOCK_TOLERANCE",
    "PROTOCOL_VERSION",
    "RECORD_LIFE",
    "Descriptor",
    "DocumentTimeError",
    "IdentityCertificate",
    "NotAdmittedError",
    "SignedCertificate",
    "SignedRecord",
    "Signer",
    "family_message",
    "make_certificate",
    "make_descriptor",
    "make_revocation",
]

RECORD_LIFE = 2 * 86400
"""Seconds a contact record is made for: made daily, one missed day costs nothing."""
PROTOCOL_VERSION = 1
"""The version of the whole protocol that this code speaks; a network file may require one."""

_RECORD_LABEL = "backrooms-contact-record-1"
# Plain numbers: the arithmetic of enum flags is slow, and path choice asks every relay.
_EXIT = int(Roles.EXIT)
_SINGLE_HOP_EXIT = int(Roles.EXIT | Roles.SINGLE_HOP)
_SUBNET_BITS = {4: 16, 6: 32}


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A contact record of which nothing is known yet but that it can be parsed."""

    record: ContactRecord
    body_bytes: bytes = field(repr=False)
    signatures: dict[str, bytes] = field(repr=False)
    raw: bytes = field(repr=False)

    @classmethod
    def decode(cls, raw: bytes) -> SignedRecord:
        if len(raw) > MAX_RECORD:
            raise WireError(f"contact record of {len(raw)} bytes, {MAX_RECORD} are allowed")
        reader = Reader(raw)
        body = reader.bytes16()
        signatures = {ED25519: reader.bytes(SIGNATURE_SIZES[ED25519])}
        reader.end()
        return cls(ContactRecord.decode(body), body, signatures, raw)

    def verify(self, now: float, network_id: bytes, certificate: IdentityCertificate) -> Descriptor:
        """The descriptor of `certificate` and this record, if they belong together and the record holds.

        `CryptoError` for the wrong id or signature, `DocumentTimeError` for times. A revocation has none of its own.
        """
        record, facts = self.record, certificate.facts
        if record.id != facts.id:
            raise CryptoError("contact record and identity certificate are of different relays")
        end = facts.expires
        if record.is_revocation:
            end += REVOCATION_LIFE
        else:
            check_times("contact record", record.revision, record.expires, now)
        check_times("identity certificate", facts.created, end, now)
        message = labelled(_RECORD_LABEL, network_id + self.body_bytes)
        try:
            verify_ed25519(facts.ed25519, self.signatures[ED25519], message)
        except CryptoError as error:
            raise CryptoError(f"contact record: {error.reason}, or it was made for another network") from None
        return Descriptor(certificate, record, self.raw)


@dataclass(frozen=True)
class Descriptor:
    """A verified certificate and contact record of one relay. Only `verify` makes them from foreign bytes."""

    certificate: IdentityCertificate
    record: ContactRecord
    record_raw: bytes = field(repr=False)
    """The signed record, as it is passed on."""

    def __hash__(self) -> int:
        return hash(self.record.id)

    def __repr__(self) -> str:
        return f"Descriptor({self.nickname}, {text_id(self.id)})"

    @classmethod
    def from_bytes(cls, certificate: bytes, record: bytes, network_id: bytes, now: float) -> Descriptor:
        """Parse and verify both parts: about 0.5 ms. `WireError`, `CryptoError` or `DocumentTimeError`."""
        signed = SignedRecord.decode(record)
        after = REVOCATION_LIFE if signed.record.is_revocation else 0
        verified = SignedCertificate.decode(certificate).verify(now, network_id, after=after)
        return signed.verify(now, network_id, verified)

    @property
    def identity(self) -> PublicIdentity:
        return self.certificate.identity

    @property
    def id(self) -> bytes:
        return self.record.id

    @cached_property
    def fingerprint(self) -> str:
        """40 upper-case hex digits, for controllers."""
        return fingerprint(self.record.id)

    @property
    def nickname(self) -> str:
        return self.record.nickname

    @property
    def onion_key(self) -> bytes:
        return self.record.onion_key

    @property
    def addresses(self) -> tuple[Address, ...]:
        return self.record.addresses

    @property
    def capacity(self) -> int:
        """Bytes per second, as the relay itself says."""
        return self.record.capacity

    @property
    def family(self) -> tuple[bytes, ...]:
        """Ids that this relay says are of its family. Counts only where the other side says so too."""
        return self.certificate.facts.family

    @property
    def family_keys(self) -> frozenset[bytes]:
        return self.certificate.facts.family_keys

    @property
    def operator(self) -> str:
        """Who runs it, as the relay itself says; may be empty."""
        return self.certificate.facts.operator

    @property
    def revoked(self) -> bool:
        """Whether this is the relay's last word: it is no more, and its keys may be in other hands."""
        return self.record.is_revocation

    @cached_property
    def exit_policy(self) -> ExitPolicy:
        return ExitPolicy(self.record.exit_rules)

    @property
    def is_exit(self) -> bool:
        return self.record.roles & _EXIT != 0

    @property
    def allows_single_hop(self) -> bool:
        """Whether it is an exit that also serves circuits on which it is the only relay."""
        return self.record.roles & _SINGLE_HOP_EXIT == _SINGLE_HOP_EXIT

    @property
    def expires(self) -> int:
        """When the first of its two parts expires, unix seconds; of a revoked relay, when it may be forgotten."""
        end = self.certificate.facts.expires
        return end + REVOCATION_LIFE if self.record.is_revocation else min(self.record.expires, end)

    def subnets(self) -> frozenset[str]:
        """The /16 of each IPv4 and /32 of each IPv6 address, as text. Empty if no address tells."""
        return self._subnets

    @cached_property
    def _subnets(self) -> frozenset[str]:
        networks = set()
        for address in self.record.addresses:
            if address.host is not None:
                bits = _SUBNET_BITS[ipaddress.ip_address(address.host).version]
                networks.add(str(ipaddress.ip_network(f"{address.host}/{bits}", strict=False)))
        return frozenset(networks)


def make_descriptor(
    sign: Signer,
    identity: PublicIdentity,
    network_id: bytes,
    now: float,
    *,
    nickname: str,
    onion_key: bytes,
    addresses: Iterable[str],
    exit_policy: ExitPolicy | None = None,
    allow_single_hop: bool = False,
    capacity: int = 0,
    link_versions: Sequence[int] = (1,),
    protocol_version: int = PROTOCOL_VERSION,
    family: Iterable[bytes] = (),
    proofs: Iterable[FamilyProof] = (),
    operator: str = "",
    contact: str = "",
    admission: Admission | None = None,
    certificate: IdentityCertificate | None = None,
    after: int = 0,
) -> Descriptor:
    """Make and sign both parts; a given `certificate` is kept as it is, and only the record is new.

    Without an `exit_policy` the relay is no exit. `after` is the revision of the last record: the new one is
    higher even if the clock stood still. `ValueError` or `WireError` say which value is not allowed.
    """
    if certificate is None:
        certificate = make_certificate(
            sign, identity, network_id, now,
            family=family, proofs=proofs, operator=operator, contact=contact, admission=admission,
        )  # fmt: skip
    roles = Roles(0)
    if exit_policy is not None:
        roles |= Roles.EXIT | (Roles.SINGLE_HOP if allow_single_hop else Roles(0))
    revision = max(int(now), after + 1)
    body = ContactRecord(
        id=identity.id,
        revision=revision,
        expires=revision + RECORD_LIFE,
        nickname=check_nickname(nickname),
        onion_key=onion_key,
        addresses=tuple(Address.parse(address) for address in addresses),
        roles=int(roles),
        exit_rules=exit_policy.rules if exit_policy is not None else (),
        capacity=capacity,
        link_versions=tuple(link_versions),
        protocol_version=protocol_version,
    ).encode()
    return _signed(sign, body, network_id, now, certificate)


def make_revocation(
    sign: Signer,
    identity: PublicIdentity,
    network_id: bytes,
    now: float,
    *,
    nickname: str = "revoked",
    certificate: IdentityCertificate | None = None,
) -> Descriptor:
    """A relay's last record, and a certificate to check it with: a new one unless it is given."""
    if certificate is None:
        certificate = make_certificate(sign, identity, network_id, now)
    body = ContactRecord.revocation(identity.id, check_nickname(nickname)).encode()
    return _signed(sign, body, network_id, now, certificate)


def _signed(sign: Signer, body: bytes, network_id: bytes, now: float, certificate: IdentityCertificate) -> Descriptor:
    signatures = sign(labelled(_RECORD_LABEL, network_id + body), (ED25519,))
    raw = Writer().bytes16(body).bytes(signatures[ED25519]).done()
    return SignedRecord.decode(raw).verify(now, network_id, certificate)
