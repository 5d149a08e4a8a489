"""Two simulated hosts with a connection, and protocols and producers that note what happens to them."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IPullProducer,
    IPushProducer,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.simnet.network import Host, SimNet
from tests.simnet.pipe import Link


class Recorder(Protocol):
    """Notes what it gets, with the time."""

    def __init__(self, net: SimNet) -> None:
        self.net = net
        self.received = bytearray()
        self.arrivals: list[tuple[float, int]] = []
        self.lost: Failure | None = None
        self.made = False

    @property
    def tcp(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        self.made = True

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.arrivals.append((self.net.now, len(data)))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        assert self.lost is None, "connectionLost was called twice"
        self.lost = reason


@implementer(IHalfCloseableProtocol)
class HalfCloser(Recorder):
    read_lost = False
    write_lost = False

    def readConnectionLost(self) -> None:
        self.read_lost = True

    def writeConnectionLost(self) -> None:
        self.write_lost = True


@implementer(IPullProducer)
class Pull:
    """Writes pieces when asked, and notes how much was unsent at each time."""

    def __init__(self, transport: Any, size: int, piece: int = 16_384) -> None:
        self.transport = transport
        self.left = size
        self.piece = piece
        self.asked = 0
        self.most_unsent = 0
        self.stopped = False

    def resumeProducing(self) -> None:
        self.asked += 1
        unsent = len(self.transport.dataBuffer) - self.transport.offset + self.transport._tempDataLen
        assert unsent == 0, "a pull producer is asked when all is with the kernel"
        if self.left == 0:
            self.transport.unregisterProducer()
            return
        data = bytes(min(self.piece, self.left))
        self.left -= len(data)
        self.transport.write(data)
        self.most_unsent = max(self.most_unsent, len(self.transport.socket.out.unsent))

    def stopProducing(self) -> None:
        self.stopped = True


@implementer(IPushProducer)
class Push:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


class Pair:
    """Two hosts and a connection between them: `client` on `a`, `server` on `b`."""

    def __init__(self, kind: type[Recorder] = Recorder, seed: int = 1, **link: Any) -> None:
        self.net = SimNet(seed, Link(**link))
        self.a = self.net.host("a")
        self.b = self.net.host("b")
        self.servers: list[Recorder] = []
        self.port = self.b.reactor.listenTCP(7, accepting(self.net, kind, self.servers))
        self.client = self.connect(kind)
        self.net.run_until(lambda: self.servers)
        self.server = self.servers[0]

    def connect(self, kind: type[Recorder] = Recorder, timeout: float = 30.0) -> Any:
        endpoint = TCP4ClientEndpoint(self.a.reactor, self.b.address, 7, timeout)
        return self.net.run_until(endpoint.connect(Factory.forProtocol(lambda: kind(self.net))), 300)


def accepting(net: SimNet, kind: type[Recorder], made: list[Recorder]) -> Factory:
    def build() -> Recorder:
        made.append(kind(net))
        return made[-1]

    return Factory.forProtocol(build)


def ended_by(protocol: Recorder, kind: type[BaseException]) -> bool:
    """Whether the protocol's connection was lost for that reason."""
    return protocol.lost is not None and isinstance(protocol.lost.value, kind)


def refused(net: SimNet, source: Host, ip: str, port: int, timeout: float = 30.0) -> BaseException:
    endpoint = TCP4ClientEndpoint(source.reactor, ip, port, timeout)
    with pytest.raises(Exception) as caught:
        net.run_until(endpoint.connect(Factory.forProtocol(Protocol)), 300)
    return caught.value
