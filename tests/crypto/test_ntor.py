"""The circuit handshake: Tor's ntor-v3 vector, our own vectors, and what a good handshake gives."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from backrooms.crypto import ntor
from backrooms.crypto.kdf import encode
from backrooms.crypto.ntor import BR_NTOR_1, KEY_MATERIAL, MlKem768, NtorClient
from backrooms.crypto.onion import HOP_KEY_BYTES
from backrooms.errors import LocalProtocolError
from backrooms.wire.cell import PAYLOAD_SIZE, pack_handshake, unpack_handshake
from tests.crypto.handshakes import Relay, Scripted, make_relay, refused, start
from tests.crypto.make_vectors import PROTOID, seeded
from tests.crypto.reference import Ntor

VECTORS = Path(__file__).parent.parent / "vectors"


@pytest.fixture
def relay() -> Relay:
    return make_relay()


class NoKem:
    """The KEM of ntor-v3: none."""

    public_size = ciphertext_size = seed_size = 0

    def keypair(self, seed: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
        return b"", lambda ciphertext: b""

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        return b"", b""


class RecordedKem(MlKem768):
    """ML-KEM-768 whose next encapsulation is known, since the library draws its own randomness."""

    def __init__(self, shared: bytes, ciphertext: bytes) -> None:
        self.recorded = shared, ciphertext

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        super().encapsulate(public)  # the key must still be a good one
        return self.recorded


# --- vectors --------------------------------------------------------------------------------------------


def test_without_a_kem_it_is_tors_ntor_v3() -> None:
    loaded = json.loads((VECTORS / "tor_ntor_v3.json").read_text())
    v = {name: bytes.fromhex(value) for name, value in loaded["vector"].items()}
    params = ntor._Params(loaded["protoid"].encode(), NoKem(), len(v["keys_256"]))
    relay = Relay(v["ID"], [v["b"]], reply=v["server_message"])
    onion_key = relay.onion_keys[0]

    client, handshake = NtorClient._start(
        params, v["ID"], onion_key, v["verification"], v["client_message"], Scripted(v["x"], b"")
    )
    assert handshake == v["client_handshake"]
    reply, keys = ntor._respond(
        params,
        handshake,
        v["ID"],
        relay.agree,
        relay.onion_keys,
        v["verification"],
        relay.make_reply,
        Scripted(v["y"]),
    )
    assert relay.seen == (v["client_message"],)
    assert reply == v["server_handshake"]
    assert keys == v["keys_256"]
    assert client.finish(reply) == (v["keys_256"], v["server_message"])


def test_the_reference_is_tors_ntor_v3_too() -> None:
    loaded = json.loads((VECTORS / "tor_ntor_v3.json").read_text())
    v = {name: bytes.fromhex(value) for name, value in loaded["vector"].items()}
    slow = Ntor(loaded["protoid"].encode(), v["ID"], v["b"], v["x"], v["y"], v["verification"])
    handshake = slow.client(b"", v["client_message"])
    assert handshake == v["client_handshake"]
    made = slow.relay(b"", handshake[-32:], b"", b"", v["server_message"], len(v["keys_256"]))
    assert made == (v["server_handshake"], v["keys_256"])


@pytest.mark.parametrize("number", [0, 1])
def test_own_frozen_vectors(number: int) -> None:
    loaded = json.loads((VECTORS / "backrooms_ntor.json").read_text())
    assert loaded["protoid"].encode() == BR_NTOR_1.protocol_id == PROTOID
    v = {name: bytes.fromhex(value) for name, value in loaded["vectors"][number].items()}
    assert MLKEM768PrivateKey.from_seed_bytes(v["kem_seed"]).decapsulate(v["kem_ciphertext"]) == v["kem_secret"]
    relay = Relay(v["ID"], [v["b"]], v["network_id"], reply=v["server_message"])
    client, handshake = start(
        relay,
        client_message=v["client_message"],
        rng=Scripted(v["x"], v["kem_seed"]),
        purpose=v["purpose"],
        context=v["context"],
    )
    assert handshake == v["client_handshake"]
    params = ntor._Params(PROTOID, RecordedKem(v["kem_secret"], v["kem_ciphertext"]), KEY_MATERIAL)
    ver = ntor.verification(v["network_id"], v["purpose"], v["context"])
    made = ntor._respond(
        params, handshake, v["ID"], relay.agree, relay.onion_keys, ver, relay.make_reply, Scripted(v["y"])
    )
    assert made == (v["server_handshake"], v["hop_keys"])
    assert relay.seen == (v["client_message"],)
    assert client.finish(v["server_handshake"]) == (v["hop_keys"], v["server_message"])


def test_random_handshake_against_the_reference() -> None:
    rng = random.SystemRandom()
    b, x, y, relay_id, network = (rng.randbytes(32) for _ in range(5))
    seed, message, answer = rng.randbytes(64), rng.randbytes(100), rng.randbytes(50)
    relay = Relay(relay_id, [b], network, reply=answer)
    client, handshake = start(relay, client_message=message, rng=Scripted(x, seed))
    reply, keys = relay.respond(handshake, rng=Scripted(y))

    private = MLKEM768PrivateKey.from_seed_bytes(seed)
    e, ciphertext = private.public_key().public_bytes_raw(), reply[32:1120]
    slow = Ntor(PROTOID, relay_id, b, x, y, encode(b"circuit") + encode(network) + encode(b""))
    assert handshake == slow.client(e, message)
    shared = private.decapsulate(ciphertext)
    assert (reply, keys) == slow.relay(e, handshake[-32:], shared, ciphertext, answer, 320)
    assert client.finish(reply) == (keys, answer)


# --- what a good one gives ------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=40))
def test_messages_and_keys_arrive(message: bytes, answer: bytes, context: bytes) -> None:
    relay = Relay(seeded("relay id", 32), [seeded("b", 32)], reply=answer)
    client, handshake = start(relay, client_message=message, context=context)
    assert len(handshake) == 1312 + len(message)
    reply, keys = relay.respond(handshake, context=context)
    assert len(reply) == 1152 + len(answer)
    assert relay.seen == (message,)
    assert client.finish(reply) == (keys, answer)
    assert len(keys) == KEY_MATERIAL == HOP_KEY_BYTES


def test_both_messages_fit_a_cell(relay: Relay) -> None:
    _, handshake = start(relay)
    for sent in (handshake, relay.respond(handshake)[0]):
        payload = pack_handshake(sent)
        assert len(payload) <= PAYLOAD_SIZE
        assert unpack_handshake(payload.ljust(PAYLOAD_SIZE, b"\0")) == sent


def test_the_predecessor_of_the_onion_key_is_still_served(relay: Relay) -> None:
    client, handshake = start(relay, onion_key=relay.onion_keys[1])
    reply, keys = relay.respond(handshake)
    assert client.finish(reply)[0] == keys


def test_every_handshake_has_fresh_keys(relay: Relay) -> None:
    """A relay that answers the same handshake twice makes other keys: its share is new."""
    client, handshake = start(relay)
    replies = [relay.respond(handshake, rng=random.Random(seed)) for seed in (1, 1, 2)]
    assert len({keys for _, keys in replies}) == 3  # even with one X25519 share ML-KEM alone makes the difference
    assert client.finish(replies[0][0])[0] == replies[0][1]
    assert start(relay, rng=random.Random(2))[1] != handshake
    assert start(relay, rng=random.Random(1))[1] == handshake


def test_one_use_only(relay: Relay) -> None:
    client, handshake = start(relay)
    reply, _ = relay.respond(handshake)
    client.finish(reply)
    with pytest.raises(LocalProtocolError, match="twice"):
        client.finish(reply)
    client, handshake = start(relay)
    assert refused(lambda: client.finish(b""))
    with pytest.raises(LocalProtocolError, match="twice"):
        client.finish(relay.respond(handshake)[0])


def test_secrets_are_not_shown(relay: Relay) -> None:
    client, _ = start(relay, context=b"a secret that both ends share")
    assert repr(client) == "NtorClient(finished=False)"
    final = ntor._Final.derive(BR_NTOR_1, ntor._Transcript(b"", b"", b"", b""), (b"", b"", b""), b"", b"", b"", b"")
    for name in ("verify", "stream_key", "hop_keys"):
        assert name not in repr(final)
        assert repr(getattr(final, name))[2:-1] not in repr(final)
