"""Two channels joined without a network, with real keys."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from backrooms.channel.circuits import TOP_BIT
from backrooms.channel.events import SignRequest
from backrooms.channel.machine import Channel
from backrooms.errors import RemoteProtocolError
from backrooms.interfaces import Binding
from backrooms.wire.cell import CELL_SIZE, CellCommand, pack_cell, pack_handshake, unpack_cell
from backrooms.wire.link import Reassembler, split_message
from tests.keys import NETWORK_ID, identity

BINDING = Binding(b"tls-exporter", bytes(range(100, 132)), b"c" * 32)
NOW = 1_000.0
WALL = 1_800_000_000.0
INITIATOR = 0
RESPONDER = 1
"""Numbers of `tests.keys.identity`."""


class End:
    """One channel, its identity, and the events it gave."""

    def __init__(self, channel: Channel, key: int) -> None:
        self.channel = channel
        self.key = identity(key)
        self.events: list[Any] = []
        self.sent: list[bytes] = []

    def collect(self, now: float = NOW) -> None:
        """Take the events, and sign what is to be signed."""
        for event in self.channel.events():
            self.events.append(event)
            if isinstance(event, SignRequest):
                signatures = self.key.sign(event.message, event.algorithms)
                self.channel.signed(self.key.public, signatures, now)
        self.events += self.channel.events()

    def give(self, data: bytes, now: float = NOW, chunk: int = 0) -> None:
        """Receive in pieces of `chunk` bytes; what the channel says is signed at once."""
        step = chunk or max(1, len(data))
        for start in range(0, len(data), step):
            self.channel.receive(data[start : start + step], now)
            self.collect(now)

    def found(self, kind: type[Any]) -> list[Any]:
        """The events of one kind so far."""
        return [event for event in self.events if isinstance(event, kind)]


def initiator(relay: bool = False, expected: int = RESPONDER, **changes: Any) -> End:
    """The end that dials; a client unless `relay`."""
    options: dict[str, Any] = {"binding": BINDING, "network_id": NETWORK_ID, "versions": (1,), "wall_now": WALL}
    options |= changes
    seed = options.pop("seed", 1)
    channel = Channel.initiate(
        expected_id=identity(expected).public.id,
        my_id=identity(INITIATOR).public.id if relay else None,
        rng=random.Random(seed),
        now=NOW,
        **options,
    )
    return End(channel, INITIATOR)


def responder(key: int = RESPONDER, **changes: Any) -> End:
    """The end that is dialled."""
    options: dict[str, Any] = {"binding": BINDING, "network_id": NETWORK_ID, "versions": (1,), "wall_now": WALL}
    options |= changes
    channel = Channel.respond(my_id=identity(key).public.id, rng=random.Random(2), now=NOW, **options)
    return End(channel, key)


def talk(a: End, b: End, chunk: int = 0, now: float = NOW) -> RemoteProtocolError | None:
    """Hand bytes to and fro until both are silent, or until one closes the link: then its error."""
    a.collect(now)
    b.collect(now)
    while True:
        quiet = True
        for one, other in ((a, b), (b, a)):
            data = one.channel.output()
            if data:
                quiet = False
                one.sent.append(data)
                try:
                    other.give(data, now, chunk)
                except RemoteProtocolError as error:
                    other.collect(now)
                    return error
        if quiet:
            return None


def opened(relay: bool = False, **changes: Any) -> tuple[End, End]:
    """Initiator and responder with an open link."""
    a, b = initiator(relay), responder(**changes)
    error = talk(a, b)
    assert error is None
    assert a.channel.open
    assert b.channel.open
    return a, b


THEIRS = TOP_BIT | 5
"""An id that the initiator may choose."""
OURS = 6
"""One that the responder may choose."""


def cells(data: bytes) -> list[tuple[int, int, bytes]]:
    """Circuit id, command and payload of each cell."""
    return [unpack_cell(data[at : at + CELL_SIZE]) for at in range(0, len(data), CELL_SIZE)]


def said(end: End) -> list[tuple[int, int]]:
    """Circuit id and command of each cell that `end` sends now."""
    found: list[tuple[int, int]] = []
    while data := end.channel.output():
        found += [(circuit_id, command) for circuit_id, command, _ in cells(data)]
    return found


def create_cell(circuit_id: int, handshake: bytes = b"hello") -> bytes:
    return pack_cell(circuit_id, CellCommand.CREATE, pack_handshake(handshake))


def destroy_cell(circuit_id: int, reason: int = 0) -> bytes:
    return pack_cell(circuit_id, CellCommand.DESTROY, bytes((reason,)))


def relay_cell(circuit_id: int, text: bytes = b"", command: int = CellCommand.RELAY) -> bytes:
    return pack_cell(circuit_id, command, text)


def relay(record: list[tuple[int, bytes]]) -> Callable[[int, bytes, int], None]:
    """A handler that writes down command and the first four bytes of the payload."""
    return lambda command, buffer, offset: record.append((command, buffer[offset + 8 : offset + 12]))


def circuit(a: End, b: End) -> int:
    """A circuit from a to b, accepted."""
    circuit_id = a.channel.new_circuit_id()
    a.channel.create(circuit_id, b"hello")
    talk(a, b)
    assert b.channel.created(circuit_id, b"welcome")
    talk(a, b)
    return circuit_id


OTHER_BINDING = Binding(BINDING.kind, bytes(32), BINDING.certificate)


def message_in(data: bytes) -> tuple[int, bytes]:
    """Type and payload of the one message in whole cells."""
    reassembler = Reassembler()
    found = [reassembler.feed(data[at + 8 : at + CELL_SIZE]) for at in range(0, len(data), CELL_SIZE)]
    (message,) = [one for one in found if one is not None]
    return split_message(message)
