"""Two honest ends: whatever their applications do and however cells are delayed, the circuit and the bytes survive."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from backrooms.circuit.stream import Stream
from backrooms.wire.cell import HEADER
from backrooms.wire.relay import EndReason
from tests.circuit.harness import Path


class Pair:
    """Both ends of one stream, with what each application sent and got."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.near = Stream()
        self.far: Stream | None = None
        self.sent: dict[bool, bytearray] = {True: bytearray(), False: bytearray()}
        self.got: dict[bool, bytearray] = {True: bytearray(), False: bytearray()}
        self.aborted = False
        self.eof: set[bool] = set()
        path.client.begin(self.near, "example.org", 80)

    def end(self, near: bool) -> Stream | None:
        if self.far is None:
            self.far = self.path.exit.edge.streams.get(self.near.stream_id) if self._begun() else None
        return self.near if near else self.far

    def _begun(self) -> bool:
        return any(begin.stream_id == self.near.stream_id for begin in self.path.begins())

    def do(self, what: str, near: bool, size: int) -> None:
        stream = self.end(near)
        if stream is None:
            return
        if what in ("send", "eof") and not near and not stream.connected:
            return  # an exit has nothing to say before it is connected
        if what == "send" and near not in self.eof and not stream.closed:
            data = bytes([len(self.sent[near]) % 251]) * size
            stream.receive(data, 0.0)
            self.sent[near] += data
        elif what == "eof":
            stream.receive_eof(0.0)
            self.eof.add(near)
        elif what == "abort":
            stream.abort(EndReason.MISC)
            self.aborted = True
        elif what == "read":
            self.got[near] += stream.output()
        elif what == "connected" and not near and not stream.connected:
            self.path.exit.edge.connected(stream, "192.0.2.7", 60)

    def finish(self, in_flight: bool) -> None:
        """Both applications read all and close."""
        self.path.settle()
        self.do("connected", False, 0)
        self.path.settle()
        for _ in range(40):
            for what in ("eof", "read"):
                for near in (True, False):
                    self.do(what, near, 0)
                    if not in_flight:
                        self.path.settle()
            self.path.settle()
            if (
                self.near.closed
                and self.near.finished
                and (self.far is None or (self.far.closed and self.far.finished))
            ):
                break
        assert self.near.closed
        if self.far is None:
            assert self.aborted, "the exit never saw a stream that was given up at once"
            return
        for near in (True, False):
            if self.aborted:
                assert self.sent[not near].startswith(self.got[near])
            else:
                assert self.got[near] == self.sent[not near]
        assert self.far.closed


def move(path: Path, slot: int, cells: int) -> None:
    """Deliver some cells of one wire only."""
    wire = path.wires[slot % len(path.wires)]
    for cell in wire.mux.pop(cells):
        if not path.faults:
            wire.handler(HEADER.unpack_from(cell)[1], cell, 0)


WHATS = st.sampled_from(["send", "send", "read", "read", "eof", "abort", "connected", "open", "move", "move", "move"])
STEPS = st.lists(
    st.tuples(WHATS, st.integers(0, 3), st.booleans(), st.sampled_from([1, 500, 5000, 40_000, 70_000])), max_size=25
)


def run(steps: list[Any], in_flight: bool) -> None:
    path = Path(1)
    path.build()
    pairs = [Pair(path)]
    for what, slot, near, size in steps:
        pair = pairs[slot % len(pairs)]
        if what == "open":
            pairs.append(Pair(path))
        elif what == "move":
            move(path, slot, size % 7)
        else:
            pair.do(what, near, size)
        if not in_flight:
            path.settle()
        assert path.faults == []
    path.settle()
    for pair in pairs:
        pair.finish(in_flight)
    assert path.faults == []
    for edge in (path.client.edge, path.exit.edge):
        assert not edge.streams
        assert not edge._aborted
        assert not edge._ready
        assert not edge._end_sent
        assert edge.vegas.inflight >= 0


@settings(max_examples=40)
@given(STEPS)
def test_when_each_message_arrives_before_the_next_is_sent(steps: list[Any]) -> None:
    run(steps, in_flight=False)


@settings(max_examples=300, derandomize=True)
@given(STEPS)
def test_when_messages_cross_each_other(steps: list[Any]) -> None:
    run(steps, in_flight=True)
