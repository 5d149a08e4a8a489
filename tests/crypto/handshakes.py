"""A relay and a client for tests of the circuit handshake."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from backrooms.crypto.ntor import REFUSED, NtorClient, relay_respond
from backrooms.errors import CryptoError
from tests.crypto.make_vectors import seeded
from tests.crypto.reference import BASE, x25519


class Scripted(random.Random):
    """An Rng that hands out given private values, in order, each exactly as long as asked."""

    def __init__(self, *values: bytes) -> None:
        super().__init__(0)
        self.values = list(values)

    def randbytes(self, n: int, /) -> bytes:
        value = self.values.pop(0)
        assert len(value) == n
        return value


@dataclass
class Relay:
    """A relay with one or two onion keys."""

    relay_id: bytes
    privates: list[bytes]
    network_id: bytes = seeded("network", 32)
    seen: tuple[bytes, ...] = ()
    reply: bytes | None = b"server message"

    @cached_property
    def onion_keys(self) -> list[bytes]:
        return [x25519(private, BASE) for private in self.privates]

    def agree(self, onion_key: bytes, peer: bytes) -> bytes:
        private = self.privates[self.onion_keys.index(onion_key)]
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(peer))

    def make_reply(self, message: bytes) -> bytes | None:
        self.seen += (message,)
        return self.reply

    def respond(self, handshake: bytes, **changes: Any) -> tuple[bytes, bytes]:
        arguments: dict[str, Any] = {
            "relay_id": self.relay_id,
            "agree": self.agree,
            "onion_keys": self.onion_keys,
            "network_id": self.network_id,
            "make_reply": self.make_reply,
            "rng": random.Random(5),
        }
        return relay_respond(handshake, **(arguments | changes))


def make_relay() -> Relay:
    """A relay with a current onion key and its predecessor."""
    return Relay(seeded("relay id", 32), [seeded("b", 32), seeded("b before", 32)])


def start(relay: Relay, /, **changes: Any) -> tuple[NtorClient, bytes]:
    """A client's handshake with this relay, always from the same randomness unless `rng` is given."""
    arguments: dict[str, Any] = {
        "relay_id": relay.relay_id,
        "onion_key": relay.onion_keys[0],
        "network_id": relay.network_id,
        "client_message": b"client message",
        "rng": random.Random(1),
    }
    return NtorClient.start(**(arguments | changes))


def refused(call: Callable[[], object]) -> bool:
    """The call fails in the one way in which handshakes fail, and shows nothing of the cause."""
    with pytest.raises(CryptoError) as caught:
        call()
    assert caught.value.reason == str(caught.value) == REFUSED
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return True
