"""The file of guards: text, whole whenever the process dies, and no more than a loss when it is damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.node.guards import FILE_NAME, from_text, to_text
from backrooms.node.statefile import KEPT_ASIDE
from backrooms.path.guards import Guard, GuardSample, Second
from tests.keys import NETWORK_ID
from tests.node.conftest import MakeNetwork
from tests.node.test_guards import alone, selector, settle


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe\xfd", "can't decode"),
        (b"[]", "does not have the fields"),
        (b'{"schema": 2, "network": "", "drawn_from": 0, "guards": [], "second_hops": []}', "schema 2"),
        (b'{"schema": 1, "network": "00", "drawn_from": 0, "guards": [], "second_hops": []}', "another network"),
        (b"[" * 100_000, "too many brackets"),
        (b" " * ((1 << 20) + 1), "too long"),
    ],
)
def test_a_damaged_file_is_kept_aside_and_told(tmp_path: Path, said: list[str], damage: bytes, why: str) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(damage)
    assert alone(tmp_path).sample.guards == {}
    assert len(said) == 1
    assert why in said[0]
    assert f"{FILE_NAME}.damaged-1" in said[0]
    assert (tmp_path / f"{FILE_NAME}.damaged-1").read_bytes() == damage
    assert not path.exists()


def test_a_damaged_file_that_cannot_be_put_aside_is_told(tmp_path: Path, said: list[str]) -> None:
    for number in range(1, KEPT_ASIDE + 1):
        (tmp_path / f"{FILE_NAME}.damaged-{number}").mkdir()
    (tmp_path / FILE_NAME).write_bytes(b"{")
    assert alone(tmp_path).sample.guards == {}
    assert ["cannot be put aside" in line for line in said] == [True]


def test_a_node_with_a_damaged_file_runs(make: MakeNetwork, said: list[str]) -> None:
    network = make()
    state = network.client.folder / "state"
    state.mkdir(exist_ok=True)
    for number in range(KEPT_ASIDE + 3):  # and however often that happens, not all the disk is filled
        (state / FILE_NAME).write_bytes(b"damaged %d" % number)
        alone(state)
    assert len(list(state.glob(f"{FILE_NAME}.*"))) == KEPT_ASIDE
    (state / FILE_NAME).write_bytes(b"{")
    network.client._make()
    network.start()
    network.ready()
    settle(network)
    from_text((state / FILE_NAME).read_bytes(), network.client.node.network.id)
    assert any("guards are chosen anew" in line for line in said)


def test_a_full_disk_is_told_and_tried_again(tmp_path: Path, said: list[str]) -> None:
    found = alone(tmp_path / "missing", 30)
    found.first(selector(30))
    assert ["cannot be written" in line for line in said] == [True]
    (tmp_path / "missing").mkdir()
    found.first(selector(30))
    assert len(from_text((tmp_path / "missing" / FILE_NAME).read_bytes(), NETWORK_ID).guards) == 20


# the file


def sample() -> GuardSample:
    listed = [Guard(bytes([number]) * 32, 1_800_000_000.0 + number) for number in range(5)]
    listed[1].confirmed, listed[1].order = 1_800_000_100.0, 1
    listed[2].unlisted = 1_800_000_200.0
    listed[3].distrusted, listed[3].reason = 1_800_000_300.0, "destroys circuits \N{BULLET} \x1b"
    return GuardSample(listed, [Second(bytes([9]) * 32, 1_800_500_000.0)])


def test_the_file_is_text_and_says_all() -> None:
    text = to_text(sample(), NETWORK_ID)
    again = from_text(text.encode(), NETWORK_ID)
    assert list(again.guards.values()) == list(sample().guards.values())
    assert again.seconds == sample().seconds
    assert text.isascii()
    assert '"added": "2027-01-15T08:00:00Z"' in text


def test_no_part_of_the_file_counts_as_whole() -> None:
    whole = to_text(sample(), NETWORK_ID).encode()
    for length in range(len(whole) - 2):
        with pytest.raises(ValueError):
            from_text(whole[:length], NETWORK_ID)


@given(st.binary(max_size=200), st.integers(0, 2000), st.integers(0, 255))
def test_whatever_is_in_the_file_it_is_a_sample_or_a_value_error(data: bytes, at: int, byte: int) -> None:
    whole = bytearray(to_text(sample(), NETWORK_ID).encode())
    whole[at % len(whole)] = byte
    for candidate in (data, bytes(whole)):
        try:
            found = from_text(candidate, NETWORK_ID)
        except ValueError:
            continue
        to_text(found, NETWORK_ID)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "short"},
        {"added": "2027-01-15"},
        {"added": "yesterday"},
        {"added": "0001-01-01T00:00:00+23:00"},
        {"added": "9999-12-31T23:59:59-23:00"},
        {"added": None},
        {"order": -1},
        {"order": True},
        {"order": 1},
        {"confirmed": "2027-01-15T08:00:00Z"},
        {"reason": 5},
        {"more": 1},
    ],
)
def test_a_wrong_entry_is_an_error(change: dict[str, Any]) -> None:
    whole = json.loads(to_text(sample(), NETWORK_ID))
    whole["guards"][0] |= change
    with pytest.raises(ValueError):
        from_text(json.dumps(whole).encode(), NETWORK_ID)


_WRITER = """
import sys, pathlib, random
from twisted.internet.task import Clock
from backrooms.node.guards import Guards
from tests.node.test_guards import alone, selector
guards = alone(pathlib.Path(sys.argv[1]), 30)
print("ready", flush=True)
while True:
    guards.second(selector(30))
    guards.sample.seconds.clear()
    guards.sample.changed = True
"""


def test_killed_at_any_time_the_file_is_whole(tmp_path: Path) -> None:
    """A real process that does nothing but write the file, killed with SIGKILL again and again."""
    alone(tmp_path, 30).first(selector(30))
    guards_before = from_text((tmp_path / FILE_NAME).read_bytes(), NETWORK_ID).guards
    for number in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.005 + 0.0077 * number)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert from_text((tmp_path / FILE_NAME).read_bytes(), NETWORK_ID).guards == guards_before
