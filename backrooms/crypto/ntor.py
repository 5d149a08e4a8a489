"""The circuit handshake "br-ntor-1": Tor's ntor-v3 (proposal 332) with an ephemeral ML-KEM-768 added.

One message each way (docs/protocol.md, "Circuit handshake"):

    client -> relay   ID 32 | B 32 | X 32 | E 1184 | MSG | MAC 32
    relay -> client   Y 32 | C 1088 | AUTH 32 | REPLY

The length in front of both belongs to the cell (`wire.cell.pack_handshake`). The relay alone is
authenticated, by its onion key B. The keys are safe as long as X25519 *or* ML-KEM-768 is, and stay safe
when B is stolen later. MSG is sealed to B only: it has no forward secrecy, is not post-quantum, and can be
replayed; `crypto.replay` bounds what a replay costs.

With an empty KEM this is ntor-v3 byte for byte, and the tests run it against Tor's published vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import NoReturn, Protocol

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from backrooms.crypto.kdf import (
    DIGEST_SIZE,
    STREAM_KEY_SIZE,
    encode,
    single_use_stream,
    tagged_hash,
    tagged_mac,
    tagged_xof,
)
from backrooms.crypto.replay import ReplayCache
from backrooms.errors import CryptoError, LocalProtocolError, RemoteProtocolError, WireError
from backrooms.interfaces import Rng
from backrooms.wire.codec import Reader

__all__ = ["KEY_MATERIAL", "REFUSED", "NtorClient", "ReplayCache", "relay_respond"]

ID_SIZE = 32
KEY_SIZE = 32
"""Bytes of an X25519 key, public or private, and of what two of them agree on."""
KEY_MATERIAL = 320
"""Bytes of hop keys that a handshake yields."""
REFUSED = "circuit handshake refused"
"""The one reason for every failure: which check failed is nobody's business."""


class Kem(Protocol):
    """A key encapsulation mechanism as the handshake uses it. Wrong bytes raise `ValueError`."""

    public_size: int
    ciphertext_size: int
    seed_size: int

    def keypair(self, seed: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
        """The public key made from `seed`, and the function that opens ciphertexts for it."""

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        """A fresh shared secret and its ciphertext."""


class MlKem768:
    """ML-KEM-768 (FIPS 203). The randomness of `encapsulate` is the library's own."""

    public_size = 1184
    ciphertext_size = 1088
    seed_size = 64

    def keypair(self, seed: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
        private = MLKEM768PrivateKey.from_seed_bytes(seed)
        return private.public_key().public_bytes_raw(), private.decapsulate

    def encapsulate(self, public: bytes) -> tuple[bytes, bytes]:
        return MLKEM768PublicKey.from_public_bytes(public).encapsulate()


@dataclass(frozen=True, slots=True)
class _Params:
    """What makes one handshake of the ntor-v3 family."""

    protocol_id: bytes
    kem: Kem
    key_material: int
    """Bytes of keys that both ends get."""

    def tag(self, name: bytes) -> bytes:
        return self.protocol_id + b":" + name


BR_NTOR_1 = _Params(b"backrooms-ntor-x25519-mlkem768-sha3_256-1", MlKem768(), KEY_MATERIAL)


def _refuse() -> NoReturn:
    raise CryptoError(REFUSED) from None


def _agree(private: X25519PrivateKey, peer: bytes) -> bytes:
    """X25519. A peer key of the wrong length or of low order (an all-zero result) is refused."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:
        _refuse()


def verification(network_id: bytes, purpose: bytes, context: bytes) -> bytes:
    """VER: what both ends must agree on without saying it.

    `purpose` is fixed by the type of the message that carries the handshake, never read out of it.
    """
    if len(network_id) != ID_SIZE:
        raise LocalProtocolError(f"network id of {len(network_id)} bytes")
    return encode(purpose) + encode(network_id) + encode(context)


@dataclass(frozen=True, slots=True)
class _Transcript:
    """The public values of one handshake."""

    relay_id: bytes
    onion_key: bytes
    """B"""
    client_key: bytes
    """X"""
    kem_key: bytes
    """E"""

    def phase1_keys(self, params: _Params, shared: bytes, ver: bytes) -> tuple[bytes, bytes]:
        """The keys of MSG and of MAC; `shared` is X25519 of X and B."""
        secret = b"".join(
            (
                shared,
                self.relay_id,
                self.client_key,
                self.onion_key,
                self.kem_key,
                params.protocol_id,
                encode(ver),
            )
        )
        keys = tagged_xof(params.tag(b"kdf_phase1"), secret, STREAM_KEY_SIZE + DIGEST_SIZE)
        return keys[:STREAM_KEY_SIZE], keys[STREAM_KEY_SIZE:]

    def message_mac(self, params: _Params, key: bytes, message: bytes) -> bytes:
        """MAC over the client's handshake; `message` is encrypted."""
        covered = self.relay_id + self.onion_key + self.client_key + self.kem_key + message
        return tagged_mac(params.tag(b"msg_mac"), key, covered)


@dataclass(frozen=True, slots=True)
class _Final:
    """What the second half gives both ends: how to seal REPLY, how to prove it, and the keys."""

    params: _Params
    transcript: _Transcript
    server_key: bytes
    """Y"""
    ciphertext: bytes
    """C"""
    mac: bytes
    verify: bytes = field(repr=False)
    stream_key: bytes = field(repr=False)
    hop_keys: bytes = field(repr=False)

    @classmethod
    def derive(
        cls,
        params: _Params,
        transcript: _Transcript,
        secrets: tuple[bytes, bytes, bytes],
        server_key: bytes,
        ciphertext: bytes,
        mac: bytes,
        ver: bytes,
    ) -> _Final:
        """`secrets` are the KEM's, X25519 of X and Y, and X25519 of X and B."""
        secret_input = b"".join(
            (
                *secrets,
                transcript.relay_id,
                transcript.onion_key,
                transcript.client_key,
                transcript.kem_key,
                server_key,
                ciphertext,
                params.protocol_id,
                encode(ver),
            )
        )
        seed = tagged_hash(params.tag(b"key_seed"), secret_input)
        keys = tagged_xof(params.tag(b"kdf_final"), seed, STREAM_KEY_SIZE + params.key_material)
        return cls(
            params,
            transcript,
            server_key,
            ciphertext,
            mac,
            verify=tagged_hash(params.tag(b"verify"), secret_input),
            stream_key=keys[:STREAM_KEY_SIZE],
            hop_keys=keys[STREAM_KEY_SIZE:],
        )

    def auth(self, reply: bytes) -> bytes:
        """AUTH: proof that the relay holds B and saw what the client sent; `reply` is encrypted."""
        shown = self.transcript
        return tagged_hash(
            self.params.tag(b"auth_final"),
            b"".join(
                (
                    self.verify,
                    shown.relay_id,
                    shown.onion_key,
                    self.server_key,
                    self.ciphertext,
                    shown.client_key,
                    shown.kem_key,
                    self.mac,
                    encode(reply),
                    self.params.protocol_id,
                    b"Server",
                )
            ),
        )


@dataclass(slots=True, eq=False)
class NtorClient:
    """The client's half: made by `start`, ended by one `finish`."""

    _params: _Params = field(repr=False)
    _transcript: _Transcript = field(repr=False)
    _private: X25519PrivateKey = field(repr=False)
    _decapsulate: Callable[[bytes], bytes] = field(repr=False)
    _static_secret: bytes = field(repr=False)
    _ver: bytes = field(repr=False)
    _mac: bytes = field(repr=False)
    finished: bool = False

    @classmethod
    def start(
        cls,
        relay_id: bytes,
        onion_key: bytes,
        network_id: bytes,
        client_message: bytes,
        rng: Rng,
        purpose: bytes = b"circuit",
        context: bytes = b"",
    ) -> tuple[NtorClient, bytes]:
        """The state to keep, and the handshake to send (1,312 bytes and `client_message`).

        `relay_id`, `onion_key` and `network_id` are 32 bytes each. `context` may be a secret both ends share.
        `CryptoError` if `onion_key` is not a usable X25519 key.
        """
        return cls._start(
            BR_NTOR_1, relay_id, onion_key, verification(network_id, purpose, context), client_message, rng
        )

    @classmethod
    def _start(
        cls, params: _Params, relay_id: bytes, onion_key: bytes, ver: bytes, client_message: bytes, rng: Rng
    ) -> tuple[NtorClient, bytes]:
        if len(relay_id) != ID_SIZE:
            raise LocalProtocolError(f"relay id of {len(relay_id)} bytes")
        private = X25519PrivateKey.from_private_bytes(rng.randbytes(KEY_SIZE))
        kem_key, decapsulate = params.kem.keypair(rng.randbytes(params.kem.seed_size))
        transcript = _Transcript(relay_id, onion_key, private.public_key().public_bytes_raw(), kem_key)
        static_secret = _agree(private, onion_key)
        stream_key, mac_key = transcript.phase1_keys(params, static_secret, ver)
        message = single_use_stream(stream_key, client_message)
        mac = transcript.message_mac(params, mac_key, message)
        handshake = relay_id + onion_key + transcript.client_key + kem_key + message + mac
        return cls(params, transcript, private, decapsulate, static_secret, ver, mac), handshake

    def finish(self, reply: bytes) -> tuple[bytes, bytes]:
        """The hop keys (320 bytes) and the relay's message.

        The relay's message is not read and no key used before AUTH verified. Whatever is wrong is a
        `CryptoError` with one reason. It may be called once, even if it failed: a second call is a
        `LocalProtocolError`.
        """
        if self.finished:
            raise LocalProtocolError("a handshake was finished twice")
        self.finished = True
        reader = Reader(reply)
        try:
            server_key = reader.bytes(KEY_SIZE)
            ciphertext = reader.bytes(self._params.kem.ciphertext_size)
            auth = reader.bytes(DIGEST_SIZE)
            sealed = reader.rest()
            kem_secret = self._decapsulate(ciphertext)
        except (WireError, ValueError):
            _refuse()
        secrets = (kem_secret, _agree(self._private, server_key), self._static_secret)
        final = _Final.derive(self._params, self._transcript, secrets, server_key, ciphertext, self._mac, self._ver)
        if not compare_digest(final.auth(sealed), auth):
            _refuse()
        return final.hop_keys, single_use_stream(final.stream_key, sealed)


def relay_respond(
    handshake: bytes,
    relay_id: bytes,
    agree: Callable[[bytes, bytes], bytes],
    onion_keys: Sequence[bytes],
    network_id: bytes,
    make_reply: Callable[[bytes], bytes | None],
    rng: Rng,
    purpose: bytes = b"circuit",
    context: bytes = b"",
) -> tuple[bytes, bytes]:
    """The relay's half: the reply (1,152 bytes and the relay's message) and the hop keys (320 bytes).

    `agree(onion_key, peer)` is X25519 with the private half of one of `onion_keys`, as `IKeyStore.agree`
    gives it. `make_reply` gets the client's message once its MAC verified and gives the relay's, or None to
    refuse (a replay); a `RemoteProtocolError` it raises refuses too. Whatever is wrong with the handshake
    is a `CryptoError` with one reason; a `KeyStoreError` of `agree` is our own fault and passes through.
    """
    ver = verification(network_id, purpose, context)
    return _respond(BR_NTOR_1, handshake, relay_id, agree, onion_keys, ver, make_reply, rng)


def _respond(
    params: _Params,
    handshake: bytes,
    relay_id: bytes,
    agree: Callable[[bytes, bytes], bytes],
    onion_keys: Sequence[bytes],
    ver: bytes,
    make_reply: Callable[[bytes], bytes | None],
    rng: Rng,
) -> tuple[bytes, bytes]:
    reader = Reader(handshake)
    try:
        transcript = _Transcript(
            relay_id=reader.bytes(ID_SIZE),
            onion_key=reader.bytes(KEY_SIZE),
            client_key=reader.bytes(KEY_SIZE),
            kem_key=reader.bytes(params.kem.public_size),
        )
        message = reader.bytes(reader.remaining - DIGEST_SIZE)
        mac = reader.rest()
    except WireError:
        _refuse()
    if not compare_digest(transcript.relay_id, relay_id):
        _refuse()
    if not any(compare_digest(transcript.onion_key, key) for key in onion_keys):
        _refuse()
    try:
        static_secret = agree(transcript.onion_key, transcript.client_key)
    except (ValueError, CryptoError):
        _refuse()
    if compare_digest(static_secret, bytes(KEY_SIZE)):  # a keystore need not be as strict as the library
        _refuse()
    stream_key, mac_key = transcript.phase1_keys(params, static_secret, ver)
    if not compare_digest(transcript.message_mac(params, mac_key, message), mac):
        _refuse()
    try:
        answer = make_reply(single_use_stream(stream_key, message))
    except RemoteProtocolError:
        _refuse()
    if answer is None:
        _refuse()
    try:
        kem_secret, ciphertext = params.kem.encapsulate(transcript.kem_key)
    except ValueError:
        _refuse()

    private = X25519PrivateKey.from_private_bytes(rng.randbytes(KEY_SIZE))
    server_key = private.public_key().public_bytes_raw()
    secrets = (kem_secret, _agree(private, transcript.client_key), static_secret)
    final = _Final.derive(params, transcript, secrets, server_key, ciphertext, mac, ver)
    sealed = single_use_stream(final.stream_key, answer)
    return server_key + ciphertext + final.auth(sealed) + sealed, final.hop_keys
