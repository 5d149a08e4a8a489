"""Everything that can be wrong with a circuit handshake: refused, always in the same way."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from backrooms.crypto import ntor
from backrooms.crypto.kdf import encode, single_use_stream, tagged_xof
from backrooms.crypto.ntor import BR_NTOR_1, MlKem768
from backrooms.errors import LocalProtocolError, WireError
from tests.crypto.handshakes import Relay, make_relay, refused, start
from tests.crypto.make_vectors import seeded
from tests.crypto.reference import BASE, x25519

LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]
"""Points whose product with every clamped scalar is zero (RFC 7748, section 6.1; cr.yp.to/ecdh.html)."""


@pytest.fixture
def relay() -> Relay:
    return make_relay()


# --- hostile: the client's message ----------------------------------------------------------------------


def test_a_flipped_bit_in_every_byte_of_the_handshake_is_refused(relay: Relay) -> None:
    _, handshake = start(relay)
    for position in range(len(handshake)):
        changed = bytearray(handshake)
        changed[position] ^= 1 << position % 8
        assert refused(lambda bad=bytes(changed): relay.respond(bad)), position  # type: ignore[misc]
    assert relay.seen == ()  # the message was never read


def test_the_ignored_bit_of_x25519_is_covered_too(relay: Relay) -> None:
    """X with its top bit set is the same point: only the transcript tells the two apart."""
    client, handshake = start(relay)
    changed = bytearray(handshake)
    changed[95] ^= 0x80
    assert refused(lambda: relay.respond(bytes(changed)))
    reply = bytearray(relay.respond(handshake)[0])
    reply[31] ^= 0x80
    assert refused(lambda: client.finish(bytes(reply)))


def test_a_truncated_or_longer_handshake_is_refused(relay: Relay) -> None:
    _, handshake = start(relay)
    for length in [*range(200), *range(200, len(handshake), 37), len(handshake) - 1]:
        assert refused(lambda size=length: relay.respond(handshake[:size]))  # type: ignore[misc]
    assert refused(lambda: relay.respond(handshake + b"\0"))


@given(st.binary(max_size=2000))
def test_any_bytes_are_refused(data: bytes) -> None:
    relay = Relay(seeded("relay id", 32), [seeded("b", 32)])
    assert refused(lambda: relay.respond(data))
    assert refused(lambda: relay.respond(relay.relay_id + relay.onion_keys[0] + data))
    assert refused(lambda: start(relay)[0].finish(data))


@pytest.mark.parametrize("wrong", ["relay_id", "onion_key", "network_id", "purpose", "context"])
def test_a_handshake_for_somebody_or_something_else_is_refused(relay: Relay, wrong: str) -> None:
    value = x25519(seeded("other", 32), BASE) if wrong == "onion_key" else seeded("other", 32)
    assert refused(lambda: relay.respond(start(relay, **{wrong: value})[1]))
    assert relay.seen == ()


def test_the_keystore_is_never_asked_for_a_key_that_is_not_offered(relay: Relay) -> None:
    """A key that was rotated out is refused even while the keystore still has it."""
    _, handshake = start(relay, onion_key=relay.onion_keys[1])
    asked = []

    def agree(onion_key: bytes, peer: bytes) -> bytes:
        asked.append(onion_key)
        return relay.agree(onion_key, peer)

    assert refused(lambda: relay.respond(handshake, agree=agree, onion_keys=relay.onion_keys[:1]))
    assert refused(lambda: relay.respond(handshake, agree=agree, onion_keys=[]))
    assert asked == []
    relay.respond(handshake, agree=agree)
    assert asked == relay.onion_keys[1:]


def test_names_and_context_cannot_be_shifted_into_each_other(relay: Relay) -> None:
    _, handshake = start(relay, purpose=b"circuit", context=b"x")
    assert refused(lambda: relay.respond(handshake, purpose=b"circuitx", context=b""))
    assert refused(lambda: relay.respond(handshake, purpose=b"circui", context=b"tx"))
    relay.respond(handshake, purpose=b"circuit", context=b"x")


def with_client_key(relay: Relay, client_key: bytes, shared: bytes, kem_key: bytes) -> bytes:
    """A handshake with a right MAC around chosen keys, by somebody who knows what X and B agree on."""
    ver = ntor.verification(relay.network_id, b"circuit", b"")
    transcript = ntor._Transcript(relay.relay_id, relay.onion_keys[0], client_key, kem_key)
    stream_key, mac_key = transcript.phase1_keys(BR_NTOR_1, shared, ver)
    message = single_use_stream(stream_key, b"hello")
    mac = transcript.message_mac(BR_NTOR_1, mac_key, message)
    return relay.relay_id + relay.onion_keys[0] + client_key + kem_key + message + mac


GOOD_KEM_KEY = MLKEM768PrivateKey.from_seed_bytes(bytes(64)).public_key().public_bytes_raw()


def test_a_forger_with_good_keys_would_succeed(relay: Relay) -> None:
    """The next two tests refuse for the key alone: the same construction around good keys is accepted."""
    private = seeded("forger", 32)
    client_key, shared = x25519(private, BASE), x25519(private, relay.onion_keys[0])
    relay.respond(with_client_key(relay, client_key, shared, GOOD_KEM_KEY))
    assert relay.seen == (b"hello",)


@pytest.mark.parametrize("point", LOW_ORDER)
def test_all_zero_x25519_is_refused_at_the_relay(relay: Relay, point: bytes) -> None:
    assert x25519(seeded("any", 32), point) == bytes(32)
    bad = with_client_key(relay, point, bytes(32), GOOD_KEM_KEY)
    assert refused(lambda: relay.respond(bad))
    # a keystore that hands out the zero is caught as well
    assert refused(lambda: relay.respond(bad, agree=lambda onion_key, peer: bytes(32)))
    assert relay.seen == ()


def test_a_bad_encapsulation_key_is_refused(relay: Relay) -> None:
    """Coefficients not below q = 3329 (FIPS 203, section 7.2): each 12-bit one of the 768 in its turn."""
    private = seeded("forger", 32)
    client_key, shared = x25519(private, BASE), x25519(private, relay.onion_keys[0])
    for number in range(0, 768, 7):
        bits = int.from_bytes(GOOD_KEM_KEY[:1152], "little")
        for coefficient in (3329, 4095):
            changed = bits & ~(0xFFF << 12 * number) | coefficient << 12 * number
            bad = changed.to_bytes(1152, "little") + GOOD_KEM_KEY[1152:]
            handshake = with_client_key(relay, client_key, shared, bad)
            assert refused(lambda forged=handshake: relay.respond(forged))  # type: ignore[misc]


def test_a_reply_that_is_not_given_refuses(relay: Relay) -> None:
    _, handshake = start(relay)
    relay.reply = None
    assert refused(lambda: relay.respond(handshake))

    def malformed(message: bytes) -> bytes:
        raise WireError("unknown extension 9")

    assert refused(lambda: relay.respond(handshake, make_reply=malformed))

    def bug(message: bytes) -> bytes:
        raise ValueError("a bug of ours")

    with pytest.raises(ValueError, match="a bug of ours"):  # and is not blamed on the client
        relay.respond(handshake, make_reply=bug)


# --- hostile: the relay's message -----------------------------------------------------------------------


def test_a_flipped_bit_in_every_byte_of_the_reply_is_refused(relay: Relay) -> None:
    _, handshake = start(relay)
    reply, keys = relay.respond(handshake)
    for position in range(len(reply)):
        changed = bytearray(reply)
        changed[position] ^= 1 << position % 8
        assert refused(lambda bad=bytes(changed): start(relay)[0].finish(bad)), position  # type: ignore[misc]
    assert start(relay)[0].finish(reply)[0] == keys


def test_a_truncated_or_longer_reply_is_refused(relay: Relay) -> None:
    reply, _ = relay.respond(start(relay)[1])
    for length in [*range(0, len(reply), 31), len(reply) - 1]:
        assert refused(lambda size=length: start(relay)[0].finish(reply[:size]))  # type: ignore[misc]
    assert refused(lambda: start(relay)[0].finish(reply + b"\0"))


def test_a_reply_to_another_handshake_is_refused(relay: Relay) -> None:
    reply, _ = relay.respond(start(relay, rng=random.Random(1))[1])
    assert refused(lambda: start(relay, rng=random.Random(2))[0].finish(reply))


@pytest.mark.parametrize("point", LOW_ORDER)
def test_all_zero_x25519_is_refused_at_the_client(relay: Relay, point: bytes) -> None:
    """A relay that sends a low-order Y with a right AUTH, and a descriptor with a low-order B."""
    client, handshake = start(relay)
    transcript = client._transcript
    static = relay.agree(transcript.onion_key, transcript.client_key)
    kem_secret, ciphertext = MlKem768().encapsulate(transcript.kem_key)
    ver = ntor.verification(relay.network_id, b"circuit", b"")
    secrets = (kem_secret, bytes(32), static)
    final = ntor._Final.derive(BR_NTOR_1, transcript, secrets, point, ciphertext, handshake[-32:], ver)
    assert refused(lambda: client.finish(point + ciphertext + final.auth(b"")))
    assert refused(lambda: start(relay, onion_key=point))


def test_an_imposter_without_the_onion_key_is_refused(relay: Relay) -> None:
    """Whoever has everything but b cannot make AUTH: a relay with another b answers as if B were its own."""
    client, handshake = start(relay)
    imposter = Relay(relay.relay_id, [seeded("imposter", 32)], relay.network_id)
    assert refused(
        lambda: imposter.respond(
            handshake, agree=lambda _, peer: x25519(imposter.privates[0], peer), onion_keys=relay.onion_keys
        )
    )
    transcript = client._transcript
    y = seeded("imposter y", 32)
    kem_secret, ciphertext = MlKem768().encapsulate(transcript.kem_key)
    for static in (bytes(32), x25519(imposter.privates[0], transcript.client_key)):
        secrets = (kem_secret, x25519(y, transcript.client_key), static)
        final = ntor._Final.derive(
            BR_NTOR_1,
            transcript,
            secrets,
            x25519(y, BASE),
            ciphertext,
            handshake[-32:],
            ntor.verification(relay.network_id, b"circuit", b""),
        )
        reply = x25519(y, BASE) + ciphertext + final.auth(b"")
        fresh, _ = start(relay)
        assert refused(lambda client=fresh, bad=reply: client.finish(bad))  # type: ignore[misc]


def test_an_unusable_onion_key_is_refused_and_our_own_mistakes_are_not_blamed_on_a_peer(relay: Relay) -> None:
    assert refused(lambda: start(relay, onion_key=bytes(31)))
    for wrong in ({"relay_id": bytes(31)}, {"network_id": b""}):
        with pytest.raises(LocalProtocolError):
            start(relay, **wrong)
    with pytest.raises(LocalProtocolError):
        relay.respond(start(relay)[1], network_id=bytes(33))


def test_tags_keep_uses_apart() -> None:
    """The tag stands behind its length: no part of a message can slide into it."""
    assert tagged_xof(b"ab", b"c", 32) != tagged_xof(b"a", b"bc", 32)
    assert encode(b"") + encode(b"a") != encode(b"a") + encode(b"")
