"""Client, relays and exit, joined without links: what works."""

from __future__ import annotations

import gc
from types import FunctionType, MethodType
from typing import Any

import pytest

from backrooms.channel.mux import Mux
from backrooms.circuit import hop as hop_module
from backrooms.circuit.events import (
    BeginRequested,
    CircuitBuilt,
    CircuitClosed,
    ExtendRequested,
    HopAdded,
    StreamConnected,
    StreamEnded,
)
from backrooms.circuit.stream import Stream
from backrooms.crypto.onion import REKEY_CELLS, UIV_G, Layer, Suite
from backrooms.wire.cell import BODY_SIZE, CELL_SIZE, HEADER, CellCommand, DestroyReason
from backrooms.wire.relay import (
    ACK_PADDING,
    MESSAGE_HEADER,
    SENDME_CELLS,
    Answer,
    EndReason,
    RelayCommand,
    Resolved,
)
from tests.circuit.harness import Path, connect, drain, joined


@pytest.mark.parametrize("hops", [1, 2, 3, 4, 12])
def test_w6_a_circuit_of_any_length_carries_both_ways(hops: int) -> None:
    path = Path(hops)
    client = path.build()
    assert client.built
    assert path.client_events == [*[HopAdded(count) for count in range(1, hops + 1)], CircuitBuilt()]
    near, far = connect(path)
    assert near.events() == [StreamConnected("192.0.2.7")]
    up, down = path.rng.randbytes(300_000), path.rng.randbytes(700_000)
    near.receive(up, 0.0)
    far.receive(down, 0.0)
    assert drain(path, far) == up
    assert drain(path, near) == down
    near.receive_eof(0.0)
    path.settle()
    assert far.finished
    assert far.events() == [StreamEnded(EndReason.DONE)]
    far.receive(b"still open this way", 0.0)
    far.receive_eof(0.0)
    path.settle()
    assert drain(path, near) == b"still open this way"
    assert near.finished
    assert near.closed
    assert far.closed
    assert client.stream_count == 0
    assert not path.exit.edge.streams
    assert path.faults == []


def test_the_first_sixteen_cells_of_a_client_are_relay_early() -> None:
    path, near, _ = joined(3)
    near.receive(bytes(200_000), 0.0)
    path.settle()
    for name in ("client>0", "0>1", "1>2"):
        commands = [HEADER.unpack_from(cell)[1] for cell in path.wire(name).seen]
        early = 16 - {"client>0": 0, "0>1": 1, "1>2": 2}[name]
        assert commands[:early] == [CellCommand.RELAY_EARLY] * early
        assert set(commands[early:]) == {CellCommand.RELAY}
    back = {HEADER.unpack_from(cell)[1] for wire in path.wires[1::2] for cell in wire.seen}
    assert back == {CellCommand.RELAY}


# Keys change


def states(path: Path) -> list[tuple[Layer, Layer]]:
    """Each layer's two ends, forward and backward."""
    client = path.client
    pairs = [(layer, relay._forward) for layer, relay in zip(client._forward, path.relays, strict=True)]
    return pairs + [(layer, relay._backward) for layer, relay in zip(client._backward, path.relays, strict=True)]


def test_both_ends_of_all_layers_stay_in_step_over_many_changes_of_keys() -> None:
    path, near, far = joined(3)
    up, down = path.rng.randbytes(1_500_000), path.rng.randbytes(1_500_000)
    for start in range(0, 1_500_000, 50_000):
        near.receive(up[start : start + 50_000], 0.0)
        far.receive(down[start : start + 50_000], 0.0)
        got = drain(path, far), drain(path, near)
        assert got == (up[start : start + 50_000], down[start : start + 50_000])
        for ours, theirs in states(path):
            assert ours.expected == theirs.expected
            assert repr(ours) == repr(theirs)
    for name, wires in (("forward", path.wires[0::2]), ("backward", path.wires[1::2])):
        assert all(wire.count > 5 * REKEY_CELLS for wire in wires), name
    for wire, relay in zip(path.wires[0::2], path.relays, strict=True):
        assert repr(relay._forward) == f"<Layer after {wire.count % REKEY_CELLS} cells>"


@pytest.mark.parametrize("cells", [REKEY_CELLS - 1, REKEY_CELLS + 1])
def test_an_end_that_changes_keys_at_another_cell_is_lost_at_that_cell(
    cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Suite(UIV_G.layout, UIV_G.sizes, UIV_G.hash, UIV_G.counter_start, UIV_G.update_offset, cells)
    monkeypatch.setattr(hop_module, "Layer", lambda keys, encrypting: Layer(keys, encrypting, other))
    path = Path(1)
    path.build()
    near, _ = connect(path)
    for _ in range(2 * REKEY_CELLS):
        near.receive(b"x", 0.0)
        path.settle()
    assert path.fault() == ("0", DestroyReason.PROTOCOL, "unrecognised cell at the last hop")
    assert path.wire("client>0").count == min(cells, REKEY_CELLS) + 1


# SENDME


def bodies(path: Path) -> list[bytes]:
    """Records the bodies the exit seals."""
    sealed: list[bytes] = []
    edge = path.exit.edge
    seal = edge._seal

    def recording(body: bytes) -> tuple[bytes, bytes]:
        sealed.append(body)
        return seal(body)

    edge._seal = recording
    return sealed


def random_tail(body: bytes) -> bytes:
    """What lies behind the last message of a body and the end mark, without the zeros that fill it up."""
    offset = 0
    while offset < len(body) and body[offset]:
        offset += MESSAGE_HEADER.size + MESSAGE_HEADER.unpack_from(body, offset)[2]
    return body[offset + 1 : offset + 1 + ACK_PADDING]


@pytest.mark.parametrize("piece", [1, 100, 4000, 4051, 4067, 10_000])
def test_who_never_reads_cannot_compute_the_tag_a_sendme_names(piece: int) -> None:
    """Random bytes are in exactly the cells that a SENDME will name, so the rest of a known body tells no tag."""
    path, near, far = joined(2)
    sealed = bodies(path)
    tails = []
    for _ in range(100):
        far.receive(bytes(piece), 0.0)
        drain(path, near)
    carriers = [body for body in sealed if body[0] == RelayCommand.DATA or bytes([RelayCommand.DATA]) in body[:20]]
    assert len(carriers) == path.exit.edge.vegas.sent >= 100
    for number, body in enumerate(carriers, 1):
        assert len(body) == BODY_SIZE
        tail = random_tail(body)
        if number % SENDME_CELLS == 0:
            assert len(tail) == ACK_PADDING
            assert any(tail)
            tails.append(tail)
        else:
            assert not any(tail)
    assert len(set(tails)) == len(tails) == len(carriers) // SENDME_CELLS
    assert path.exit.edge.vegas.inflight == len(carriers) % SENDME_CELLS, "each of them was acknowledged"


def test_sendmes_name_each_sixteenth_cell_with_data_by_its_tag() -> None:
    path, near, far = joined(3)
    got: list[bytes] = []
    first = path.wire("2>1").count

    class Watch(type(path.exit.edge.vegas)):  # type: ignore[misc]
        def acknowledged(self, tag: bytes, now: float) -> None:
            got.append(tag)
            super().acknowledged(tag, now)

    path.exit.edge.vegas = Watch()
    far.receive(bytes(3 * 65536), 0.0)
    drain(path, near)
    cells = path.wire("2>1").seen[first:]
    assert got == [cell[8:24] for cell in cells[SENDME_CELLS - 1 :: SENDME_CELLS]]
    assert len(got) == 3


# Look-ups


def test_look_ups_go_to_the_exit_and_come_back() -> None:
    path = Path(3)
    path.build()
    got: list[Resolved | None] = []
    path.client.resolve("example.org", False, got.append)
    path.client.resolve("192.0.2.7", True, got.append)
    assert path.client.stream_count == 2
    path.settle()
    asked = path.resolves()
    assert [(one.host, one.reverse) for one in asked] == [("example.org", False), ("192.0.2.7", True)]
    second, first = Resolved((Answer("a.example", 5),)), Resolved((Answer("192.0.2.7", 60), Answer("::1", 1)))
    path.exit.edge.resolved(asked[1].stream_id, second)
    path.exit.edge.resolved(asked[0].stream_id, first)
    path.exit.edge.resolved(asked[0].stream_id, first)
    path.settle()
    assert got == [second, first]
    assert path.client.stream_count == 0
    path.client.resolve("late.example", False, got.append)
    path.client.close()
    assert got[2:] == [None]


# W6: what a hop knows


def reachable(root: Any) -> tuple[set[bytes], set[str]]:
    """Every byte string and every text the objects behind `root` hold; code, clocks and callbacks are not data."""
    seen: set[int] = set()
    raw: set[bytes] = set()
    text: set[str] = set()
    todo = [root]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, FunctionType | MethodType | type):
            continue
        seen.add(id(one))
        if isinstance(one, bytes):
            raw.add(one)
        elif isinstance(one, str):
            text.add(one)
        elif not type(one).__module__.startswith("random"):
            todo += gc.get_referents(one)
    return raw, text


def test_w6_each_hop_knows_its_neighbours_only() -> None:
    hops = 5
    path, near, far = joined(hops)
    near.receive(b"what was said to the far end", 0.0)
    far.receive(b"what it answered to the client", 0.0)
    path.settle()
    publics = [key.public_key().public_bytes_raw() for key in path.keys]
    for index, relay in enumerate(path.relays):
        events = path.relay_events[index]
        raw, text = reachable([relay, events])
        everything = b"|".join(raw)
        for other in range(hops):
            known = other == index + 1
            assert (path.ids[other] in everything) == known, (index, other)
            assert (publics[other] in everything) == known, (index, other)
        last = index == hops - 1
        assert ("example.org" in text) == last
        assert (b"what was said to the far end" in everything) == last
        assert b"what it answered to the client" not in everything, "it has left already"
        assert [type(event) for event in events] == ([BeginRequested] if last else [ExtendRequested])


def test_w6_no_two_links_of_a_circuit_carry_the_same_bytes() -> None:
    path, near, far = joined(4)
    near.receive(bytes(100_000), 0.0)
    far.receive(bytes(100_000), 0.0)
    drain(path, near)
    drain(path, far)
    blocks: set[bytes] = set()
    count = 0
    for wire in path.wires:
        for cell in wire.seen:
            assert len(cell) == CELL_SIZE
            parts = [cell[at : at + 16] for at in range(8, CELL_SIZE, 16)]
            count += len(parts)
            blocks.update(parts)
    assert len(blocks) == count


# Limits


def test_a_circuit_whose_queue_overflows_ends() -> None:
    path, near, far = joined(2)
    path.relays[0]._next = None
    path.relays[0].extend(Mux().open(5), b"")
    assert not path.faults
    cell = bytes(CELL_SIZE)
    for _ in range(10_000):
        path.relays[0].forward(CellCommand.RELAY, cell, 0)
        if path.faults:
            break
    assert path.fault() == ("0", DestroyReason.RESOURCE_LIMIT, "too many cells queued")
    assert near.closed
    assert far.closed


def test_streams_of_a_lost_circuit_hear_of_it_once() -> None:
    path, near, far = joined(2)
    waiting: list[Resolved | None] = []
    path.client.resolve("example.org", False, waiting.append)
    path.client.fail(DestroyReason.DESTROYED, "gone")
    path.client.fail(DestroyReason.DESTROYED, "gone again")
    assert path.client_events[-1] == CircuitClosed(DestroyReason.DESTROYED, "gone")
    assert len([event for event in path.client_events if isinstance(event, CircuitClosed)]) == 1
    for stream in (near, far):
        assert stream.closed
        assert stream.events() == [StreamEnded(EndReason.DESTROY)]
        stream.receive(b"late", 0.0)
        stream.receive_eof(0.0)
        stream.abort(EndReason.MISC)
        assert stream.output() == b""
    assert waiting == [None]
    assert path.settle() == 0


def test_two_streams_share_a_cell() -> None:
    path = Path(2)
    path.build()
    pairs = [connect(path) for _ in range(3)]
    before = path.wire("client>0").count
    for near, _ in pairs:
        near.receive(b"a keystroke", 0.0)
    path.settle()
    assert path.wire("client>0").count == before + 1
    assert [far.output() for _, far in pairs] == [b"a keystroke"] * 3


def test_optimistic_data_travels_with_the_begin() -> None:
    path = Path(2)
    path.build()
    near = Stream()
    near.receive(b"GET / HTTP/1.0\r\n\r\n", 0.0)
    before = path.wire("client>0").count
    path.client.begin(near, "example.org", 80)
    path.settle()
    assert path.wire("client>0").count == before + 1
    far = path.exit.edge.streams[path.begins()[0].stream_id]
    assert not near.connected
    assert far.output() == b"GET / HTTP/1.0\r\n\r\n"
