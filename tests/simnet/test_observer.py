"""The observer sees what is on the wires, and joined machines talk as they would over a network."""

from __future__ import annotations

import pytest

from backrooms.errors import WireError
from tests.simnet.machines import Wire, wire_machines
from tests.simnet.network import SimNet
from tests.simnet.observer import Observer
from tests.simnet.pairs import Pair


def test_it_sees_every_byte_with_its_time() -> None:
    pair = Pair(delay=0.1)
    watch = Observer(pair.net)
    begin = pair.net.now
    pair.client.tcp.write(b"hello")
    pair.net.run(1)
    pair.server.tcp.write(b"good day")
    pair.net.run(1)
    first, second = watch.sightings
    assert (first.source, first.target, first.outward, first.data) == ("a", "b", True, b"hello")
    assert (second.source, second.target, second.outward, second.size) == ("b", "a", False, 8)
    assert first.connection == second.connection
    assert first.time == begin
    assert watch.bytes_by_link() == {("a", "b"): 5, ("b", "a"): 8}
    assert watch.total() == 13
    assert watch.total(pair.a) == watch.total(pair.a, pair.b) == 5
    assert watch.gaps() == [1.0]
    assert watch.stream(first.connection, outward=True) == b"hello"
    assert watch.peers(pair.a) == {"b"}


def test_it_sits_where_it_is_put() -> None:
    pair = Pair(delay=0.1, rate=100_000.0)
    other = pair.net.host("c")
    near, far = Observer(pair.net), Observer(pair.net, at="arrival")
    elsewhere = Observer.between(pair.net, pair.a, other)
    around = Observer.around(pair.net, pair.a, keep=False)
    begin = pair.net.now
    pair.client.tcp.write(bytes(14_600))
    pair.net.run(1)
    assert len(near.sightings) == len(far.sightings) == 10
    assert near.sightings[0].time == begin
    assert far.gaps() == pytest.approx([0.0146] * 9)
    assert far.sightings[-1].time - begin == pytest.approx(0.246)
    assert elsewhere.sightings == []
    assert around.total() == 14_600
    with pytest.raises(ValueError, match="no bytes"):
        around.contains(b"x")
    near.stop()
    far.clear()
    pair.client.tcp.write(b"more")
    pair.net.run(1)
    assert (near.total(), far.total()) == (14_600, 4)


def test_a_canary_is_found_across_segments() -> None:
    pair = Pair(rate=1e6, mss=10)
    watch = Observer(pair.net)
    pair.client.tcp.write(b"....... needle in a haystack .......")
    pair.net.run(1)
    assert all(b"needle in a haystack" not in seen.data for seen in watch.sightings)
    assert watch.where(b"needle in a haystack") == [("a", "b")]
    assert not watch.contains(b"pin")
    with pytest.raises(ValueError, match="empty"):
        watch.contains(b"")


def test_nothing_is_kept_when_nobody_watches() -> None:
    pair = Pair()
    watch = Observer(pair.net)
    watch.stop()
    pair.client.tcp.write(bytes(1_000))
    pair.net.run(1)
    assert watch.sightings == []
    assert SimNet().observers == []


class Counter:
    """A machine: greets with `first`, answers n > 0 with n - 1, says a zero every `period` seconds."""

    def __init__(self, first: int = 0, period: float | None = None) -> None:
        self._out = bytes([first]) if first else b""
        self._events: list[int] = []
        self._period = period
        self._due = None if period is None else 1_000.0 + period

    def receive(self, data: bytes, now: float) -> None:
        for number in data:
            if number == 0xFF:
                raise WireError("255 is no number of ours")
            self._events.append(number)
            if number:
                self._out += bytes([number - 1])

    def receive_eof(self, now: float) -> None:
        """Nothing to do."""

    def events(self) -> list[int]:
        events, self._events = self._events, []
        return events

    def output(self) -> bytes:
        out, self._out = self._out, b""
        return out

    def deadline(self) -> float | None:
        return self._due

    def tick(self, now: float) -> None:
        assert self._due is not None
        assert now == self._due
        self._out += b"\0"
        if self._period:
            self._due += self._period


@pytest.mark.parametrize("trickle", [False, True])
def test_joined_machines(trickle: bool) -> None:
    wire = wire_machines(Counter(5), Counter(), trickle=trickle)
    assert (wire.events_a, wire.events_b) == ([4, 2, 0], [5, 3, 1])
    assert (wire.sent_a, wire.sent_b) == (3, 3)


def test_joined_machines_tick() -> None:
    wire = Wire(Counter(period=1.0), Counter(period=0.4), chunk=3)
    wire.advance(2.0)
    assert wire.now == 1_002.0
    assert (len(wire.events_a), len(wire.events_b)) == (5, 2)


def test_errors_of_machines_come_out() -> None:
    with pytest.raises(WireError, match="255"):
        wire_machines(Counter(0xFF), Counter())


def test_machines_without_end_are_an_error() -> None:
    class Chatter(Counter):
        def output(self) -> bytes:
            return b"\0"

    with pytest.raises(AssertionError, match="still talk"):
        wire_machines(Chatter(), Chatter())

    class Stuck(Counter):
        def tick(self, now: float) -> None:
            """Does not move its deadline."""

    with pytest.raises(AssertionError, match="does not move on"):
        Wire(Stuck(period=1.0), Counter()).advance(5)
