"""Random changes to valid encodings, and the loop that is used where there is no coverage-guided fuzzer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

MAX_INPUT = 20_000
"""Bytes of an input: more than the head of an HTTP request may have."""
_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _flip(data: bytearray, rng: Random, other: bytes) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(data: bytearray, rng: Random, other: bytes) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def _length(data: bytearray, rng: Random, other: bytes) -> None:
    """Change a number as a length field would be: a little, or to the edge of its range."""
    size = rng.choice((1, 2, 4))
    at = rng.randrange(len(data))
    field = data[at : at + size]
    number = int.from_bytes(field, "big")
    number = rng.choice((number + rng.randrange(-4, 5), rng.choice(_INTERESTING), len(data) - at))
    data[at : at + size] = (number % (1 << 8 * len(field))).to_bytes(len(field), "big")


def _cut(data: bytearray, rng: Random, other: bytes) -> None:
    del data[rng.randrange(len(data)) :]


def _remove(data: bytearray, rng: Random, other: bytes) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 17)]


def _repeat(data: bytearray, rng: Random, other: bytes) -> None:
    at = rng.randrange(len(data))
    piece = data[at : at + rng.choice((1, 2, 8, 64, 512))]
    data[at:at] = piece * rng.choice((1, 1, 2, 30))


def _splice(data: bytearray, rng: Random, other: bytes) -> None:
    """Go on as another seed does."""
    if other:
        data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


def _insert(data: bytearray, rng: Random, other: bytes) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.randrange(1, 9))


CHANGES: tuple[Callable[[bytearray, Random, bytes], None], ...] = (
    _flip,
    _set,
    _length,
    _length,
    _cut,
    _remove,
    _repeat,
    _splice,
    _insert,
)


def mutated(seeds: Sequence[bytes], rng: Random) -> bytes:
    """One of the seeds with one to six changes, or bytes at random now and then."""
    if rng.random() < 0.05 or not seeds:
        return rng.randbytes(rng.randrange(400))
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if not data:
            break
        rng.choice(CHANGES)(data, rng, rng.choice(seeds))
    return bytes(data[:MAX_INPUT])
