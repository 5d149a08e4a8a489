"""An open link whose peer breaks the rules."""

from __future__ import annotations

import pytest

from backrooms.channel.circuits import MAX_REFUSED, TOP_BIT
from backrooms.channel.machine import (
    MAX_REPLIES,
    OUTPUT_CELLS,
    Create,
    Destroyed,
    LinkClosed,
)
from backrooms.errors import CircuitError, RemoteProtocolError
from backrooms.wire.cell import (
    CELL_SIZE,
    CellCommand,
    DestroyReason,
    pack_cell,
    pack_handshake,
    unpack_cell,
)
from backrooms.wire.link import Ping, encode_message, fragment
from tests.channel.links import (
    NOW,
    OURS,
    THEIRS,
    cells,
    circuit,
    create_cell,
    destroy_cell,
    opened,
    relay,
    relay_cell,
    said,
)


@pytest.mark.parametrize(
    ("name", "cell", "kind"),
    [
        ("relay", relay_cell(THEIRS), "unknown_circuit"),
        ("relay early", relay_cell(THEIRS, command=2), "unknown_circuit"),
        ("created", pack_cell(THEIRS, CellCommand.CREATED, b"\0\0"), "unexpected_created"),
        ("created, our half", pack_cell(OURS, CellCommand.CREATED, b"\0\0"), "unexpected_created"),
        ("create of the wrong half", create_cell(OURS), "bad_circuit_id"),
        ("create longer than its cell", pack_cell(THEIRS, CellCommand.CREATE, b"\xff\xff"), "bad_handshake"),
    ],
)
def test_a_bad_cell_for_no_circuit_is_answered_once(name: str, cell: bytes, kind: str) -> None:
    _, b = opened()
    circuit_id = unpack_cell(cell)[0]
    b.give(cell * 20)
    assert said(b) == [(circuit_id, CellCommand.DESTROY)]
    assert b.channel.counts == {kind: 20}
    b.give(destroy_cell(circuit_id))  # the peer's answer ends it
    assert said(b) == []
    assert b.channel.counts == {kind: 20}
    b.give(create_cell(THEIRS))
    assert b.found(Create) == [Create(THEIRS, b"hello")]


@pytest.mark.parametrize(
    ("name", "cell", "kind"),
    [
        ("create again", create_cell(THEIRS), "bad_circuit_id"),
        ("created from the wrong side", pack_cell(THEIRS, CellCommand.CREATED, b"\0\0"), "unexpected_created"),
        ("bad create", pack_cell(THEIRS, CellCommand.CREATE, b"\xff\xff"), "bad_handshake"),
        ("relay before created", relay_cell(THEIRS), "early_cell"),
    ],
)
def test_a_bad_cell_on_a_circuit_ends_it(name: str, cell: bytes, kind: str) -> None:
    _, b = opened()
    b.give(create_cell(THEIRS) + cell)
    assert b.events[-1] == Destroyed(THEIRS, DestroyReason.PROTOCOL)
    b.give(cell)
    assert said(b) == [(THEIRS, CellCommand.DESTROY)]
    assert b.channel.counts[kind] == 1


def test_created_twice_ends_the_circuit() -> None:
    a, b = opened()
    circuit_id = circuit(a, b)
    a.give(pack_cell(circuit_id, CellCommand.CREATED, pack_handshake(b"again")))
    assert a.events[-1] == Destroyed(circuit_id, DestroyReason.PROTOCOL)


def test_a_destroy_for_nothing_is_never_answered() -> None:
    _, b = opened()
    b.give(destroy_cell(THEIRS) * 3)
    assert said(b) == []
    assert b.channel.counts == {"unknown_destroy": 3}


def test_memory_for_refused_ids_is_bounded() -> None:
    _, b = opened()
    for number in range(3 * MAX_REFUSED):
        b.give(relay_cell(TOP_BIT | number + 1))
        b.channel.output()
    assert len(b.channel._circuits._refused) == MAX_REFUSED
    assert b.channel.circuits == 0


def test_a_full_link_refuses_circuits() -> None:
    _, b = opened(max_circuits=3)
    b.give(b"".join(create_cell(TOP_BIT | number) for number in range(1, 6)))
    assert len(b.found(Create)) == 3
    answers = [(circuit_id, payload[0]) for circuit_id, _, payload in cells(b.channel.output())]
    assert answers == [(TOP_BIT | number, DestroyReason.RESOURCE_LIMIT) for number in (4, 5)]
    with pytest.raises(CircuitError, match="full: 3 circuits"):
        b.channel.create(OURS, b"")
    b.give(destroy_cell(TOP_BIT | 1))
    b.channel.create(OURS, b"")


def test_a_peer_that_sends_and_does_not_read_is_cut_off() -> None:
    _, b = opened()
    ping = fragment(encode_message(Ping(1)))[0]
    b.give(ping * MAX_REPLIES)
    assert b.channel.output()  # as long as it reads, it may go on
    b.give(ping * OUTPUT_CELLS)
    with pytest.raises(RemoteProtocolError, match="does not read"):
        b.give(ping * 8)


def test_a_peer_that_reads_may_ask_as_often_as_it_likes() -> None:
    _, b = opened()
    ping = fragment(encode_message(Ping(1)))[0]
    for _ in range(2 * MAX_REPLIES // OUTPUT_CELLS):
        b.give(ping * OUTPUT_CELLS)
        assert len(b.channel.output()) == OUTPUT_CELLS * CELL_SIZE


def test_an_error_in_a_handler_ends_its_circuit_alone() -> None:
    a, b = opened()
    first, second = circuit(a, b), circuit(a, b)
    seen: list[tuple[int, bytes]] = []

    def broken(command: int, buffer: bytes, offset: int) -> None:
        raise RemoteProtocolError("a cell that was not recognised")

    b.channel.handlers[first] = broken
    b.channel.handlers[second] = relay(seen)
    for command in (CellCommand.RELAY, CellCommand.RELAY_EARLY):
        b.give(relay_cell(second, b"one.") + relay_cell(first, command=command) + relay_cell(second, b"two."))
    assert [text for _, text in seen] == [b"one.", b"two."] * 2
    assert b.found(Destroyed) == [Destroyed(first, DestroyReason.PROTOCOL)]
    assert b.channel.counts == {"circuit_error": 1, "late_cell": 1}


def test_a_handler_that_closes_the_link() -> None:
    a, b = opened()
    circuit_id = circuit(a, b)
    seen: list[int] = []

    def closing(command: int, buffer: bytes, offset: int) -> None:
        seen.append(offset)
        b.channel.close("enough")

    b.channel.handlers[circuit_id] = closing
    b.give(relay_cell(circuit_id) * 8)
    assert seen == [0]
    assert b.found(LinkClosed) == [LinkClosed("enough")]
    assert b.channel.output() == b""


def test_what_a_newer_node_may_say() -> None:
    _, b = opened()
    b.give(pack_cell(0, 0x80, b"new") + pack_cell(9, 0xFF, b"new") + fragment(b"\x80new")[0])
    b.give(pack_cell(0, CellCommand.PADDING, b"") + pack_cell(77, CellCommand.PADDING, b"noise"))
    assert b.channel.counts == {"ignored_command": 2, "ignored_message": 1}
    assert b.channel.open
    assert said(b) == []


LINK_ENDING: list[tuple[str, bytes]] = [
    ("reserved", b"\0\0\0\5\1\0\0\1"),
    ("reserved header", b"\0\0\0\0\0\1\0\0"),
    ("reserved", b"\0\0\0\0\xff\0\1\0"),
    ("unknown cell command 7", pack_cell(0, 7, b"")),
    ("unknown cell command 127", pack_cell(9, 0x7F, b"")),
    ("in a circuit", pack_cell(THEIRS, CellCommand.MESSAGE, b"\1\0\1\x10")),
    ("link message 6", fragment(b"\6")[0]),
    ("link message 15", fragment(b"\x0f")[0]),
    ("link message 1", fragment(b"\1")[0]),
    ("link message 0", fragment(b"\0")[0]),
    ("short read", fragment(b"\4")[0]),
    ("trailing", fragment(b"\5" + bytes(9))[0]),
    ("empty fragment", pack_cell(0, CellCommand.MESSAGE, b"\1")),
    *((f"{command.name} without a circuit", pack_cell(0, command, b"")) for command in list(CellCommand)[1:6]),
]


@pytest.mark.parametrize(("reason", "cell"), LINK_ENDING, ids=lambda value: value if isinstance(value, str) else "")
def test_what_closes_the_link(reason: str, cell: bytes) -> None:
    a, b = opened()
    circuit(a, b)
    behind = create_cell(TOP_BIT | 99)
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        b.give(cell.ljust(CELL_SIZE, b"\0") + behind)
    b.collect()
    assert b.found(LinkClosed) == [LinkClosed(caught.value.reason)]
    assert b.events[-1] == LinkClosed(caught.value.reason)
    assert (b.channel.closed, b.channel.open, b.channel.handlers, b.channel.circuits) == (True, False, {}, 0)
    b.give(behind + b"trickle")
    assert b.channel.output() == b""
    assert b.channel.events() == []


def test_the_peer_closes_an_open_link() -> None:
    a, _ = opened()
    a.channel.receive_eof(NOW)
    a.channel.receive_eof(NOW)
    a.channel.close("again")
    assert a.channel.events() == [LinkClosed("the peer closed the link")]
