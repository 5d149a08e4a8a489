"""The TLS certificate of a relay: RSA-4096 and nothing that tells who it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from backrooms.crypto.certs import check_tls_certificate, check_tls_files
from backrooms.errors import CryptoError
from tests.keys import NOW, tls_pair


def certificate_of(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    """A certificate for this key. Who signed it does not matter, so something fast does."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    start = datetime.fromtimestamp(NOW, UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key)
    builder = builder.serial_number(5).not_valid_before(start).not_valid_after(start + timedelta(days=1))
    return builder.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(Encoding.DER)


def test_own_certificate_is_taken() -> None:
    key, pem = tls_pair()
    certificate = x509.load_pem_x509_certificate(pem)
    check_tls_certificate(certificate.public_bytes(Encoding.DER))
    check_tls_files(key, pem)


def test_it_tells_nothing_about_the_node() -> None:
    certificate = x509.load_pem_x509_certificate(tls_pair()[1])
    assert certificate.subject == certificate.issuer
    assert certificate.subject.rfc4514_string() == "CN=localhost"
    start = certificate.not_valid_before_utc
    assert (start.hour, start.minute, start.second) == (0, 0, 0)
    age = NOW - start.timestamp()
    assert 86400 <= age < 2 * 86400
    assert b"backrooms" not in certificate.public_bytes(Encoding.DER).lower()


@pytest.mark.parametrize(
    ("bits", "exponent", "reason"),
    [
        (2048, 65537, "2048 bits"),
        (3072, 65537, "3072 bits"),
        (8192, 65537, "8192 bits"),
        (4096, 3, "exponent 3,"),
    ],
)
def test_size_and_exponent_are_exact(bits: int, exponent: int, reason: str) -> None:
    key = rsa.RSAPublicNumbers(exponent, (3 << (bits - 2)) + 1).public_key()
    with pytest.raises(CryptoError, match=f"TLS certificate: RSA .*{reason}"):
        check_tls_certificate(certificate_of(key))


def test_other_kinds_are_refused() -> None:
    with pytest.raises(CryptoError, match="not RSA"):
        check_tls_certificate(certificate_of(ec.generate_private_key(ec.SECP256R1()).public_key()))


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_crypto_error(data: bytes) -> None:
    with pytest.raises(CryptoError):
        check_tls_certificate(data)


def test_cut_certificates_are_a_crypto_error() -> None:
    der = x509.load_pem_x509_certificate(tls_pair()[1]).public_bytes(Encoding.DER)
    for end in range(0, len(der), 61):
        with pytest.raises(CryptoError):
            check_tls_certificate(der[:end])


def test_key_and_certificate_must_belong_together() -> None:
    key, certificate = tls_pair(0)
    with pytest.raises(ValueError, match="together"):
        check_tls_files(tls_pair(1)[0], certificate)
    with pytest.raises(ValueError, match="cannot be read"):
        check_tls_files(certificate, key)
