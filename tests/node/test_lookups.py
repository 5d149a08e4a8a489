"""Look-ups: what each circuit remembers, how many run at a time, and whose turn it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from backrooms.errors import StreamError
from backrooms.node import lookups
from backrooms.node.lookups import CIRCUIT_WAITING, MAX_TTL, MIN_TTL, RESOLVE_TIMEOUT, LookUps
from backrooms.node.resolvers import NEGATIVE_TTL, UNKNOWN_TTL, Found, SystemResolver, Unanswered
from backrooms.node.timers import Timers
from backrooms.wire.relay import EndReason

PLACES = 6
SHARE = PLACES // 2


class Slow:
    """A resolver that answers when the test says so."""

    places = PLACES

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.under_way: dict[int, Deferred[Found]] = {}
        self.at_once: Exception | None = None

    async def addresses(self, name: str) -> Found:
        self.asked.append(name)
        if self.at_once is not None:
            raise self.at_once
        self.under_way[len(self.asked) - 1] = answer = Deferred[Found]()
        return await answer

    async def names(self, address: str) -> Found:
        return await self.addresses(f"name of {address}")

    def end(self, index: int, *values: str, ttl: float = 300.0) -> None:
        self.under_way.pop(index).callback(Found(values, ttl if values else NEGATIVE_TTL))

    def fail(self, index: int, error: Exception) -> None:
        self.under_way.pop(index).errback(error)


class Asked:
    """A question, and what came of it."""

    def __init__(self, question: Coroutine[Any, Any, Any]) -> None:
        self._results: list[Any] = []
        self._asking = Deferred.fromCoroutine(question)
        self._asking.addBoth(self._results.append)

    @property
    def answered(self) -> bool:
        return bool(self._results)

    @property
    def value(self) -> Any:
        assert self._results, "there is no answer yet"
        return self._results[0]

    @property
    def error(self) -> StreamError:
        assert isinstance(self.value, Failure)
        assert isinstance(self.value.value, StreamError)
        return self.value.value

    def cancel(self) -> None:
        self._asking.cancel()


class World:
    """Look-ups over a slow resolver, in simulated time."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.timers = Timers(self.clock)
        self.resolver = Slow()
        self.counts: Counter[str] = Counter()
        self.look_ups = LookUps(self.timers, self.resolver, self.counts)

    def ask(self, circuit: str, name: str) -> Asked:
        return Asked(self.look_ups.addresses(circuit, name))

    def name_of(self, circuit: str, address: str) -> Asked:
        return Asked(self.look_ups.name_of(circuit, address))


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.look_ups.stop()
    assert made.look_ups._free == PLACES, "a place was lost"
    assert made.look_ups._waiting == 0
    assert len(made.timers) == 0


def reason(asked: Asked) -> int:
    return asked.error.reason


def unanswered(asked: Asked) -> bool:
    return isinstance(asked.error, Unanswered)


# the cache


def test_a_circuit_remembers_what_it_asked(world: World) -> None:
    first = world.ask("one", "web.example")
    world.resolver.end(0, "198.51.100.1", "2001:db8::1")
    assert first.value == ("198.51.100.1", "2001:db8::1")
    assert world.ask("one", "WEB.example.").value == ("198.51.100.1", "2001:db8::1")
    assert world.resolver.asked == ["web.example"]
    assert world.counts == {"look-ups": 1, "look-ups answered from the cache": 1}


def test_what_a_circuit_remembers_helps_no_other(world: World) -> None:
    """Else a circuit could find out what others have asked for, by asking the same."""
    world.ask("one", "web.example")
    world.resolver.end(0, "198.51.100.1")
    probe = world.ask("two", "web.example")
    assert not probe.answered
    world.resolver.end(1, "198.51.100.1")
    assert probe.value == ("198.51.100.1",)


def test_questions_of_two_circuits_are_not_asked_together(world: World) -> None:
    """The second would have its answer sooner than alone."""
    first, second = world.ask("one", "web.example"), world.ask("two", "web.example")
    assert world.resolver.asked == ["web.example"] * 2
    world.resolver.end(0, "198.51.100.1")
    assert first.value == ("198.51.100.1",)
    assert not second.answered
    world.resolver.end(1, "198.51.100.2")
    assert second.value == ("198.51.100.2",)


def test_a_name_is_asked_for_once_at_a_time(world: World) -> None:
    asked = [world.ask("one", "web.example") for _ in range(30)]
    assert world.resolver.asked == ["web.example"]
    world.resolver.end(0, "198.51.100.1")
    assert {one.value for one in asked} == {("198.51.100.1",)}


@pytest.mark.parametrize(("ttl", "kept"), [(0, MIN_TTL), (5, MIN_TTL), (300, 300), (7 * 86400, MAX_TTL)])
def test_how_long_answers_are_kept(world: World, ttl: float, kept: float) -> None:
    world.ask("one", "web.example")
    world.resolver.end(0, "198.51.100.1", ttl=ttl)
    world.clock.advance(kept - 1)
    assert world.ask("one", "web.example").answered
    world.clock.advance(1)
    assert not world.ask("one", "web.example").answered
    assert world.resolver.asked == ["web.example"] * 2


def test_that_there_is_none_is_kept_for_a_short_time(world: World) -> None:
    first = world.ask("one", "none.example")
    world.resolver.end(0)
    assert reason(first) == EndReason.RESOLVEFAILED
    second = world.ask("one", "none.example")
    assert reason(second) == EndReason.RESOLVEFAILED
    assert not unanswered(second)
    world.clock.advance(NEGATIVE_TTL)
    assert not world.ask("one", "none.example").answered


def test_a_failure_is_not_kept(world: World) -> None:
    first = world.ask("one", "web.example")
    world.resolver.fail(0, Unanswered("no nameserver answered"))
    assert unanswered(first)
    again = world.ask("one", "web.example")
    world.resolver.end(1, "198.51.100.1")
    assert again.value == ("198.51.100.1",)


def test_the_cache_is_bounded_and_keeps_what_was_used_last(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "CACHE_SIZE", 3)
    for number in range(3):
        world.ask(f"circuit{number}", "web.example")
        world.resolver.end(number, "198.51.100.1")
    assert world.ask("circuit0", "web.example").answered
    world.ask("circuit3", "web.example")
    world.resolver.end(3, "198.51.100.1")
    assert [world.ask(f"circuit{number}", "web.example").answered for number in range(4)] == [True, False, True, True]
    assert len(world.look_ups._recent) <= 3


def test_the_cache_can_be_cleared(world: World) -> None:
    world.ask("one", "web.example")
    world.resolver.end(0, "198.51.100.1")
    world.look_ups.clear_cache()
    assert not world.ask("one", "web.example").answered
    assert not world.look_ups._recent


def test_an_answer_has_an_end(world: World) -> None:
    asked = world.ask("one", "web.example")
    world.resolver.end(0, *(f"198.51.100.{number}" for number in range(200)))
    assert len(asked.value) == lookups.MAX_VALUES


def test_a_circuit_that_is_gone_leaves_nothing(world: World) -> None:
    world.ask("one", "web.example")
    world.resolver.end(0, "198.51.100.1")
    asked = [world.ask("one", f"name{number}.example") for number in range(SHARE + 2)]
    world.look_ups.forget("one")
    assert {reason(one) for one in asked} == {EndReason.DESTROY}
    assert not world.look_ups._recent
    assert not world.look_ups._askers
    assert not world.look_ups._turns
    for number in range(SHARE):  # those that ran
        world.resolver.end(number + 1, "198.51.100.1")
    assert not world.look_ups._recent, "an answer for nobody was kept"
    assert len(world.timers) == 0
    world.look_ups.forget("one")


# turns


def test_only_so_many_run_at_once(world: World) -> None:
    asked = [world.ask(f"circuit{number}", "web.example") for number in range(PLACES + 2)]
    assert len(world.resolver.asked) == PLACES
    world.resolver.end(0, "198.51.100.1")
    assert asked[0].value == ("198.51.100.1",)
    assert len(world.resolver.asked) == PLACES + 1


def test_a_circuit_with_many_names_keeps_no_other_waiting(world: World) -> None:
    for number in range(200):
        world.ask("greedy", f"name{number}.example")
    assert len(world.resolver.asked) == SHARE
    modest = world.ask("modest", "web.example")
    assert world.resolver.asked[-1] == "web.example"
    world.resolver.end(SHARE, "198.51.100.1")
    assert modest.value == ("198.51.100.1",)


def test_circuits_take_turns(world: World) -> None:
    for circuit in "abcd":
        for number in range(20):
            world.ask(circuit, f"{circuit}{number}.example")
    for index in range(40):
        world.resolver.end(index, "198.51.100.1")
    asked = Counter(name[0] for name in world.resolver.asked[8:40])
    assert set(asked) == set("abcd")
    assert max(asked.values()) - min(asked.values()) <= 2
    assert [name for name in world.resolver.asked if name[0] == "a"] == [
        f"a{number}.example" for number in range(len([name for name in world.resolver.asked if name[0] == "a"]))
    ], "the names of one circuit keep their order"


def test_a_resolver_that_is_slow_keeps_its_place_after_we_gave_up(world: World) -> None:
    slow = [world.ask("one", f"slow{number}.example") for number in range(SHARE)]
    world.clock.advance(RESOLVE_TIMEOUT)
    assert all(unanswered(one) for one in slow)
    late = world.ask("one", "late.example")
    assert len(world.resolver.asked) == SHARE, "it would hold one more thread"
    world.resolver.end(0, "198.51.100.1")
    assert world.resolver.asked[-1] == "late.example"
    world.resolver.end(SHARE, "198.51.100.2")
    assert late.value == ("198.51.100.2",)
    assert world.ask("one", "slow0.example").value == ("198.51.100.1",), "what came late is good all the same"


def test_who_waits_too_long_for_a_turn_is_told(world: World) -> None:
    for number in range(SHARE):
        world.ask("one", f"slow{number}.example")
    waiting = world.ask("one", "waiting.example")
    world.clock.advance(RESOLVE_TIMEOUT)
    assert unanswered(waiting)
    assert len(world.resolver.asked) == SHARE
    world.resolver.end(0, "198.51.100.1")
    assert len(world.resolver.asked) == SHARE, "nobody waits for it any more"


def test_a_circuit_may_not_ask_for_too_many_names(world: World) -> None:
    for number in range(SHARE + CIRCUIT_WAITING):
        world.ask("one", f"name{number}.example")
    assert reason(world.ask("one", "more.example")) == EndReason.RESOURCELIMIT
    joined = world.ask("one", "name0.example")
    world.resolver.end(0, "198.51.100.1")
    assert joined.value == ("198.51.100.1",)
    assert not world.ask("two", "web.example").answered


def test_a_crowd_leaves_each_circuit_one_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "WAITING", 10)
    for number in range(SHARE * 2 + 10):
        world.ask("greedy" if number % 2 else "gross", f"name{number}.example")
    assert reason(world.ask("greedy", "more.example")) == EndReason.RESOURCELIMIT
    assert not world.ask("modest", "web.example").answered
    assert reason(world.ask("modest", "another.example")) == EndReason.RESOURCELIMIT


def test_who_gives_up_leaves_the_queue(world: World) -> None:
    for number in range(SHARE):
        world.ask("one", f"name{number}.example")
    waiting = [world.ask("one", "waiting.example") for _ in range(2)]
    running = world.ask("one", "name0.example")
    for one in [*waiting, running]:
        one.cancel()
    world.resolver.end(0, "198.51.100.1")
    assert "waiting.example" not in world.resolver.asked
    assert world.ask("one", "name0.example").value == ("198.51.100.1",), "what has begun is finished"


def test_a_resolver_that_fails_at_once_for_thousands(world: World) -> None:
    asked = [world.ask(f"circuit{number}", "web.example") for number in range(2000)]
    world.resolver.at_once = StreamError(EndReason.RESOURCELIMIT, "no file descriptors left")
    for number in range(PLACES):
        world.resolver.end(number, "198.51.100.1")
    assert Counter(reason(one) for one in asked[PLACES:]) == {EndReason.RESOURCELIMIT: 2000 - PLACES}


def test_a_bug_of_a_resolver_is_told_and_costs_no_place(world: World, clean: Any) -> None:
    asked = world.ask("one", "web.example")
    world.resolver.fail(0, ZeroDivisionError())
    assert reason(asked) == EndReason.INTERNAL
    assert len(clean.flush(ZeroDivisionError)) == 1


# names


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64 + ".example", "nul\0.example", "127.1", "münchen.example"])
def test_what_is_no_name_is_never_asked(world: World, name: str) -> None:
    assert reason(world.ask("one", name)) == EndReason.RESOLVEFAILED
    assert world.resolver.asked == []


def test_an_address_in_brackets_is_none_to_look_up(world: World) -> None:
    assert world.ask("one", "[2001:DB8::1]").value == ("2001:db8::1",)
    assert world.resolver.asked == []


def test_names_of_addresses(world: World) -> None:
    asked = world.name_of("one", "198.51.100.1")
    world.resolver.end(0, "Web.Example")
    assert asked.value == "web.example"
    assert world.name_of("one", "198.51.100.1").value == "web.example"
    assert world.resolver.asked == ["name of 198.51.100.1"]


@pytest.mark.parametrize("name", ["", "10.0.0.1", "::1", "b\xfccher.example", "<script>.example", "a b", "x" * 300])
def test_what_is_no_name_is_not_told(world: World, name: str) -> None:
    """Whoever holds an address chooses what its PTR record says."""
    asked = world.name_of("one", "198.51.100.1")
    world.resolver.end(0, name, "right.example")
    assert asked.value == "right.example"
    asked = world.name_of("two", "198.51.100.1")
    world.resolver.end(1, name)
    assert reason(asked) == EndReason.RESOLVEFAILED


# the system's resolver


class Address:
    """What Twisted's resolver hands over."""

    def __init__(self, host: str) -> None:
        self.host = host


class Reactor:
    """A name resolver of Twisted's kind."""

    def __init__(self, *addresses: str) -> None:
        self.nameResolver = self
        self._addresses = addresses

    def resolveHostName(self, receiver: Any, name: str) -> None:
        receiver.resolutionBegan(self)
        for address in self._addresses:
            receiver.addressResolved(Address(address))
        receiver.resolutionComplete()


@pytest.mark.parametrize(
    ("addresses", "found"),
    [
        (("192.0.2.1", "192.0.2.1", "2001:db8::1"), Found(("192.0.2.1", "2001:db8::1"), UNKNOWN_TTL)),
        ((), Found((), NEGATIVE_TTL)),
    ],
)
def test_what_the_system_says(addresses: tuple[str, ...], found: Found) -> None:
    resolver = SystemResolver(Reactor(*addresses))
    assert Asked(resolver.addresses("web.example")).value == found
