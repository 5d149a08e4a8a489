"""The certificate a relay shows in its TLS handshake.

It is not the node's identity: the link proof binds the two together (docs/protocol.md, "Links"). So it says
nothing about the node, and its only duty is to be RSA-4096.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from backrooms.crypto.keys import RSA_BITS, RSA_EXPONENT, load_private_key, rsa_key_fault
from backrooms.errors import CryptoError

VALID_DAYS = 3650
"""What the tools of common distributions give a self-signed certificate."""
_DAY = 86400


def make_tls_certificate(now: float, name: str = "localhost") -> tuple[bytes, bytes]:
    """A new RSA-4096 key and a self-signed certificate for it: (key PEM PKCS8, certificate PEM).

    `now` is unix time; the certificate starts at midnight UTC the day before, so that it does not tell when
    exactly a node was set up. `name` is its only name, common name and DNS name alike. Takes about a second.
    """
    key = rsa.generate_private_key(RSA_EXPONENT, RSA_BITS)
    start = datetime.fromtimestamp((int(now) // _DAY - 1) * _DAY, UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate.public_bytes(Encoding.PEM),
    )


def check_tls_certificate(der: bytes) -> None:
    """`CryptoError` with the reason unless the certificate's key is RSA of exactly 4,096 bits with e = 65537.

    Names, dates and issuer are not looked at: who the peer is, the link proof says.
    """
    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except Exception:  # many kinds of errors come out of a parser of foreign bytes; all mean the same
        raise CryptoError("TLS certificate cannot be parsed") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise CryptoError("TLS certificate is not RSA")
    fault = rsa_key_fault(key)
    if fault is not None:
        raise CryptoError(f"TLS certificate: {fault}")


def check_tls_files(key_pem: bytes, certificate_pem: bytes) -> None:
    """`ValueError` unless both can be read, belong together, and peers will take the certificate."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        key = load_private_key(key_pem)
    except Exception:  # many kinds come out of a parser, and its words may depend on secret bytes
        raise ValueError("the TLS key or certificate cannot be read") from None
    try:
        check_tls_certificate(certificate.public_bytes(Encoding.DER))
    except CryptoError as error:
        raise ValueError(error.reason) from None
    if not isinstance(key, rsa.RSAPrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("the TLS key and certificate do not belong together")
