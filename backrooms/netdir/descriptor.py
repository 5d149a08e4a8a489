"""Descriptors: a relay's two signed documents, before and after verification (docs/protocol.md, "Directory").

    certificate    body u16 and bytes | Ed25519 64 | ML-DSA-65 3309
                   both over ENC("backrooms-identity-certificate-1") | network id 32 | body
    record         body u16 and bytes | Ed25519 64
                   over ENC("backrooms-contact-record-1") | network id 32 | body
    family proof   Ed25519 by the family key over ENC("backrooms-family-1") | network id 32 | relay id 32

`SignedCertificate` and `SignedRecord` are what came from the network. Only what their `verify` returns is
used anywhere else. Times are unix seconds.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from backrooms.crypto.keys import (
    ED25519,
    ML_DSA_65,
    SIGNATURE_SIZES,
    PublicIdentity,
    fingerprint,
    labelled,
    text_id,
    verify_ed25519,
)
from backrooms.errors import CryptoError, RemoteProtocolError, WireError
from backrooms.netdir.policy import ExitPolicy
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.records import (
    MAX_CERTIFICATE,
    MAX_RECORD,
    Address,
    CertificateBody,
    ContactRecord,
    FamilyProof,
    Roles,
    check_nickname,
)

CLOCK_TOLERANCE = 5400
"""Seconds by which clocks may differ before a document counts as expired or from the future."""
CERTIFICATE_LIFE = 180 * 86400
"""Seconds a certificate is made for."""
RECORD_LIFE = 2 * 86400
"""Seconds a contact record is made for: made daily, one missed day costs nothing."""

_CERTIFICATE_LABEL = "backrooms-identity-certificate-1"
_RECORD_LABEL = "backrooms-contact-record-1"
_FAMILY_LABEL = "backrooms-family-1"
_CERTIFICATE_ALGORITHMS = (ED25519, ML_DSA_65)
# Plain numbers: the arithmetic of enum flags is slow, and path choice asks every relay.
_EXIT = int(Roles.EXIT)
_SINGLE_HOP_EXIT = int(Roles.EXIT | Roles.SINGLE_HOP)
_SUBNET_BITS = {4: 16, 6: 32}

Signer = Callable[[bytes, Sequence[str]], dict[str, bytes]]
"""`IKeyStore.sign`: signatures by algorithm over a labelled message."""


class DocumentTimeError(RemoteProtocolError):
    """A document that is expired, or from the future. Whoever passed it on may be innocent."""


def _check_times(what: str, start: int, expires: int, now: float) -> None:
    if start > now + CLOCK_TOLERANCE:
        raise DocumentTimeError(f"{what} is {start - now:.0f} seconds from the future")
    if expires < now - CLOCK_TOLERANCE:
        raise DocumentTimeError(f"{what} expired {now - expires:.0f} seconds ago")


@dataclass(frozen=True, slots=True)
class IdentityCertificate:
    """A verified identity certificate."""

    identity: PublicIdentity
    body: CertificateBody
    family_keys: frozenset[bytes]
    """Family keys whose proof holds."""
    raw: bytes = field(repr=False)
    """The signed bytes, as they are passed on."""
    digest: bytes = field(repr=False)
    """SHA3-256 of the body: what lists name it by. Signing the same body again does not change it."""


@dataclass(frozen=True, slots=True)
class SignedCertificate:
    """An identity certificate of which nothing is known yet but that it can be parsed."""

    body: CertificateBody
    body_bytes: bytes = field(repr=False)
    signatures: dict[str, bytes] = field(repr=False)
    raw: bytes = field(repr=False)

    @classmethod
    def decode(cls, raw: bytes) -> SignedCertificate:
        if len(raw) > MAX_CERTIFICATE:
            raise WireError(f"identity certificate of {len(raw)} bytes, {MAX_CERTIFICATE} are allowed")
        reader = Reader(raw)
        body = reader.bytes16()
        signatures = {name: reader.bytes(SIGNATURE_SIZES[name]) for name in _CERTIFICATE_ALGORITHMS}
        reader.end()
        return cls(CertificateBody.decode(body), body, signatures, raw)

    @property
    def digest(self) -> bytes:
        return hashlib.sha3_256(self.body_bytes).digest()

    def verify(self, now: float, network_id: bytes) -> IdentityCertificate:
        """The certificate, if its keys are well formed, its signatures hold here and it is in date.

        `CryptoError` for keys, signatures and family proofs, `DocumentTimeError` for times.
        """
        body = self.body
        _check_times("identity certificate", body.created, body.expires, now)
        identity = PublicIdentity(body.ed25519, body.ml_dsa, body.rsa)
        message = labelled(_CERTIFICATE_LABEL, network_id + self.body_bytes)
        _verify("identity certificate", identity, message, self.signatures, _CERTIFICATE_ALGORITHMS)
        for proof in body.proofs:
            try:
                verify_ed25519(proof.key, proof.signature, family_message(network_id, identity.id))
            except CryptoError:
                raise CryptoError("identity certificate with a family proof that does not hold") from None
        keys = frozenset(proof.key for proof in body.proofs)
        return IdentityCertificate(identity, body, keys, self.raw, self.digest)


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

        `CryptoError` for the wrong id or signature, `DocumentTimeError` for times.
        """
        record = self.record
        if record.id != certificate.identity.id:
            raise CryptoError("contact record and identity certificate are of different relays")
        _check_times("contact record", record.revision, record.expires, now)
        _check_times("identity certificate", certificate.body.created, certificate.body.expires, now)
        message = labelled(_RECORD_LABEL, network_id + self.body_bytes)
        _verify("contact record", certificate.identity, message, self.signatures, (ED25519,))
        return Descriptor(certificate, record, self.raw)


def _verify(
    what: str,
    identity: PublicIdentity,
    message: bytes,
    signatures: dict[str, bytes],
    algorithms: Sequence[str],
) -> None:
    try:
        identity.verify(message, signatures, algorithms)
    except CryptoError as error:
        raise CryptoError(f"{what}: {error.reason}, or it was made for another network") from None


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
        verified = SignedCertificate.decode(certificate).verify(now, network_id)
        return SignedRecord.decode(record).verify(now, network_id, verified)

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
        return self.certificate.body.family

    @property
    def family_keys(self) -> frozenset[bytes]:
        return self.certificate.family_keys

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
        """When the first of its two parts expires, unix seconds."""
        return min(self.record.expires, self.certificate.body.expires)

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


def family_message(network_id: bytes, node_id: bytes) -> bytes:
    """What a family key signs to say that a relay is of its family."""
    return labelled(_FAMILY_LABEL, network_id + node_id)


def make_certificate(
    sign: Signer,
    identity: PublicIdentity,
    network_id: bytes,
    now: float,
    *,
    family: Iterable[bytes] = (),
    proofs: Iterable[FamilyProof] = (),
    operator: str = "",
    contact: str = "",
) -> IdentityCertificate:
    """A new identity certificate; `sign` blocks for 1 ms. `WireError` if a value is not allowed."""
    created = int(now)
    members = tuple(sorted({node_id for node_id in family if node_id != identity.id}))
    keys = tuple(sorted(proofs, key=lambda proof: proof.key))
    body = CertificateBody(
        identity.ed25519, identity.ml_dsa, identity.rsa, created, created + CERTIFICATE_LIFE, members, keys,
        operator, contact,
    ).encode()  # fmt: skip
    signatures = sign(labelled(_CERTIFICATE_LABEL, network_id + body), _CERTIFICATE_ALGORITHMS)
    raw = Writer().bytes16(body).bytes(signatures[ED25519]).bytes(signatures[ML_DSA_65]).done()
    # Our own reading is the check that others will be able to read it.
    return SignedCertificate.decode(raw).verify(now, network_id)


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
    protocol_version: int = 1,
    family: Iterable[bytes] = (),
    proofs: Iterable[FamilyProof] = (),
    operator: str = "",
    contact: str = "",
    certificate: IdentityCertificate | None = None,
    after: int = 0,
) -> Descriptor:
    """Make and sign both parts; a given `certificate` is kept as it is, and only the record is new.

    Without an `exit_policy` the relay is no exit. `after` is the revision of the last record: the new one is
    higher even if the clock stood still. `ValueError` or `WireError` say which value is not allowed.
    """
    if certificate is None:
        certificate = make_certificate(
            sign, identity, network_id, now, family=family, proofs=proofs, operator=operator, contact=contact
        )
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
    signatures = sign(labelled(_RECORD_LABEL, network_id + body), (ED25519,))
    raw = Writer().bytes16(body).bytes(signatures[ED25519]).done()
    return SignedRecord.decode(raw).verify(now, network_id, certificate)
