"""A relay's memory of handshakes: untimely and repeated ones, rotation, a flood, a clock that jumps."""

from __future__ import annotations

import random

import pytest

from backrooms.crypto.ntor import ReplayCache
from backrooms.errors import CryptoError, LocalProtocolError
from backrooms.wire.extensions import ClientExtensions
from tests.crypto.handshakes import make_relay, refused, start

MINUTE = 60.0
NOW = 30_000_000 * MINUTE


def handshake(number: int) -> bytes:
    """Something whose last 32 bytes stand for a MAC, as random as one."""
    return bytes(100) + random.Random(number).randbytes(32)


@pytest.mark.parametrize(
    ("off", "good"), [(-91, False), (-90, True), (0, True), (90, True), (91, False), (-(10**6), False)]
)
def test_window_of_ninety_minutes_either_way(off: int, good: bool) -> None:
    cache = ReplayCache()
    minute = 30_000_000 + off
    assert cache.admit(handshake(1), minute, NOW) is good
    assert cache.admit(handshake(2), minute, NOW + 59.9) is good
    assert len(cache) == 2 * good


@pytest.mark.parametrize("age", range(0, 380, 11))
@pytest.mark.parametrize("off", [-90, 0, 90])
def test_as_long_as_it_would_be_timely_it_is_remembered(age: int, off: int) -> None:
    """Wherever in a turn it arrives and however the rotations fall: never admitted twice."""
    cache = ReplayCache()
    assert cache.admit(handshake(-1), 30_000_000, NOW)  # the first turn begins
    minute = 30_000_000 + age + off
    assert cache.admit(handshake(-2), minute, NOW + age * MINUTE)
    for later in range(0, 380, 6):
        now = NOW + (age + later) * MINUTE
        assert cache.admit(handshake(later), int(now // 60), now)  # traffic that makes the sets rotate
        assert not cache.admit(handshake(-2), minute, now), later


def test_only_the_mac_counts() -> None:
    cache = ReplayCache()
    assert cache.admit(b"one" + handshake(1), 30_000_000, NOW)
    assert not cache.admit(b"another" + handshake(1), 30_000_001, NOW)
    assert cache.admit(handshake(2), 30_000_000, NOW)


def test_old_ones_are_forgotten() -> None:
    cache, now = ReplayCache(), NOW
    for number in range(24 * 6):
        assert cache.admit(handshake(number), int(now // 60), now)
        now += 10 * MINUTE
    assert len(cache) <= 38  # two turns of 182 minutes
    assert cache.early == 0


def test_a_full_set_rotates_early_and_is_counted() -> None:
    cache = ReplayCache(capacity=10)
    for number in range(20):
        assert cache.admit(handshake(number), 30_000_000, NOW)
    assert (len(cache), cache.early) == (20, 1)
    assert not any(cache.admit(handshake(number), 30_000_000, NOW) for number in range(20))
    for number in range(20, 95):
        assert cache.admit(handshake(number), 30_000_000, NOW)  # a flood shuts nobody out
        assert len(cache) <= 20
    assert cache.early == 9
    assert not any(cache.admit(handshake(number), 30_000_000, NOW) for number in range(85, 95))
    with pytest.raises(LocalProtocolError, match="replay cache"):
        ReplayCache(0)


def test_a_clock_that_jumps_does_not_lock_anybody_out() -> None:
    cache = ReplayCache()
    year = 365 * 24 * 60
    for minute in (30_000_000, 30_000_000 + year, 30_000_001, 30_000_000 - year, 30_000_002):
        now = minute * MINUTE
        assert cache.admit(handshake(minute), minute, now)
        assert not cache.admit(handshake(minute), minute, now)


def test_a_replayed_handshake_is_refused_by_a_relay_that_asks_the_cache() -> None:
    relay, cache = make_relay(), ReplayCache()
    _, sent = start(relay, client_message=ClientExtensions(30_000_000).encode())

    def respond(sent: bytes, now: float) -> bytes:
        return relay.respond(sent, make_reply=lambda message: cache.check(message, sent, now))[0]

    assert refused(lambda: respond(sent, NOW - 92 * MINUTE))
    respond(sent, NOW)
    assert refused(lambda: respond(sent, NOW))
    assert refused(lambda: respond(sent, NOW + 59 * MINUTE))
    assert refused(lambda: respond(sent, NOW + 300 * MINUTE))
    _, other = start(relay, rng=random.Random(2), client_message=ClientExtensions(30_000_000).encode())
    respond(other, NOW + MINUTE)
    # a forged MAC is refused before the cache hears of it
    known = len(cache)
    with pytest.raises(CryptoError):
        respond(other[:-1] + bytes([other[-1] ^ 1]), NOW)
    assert len(cache) == known


@pytest.mark.parametrize("message", [b"", b"\x01", b"\x01\x00\x03abc", b"\x02\x00\x00", ClientExtensions(7).encode()])
def test_a_client_message_without_a_good_timestamp_is_refused(message: bytes) -> None:
    relay, cache = make_relay(), ReplayCache()
    _, sent = start(relay, client_message=message)
    assert refused(lambda: relay.respond(sent, make_reply=lambda got: cache.check(got, sent, NOW)))
    assert len(cache) == 0
