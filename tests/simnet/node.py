"""A whole Backrooms network in one process: real nodes, by their composition root, on simulated hosts."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from backrooms.config import Config
from backrooms.netdir.network import Contact, NetworkFile
from backrooms.node.circuits import ClientCircuit
from backrooms.service import Node
from tests import keys
from tests.simnet.network import EPOCH, Host, SimNet
from tests.simnet.pipe import Link

RELAY_PORT = 9001
SOCKS_PORT = 9050
CONTACTS = 2

_RELAY = """
socks = []
http = []
[node]
nickname = "{name}"
network = "../network.toml"
[client]
enabled = false
[control]
listen = []
[relay]
enabled = true
addresses = ["tls:{address}:{port}"]
contact = "operator@example.org"
[exit]
enabled = {exit}
policy = ["accept *:*"]
allow_private = true
single_hop = {exit}
"""

_CLIENT = """
http = []
[node]
nickname = "{name}"
network = "../network.toml"
[client]
allow_private = true
[control]
listen = []
[[socks]]
listen = "tcp:{port}:interface=127.0.0.1"
"""


_KILLED: list[Node] = []
"""Killed nodes are kept: a killed process runs no more code, but a coroutine that is collected is closed and does."""


class SimNode:
    """One node on its host. `start` may be called again after the host was killed and booted."""

    def __init__(self, host: Host, folder: Path, config: str, number: int | None) -> None:
        self.host = host
        self.folder = folder
        self._config = config
        self._number = number
        self.node: Node
        self._make()

    def __repr__(self) -> str:
        return f"<SimNode {self.host.name}>"

    @property
    def id(self) -> bytes:
        """A relay's id."""
        assert self._number is not None
        return keys.identity(self._number).public.id

    def _make(self) -> None:
        store = None
        if self._number is not None:
            store = keys.key_store(self.folder / "state" / "keys", self._number, self.host.net.wall())
        config = Config.parse(self._config, self.folder)
        self.node = Node(config, self.host.reactor, self.host.rng, store)

    def configure(self, table: str, **options: Any) -> None:
        """Set options of a table that the configuration has, before the node is started."""
        head, found, rest = self._config.partition(f"[{table}]\n")
        assert found, table
        mine, bracket, others = rest.partition("\n[")
        lines = [line for line in mine.splitlines() if line.partition(" = ")[0] not in options]
        lines += [f"{key} = {json.dumps(value)}" for key, value in options.items()]
        self._config = head + found + "\n".join(lines) + bracket + others
        if not self.host.reactor.dead:
            self._make()

    @property
    def config(self) -> str:
        """Its configuration as text."""
        return self._config

    def config_file(self, file: Path) -> None:
        """Make the node anew, before it is started, out of a file, which it can read again."""
        self._config = file.read_text()
        self.node = Node(Config.load(file), self.host.reactor, self.host.rng, None)

    def start(self) -> None:
        """Start the node, after a reboot a new one with the old one's state."""
        if self.host.reactor.dead:
            _KILLED.append(self.node)
            self.host.boot()
            self._make()
        self.node.startService()

    def stop(self) -> Deferred[None]:
        """Stop it in good order."""
        return self.node.stopService()


class SimNetwork:
    """`relays` relays of which the last `exits` are exits, a client, and a host `web` outside of the network.

    `folder` takes the nodes' state. The relays' keys are those of `tests.keys`. Every host has a /16 of its own;
    `places(number)` may give the addresses of a relay's host.
    """

    def __init__(
        self,
        folder: Path,
        *,
        relays: int = 6,
        exits: int = 2,
        seed: int = 0,
        link: Link | None = None,
        places: Callable[[int], tuple[str, ...]] = lambda number: (),
    ) -> None:
        # Nodes on a reactor that is not real take its time as the wall time, too.
        self.net = SimNet(seed, link, start=EPOCH)
        hosts = [self.net.host(f"relay{number}", *places(number)) for number in range(relays)]
        contacts = tuple(
            Contact(keys.identity(number).public.id, f"tls:{host.address}:{RELAY_PORT}")
            for number, host in enumerate(hosts[:CONTACTS])
        )
        network = NetworkFile("simnet", keys.NETWORK_ID, contacts)
        (folder / "network.toml").write_text(network.to_toml(), "utf-8")
        self.relays: list[SimNode] = []
        for number, host in enumerate(hosts):
            is_exit = "true" if number >= relays - exits else "false"
            text = _RELAY.format(name=host.name, address=host.address, port=RELAY_PORT, exit=is_exit)
            self.relays.append(self._node(host, folder, text, number))
        self.exits = self.relays[relays - exits :]
        client = self.net.host("client")
        self.client = self._node(client, folder, _CLIENT.format(name="client", port=SOCKS_PORT), None)
        self.web = self.net.host("web")
        self.net.names["web.example"] = [self.web.address]

    def _node(self, host: Host, folder: Path, config: str, number: int | None) -> SimNode:
        own = folder / host.name
        own.mkdir(mode=0o700)
        return SimNode(host, own, config, number)

    @property
    def nodes(self) -> list[SimNode]:
        """The relays and the client."""
        return [*self.relays, self.client]

    def start(self) -> None:
        """Start all nodes."""
        for node in self.nodes:
            node.start()

    def hush(self, *, gossip: bool = False) -> None:
        """End the heartbeats of all relays, and their gossip, so that only what a test does makes links and traffic."""
        for relay in self.relays:
            assert relay.node.heartbeats is not None
            relay.node.heartbeats.stop()
            if gossip and relay.node.keeper.gossip is not None:
                relay.node.keeper.gossip.stop()

    def stop(self) -> None:
        """Stop all nodes that run, the client first, and let the last calls happen."""
        for node in [self.client, *self.relays]:
            if node.host.reactor.dead:
                _KILLED.append(node.node)
            else:
                self.net.run_until(node.stop(), 30)
        self.net.run(1)

    def ready(self, limit: float = 120.0) -> None:
        """Let time pass until every node knows all relays and the client has a circuit."""
        circuits = self.client.node.circuits
        assert circuits is not None

        def done() -> bool:
            knows = all(len(node.node.directory) == len(self.relays) for node in self.nodes)
            return knows and any(circuit.status == "BUILT" for circuit in circuits.circuits.values())

        self.net.run_until(done, limit)

    def used(self) -> list[ClientCircuit]:
        """The client's built circuits that carry or carried streams, the one used last at the end."""
        circuits = self.client.node.circuits
        assert circuits is not None
        found = [circuit for circuit in circuits.circuits.values() if circuit.status == "BUILT"]
        return sorted((one for one in found if one.dirty_at is not None), key=lambda one: one.dirty_at or 0.0)

    def relay(self, relay_id: bytes) -> SimNode:
        """The relay with this id."""
        return next(node for node in self.relays if node.id == relay_id)

    def open(self, host: str, port: int, protocol: Protocol, user: str = "", limit: float = 60.0) -> Any:
        """Connect `protocol` to a destination through the client's SOCKS port; `SocksRefused` if that fails."""
        endpoint = TCP4ClientEndpoint(self.client.host.reactor, "127.0.0.1", SOCKS_PORT)
        opened: Deferred[Protocol] = Deferred()
        shaking = SocksClient(host, port, protocol, user, opened)
        self.net.run_until(endpoint.connect(Factory.forProtocol(lambda: shaking)), limit)
        return self.net.run_until(opened, limit)


class SocksRefused(Exception):
    """The SOCKS reply's code, or 0 when the connection ended."""


class SocksClient(Protocol):
    """A SOCKS 5 handshake (RFC 1928, 1929) with a host name, then all is `inner`'s."""

    def __init__(self, host: str, port: int, inner: Protocol, user: str, opened: Deferred[Protocol]) -> None:
        self._inner = inner
        self._opened = opened
        self._buffer = b""
        name = host.encode("ascii")
        self._request = b"\x05\x01\x00\x03" + bytes([len(name)]) + name + struct.pack(">H", port)
        self._user = user.encode("ascii")
        self._step: Callable[[], bool] = self._method

    @property
    def _tcp(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        self._tcp.write(b"\x05\x01\x02" if self._user else b"\x05\x01\x00")

    def dataReceived(self, data: bytes) -> None:
        if self._opened.called:
            self._inner.dataReceived(data)
            return
        self._buffer += data
        while not self._opened.called and self._step():
            pass

    def _take(self, size: int) -> bytes | None:
        if len(self._buffer) < size:
            return None
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _method(self) -> bool:
        if (answer := self._take(2)) is None:
            return False
        if answer == b"\x05\x02":
            login = b"\x01" + bytes([len(self._user)]) + self._user + b"\x01x"
            self._tcp.write(login)
            self._step = self._login
        elif answer == b"\x05\x00":
            self._ask()
        else:
            self._fail(answer[1])
        return True

    def _login(self) -> bool:
        if (answer := self._take(2)) is None:
            return False
        if answer[1] == 0:
            self._ask()
        else:
            self._fail(answer[1])
        return True

    def _ask(self) -> None:
        self._tcp.write(self._request)
        self._step = self._reply

    def _reply(self) -> bool:
        if len(self._buffer) < 5:
            return False
        size = {1: 10, 3: 7 + self._buffer[4], 4: 22}[self._buffer[3]]
        if (answer := self._take(size)) is None:
            return False
        if answer[1]:
            self._fail(answer[1])
            return True
        rest, self._buffer = self._buffer, b""
        self._inner.makeConnection(self._tcp)  # type: ignore[no-untyped-call]
        self._opened.callback(self._inner)
        if rest:
            self._inner.dataReceived(rest)
        return True

    def _fail(self, code: int) -> None:
        self._opened.errback(SocksRefused(code))
        self._tcp.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._opened.called:
            self._opened.errback(SocksRefused(0))
        elif self._inner.transport is not None:
            self._inner.connectionLost(reason)
