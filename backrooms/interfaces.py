"""The seams of Backrooms: what plugs into it, and the contract of every sans-IO machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from zope.interface import Attribute, Interface


class Rng(Protocol):
    """Where pure code gets its randomness: `random.SystemRandom()` in a node, `random.Random(seed)` in tests."""

    def randbytes(self, n: int, /) -> bytes: ...

    def random(self) -> float: ...

    def randrange(self, start: int, stop: int, /) -> int: ...

    def uniform(self, a: float, b: float, /) -> float: ...


class Machine(Protocol):
    """A protocol without a network, after aioquic.

    `now` is a monotonic time in seconds. Nothing here blocks, sleeps, logs or draws randomness of its own.
    """

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes from the peer."""

    def receive_eof(self, now: float) -> None:
        """The peer will send nothing more."""

    def events(self) -> list[Any]:
        """What happened since the last call, oldest first."""

    def output(self) -> bytes:
        """At most 64 KiB that may go to the peer now; empty when there is nothing to send."""

    def deadline(self) -> float | None:
        """When `tick` wants to be called, at the latest."""

    def tick(self, now: float) -> None:
        """Time has passed."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What ties a link proof to the one connection it runs in (docs/protocol.md, "Links").

    `kind` names the transport's binding ("tls-exporter"), `value` is 32 bytes that both ends and nobody else
    can compute, `certificate` is the SHA-256 of the server certificate's DER or 32 zeros.
    """

    kind: bytes
    value: bytes
    certificate: bytes = bytes(32)


class ITransport(Interface):
    """A way to move bytes between two nodes, chosen by its name in configuration and descriptors."""

    name = Attribute("The word before the colon in an address, such as `tls`.")
    gate = Attribute("A `transport.gate.Gate` that is asked about accepted connections, or None.")
    on_refused = Attribute("Called with a reason for each accepted connection that did not come up.")

    def configured(network_id: bytes, key_file: Any, certificate_file: Any, require_pq: bool) -> Any:
        """The transport for one network: a plugin is a prototype of it. Without key files it only dials."""

    def parse(address: str) -> Any:
        """The address's parts, or `ValueError` that says what is wrong."""

    def client_endpoint(reactor: Any, address: str) -> Any:
        """An IStreamClientEndpoint. Its connections know `binding()` and call a pull producer when there is room."""

    def server_endpoint(reactor: Any, address: str) -> Any:
        """An IStreamServerEndpoint of the same kind of connections, whose `proven()` gives the gate's ticket back."""


class IKeyStore(Interface):
    """Where a node's long-term keys live. Private keys never leave it."""

    def identity() -> Any:
        """The public identity (`crypto.keys.PublicIdentity`)."""

    def sign(message: bytes, algorithms: Sequence[str]) -> dict[str, bytes]:
        """Signatures by name ("ed25519", "ml-dsa-65", "rsa-pss"). May block for milliseconds: call it in a thread."""

    def agree(onion_key: bytes, peer: bytes) -> bytes:
        """X25519 between the private half of our public `onion_key` (32 bytes) and `peer`'s public key."""

    def onion_keys() -> Sequence[bytes]:
        """Public onion keys we answer for: the current one first, then its predecessor if there is one."""
