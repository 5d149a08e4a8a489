"""Look-ups: how many at a time, and when a place is free again."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from backrooms.errors import StreamError
from backrooms.node.lookups import PLACES, RESOLVE_TIMEOUT, WAITING, LookUps
from backrooms.wire.relay import EndReason


class Address:
    """What Twisted's resolver hands over."""

    def __init__(self, host: str) -> None:
        self.host = host


class Resolver:
    """A resolver whose threads end when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, str]] = []

    def resolveHostName(self, receiver: Any, name: str) -> None:
        self.asked.append((receiver, name))
        receiver.resolutionBegan(self)

    def end(self, index: int, *addresses: str) -> None:
        receiver = self.asked[index][0]
        for address in addresses:
            receiver.addressResolved(Address(address))
        receiver.resolutionComplete()


class Reactor(Clock):
    """Time, and a name resolver."""

    def __init__(self) -> None:
        super().__init__()
        self.nameResolver = Resolver()


def reason(failed: Deferred[list[str]]) -> int:
    caught: list[int] = []

    def keep(failure: Failure) -> list[str]:
        assert isinstance(failure.value, StreamError)
        caught.append(failure.value.reason)
        return []

    failed.addErrback(keep)
    assert caught
    return caught[0]


def look_up(look_ups: LookUps, name: str) -> Deferred[list[str]]:
    return Deferred.fromCoroutine(look_ups.addresses(name))


def result(done: Deferred[list[str]]) -> list[str]:
    found: list[list[str]] = []
    done.addCallback(found.append)
    assert found
    return found[0]


def test_only_so_many_threads_are_held() -> None:
    reactor = Reactor()
    look_ups = LookUps(reactor)
    all_of_them = [look_up(look_ups, f"name{number}.example") for number in range(PLACES + 2)]
    resolver = reactor.nameResolver
    assert len(resolver.asked) == PLACES
    resolver.end(0, "192.0.2.1", "192.0.2.1", "2001:db8::1")
    assert result(all_of_them[0]) == ["192.0.2.1", "2001:db8::1"]
    assert [name for _, name in resolver.asked][PLACES:] == [f"name{PLACES}.example"]


def test_a_slow_thread_keeps_its_place_after_we_gave_up() -> None:
    reactor = Reactor()
    look_ups = LookUps(reactor)
    slow = [look_up(look_ups, "slow.example") for _ in range(PLACES)]
    reactor.advance(RESOLVE_TIMEOUT + 1)
    assert [reason(one) for one in slow] == [EndReason.RESOLVEFAILED] * PLACES
    late = look_up(look_ups, "late.example")
    assert len(reactor.nameResolver.asked) == PLACES, "it would block one more thread"
    reactor.nameResolver.end(0)
    assert reactor.nameResolver.asked[-1][1] == "late.example"
    reactor.nameResolver.end(PLACES, "192.0.2.2")
    assert result(late) == ["192.0.2.2"]


def test_who_waits_too_long_or_comes_too_many_is_told() -> None:
    reactor = Reactor()
    look_ups = LookUps(reactor)
    held = [look_up(look_ups, "held.example") for _ in range(PLACES)]
    waiting = [look_up(look_ups, "waiting.example") for _ in range(WAITING)]
    assert reason(look_up(look_ups, "one.too.many.example")) == EndReason.RESOURCELIMIT
    reactor.advance(RESOLVE_TIMEOUT + 1)
    assert {reason(one) for one in held + waiting} == {EndReason.RESOLVEFAILED}
    for index in range(PLACES):
        reactor.nameResolver.end(index)
    fresh = look_up(look_ups, "fresh.example")
    reactor.nameResolver.end(PLACES, "192.0.2.3")
    assert result(fresh) == ["192.0.2.3"]


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64 + ".example", "nul\0.example", "127.1", "münchen.example"])
def test_what_is_no_name_is_never_asked(name: str) -> None:
    reactor = Reactor()
    assert reason(look_up(LookUps(reactor), name)) == EndReason.RESOLVEFAILED
    assert reactor.nameResolver.asked == []


def test_an_answer_without_addresses() -> None:
    reactor = Reactor()
    empty = look_up(LookUps(reactor), "empty.example")
    reactor.nameResolver.end(0)
    with pytest.raises(StreamError):
        raise StreamError(reason(empty))
