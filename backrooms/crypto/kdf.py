"""Tagged hashing for handshakes, after Tor's proposal 332 (docs/protocol.md, "Circuit handshake").

Every function takes a `tag` such as `b"backrooms-ntor-...:key_seed"`. It stands, behind its length, in
front of all that is hashed, so that no two uses of SHA3 or SHAKE can ever be given the same input.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

DIGEST_SIZE = 32
"""Bytes of `tagged_hash` and `tagged_mac`."""
STREAM_KEY_SIZE = 32
"""Bytes of a key for `single_use_stream`."""
_ZERO_COUNTER = bytes(16)


def encode(data: bytes) -> bytes:
    """ENC(data): the bytes behind their length as u64, so that joined fields have one reading only."""
    return len(data).to_bytes(8, "big") + data


def tagged_hash(tag: bytes, message: bytes) -> bytes:
    """H(tag, message) = SHA3-256(ENC(tag) | message): 32 bytes."""
    return hashlib.sha3_256(encode(tag) + message).digest()


def tagged_mac(tag: bytes, key: bytes, message: bytes) -> bytes:
    """MAC(tag, key, message) = SHA3-256(ENC(tag) | ENC(key) | message): 32 bytes.

    A keyed prefix is a MAC here because SHA3 does not allow length extension.
    """
    return hashlib.sha3_256(encode(tag) + encode(key) + message).digest()


def tagged_xof(tag: bytes, message: bytes, length: int) -> bytes:
    """XOF(tag, message, length): the first `length` bytes of SHAKE256(ENC(tag) | message)."""
    return hashlib.shake_256(encode(tag) + message).digest(length)


def single_use_stream(key: bytes, data: bytes) -> bytes:
    """AES-256-CTR from a zero counter; its own inverse.

    The key (32 bytes) must come fresh out of `tagged_xof` and serve one message only: the counter always
    starts at zero, so a second message under the same key is a two-time pad.
    """
    encryptor = Cipher(AES256(key), CTR(_ZERO_COUNTER)).encryptor()
    return encryptor.update(data) + encryptor.finalize()
