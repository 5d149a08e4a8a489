"""How much a node allows, how it is shared, and what has to go."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.channel.circuits import MAX_REFUSED
from backrooms.config.options import LimitOptions
from backrooms.errors import ConfigError
from backrooms.node.limits import (
    CIRCUIT_MEMORY,
    LINK_MEMORY,
    MEMORY_MOST,
    PROXY_CONNECTIONS,
    STREAM_MEMORY,
    Shares,
    caps,
    choose,
    machine_memory,
)

GIB = 1 << 30

# what a process can afford


@given(
    st.integers(100, 1 << 20),
    st.integers(16 << 20, 1 << 40),
    st.booleans(),
    st.booleans(),
    st.integers(8, 65536),
)
def test_all_caps_together_fit_into_the_open_files(
    files: int, memory: int, is_exit: bool, is_client: bool, pending: int
) -> None:
    found = caps(LimitOptions(pending_links=pending), files, memory, is_exit, is_client)
    streams = found.streams + 3 * found.half_open if is_exit else 0  # one attempt is counted with the stream
    used = found.links + found.pending_links + streams + (found.proxies if is_client else 0)
    assert used <= files - 32
    assert found.half_open <= found.streams
    assert min(found.links, found.pending_links, found.streams, found.half_open, found.proxies) >= 1


@given(st.integers(1 << 28, 1 << 40), st.sampled_from([0, 64 << 20, 4 << 30]))
def test_all_caps_together_fit_into_the_memory(memory: int, bound: int) -> None:
    found = caps(LimitOptions(memory=bound), 1 << 20, memory, True, True)
    assert found.memory == (bound or min(memory // 4, MEMORY_MOST))
    idle = found.links * LINK_MEMORY + found.circuits * CIRCUIT_MEMORY + found.streams * STREAM_MEMORY
    assert idle <= 1.25 * found.memory


def test_caps_of_a_usual_relay() -> None:
    found = caps(LimitOptions(), 524_288, 8 * GIB, True, False)
    assert found.memory == GIB
    assert found.links > 8_000
    assert found.circuits > 25_000
    assert found.streams == 16_384
    assert found.proxies == PROXY_CONNECTIONS
    assert found.pending_links == LimitOptions().pending_links
    few = caps(LimitOptions(), 1024, 8 * GIB, True, False)
    assert (few.links, few.pending_links, few.streams, few.half_open) == (448, 112, 224, 37)


def test_memory_is_what_the_control_group_leaves(tmp_path: Path) -> None:
    mine = tmp_path / "of_process"
    missing = machine_memory(tmp_path / "none", tmp_path / "none")
    assert missing > 1 << 24, "the machine's"
    folder = tmp_path / "cgroup" / "system.slice" / "backrooms.service"
    folder.mkdir(parents=True)
    mine.write_text("1:name=systemd:/old\n0::/system.slice/backrooms.service\n")

    def found() -> int:
        return machine_memory(tmp_path / "cgroup", mine)

    (folder / "memory.max").write_text("max\n")
    assert found() == missing
    (tmp_path / "cgroup" / "memory.max").write_text("12345678\n")
    assert found() == 12_345_678, "a container has its limit at the top"
    (folder / "memory.max").write_text("1000000\n")
    assert found() == 1_000_000
    (tmp_path / "memory.max").write_text("5\n")
    assert found() == 1_000_000, "nothing above is looked at"


# fair shares

HOLDERS = st.integers(0, 4)


class Model:
    """`Shares`, done slowly."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.things: list[tuple[int, int]] = []

    def count(self, holder: int) -> int:
        return sum(one == holder for one, _ in self.things)

    def admit(self, holder: int, thing: int, most: int) -> tuple[bool, int]:
        """Whether it is taken in, and how much the holder has that must give something up (0: none)."""
        mine = self.count(holder)
        counts = Counter(one for one, _ in self.things)
        if mine >= most:
            return False, 0
        if len(self.things) < self.limit:
            return True, 0
        biggest = max(counts.values())
        return (True, biggest) if biggest > mine + 1 else (False, 0)


@given(
    st.integers(1, 12),
    st.integers(1, 8),
    st.lists(st.tuples(st.sampled_from(["admit"] * 6 + ["remove", "drop"]), HOLDERS, st.integers(0, 100)), max_size=80),
)
def test_shares_do_what_a_slow_model_does(limit: int, most: int, steps: list[tuple[str, int, int]]) -> None:
    given_up: list[tuple[int, int]] = []
    shares: Shares[int, tuple[int, int]] = Shares(limit, given_up.append)
    model = Model(limit)
    for number, (what, holder, which) in enumerate(steps):
        if what == "admit":
            thing = (holder, number)
            taken, biggest = model.admit(holder, number, most)
            assert shares.has_room(holder, most) == taken
            assert shares.admit(holder, thing, most) == taken
            assert len(given_up) == (biggest > 0)
            for victim in given_up:
                assert model.count(victim[0]) == biggest, "of one that has most"
                assert victim == [one for one in model.things if one[0] == victim[0]][-1], "its newest"
                model.things.remove(victim)
            given_up.clear()
            model.things += [thing] * taken
        elif what == "remove" and model.things:
            thing = model.things[which % len(model.things)]
            shares.remove(thing[0], thing)
            shares.remove(thing[0], thing)  # harmless
            model.things.remove(thing)
        elif what == "drop":
            shares.drop(holder)
            model.things = [one for one in model.things if one[0] != holder]
        assert len(shares) == len(model.things) <= limit
        assert [shares.count(one) for one in range(5)] == [model.count(one) for one in range(5)]


def test_who_has_an_equal_share_loses_nothing() -> None:
    lost: list[str] = []
    shares: Shares[str, str] = Shares(30, lost.append)
    for number in range(3):
        assert shares.admit("honest", f"honest {number}", 100)
    for attacker in range(9):
        for number in range(100):
            shares.admit(f"attacker {attacker}", f"attacker {attacker} {number}", 100)
    assert shares.count("honest") == 3
    assert len(shares) == 30
    assert lost
    assert not any(one.startswith("honest") for one in lost)
    assert shares.admit("late", "late", 100), "there is always room for somebody who has nothing"


# what goes when too much waits

SIZES = st.dictionaries(st.integers(0, 8), st.lists(st.integers(1, 1000), max_size=12), max_size=8)


@given(SIZES, st.integers(0, 20_000))
def test_what_is_chosen_is_enough_and_no_more(sizes: dict[int, list[int]], excess: int) -> None:
    holdings = {
        holder: [(size, (holder, number)) for number, size in enumerate(sorted(all_of, reverse=True))]
        for holder, all_of in sizes.items()
    }
    size_of = {thing: size for things in holdings.values() for size, thing in things}
    chosen = choose(holdings, excess)
    freed = sum(size_of[thing] for thing in chosen)
    assert len(set(chosen)) == len(chosen)
    assert freed >= min(excess, sum(size_of.values()))
    if chosen:
        assert freed - size_of[chosen[-1]] < excess, "the last one was still needed"
    for holder, things in holdings.items():
        mine = [thing for thing in chosen if thing[0] == holder]
        assert mine == [thing for _, thing in things[: len(mine)]], "in the order in which they may go"


@given(SIZES, st.floats(0, 1))
def test_nobody_loses_anything_who_has_an_equal_share_or_less(sizes: dict[int, list[int]], part: float) -> None:
    sizes = {holder: all_of for holder, all_of in sizes.items() if all_of}
    holdings = {holder: [(size, (holder, n)) for n, size in enumerate(all_of)] for holder, all_of in sizes.items()}
    total = sum(map(sum, sizes.values()))
    allowed = int(part * total)
    losers = {holder for holder, _ in choose(holdings, total - allowed)}
    for holder, all_of in sizes.items():
        if sum(all_of) <= allowed / len(sizes):
            assert holder not in losers
    # Whoever lost had, before the last of it went, no less than anybody has now.
    left = {holder: sum(all_of) for holder, all_of in sizes.items()}
    most_left, at_last = 0.0, inf
    for holder, number in choose(holdings, total - allowed):
        at_last = left[holder]
        left[holder] -= sizes[holder][number]
        most_left = max(left.values())
        assert at_last >= most_left


def test_many_small_things_of_one_do_not_outlast_the_big_one_of_another() -> None:
    holdings = {"attacker": [(10, f"small {n}") for n in range(10_000)], "honest": [(8_000, "bulk")]}
    assert "bulk" not in choose(holdings, 90_000)
    assert "bulk" in choose(holdings, 105_000)


def test_ids_that_are_remembered_are_few() -> None:
    """What a link holds without a circuit stays small beside what is counted for it."""
    assert MAX_REFUSED * 100 < LINK_MEMORY


@pytest.mark.parametrize("memory", [1, 15 << 20])
def test_a_bound_below_one_circuits_window_is_refused(memory: int) -> None:
    options = replace(LimitOptions(), memory=memory)
    with pytest.raises(ConfigError, match=r"memory: must be 0 or at least 16777216 \(16 MiB\)"):
        options.check()
