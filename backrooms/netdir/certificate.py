"""Identity certificates, before and after verification (docs/protocol.md, "Directory").

    certificate    body u16 and bytes | Ed25519 64 | ML-DSA-65 3309
                   both over ENC("backrooms-identity-certificate-1") | network id 32 | body
    family proof   Ed25519 by the family key over ENC("backrooms-family-1") | network id 32 | relay id 32
    admission      Ed25519 by a charter key over ENC("backrooms-admission-1") | network id 32 | relay id 32 |
                   expires u64

Times are unix seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from backrooms.crypto.keys import (
    ED25519,
    ML_DSA_65,
    SIGNATURE_SIZES,
    PublicIdentity,
    labelled,
    verify_ed25519,
)
from backrooms.errors import CryptoError, RemoteProtocolError, WireError
from backrooms.wire.admission import Admission
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.records import MAX_CERTIFICATE, MAX_CERTIFICATE_LIFE, CertificateBody, FamilyProof

CLOCK_TOLERANCE = 5400
"""Seconds by which clocks may differ before a document counts as expired or from the future."""
CERTIFICATE_LIFE = 180 * 86400
"""Seconds a certificate is made for."""
REVOCATION_LIFE = MAX_CERTIFICATE_LIFE
"""Seconds for which a revocation is kept after its certificate's end: those that a thief made before have ended."""

_CERTIFICATE_LABEL = "backrooms-identity-certificate-1"
_FAMILY_LABEL = "backrooms-family-1"
_ADMISSION_LABEL = "backrooms-admission-1"
_CERTIFICATE_ALGORITHMS = (ED25519, ML_DSA_65)

Signer = Callable[[bytes, Sequence[str]], dict[str, bytes]]
"""`IKeyStore.sign`: signatures by algorithm over a labelled message."""


class DocumentTimeError(RemoteProtocolError):
    """A document that is expired, or from the future. Whoever passed it on may be innocent."""


class NotAdmittedError(RemoteProtocolError):
    """A sound document of a relay that the network file does not let in. Whoever passed it on may have another file."""


class ShelfError(Exception):
    """A document that was kept on disk cannot be read back as it was."""


class Shelf(Protocol):
    """Where certificates lie that need not be in memory."""

    def read(self, place: int, size: int, check: bytes) -> bytes:
        """The bytes that were put there. `ShelfError` when they are not what they were."""


def shelf_check(data: bytes) -> bytes:
    """16 bytes that tell damage; they prove nothing to anybody else."""
    return hashlib.blake2b(data, digest_size=16).digest()


def check_times(what: str, start: int, expires: int, now: float) -> None:
    """`DocumentTimeError` unless `now` lies between the two, give or take `CLOCK_TOLERANCE`."""
    if start > now + CLOCK_TOLERANCE:
        raise DocumentTimeError(f"{what} is {start - now:.0f} seconds from the future")
    if expires < now - CLOCK_TOLERANCE:
        raise DocumentTimeError(f"{what} expired {now - expires:.0f} seconds ago")


class Facts(NamedTuple):
    """What is asked for often of a verified certificate, so that the rest may lie on disk."""

    id: bytes
    ed25519: bytes
    created: int
    expires: int
    digest: bytes
    family: tuple[bytes, ...]
    family_keys: frozenset[bytes]
    operator: str
    contact: str
    admitted: int
    """When the admission expires; 0 where it has none."""


class IdentityCertificate:
    """A verified identity certificate. Its bytes may lie on a shelf; then `raw`, `body` and `identity` read them there.

    `facts` are always in memory. Two are equal when their bytes are.
    """

    __slots__ = ("_body", "_identity", "_place", "_raw", "_shelf", "facts")

    def __init__(
        self,
        identity: PublicIdentity,
        body: CertificateBody,
        family_keys: frozenset[bytes],
        raw: bytes,
        digest: bytes,
    ) -> None:
        self._identity: PublicIdentity | None = identity
        self._body: CertificateBody | None = body
        self._raw: bytes | None = raw
        self._shelf: Shelf | None = None
        self._place = (0, 0, b"")
        self.facts = Facts(
            identity.id, body.ed25519, body.created, body.expires, digest, body.family, family_keys,
            body.operator, body.contact, body.admission.expires if body.admission is not None else 0,
        )  # fmt: skip

    @classmethod
    def shelved(cls, facts: Facts, shelf: Shelf, place: int, size: int, check: bytes) -> IdentityCertificate:
        """A certificate that was verified before it was put on a shelf."""
        certificate = cls.__new__(cls)
        certificate.facts = facts
        certificate.shelve(shelf, place, size, check)
        return certificate

    def shelve(self, shelf: Shelf, place: int, size: int, check: bytes) -> None:
        """Let go of the bytes: they lie on the shelf now. `check` is what tells that they are still the same."""
        self._shelf, self._place = shelf, (place, size, check)
        self._raw = self._body = self._identity = None

    @property
    def place(self) -> tuple[Shelf | None, int, int, bytes]:
        """Where it lies: shelf, place, size and check."""
        return (self._shelf, *self._place)

    @property
    def raw(self) -> bytes:
        """The signed bytes, as they are passed on. `ShelfError` when they cannot be read."""
        raw = self._raw  # another thread may be putting it on a shelf
        if raw is not None:
            return raw
        assert self._shelf is not None
        return self._shelf.read(*self._place)

    @property
    def body(self) -> CertificateBody:
        body = self._body
        return body if body is not None else SignedCertificate.decode(self.raw).body

    @property
    def identity(self) -> PublicIdentity:
        identity = self._identity
        if identity is not None:
            return identity
        body = self.body
        return PublicIdentity(body.ed25519, body.ml_dsa, body.rsa)

    @property
    def family_keys(self) -> frozenset[bytes]:
        """Family keys whose proof holds."""
        return self.facts.family_keys

    @property
    def digest(self) -> bytes:
        """SHA3-256 of the body: what lists name it by. Signing the same body again does not change it."""
        return self.facts.digest

    def has_bytes(self, data: bytes) -> bool:
        """Whether `data` are its signed bytes; reads nothing from a shelf."""
        raw = self._raw
        if raw is not None:
            return raw == data
        _, size, check = self._place
        return size == len(data) and check == shelf_check(data)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IdentityCertificate):
            return NotImplemented
        return self is other or (self.facts == other.facts and self.raw == other.raw)

    def __hash__(self) -> int:
        return hash(self.facts.digest)

    def __repr__(self) -> str:
        return f"IdentityCertificate({self.facts.digest.hex()[:16]})"


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

    def verify(self, now: float, network_id: bytes, *, after: int = 0) -> IdentityCertificate:
        """The certificate, if its keys are well formed, its signatures hold here and it is in date.

        `after` seconds after its end it still counts as in date: that of a revoked relay does. `CryptoError` for keys,
        signatures and family proofs, `DocumentTimeError` for times.
        """
        body = self.body
        check_times("identity certificate", body.created, body.expires + after, now)
        identity = PublicIdentity(body.ed25519, body.ml_dsa, body.rsa)
        message = labelled(_CERTIFICATE_LABEL, network_id + self.body_bytes)
        verify_document("identity certificate", identity, message, self.signatures, _CERTIFICATE_ALGORITHMS)
        for proof in body.proofs:
            try:
                verify_ed25519(proof.key, proof.signature, family_message(network_id, identity.id))
            except CryptoError:
                raise CryptoError("identity certificate with a family proof that does not hold") from None
        keys = frozenset(proof.key for proof in body.proofs)
        return IdentityCertificate(identity, body, keys, self.raw, self.digest)


def verify_document(
    what: str,
    identity: PublicIdentity,
    message: bytes,
    signatures: dict[str, bytes],
    algorithms: Sequence[str],
) -> None:
    """Check the signatures of one document; a `CryptoError` names it."""
    try:
        identity.verify(message, signatures, algorithms)
    except CryptoError as error:
        raise CryptoError(f"{what}: {error.reason}, or it was made for another network") from None


def family_message(network_id: bytes, node_id: bytes) -> bytes:
    """What a family key signs to say that a relay is of its family."""
    return labelled(_FAMILY_LABEL, network_id + node_id)


def admission_message(network_id: bytes, node_id: bytes, expires: int) -> bytes:
    """What a charter key signs to let a relay into its network until `expires`."""
    return labelled(_ADMISSION_LABEL, Writer().bytes(network_id).bytes(node_id).u64(expires).done())


def check_admission(
    admission: Admission | None, node_id: bytes, network_id: bytes, charter: Collection[bytes], now: float
) -> None:
    """`NotAdmittedError` unless one of the charter's keys lets this relay in now."""
    if admission is None:
        raise NotAdmittedError("a relay without the admission that this network asks for")
    if admission.key not in charter:
        raise NotAdmittedError("an admission by a key that is not in this network's charter")
    try:
        verify_ed25519(admission.key, admission.signature, admission_message(network_id, node_id, admission.expires))
    except CryptoError:
        raise NotAdmittedError("an admission whose signature does not hold for this relay and network") from None
    if admission.expires < now - CLOCK_TOLERANCE:
        raise NotAdmittedError(f"an admission that expired {now - admission.expires:.0f} seconds ago")


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
    admission: Admission | None = None,
) -> IdentityCertificate:
    """A new identity certificate; `sign` blocks for 1 ms. `WireError` if a value is not allowed."""
    created = int(now)
    members = tuple(sorted({node_id for node_id in family if node_id != identity.id}))
    keys = tuple(sorted(proofs, key=lambda proof: proof.key))
    body = CertificateBody(
        identity.ed25519, identity.ml_dsa, identity.rsa, created, created + CERTIFICATE_LIFE, members, keys,
        operator, contact, admission,
    ).encode()  # fmt: skip
    signatures = sign(labelled(_CERTIFICATE_LABEL, network_id + body), _CERTIFICATE_ALGORITHMS)
    raw = Writer().bytes16(body).bytes(signatures[ED25519]).bytes(signatures[ML_DSA_65]).done()
    # Our own reading is the check that others will be able to read it.
    return SignedCertificate.decode(raw).verify(now, network_id)
