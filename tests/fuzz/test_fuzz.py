"""Every parser, a little: a value or a documented error, whatever the bytes. `make soak` does it for longer."""

from __future__ import annotations

import gc
import tracemalloc
from random import Random

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from tests.fuzz.found import FOUND
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS
from tests.fuzz.values import EXAMPLES, decoders

each_target = pytest.mark.parametrize("name", TARGETS)


def test_every_decoder_of_the_wire_has_an_example() -> None:
    missing = [f"{kind.__module__}.{kind.__name__}" for kind in decoders() if not EXAMPLES.get(kind)]
    assert not missing, f"tests/fuzz/values.py, EXAMPLES: has no value of {missing}"


@each_target
def test_seeds_are_valid(name: str) -> None:
    target = TARGETS[name]
    assert target.seeds()
    assert [seed.hex() for seed in target.seeds() if not target.accepts(seed)] == []


# pytest-twisted wraps what `given` made once more for each parameter, so `given` stands inside.


@each_target
def test_any_bytes(name: str) -> None:
    @settings(max_examples=30)
    @given(st.binary(max_size=300))
    def check(data: bytes) -> None:
        TARGETS[name].accepts(data)

    check()


@each_target
def test_mutated_seeds(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=150)
    @given(st.integers(0, 2**64 - 1))
    def check(number: int) -> None:
        data = mutated(target.seeds(), Random(number))
        note(data.hex())
        target.accepts(data)

    check()


@pytest.mark.parametrize(("name", "data"), FOUND, ids=[f"{name}-{number}" for number, (name, _) in enumerate(FOUND)])
def test_what_was_found_once(name: str, data: bytes) -> None:
    TARGETS[name].accepts(data)


@each_target
def test_memory_is_in_proportion_to_the_input(name: str) -> None:
    target = TARGETS[name]
    rng = Random(1)
    inputs = [*target.seeds(), *(mutated(target.seeds(), rng) for _ in range(12)), bytes(16_000), b"\xff" * 16_000]
    for data in inputs[:3]:
        target.accepts(data)  # what is made once does not count
    gc.collect(0)
    tracemalloc.start()
    try:
        for data in inputs:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            target.accepts(data)
            used = tracemalloc.get_traced_memory()[1] - before
            assert used <= target.fixed + target.factor * len(data), f"{used} bytes for {len(data)}: {data[:200].hex()}"
    finally:
        tracemalloc.stop()
