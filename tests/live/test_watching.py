"""Real relays watch each other: one that is stopped is known in seconds, and none that only stutters."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from backrooms.crypto.keys import fingerprint, parse_id
from tests.live.network import Network, start, wait_until

DEAD = "believed to be dead"
AVOIDED = "is avoided"
SETTLING = 45.0
"""Seconds until all watch each other and the client hears from three of them."""
JITTER = 0.2
SECONDS = float(os.environ.get("BACKROOMS_WATCHING_SECONDS", "600"))
SLOWEST = 20.0
"""Seconds that a busy machine may take; a quiet one takes under five."""


@pytest.fixture
def watching(tmp_path: Any) -> Iterator[Network]:
    """Six relays that have had the time to get to know each other."""
    made = start(tmp_path / "net", 6, 2)
    time.sleep(SETTLING)
    yield made
    made.stop()
    assert made.faults() == []


def names(network: Network) -> list[str]:
    return [relay["nickname"] for relay in network.state["relays"]]


@pytest.mark.live
def test_w15_a_stopped_relay_is_known_and_avoided_and_nobody_else_is(watching: Network) -> None:
    entries = {circuit["path"][0]["fingerprint"] for circuit in watching.ask("circuits") if circuit["path"]}
    marked = [(one, fingerprint(parse_id(one["id"]))) for one in watching.state["relays"]]
    victim, mark = next((one, mark) for one, mark in marked if mark not in entries)
    others = [one for one in names(watching) if one != victim["nickname"]]
    assert not any(AVOIDED in watching.log(one) or DEAD in watching.log(one) for one in [*others, "client"])
    os.kill(victim["pid"], signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        avoided = f"relay {mark[:8]} {AVOIDED}"
        assert wait_until(lambda: avoided in watching.log("client"), SLOWEST), watching.log("client")[-2000:]
        print(f"a client knew after {time.monotonic() - stopped:.2f} s")
        assert wait_until(lambda: all(f"relay {mark[:8]} is {DEAD}" in watching.log(one) for one in others), SLOWEST)
    finally:
        os.kill(victim["pid"], signal.SIGCONT)
    time.sleep(3)
    for one in others:
        assert watching.log(one).count(DEAD) == 1, "of this one relay only, and once"


@contextmanager
def stutter(pids: list[int]) -> Iterator[list[int]]:
    """Stop each process now and then for up to 200 ms; gives a list that the number of stops is put into."""
    ending = threading.Event()
    counts: list[int] = []

    def run(pid: int) -> None:
        rng, count = random.Random(pid), 0
        while not ending.wait(rng.uniform(0.1, 0.8)):
            os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(rng.uniform(0, JITTER))
            finally:
                os.kill(pid, signal.SIGCONT)
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=run, args=(pid,)) for pid in pids]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        ending.set()
        for thread in threads:
            thread.join()


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 300)
def test_w15_no_false_alarm_in_ten_minutes_of_jitter(watching: Network) -> None:
    with stutter([relay["pid"] for relay in watching.state["relays"]]) as counts:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(min(5.0, SECONDS))
            for one in [*names(watching), "client"]:
                log = watching.log(one)
                assert DEAD not in log, (one, log[-2000:])
                assert AVOIDED not in log, (one, log[-2000:])
    assert sum(counts) > SECONDS * len(names(watching)) / 2
