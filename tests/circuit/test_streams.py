"""Streams: credit, half close, aborts, retries and ids."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backrooms.circuit.events import StreamConnected, StreamEnded
from backrooms.circuit.origin import CLIENT_STREAMS
from backrooms.circuit.stream import CREDIT_MAX, OUTPUT_LIMIT, SEND_LIMIT, Stream
from backrooms.errors import StreamError
from backrooms.wire.relay import INITIAL_CREDIT, EndReason, RelayCommand, parse_messages
from tests.circuit.harness import Path, connect, drain, joined


def messages_of(path: Path, who: str) -> list[tuple[int, int, bytes]]:
    """Records every relay message that "client" or "exit" sends from now on."""
    sent: list[tuple[int, int, bytes]] = []
    edge = path.client.edge if who == "client" else path.exit.edge
    seal = edge._seal

    def recording(body: bytes) -> tuple[bytes, bytes]:
        sent.extend(parse_messages(body))
        return seal(body)

    edge._seal = recording
    return sent


def ends(sent: list[tuple[int, int, bytes]]) -> list[tuple[int, bytes]]:
    return [(stream_id, data) for command, stream_id, data in sent if command == RelayCommand.END]


# Credit


@pytest.mark.parametrize("down", [False, True])
def test_a_reader_that_does_not_read_gets_its_first_credit_and_no_more(down: bool) -> None:
    path, near, far = joined(2)
    sender, reader = (far, near) if down else (near, far)
    sent = messages_of(path, "exit" if down else "client")
    sender.receive(bytes(1_000_000), 0.0)
    path.settle()
    assert sum(len(data) for command, _, data in sent if command == RelayCommand.DATA) == INITIAL_CREDIT
    assert (sender.credit, sender.unsent) == (0, 1_000_000 - INITIAL_CREDIT)
    assert reader._inbox_size == INITIAL_CREDIT
    assert len(drain(path, reader)) == 1_000_000


def grow(path: Path, near: Stream, far: Stream, total: int) -> list[int]:
    """Send `total` bytes to a reader that takes each cell as it comes; its windows on the way."""
    far.receive(bytes(total), 0.0)
    windows = []
    while total:
        path.now += 0.001
        path.settle(4, batch=4)
        total -= len(near.output())
        assert near._granted + near._inbox_size <= near._window <= CREDIT_MAX
        assert far.credit <= CREDIT_MAX
        windows.append(near._window)
    return windows


def test_credit_grows_for_a_reader_that_keeps_up_and_stops_at_its_limit() -> None:
    path, near, far = joined(2)
    windows = grow(path, near, far, 12_000_000)
    assert windows[0] == INITIAL_CREDIT
    assert windows[-1] == CREDIT_MAX
    assert windows == sorted(windows)
    far.receive(bytes(10_000_000), 0.0)
    path.settle()
    assert CREDIT_MAX // 2 <= near._inbox_size <= CREDIT_MAX


def test_a_slow_reader_is_never_given_more_than_its_first_window() -> None:
    """It takes what there is in pieces, and always leaves something behind."""
    path, near, far = joined(2)
    far.receive(bytes(3_000_000), 0.0)
    total = 0
    while total < 2_900_000:
        path.settle()
        assert near._inbox_size <= near._window <= 2 * INITIAL_CREDIT
        total += len(near.output())
        assert near._granted + near._inbox_size <= near._window


def test_output_comes_in_pieces_of_at_most_64_kib() -> None:
    path, near, far = joined(2)
    grow(path, near, far, 3_000_000)
    far.receive(bytes(range(256)) * 2000, 0.0)
    path.settle()
    pieces = []
    while data := near.output():
        pieces.append(data)
    assert all(len(piece) <= OUTPUT_LIMIT for piece in pieces)
    assert b"".join(pieces) == bytes(range(256)) * 2000
    assert len(pieces) < 10


def test_a_stalled_reader_stops_its_own_stream_only() -> None:
    path, near, far = joined(3)
    other_near, other_far = connect(path)
    far.receive(bytes(5_000_000), 0.0)
    down = path.rng.randbytes(5_000_000)
    got = b""
    for start in range(0, len(down), 100_000):
        other_far.receive(down[start : start + 100_000], 0.0)
        path.now += 0.001
        path.settle()
        while data := other_near.output():
            got += data
            path.settle()
        assert near._inbox_size == INITIAL_CREDIT
        assert path.client_mux_queued() == 0
    assert got == down
    assert far.credit == 0
    assert far.paused
    assert sum(relay._queue.mux.queued() for relay in path.relays) == 0


def test_the_application_is_paused_and_resumed() -> None:
    path, near, far = joined(2)
    told: list[bool] = []
    near.on_dirty = lambda: told.append(near.paused)
    near.receive(bytes(SEND_LIMIT - 1), 0.0)
    assert not near.paused
    near.receive(b"x", 0.0)
    assert near.paused
    path.settle()
    assert near.paused, "one credit is less than half of what waits"
    assert len(drain(path, far)) == SEND_LIMIT
    assert not near.paused
    assert told == [False]


# Both directions closed


@pytest.mark.parametrize("client_first", [True, False])
def test_half_close(client_first: bool) -> None:
    path, near, far = joined(2)
    client_sent, exit_sent = messages_of(path, "client"), messages_of(path, "exit")
    first, second = (near, far) if client_first else (far, near)
    first.receive(bytes(200_000), 0.0)
    first.receive_eof(0.0)
    first.receive(b"after the end", 0.0)
    assert len(drain(path, second)) == 200_000
    assert second.finished
    assert second.events() == [StreamEnded(EndReason.DONE)]
    assert not second.closed
    assert not first.finished
    second.receive(bytes(300_000), 0.0)
    second.receive_eof(0.0)
    assert len(drain(path, first)) == 300_000
    for stream in (near, far):
        assert stream.finished
        assert stream.closed
        stream.receive_eof(0.0)
        stream.abort(EndReason.MISC)
    path.settle()
    stream_id = near.stream_id
    assert ends(client_sent) == ends(exit_sent) == [(stream_id, bytes([EndReason.DONE]))]
    assert not path.client.edge.in_use(stream_id)
    assert not path.exit.edge.in_use(stream_id)
    assert path.faults == []


def test_both_close_at_once() -> None:
    path, near, far = joined(2)
    near.receive(b"up", 0.0)
    far.receive(b"down", 0.0)
    near.receive_eof(0.0)
    far.receive_eof(0.0)
    path.settle()
    assert (near.output(), far.output()) == (b"down", b"up")
    assert near.closed
    assert far.closed
    assert path.faults == []


def test_an_end_waits_for_the_data_before_it() -> None:
    path, near, far = joined(2)
    near.receive(bytes(500_000), 0.0)
    near.receive_eof(0.0)
    path.settle()
    assert far.ended is None
    assert len(drain(path, far)) == 500_000
    assert far.finished


# Aborts

STATES = ["fresh", "begun", "connected", "sending", "stalled", "peer done", "done and waiting for credit"]


def in_state(state: str, by_client: bool) -> tuple[Path, Stream, Stream]:
    path = Path(2)
    path.build()
    near = Stream()
    if state == "fresh":
        return path, near, Stream()
    path.client.begin(near, "example.org", 80)
    path.settle()
    far = path.exit.edge.streams[near.stream_id]
    actor, other = (near, far) if by_client else (far, near)
    if state != "begun":
        path.exit.edge.connected(far, "192.0.2.7", 60)
        path.settle()
    if state in ("sending", "stalled", "done and waiting for credit"):
        actor.receive(bytes(300_000), 0.0)
        other.receive(bytes(300_000), 0.0)
        if state == "done and waiting for credit":
            actor.receive_eof(0.0)
        if state != "sending":
            path.settle()
    if state == "peer done":
        other.receive(b"last words", 0.0)
        other.receive_eof(0.0)
        path.settle()
    return path, near, far


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("by_client", [True, False])
def test_abort_in_every_state(state: str, by_client: bool) -> None:
    path, near, far = in_state(state, by_client)
    client_sent, exit_sent = messages_of(path, "client"), messages_of(path, "exit")
    actor, other = (near, far) if by_client else (far, near)
    actor.abort(EndReason.CONNRESET)
    actor.abort(EndReason.MISC)
    assert actor.closed
    assert StreamEnded(EndReason.CONNRESET) in actor.events()
    path.settle()
    actor.receive(b"late", 0.0)
    actor.receive_eof(0.0)
    path.settle()
    assert path.faults == []
    if state == "fresh":
        assert not client_sent
        return
    assert other.closed
    told = EndReason.MISC if actor is near else EndReason.CONNRESET  # a client does not say why
    assert other.ended == (EndReason.DONE if other.ended == EndReason.DONE else told)
    mine, theirs = (client_sent, exit_sent) if by_client else (exit_sent, client_sent)
    assert ends(mine) == [(near.stream_id, bytes([told]))]
    assert ends(theirs) == ([] if state == "peer done" else [(near.stream_id, bytes([EndReason.DONE]))])
    for edge in (path.client.edge, path.exit.edge):
        assert not edge.in_use(near.stream_id)
        assert not edge._ready
        assert not edge._end_sent
    other_near, other_far = connect(path)
    other_near.receive(b"the circuit lives", 0.0)
    path.settle()
    assert other_far.output() == b"the circuit lives"


def test_an_abort_delivers_nothing_that_was_not_read() -> None:
    path, near, far = joined(2)
    far.receive(b"in flight", 0.0)
    near.abort(EndReason.MISC)
    path.settle()
    assert near.output() == b""
    assert path.faults == []


def test_data_read_before_an_error_end_is_still_there() -> None:
    path, near, far = joined(2)
    far.receive(b"the last words", 0.0)
    path.settle()
    far.abort(EndReason.CONNRESET)
    path.settle()
    assert near.closed
    assert near.output() == b"the last words"
    assert near.finished


# Retries


def answering(asked: list[int], answer: bool) -> Callable[[int], bool]:
    """An `on_refused` that notes the reasons."""

    def on_refused(reason: int) -> bool:
        asked.append(reason)
        return answer

    return on_refused


def test_a_refused_stream_may_be_taken_over_for_another_circuit() -> None:
    path, second = Path(2), Path(2, seed=2)
    path.build()
    second.build()
    near = Stream()
    asked: list[int] = []
    near.on_refused = answering(asked, True)
    path.client.begin(near, "example.org", 80)
    path.settle()
    path.exit.edge.streams[near.stream_id].abort(EndReason.EXITPOLICY)
    path.settle()
    near.receive(b"said meanwhile", 0.0)
    assert asked == [EndReason.EXITPOLICY]
    assert not near.closed
    assert near.events() == []
    second.client.begin(near, "example.org", 80)
    second.settle()
    far = second.exit.edge.streams[near.stream_id]
    second.exit.edge.connected(far, "192.0.2.7", 60)
    second.settle()
    assert near.events() == [StreamConnected("192.0.2.7")]
    assert far.output() == b"said meanwhile"
    second.client.close()
    assert asked == [EndReason.EXITPOLICY], "a connected stream is not retried"
    assert near.closed


@pytest.mark.parametrize("answer", [True, False])
def test_a_lost_circuit_asks_too_and_the_answer_counts(answer: bool) -> None:
    path = Path(2)
    path.build()
    near = Stream()
    asked: list[int] = []
    near.on_refused = answering(asked, answer)
    path.client.begin(near, "example.org", 80)
    path.client.close()
    assert asked == [EndReason.DESTROY]
    assert near.closed != answer
    assert near.events() == ([] if answer else [StreamEnded(EndReason.DESTROY)])


def test_nothing_is_sent_twice() -> None:
    """Once a byte has left, another circuit might deliver it again: the stream ends."""
    path = Path(2)
    path.build()
    near = Stream()
    near.on_refused = lambda reason: True
    near.receive(b"POST", 0.0)
    path.client.begin(near, "example.org", 80)
    path.settle()
    path.exit.edge.streams[near.stream_id].abort(EndReason.EXITPOLICY)
    path.settle()
    assert near.closed
    assert near.events() == [StreamEnded(EndReason.EXITPOLICY)]


# Ids


def test_an_id_is_used_again_only_when_both_sides_have_ended() -> None:
    path, near, far = joined(2)
    edge = path.client.edge
    stream_id = near.stream_id
    near.abort(EndReason.MISC)
    assert edge.in_use(stream_id), "the exit has not heard of it"
    edge._next_id = stream_id - 1
    assert edge.free_id() != stream_id
    path.settle()
    assert not edge.in_use(stream_id)
    edge._next_id = stream_id - 1
    again, far_again = connect(path)
    assert again.stream_id == stream_id
    again.receive(b"new", 0.0)
    path.settle()
    assert (far_again.output(), far.output()) == (b"new", b"")


def test_ids_wrap_around_and_are_never_zero() -> None:
    path = Path(1)
    path.build()
    edge = path.client.edge
    edge._next_id = 0xFFFE
    assert [edge.free_id() for _ in range(3)] == [0xFFFF, 1, 2]


def test_ids_run_out_with_an_error() -> None:
    path = Path(1)
    path.build()
    edge = path.client.edge
    for stream_id in range(1, CLIENT_STREAMS + 1):
        edge.add(Stream(), stream_id)
    with pytest.raises(StreamError, match="too many streams"):
        edge.free_id()
    del edge.streams[777]
    assert edge.free_id() == 777
