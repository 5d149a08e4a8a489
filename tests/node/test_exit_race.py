"""Connecting to the first of several addresses that answers, and turns at a bounded rate."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import error as net
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from backrooms.errors import StreamError
from backrooms.node.pace import Pace
from backrooms.node.race import (
    ADDRESS_LIMIT,
    ATTEMPT_DELAY,
    CONNECT_TIMEOUT,
    CONNECT_TOTAL,
    Race,
    in_turns,
    reason_of,
)
from backrooms.node.timers import Timers
from backrooms.wire.relay import EndReason
from tests.simnet.network import Host, SimNet

FOUR, SIX = "198.51.100.1", "2001:db8::1"
DELAY = 0.02
"""Seconds that a segment takes from the exit to an address, unless a test changes it."""


class Run:
    """A race on a host `exit`, to hosts of one address each."""

    def __init__(self) -> None:
        self.net = SimNet()
        self.exit = self.net.host("exit", "10.0.0.1", "fd00::1")
        self.timers = Timers(self.exit.reactor)
        self.hosts: dict[str, Host] = {}
        self.accepted: list[str] = []
        self.made: list[tuple[str, float]] = []
        self.lost: list[str] = []
        self.result: list[Any] = []
        self.began = 0.0

    def add(self, address: str, *, listens: bool = True, delay: float = DELAY, cut: bool = False) -> Host:
        host = self.hosts[address] = self.net.host(address, address)
        self.net.link(self.exit, host, delay=delay)
        if cut:
            self.net.cut(self.exit, host)
        if listens:
            run = self

            class Server(Protocol):
                def connectionMade(self) -> None:
                    run.accepted.append(address)

            host.reactor.listenTCP(80, Factory.forProtocol(Server), interface="::" if ":" in address else "")
        return host

    def start(self, *addresses: str) -> Race:
        run = self

        class Client(Protocol):
            def __init__(self, address: str) -> None:
                self.address = address

            def connectionMade(self) -> None:
                race.won(self.address)
                run.made.append((self.address, run.net.now - run.began))

            def connectionLost(self, reason: Failure = net.ConnectionDone) -> None:  # type: ignore[assignment]
                run.lost.append(self.address)

        race = Race(self.exit.reactor, self.timers, addresses, 80, Client)
        self.began = self.net.now
        self.running = race.run()
        self.running.addBoth(self.result.append)
        return race

    def finish(self, limit: float = 60) -> Any:
        """What came of it, once everything else is over, too."""
        self.net.run_until(lambda: self.result, limit)
        self.took = self.net.now - self.began
        self.net.run(CONNECT_TOTAL + 1)
        assert len(self.timers) == 0, "a timer was left"
        assert [call for call in self.exit.reactor.getDelayedCalls() if call.active()] == []
        return self.result[0]

    def fails(self) -> EndReason:
        failure = self.finish()
        assert isinstance(failure, Failure)
        assert isinstance(failure.value, StreamError)
        assert str(failure.value)
        return EndReason(failure.value.reason)


@pytest.fixture
def run() -> Run:
    return Run()


def test_the_first_address_that_answers_is_the_only_one(run: Run) -> None:
    run.add(SIX)
    run.add(FOUR)
    run.start(SIX, FOUR)
    assert run.finish() is None
    assert [address for address, _ in run.made] == [SIX]
    assert run.accepted == [SIX], "the other was not even tried"


def test_an_address_that_is_silent_costs_a_quarter_of_a_second(run: Run) -> None:
    run.add(SIX, cut=True)
    run.add(FOUR)
    run.start(SIX, FOUR)
    assert run.finish() is None
    ((address, took),) = run.made
    assert address == FOUR
    assert took == pytest.approx(ATTEMPT_DELAY + 2 * DELAY, abs=0.01)


def test_an_address_that_refuses_costs_nothing_more(run: Run) -> None:
    run.add(SIX, listens=False)
    run.add(FOUR)
    run.start(SIX, FOUR)
    assert run.finish() is None
    assert run.made[0][1] == pytest.approx(4 * DELAY, abs=0.01)


def test_the_slower_attempt_is_cancelled(run: Run) -> None:
    """It may be in the middle of its handshake: it must not become a connection."""
    run.add(SIX, delay=ATTEMPT_DELAY / 2 + DELAY + 0.001)
    run.add(FOUR)
    run.start(SIX, FOUR)
    assert run.finish() is None
    assert [address for address, _ in run.made] == [FOUR]
    assert run.lost == []
    assert SIX not in run.accepted


def test_a_slow_first_address_may_still_win(run: Run) -> None:
    run.add(SIX, delay=ATTEMPT_DELAY)
    run.add(FOUR, cut=True)
    run.start(SIX, FOUR)
    assert run.finish() is None
    assert [address for address, _ in run.made] == [SIX]


def test_attempts_begin_one_after_the_other(run: Run) -> None:
    addresses = [f"198.51.100.{number}" for number in range(1, 4)]
    for address in addresses[:-1]:
        run.add(address, cut=True)
    run.add(addresses[-1])
    run.start(*addresses)
    assert run.finish() is None
    assert run.made[0][1] == pytest.approx(2 * ATTEMPT_DELAY + 2 * DELAY, abs=0.01)


def test_not_all_addresses_are_tried(run: Run) -> None:
    addresses = [f"198.51.100.{number}" for number in range(1, ADDRESS_LIMIT + 2)]
    for address in addresses[:-1]:
        run.add(address, listens=False)
    run.add(addresses[-1])
    run.start(*addresses)
    assert run.fails() == EndReason.CONNECTREFUSED
    assert run.accepted == []


def test_silence_has_an_end(run: Run) -> None:
    run.add(SIX, cut=True)
    run.add(FOUR, cut=True)
    run.start(SIX, FOUR)
    assert run.fails() == EndReason.TIMEOUT
    assert run.took == pytest.approx(CONNECT_TIMEOUT + ATTEMPT_DELAY, abs=0.1)


def test_all_attempts_together_have_an_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backrooms.node.race.CONNECT_TOTAL", 5.0)
    run.add(SIX, cut=True)
    run.start(SIX)
    assert run.fails() == EndReason.TIMEOUT
    assert run.took == pytest.approx(5.0, abs=0.1)


def test_the_most_telling_reason_is_told(run: Run) -> None:
    run.add(SIX, cut=True)  # times out last
    run.add(FOUR, listens=False)
    run.start("2001:db8::dead", SIX, FOUR)
    assert run.fails() == EndReason.CONNECTREFUSED


def test_no_route(run: Run) -> None:
    run.start("2001:db8::dead", "198.51.100.99")
    assert run.fails() == EndReason.NOROUTE


def test_no_descriptors_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    run.add(FOUR)
    monkeypatch.setattr(run.exit, "socket", none_left)
    run.start(FOUR)
    assert run.fails() == EndReason.RESOURCELIMIT


def test_cancelling_ends_all_attempts(run: Run) -> None:
    run.add(SIX, delay=1)
    run.add(FOUR, delay=1)
    run.start(SIX, FOUR)
    run.net.run(ATTEMPT_DELAY * 2)
    run.running.cancel()
    failure = run.finish()
    assert isinstance(failure.value, CancelledError)
    assert run.made == []
    assert run.accepted == []


def test_addresses_that_are_no_longer_allowed_are_given_up(run: Run) -> None:
    run.add(SIX, delay=0.3)
    run.add(FOUR, delay=0.6)
    race = run.start(SIX, FOUR)
    run.net.run(ATTEMPT_DELAY * 2)
    race.keep(lambda address: address == FOUR)
    assert run.finish() is None
    assert [address for address, _ in run.made] == [FOUR]


def test_an_address_that_waits_for_its_turn_may_be_the_one_that_is_left(run: Run) -> None:
    run.add(SIX, delay=0.3)
    run.add(FOUR)
    race = run.start(SIX, FOUR)
    race.keep(lambda address: address == FOUR)
    assert run.finish() is None
    ((address, took),) = run.made
    assert address == FOUR
    assert took == pytest.approx(2 * DELAY, abs=0.01)


def test_when_none_is_allowed_any_more_that_is_the_reason(run: Run) -> None:
    run.add(SIX, delay=0.3)
    run.add(FOUR)
    race = run.start(SIX, FOUR)
    race.keep(lambda _: False)
    assert run.fails() == EndReason.EXITPOLICY
    assert run.took == 0
    race.keep(lambda _: False)


@pytest.mark.parametrize(
    ("addresses", "six_first", "expected"),
    [
        (["1", "2", "::1", "::2", "::3"], False, ["1", "::1", "2", "::2", "::3"]),
        (["1", "2", "::1", "::2", "::3"], True, ["::1", "1", "::2", "2", "::3"]),
        (["1", "2", "3", "::1"], True, ["::1", "1", "2", "3"]),
        (["1", "2"], True, ["1", "2"]),
        (["::1"], False, ["::1"]),
        ([], False, []),
    ],
)
def test_kinds_take_turns(addresses: list[str], six_first: bool, expected: list[str]) -> None:
    assert in_turns(addresses, six_first) == expected


@pytest.mark.parametrize(
    ("kind", "number", "reason"),
    [
        (net.ConnectionRefusedError, errno.ECONNREFUSED, EndReason.CONNECTREFUSED),
        (net.TCPTimedOutError, errno.ETIMEDOUT, EndReason.TIMEOUT),
        (net.TimeoutError, None, EndReason.TIMEOUT),
        (net.NoRouteError, errno.ENETUNREACH, EndReason.NOROUTE),
        (net.ConnectError, errno.EHOSTUNREACH, EndReason.NOROUTE),
        (net.ConnectBindError, errno.EMFILE, EndReason.RESOURCELIMIT),
        (net.ConnectError, errno.EADDRNOTAVAIL, EndReason.RESOURCELIMIT),
        (net.ConnectError, errno.EACCES, EndReason.MISC),
        (net.ConnectError, None, EndReason.MISC),
        (OSError, errno.ENFILE, EndReason.RESOURCELIMIT),
    ],
)
def test_reasons(kind: Callable[..., Exception], number: int | None, reason: EndReason) -> None:
    assert reason_of(kind(number, "what the system said")) == reason


# turns at a bounded rate


class Line:
    """Who came through a `Pace`, in which order."""

    def __init__(self, rate: float, burst: int) -> None:
        self.clock = Clock()
        self.timers = Timers(self.clock)
        self.pace = Pace(self.timers, rate, burst)
        self.through: list[int] = []

    def enter(self, number: int) -> Deferred[None]:
        turn = self.pace.turn()
        turn.addCallbacks(lambda _: self.through.append(number), lambda _: None)
        return turn

    def wait(self, seconds: float) -> None:
        """Let time pass in small steps: the clock shows the end of a step to all that happens in it."""
        self.clock.pump([0.01] * round(seconds * 100))


def test_a_burst_then_a_rate() -> None:
    line = Line(10, 5)
    for number in range(20):
        line.enter(number)
    assert line.through == list(range(5))
    assert len(line.pace) == 15
    line.wait(0.75)
    assert line.through == list(range(5 + 7))
    line.wait(0.8)
    assert line.through == list(range(20))
    assert len(line.timers) == 0
    line.wait(60)
    for number in range(6):
        line.enter(100 + number)
    assert line.through[-1] == 104, "what was not used is not saved beyond the burst"
    line.pace.close()


def test_nobody_overtakes_who_waits() -> None:
    line = Line(1, 1)
    for number in range(3):
        line.enter(number)
    line.wait(0.9)
    line.enter(3)
    line.wait(4)
    assert line.through == [0, 1, 2, 3]


def test_who_leaves_takes_no_turn() -> None:
    line = Line(1, 1)
    turns = [line.enter(number) for number in range(4)]
    turns[1].cancel()
    turns[3].cancel()
    line.wait(1.1)
    assert line.through == [0, 2]
    assert len(line.pace) == 0
    assert len(line.timers) == 0


def test_a_closed_pace_lets_nobody_wait() -> None:
    line = Line(1, 1)
    for number in range(4):
        line.enter(number)
    line.pace.close()
    assert len(line.pace) == 0
    assert len(line.timers) == 0
    line.wait(10)
    assert line.through == [0]
