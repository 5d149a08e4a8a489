"""Descriptors: what is signed, by whom, for which network and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.crypto.keys import ED25519, labelled
from backrooms.errors import CryptoError, RemoteProtocolError, WireError
from backrooms.netdir.descriptor import (
    CERTIFICATE_LIFE,
    CLOCK_TOLERANCE,
    RECORD_LIFE,
    Descriptor,
    DocumentTimeError,
    SignedCertificate,
    SignedRecord,
    family_message,
    make_descriptor,
)
from backrooms.netdir.policy import ExitPolicy
from backrooms.wire.codec import Reader
from backrooms.wire.records import FamilyProof
from tests.keys import NETWORK_ID, NOW, descriptor, fake_relay, identity

RELAY = descriptor(0, exit_policy=ExitPolicy.parse(["accept *:80"]), operator="somebody")
HOUR = 3600


def test_from_bytes() -> None:
    again = Descriptor.from_bytes(RELAY.certificate.raw, RELAY.record_raw, NETWORK_ID, NOW)
    assert again == RELAY
    assert again.id == identity(0).public.id
    assert again.identity == identity(0).public
    assert again.nickname == "relay0"
    assert len(again.fingerprint) == 40
    assert again.subnets() == {"127.0.0.0/16"}
    assert again.is_exit
    assert not again.allows_single_hop
    assert again.exit_policy.allows("1.1.1.1", 80)
    assert again.certificate.body.operator == "somebody"
    assert again.expires == NOW + RECORD_LIFE
    assert repr(again).startswith("Descriptor(relay0, ")


def test_what_is_signed() -> None:
    """The formats of the documentation, checked with the raw keys."""
    reader = Reader(RELAY.certificate.raw)
    body, ed, ml_dsa = reader.bytes16(), reader.bytes(64), reader.bytes(3309)
    reader.end()
    message = labelled("backrooms-identity-certificate-1", NETWORK_ID + body)
    RELAY.identity.verify(message, {"ed25519": ed, "ml-dsa-65": ml_dsa}, ("ed25519", "ml-dsa-65"))
    reader = Reader(RELAY.record_raw)
    body, ed = reader.bytes16(), reader.bytes(64)
    reader.end()
    RELAY.identity.verify(labelled("backrooms-contact-record-1", NETWORK_ID + body), {"ed25519": ed}, ("ed25519",))


@given(st.integers(0), st.integers(0, 7))
def test_any_flipped_bit_is_refused(at: int, bit: int) -> None:
    for raw in (RELAY.certificate.raw, RELAY.record_raw):
        changed = bytearray(raw)
        changed[at % len(raw)] ^= 1 << bit
        certificate = bytes(changed) if raw is RELAY.certificate.raw else RELAY.certificate.raw
        record = bytes(changed) if raw is RELAY.record_raw else RELAY.record_raw
        with pytest.raises(RemoteProtocolError):
            Descriptor.from_bytes(certificate, record, NETWORK_ID, NOW)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_wire_error(data: bytes) -> None:
    for decode in (SignedCertificate.decode, SignedRecord.decode):
        with pytest.raises(WireError):
            decode(data)


def test_sizes_are_bounded() -> None:
    with pytest.raises(WireError, match="12001 bytes"):
        SignedCertificate.decode(bytes(12001))
    with pytest.raises(WireError, match="8001 bytes"):
        SignedRecord.decode(bytes(8001))


def test_another_network() -> None:
    with pytest.raises(CryptoError, match="another network"):
        Descriptor.from_bytes(RELAY.certificate.raw, RELAY.record_raw, bytes(32), NOW)
    elsewhere = descriptor(0, network_id=bytes(32))
    verified = SignedCertificate.decode(RELAY.certificate.raw).verify(NOW, NETWORK_ID)
    with pytest.raises(CryptoError, match="contact record: ed25519"):
        SignedRecord.decode(elsewhere.record_raw).verify(NOW, NETWORK_ID, verified)


def test_record_of_another_relay() -> None:
    with pytest.raises(CryptoError, match="different relays"):
        Descriptor.from_bytes(RELAY.certificate.raw, descriptor(1).record_raw, NETWORK_ID, NOW)


def test_a_record_signed_by_another_key() -> None:
    """Somebody writes a record for our id and signs it with a key of their own."""
    forged = make_forged_record()
    with pytest.raises(CryptoError, match="contact record: ed25519"):
        Descriptor.from_bytes(RELAY.certificate.raw, forged, NETWORK_ID, NOW)


def make_forged_record() -> bytes:
    body = RELAY.record.encode()
    message = labelled("backrooms-contact-record-1", NETWORK_ID + body)
    return len(body).to_bytes(2, "big") + body + identity(1).sign(message, [ED25519])[ED25519]


@pytest.mark.parametrize("missing", ["ed25519", "ml-dsa-65"])
def test_both_signatures_of_a_certificate_count(missing: str) -> None:
    raw = bytearray(RELAY.certificate.raw)
    at = -3309 if missing == "ml-dsa-65" else -3309 - 64
    raw[at] ^= 1
    with pytest.raises(CryptoError, match=f"identity certificate: {missing}"):
        SignedCertificate.decode(bytes(raw)).verify(NOW, NETWORK_ID)


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (NOW - CLOCK_TOLERANCE - 1, "from the future"),
        (NOW + RECORD_LIFE + CLOCK_TOLERANCE + 1, "contact record expired"),
        (NOW + CERTIFICATE_LIFE + CLOCK_TOLERANCE + 1, "identity certificate expired"),
    ],
)
def test_times(now: float, reason: str) -> None:
    with pytest.raises(DocumentTimeError, match=reason):
        Descriptor.from_bytes(RELAY.certificate.raw, RELAY.record_raw, NETWORK_ID, now)


@pytest.mark.parametrize("now", [NOW - CLOCK_TOLERANCE, NOW + RECORD_LIFE + CLOCK_TOLERANCE])
def test_clocks_may_differ(now: float) -> None:
    assert Descriptor.from_bytes(RELAY.certificate.raw, RELAY.record_raw, NETWORK_ID, now) == RELAY


def test_new_record_under_an_expired_certificate() -> None:
    with pytest.raises(DocumentTimeError, match="identity certificate expired"):
        descriptor(0, now=NOW + CERTIFICATE_LIFE + 2 * HOUR, certificate=RELAY.certificate)


def test_daily_record_keeps_the_certificate_and_rises() -> None:
    new = descriptor(0, certificate=RELAY.certificate, after=RELAY.record.revision)
    assert new.certificate is RELAY.certificate
    assert new.record.revision == RELAY.record.revision + 1
    assert descriptor(0, now=NOW + 86400, after=RELAY.record.revision).record.revision == NOW + 86400


def test_family_proof() -> None:
    """A family key vouches for one relay in one network, and for no other."""
    key, node = identity(2), identity(0).public.id

    def proof(network: bytes, relay: bytes) -> FamilyProof:
        signature = key.sign(family_message(network, relay), [ED25519])[ED25519]
        return FamilyProof(key.public.ed25519, signature)

    assert descriptor(0, proofs=(proof(NETWORK_ID, node),)).family_keys == {key.public.ed25519}
    for wrong in (proof(NETWORK_ID, identity(1).public.id), proof(bytes(32), node)):
        with pytest.raises(CryptoError, match="family proof"):
            descriptor(0, proofs=(wrong,))


def test_a_family_without_oneself_in_rising_order() -> None:
    one = descriptor(0, family=(b"\2" * 32, RELAY.id, b"\1" * 32, b"\2" * 32))
    assert one.family == (b"\1" * 32, b"\2" * 32)


@pytest.mark.parametrize(
    "change",
    [
        {"nickname": "a b"},
        {"nickname": "ä"},
        {"address": "tls:example.com:80"},
        {"onion_key": b"short"},
        {"operator": "x" * 201},
        {"operator": "a\nb"},
    ],
)
def test_values_that_are_not_allowed_do_not_get_signed_into_use(change: dict[str, str]) -> None:
    with pytest.raises((ValueError, WireError)):
        descriptor(0, **change)  # type: ignore[arg-type]


def test_roles_follow_the_policy() -> None:
    def made(policy: ExitPolicy | None, single: bool) -> Descriptor:
        keys = identity(0)
        return make_descriptor(
            keys.sign, keys.public, NETWORK_ID, NOW, nickname="a", onion_key=bytes(32),
            addresses=["tls:[::1]:1"], exit_policy=policy, allow_single_hop=single,
        )  # fmt: skip

    assert not made(None, True).is_exit
    assert not made(None, True).allows_single_hop
    assert not made(ExitPolicy.reduced(), False).allows_single_hop
    assert made(ExitPolicy.reduced(), True).allows_single_hop


def test_subnets() -> None:
    assert fake_relay(1, address="tls:[2001:db8:1::1]:1").subnets() == {"2001:db8::/32"}
    assert fake_relay(1, address="other:name").subnets() == frozenset()


def test_digest_names_the_body_not_the_signature() -> None:
    again = descriptor(0, exit_policy=None, operator="somebody")
    assert again.certificate.raw != RELAY.certificate.raw or again == RELAY
    assert again.certificate.digest == RELAY.certificate.digest
