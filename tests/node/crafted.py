"""Clients that do what no client of ours would: circuits along any path, on any link, as many as they like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.protocol import Factory, Protocol

from backrooms.circuit.events import CircuitBuilt
from backrooms.circuit.origin import HopKeys, OriginCircuit
from backrooms.circuit.stream import Stream
from backrooms.crypto.ntor import NtorClient
from backrooms.node.channels import Channels
from backrooms.node.driver import Turn
from backrooms.node.link import Link
from backrooms.node.relay import Relay
from backrooms.node.timers import Timers
from backrooms.transport.tls import TlsTransport
from backrooms.wire.cell import DestroyReason
from backrooms.wire.extensions import ClientExtensions
from tests import keys
from tests.simnet.node import RELAY_PORT, SimNetwork, SimNode


class Stranger:
    """A client that is nothing but links, on a host of its own."""

    def __init__(self, network: SimNetwork, name: str = "stranger", *addresses: str) -> None:
        self.net = network.net
        self.host = network.net.host(name, *addresses)
        self.rng = self.host.rng
        self.timers = Timers(self.host.reactor)
        self._addresses = {node.id: f"tls:{node.host.address}:{RELAY_PORT}" for node in network.relays}
        self.channels = Channels(
            self.host.reactor,
            self.timers,
            Turn(self.host.reactor),
            self.rng,
            keys.NETWORK_ID,
            {"tls": TlsTransport(keys.NETWORK_ID)},
            lambda relay_id: [self._addresses[relay_id]],
        )

    def connect(self, node: SimNode) -> Link:
        """One more link to a relay, whatever others there are."""
        link: Link = self.net.run_until(self.channels.connect(self._addresses[node.id], node.id))
        return link


class Crafted:
    """A circuit along whatever path it is told, of the network's client or on a link of somebody else's."""

    def __init__(self, network: SimNetwork, path: Sequence[HopKeys], link: Link | None = None) -> None:
        self.network = network
        self.events: list[Any] = []
        self.ended: int | None = None
        rng = network.client.host.rng
        self.link = link or network.net.run_until(network.client.node.channels.link(path[0].relay_id))
        queue = self.link.open_circuit(self, rng)
        self.circuit_id = queue.circuit_id
        minute = int(network.net.wall()) // 60
        self.machine = OriginCircuit(
            path,
            keys.NETWORK_ID,
            queue,
            lambda handshake: self.link.channel.create(queue.circuit_id, handshake),
            lambda: ClientExtensions(minute).encode(),
            lambda: network.net.now,
            rng,
            self.events.append,
        )
        self.link.handle(self.circuit_id, self.machine.receive)
        self.machine.start()

    def created(self, handshake: bytes) -> None:
        self.machine.created(handshake)

    def destroyed(self, reason: int) -> None:
        self.ended = reason
        self.machine.close()

    @property
    def built(self) -> bool:
        return any(isinstance(event, CircuitBuilt) for event in self.events)

    def settle(self, limit: float = 30) -> None:
        """Let time pass until the circuit is built or ended."""
        self.network.net.run_until(lambda: self.built or self.ended is not None, limit)

    def close(self) -> None:
        self.machine.close()
        self.link.release(self.circuit_id, DestroyReason.NONE, self.network.net.now)
        self.network.net.run(0.5)


def hop(node: SimNode) -> HopKeys:
    descriptor = node.node.directory.get(node.id)
    assert descriptor is not None
    return HopKeys(node.id, descriptor.onion_key)


def relay(node: SimNode) -> Relay:
    assert node.node.relay is not None
    return node.node.relay


def handshake(network: SimNetwork, node: SimNode, onion_key: bytes | None = None, age: int = 0) -> bytes:
    """A CREATE for a relay, `age` minutes old."""
    keys_of = hop(node)
    message = ClientExtensions(int(network.net.wall()) // 60 - age).encode()
    rng = network.client.host.rng
    return NtorClient.start(node.id, onion_key or keys_of.onion_key, keys.NETWORK_ID, message, rng)[1]


class Waiting:
    """The owner of a circuit that has only been asked for."""

    def __init__(self) -> None:
        self.ended: int | None = None
        self.accepted = False

    def created(self, handshake: bytes) -> None:
        self.accepted = True

    def destroyed(self, reason: int) -> None:
        self.ended = reason


def create(network: SimNetwork, link: Any, message: bytes) -> Waiting:
    owner = Waiting()
    queue = link.open_circuit(owner, network.client.host.rng)
    link.channel.create(queue.circuit_id, message)
    return owner


class Download:
    """A stream on a crafted circuit; what comes is read at once. `received` is in bytes."""

    def __init__(self, circuit: Crafted, host: str = "web.example", port: int = 80) -> None:
        self.received = 0
        self.stream = Stream()
        self.stream.on_dirty = self._read
        circuit.machine.begin(self.stream, host, port)

    def _read(self) -> None:
        while data := self.stream.output():
            self.received += len(data)


def serve(network: SimNetwork, size: int) -> None:
    """Have the web server send so many bytes on each connection, and then close it."""

    class Server(Protocol):
        def connectionMade(self) -> None:
            assert self.transport is not None
            self.transport.write(bytes(size))
            self.transport.loseConnection()

    network.web.reactor.listenTCP(80, Factory.forProtocol(Server))
