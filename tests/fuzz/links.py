"""Targets of links: the handshake from both sides, and an open link."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from backrooms.channel.circuits import TOP_BIT
from backrooms.channel.events import Create, Created, Destroyed, LinkClosed
from backrooms.channel.handshake import NOBODY, Handshake, Step
from backrooms.channel.machine import MAX_CIRCUITS, MAX_REPLIES, Channel
from backrooms.crypto.keys import PublicIdentity
from backrooms.errors import RemoteProtocolError
from backrooms.wire.cell import CELL_SIZE, HEADER, PAYLOAD_SIZE, CellCommand, pack_cell, pack_handshake
from backrooms.wire.link import Ping, encode_message, fragment
from tests.channel.links import BINDING, NOW, RESPONDER, WALL, End, initiator, responder, talk
from tests.fuzz.target import Target, in_any_pieces
from tests.keys import NETWORK_ID, identity

Signatures = Mapping[str, bytes]

# the handshake


class _Signer:
    """An identity that keeps its first signatures and gives them again: a peer's recorded proof fits only those."""

    def __init__(self, key: int, first: dict[str, bytes] | None = None) -> None:
        self._key = key
        self.first = first

    @property
    def public(self) -> PublicIdentity:
        return identity(self._key).public

    def sign(self, message: bytes, algorithms: Sequence[str]) -> dict[str, bytes]:
        if self.first is None:
            self.first = identity(self._key).sign(message, algorithms)
        return {name: self.first.get(name, b"") for name in algorithms}


@cache
def _recorded(relay: bool) -> tuple[bytes, dict[str, bytes], bytes, dict[str, bytes]]:
    """A real handshake: what the initiator sent and signed, and the same of the responder."""
    a, b = initiator(relay), responder()
    for end, number in ((a, 0), (b, RESPONDER)):
        end.key = _Signer(number)  # type: ignore[assignment]
    assert talk(a, b) is None
    assert a.channel.open
    assert b.channel.open
    return b"".join(a.sent), a.key.first or {}, b"".join(b.sent), b.key.first or {}  # type: ignore[attr-defined]


def _tail() -> bytes:
    """What may follow on an open link."""
    return pack_cell(TOP_BIT | 5, CellCommand.CREATE, pack_handshake(b"hi")) + fragment(encode_message(Ping(7)))[0]


def _outcome(end: End, error: str | None) -> Any:
    channel = end.channel
    return end.events, error, channel.output(), dict(channel.counts), channel.open, channel.closed, channel.circuits


def _by_cells(pieces: Sequence[bytes]) -> Iterator[bytes]:
    """The pieces, cut at the ends of cells too: there the owner signs, and only then the peer may go on."""
    offset = 0
    for piece in pieces:
        while piece:
            room = CELL_SIZE - offset % CELL_SIZE
            yield piece[:room]
            offset += len(piece[:room])
            piece = piece[room:]


def _feed(end: End, signatures: dict[str, bytes], number: int, pieces: Sequence[bytes]) -> Any:
    end.key = _Signer(number, signatures)  # type: ignore[assignment]
    end.collect()
    error = None
    try:
        for piece in _by_cells(pieces):
            end.give(piece)
    except RemoteProtocolError as caught:
        error = caught.reason
    end.collect()
    assert end.channel.closed == bool(end.found(LinkClosed)) == (error is not None)
    return _outcome(end, error)


def _responder(relay: bool) -> Target:
    def feed(pieces: Sequence[bytes]) -> Any:
        return _feed(responder(), _recorded(relay)[3], RESPONDER, pieces)

    def seeds() -> list[bytes]:
        sent = _recorded(relay)[0]
        return [sent, sent + _tail()]

    name = "channel.handshake.relay" if relay else "channel.handshake.client"
    return Target(name, in_any_pieces(feed), seeds, fixed=1 << 20)


def _initiator(relay: bool) -> Target:
    def feed(pieces: Sequence[bytes]) -> Any:
        return _feed(initiator(relay), _recorded(relay)[1], 0, pieces)

    def seeds() -> list[bytes]:
        sent = _recorded(relay)[2]
        return [sent, sent + _tail()]

    name = "channel.handshake.dialling_relay" if relay else "channel.handshake.dialling_client"
    return Target(name, in_any_pieces(feed), seeds, fixed=1 << 20)


# an open link


def _opened(dialling: bool) -> Channel:
    """An open link without the cost of its handshake: to a client, or of a client."""
    handshake = Handshake(BINDING, NETWORK_ID, bytes([7]) * 32, NOBODY, (1,), int(WALL), dialling)
    handshake.step = Step.DONE
    handshake.version = 1
    return Channel(handshake, random.Random(1), NOW, MAX_CIRCUITS, silent=dialling)


_IDS = (0, *(half | number for half in (0, TOP_BIT) for number in range(1, 8)))


def _expand(script: bytes) -> bytes:
    """Cells, each as `circuit u8 | command u8 | reserved u8 | length u16 | payload`, the zeros behind it left out.

    Circuits from 0xF0 on stand for bytes that are not in cells.
    """
    out = bytearray()
    at = 0
    while at + 5 <= len(script):
        circuit, command, reserved = script[at : at + 3]
        length = int.from_bytes(script[at + 3 : at + 5], "big")
        payload = script[at + 5 : at + 5 + min(length, PAYLOAD_SIZE)]
        at += 5 + len(payload)
        if circuit >= 0xF0:
            out += payload
        else:
            header = HEADER.pack(_IDS[circuit % len(_IDS)], command, bytes([0, 0, reserved & 1]))
            out += header + payload.ljust(PAYLOAD_SIZE, b"\0")
    return bytes(out)


def _cell(circuit: int, command: int, payload: bytes = b"") -> bytes:
    """One cell of a script."""
    return bytes([circuit, command, 0]) + len(payload).to_bytes(2, "big") + payload


def _refuse(command: int, buffer: bytes, offset: int) -> None:
    """A handler that takes any cell but those that begin with 0xEE."""
    assert len(buffer) >= offset + CELL_SIZE
    if buffer[offset + 8] == 0xEE:
        raise RemoteProtocolError("not recognised")


def _owner(channel: Channel, dialling: bool) -> None:
    """Circuits in every state before anything comes: opening, offered, open in both ways, closing."""
    ours, theirs = (TOP_BIT, 0) if dialling else (0, TOP_BIT)
    for number in (1, 2, 3):
        channel.create(ours | number, b"hello")
    channel.handlers[ours | 2] = _refuse
    created = pack_cell(ours | 2, CellCommand.CREATED, pack_handshake(b"welcome"))
    offers = b"".join(pack_cell(theirs | n, CellCommand.CREATE, pack_handshake(b"hello")) for n in (4, 5))
    channel.receive(created + offers, NOW)
    channel.created(theirs | 5, b"welcome")
    channel.handlers[theirs | 5] = _refuse
    channel.destroy(ours | 3, 0)
    channel.events()
    channel.output()


def _open_link(dialling: bool) -> Target:
    def feed(pieces: Sequence[bytes]) -> Any:
        channel = _opened(dialling)
        _owner(channel, dialling)
        error = None
        try:
            for piece in pieces:
                channel.receive(piece, NOW)
        except RemoteProtocolError as caught:
            error = caught.reason
        assert channel.closed == (error is not None)
        events = channel.events()
        outcome = (
            events,
            error,
            dict(channel.counts),
            channel.circuits,
            sorted(channel.handlers),
            channel.mux.queued(),
        )
        assert channel.mux.control_waiting <= MAX_REPLIES + 16
        _answer(channel, events)
        return outcome

    run = in_any_pieces(feed)
    name = "channel.open.client" if dialling else "channel.open.relay"
    # One byte of a script can stand for a cell, and be answered by one.
    return Target(name, lambda data: run(_expand(data)), _scripts, factor=8 * CELL_SIZE, fixed=1 << 20, longest=3_000)


def _answer(channel: Channel, events: list[Any]) -> None:
    """What an owner does then; nothing of it may break our own rules."""
    offered: dict[int, bytes] = {}
    for event in events:
        if isinstance(event, Create):
            offered[event.circuit_id] = event.handshake
        elif isinstance(event, Created):
            channel.destroy(event.circuit_id, 0)
        elif isinstance(event, Destroyed):
            offered.pop(event.circuit_id, None)
    for circuit_id, handshake in offered.items():
        if circuit_id & 1:
            channel.created(circuit_id, handshake)
        else:
            channel.destroy(circuit_id, 1)
    channel.tick(NOW + 100)
    total = 0
    while data := channel.output():
        assert len(data) % CELL_SIZE == 0
        total += len(data)
    assert total <= (MAX_REPLIES + 64) * CELL_SIZE
    channel.receive_eof(NOW)
    assert channel.closed


def _scripts() -> list[bytes]:
    hello = pack_handshake(b"hello")
    message = [cell[8:].rstrip(b"\0") for cell in fragment(encode_message(Ping(7)))]
    directory = [cell[8:].rstrip(b"\0") for cell in fragment(b"\x10" + bytes(31) + b"\1")]
    each = [_cell(circuit, command, hello) for circuit in (1, 5, 9, 12) for command in range(6)]
    return [
        _cell(6, 3, hello) + _cell(13, 3, hello) + _cell(5, 1, b"data") + _cell(12, 2, b"\xee"),
        _cell(1, 4, hello) + _cell(8, 4, hello) + _cell(1, 1, b"data") + _cell(1, 5, b"\1"),
        b"".join(_cell(0, 6, piece) for piece in message + directory),
        _cell(0, 6, b"\0\0\1\x10")
        + _cell(0, 6, b"\1\0\2ab")
        + _cell(3, 0)
        + _cell(0, 0x80)
        + _cell(0, 6, b"\1\0\1\x90"),
        b"".join(each),
        _cell(0xF0, 0, pack_cell(0, 0, b"")[:100]) + _cell(0xF0, 0, bytes(3996)),
    ]


def targets() -> list[Target]:
    """All targets of this module."""
    make: tuple[Callable[[bool], Target], ...] = (_responder, _initiator, _open_link)
    return [one(flag) for one in make for flag in (False, True)]
