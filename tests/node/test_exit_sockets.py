"""An exit over real sockets: nameservers of its own, and a server that listens at one of several addresses."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from backrooms.channel.mux import Mux
from backrooms.circuit.hop import RelayEdge
from backrooms.netdir.policy import ExitPolicy
from backrooms.node.driver import Turn
from backrooms.node.exit import TTL, Exit
from backrooms.node.timers import Timers
from backrooms.wire.relay import Answer, Begin, Connected, End, EndReason, RelayCommand, Resolve, Resolved
from tests.node.nameserver import Nameserver, a, aaaa, has_ipv6, ptr

_reactor: Any = reactor
SECONDS = 60.0


class Edge(RelayEdge):
    """The exit's end of a circuit, which notes what it would send."""

    def __init__(self, timers: Timers, emit: Callable[[Any], None]) -> None:
        queue = Mux().open(1)
        super().__init__(lambda body: (body, body[:16]), queue, timers.now, random.Random(1), emit=emit)
        self.sent: list[tuple[int, int, bytes]] = []
        self.overflows = False
        """Whether the circuit ends when it is given CONNECTED, as it does when its peer does not read."""

    def send(self, command: int, stream_id: int, data: bytes) -> None:
        self.sent.append((command, stream_id, data))
        if command == RelayCommand.CONNECTED and self.overflows:
            self.close()

    async def answer(self, *commands: RelayCommand) -> tuple[int, bytes]:
        """The first of these messages that is sent, now or later; it is taken out."""
        end = _reactor.seconds() + SECONDS
        while _reactor.seconds() < end:
            for one in self.sent:
                if one[0] in commands:
                    self.sent.remove(one)
                    return one[0], one[2]
            await deferLater(_reactor, 0.005)
        raise AssertionError(f"no answer within {SECONDS} seconds: {self.sent}")


class World:
    """An exit with a nameserver, a circuit that ends at it, and a server on 127.0.0.1."""

    def __init__(self) -> None:
        self.timers = Timers(reactor)
        self.nameserver = Nameserver().start()
        policy = ExitPolicy.parse(["accept *:*"], allow_private=True)
        turn = Turn(reactor)
        self.exit = Exit(reactor, self.timers, turn, policy, nameservers=[self.nameserver.where])
        self.edge = Edge(self.timers, self._emit)
        self.received = bytearray()
        self._numbers = itertools.count(1)
        world = self

        class Server(Protocol):
            def dataReceived(self, data: bytes) -> None:
                world.received += data

        self.port = _reactor.listenTCP(0, Factory.forProtocol(Server), interface="127.0.0.1")

    def _emit(self, event: Any) -> None:
        if type(event).__name__ == "BeginRequested":
            self.exit.begin(self.edge, event)
        else:
            self.exit.resolve(self.edge, event)

    async def begin(self, host: str, flags: int = Begin.IPV6_OK) -> tuple[int, bytes]:
        begin = Begin(host, self.port.getHost().port, flags)
        self.edge.other_message(RelayCommand.BEGIN, next(self._numbers), begin.encode())
        return await self.edge.answer(RelayCommand.CONNECTED, RelayCommand.END)

    async def resolve(self, host: str, reverse: bool = False) -> Resolved:
        self.edge.other_message(RelayCommand.RESOLVE, 999, Resolve(host, reverse).encode())
        return Resolved.decode((await self.edge.answer(RelayCommand.RESOLVED))[1])

    async def stop(self) -> None:
        self.edge.close()
        self.exit.circuit_ended(self.edge)
        self.exit.stop()
        await maybeDeferred(self.port.stopListening)
        await self.nameserver.stop()
        while self.exit.connections:
            await deferLater(_reactor, 0.005)
        assert len(self.timers) == 0
        self.timers.close()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.stop()))


async def test_the_address_that_answers(world: World) -> None:
    """Nobody listens at ::1 (or there is no such address at all); the flag asks for it first."""
    world.nameserver.records += [aaaa("web.example", "::1"), a("web.example", "127.0.0.1")]
    command, data = await world.begin("web.example", Begin.IPV6_OK | Begin.IPV6_PREFERRED)
    assert command == RelayCommand.CONNECTED
    assert Connected.decode(data) == Connected("127.0.0.1", TTL)
    world.edge.streams[1].deliver(b"through a real socket")
    while world.received != b"through a real socket":
        await deferLater(_reactor, 0.005)


async def test_why_not(world: World) -> None:
    world.nameserver.records += [a("nobody.example", "127.0.0.2"), a("far.example", "127.0.0.1")]
    for host, flags, reason in (
        ("nowhere.example", 0, EndReason.RESOLVEFAILED),
        ("nobody.example", 0, EndReason.CONNECTREFUSED),
        ("far.example", Begin.IPV6_OK | Begin.IPV4_NOT_OK, EndReason.NOROUTE),
    ):
        command, data = await world.begin(host, flags)
        assert (command, End.decode(data).reason) == (RelayCommand.END, reason)


async def test_a_circuit_that_ends_at_the_moment_of_connecting(world: World) -> None:
    world.edge.overflows = True
    assert (await world.begin("127.0.0.1"))[0] == RelayCommand.CONNECTED
    while world.exit.connections:
        await deferLater(_reactor, 0.005)
    assert world.exit.counts == {"BEGIN: connected": 1, "BEGIN: given up by the client": 1}
    assert not world.exit._races


async def test_look_ups(world: World) -> None:
    world.nameserver.records += [a("web.example", "127.0.0.1", 5), ptr("127.0.0.1", b"web.example")]
    assert await world.resolve("web.example") == Resolved((Answer("127.0.0.1", TTL),))
    assert await world.resolve("127.0.0.1", reverse=True) == Resolved((Answer("web.example", TTL),))
    assert await world.resolve("nowhere.example") == Resolved(())
    asked = len(world.nameserver.asked)
    for _ in range(3):
        assert await world.resolve("web.example") == Resolved((Answer("127.0.0.1", TTL),))
        assert (await world.begin("web.example"))[0] == RelayCommand.CONNECTED
    assert len(world.nameserver.asked) == asked
    world.exit.clear_cache()
    await world.resolve("web.example")
    assert len(world.nameserver.asked) == asked + 2


async def test_a_nameserver_that_fails_may_be_asked_again(world: World) -> None:
    world.nameserver.broken = {1, 28}
    assert await world.resolve("web.example") == Resolved((), again=True)


async def test_servers_on_ipv6(world: World) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no ::1")
    await maybeDeferred(world.port.stopListening)
    world.port = _reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="::1")
    world.nameserver.records += [aaaa("web.example", "::1"), a("web.example", "127.0.0.1")]
    command, data = await world.begin("web.example")
    assert command == RelayCommand.CONNECTED
    assert Connected.decode(data).address == "::1"
