"""A second, slow implementation of the circuit cryptography, written straight from docs/protocol.md.

It shares no code with `backrooms` and uses no cryptography library (what an ML-KEM gives is handed in), so a
mistake would have to be made twice to go unseen. `make_vectors.py` freezes what it computes.
"""

from __future__ import annotations

import hashlib

# --- AES (FIPS 197) -------------------------------------------------------------------------------


def _times_x(a: int) -> int:
    return (a << 1) ^ (0x11B if a & 0x80 else 0)


def _byte_product(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a, b = _times_x(a), b >> 1
    return product


def _make_sbox() -> list[int]:
    box = []
    for value in range(256):
        inverse = next((b for b in range(256) if _byte_product(value, b) == 1), 0)
        out = 0x63
        for shift in range(5):
            out ^= ((inverse << shift) | (inverse >> (8 - shift))) & 0xFF
        box.append(out)
    return box


SBOX = _make_sbox()
INVERSE_SBOX = [SBOX.index(value) for value in range(256)]
# SubBytes and MixColumns of one byte in each row of a column, as the textbook's tables
COLUMN = [
    [int.from_bytes([_byte_product(SBOX[v], m) for m in factors], "big") for v in range(256)]
    for factors in ((2, 1, 1, 3), (3, 2, 1, 1), (1, 3, 2, 1), (1, 1, 3, 2))
]
INVERSE_MIX = [[_byte_product(v, m) for v in range(256)] for m in (14, 11, 13, 9)]


class Aes:
    """AES-128 or AES-256 on single blocks."""

    def __init__(self, key: bytes) -> None:
        words = [int.from_bytes(key[i : i + 4], "big") for i in range(0, len(key), 4)]
        size = len(words)
        self.rounds = size + 6
        constant = 1
        for i in range(size, 4 * (self.rounds + 1)):
            word = words[-1]
            if i % size == 0:
                word = ((word << 8) | (word >> 24)) & 0xFFFFFFFF
            if i % size == 0 or (size == 8 and i % size == 4):
                word = int.from_bytes([SBOX[b] for b in word.to_bytes(4, "big")], "big")
            if i % size == 0:
                word ^= constant << 24
                constant = _times_x(constant)
            words.append(words[-size] ^ word)
        self.words = words

    def encrypt(self, block: bytes) -> bytes:
        t0, t1, t2, t3 = COLUMN
        w = self.words
        a, b, c, d = (int.from_bytes(block[i : i + 4], "big") ^ w[i // 4] for i in (0, 4, 8, 12))
        for i in range(4, 4 * self.rounds, 4):
            a, b, c, d = (
                t0[a >> 24] ^ t1[b >> 16 & 255] ^ t2[c >> 8 & 255] ^ t3[d & 255] ^ w[i],
                t0[b >> 24] ^ t1[c >> 16 & 255] ^ t2[d >> 8 & 255] ^ t3[a & 255] ^ w[i + 1],
                t0[c >> 24] ^ t1[d >> 16 & 255] ^ t2[a >> 8 & 255] ^ t3[b & 255] ^ w[i + 2],
                t0[d >> 24] ^ t1[a >> 16 & 255] ^ t2[b >> 8 & 255] ^ t3[c & 255] ^ w[i + 3],
            )
        out = b""
        for i, column in enumerate(((a, b, c, d), (b, c, d, a), (c, d, a, b), (d, a, b, c))):
            mixed = bytes(SBOX[value >> shift & 255] for value, shift in zip(column, (24, 16, 8, 0), strict=True))
            out += xor(mixed, w[4 * self.rounds + i].to_bytes(4, "big"))
        return out

    def _round_key(self, number: int) -> bytes:
        return b"".join(word.to_bytes(4, "big") for word in self.words[4 * number : 4 * number + 4])

    def decrypt(self, block: bytes) -> bytes:
        state = xor(block, self._round_key(self.rounds))
        for number in range(self.rounds - 1, -1, -1):
            # InvShiftRows moves row r (bytes r, r+4, ...) right by r columns
            state = bytes(INVERSE_SBOX[state[(i - 4 * (i % 4)) % 16]] for i in range(16))
            state = xor(state, self._round_key(number))
            if number:
                mixed = bytearray()
                for column in (state[i : i + 4] for i in (0, 4, 8, 12)):
                    for row in range(4):
                        value = 0
                        for k in range(4):
                            value ^= INVERSE_MIX[k][column[(row + k) % 4]]
                        mixed.append(value)
                state = bytes(mixed)
        return state


def xor(a: bytes, b: bytes) -> bytes:
    assert len(a) == len(b)
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).to_bytes(len(a), "big")


def ctr(key: bytes, first: int, length: int) -> bytes:
    """`length` bytes of AES-CTR keystream, first counter block `first` (mod 2^128, big-endian)."""
    aes = Aes(key)
    blocks = -(-length // 16)
    stream = b"".join(aes.encrypt(((first + i) % 2**128).to_bytes(16, "big")) for i in range(blocks))
    return stream[:length]


# --- universal hashes -----------------------------------------------------------------------------


def _padded_blocks(data: bytes) -> list[bytes]:
    data += bytes(-len(data) % 16)
    return [data[i : i + 16] for i in range(0, len(data), 16)]


def ghash(key: bytes, data: bytes) -> bytes:
    """GHASH (SP 800-38D, algorithms 1 and 2) of a whole number of blocks."""
    power = int.from_bytes(key, "big")
    powers = []  # the key times x^0, x^1, ...; bit 0 of the standard is the leftmost
    for _ in range(128):
        powers.append(power)
        power = (power >> 1) ^ (0xE1 << 120 if power & 1 else 0)
    y = 0
    for block in _padded_blocks(data):
        value, y = y ^ int.from_bytes(block, "big"), 0
        for i in range(128):
            if value >> (127 - i) & 1:
                y ^= powers[i]
    return y.to_bytes(16, "big")


def gmac(key: bytes, message: bytes) -> bytes:
    """AES-GCM (SP 800-38D) of no plaintext, `message` as associated data, 12 zero bytes as nonce: the tag."""
    aes = Aes(key)
    lengths = (8 * len(message)).to_bytes(8, "big") + bytes(8)
    digest = ghash(aes.encrypt(bytes(16)), message + bytes(-len(message) % 16) + lengths)
    return xor(digest, aes.encrypt(bytes(15) + b"\x01"))


def polyval(key: bytes, data: bytes) -> bytes:
    """POLYVAL (RFC 8452, section 3), `data` filled up with zeros to whole blocks."""
    polynomial = 1 << 128 | 1 << 127 | 1 << 126 | 1 << 121 | 1
    h, y = int.from_bytes(key, "little"), 0
    for block in _padded_blocks(data):
        value, y = y ^ int.from_bytes(block, "little"), 0
        for i in range(128):  # dot(a, b) = a * b * x^-128: one division by x per bit
            if value >> i & 1:
                y ^= h
            if y & 1:
                y ^= polynomial
            y >>= 1
    return y.to_bytes(16, "little")


# --- UIV-G (docs/protocol.md, "Relay cryptography") -----------------------------------------------

CELL_SIZE = 4096
BODY = CELL_SIZE - 24


class UivG:
    """One hop, one direction, either end."""

    def __init__(self, keys: bytes) -> None:
        assert len(keys) == 144
        self.kh, self.kb, self.kp, self.ks = keys[:32], keys[32:64], keys[64:96], keys[96:128]
        self.n = keys[128:]
        self.t = bytes(16)
        self.c = 0

    def h(self, m: bytes) -> bytes:
        return gmac(self.kh, m)

    def s(self, y: bytes, offset: int, length: int) -> bytes:
        return ctr(self.ks, int.from_bytes(Aes(self.kp).encrypt(y), "big") + offset, length)

    def enc(self, cmd: int, x: bytes) -> bytes:
        xl, xr = x[:16], x[16:]
        g = self.h(self.t + bytes([cmd]) + xr)
        yl = xor(Aes(self.kb).encrypt(xor(xl, g)), g)
        return yl + xor(xr, self.s(yl, 0, BODY))

    def dec(self, cmd: int, y: bytes) -> bytes:
        yl, yr = y[:16], y[16:]
        xr = xor(yr, self.s(yl, 0, BODY))
        g = self.h(self.t + bytes([cmd]) + xr)
        return xor(Aes(self.kb).decrypt(xor(yl, g)), g) + xr

    def step(self, yl: bytes, mine: bool) -> None:
        o = b""
        if mine or (self.c + 1) % 64 == 0:
            o = self.s(yl, CELL_SIZE // 16, 144)
        self.t = yl
        self.c += 1
        if mine:
            self.n = o[128:144]
        if self.c % 64 == 0:
            self.kh, self.kb, self.kp, self.ks = o[0:32], o[32:64], o[64:96], o[96:128]


class Circuit:
    """Both ends of all hops; a cell is given as tag and body on every link, the client's link first."""

    def __init__(self, hop_keys: list[bytes]) -> None:
        self.client_forward = [UivG(k[:144]) for k in hop_keys]
        self.client_backward = [UivG(k[144:288]) for k in hop_keys]
        self.relay_forward = [UivG(k[:144]) for k in hop_keys]
        self.relay_backward = [UivG(k[144:288]) for k in hop_keys]

    def wrap(self, hop: int, cmd: int, body: bytes) -> bytes:
        """The client's cell to `hop` (from 0), as it leaves the client."""
        layer = self.client_forward[hop]
        tag = layer.n
        x = layer.dec(cmd, tag + body)
        layer.step(tag, True)
        for layer in reversed(self.client_forward[:hop]):
            y = x
            x = layer.dec(cmd, y)
            layer.step(y[:16], False)
        return x

    def forward(self, hop: int, cmd: int, body: bytes) -> list[bytes]:
        """The client's cell to `hop` on every link, checked by every relay on the way."""
        links = [self.wrap(hop, cmd, body)]
        for number, layer in enumerate(self.relay_forward[: hop + 1]):
            y = layer.enc(cmd, links[-1])
            mine = y[:16] == layer.n
            layer.step(y[:16], mine)
            assert mine == (number == hop)
            if mine:
                assert y[16:] == body
            else:
                links.append(y)
        return links

    def backward(self, hop: int, cmd: int, body: bytes) -> list[bytes]:
        """A cell from `hop` to the client on every link, the client's first; the client checks it."""
        layer = self.relay_backward[hop]
        y = layer.enc(cmd, layer.n + body)
        layer.step(y[:16], True)
        links = [y]
        for layer in reversed(self.relay_backward[:hop]):
            y = layer.enc(cmd, y)
            layer.step(y[:16], False)
            links.append(y)
        for number, layer in enumerate(self.client_backward[: hop + 1]):
            x = layer.dec(cmd, y)
            mine = x[:16] == layer.n
            layer.step(y[:16], mine)
            assert mine == (number == hop)
            y = x
        assert y[16:] == body
        return links[::-1]


# --- br-ntor-1 (docs/protocol.md, "Circuit handshake") --------------------------------------------

PRIME = 2**255 - 19


def x25519(scalar: bytes, point: bytes) -> bytes:
    """RFC 7748, section 5: the Montgomery ladder."""
    k = int.from_bytes(scalar, "little") & ~7 & ~(1 << 255) | 1 << 254
    u = int.from_bytes(point, "little") % 2**255
    x2, z2, x3, z3 = 1, 0, u, 1
    for t in range(254, -1, -1):
        if k >> t & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb = d * a % PRIME, c * b % PRIME
        x3, z3 = (da + cb) ** 2 % PRIME, u * (da - cb) ** 2 % PRIME
        aa, bb = a * a % PRIME, b * b % PRIME
        x2, z2 = aa * bb % PRIME, (aa - bb) * (aa + 121665 * (aa - bb)) % PRIME
        if k >> t & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, PRIME - 2, PRIME) % PRIME).to_bytes(32, "little")


BASE = (9).to_bytes(32, "little")


def _e(s: bytes) -> bytes:
    return len(s).to_bytes(8, "big") + s


def _aes_ctr(key: bytes, data: bytes) -> bytes:
    return xor(data, ctr(key, 0, len(data)))


class Ntor:
    """Both ends of one handshake; every private value is handed in. `e`, `c`, `ss` empty: ntor-v3."""

    def __init__(self, protocol_id: bytes, relay_id: bytes, b: bytes, x: bytes, y: bytes, ver: bytes) -> None:
        self.protocol_id, self.id, self.ver = protocol_id, relay_id, ver
        self.big_b, self.big_x, self.big_y = x25519(b, BASE), x25519(x, BASE), x25519(y, BASE)
        self.xb, self.xy = x25519(x, self.big_b), x25519(x, self.big_y)
        assert self.xb == x25519(b, self.big_x)
        assert self.xy == x25519(y, self.big_x)

    def _h(self, t: bytes, m: bytes) -> bytes:
        return hashlib.sha3_256(_e(self.protocol_id + b":" + t) + m).digest()

    def _xof(self, t: bytes, m: bytes, length: int) -> bytes:
        return hashlib.shake_256(_e(self.protocol_id + b":" + t) + m).digest(length)

    def client(self, e: bytes, cm: bytes) -> bytes:
        phase1 = self.xb + self.id + self.big_x + self.big_b + e + self.protocol_id + _e(self.ver)
        k1 = self._xof(b"kdf_phase1", phase1, 64)
        msg = _aes_ctr(k1[:32], cm)
        covered = self.id + self.big_b + self.big_x + e + msg
        mac = hashlib.sha3_256(_e(self.protocol_id + b":msg_mac") + _e(k1[32:]) + covered).digest()
        return self.id + self.big_b + self.big_x + e + msg + mac

    def relay(self, e: bytes, mac: bytes, ss: bytes, c: bytes, sm: bytes, key_bytes: int) -> tuple[bytes, bytes]:
        """The reply and the keys."""
        si = ss + self.xy + self.xb + self.id + self.big_b + self.big_x + e + self.big_y + c
        si += self.protocol_id + _e(self.ver)
        k = self._xof(b"kdf_final", self._h(b"key_seed", si), 32 + key_bytes)
        reply = _aes_ctr(k[:32], sm)
        shown = self._h(b"verify", si) + self.id + self.big_b + self.big_y + c + self.big_x + e + mac + _e(reply)
        auth = self._h(b"auth_final", shown + self.protocol_id + b"Server")
        return self.big_y + c + auth + reply, k[32:]
