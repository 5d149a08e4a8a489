"""Each state of a stream against each message the peer may send: what happens is written in one table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backrooms.circuit.stream import Stream
from backrooms.wire.cell import DestroyReason
from backrooms.wire.relay import Begin, Connected, Credit, End, EndReason, RelayCommand
from tests.circuit.harness import Path, message

R = RelayCommand
STRAY = "message for a stream that does not exist"
OK = ""
LATE = "ignored"
"""What may cross a stream's last END is passed over, and does nothing."""

INPUTS = {
    "data": message(R.DATA, 1, b"data"),
    "credit": message(R.CREDIT, 1, Credit(1)),
    "done": message(R.END, 1, End(EndReason.DONE)),
    "error": message(R.END, 1, End(EndReason.CONNRESET)),
    "connected": message(R.CONNECTED, 1, Connected("192.0.2.7", 60)),
    "begin": message(R.BEGIN, 1, Begin("again.example", 80)),
}

# state: what the client does with data, credit, done, error, connected
CLIENT = {
    "none": (STRAY, STRAY, STRAY, STRAY, STRAY),
    "connected": (OK, OK, OK, OK, "second CONNECTED"),
    "stalled": (OK, OK, OK, OK, "second CONNECTED"),
    "we are done": (OK, OK, OK, OK, "second CONNECTED"),
    "peer is done": ("DATA after END", OK, "second END", OK, "second CONNECTED"),
    "we aborted": (OK, OK, OK, OK, OK),
    "peer aborted": (STRAY, LATE, STRAY, LATE, STRAY),
    "both done": (STRAY, LATE, STRAY, LATE, STRAY),
}
# state: what the exit does with data, credit, done, error, begin
EXIT = {
    "none": (STRAY, STRAY, STRAY, STRAY, OK),
    "begun": (OK, OK, OK, OK, "stream id is in use"),
    "connected": (OK, OK, OK, OK, "stream id is in use"),
    "stalled": (OK, OK, OK, OK, "stream id is in use"),
    "we are done": (OK, OK, OK, OK, "stream id is in use"),
    "peer is done": ("DATA after END", OK, "second END", OK, "stream id is in use"),
    "we aborted": (OK, OK, OK, OK, "stream id is in use"),
    "peer aborted": (STRAY, LATE, STRAY, LATE, OK),
    "both done": (STRAY, LATE, STRAY, LATE, OK),
}


def reach(state: str, client: bool) -> tuple[Path, Stream]:
    """A circuit with stream 1 in this state at the client or at the exit, and that end of the stream."""
    path = Path(1)
    path.build()
    near = Stream()
    if state == "none":
        return path, near
    path.client.begin(near, "example.org", 80)
    path.settle()
    far = path.exit.edge.streams[1]
    we, peer = (near, far) if client else (far, near)
    if state != "begun":
        path.exit.edge.connected(far, "192.0.2.7", 60)
        path.settle()
    if state == "stalled":
        we.receive(bytes(200_000), 0.0)
    if state in ("we are done", "both done"):
        we.receive_eof(0.0)
    if state in ("peer is done", "both done"):
        peer.receive_eof(0.0)
    if state == "peer aborted":
        peer.abort(EndReason.CONNRESET)
    path.settle()
    if state == "we aborted":
        we.abort(EndReason.MISC)
        mux = path.wires[0 if client else 1].mux
        assert len(mux.pop(1)) == 1  # our END is still on its way; sealing goes on below with the next cell
    return path, we


@pytest.mark.parametrize("state", CLIENT)
@pytest.mark.parametrize("column", range(5))
def test_the_clients_table(state: str, column: int) -> None:
    name = ["data", "credit", "done", "error", "connected"][column]
    path, stream = reach(state, client=True)
    path.relay_sends(INPUTS[name])
    wire = path.wire("0>client")
    for cell in wire.mux.pop(10):
        wire.handler(1, cell, 0)
    judge(path, stream, "client", CLIENT[state][column], name, state)


@pytest.mark.parametrize("state", EXIT)
@pytest.mark.parametrize("column", range(5))
def test_the_exits_table(state: str, column: int) -> None:
    name = ["data", "credit", "done", "error", "begin"][column]
    path, stream = reach(state, client=False)
    path.client_sends(INPUTS[name])
    wire = path.wire("client>0")
    for cell in wire.mux.pop(10):
        wire.handler(1, cell, 0)
    judge(path, stream, "0", EXIT[state][column], name, state)


def judge(path: Path, stream: Stream, who: str, text: str, name: str, state: str) -> None:
    if text not in (OK, LATE):
        assert path.fault() == (who, DestroyReason.PROTOCOL, text)
        assert stream.closed or state == "none"
        return
    assert path.faults == []
    edge = path.client.edge if who == "client" else path.exit.edge
    if text == LATE:
        assert stream.closed
        assert stream.output() == b""
        assert not edge.in_use(1)
    elif state == "we aborted":
        assert stream.closed
        assert stream.output() == b""
        assert edge.in_use(1) == (name not in ("done", "error"))
    elif name == "data":
        assert stream.output() == b"data"
    elif name == "done":
        assert stream.finished
        assert stream.closed == (state == "we are done")
        assert edge.in_use(1) == (state != "we are done")
    elif name == "error":
        assert stream.closed
        assert stream.ended == (EndReason.DONE if state == "peer is done" else EndReason.CONNRESET)
        assert not edge.in_use(1)
    elif name == "begin":
        assert path.begins()[-1].host == "again.example"
        assert edge.in_use(1)


APPLICATION: dict[str, Callable[[Stream], object]] = {
    "receive": lambda stream: stream.receive(b"x", 0.0),
    "receive nothing": lambda stream: stream.receive(b"", 0.0),
    "eof": lambda stream: stream.receive_eof(0.0),
    "abort": lambda stream: stream.abort(EndReason.MISC),
    "output": lambda stream: stream.output(),
    "discard": lambda stream: stream.discard_output(),
    "events": lambda stream: stream.events(),
    "tick": lambda stream: stream.tick(0.0),
}


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("state", EXIT)
@pytest.mark.parametrize("first", APPLICATION)
def test_an_application_may_do_anything_in_any_state(state: str, client: bool, first: str) -> None:
    unconnected = ("receive", "eof") if state == "begun" and not client else ()
    for then in APPLICATION:
        if first in unconnected or then in unconnected:
            continue  # an exit has no application before it is connected
        path, stream = reach(state, client)
        for step in (first, then):
            APPLICATION[step](stream)
            if state != "we aborted":
                path.settle()
        assert path.faults == []
        assert stream.deadline() is None
        assert stream.unsent == 0 or not stream.closed
