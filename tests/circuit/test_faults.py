"""Faults that circuits and streams once had."""

from __future__ import annotations

import pytest

from backrooms.circuit.events import CircuitClosed, StreamEnded
from backrooms.circuit.stream import CREDIT_MAX, Stream
from backrooms.errors import CircuitError, StreamError
from backrooms.wire.cell import PAYLOAD_SIZE, CellCommand, DestroyReason
from backrooms.wire.relay import INITIAL_CREDIT, SENDME_CELLS, Begin, Credit, End, EndReason, RelayCommand
from tests.circuit.harness import Path, connect, joined, message

R = RelayCommand


@pytest.mark.parametrize("client_first", [True, False])
def test_credit_may_cross_the_last_end(client_first: bool) -> None:
    """One end has said DONE and still reads; the other says DONE while a CREDIT is on its way to it."""
    path, near, far = joined(2)
    first, second = (near, far) if client_first else (far, near)
    second.receive(bytes(INITIAL_CREDIT), 0.0)
    first.receive_eof(0.0)
    path.settle()
    second.receive_eof(0.0)  # its END is not read yet ...
    first.output()  # ... when the other end grants more
    path.settle()
    assert path.faults == []


def test_credit_may_cross_the_answer_to_an_abort() -> None:
    path, near, far = joined(2)
    near.receive(bytes(INITIAL_CREDIT), 0.0)
    path.settle()
    far.receive_eof(0.0)
    far.output()
    near.abort(EndReason.MISC)
    path.settle()
    assert path.faults == []


@pytest.mark.parametrize("by_client", [True, False])
def test_an_abort_after_done_is_told_to_the_peer(by_client: bool) -> None:
    """An application that closes its connection in a download: first its EOF is seen, then that it is gone."""
    path, near, far = joined(2)
    actor, other = (near, far) if by_client else (far, near)
    other.receive(bytes(1_000_000), 0.0)
    actor.receive_eof(0.0)
    path.settle()
    actor.abort(EndReason.MISC)
    path.settle()
    assert path.faults == []
    assert other.closed
    assert not path.client.edge.in_use(near.stream_id)
    assert not path.exit.edge.streams


@pytest.mark.parametrize(
    "trick",
    [
        [message(R.CREDIT, 1, Credit(10_000_000))],
        [message(R.DATA, 1, b"the first exit's words")],
        [message(R.END, 1, End(EndReason.DONE))],
    ],
    ids=["credit", "data", "done"],
)
def test_a_retried_stream_starts_afresh(trick: list[bytes]) -> None:
    """An exit that says something before CONNECTED and then refuses must not touch the try on the next circuit."""
    path, second = Path(2), Path(2, seed=2)
    path.build()
    second.build()
    near = Stream()
    near.on_refused = lambda reason: True
    path.client.begin(near, "example.org", 80)
    path.settle()
    path.relay_sends(*trick)
    path.settle()
    path.client.close()
    if near.closed:
        assert near.output() == b""
        return  # not to retry it is right as well
    near.receive(bytes(200_000), 0.0)
    second.client.begin(near, "example.org", 80)
    second.settle()
    assert second.faults == [], "the next exit was sent more than its own credit"
    far = second.exit.edge.streams[near.stream_id]
    second.exit.edge.connected(far, "192.0.2.7", 60)
    far.receive(bytes(INITIAL_CREDIT), 0.0)
    second.settle()
    assert second.faults == [], "the next exit was held to what the first had used up"
    assert near.output() == bytes(INITIAL_CREDIT)
    assert not near.finished


def test_a_created_that_is_too_long_for_extended_ends_the_circuit() -> None:
    """`unpack_handshake` lets 4,086 bytes through; EXTENDED holds 4,048."""
    path = Path(1)
    path.build()
    relay = path.relays[0]
    queue = path._back[0].open(9)
    relay.extend(queue, bytes(PAYLOAD_SIZE - 2))
    assert path.fault()[:2] == ("0", DestroyReason.PROTOCOL)


def test_a_closed_relay_circuit_reads_nothing() -> None:
    path, _, _ = joined(2)
    path.client_sends(message(R.BEGIN, 5, Begin("late.example", 80)))
    path.take_down = False
    path.exit.fail(DestroyReason.REQUESTED, "closed here")
    path.settle()
    assert isinstance(path.relay_events[1][-1], CircuitClosed)
    assert "late.example" not in [begin.host for begin in path.begins()]


def test_empty_data_takes_no_memory() -> None:
    path, _near, far = joined(2)
    for _ in range(SENDME_CELLS - 1):
        path.client_sends(*[message(R.DATA, 1)] * 16)
        path.settle()
    assert path.faults or len(far._inbox) == 0, "neither refused nor thrown away"


def test_data_before_connected_is_refused_at_the_client() -> None:
    path = Path(2)
    path.build()
    near = Stream()
    path.client.begin(near, "example.org", 80)
    path.settle()
    path.relay_sends(message(R.DATA, 1, b"too early"))
    path.settle()
    assert path.fault()[:2] == ("client", DestroyReason.PROTOCOL)
    assert near.output() == b""


def test_a_stream_begun_on_a_closed_circuit_ends() -> None:
    path, _, _ = joined(2)
    path.client.close()
    near = Stream()
    try:
        path.client.begin(near, "example.org", 80)
    except (StreamError, CircuitError):
        return
    assert near.events() == [StreamEnded(EndReason.DESTROY)]


def test_the_client_keeps_to_the_exits_limit_of_streams() -> None:
    path = Path(1)
    path.build()
    opened = 0
    try:
        for _ in range(2100):
            path.client.begin(Stream(), "example.org", 80)
            opened += 1
            path.settle()
    except StreamError:
        pass
    assert path.faults == []
    assert opened >= 1000


def test_a_path_that_cannot_be_built_is_refused_at_once() -> None:
    with pytest.raises(CircuitError):
        Path(18)


def test_credit_grows_when_cells_come_in_bursts() -> None:
    """The application takes all there is, each time; but it is only asked again whether it keeps up after 64 KiB."""
    path, near, far = joined(2)
    far.receive(bytes(20_000_000), 0.0)
    for _ in range(400):
        path.now += 0.001
        path.settle(32, batch=32)
        while near.output():
            pass
    assert near._window == CREDIT_MAX


def test_the_longest_path() -> None:
    assert Path(17).build().built


def test_a_fault_names_what_the_harness_needs() -> None:
    """The helpers of this file work: an honest circuit has no fault, a dishonest one has one."""
    path, _near, _far = joined(2)
    connect(path)
    assert path.faults == []
    path.client_sends(message(R.DATA, 99, b""), command=CellCommand.RELAY_EARLY)
    path.settle()
    assert len(path.faults) == 1


def test_data_waits_for_the_begin_of_its_stream() -> None:
    """With more streams opened at once than one cell has BEGINs for, the last one's data may not overtake its BEGIN."""
    path = Path(2)
    path.build()
    streams = [Stream() for _ in range(14)]
    streams[-1].receive(b"optimistic", 0.0)
    for stream in streams:
        path.client.begin(stream, "example.org", 80)
    path.settle()
    assert path.faults == []
    assert len(path.begins()) == 14
    assert path.exit.edge.streams[streams[-1].stream_id].output() == b"optimistic"


def test_many_streams_share_what_a_circuit_may_hold() -> None:
    path = Path(1)
    path.build()
    streams = [Stream() for _ in range(600)]
    for stream in streams:
        path.client.begin(stream, "example.org", 80)
    path.settle()
    far = list(path.exit.edge.streams.values())
    for one in far:
        while not one.paused:
            one.receive(bytes(4096), 0.0)
    assert sum(one.unsent for one in far) <= 12 * 1024 * 1024
