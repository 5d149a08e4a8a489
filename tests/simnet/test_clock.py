"""Simulated time."""

from __future__ import annotations

import random
import time

import pytest
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorFDSet,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorThreads,
    IReactorTime,
)
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThreadPool
from zope.interface.verify import verifyObject

from backrooms.node.timers import Timers
from tests.simnet.clock import SimClock, SimStuck, SimTimeout
from tests.simnet.network import EPOCH, SimNet


def test_interfaces() -> None:
    reactor = SimNet().host("a").reactor
    for interface in (IReactorTime, IReactorTCP, IReactorThreads, IReactorPluggableNameResolver):
        assert verifyObject(interface, reactor)
    assert verifyObject(IDelayedCall, reactor.callLater(1, int))
    assert not IReactorFDSet.providedBy(reactor)


def test_each_call_sees_its_own_time_and_equal_times_keep_their_order() -> None:
    reactor = SimNet().host("a").reactor
    begin = reactor.seconds()
    seen: list[tuple[str, float]] = []
    for name, delay in (("c", 3.0), ("a1", 1.0), ("b", 2.0), ("a2", 1.0)):
        reactor.callLater(delay, lambda name=name: seen.append((name, reactor.seconds() - begin)))
    reactor.run(2.5)
    assert seen == [("a1", 1.0), ("a2", 1.0), ("b", 2.0)]
    assert reactor.seconds() - begin == 2.5
    reactor.run(0.5)
    assert seen[-1] == ("c", 3.0)


def test_cancel_reset_delay() -> None:
    reactor = SimNet().host("a").reactor
    begin = reactor.seconds()
    seen: list[tuple[str, float]] = []

    def note(name: str) -> None:
        seen.append((name, round(reactor.seconds() - begin, 9)))

    cancelled, sooner, later, pushed = (
        reactor.callLater(5, note, name) for name in ("cancelled", "sooner", "later", "pushed")
    )
    assert set(reactor.getDelayedCalls()) == {cancelled, sooner, later, pushed}
    cancelled.cancel()
    sooner.reset(1)
    later.reset(7)
    pushed.delay(1)
    assert later.getTime() == begin + 7
    assert "note" in repr(later)
    reactor.run(10)
    assert seen == [("sooner", 1), ("pushed", 6), ("later", 7)]
    assert reactor.getDelayedCalls() == []
    assert not sooner.active()
    with pytest.raises(AlreadyCancelled):
        cancelled.reset(1)
    with pytest.raises(AlreadyCalled):
        sooner.cancel()
    with pytest.raises(ValueError, match="zero or more"):
        reactor.callLater(-1, note, "past")


def test_run_until() -> None:
    reactor = SimNet().host("a").reactor
    begin = reactor.seconds()
    assert reactor.run_until(deferLater(reactor, 3, lambda: "done"), 5) == "done"
    assert reactor.seconds() - begin == 3
    assert reactor.run_until(lambda: reactor.seconds() if reactor.getDelayedCalls() == [] else 0) == begin + 3
    with pytest.raises(ZeroDivisionError):
        reactor.run_until(deferLater(reactor, 1, lambda: 1 / 0))
    with pytest.raises(SimTimeout, match="nothing is left"):
        reactor.run_until(Deferred(), 5)
    assert reactor.seconds() - begin == 9

    async def procedure() -> int:
        await deferLater(reactor, 1)
        return 7

    assert reactor.run_until(procedure()) == 7


def test_time_that_stands_still_is_an_error() -> None:
    clock = SimClock()

    def again() -> None:
        clock.call_later(0, None, again)

    again()
    with pytest.raises(SimStuck, match="again"):
        clock.run(1)


def test_ten_thousand_timers_are_fast() -> None:
    reactor = SimNet().host("a").reactor
    rng = random.Random(1)
    fired: list[float] = []
    begin = time.process_time()
    calls = [reactor.callLater(rng.uniform(0, 100), lambda: fired.append(reactor.seconds())) for _ in range(10_000)]
    for call in calls[::4]:
        call.cancel()
    for call in calls[1::4]:
        call.reset(rng.uniform(0, 100))
    reactor.run(100)
    assert time.process_time() - begin < 3
    assert len(fired) == 7_500
    assert fired == sorted(fired)


def test_cancelled_calls_do_not_pile_up() -> None:
    reactor = SimNet().host("a").reactor
    for _ in range(10_000):
        reactor.callLater(1_000, int).cancel()
    assert len(reactor.host.net.clock._heap) < 200


def test_threads_are_simulated(clean: object) -> None:
    net = SimNet()
    net.names["b.example"] = ["10.9.9.9"]
    reactor = net.host("a").reactor
    results: list[object] = []
    working = deferToThreadPool(reactor, reactor.getThreadPool(), lambda: 6 * 7)
    working.addCallback(results.append)
    assert results == [], "a result never comes before the call that asked for it has returned"
    reactor.run()
    assert results == [42]
    failing = deferToThreadPool(reactor, reactor.getThreadPool(), lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reactor.run_until(failing)

    def look_up() -> str:
        import socket

        return socket.gethostbyaddr("10.9.9.9")[0]

    assert reactor.run_until(deferToThreadPool(reactor, reactor.getThreadPool(), look_up)) == "b.example"
    reactor.callInThread(results.append, 1)
    reactor.callFromThread(results.append, 2)
    reactor.run()
    assert results == [42, 1, 2]


def test_shutdown_triggers() -> None:
    net = SimNet()
    reactor = net.host("a").reactor
    seen: list[str] = []

    @inlineCallbacks
    def drain():  # type: ignore[no-untyped-def]
        yield deferLater(reactor, 2)
        seen.append("drained")

    reactor.addSystemEventTrigger("before", "shutdown", drain)
    reactor.addSystemEventTrigger("during", "shutdown", seen.append, "during")
    unwanted = reactor.addSystemEventTrigger("after", "shutdown", seen.append, "never")
    reactor.removeSystemEventTrigger(unwanted)
    reactor.stop()
    net.run(1)
    assert seen == []
    net.run(2)
    assert seen == ["drained", "during"]
    assert reactor.dead


def test_timers_and_looping_calls_run_on_it() -> None:
    net = SimNet()
    reactor = net.host("a").reactor
    begin = net.now
    timers = Timers(reactor, wall=net.wall)
    assert not timers.precise
    assert timers.wall() == EPOCH
    seen: list[float] = []
    for delay in (0.3, 0.1, 2_000.0):
        timers.at(begin + delay, lambda: seen.append(timers.now() - begin))
    loop = LoopingCall(lambda: None)
    loop.clock = reactor
    loop.start(10)
    net.run(3_000)
    assert seen == pytest.approx([0.1, 0.3, 2_000])
    assert timers.wall() == EPOCH + 3_000
    loop.stop()
    timers.close()
    assert reactor.getDelayedCalls() == []
