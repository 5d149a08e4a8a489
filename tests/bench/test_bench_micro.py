"""The operations that are timed do what they claim; their time is not judged here."""

from __future__ import annotations

import pytest

from bench.micro import forwarding, handshaking, seconds_each


@pytest.mark.parametrize("which", [0, 1])
def test_a_record_of_cells_passes_a_relay(which: int) -> None:
    pass_on = forwarding()[which]
    for _ in range(3):
        pass_on()


def test_a_relay_answers_and_a_client_agrees() -> None:
    relay, client = handshaking()
    relay()
    client()


def test_seconds_each_is_per_operation() -> None:
    spin = seconds_each(lambda: sum(range(20_000)), 5)
    assert spin > 4 * seconds_each(lambda: sum(range(1_000)), 5)
