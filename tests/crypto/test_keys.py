"""Identities: ids, signatures, the one form of an RSA key, and text."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from backrooms.crypto.keys import (
    ALGORITHMS,
    ED25519,
    ML_DSA_65,
    RSA_PSS,
    SIGNATURE_SIZES,
    OnionKey,
    PrivateIdentity,
    PublicIdentity,
    check_rsa_key,
    fingerprint,
    labelled,
    parse_id,
    text_id,
    verify_ed25519,
)
from backrooms.errors import CryptoError, LocalProtocolError, WireError
from backrooms.wire.codec import Reader, Writer
from tests.keys import fake_public, identity

MESSAGE = labelled("backrooms-test-1", b"a message")


def enc(data: bytes) -> bytes:
    return len(data).to_bytes(8, "big") + data


def rsa_der(bits: int, exponent: int) -> bytes:
    """A public key of this size that nobody has the private half of."""
    key = rsa.RSAPublicNumbers(exponent, (3 << (bits - 2)) + 1).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_id_is_the_hash_of_all_three_keys_behind_their_lengths() -> None:
    public = identity().public
    data = enc(b"backrooms-identity-1") + enc(public.ed25519) + enc(public.ml_dsa) + enc(public.rsa)
    assert public.id == hashlib.sha3_256(data).digest()
    other = PublicIdentity(fake_public(1).ed25519, public.ml_dsa, public.rsa)
    assert other.id != public.id


def test_label_stands_behind_its_length() -> None:
    assert labelled("ab", b"c") == b"\0\0\0\0\0\0\0\2abc"
    assert labelled("a", b"bc") != labelled("ab", b"c")


def test_every_algorithm_signs_and_verifies() -> None:
    keys = identity()
    signatures = keys.sign(MESSAGE, ALGORITHMS)
    assert {name: len(data) for name, data in signatures.items()} == SIGNATURE_SIZES
    keys.public.verify(MESSAGE, signatures, ALGORITHMS)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_any_change_is_refused(name: str) -> None:
    keys = identity()
    signatures = keys.sign(MESSAGE, [name])
    right = signatures[name]
    wrong = [bytes([right[0] ^ 1]) + right[1:], right[:-1] + bytes([right[-1] ^ 0x80]), right[:-1], b""]
    for signature in wrong:
        with pytest.raises(CryptoError, match=f"{name} signature is wrong"):
            keys.public.verify(MESSAGE, {name: signature}, [name])
    with pytest.raises(CryptoError, match=name):
        keys.public.verify(MESSAGE + b"x", signatures, [name])
    with pytest.raises(CryptoError, match=name):
        identity(1).public.verify(MESSAGE, signatures, [name])


def test_one_missing_signature_is_enough_to_fail() -> None:
    keys = identity()
    signatures = keys.sign(MESSAGE, (ED25519, RSA_PSS))
    with pytest.raises(CryptoError, match="ml-dsa-65 signature is missing"):
        keys.public.verify(MESSAGE, signatures, ALGORITHMS)


def test_verifying_nothing_is_our_bug() -> None:
    keys = identity()
    with pytest.raises(LocalProtocolError):
        keys.public.verify(MESSAGE, {}, ())
    with pytest.raises(LocalProtocolError):
        keys.public.verify(MESSAGE, {"none": b""}, ["none"])
    with pytest.raises(LocalProtocolError):
        keys.sign(MESSAGE, ["md5"])


def test_pss_salt_is_32_bytes() -> None:
    """A signature with another salt length does not verify."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    keys = identity()
    other = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=20)
    signature = keys._rsa.sign(MESSAGE, other, hashes.SHA256())
    with pytest.raises(CryptoError, match=RSA_PSS):
        keys.public.verify(MESSAGE, {RSA_PSS: signature}, [RSA_PSS])


@pytest.mark.parametrize(
    ("bits", "exponent", "reason"),
    [
        (2048, 65537, "2048 bits"),
        (3072, 65537, "3072 bits"),
        (4104, 65537, "4104 bits"),
        (4096, 3, "exponent 3"),
    ],
)
def test_rsa_size_and_exponent_are_exact(bits: int, exponent: int, reason: str) -> None:
    with pytest.raises(CryptoError, match=reason):
        check_rsa_key(rsa_der(bits, exponent))


def test_other_keys_are_not_rsa() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(CryptoError, match="not RSA"):
        check_rsa_key(der)
    with pytest.raises(CryptoError, match="not a DER"):
        check_rsa_key(b"\x30\x00")


def test_a_key_that_parses_has_the_checked_form() -> None:
    """What OpenSSL writes for RSA-4096 is exactly what the byte comparison takes."""
    check_rsa_key(identity().public.rsa)
    check_rsa_key(rsa_der(4096, 65537))
    with pytest.raises(CryptoError):
        check_rsa_key(identity().public.rsa + b"\0")


@pytest.mark.parametrize("part", ["ed25519", "ml_dsa", "rsa"])
def test_keys_of_wrong_length(part: str) -> None:
    public = identity().public
    parts = {"ed25519": public.ed25519, "ml_dsa": public.ml_dsa, "rsa": public.rsa}
    for value in (parts[part][:-1], parts[part] + b"\0", b""):
        with pytest.raises(CryptoError):
            PublicIdentity(**{**parts, part: value})


def test_round_trip() -> None:
    writer = Writer()
    identity().public.encode(writer)
    reader = Reader(writer.done())
    assert PublicIdentity.decode(reader) == identity().public
    reader.end()


@given(st.binary(max_size=3000))
def test_any_bytes_decode_or_are_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        PublicIdentity.decode(Reader(data))


def test_right_length_wrong_rsa_is_a_wire_error() -> None:
    with pytest.raises(WireError, match="RSA"):
        PublicIdentity.decode(Reader(bytes(32 + 1952 + 550)))


@given(st.binary(min_size=32, max_size=32))
def test_text_ids_round_trip(node_id: bytes) -> None:
    text = text_id(node_id)
    assert len(text) == 52
    assert text == text.lower()
    assert parse_id(text) == parse_id(text.upper()) == node_id


@pytest.mark.parametrize("text", ["", "a" * 51, "a" * 53, "a" * 51 + "b", "1" * 52, "é" * 52, "a" * 51 + "="])
def test_bad_text_ids(text: str) -> None:
    with pytest.raises(ValueError, match="an id"):
        parse_id(text)


@given(st.text(max_size=60))
def test_any_text_is_an_id_or_a_value_error(text: str) -> None:
    try:
        node_id = parse_id(text)
    except ValueError:
        return
    assert text_id(node_id) == text.lower()


def test_fingerprint_has_tors_form() -> None:
    one = fingerprint(bytes(32))
    assert one == hashlib.sha3_256(enc(b"backrooms-fingerprint-1") + bytes(32)).digest()[:20].hex().upper()
    assert len(one) == 40


def test_private_keys_round_trip_and_never_show() -> None:
    keys = identity()
    again = PrivateIdentity.from_pem(keys.to_pem())
    assert again.public == keys.public
    assert repr(keys) == f"PrivateIdentity({text_id(keys.public.id)})"
    assert repr(keys.public) == f"PublicIdentity({text_id(keys.public.id)})"


def test_damaged_private_keys() -> None:
    pem = identity().to_pem()
    blocks = [block + b"-----END PRIVATE KEY-----\n" for block in pem.split(b"-----END PRIVATE KEY-----\n")[:3]]
    bad = {
        "three private keys": [b"", blocks[0], blocks[0] + blocks[1], pem + blocks[0], pem + b"x", pem[:-5]],
        "cannot be read": [pem.replace(b"MC", b"!!", 1)],
        "must be Ed25519": [blocks[1] + blocks[0] + blocks[2]],
    }
    for reason, texts in bad.items():
        for text in texts:
            with pytest.raises(ValueError, match=reason):
                PrivateIdentity.from_pem(text)


def test_rsa_private_key_with_a_flipped_bit_is_refused() -> None:
    """Wherever the bit is: a signature by a damaged key gives its factors away."""
    end = b"-----END PRIVATE KEY-----\n"
    ed, ml_dsa, rsa_pem, _ = identity().to_pem().split(end)
    der = bytearray(base64.b64decode(b"".join(rsa_pem.split(b"\n")[1:])))
    for position in range(0, len(der), 23):
        der[position] ^= 0x10
        body = base64.encodebytes(der)
        der[position] ^= 0x10
        with pytest.raises(ValueError, match=r"private key|RSA"):
            PrivateIdentity.from_pem(ed + end + ml_dsa + end + b"-----BEGIN PRIVATE KEY-----\n" + body + end)


def test_small_rsa_private_key_is_refused() -> None:
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    small = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    end = b"-----END PRIVATE KEY-----\n"
    ed, ml_dsa, *_ = identity().to_pem().split(end)
    with pytest.raises(ValueError, match="2048 bits"):
        PrivateIdentity.from_pem(ed + end + ml_dsa + end + small)


def test_onion_keys_agree_and_round_trip() -> None:
    a, b = OnionKey.generate(), OnionKey.generate()
    assert a.agree(b.public) == b.agree(a.public)
    assert OnionKey.from_pem(a.to_pem()).public == a.public
    assert repr(a) == f"OnionKey({a.public.hex()})"


@pytest.mark.parametrize("peer", [bytes(32), b"\1" + bytes(31), bytes(31), b"", bytes(33)])
def test_onion_key_refuses_peers_that_give_nothing(peer: bytes) -> None:
    with pytest.raises(CryptoError):
        OnionKey.generate().agree(peer)


def test_onion_key_of_another_kind() -> None:
    with pytest.raises(ValueError, match="X25519"):
        OnionKey.from_pem(identity().to_pem())
    with pytest.raises(ValueError, match="cannot be read"):
        OnionKey.from_pem(b"nothing")


def test_family_key_signature() -> None:
    keys = identity()
    signature = keys.sign(MESSAGE, [ED25519])[ED25519]
    verify_ed25519(keys.public.ed25519, signature, MESSAGE)
    for key, data in (
        (identity(1).public.ed25519, signature),
        (keys.public.ed25519, bytes(64)),
        (b"", signature),
    ):
        with pytest.raises(CryptoError):
            verify_ed25519(key, data, MESSAGE)


def test_ml_dsa_alone_does_not_speak_for_ed25519() -> None:
    keys = identity()
    mixed = {ED25519: keys.sign(b"other", [ED25519])[ED25519], **keys.sign(MESSAGE, [ML_DSA_65])}
    with pytest.raises(CryptoError, match="ed25519"):
        keys.public.verify(MESSAGE, mixed, (ED25519, ML_DSA_65))
