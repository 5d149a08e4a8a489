"""Relays for simulations: really signed, but made fast and the same from the same number.

Only the RSA key, which documents carry and never use, is of the right form and nothing more: making one takes a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519, mldsa

from backrooms.crypto.keys import ED25519, PublicIdentity
from backrooms.netdir.descriptor import Descriptor, make_descriptor
from backrooms.netdir.policy import ExitPolicy

NETWORK_ID = bytes(range(32))
START = 1_800_000_000.0
"""Unix time at which simulations begin."""
ANYWHERE = ExitPolicy.parse(["accept *:*"])
_RSA_HEAD = bytes.fromhex("30820222300d06092a864886f70d01010105000382020f003082020a0282020100")
_RSA_TAIL = bytes.fromhex("0203010001")


class Keys:
    """An identity that signs with Ed25519 and ML-DSA-65."""

    def __init__(self, number: int) -> None:
        seed = hashlib.sha256(f"simulated relay {number}".encode()).digest()
        self._ed = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
        self._ml_dsa = mldsa.MLDSA65PrivateKey.from_seed_bytes(seed)
        modulus = b"\xc0" + (seed * 16)[:510] + b"\x01"
        self.public = PublicIdentity(
            self._ed.public_key().public_bytes_raw(),
            self._ml_dsa.public_key().public_bytes_raw(),
            _RSA_HEAD + modulus + _RSA_TAIL,
        )

    def sign(self, message: bytes, algorithms: Sequence[str]) -> dict[str, bytes]:
        """Signatures by name."""
        return {name: (self._ed if name == ED25519 else self._ml_dsa).sign(message) for name in algorithms}


@cache
def keys(number: int) -> Keys:
    """The keys of a simulated relay."""
    return Keys(number)


def make_relay(number: int, now: float = START, *, after: Descriptor | None = None, **options: Any) -> Descriptor:
    """The descriptor of a simulated relay, in a /16 of its own up to number 50,000; an exit if the number is even.

    `after` is its last one: the certificate stays, and the record is newer. Takes about a millisecond.
    """
    own = keys(number)
    options.setdefault("addresses", [f"tls:{number % 200 + 11}.{number // 200}.0.1:443"])
    options.setdefault("exit_policy", ANYWHERE if number % 2 == 0 else None)
    options.setdefault("capacity", 1_000_000)
    return make_descriptor(
        own.sign,
        own.public,
        NETWORK_ID,
        now,
        nickname=f"sim{number}",
        onion_key=hashlib.sha256(own.public.ed25519).digest(),
        certificate=after.certificate if after is not None else None,
        after=after.record.revision if after is not None else 0,
        **options,
    )
