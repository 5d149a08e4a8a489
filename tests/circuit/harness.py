"""A whole circuit without links: client, relays and exit joined cell by cell."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from backrooms.channel.mux import Mux
from backrooms.circuit.events import BeginRequested, CircuitClosed, ExtendRequested, ResolveRequested
from backrooms.circuit.hop import RelayCircuit
from backrooms.circuit.origin import HopKeys, OriginCircuit
from backrooms.circuit.stream import Stream
from backrooms.crypto.ntor import relay_respond
from backrooms.wire.cell import BODY_SIZE, CELL_SIZE, HEADER, ZERO3, CellCommand
from backrooms.wire.relay import pack_message

NETWORK = bytes(range(32))
Tamper = Callable[[str, int, bytes], list[bytes]]
"""`tamper(wire name, number of the cell from 1, cell)` gives the cells to deliver instead."""


@dataclass
class Wire:
    """One direction of one link: moves cells from a mux to a handler."""

    name: str
    mux: Mux
    handler: Callable[[int, bytes, int], None]
    count: int = 0
    seen: list[bytes] = field(default_factory=list)
    """Each cell as it left the mux."""


class Path:
    """`hops` relays and a client. Like managers, it takes the whole circuit down as soon as one party ends it."""

    def __init__(self, hops: int, tamper: Tamper | None = None, seed: int = 1) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self.tamper = tamper
        self.take_down = True
        """False: the others do not hear that a party ended the circuit, and it goes on being given cells."""
        self.faults: list[tuple[str, CircuitClosed]] = []
        """Who ended the circuit and why: "client" or the number of a relay."""
        self.client_events: list[Any] = []
        self.relay_events: list[list[Any]] = [[] for _ in range(hops)]
        self.relays: list[RelayCircuit] = []
        self.wires: list[Wire] = []
        self.keys = [X25519PrivateKey.from_private_bytes(self.rng.randbytes(32)) for _ in range(hops)]
        self.ids = [self.rng.randbytes(32) for _ in range(hops)]
        path = [HopKeys(i, key.public_key().public_bytes_raw()) for i, key in zip(self.ids, self.keys, strict=True)]
        self._back: list[Mux] = []
        self._client_mux = Mux()
        self.client = OriginCircuit(
            path,
            NETWORK,
            self._client_mux.open(0x80000001),
            self._create,
            lambda: b"",
            lambda: self.now,
            self.rng,
            self._client_event,
        )

    def build(self) -> OriginCircuit:
        """Build the whole circuit."""
        self.client.start()
        self.settle()
        return self.client

    def _create(self, handshake: bytes) -> None:
        relay, reply = self._make_relay(0, handshake)
        self.wires.append(Wire("client>0", self._client_mux, relay.forward))
        self.wires.append(Wire("0>client", self._back[0], self.client.receive))
        self.client.created(reply)

    def _make_relay(self, index: int, handshake: bytes) -> tuple[RelayCircuit, bytes]:
        key = self.keys[index]
        reply, keys = relay_respond(
            handshake,
            self.ids[index],
            lambda mine, peer: key.exchange(X25519PublicKey.from_public_bytes(peer)),
            [key.public_key().public_bytes_raw()],
            NETWORK,
            lambda message: b"",
            self.rng,
        )
        back = Mux()
        self._back.append(back)
        relay = RelayCircuit(
            keys, back.open(0x80000001 + index), lambda: self.now, self.rng, lambda e: self._relay_event(index, e)
        )
        self.relays.append(relay)
        return relay, reply

    def _client_event(self, event: Any) -> None:
        self.client_events.append(event)
        if isinstance(event, CircuitClosed):
            self._ended("client", event)

    def _relay_event(self, index: int, event: Any) -> None:
        self.relay_events[index].append(event)
        if isinstance(event, CircuitClosed):
            self._ended(str(index), event)
        if isinstance(event, ExtendRequested) and not self.relays[index].extended:
            assert event.relay_id == self.ids[index + 1]
            forward = Mux()
            relay, reply = self._make_relay(index + 1, event.handshake)
            this = self.relays[index]
            this.extend(forward.open(0x80000002 + index), reply)
            self.wires.append(Wire(f"{index}>{index + 1}", forward, relay.forward))
            self.wires.append(Wire(f"{index + 1}>{index}", self._back[index + 1], this.backward))

    def _ended(self, who: str, event: CircuitClosed) -> None:
        self.faults.append((who, event))
        if self.take_down:
            self.client.close()
            for relay in self.relays:
                relay.close()

    def settle(self, limit: int = 1_000_000, batch: int = 32) -> int:
        """Move cells, at most `batch` of a wire at a time, until all is quiet or the circuit is down, or about `limit`
        cells were moved; returns how many.
        """
        moved = 0
        busy = True
        while busy and moved < limit:
            busy = False
            for wire in list(self.wires):
                for cell in wire.mux.pop(batch):
                    busy = True
                    moved += 1
                    self._deliver(wire, cell)
        return moved

    def _deliver(self, wire: Wire, cell: bytes) -> None:
        assert len(cell) == CELL_SIZE
        wire.count += 1
        wire.seen.append(cell)
        for one in self.tamper(wire.name, wire.count, cell) if self.tamper else [cell]:
            if self.take_down and self.faults:
                return
            _, command, _ = HEADER.unpack_from(one)
            wire.handler(command, one, 0)

    def client_mux_queued(self) -> int:
        """Cells that wait at the client."""
        return self._client_mux.queued()

    def wire(self, name: str) -> Wire:
        """The wire of this name, such as "0>1"."""
        return next(wire for wire in self.wires if wire.name == name)

    # What a party that breaks the rules sends

    def client_sends(self, *messages: bytes, hop: int = -1, command: int = CellCommand.RELAY) -> None:
        """A cell of the client with these messages for relay `hop`, whatever its edge thinks of it."""
        body = b"".join(messages).ljust(BODY_SIZE, b"\0")
        assert len(body) == BODY_SIZE
        layers = self.client._forward[: len(self.relays) + hop + 1 if hop < 0 else hop + 1]
        left, right = layers[-1].client_originate(command, body)
        for layer in layers[-2::-1]:
            left, right = layer.client_wrap(command, left, right)
        cell = HEADER.pack(0x80000001, command, ZERO3) + left + right
        self.client.edge._queue.append(cell)

    def relay_sends(self, *messages: bytes, hop: int = -1) -> None:
        """A cell of relay `hop` to the client with these messages, whatever its edge thinks of it."""
        body = b"".join(messages).ljust(BODY_SIZE, b"\0")
        assert len(body) == BODY_SIZE
        relay = self.relays[hop]
        relay.edge._queue.append(relay._seal(body)[0])

    @property
    def exit(self) -> RelayCircuit:
        """The last relay."""
        return self.relays[-1]

    def begins(self) -> list[BeginRequested]:
        """What the exit was asked to connect to."""
        return [e for e in self.relay_events[-1] if isinstance(e, BeginRequested)]

    def resolves(self) -> list[ResolveRequested]:
        """What the exit was asked to look up."""
        return [e for e in self.relay_events[-1] if isinstance(e, ResolveRequested)]

    def fault(self) -> tuple[str, int, str]:
        """Who ended the circuit first, its `DestroyReason` and its text."""
        who, event = self.faults[0]
        return who, event.reason, event.text


def connect(path: Path, host: str = "example.org", port: int = 80) -> tuple[Stream, Stream]:
    """A stream through the circuit: the client's end and the exit's."""
    near = Stream()
    path.client.begin(near, host, port)
    path.settle()
    begin = path.begins()[-1]
    far = path.exit.edge.streams[begin.stream_id]
    path.exit.edge.connected(far, "192.0.2.7", 60)
    path.settle()
    return near, far


def joined(hops: int = 3, tamper: Tamper | None = None, seed: int = 1) -> tuple[Path, Stream, Stream]:
    """A circuit that is built, and a connected stream on it."""
    path = Path(hops, tamper, seed)
    path.build()
    near, far = connect(path)
    near.events()
    return path, near, far


def drain(path: Path, stream: Stream) -> bytes:
    """All that arrives at `stream`, read as fast as it comes."""
    parts: list[bytes] = []
    while True:
        path.now += 0.001
        path.settle()
        data = stream.output()
        if not data:
            return b"".join(parts)
        parts.append(data)


def message(command: int, stream_id: int, value: Any = b"") -> bytes:
    """A packed message; `value` is bytes or has `encode()`."""
    return pack_message(command, stream_id, value if isinstance(value, bytes) else value.encode())
