"""Makes the frozen vectors backrooms_*.json out of the slow implementation in reference.py.

`python -m tests.crypto.make_vectors tests/vectors` writes them again. backrooms_uivg.json comes out the same;
in backrooms_ntor.json the KEM's ciphertext is random, so what follows from it differs every time.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from tests.crypto.reference import BODY, Circuit, Ntor

PROTOID = b"backrooms-ntor-x25519-mlkem768-sha3_256-1"
HOPS = 4
CELLS = 300


def seeded(label: str, length: int) -> bytes:
    """Bytes that the vectors use as keys and bodies: SHAKE256 of a label."""
    return hashlib.shake_256(b"backrooms test vector " + label.encode()).digest(length)


def uivg_plan(direction: str, index: int) -> tuple[int, int, bytes]:
    """Hop (from 0), command and body of a cell of the frozen vectors."""
    hop = 0 if index < 2 else seeded(f"{direction} hop {index}", 1)[0] % HOPS
    command = 2 if direction == "forward" and index < 16 else 1
    return hop, command, seeded(f"{direction} body {index}", BODY)


def links_digest(links: list[bytes]) -> str:
    """What the vectors keep of a cell: a hash of its tag and body on every link, the client's link first."""
    return hashlib.sha3_256(b"".join(links)).hexdigest()[:32]


def uivg_vectors(cells: int = CELLS) -> dict[str, Any]:
    """What backrooms_uivg.json holds, or the first `cells` of each direction."""
    circuit = Circuit([seeded(f"hop {i}", 320) for i in range(HOPS)])
    result: dict[str, Any] = {
        "source": "tests/crypto/make_vectors.py; MIT, as the project",
        "what": "UIV-G on a circuit of 4 hops, cells of 4096 bytes. X[l] = the first l bytes of "
        "SHAKE256('backrooms test vector ' | X). Hop keys of hop i (from 0): 'hop i'[320]. Body of cell i: "
        "'DIRECTION body i'[4072]. Cells: hop (from 0), command, SHA3-256 (first 16 bytes) of tag and body "
        "on every link, the client's link first.",
    }
    ways: tuple[tuple[str, Callable[[int, int, bytes], list[bytes]]], ...] = (
        ("forward", circuit.forward),
        ("backward", circuit.backward),
    )
    for direction, way in ways:
        rows: list[list[object]] = []
        for index in range(cells):
            hop, command, body = uivg_plan(direction, index)
            links = way(hop, command, body)
            rows.append([hop, command, links_digest(links)])
            if index == 0:
                result[f"first {direction} cell"] = links[0].hex()
        result[direction] = rows
    return result


def ntor_vectors() -> dict[str, Any]:
    """What backrooms_ntor.json holds, with fresh ML-KEM ciphertexts."""
    vectors = []
    cases = (
        (b"circuit", b"", b"\x01\x00\x04\x01\xc9\xc3\x80", b""),
        (b"service", seeded("ntor context", 32), b"", b"hello, this is a reply"),
    )
    for number, (purpose, context, cm, sm) in enumerate(cases):
        relay_id, b, x, y, network = (seeded(f"ntor {number} {name}", 32) for name in ("id", "b", "x", "y", "network"))
        seed = seeded(f"ntor {number} kem", 64)
        public = MLKEM768PrivateKey.from_seed_bytes(seed).public_key()
        e = public.public_bytes_raw()
        ss, c = public.encapsulate()
        ver = b"".join(len(part).to_bytes(8, "big") + part for part in (purpose, network, context))
        ntor = Ntor(PROTOID, relay_id, b, x, y, ver)
        handshake = ntor.client(e, cm)
        reply, keys = ntor.relay(e, handshake[-32:], ss, c, sm, 320)
        fields = {
            "b": b,
            "ID": relay_id,
            "x": x,
            "kem_seed": seed,
            "y": y,
            "kem_ciphertext": c,
            "kem_secret": ss,
            "network_id": network,
            "purpose": purpose,
            "context": context,
            "client_message": cm,
            "server_message": sm,
            "client_handshake": handshake,
            "server_handshake": reply,
            "hop_keys": keys,
        }
        vectors.append({name: value.hex() for name, value in fields.items()})
    return {
        "source": "tests/crypto/make_vectors.py; MIT, as the project",
        "what": "br-ntor-1, all values in hex. kem_seed: the 64 bytes (d, z) of ML-KEM.KeyGen.",
        "protoid": PROTOID.decode(),
        "vectors": vectors,
    }


if __name__ == "__main__":
    for name, made in (("backrooms_uivg.json", uivg_vectors()), ("backrooms_ntor.json", ntor_vectors())):
        text = json.dumps(made, separators=(",", ":")).replace("],[", "],\n[")
        (Path(sys.argv[1]) / name).write_text(text + "\n")
