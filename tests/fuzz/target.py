"""What a fuzz target is, and what it is held to.

A target is one parser with valid examples. Whatever bytes it is given, it makes a value of them or raises the errors
that it documents; a parser of a stream makes the same of them in whatever pieces they come.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from backrooms.errors import WireError
from tests.fuzz.mutate import MAX_INPUT

Errors = tuple[type[Exception], ...]
Feed = Callable[[Sequence[bytes]], Any]
"""Gives a new stream parser these pieces, one after the other. What it returns tells all that came out of it."""


@dataclass(frozen=True)
class Target:
    """A parser under test. `run` raises nothing but `errors`; an `AssertionError` of its own is a finding."""

    name: str
    run: Callable[[bytes], Any]
    make_seeds: Callable[[], Sequence[bytes]]
    """Valid encodings, from which mutations reach deep."""
    errors: Errors = (WireError,)
    factor: int = 64
    """Bytes of memory that one byte of input may cost, at most."""
    fixed: int = 512 * 1024
    """Bytes of memory that any input may cost."""
    longest: int = MAX_INPUT
    """Bytes of an input; fewer where one stands for much work."""

    def seeds(self) -> Sequence[bytes]:
        return _seeds(self)

    def accepts(self, data: bytes) -> bool:
        """Whether the parser makes a value of `data`; what it may not raise goes through."""
        try:
            self.run(data)
        except self.errors:
            return False
        return True


@cache
def _seeds(target: Target) -> Sequence[bytes]:
    return tuple(target.make_seeds())


def pieces(data: bytes) -> list[bytes]:
    """`data` cut at places that depend on itself: single bytes where it is short, and up to 8 pieces."""
    rng = random.Random(zlib.crc32(data))
    if len(data) < 200 and rng.random() < 0.5:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(1, 8)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def in_any_pieces(feed: Feed) -> Callable[[bytes], Any]:
    """A target's `run`: what comes out of `feed` is the same for whole input and for pieces of it."""

    def run(data: bytes) -> Any:
        whole = feed([data])
        assert feed(pieces(data)) == whole, "it depends on how the bytes are cut"
        return whole

    return run
