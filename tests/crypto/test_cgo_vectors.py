"""`crypto.onion` with the parameters of Tor's Counter Galois Onion must reproduce Tor's published vectors.

Only the suite is made here (AES-128 and a slow POLYVAL); all that is asked of it goes through `Layer`, so the
order of operations, the step and the rekeying are those that cells of Backrooms get.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backrooms.crypto.onion import Block, Hash, Layer, Suite
from tests.crypto.reference import polyval

VECTORS = Path(__file__).parent.parent / "vectors"
BODY = 493
"""Bytes after the tag in a CGO cell: 509 - 16."""


def universal_hash(key: bytes) -> Hash:
    return partial(polyval, key)


def counter_start(key: bytes) -> Block:
    """POLYVAL of the tag with the low six bits cleared, so that adding block numbers never carries."""

    def start(tag: bytes) -> bytes:
        value = polyval(key, tag)
        return value[:15] + bytes([value[15] & 0xC0])

    return start


CGO = Suite(
    layout="bhsp",
    sizes=(16, 16, 16, 16),
    hash=universal_hash,
    counter_start=counter_start,
    update_offset=31,
    rekey_cells=None,
)


def rows(name: str, table: str) -> list[Any]:
    """The rows of one published table, every hex string as bytes."""

    def unhex(value: Any) -> Any:
        if isinstance(value, list):
            return [unhex(item) for item in value]
        return bytes.fromhex(value) if isinstance(value, str) else value

    loaded = json.loads((VECTORS / f"tor_cgo_{name}.json").read_text())
    vectors = unhex(loaded["vectors"][table])
    assert len(vectors) >= 3
    assert isinstance(vectors, list)
    return vectors


def layer(keys: bytes, *, encrypting: bool, tag: bytes = bytes(16), expected: bytes = bytes(16)) -> Layer:
    """A layer in the state (keys, N, T')."""
    made = Layer(keys + expected, encrypting, CGO)
    made.step(tag, False)  # under CGO's rule nothing but T changes
    assert made.expected == expected
    return made


def assert_same_state(one: Layer, keys: bytes, expected: bytes, tag: bytes) -> None:
    """`one` is in the state (keys, N, T'): equal N, and equal treatment of a cell."""
    other = layer(keys, encrypting=one.encrypting, tag=tag, expected=expected)
    assert one.expected == other.expected == expected
    left, right = b"L" * 16, bytes(range(256)) + bytes(BODY - 256)
    crypt = Layer.encrypt if one.encrypting else Layer.decrypt
    assert crypt(one, 7, left, right) == crypt(other, 7, left, right)
    one.step(tag, True)
    other.step(tag, True)
    assert one.expected == other.expected


def test_polyval_of_rfc_8452() -> None:
    key = bytes.fromhex("25629347589242761d31f826ba4b757b")
    data = bytes.fromhex("4f4f95668c83dfb6401762bb2d01a262d1a24ddd2721d006bbe45f20d3c9f362")
    assert polyval(key, data).hex() == "f7a3b47b846119fae5b7866cf5e5b77e"


@pytest.mark.parametrize("row", rows("et", "ET_TEST_VECTORS"))
def test_tweakable_block(row: Any) -> None:
    encrypt, keys, tweak, message, out = row
    one = layer(keys + bytes(32), encrypting=encrypt, tag=tweak[:16])
    if encrypt:
        left, _ = one.encrypt(tweak[16], message, tweak[17:])
    else:
        # decrypt hashes the body after it was decrypted: hand it the body encrypted
        _, body = one.decrypt(tweak[16], message, tweak[17:])
        left, again = one.decrypt(tweak[16], message, body)
        assert again == tweak[17:]
    assert left == out


@pytest.mark.parametrize("row", rows("prf", "PRF_TEST_VECTORS"))
def test_stream_and_update_stream(row: Any) -> None:
    keys, which, tag, out = row
    one = layer(bytes(32) + keys, encrypting=False)
    if which == 0:
        assert one.decrypt(0, tag, bytes(BODY))[1] == out
    else:
        one.step(tag, True)
        assert_same_state(one, out[:64], out[64:], tag)


@pytest.mark.parametrize("row", rows("uiv", "UIV_TEST_VECTORS"))
def test_wide_block(row: Any) -> None:
    encrypt, keys, header, left, right, out = row
    one = layer(keys, encrypting=encrypt, tag=header[:16])
    assert list((one.encrypt if encrypt else one.decrypt)(header[16], left, right)) == out


@pytest.mark.parametrize("row", rows("uiv", "UIV_UPDATE_TEST_VECTORS"))
@pytest.mark.parametrize("encrypting", [True, False])
def test_update(row: Any, encrypting: bool) -> None:
    keys, tag, (new_keys, nonce) = row
    one = layer(keys, encrypting=encrypting)
    one.step(tag, True)
    assert_same_state(one, new_keys, nonce, tag)


@pytest.mark.parametrize("row", rows("relay", "CGO_RELAY_TEST_VECTORS"))
def test_relay(row: Any) -> None:
    inbound, (keys, nonce, last), command, left, right, (state, cell) = row
    one = layer(keys, encrypting=True, tag=last, expected=nonce)
    if inbound:
        got = one.relay_backward(command[0], left, right)
    else:
        recognised, *parts = one.relay_forward(command[0], left, right)
        got = (parts[0], parts[1])
        assert recognised == (cell[0] == nonce)
    assert list(got) == cell
    assert_same_state(one, *state)


@pytest.mark.parametrize("row", rows("relay", "CGO_RELAY_ORIGINATE_TEST_VECTORS"))
def test_relay_originates(row: Any) -> None:
    (keys, nonce, last), command, body, (state, cell) = row
    one = layer(keys, encrypting=True, tag=last, expected=nonce)
    assert list(one.relay_originate(command[0], body)) == cell
    assert_same_state(one, *state)


@pytest.mark.parametrize("row", rows("relay", "CGO_RELAY_ORIGINATE_TEST_VECTORS"))
def test_client_recognises_what_a_relay_originated(row: Any) -> None:
    (keys, nonce, last), command, body, (state, cell) = row
    one = layer(keys, encrypting=False, tag=last, expected=nonce)
    assert one.client_receive(command[0], *cell) == (True, nonce, body)
    assert_same_state(one, *state)
