"""Look-ups that end in unusual ways: none may keep its place, or leave somebody waiting."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from backrooms.circuit.events import ResolveRequested
from backrooms.errors import StreamError
from backrooms.netdir.policy import ExitPolicy
from backrooms.node.driver import Turn
from backrooms.node.exit import Exit
from backrooms.node.lookups import LookUps
from backrooms.node.resolvers import NEGATIVE_TTL, Found, SystemResolver
from backrooms.node.timers import Timers
from backrooms.wire.relay import EndReason

_reactor: Any = reactor


class Slow:
    """A resolver with one place, which answers when it is told to."""

    places = 1

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: list[Deferred[Found]] = []

    async def addresses(self, name: str) -> Found:
        self.asked.append(name)
        self.answers.append(Deferred())
        return await self.answers[-1]

    async def names(self, address: str) -> Found:
        return await self.addresses(address)


def test_an_answer_that_makes_others_give_up_reaches_the_rest() -> None:
    """As when the first stream to hear of it ends the circuit: the others are cancelled in the middle."""
    resolver = Slow()
    look_ups = LookUps(Timers(Clock()), resolver, Counter())
    asked: list[Deferred[Any]] = [Deferred.fromCoroutine(look_ups.addresses("one", "web.example")) for _ in range(3)]
    other: Deferred[Any] = Deferred.fromCoroutine(look_ups.addresses("two", "other.example"))
    told: list[Any] = []

    def first(found: Any) -> None:
        told.append(found)
        asked[1].cancel()

    asked[0].addCallback(first)
    asked[1].addBoth(told.append)
    asked[2].addCallback(told.append)
    resolver.answers[0].callback(Found(("198.51.100.1",), 60.0))
    assert told[0] == told[2] == ("198.51.100.1",)
    assert told[1].check(CancelledError)
    assert resolver.asked == ["web.example", "other.example"]  # its place went on to the next
    other.addBoth(told.append)
    look_ups.stop()
    assert told[3].check(StreamError)


async def test_the_system_may_fail_in_any_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twisted's own resolver expects `gaierror` only, and would leave us waiting for ever."""

    def fail(*args: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(_reactor.nameResolver, "_getaddrinfo", fail, raising=False)
    asked = Deferred.fromCoroutine(SystemResolver(reactor).addresses("web.example"))
    assert await asked.addTimeout(30, _reactor) == Found((), NEGATIVE_TTL)


@pytest.mark.parametrize("reverse", [True, False])
def test_an_address_with_a_zone_is_not_looked_up(reverse: bool) -> None:
    """It means nothing to anybody but the machine that has the zone, and is no name either."""
    timers = Timers(Clock())
    exit = Exit(_reactor, timers, Turn(_reactor), ExitPolicy.parse(["accept *:*"]), nameservers=["127.0.0.1:9"])
    edge: Any = object()
    asked = Deferred.fromCoroutine(exit._values(edge, ResolveRequested(1, "2a00::1%eth0", reverse)))
    results: list[Any] = []
    asked.addBoth(results.append)
    assert isinstance(results[0], Failure)
    assert isinstance(results[0].value, StreamError)
    assert results[0].value.reason in (EndReason.EXITPOLICY, EndReason.RESOLVEFAILED)
    exit.stop()
