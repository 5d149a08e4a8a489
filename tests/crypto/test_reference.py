"""The slow second implementation itself: the standards' own vectors, and that the frozen files are what it makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.crypto.make_vectors import uivg_vectors
from tests.crypto.reference import BASE, Aes, ctr, ghash, gmac, x25519

VECTORS = Path(__file__).parent.parent / "vectors"


@pytest.mark.parametrize(
    ("key_size", "expected"),
    [(16, "69c4e0d86a7b0430d8cdb78070b4c55a"), (32, "8ea2b7ca516745bfeafc49904b496089")],
)
def test_aes_of_fips_197(key_size: int, expected: str) -> None:
    block = bytes.fromhex("00112233445566778899aabbccddeeff")
    aes = Aes(bytes(range(key_size)))
    assert aes.encrypt(block).hex() == expected
    assert aes.decrypt(bytes.fromhex(expected)) == block


def test_ctr_of_sp_800_38a() -> None:
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    stream = ctr(key, int.from_bytes(range(0xF0, 0x100), "big"), 32)
    mixed = bytes(a ^ b for a, b in zip(plain, stream, strict=True))
    assert mixed.hex() == "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"


def test_gcm_of_the_original_paper() -> None:
    """McGrew and Viega, "The Galois/Counter Mode of Operation", test cases 2 (GHASH) and 13 (no data at all)."""
    key = bytes.fromhex("66e94bd4ef8a2c3b884cfa59ca342b2e")
    data = bytes.fromhex("0388dace60b6a392f328c2b971b2fe78") + (128).to_bytes(16, "big")
    assert ghash(key, data).hex() == "f38cbb1ad69223dcc3457ae5b6b0f885"
    assert gmac(bytes(32), b"").hex() == "530f8afbc74536b9a963b4f1c4cb738b"


def test_x25519_of_rfc_7748() -> None:
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    assert x25519(scalar, point).hex() == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"


def test_x25519_pairs_of_tors_ntor() -> None:
    v = json.loads((VECTORS / "tor_ntor.json").read_text())
    for name in ("b", "x", "y"):
        assert x25519(bytes.fromhex(v[f"{name}_sk"]), BASE).hex() == v[f"{name}_pk"]


def test_the_frozen_cells_are_what_the_reference_makes() -> None:
    """The first of them; the fast code is held to all, and to fresh ones of the reference."""
    frozen = json.loads((VECTORS / "backrooms_uivg.json").read_text())
    made = uivg_vectors(24)
    for direction in ("forward", "backward"):
        frozen[direction] = frozen[direction][:24]
    assert made == frozen
