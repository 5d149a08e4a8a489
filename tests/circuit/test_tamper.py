"""Cells changed, lost, repeated and moved: each ends the circuit with its reason, and no byte of them is delivered."""

from __future__ import annotations

import random

import pytest

from backrooms.circuit.events import CircuitClosed
from backrooms.circuit.stream import Stream
from backrooms.wire.cell import CELL_SIZE, HEADER, HEADER_SIZE, TAG_SIZE, ZERO3, CellCommand, DestroyReason
from backrooms.wire.relay import EndReason, RelayCommand
from tests.circuit.harness import Path, drain, joined, message

HOPS = 3
FORWARD = ["client>0", "0>1", "1>2"]
BACKWARD = ["2>1", "1>0", "0>client"]
LOST = ("2", DestroyReason.PROTOCOL, "unrecognised cell at the last hop")
NOBODYS = ("client", DestroyReason.PROTOCOL, "a cell that no hop made")
UP, DOWN = b"up" * 20_000, b"down" * 10_000

RNG = random.Random(5)
BODY_AT = HEADER_SIZE + TAG_SIZE
# All bits of the tag; of the body one random bit of each 32nd byte, its first and its last bits.
BITS = [
    *range(8 * HEADER_SIZE, 8 * BODY_AT),
    *range(8 * BODY_AT, 8 * BODY_AT + 8),
    *(8 * byte + RNG.randrange(8) for byte in range(BODY_AT + 1, CELL_SIZE - 1, 32)),
    *range(8 * CELL_SIZE - 8, 8 * CELL_SIZE),
]
EVERY_BIT = range(8 * HEADER_SIZE, 8 * CELL_SIZE)


def flip(cell: bytes, bit: int) -> bytes:
    """`cell` with its `bit`-th bit turned over, the first byte's highest bit being 0."""
    changed = bytearray(cell)
    changed[bit // 8] ^= 0x80 >> bit % 8
    return bytes(changed)


class Thief:
    """Does `change` to one cell of one wire, the `skip`-th from the moment it is armed."""

    def __init__(self, name: str, skip: int = 0) -> None:
        self.name = name
        self.skip = skip
        self.armed = False
        self.held: list[bytes] = []
        self.hits = 0

    def __call__(self, name: str, number: int, cell: bytes) -> list[bytes]:
        if not self.armed or name != self.name:
            return [cell]
        if self.skip:
            self.skip -= 1
            return [cell]
        self.hits += 1
        return self.change(cell)

    def change(self, cell: bytes) -> list[bytes]:
        raise NotImplementedError


class Flip(Thief):
    bit = 0

    def change(self, cell: bytes) -> list[bytes]:
        self.armed = False
        return [flip(cell, self.bit)]


class Drop(Thief):
    def change(self, cell: bytes) -> list[bytes]:
        self.armed = False
        return []


class Replay(Thief):
    def change(self, cell: bytes) -> list[bytes]:
        self.armed = False
        return [cell, cell]


class Swap(Thief):
    def change(self, cell: bytes) -> list[bytes]:
        if not self.held:
            self.held.append(cell)
            return []
        self.armed = False
        return [cell, *self.held]


class Insert(Thief):
    def change(self, cell: bytes) -> list[bytes]:
        self.armed = False
        return [cell[:HEADER_SIZE] + RNG.randbytes(CELL_SIZE - HEADER_SIZE), cell]


class Cut(Thief):
    """What a cut cell would be: zeros in the place of its end."""

    size = 0

    def change(self, cell: bytes) -> list[bytes]:
        self.armed = False
        return [cell[: self.size].ljust(CELL_SIZE, b"\0")]


class Shift(Thief):
    """Cells read one byte off."""

    def change(self, cell: bytes) -> list[bytes]:
        return [cell[:HEADER_SIZE] + cell[HEADER_SIZE + 1 :] + b"\0"]


class Early(Thief):
    """The other command: it is part of what is authenticated."""

    def change(self, cell: bytes) -> list[bytes]:
        self.armed = False
        circuit_id, command, _ = HEADER.unpack_from(cell)
        return [HEADER.pack(circuit_id, 3 - command, ZERO3) + cell[HEADER_SIZE:]]


def attacked(thief: Thief) -> tuple[Path, Stream, Stream]:
    """A transfer both ways while `thief` is at work."""
    path, near, far = joined(HOPS, thief)
    far.events()
    thief.armed = True
    near.receive(UP, 0.0)
    far.receive(DOWN, 0.0)
    path.settle()
    return path, near, far


def check(path: Path, thief: Thief, near: Stream, far: Stream, skip: int = 0) -> None:
    """The circuit is down for the right reason; the streams got whole cells from before the attack and nothing else."""
    assert thief.hits
    forward = thief.name in FORWARD
    assert path.fault() == (LOST if forward else NOBODYS)
    assert len(path.faults) == 1
    got_up, got_down = far.output(), near.output()
    assert UP.startswith(got_up)
    assert DOWN.startswith(got_down)
    victim = got_up if forward else got_down
    assert len(victim) <= 4067 * (skip + 1), "nothing of the cell itself and of what came behind it"
    assert near.closed
    assert far.closed
    assert near.ended == far.ended == EndReason.DESTROY
    assert path.settle() == 0


@pytest.mark.parametrize("skip", [0, 3])
@pytest.mark.parametrize("name", FORWARD + BACKWARD)
@pytest.mark.parametrize("kind", [Drop, Replay, Swap, Insert, Shift])
def test_cells_lost_repeated_reordered_and_invented(kind: type[Thief], name: str, skip: int) -> None:
    thief = kind(name, skip)
    path, near, far = attacked(thief)
    check(path, thief, near, far, skip)


@pytest.mark.parametrize("name", FORWARD + BACKWARD)
@pytest.mark.parametrize("size", [8, 9, 23, 24, 25, 514, 2048, CELL_SIZE - 1])
def test_cells_cut_short(size: int, name: str) -> None:
    thief = Cut(name)
    thief.size = size
    path, near, far = attacked(thief)
    check(path, thief, near, far)


def test_the_last_cell_lost_is_noticed_by_the_next_one() -> None:
    thief = Drop("0>1")
    path, near, far = joined(HOPS, thief)
    thief.armed = True
    near.receive(b"one cell", 0.0)
    path.settle()
    assert path.faults == []
    near.receive(b"another", 0.0)
    path.settle()
    assert path.fault() == LOST
    assert far.output() == b""


def flipped(name: str, bit: int) -> None:
    """One circuit, one flip in one cell on wire `name`, and one more cell behind it."""
    thief = Flip(name)
    thief.bit = bit
    path, near, far = joined(HOPS, thief)
    thief.armed = True
    stream = near if name in FORWARD else far
    for data in (bytes(3000), b"and a second cell"):
        stream.receive(data, 0.0)
        path.settle()
    assert path.fault() == (LOST if name in FORWARD else NOBODYS), bit
    assert far.output() == near.output() == b"", bit


@pytest.mark.parametrize("name", FORWARD + BACKWARD)
def test_a_flipped_bit_of_a_cell(name: str) -> None:
    for bit in BITS:
        flipped(name, bit)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FORWARD + BACKWARD)
def test_every_flipped_bit_of_a_cell(name: str) -> None:
    for bit in EVERY_BIT:
        flipped(name, bit)


# The header. The channel looks at circuit ids and reserved bytes before; a circuit does not, and never copies them.


@pytest.mark.parametrize("name", FORWARD[:2] + BACKWARD[:2])
def test_nothing_of_a_header_goes_on_to_the_next_link(name: str) -> None:
    path, near, far = joined(HOPS)
    stream, wires = (near, FORWARD) if name in FORWARD else (far, BACKWARD)
    after = path.wire(wires[wires.index(name) + 1])
    clean = after.seen[-1][:HEADER_SIZE]
    for byte in (0, 1, 2, 3, 5, 6, 7):
        for bit in range(8):
            path.tamper = lambda wire, number, cell, at=8 * byte + bit: [flip(cell, at) if wire == name else cell]
            stream.receive(b"x", 0.0)
            path.settle()
            assert after.seen[-1][:4] + after.seen[-1][5:HEADER_SIZE] == clean[:4] + clean[5:]
    assert (far if stream is near else near).output() == b"x" * 56
    assert path.faults == []


@pytest.mark.parametrize("name", FORWARD)
def test_a_changed_command_on_the_way_out(name: str) -> None:
    thief = Early(name)
    path, near, far = attacked(thief)
    check(path, thief, near, far)


@pytest.mark.parametrize("name", BACKWARD)
def test_relay_early_on_the_way_back(name: str) -> None:
    path, near, far = attacked(Early(name))
    who = {"2>1": "1", "1>0": "0", "0>client": "client"}[name]
    assert path.fault() == (who, DestroyReason.PROTOCOL, "RELAY_EARLY towards the client")
    assert near.output() == b""
    assert near.closed
    assert far.closed


def test_a_sixteenth_relay_early_passes_and_a_seventeenth_does_not() -> None:
    path, near, far = joined(HOPS)
    near.receive(bytes(100_000), 0.0)
    drain(path, far)
    assert [HEADER.unpack_from(cell)[1] for cell in path.wire("client>0").seen].count(CellCommand.RELAY_EARLY) == 16
    path.client_sends(message(RelayCommand.DATA, 1, b"17th"), command=CellCommand.RELAY_EARLY)
    path.settle()
    assert path.fault() == ("0", DestroyReason.PROTOCOL, "too many RELAY_EARLY cells")
    assert far.output() == b""


@pytest.mark.parametrize("hop", range(HOPS))
def test_each_relay_counts_relay_early_for_itself(hop: int) -> None:
    path, _, _ = joined(hop + 1)
    relay = path.exit
    relay._early_seen = 16
    cell = HEADER.pack(5, CellCommand.RELAY_EARLY, ZERO3).ljust(CELL_SIZE, b"\0")
    relay.forward(CellCommand.RELAY_EARLY, cell, 0)
    assert path.fault() == (str(hop), DestroyReason.PROTOCOL, "too many RELAY_EARLY cells")


# Two circuits


@pytest.mark.parametrize("name", FORWARD + BACKWARD)
def test_cells_swapped_between_circuits(name: str) -> None:
    """Both circuits end; the same relays, the same link, even the same client do not make a cell fit."""
    first, near, far = joined(HOPS)
    second, other_near, other_far = joined(HOPS, seed=2)
    taken: list[bytes] = []

    def take(wire: str, number: int, cell: bytes) -> list[bytes]:
        if wire == name:
            taken.append(cell)
            return []
        return [cell]

    first.tamper = second.tamper = take
    for path, streams in ((first, (near, far)), (second, (other_near, other_far))):
        streams[name not in FORWARD].receive(b"for this circuit only", 0.0)
        path.settle()
    assert len(taken) == 2
    first.tamper = second.tamper = None
    for path, cell in zip((first, second), reversed(taken), strict=True):
        path.wire(name).handler(CellCommand.RELAY, cell, 0)
        path.settle()
        assert path.fault() == (LOST if name in FORWARD else NOBODYS)
    for stream in (near, far, other_near, other_far):
        assert stream.closed
        assert stream.output() == b""


@pytest.mark.parametrize("name", FORWARD + BACKWARD)
def test_a_cell_of_one_direction_sent_in_the_other(name: str) -> None:
    path, near, far = joined(HOPS)
    sender, back = (near, path.client.receive) if name in FORWARD else (far, path.relays[0].forward)
    sender.receive(b"mirror", 0.0)
    taken: list[bytes] = []
    path.tamper = lambda wire, number, cell: [] if wire == name and not taken.append(cell) else [cell]  # type: ignore[func-returns-value]
    path.settle()
    assert len(taken) == 1
    back(CellCommand.RELAY, taken[0], 0)
    path.settle()
    assert path.fault() == (NOBODYS if name in FORWARD else LOST)
    assert near.output() == far.output() == b""


# After the end


@pytest.mark.parametrize("name", FORWARD + BACKWARD)
def test_no_event_but_one_comes_out_of_a_failed_circuit(name: str) -> None:
    """Even when its neighbours go on sending to it, and it fails on each of their cells."""
    thief = Flip(name)
    thief.bit = 8 * CELL_SIZE - 1
    path, near, far = joined(HOPS, thief)
    path.take_down = False
    thief.armed = True
    for stream in (near, far):
        for _ in range(20):
            stream.receive(bytes(10_000), 0.0)
            path.settle()
    who = "2" if name in FORWARD else "client"
    closed = [one for one in path.faults if one[0] == who]
    assert len(closed) == 1
    assert closed[0][1].reason == DestroyReason.PROTOCOL
    events = path.client_events if who == "client" else path.relay_events[2]
    assert isinstance(events[-1], CircuitClosed)
    victim = far if name in FORWARD else near
    assert victim.closed
    assert victim.output() == b""
