"""Accounting: what is counted, when it is enough, and what a node does then."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from backrooms.node.accounting import FILE_NAME, SAVE, Accounting, period_around
from backrooms.node.timers import Timers

DAY = 86400.0
GB = 10**9
PERIODS = st.one_of(
    st.builds("month {} {:02}:{:02}".format, st.integers(1, 28), st.integers(0, 23), st.integers(0, 59)),
    st.builds("week {} {:02}:{:02}".format, st.integers(1, 7), st.integers(0, 23), st.integers(0, 59)),
    st.builds("day {:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59)),
)


@pytest.fixture(autouse=True)
def berlin() -> Iterator[None]:
    """A place with daylight saving time."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Europe/Berlin"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def at(text: str) -> float:
    """Seconds since 1970 of a local time."""
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("period", "when", "start", "end"),
    [
        ("month 1 00:00", "2026-01-31 23:59", "2026-01-01 00:00", "2026-02-01 00:00"),
        ("month 1 00:00", "2026-01-01 00:00", "2026-01-01 00:00", "2026-02-01 00:00"),
        ("month 28 12:30", "2026-01-28 12:29", "2025-12-28 12:30", "2026-01-28 12:30"),
        ("month 15 00:00", "2026-12-20 00:00", "2026-12-15 00:00", "2027-01-15 00:00"),
        ("week 1 00:00", "2026-06-14 23:00", "2026-06-08 00:00", "2026-06-15 00:00"),  # a Sunday
        ("week 7 06:00", "2026-06-14 05:00", "2026-06-07 06:00", "2026-06-14 06:00"),
        ("week 3 00:00", "2026-06-09 05:00", "2026-06-03 00:00", "2026-06-10 00:00"),
        ("day 00:00", "2026-06-14 05:00", "2026-06-14 00:00", "2026-06-15 00:00"),
        ("day 18:00", "2026-06-14 05:00", "2026-06-13 18:00", "2026-06-14 18:00"),
        ("day 00:00", "2026-03-29 12:00", "2026-03-29 00:00", "2026-03-30 00:00"),  # has 23 hours
        ("day 00:00", "2026-10-25 12:00", "2026-10-25 00:00", "2026-10-26 00:00"),  # has 25
    ],
)
def test_periods(period: str, when: str, start: str, end: str) -> None:
    assert period_around(period, at(when)) == (at(start), at(end))


@given(PERIODS, st.floats(0, 4e9))
def test_every_time_is_in_one_period(period: str, wall: float) -> None:
    """Also in the hours that daylight saving time leaves out or repeats."""
    start, end = period_around(period, wall)
    assert start <= wall < end
    assert end - start <= 32 * DAY
    assert period_around(period, start)[0] == start
    assert period_around(period, end)[0] == end


class Bench:
    """Accounting of links whose traffic is set by hand."""

    def __init__(self, folder: Path, wall: str = "2026-06-01 00:00", seed: int = 1, **options: Any) -> None:
        self.folder = folder
        self.reactor = Clock()
        self.offset = at(wall)
        self.timers = Timers(self.reactor, wall=lambda: self.offset + self.reactor.seconds())
        self.traffic = (0, 0)
        self.seen: list[str] = []
        chosen: dict[str, Any] = {"limit": 100 * GB, "period": "month 1 00:00", "rule": "max"} | options
        self.accounting = Accounting(self.timers, lambda: self.traffic, folder, random.Random(seed), **chosen)
        self.accounting.on_change = self.seen.append
        self.accounting.start()

    @property
    def now(self) -> str:
        """How the node is."""
        return self.accounting.hibernating

    def carry(self, read: int, written: int, seconds: float = 2) -> str:
        """More traffic, and time; how the node is then."""
        self.traffic = (self.traffic[0] + read, self.traffic[1] + written)
        self.run(seconds)
        return self.now

    def run(self, seconds: float) -> None:
        """Let time pass, in steps of at most an hour."""
        while seconds > 0:
            step = min(3600.0, seconds)
            self.reactor.advance(step)
            seconds -= step

    def file(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / FILE_NAME).read_bytes())
        return found

    def again(self, **options: Any) -> Bench:
        """The node after a restart."""
        self.accounting.stop()
        wall = datetime.fromtimestamp(self.timers.wall()).isoformat()
        return Bench(self.folder, wall, **options)


@pytest.mark.parametrize(
    ("rule", "read", "written", "lefts"),
    [
        ("max", 30, 100, (70 * GB, 0)),
        ("max", 100, 30, (0, 70 * GB)),
        ("sum", 60, 40, (0, 0)),
        ("in", 100, 500, (0, 100 * GB)),
        ("out", 500, 100, (100 * GB, 0)),
    ],
)
def test_rules(tmp_path: Path, rule: str, read: int, written: int, lefts: tuple[int, int]) -> None:
    bench = Bench(tmp_path, rule=rule)
    assert bench.carry(read * GB - GB, written * GB - GB) == "awake"
    assert bench.carry(GB, GB) == "hard"
    state = bench.accounting.state()
    assert state is not None
    assert (state.read, state.written) == (read * GB, written * GB)
    assert (state.read_left, state.written_left) == lefts
    assert (state.start, state.end) == (at("2026-06-01"), at("2026-07-01"))
    bench.accounting.stop()


def test_soft_comes_before_hard_and_each_is_said_once(tmp_path: Path, said: list[str]) -> None:
    """5 % and 500 MiB: of a small limit the one counts, of a large one the other."""
    for limit, soft in ((GB, 951 * 10**6), (100 * GB, 99_480 * 10**6)):
        bench = Bench(tmp_path / str(limit), limit=limit)
        bench.folder.mkdir()
        said.clear()
        assert bench.carry(soft - 10**7, 0) == "awake"
        assert bench.carry(10**7, 0) == "soft"
        assert bench.carry(limit - soft, 0) == "hard"
        bench.run(3 * DAY)
        assert bench.seen == ["soft", "hard"]
        assert len(said) == 2
        assert said[1].endswith("hibernates until 2026-07-01 00:00")
        bench.accounting.stop()


def test_without_a_limit_nothing_is_counted_or_written(tmp_path: Path) -> None:
    bench = Bench(tmp_path, limit=0)
    assert bench.carry(GB, GB) == "awake"
    assert bench.accounting.state() is None
    assert len(bench.timers) == 0
    bench.accounting.stop()
    assert list(tmp_path.iterdir()) == []


def test_the_next_period_wakes_the_node(tmp_path: Path) -> None:
    bench = Bench(tmp_path, period="day 06:00", wall="2026-06-01 06:00")
    assert bench.carry(100 * GB, 0, 3600) == "hard"
    bench.run(22.9 * 3600)
    assert bench.now == "hard"
    bench.run(24 * 3600)
    assert bench.seen[:2] == ["hard", "awake"]
    state = bench.accounting.state()
    assert state is not None
    assert (state.read, state.written) == (0, 0)
    bench.accounting.stop()


def test_after_a_period_that_was_too_long_the_next_begins_at_some_time(tmp_path: Path) -> None:
    """The bytes lasted for 10 of 30 days: now the node wakes in the first 21 (July has 31), not always at once."""
    wakes = []
    for seed in range(20):
        folder = tmp_path / str(seed)
        folder.mkdir()
        bench = Bench(folder, seed=seed)
        bench.carry(1, 1, 10 * DAY)
        assert bench.carry(100 * GB, 0) == "hard"
        bench.run(20 * DAY)
        bench = bench.again(seed=seed + 100)
        state = bench.accounting.state()
        assert state is not None
        assert state.start <= state.wake <= state.start + 21 * DAY + 10
        assert bench.seen == ["hard"]
        wakes.append((state.wake - state.start) / DAY)
        bench.run(state.wake - bench.timers.wall() + 2)
        assert bench.seen == ["hard", "awake"]
        bench.run(31 * DAY)  # that lasted, so the one after begins at its beginning
        state = bench.accounting.state()
        assert state is not None
        assert state.start == state.wake == at("2026-08-01")
        bench.accounting.stop()
    assert min(wakes) < 7
    assert max(wakes) > 14


# restarts


def test_a_restart_goes_on_counting(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.carry(40 * GB, 1)
    bench = bench.again()
    bench.carry(40 * GB, 1)
    bench = bench.again()
    assert bench.carry(20 * GB, 1) == "hard"
    bench = bench.again()
    assert bench.seen == ["hard"], "told at once"
    bench.accounting.stop()


def test_saved_once_a_minute_and_at_each_change(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.carry(GB, 0)
    assert bench.file()["read"] == GB
    written = (tmp_path / FILE_NAME).stat().st_ino
    for _ in range(int(SAVE) - 5):
        bench.carry(1, 0, 1)
    assert (tmp_path / FILE_NAME).stat().st_ino == written
    for _ in range(10):
        bench.carry(1, 0, 1)
    assert bench.file()["read"] > GB
    bench.carry(99 * GB, 0)
    assert bench.file()["read"] > 100 * GB
    assert bench.file()["schema"] == 1
    bench.accounting.stop()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b'{"schema": 1}',
        b'{"schema": 9, "start": 1, "wake": 1, "read": 1, "written": 1, "exhausted_after": null}',
        b'{"schema": 1, "start": 1, "wake": 1, "read": -1, "written": 1, "exhausted_after": null}',
        b'{"schema": 1, "start": 1, "wake": 1, "read": true, "written": 1, "exhausted_after": null}',
        b'{"schema": 1, "start": NaN, "wake": 1, "read": 1, "written": 1, "exhausted_after": null}',
        b'{"schema": 1, "start": 1, "wake": 1e300, "read": 1, "written": 1, "exhausted_after": null}',
        b'{"schema": 1, "start": 1, "wake": 1e10, "read": 1, "written": 1, "exhausted_after": null}',
        b'{"schema": 1, "start": 1, "wake": 1, "read": 1, "written": "2", "exhausted_after": null}',
    ],
)
def test_a_damaged_file_is_told_in_one_line_and_counting_starts_afresh(
    tmp_path: Path, said: list[str], data: bytes
) -> None:
    (tmp_path / FILE_NAME).write_bytes(data)
    bench = Bench(tmp_path)
    (line,) = said
    assert line.startswith("accounting.json cannot be used (")
    assert "\n" not in line
    assert bench.carry(GB, GB) == "awake"
    assert bench.file()["read"] == GB
    bench.accounting.stop()


@settings(max_examples=20)  # each flushes to disk
@given(st.binary(max_size=200))
def test_any_bytes_in_the_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("state")
    (folder / FILE_NAME).write_bytes(data)
    bench = Bench(folder)
    assert bench.carry(GB, GB) == "awake"
    bench.accounting.stop()


def test_a_file_that_cannot_be_written_is_told_now_and_then(tmp_path: Path, said: list[str]) -> None:
    bench = Bench(tmp_path / "nowhere")
    for _ in range(5):
        bench.carry(GB, 0, SAVE)
    (line,) = said
    assert line.startswith("accounting.json cannot be written: ")
    bench.accounting.stop()


# clocks and configurations that change


def test_a_clock_set_back_keeps_what_was_counted(tmp_path: Path) -> None:
    """Also into the period before, and over a restart."""
    bench = Bench(tmp_path, wall="2026-06-02 00:00")
    bench.carry(60 * GB, 0)
    for days in (1, 40, 400):
        bench.offset -= days * DAY
        bench.run(5)
        state = bench.accounting.state()
        assert state is not None
        assert state.read == 60 * GB
        assert state.start <= bench.timers.wall() < state.end
        bench = bench.again()
    assert bench.carry(40 * GB, 0) == "hard"
    bench.accounting.stop()


def test_a_clock_set_forward_begins_a_new_period(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.carry(100 * GB, 0) == "hard"
    bench.offset += 3650 * DAY
    bench.run(31 * DAY)  # it may sleep for a part of it, but no longer
    assert bench.seen[:2] == ["hard", "awake"]
    bench.accounting.stop()


def test_the_limit_can_be_changed_while_it_counts(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.carry(100 * GB, 0) == "hard"
    bench.accounting.configure(200 * GB, "month 1 00:00", "max")
    assert bench.now == "awake"
    assert bench.carry(100 * GB, 0) == "hard"
    bench.accounting.configure(200 * GB, "month 1 00:00", "out")
    assert bench.now == "awake"
    bench.accounting.configure(100 * GB, "week 1 00:00", "in")
    assert bench.now == "hard", "what was carried stays counted"
    bench.accounting.configure(0, "month 1 00:00", "max")
    assert bench.now == "awake"
    assert len(bench.timers) == 0
    bench.accounting.configure(GB, "month 1 00:00", "max")
    assert bench.now == "hard"
    assert bench.seen == ["hard", "awake", "hard", "awake", "hard", "awake", "hard"]
    bench.accounting.stop()
