"""Whose connection an exit opens next."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure

from backrooms.node.timers import Timers
from backrooms.node.turns import MAX_WAITING, Turns
from tests.simnet.network import SimNet


def turns(rate: float = 10.0, burst: int = 2) -> tuple[SimNet, Turns, list[str]]:
    net = SimNet()
    return net, Turns(Timers(net.host("exit").reactor), rate, burst), []


def want(made: Turns, served: list[str], peer: str, circuit: str) -> None:
    def cancelled(failure: Failure) -> None:
        assert isinstance(failure.value, CancelledError)
        served.append("cancelled")

    made.turn(peer, circuit).addCallbacks(lambda _: served.append(peer + circuit), cancelled)


def test_a_burst_and_then_a_rate() -> None:
    net, made, served = turns()
    for _ in range(12):
        want(made, served, "a", "1")
    assert len(served) == 2
    net.run(0.55)
    assert len(served) == 7
    net.run(1)
    assert len(served) == 12


def test_b11_who_asks_seldom_hardly_waits_behind_who_floods() -> None:
    net, made, served = turns(rate=100.0, burst=1)
    for circuit in range(50):
        for _ in range(10):
            want(made, served, "flood", str(circuit))
    net.run(1)
    want(made, served, "quiet", "1")
    before = len(served)
    net.run(0.03)
    assert "quiet1" in served[before : before + 2]


def test_the_circuits_of_one_peer_take_turns() -> None:
    net, made, served = turns(rate=100.0, burst=1)
    for circuit in ("1", "2", "3"):
        for _ in range(4):
            want(made, served, "a", circuit)
    net.run(1)
    assert served[1:7] in (["a2", "a3", "a1"] * 2, ["a1", "a2", "a3"] * 2)


def test_who_leaves_the_line_takes_no_turn() -> None:
    net, made, served = turns()
    for _ in range(3):
        want(made, served, "a", "1")
    place = made.turn("b", "1")
    ended: list[object] = []
    place.addBoth(ended.append)
    place.cancel()
    assert isinstance(ended[0], Failure)
    net.run(1)
    assert served == ["a1"] * 3


def test_closing_cancels_all() -> None:
    net, made, served = turns()
    for number in range(6):
        want(made, served, "a", str(number % 2))
    made.close()
    net.run(1)
    assert served == ["a0", "a1", *["cancelled"] * 4]


def test_b11_when_too_many_wait_the_longest_line_gets_shorter() -> None:
    net, made, served = turns(rate=100.0, burst=1)
    for number in range(MAX_WAITING + 1):
        want(made, served, "flood", str(number % 7))
    assert not made.has_room("flood")
    assert made.has_room("quiet")
    want(made, served, "quiet", "1")
    assert served == ["flood0", "cancelled"]
    net.run(0.03)
    assert served[2] == "quiet1"
