"""Node identities: three key pairs that sign together, and their id (docs/protocol.md, "Identities").

    id = SHA3-256(ENC("backrooms-identity-1") | ENC(Ed25519 32) | ENC(ML-DSA-65 1952) | ENC(RSA-4096 DER 550))

The RSA key travels as DER SubjectPublicKeyInfo. With a modulus of exactly 4,096 bits and e = 65537 that has
one form only, so it is checked by comparing bytes, before any parser sees it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)

from backrooms.crypto.kdf import encode, tagged_hash
from backrooms.errors import CryptoError, LocalProtocolError, WireError
from backrooms.wire.codec import Reader, Writer

ED25519 = "ed25519"
ML_DSA_65 = "ml-dsa-65"
RSA_PSS = "rsa-pss"
ALGORITHMS = (ED25519, ML_DSA_65, RSA_PSS)
"""Every signature algorithm of an identity, by the name that `IKeyStore.sign` uses."""
SIGNATURE_SIZES: Mapping[str, int] = {ED25519: 64, ML_DSA_65: 3309, RSA_PSS: 512}
"""Bytes of one signature."""

ID_SIZE = 32
ED25519_SIZE = 32
ML_DSA_SIZE = 1952
RSA_BITS = 4096
RSA_EXPONENT = 65537
RSA_SIZE = 550
"""Bytes of the DER form of an RSA-4096 public key with e = 65537."""

_RSA_PREFIX = bytes.fromhex("30820222300d06092a864886f70d01010105000382020f003082020a0282020100")
_RSA_SUFFIX = bytes.fromhex("0203010001")
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
_TEXT_ID_SIZE = 52
_PEM_END = b"-----END PRIVATE KEY-----\n"


def labelled(label: str, message: bytes) -> bytes:
    """ENC(label) | message: what is signed. Each use of a signature has a label of its own."""
    return encode(label.encode("ascii")) + message


def text_id(node_id: bytes) -> str:
    """A 32-byte id in text: 52 characters of base32, lower case, no padding."""
    return base64.b32encode(node_id).decode("ascii").rstrip("=").lower()


def parse_id(text: str) -> bytes:
    """The 32 bytes behind `text_id`; either case is taken. `ValueError` says what is wrong."""
    if len(text) != _TEXT_ID_SIZE or not text.isascii():
        raise ValueError(f"an id has {_TEXT_ID_SIZE} characters of base32, this has {len(text)}")
    try:
        node_id = base64.b32decode(text.upper() + "====")
    except binascii.Error:
        raise ValueError("an id is base32: letters a-z and digits 2-7") from None
    if text_id(node_id) != text.lower():
        raise ValueError("an id whose unused last bits are not zero")
    return node_id


def fingerprint(node_id: bytes) -> str:
    """The id as programs written for Tor expect it: 40 upper-case hex digits. Never used to identify."""
    return tagged_hash(b"backrooms-fingerprint-1", node_id)[:20].hex().upper()


def check_rsa_key(der: bytes) -> None:
    """`CryptoError` unless `der` is an RSA public key of exactly 4,096 bits with e = 65537, in DER."""
    if (
        len(der) == RSA_SIZE
        and der.startswith(_RSA_PREFIX)
        and der.endswith(_RSA_SUFFIX)
        and der[len(_RSA_PREFIX)] & 0x80
        and der[-len(_RSA_SUFFIX) - 1] & 1
    ):
        return
    raise CryptoError(_rsa_fault(der))


def _rsa_fault(der: bytes) -> str:
    """Why `der` is refused, for the log."""
    try:
        key = load_der_public_key(der)
    except Exception:  # whatever a parser says about foreign bytes, the answer is the same
        return "RSA key is not a DER public key"
    if not isinstance(key, rsa.RSAPublicKey):
        return "public key is not RSA"
    return rsa_key_fault(key) or "RSA key is not in its one DER form"


def rsa_key_fault(key: rsa.RSAPublicKey) -> str | None:
    """What is wrong with the size or exponent of a parsed RSA key; None when it is as it must be."""
    if key.key_size != RSA_BITS:
        return f"RSA key of {key.key_size} bits, exactly {RSA_BITS} are required"
    exponent = key.public_numbers().e
    if exponent != RSA_EXPONENT:
        return f"RSA exponent {exponent}, {RSA_EXPONENT} is required"
    return None


def verify_ed25519(key: bytes, signature: bytes, message: bytes) -> None:
    """`CryptoError` unless `signature` by the raw public `key` holds for a labelled message."""
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise CryptoError("ed25519 signature is wrong") from None


@dataclass(frozen=True)
class PublicIdentity:
    """The three public keys of a node. Malformed keys are a `CryptoError` when it is made."""

    ed25519: bytes = field(repr=False)
    """Raw public key, 32 bytes."""
    ml_dsa: bytes = field(repr=False)
    """Raw ML-DSA-65 public key, 1,952 bytes."""
    rsa: bytes = field(repr=False)
    """DER SubjectPublicKeyInfo, 550 bytes."""

    def __post_init__(self) -> None:
        if len(self.ed25519) != ED25519_SIZE:
            raise CryptoError(f"Ed25519 key of {len(self.ed25519)} bytes")
        if len(self.ml_dsa) != ML_DSA_SIZE:
            raise CryptoError(f"ML-DSA-65 key of {len(self.ml_dsa)} bytes")
        check_rsa_key(self.rsa)

    @cached_property
    def id(self) -> bytes:
        """The node id, 32 bytes."""
        keys = encode(self.ed25519) + encode(self.ml_dsa) + encode(self.rsa)
        return tagged_hash(b"backrooms-identity-1", keys)

    def __repr__(self) -> str:
        return f"PublicIdentity({text_id(self.id)})"

    def encode(self, writer: Writer) -> None:
        """Ed25519 32 | ML-DSA-65 1952 | RSA DER 550."""
        writer.bytes(self.ed25519).bytes(self.ml_dsa).bytes(self.rsa)

    @classmethod
    def decode(cls, reader: Reader) -> PublicIdentity:
        """`WireError` for a short read or keys of the wrong size or form."""
        parts = reader.bytes(ED25519_SIZE), reader.bytes(ML_DSA_SIZE), reader.bytes(RSA_SIZE)
        try:
            return cls(*parts)
        except CryptoError as error:
            raise WireError(error.reason) from None

    def verify(self, message: bytes, signatures: Mapping[str, bytes], algorithms: Sequence[str]) -> None:
        """Check one signature for each of `algorithms`; `CryptoError` names the first that is wrong.

        `message` already starts with its label (`labelled`). Naming no algorithm, or one that does not exist,
        is a `LocalProtocolError`: it would accept anything.
        """
        if not algorithms:
            raise LocalProtocolError("a verification without algorithms")
        for name in algorithms:
            if name not in ALGORITHMS:
                raise LocalProtocolError(f"unknown signature algorithm {name!r}")
            signature = signatures.get(name)
            if signature is None:
                raise CryptoError(f"{name} signature is missing")
            try:
                self._verify_one(name, signature, message)
            except (InvalidSignature, ValueError):
                raise CryptoError(f"{name} signature is wrong") from None

    def _verify_one(self, name: str, signature: bytes, message: bytes) -> None:
        if name == ED25519:
            ed25519.Ed25519PublicKey.from_public_bytes(self.ed25519).verify(signature, message)
        elif name == ML_DSA_65:
            mldsa.MLDSA65PublicKey.from_public_bytes(self.ml_dsa).verify(signature, message)
        else:
            key = load_der_public_key(self.rsa)
            assert isinstance(key, rsa.RSAPublicKey)
            key.verify(signature, message, _PSS, hashes.SHA256())


def load_private_key(pem: bytes) -> object:
    """The private key of one PKCS8 block that we wrote ourselves. `ValueError` if it is damaged.

    OpenSSL's own check of an RSA key proves its factors prime, which takes 250 ms. A file that only we can
    write needs no proof, but damage must show: a damaged key makes signatures that give its factors away.
    """
    try:
        key = load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)
        if isinstance(key, rsa.RSAPrivateKey) and not _is_consistent(key.private_numbers()):
            raise ValueError("the parts of an RSA key do not fit")
    except Exception:  # many kinds come out of a parser, and its words may depend on secret bytes
        raise ValueError("a private key cannot be read") from None
    return key


def _is_consistent(numbers: rsa.RSAPrivateNumbers) -> bool:
    """Whether the parts of an RSA private key all belong to one key."""
    p, q, d, public = numbers.p, numbers.q, numbers.d, numbers.public_numbers
    return (
        min(p, q) > 2
        and p * q == public.n
        and d * public.e % (p - 1) == 1
        and d * public.e % (q - 1) == 1
        and numbers.dmp1 == d % (p - 1)
        and numbers.dmq1 == d % (q - 1)
        and numbers.iqmp * q % p == 1
    )


class PrivateIdentity:
    """The three private keys of a node. Its repr shows the id and nothing else."""

    __slots__ = ("_ed25519", "_ml_dsa", "_rsa", "public")

    def __init__(
        self, ed: ed25519.Ed25519PrivateKey, ml_dsa: mldsa.MLDSA65PrivateKey, rsa_key: rsa.RSAPrivateKey
    ) -> None:
        self._ed25519 = ed
        self._ml_dsa = ml_dsa
        self._rsa = rsa_key
        der = rsa_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.public = PublicIdentity(ed.public_key().public_bytes_raw(), ml_dsa.public_key().public_bytes_raw(), der)

    def __repr__(self) -> str:
        return f"PrivateIdentity({text_id(self.public.id)})"

    @classmethod
    def generate(cls) -> PrivateIdentity:
        """New keys. Takes 0.3 to 1.5 s, nearly all of it for RSA."""
        return cls(
            ed25519.Ed25519PrivateKey.generate(),
            mldsa.MLDSA65PrivateKey.generate(),
            rsa.generate_private_key(RSA_EXPONENT, RSA_BITS),
        )

    def sign(self, message: bytes, algorithms: Sequence[str]) -> dict[str, bytes]:
        """Signatures by name. `message` already starts with its label (`labelled`). Takes up to 2.5 ms."""
        signatures = {}
        for name in algorithms:
            if name == ED25519:
                signatures[name] = self._ed25519.sign(message)
            elif name == ML_DSA_65:
                signatures[name] = self._ml_dsa.sign(message)
            elif name == RSA_PSS:
                signatures[name] = self._rsa.sign(message, _PSS, hashes.SHA256())
            else:
                raise LocalProtocolError(f"unknown signature algorithm {name!r}")
        return signatures

    def to_pem(self) -> bytes:
        """Three unencrypted PKCS8 blocks, in the order Ed25519, ML-DSA-65, RSA."""
        return b"".join(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            for key in (self._ed25519, self._ml_dsa, self._rsa)
        )

    @classmethod
    def from_pem(cls, pem: bytes) -> PrivateIdentity:
        """The inverse of `to_pem`. `ValueError` says what is wrong and never quotes the bytes."""
        blocks = pem.split(_PEM_END)
        if len(blocks) != 4 or blocks[3].strip():
            raise ValueError("three private keys in PEM were expected")
        ed, ml_dsa, rsa_key = (load_private_key(block + _PEM_END) for block in blocks[:3])
        if not (
            isinstance(ed, ed25519.Ed25519PrivateKey)
            and isinstance(ml_dsa, mldsa.MLDSA65PrivateKey)
            and isinstance(rsa_key, rsa.RSAPrivateKey)
        ):
            raise ValueError("the keys must be Ed25519, ML-DSA-65 and RSA, in this order")
        try:
            return cls(ed, ml_dsa, rsa_key)
        except CryptoError as error:
            raise ValueError(error.reason) from None


class OnionKey:
    """An X25519 key of circuit handshakes. Its repr shows the public half only."""

    __slots__ = ("_private", "public")

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"OnionKey({self.public.hex()})"

    @classmethod
    def generate(cls) -> OnionKey:
        return cls(X25519PrivateKey.generate())

    def agree(self, peer: bytes) -> bytes:
        """The 32 shared bytes. `CryptoError` for a key of the wrong size or one that gives only zeros."""
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise CryptoError("X25519 key is not usable") from None

    def to_pem(self) -> bytes:
        """Unencrypted PKCS8."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @classmethod
    def from_pem(cls, pem: bytes) -> OnionKey:
        """The inverse of `to_pem`. `ValueError` says what is wrong and never quotes the bytes."""
        private = load_private_key(pem)
        if not isinstance(private, X25519PrivateKey):
            raise ValueError("the key must be X25519")
        return cls(private)


class CharterKey:
    """An Ed25519 key that lets relays into a network. Its repr shows the public half only."""

    __slots__ = ("_private", "public")

    def __init__(self, private: ed25519.Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"CharterKey({text_id(self.public)})"

    @classmethod
    def generate(cls) -> CharterKey:
        return cls(ed25519.Ed25519PrivateKey.generate())

    def sign(self, message: bytes) -> bytes:
        """A signature over a labelled message."""
        return self._private.sign(message)

    def to_pem(self) -> bytes:
        """Unencrypted PKCS8."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @classmethod
    def from_pem(cls, pem: bytes) -> CharterKey:
        """The inverse of `to_pem`. `ValueError` says what is wrong and never quotes the bytes."""
        private = load_private_key(pem)
        if not isinstance(private, ed25519.Ed25519PrivateKey) or pem.count(_PEM_END) != 1:
            raise ValueError("the key must be Ed25519")
        return cls(private)
