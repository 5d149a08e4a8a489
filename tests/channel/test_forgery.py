"""Link proofs that are forged, changed, replayed or reflected."""

from __future__ import annotations

import random
from typing import Any

import pytest

from backrooms.channel.events import SignRequest
from backrooms.errors import LocalProtocolError, RemoteProtocolError
from backrooms.interfaces import Binding
from backrooms.wire.cell import CELL_SIZE
from backrooms.wire.codec import Reader
from backrooms.wire.link import Hello, Proof, encode_message, fragment
from tests.channel.links import (
    BINDING,
    INITIATOR,
    NOW,
    OTHER_BINDING,
    RESPONDER,
    initiator,
    message_in,
    responder,
    talk,
)
from tests.keys import identity


@pytest.mark.parametrize("relay", [False, True])
def test_another_relay_than_the_expected_one(relay: bool) -> None:
    """It knows the right knock, answers for the expected id, and has honest keys of its own."""
    a, b = initiator(relay), responder(key=2)
    b.channel = responder(key=RESPONDER).channel
    with pytest.raises(LocalProtocolError, match="another identity"):
        talk(a, b)
    thief = identity(2)

    def lie(proof: Proof) -> Proof:
        keys = thief.public.ed25519 + thief.public.ml_dsa + thief.public.rsa
        return Proof(proof.version, keys, proof.time, proof.ed25519, proof.ml_dsa, proof.rsa)

    assert "another relay" in refused(relay, lie)


def refused(relay: bool, change: Any) -> str:
    """Why the initiator refuses R's proof after `change(proof)`."""
    a, b = initiator(relay), responder()
    b.give(a.channel.output())
    data = b.channel.output()
    size = len(data) if relay else len(data) - CELL_SIZE  # without LINK_OK
    proof = change(Proof.decode(Reader(message_in(data[:size])[1])))
    with pytest.raises(RemoteProtocolError) as caught:
        a.give(b"".join(fragment(encode_message(proof))))
    assert not a.channel.open
    assert a.channel.closed
    return caught.value.reason


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("ed25519", b"", "ed25519 signature is wrong"),
        ("ed25519", bytes(64), "ed25519 signature is wrong"),
        ("ml_dsa", b"", "ml-dsa-65 signature is wrong"),
        ("ml_dsa", bytes(3309), "ml-dsa-65 signature is wrong"),
        ("rsa", b"", "rsa-pss signature is wrong"),
        ("rsa", bytes(512), "rsa-pss signature is wrong"),
        ("time", 60, "ed25519 signature is wrong"),
        ("version", 2, "was not offered"),
        ("identity", b"", "short read"),
    ],
)
def test_every_field_of_a_proof_counts(field: str, value: Any, reason: str) -> None:
    def change(proof: Proof) -> Proof:
        fields = {name: getattr(proof, name) for name in Proof.__slots__}
        return Proof(**(fields | {field: value}))

    assert reason in refused(True, change)


def test_identity_with_trailing_bytes() -> None:
    reason = refused(False, lambda p: Proof(p.version, p.identity + b"x", p.time, p.ed25519, p.ml_dsa, p.rsa))
    assert "trailing" in reason


def test_an_rsa_signature_for_a_client_is_refused() -> None:
    reason = refused(False, lambda p: Proof(p.version, p.identity, p.time, p.ed25519, p.ml_dsa, bytes(512)))
    assert "RSA" in reason


@pytest.mark.parametrize("relay", [False, True])
def test_a_proof_of_another_connection_is_worth_nothing(relay: bool) -> None:
    """Replayed: same nodes, same HELLO length, another TLS session."""
    a, b = initiator(relay), responder()
    b.give(a.channel.output())
    recorded = b.channel.output()
    victim = initiator(relay, binding=OTHER_BINDING)
    with pytest.raises(RemoteProtocolError, match="signature is wrong"):
        victim.give(recorded)
    other_certificate = initiator(relay, binding=Binding(BINDING.kind, BINDING.value, b"d" * 32))
    with pytest.raises(RemoteProtocolError, match="signature is wrong"):
        other_certificate.give(recorded)
    other_kind = initiator(relay, binding=Binding(b"tls-exporteR", BINDING.value, BINDING.certificate))
    with pytest.raises(RemoteProtocolError, match="signature is wrong"):
        other_kind.give(recorded)


def test_the_initiators_proof_replayed() -> None:
    a, b = initiator(relay=True), responder()
    talk(a, b)
    hello, proof = a.sent
    victim = responder(binding=OTHER_BINDING)
    with pytest.raises(RemoteProtocolError, match="knock"):
        victim.give(hello)
    # Somebody who knows the network knocks rightly, and then claims to be the recorded relay.
    victim = responder(binding=OTHER_BINDING)
    victim.give(initiator(relay=True, binding=OTHER_BINDING).channel.output())
    with pytest.raises(RemoteProtocolError, match="signature is wrong"):
        victim.give(proof)


def test_reflection() -> None:
    """A peer that sends everything back convinces neither end."""
    a = initiator(relay=True)
    with pytest.raises(RemoteProtocolError):
        a.give(a.channel.output())
    a, b = initiator(relay=True), responder()
    b.give(a.channel.output())
    with pytest.raises(RemoteProtocolError):
        b.give(b.channel.output())
    assert not b.channel.open


def test_a_link_to_oneself() -> None:
    with pytest.raises(LocalProtocolError, match="oneself"):
        initiator(relay=True, expected=INITIATOR)
    b = responder()
    fake = initiator()
    hello = Hello.decode(Reader(message_in(fake.channel.output())[1]))
    own = Hello(hello.versions, hello.responder_id, hello.responder_id, hello.knock)
    with pytest.raises(RemoteProtocolError, match="oneself"):
        b.give(fragment(encode_message(own))[0])


@pytest.mark.parametrize("relay", [False, True])
def test_every_byte_of_hello_counts(relay: bool) -> None:
    """The responder sees it, or the initiator does in the hash that the proof signs."""
    hello = initiator(relay).channel.output()
    rng = random.Random(3)
    signed = 0
    for place in range(len(hello)):
        changed = bytearray(hello)
        changed[place] ^= 1 << rng.randrange(8)
        b = responder()
        try:
            b.channel.receive(bytes(changed), NOW)
        except RemoteProtocolError:
            assert b.channel.closed
            continue
        signed += 1
        b.collect()
        a = initiator(relay)
        assert a.channel.output() == hello
        with pytest.raises(RemoteProtocolError):
            a.give(b.channel.output())
        assert not a.channel.open
    assert signed == 32  # only the initiator's id is believed until it is proven


@pytest.mark.parametrize("from_initiator", [False, True])
def test_every_byte_of_a_proof_counts(from_initiator: bool) -> None:
    a, b = initiator(relay=True), responder()
    talk(a, b)
    proof = a.sent[1] if from_initiator else b.sent[0]
    request = b.found(SignRequest)[0]
    signatures = identity(RESPONDER).sign(request.message, request.algorithms)
    hello = a.sent[0]
    rng = random.Random(4)
    for place in [*range(100), *range(100, len(proof), 13), len(proof) - 1]:
        changed = bytearray(proof)
        changed[place] ^= 1 << rng.randrange(8)
        if from_initiator:
            victim = responder()
            victim.channel.receive(hello, NOW)
            victim.channel.signed(identity(RESPONDER).public, signatures, NOW)
        else:
            victim = initiator(relay=True)
        with pytest.raises(RemoteProtocolError):
            victim.channel.receive(bytes(changed), NOW)
        assert not victim.channel.open


def test_every_byte_of_link_ok_counts() -> None:
    a, b = initiator(), responder()
    b.give(a.channel.output())
    data = b.channel.output()
    proof, ok = data[:-CELL_SIZE], data[-CELL_SIZE:]
    for place in range(CELL_SIZE):
        changed = bytearray(ok)
        changed[place] ^= 0x10
        a = initiator()
        a.give(proof)
        with pytest.raises(RemoteProtocolError):
            a.give(bytes(changed))
        assert not a.channel.open
