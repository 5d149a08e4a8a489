"""Onion layers: UIV-G, the relay cryptography of Backrooms (docs/protocol.md, "Relay cryptography").

UIV-G has the structure of Tor's Counter Galois Onion (proposal 359; rugged pseudorandom permutations: Degabriele
and Karadzic, CRYPTO 2022) with GMAC as the universal hash. One `Layer` is one hop and one direction; both ends hold
an equal one. Relays only ever encrypt (`encrypt`), clients only ever decrypt (`decrypt`), whichever way a cell goes.

Notation of the specification: a cell's payload is X = XL | XR before and Y = YL | YR after encryption, its left half
16 bytes; N is the tag that marks a cell as meant for this hop, T the last cell's YL, c the number of cells so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hmac import compare_digest

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from backrooms.errors import LocalProtocolError
from backrooms.wire.cell import CELL_SIZE

TAG_SIZE = 16
REKEY_CELLS = 64
"""Cells of a layer after which all its keys change, recognised or not."""
_WRAP = (1 << 128) - 1
_number = int.from_bytes  # big-endian, as all of the wire
_COMMAND = tuple(bytes([command]) for command in range(256))

Hash = Callable[[bytes], bytes]
Block = Callable[[bytes], bytes]


def gmac(key: bytes) -> Hash:
    """GMAC with a fixed nonce: GHASH xor a constant, so XOR-universal. Its value must never leave the layer."""
    return partial(AESGCM(key).encrypt, bytes(12), b"")


def aes_block(key: bytes) -> Block:
    """One AES block, encrypted."""
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update  # one block masked on both sides, not a mode


def _aes_block_inverse(key: bytes) -> Block:
    return Cipher(algorithms.AES(key), modes.ECB()).decryptor().update


@dataclass(frozen=True)
class Suite:
    """What UIV-G and Tor's CGO differ in; the tests run the same code with CGO's values against its published vectors.

    `layout` orders the keys (h hash, b block cipher, p counter start, s stream) in key material, `sizes` says how
    many bytes each has.
    """

    layout: str
    sizes: tuple[int, int, int, int]
    hash: Callable[[bytes], Hash]
    counter_start: Callable[[bytes], Block]
    update_offset: int
    rekey_cells: int | None
    """None: at each recognised cell, and at no other."""

    @property
    def key_bytes(self) -> int:
        """Bytes of one layer's key material: four keys and N."""
        return sum(self.sizes) + TAG_SIZE


UIV_G = Suite(
    layout="hbps",
    sizes=(32, 32, 32, 32),
    hash=gmac,
    counter_start=aes_block,
    update_offset=CELL_SIZE // 16,
    rekey_cells=REKEY_CELLS,
)

LAYER_KEY_BYTES = UIV_G.key_bytes
BINDING_BYTES = 32
HOP_KEY_BYTES = 2 * LAYER_KEY_BYTES + BINDING_BYTES


def split_hop_keys(keys: bytes) -> tuple[bytes, bytes, bytes]:
    """Forward layer keys, backward layer keys and the circuit binding out of a handshake's `HOP_KEY_BYTES`."""
    if len(keys) != HOP_KEY_BYTES:
        raise LocalProtocolError(f"hop keys of {len(keys)} bytes instead of {HOP_KEY_BYTES}")
    return keys[:LAYER_KEY_BYTES], keys[LAYER_KEY_BYTES : 2 * LAYER_KEY_BYTES], keys[2 * LAYER_KEY_BYTES :]


class Layer:
    """One hop's state in one direction.

    `encrypting` is True at a relay and False at a client. Every cell takes exactly one of `encrypt` and `decrypt`, then
    `step`; the `relay_` and `client_` methods do both for the cases of the hot path. The order of calls is the order
    of cells on the wire: a cell that is left out or repeated breaks the layer for good, which is the point of it.
    """

    __slots__ = (
        "_block",
        "_count",
        "_hash",
        "_last",
        "_last_count",
        "_reset",
        "_start",
        "_stream",
        "_suite",
        "_update_end",
        "_update_start",
        "encrypting",
        "expected",
    )

    def __init__(self, keys: bytes, encrypting: bool, suite: Suite = UIV_G) -> None:
        self._suite = suite
        self.encrypting = encrypting
        self._last = bytes(TAG_SIZE)
        self._count = 0
        self._last_count = None if suite.rekey_cells is None else suite.rekey_cells - 1
        self._update_start = 16 * suite.update_offset
        self._update_end = self._update_start + suite.key_bytes
        self._set_keys(keys[:-TAG_SIZE])
        self.expected = keys[-TAG_SIZE:]
        """N: the left half of the next cell that is meant for, or comes from, this hop."""

    def _set_keys(self, keys: bytes) -> None:
        suite = self._suite
        if len(keys) != suite.key_bytes - TAG_SIZE:
            raise LocalProtocolError(f"layer keys of {len(keys)} bytes")
        part: dict[str, bytes] = {}
        for name, size in zip(suite.layout, suite.sizes, strict=True):
            part[name], keys = keys[:size], keys[size:]
        self._hash = suite.hash(part["h"])
        self._block = aes_block(part["b"]) if self.encrypting else _aes_block_inverse(part["b"])
        self._start = suite.counter_start(part["p"])
        context = Cipher(algorithms.AES(part["s"]), modes.CTR(bytes(16))).encryptor()
        self._stream = context.update
        self._reset = context.reset_nonce

    # The methods below repeat two short formulas instead of calling them: a call costs as much as a block of AES.

    def encrypt(self, command: int, left: bytes, right: bytes) -> tuple[bytes, bytes]:
        """ENC: XL, XR to YL, YR. Does not step."""
        mask = _number(self._hash(self._last + _COMMAND[command] + right))
        left = (_number(self._block((_number(left) ^ mask).to_bytes(16))) ^ mask).to_bytes(16)
        self._reset(self._start(left))
        return left, self._stream(right)

    def decrypt(self, command: int, left: bytes, right: bytes) -> tuple[bytes, bytes]:
        """DEC: YL, YR to XL, XR. Does not step."""
        self._reset(self._start(left))
        right = self._stream(right)
        mask = _number(self._hash(self._last + _COMMAND[command] + right))
        return (_number(self._block((_number(left) ^ mask).to_bytes(16))) ^ mask).to_bytes(16), right

    def step(self, tag: bytes, mine: bool) -> None:
        """STEP: move on after a cell whose encrypted left half (YL) is `tag`; `mine` if it was meant for this hop."""
        if mine or self._count == self._last_count:
            start = _number(self._start(tag)) + self._suite.update_offset
            self._reset((start & _WRAP).to_bytes(16))
            self._step(tag, mine, self._stream(bytes(self._suite.key_bytes)))
        else:
            self._last = tag
            self._count += 1

    def _step(self, tag: bytes, mine: bool, fresh: bytes) -> None:
        """STEP with o, the key stream at the update offset, already there."""
        self._last = tag
        rekey = mine if self._last_count is None else self._count == self._last_count
        if mine:
            self.expected = fresh[-TAG_SIZE:]
        if rekey:
            self._count = 0
            self._set_keys(fresh[:-TAG_SIZE])
        else:
            self._count += 1

    def relay_forward(self, command: int, left: bytes, right: bytes) -> tuple[bool, bytes, bytes]:
        """A relay's step for a cell from the client: recognised, YL, YR.

        When recognised, YR is the body for this hop; nothing of it may be used otherwise.
        """
        mask = _number(self._hash(self._last + _COMMAND[command] + right))
        left = (_number(self._block((_number(left) ^ mask).to_bytes(16))) ^ mask).to_bytes(16)
        self._reset(self._start(left))
        right = self._stream(right)
        if compare_digest(left, self.expected):
            self.step(left, True)
            return True, left, right
        if self._count == self._last_count:
            self.step(left, False)
        else:
            self._last = left
            self._count += 1
        return False, left, right

    def relay_backward(self, command: int, left: bytes, right: bytes) -> tuple[bytes, bytes]:
        """A relay's step for a cell that passes towards the client: YL, YR."""
        mask = _number(self._hash(self._last + _COMMAND[command] + right))
        left = (_number(self._block((_number(left) ^ mask).to_bytes(16))) ^ mask).to_bytes(16)
        self._reset(self._start(left))
        right = self._stream(right)
        if self._count == self._last_count:
            self.step(left, False)
        else:
            self._last = left
            self._count += 1
        return left, right

    def relay_originate(self, command: int, body: bytes) -> tuple[bytes, bytes]:
        """A relay's own cell to the client: YL (which a SENDME will name), YR."""
        mask = _number(self._hash(self._last + _COMMAND[command] + body))
        left = (_number(self._block((_number(self.expected) ^ mask).to_bytes(16))) ^ mask).to_bytes(16)
        self._reset(self._start(left))
        stream = self._stream(body.ljust(self._update_end, b"\0"))  # on past the body, to the new N and keys
        self._step(left, True, stream[self._update_start :])
        return left, stream[: len(body)]

    def client_originate(self, command: int, body: bytes) -> tuple[bytes, bytes]:
        """The innermost layer of a client's cell to this hop: XL (which a SENDME will name), XR."""
        tag = self.expected
        self._reset(self._start(tag))
        stream = self._stream(body.ljust(self._update_end, b"\0"))
        right = stream[: len(body)]
        mask = _number(self._hash(self._last + _COMMAND[command] + right))
        left = (_number(self._block((_number(tag) ^ mask).to_bytes(16))) ^ mask).to_bytes(16)
        self._step(tag, True, stream[self._update_start :])
        return left, right

    def client_wrap(self, command: int, left: bytes, right: bytes) -> tuple[bytes, bytes]:
        """One more layer around a client's cell that passes this hop."""
        self._reset(self._start(left))
        right = self._stream(right)
        mask = _number(self._hash(self._last + _COMMAND[command] + right))
        outer = (_number(self._block((_number(left) ^ mask).to_bytes(16))) ^ mask).to_bytes(16)
        self.step(left, False)
        return outer, right

    def client_receive(self, command: int, left: bytes, right: bytes) -> tuple[bool, bytes, bytes]:
        """Take this hop's layer off a cell: recognised (this hop made it), XL, XR."""
        self._reset(self._start(left))
        right = self._stream(right)
        mask = _number(self._hash(self._last + _COMMAND[command] + right))
        inner = (_number(self._block((_number(left) ^ mask).to_bytes(16))) ^ mask).to_bytes(16)
        if compare_digest(inner, self.expected):
            self.step(left, True)
            return True, inner, right
        if self._count == self._last_count:
            self.step(left, False)
        else:
            self._last = left
            self._count += 1
        return False, inner, right

    def __repr__(self) -> str:
        return f"<Layer after {self._count} cells>"
