"""Merkle roots, against a computation straight from the words of RFC 9162, 2.1.1."""

from __future__ import annotations

import hashlib
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.gossip.merkle import root


def slow_root(values: list[bytes]) -> bytes:
    """The recursion of the RFC: k is the largest power of two below n."""
    if not values:
        return hashlib.sha3_256(b"").digest()
    if len(values) == 1:
        return hashlib.sha3_256(bytes([0]) + values[0]).digest()
    k = 1
    while k * 2 < len(values):
        k *= 2
    return hashlib.sha3_256(bytes([1]) + slow_root(values[:k]) + slow_root(values[k:])).digest()


@given(st.lists(st.binary(max_size=40), max_size=40))
def test_the_root_is_that_of_the_rfc(values: list[bytes]) -> None:
    assert root(values) == slow_root(values)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 1000])
def test_sizes_around_powers_of_two(count: int) -> None:
    values = [bytes([number % 256]) * 32 for number in range(count)]
    assert root(values) == slow_root(values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], "a7ffc6f8bf1ed76651c14756a061d662f580ff4de43b49fa82d80a4b80f8434a"),
        ([b""], "5d53469f20fef4f8eab52b88044ede69c77a6a68a60728609fc4a65ff531e7d0"),
        ([b"\0" * 32, b"\1" * 32], "9384262110967d219f4f664a14b51593433629bef87d7d901bd3ff0021cb8af8"),
    ],
)
def test_vectors(values: list[bytes], expected: str) -> None:
    assert root(values).hex() == expected


def test_a_node_does_not_pass_for_a_leaf() -> None:
    left, right = (hashlib.sha3_256(b"\0" + one).digest() for one in (b"a", b"b"))
    assert root([left + right]) != root([b"a", b"b"])
    assert root([b"a", b"b"]) != root([b"b", b"a"])
    assert root([b"a", b"b", b"b"]) != root([b"a", b"b"])


def test_ten_thousand_ids_take_few_milliseconds_of_cpu() -> None:
    ids = sorted(os.urandom(32) for _ in range(10_000))
    took = []
    for _ in range(3):
        began = time.process_time()
        root(ids)
        took.append(time.process_time() - began)
    assert min(took) < 0.05
