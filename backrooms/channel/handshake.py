"""The link handshake: who proves what to whom inside a fresh connection (docs/protocol.md, "Links").

    I -> R  HELLO                     versions, whom I wants, who I is (relays only), the knock
    R -> I  PROOF                     only after a right knock
    I -> R  PROOF                     relays only, only after R's proof has been verified
    R -> I  LINK_OK                   the link is open

A proof is a set of signatures over what ties it to this connection, these two nodes and every byte sent so far.
Until the handshake is done nothing but these messages is read.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import NoReturn

from backrooms.channel.events import SignRequest
from backrooms.crypto.kdf import encode
from backrooms.crypto.keys import ED25519, ML_DSA_65, RSA_PSS, PublicIdentity, labelled
from backrooms.errors import LocalProtocolError, RemoteProtocolError
from backrooms.interfaces import Binding
from backrooms.wire.cell import CellCommand, unpack_cell
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.link import (
    MAX_HANDSHAKE_MESSAGE,
    Hello,
    LinkMessageType,
    LinkOk,
    Message,
    Proof,
    Reassembler,
    encode_message,
    fragment,
    split_message,
)

PROOF_LABEL = "backrooms-link-proof-1"
KNOCK_LABEL = b"backrooms-knock"
NOBODY = bytes(32)
"""The id that a client gives."""
_MINUTE = 60


class Step(Enum):
    """What a handshake waits for."""

    HELLO = auto()
    PROOF = auto()
    SIGNATURE = auto()
    LINK_OK = auto()
    DONE = auto()


def knock(network_id: bytes, responder_id: bytes, binding: Binding) -> bytes:
    """Shows that one knows the network and the responder's id, in this connection only: 32 bytes."""
    key = hashlib.sha3_256(KNOCK_LABEL + network_id + responder_id).digest()
    return hmac.digest(key, binding.value, "sha256")


def proof_message(
    role: bytes,
    version: int,
    binding: Binding,
    network_id: bytes,
    responder_id: bytes,
    initiator_id: bytes,
    initiator_sent: bytes,
    responder_sent: bytes,
    time: int,
) -> bytes:
    """The bytes that a proof signs. `role` is b"R" or b"I"; the two `sent` are SHA-256 hashes."""
    writer = Writer().bytes(role).u16(version).bytes(encode(binding.kind)).bytes(encode(binding.value))
    writer.bytes(network_id).bytes(responder_id).bytes(initiator_id).bytes(binding.certificate)
    writer.bytes(initiator_sent).bytes(responder_sent).u64(time)
    return labelled(PROOF_LABEL, writer.done())


class Handshake:
    """One side of a link handshake. `RemoteProtocolError` out of any method ends it.

    `outbox` gets whole cells to send, `request` the signature that is wanted. Once `step` is DONE, `version`,
    `peer_id` and `skew` are final.
    """

    def __init__(
        self,
        binding: Binding,
        network_id: bytes,
        responder_id: bytes,
        initiator_id: bytes,
        versions: Sequence[int],
        wall: int,
        initiator: bool,
    ) -> None:
        """`initiator_id` is `NOBODY` for a client, and not yet known by a responder. `wall` is unix time."""
        if len(network_id) != 32 or len(responder_id) != 32 or len(initiator_id) != 32:
            raise LocalProtocolError("network and node ids have 32 bytes")
        if initiator and initiator_id == responder_id:
            raise LocalProtocolError("a link to oneself")
        self.step = Step.PROOF if initiator else Step.HELLO
        self.initiator = initiator
        self.version = 0
        self.peer_id: bytes | None = responder_id if initiator else None
        """None for a client."""
        self.skew: int | None = None
        """Seconds, in whole minutes, that the peer's clock is ahead of ours; None when it does not tell."""
        self.outbox: list[bytes] = []
        self.request: SignRequest | None = None
        self._binding = binding
        self._network_id = network_id
        self._responder_id = responder_id
        self._initiator_id = initiator_id
        self._versions = tuple(versions)
        self._time = max(0, wall) // _MINUTE * _MINUTE
        self._sent = hashlib.sha256()
        self._received = hashlib.sha256()
        self._reading = hashlib.sha256()
        """As `_received`, with the cells of the message that is not complete yet."""
        self._reassembler = Reassembler(MAX_HANDSHAKE_MESSAGE)
        if initiator:
            right = knock(network_id, responder_id, binding)
            self._send(Hello(self._versions, responder_id, initiator_id, right))

    def receive(self, cell: bytes) -> None:
        """Take one whole cell."""
        if self.step is Step.SIGNATURE:
            self._refuse("a cell before the link proof")
        circuit_id, command, payload = unpack_cell(cell)
        if circuit_id != 0 or command != CellCommand.MESSAGE:
            self._refuse("not a link handshake")
        self._reading.update(cell)
        message = self._reassembler.feed(payload)
        if message is None:
            return
        kind, payload = split_message(message)
        step = self.step
        if kind != _EXPECTED.get(step):
            self._refuse(f"link message {kind} while waiting for {step.name}")
        reader = Reader(payload)
        if step is Step.HELLO:
            self._hello(Hello.decode(reader))
            self._absorb()
            self._ask()
        elif step is Step.PROOF:
            # The hash of what the peer sent does not have the proof itself in it yet.
            self._verify(Proof.decode(reader))
            self._absorb()
            self._verified()
        else:
            LinkOk.decode(reader)
            self.step = Step.DONE

    def signed(self, identity: PublicIdentity, signatures: Mapping[str, bytes]) -> None:
        """Take what our identity answered to `request` and send our proof."""
        if self.step is not Step.SIGNATURE or self.request is None:
            raise LocalProtocolError("a signature that was not asked for")
        mine = self._initiator_id if self.initiator else self._responder_id
        if not hmac.compare_digest(identity.id, mine):
            raise LocalProtocolError("signed by another identity than the link was made for")
        missing = [name for name in self.request.algorithms if name not in signatures]
        if missing:
            raise LocalProtocolError(f"signatures missing: {', '.join(missing)}")
        self.request = None
        keys = Writer()
        identity.encode(keys)
        rsa = signatures[RSA_PSS] if RSA_PSS in self._algorithms else b""
        self._send(Proof(self.version, keys.done(), self._time, signatures[ED25519], signatures[ML_DSA_65], rsa))
        if self.initiator:
            self.step = Step.LINK_OK
        elif self._initiator_id == NOBODY:
            self._accept()
        else:
            self.step = Step.PROOF

    def _hello(self, hello: Hello) -> None:
        """Check the knock before anything of ours is used or shown."""
        right = knock(self._network_id, self._responder_id, self._binding)
        known = hmac.compare_digest(hello.responder_id, self._responder_id)
        if not hmac.compare_digest(hello.knock, right) or not known:
            self._refuse("wrong knock: another network, another relay, or not one of us")
        common = set(hello.versions) & set(self._versions)
        if not common:
            self._refuse(f"no common link version: the peer speaks {_list(hello.versions)}, we {_list(self._versions)}")
        if hello.initiator_id == self._responder_id:
            self._refuse("a link to oneself")
        self.version = max(common)
        self._initiator_id = hello.initiator_id
        self.peer_id = None if hello.initiator_id == NOBODY else hello.initiator_id

    def _verify(self, proof: Proof) -> None:
        """Check the peer's proof; every signature must fit."""
        if self.initiator:
            if proof.version not in self._versions:
                self._refuse(f"link version {proof.version} was not offered")
            self.version = proof.version
        elif proof.version != self.version:
            self._refuse(f"proof for link version {proof.version} instead of {self.version}")
        reader = Reader(proof.identity)
        identity = PublicIdentity.decode(reader)
        reader.end()
        expected = self.peer_id
        if expected is None or not hmac.compare_digest(identity.id, expected):
            self._refuse("the peer is another relay than the expected one")
        signatures = {ED25519: proof.ed25519, ML_DSA_65: proof.ml_dsa}
        if RSA_PSS in self._algorithms:
            signatures[RSA_PSS] = proof.rsa
        elif proof.rsa:
            self._refuse("an RSA signature for a client")
        role = b"R" if self.initiator else b"I"
        message = self._transcript(role, self._received.digest(), self._sent.digest(), proof.time)
        identity.verify(message, signatures, self._algorithms)
        if proof.time:
            self.skew = proof.time - self._time

    def _verified(self) -> None:
        if not self.initiator:
            self._accept()
        elif self._initiator_id == NOBODY:
            self.step = Step.LINK_OK
        else:
            self._ask()

    def _accept(self) -> None:
        self._send(LinkOk())
        self.step = Step.DONE

    def _ask(self) -> None:
        """Ask for the signatures of our own proof."""
        role = b"I" if self.initiator else b"R"
        message = self._transcript(role, self._sent.digest(), self._received.digest(), self._time)
        self.request = SignRequest(message, self._algorithms)
        self.step = Step.SIGNATURE

    def _transcript(self, role: bytes, prover_sent: bytes, verifier_sent: bytes, time: int) -> bytes:
        initiator_sent, responder_sent = prover_sent, verifier_sent
        if role == b"R":
            initiator_sent, responder_sent = verifier_sent, prover_sent
        return proof_message(
            role,
            self.version,
            self._binding,
            self._network_id,
            self._responder_id,
            self._initiator_id,
            initiator_sent,
            responder_sent,
            time,
        )

    @property
    def _algorithms(self) -> tuple[str, ...]:
        """Clients are spared the RSA signature: it costs a relay more than all the rest."""
        return (ED25519, ML_DSA_65) if self._initiator_id == NOBODY else (ED25519, ML_DSA_65, RSA_PSS)

    def _send(self, message: Message) -> None:
        for cell in fragment(encode_message(message)):
            self._sent.update(cell)
            self.outbox.append(cell)

    def _absorb(self) -> None:
        """Put the cells of the message that has just been read into the hash of what the peer sent."""
        self._received = self._reading.copy()

    def _refuse(self, reason: str) -> NoReturn:
        raise RemoteProtocolError(reason)


_EXPECTED = {
    Step.HELLO: LinkMessageType.HELLO,
    Step.PROOF: LinkMessageType.PROOF,
    Step.LINK_OK: LinkMessageType.LINK_OK,
}


def _list(versions: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(versions)))
