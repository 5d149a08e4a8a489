"""The simulation behaves like the system's TCP: the same programs are run on both and tell the same story."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IHalfCloseableProtocol, IPullProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer

from tests.simnet.network import SimNet
from tests.simnet.pipe import Link


class Teller(Protocol):
    """Tells what happens to it. Pieces of data that follow each other are told as one."""

    def __init__(self, name: str, story: list[str], half_close: bool) -> None:
        self.name = name
        self.story = story
        self.received = 0
        self.ended: Deferred[None] = Deferred()
        if half_close:
            directlyProvides(self, IHalfCloseableProtocol)

    @property
    def tcp(self) -> Any:
        return self.transport

    def tell(self, what: str) -> None:
        line = f"{self.name} {what}"
        if not (what == "data" and self.story and self.story[-1] == line):
            self.story.append(line)

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)
        self.tell("data")

    def readConnectionLost(self) -> None:
        self.tell("read lost")

    def writeConnectionLost(self) -> None:
        self.tell("write lost")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.tell(f"lost: {type(reason.value).__name__} after {self.received} bytes")
        self.ended.callback(None)


@implementer(IPullProducer)
class Pieces:
    def __init__(self, teller: Teller, pieces: int) -> None:
        self.teller = teller
        self.pieces = pieces

    def resumeProducing(self) -> None:
        if self.pieces:
            self.pieces -= 1
            self.teller.tcp.write(bytes(10_000))
        else:
            self.teller.tcp.unregisterProducer()

    def stopProducing(self) -> None:
        self.teller.tell("producer stopped")


Sleep = Callable[[], Awaitable[Any]]
Program = Callable[[Teller, Teller, Sleep], Awaitable[Any]]


async def close_after_writing(client: Teller, server: Teller, sleep: Sleep) -> None:
    client.tcp.write(bytes(200_000))
    client.tcp.loseConnection()
    client.tcp.write(b"too late?")


async def half_close_and_answer(client: Teller, server: Teller, sleep: Sleep) -> None:
    client.tcp.write(b"question")
    client.tcp.loseWriteConnection()
    await sleep()
    server.tcp.write(b"answer")
    await sleep()
    server.tcp.loseConnection()
    await sleep()
    client.tcp.loseConnection()


async def half_close_with_nothing_to_say(client: Teller, server: Teller, sleep: Sleep) -> None:
    client.tcp.loseWriteConnection()
    await sleep()
    if not server.ended.called:
        server.tcp.loseWriteConnection()
    await sleep()
    client.tcp.loseConnection()
    await sleep()
    server.tcp.loseConnection()


async def resume_after_the_end(client: Teller, server: Teller, sleep: Sleep) -> None:
    server.tcp.loseWriteConnection()
    await sleep()
    client.tcp.resumeProducing()
    await sleep()
    client.tcp.write(b"still here")


async def abort(client: Teller, server: Teller, sleep: Sleep) -> None:
    client.tcp.write(b"some")
    await sleep()
    client.tcp.abortConnection()


async def abort_while_the_other_does_not_read(client: Teller, server: Teller, sleep: Sleep) -> None:
    server.tcp.pauseProducing()
    await sleep()
    client.tcp.write(b"unread")
    await sleep()
    client.tcp.abortConnection()
    await sleep()
    server.tell("reads again")
    server.tcp.resumeProducing()


async def abort_seen_by_a_writer_that_does_not_read(client: Teller, server: Teller, sleep: Sleep) -> None:
    client.tcp.pauseProducing()
    server.tcp.pauseProducing()
    server.tcp.write(bytes(20_000_000))
    await sleep()
    client.tcp.abortConnection()


async def close_with_unread_data(client: Teller, server: Teller, sleep: Sleep) -> None:
    server.tcp.pauseProducing()
    client.tcp.write(b"unread")
    await sleep()
    server.tcp.loseConnection()


async def write_to_one_who_closed(client: Teller, server: Teller, sleep: Sleep) -> None:
    client.tcp.pauseProducing()
    server.tcp.loseConnection()
    await sleep()
    client.tell("writes")
    client.tcp.write(b"first")
    await sleep()
    client.tell("writes again")
    client.tcp.write(b"second")
    await sleep()
    client.tcp.resumeProducing()


async def closed_while_not_reading(client: Teller, server: Teller, sleep: Sleep) -> None:
    client.tcp.pauseProducing()
    await sleep()
    server.tcp.write(b"last words")
    server.tcp.loseConnection()
    await sleep()
    client.tell("reads again")
    client.tcp.resumeProducing()


async def pull_producer(client: Teller, server: Teller, sleep: Sleep) -> None:
    client.tcp.registerProducer(Pieces(client, 30), False)
    client.tcp.loseConnection()


async def pull_producer_that_is_cut_off(client: Teller, server: Teller, sleep: Sleep) -> None:
    server.tcp.pauseProducing()
    client.tcp.registerProducer(Pieces(client, 10_000), False)
    await sleep()
    server.tcp.abortConnection()


async def both_close(client: Teller, server: Teller, sleep: Sleep) -> None:
    client.tcp.loseConnection()
    server.tcp.loseConnection()


PROGRAMS: list[Program] = [
    close_after_writing,
    half_close_and_answer,
    half_close_with_nothing_to_say,
    resume_after_the_end,
    abort,
    abort_while_the_other_does_not_read,
    abort_seen_by_a_writer_that_does_not_read,
    close_with_unread_data,
    write_to_one_who_closed,
    closed_while_not_reading,
    pull_producer,
    pull_producer_that_is_cut_off,
    both_close,
]


async def told(
    program: Program, client_reactor: Any, server_reactor: Any, ip: str, half_close: bool
) -> dict[str, list[str]]:
    """What each end tells of `program`; the order between the two is a matter of luck in the real world."""
    story: list[str] = []
    accepted: Deferred[Teller] = Deferred()

    class Server(Teller):
        def connectionMade(self) -> None:
            accepted.callback(self)

    def sleep() -> Deferred[Any]:
        return deferLater(client_reactor, 0.03)

    port = server_reactor.listenTCP(0, Factory.forProtocol(lambda: Server("server", story, half_close)), interface=ip)
    endpoint = TCP4ClientEndpoint(client_reactor, ip, port.getHost().port)
    client: Any = await endpoint.connect(Factory.forProtocol(lambda: Teller("client", story, half_close)))
    server = await accepted
    await program(client, server, sleep)
    await sleep()
    await sleep()
    for end in (client, server):
        if not end.ended.called:
            end.tell("is still open")
            end.tcp.abortConnection()
            await end.ended
    await port.stopListening()
    return {name: [line for line in story if line.startswith(name)] for name in ("client", "server")}


@pytest.mark.parametrize("half_close", [False, True], ids=["plain", "half_close"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_same_story(program: Program, half_close: bool) -> None:
    net = SimNet(0, Link(delay=0.000_1))
    a, b = net.host("a"), net.host("b")
    simulated = net.run_until(told(program, a.reactor, b.reactor, b.address, half_close))
    real = await told(program, real_reactor, real_reactor, "127.0.0.1", half_close)
    assert simulated == real
