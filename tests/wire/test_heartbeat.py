"""The messages of failure detection: bytes to values and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import WireError
from backrooms.wire.heartbeat import (
    MAX_BITS,
    MAX_DEAD,
    MAX_RUMOURS,
    AnyHeartbeatMessage,
    Heartbeat,
    HeartbeatType,
    Liveness,
    LivenessRequest,
    Probe,
    ProbeAnswer,
    Refutation,
    Rumours,
    Suspicion,
    decode_message,
    list_root,
    pack_bits,
    unpack_bits,
)
from backrooms.wire.link import FRAGMENT_SIZE, MAX_MESSAGE, is_handed_on

A, B = bytes(range(32)), bytes(range(1, 33))
SUSPICION = Suspicion(A, B, 5, 6, b"s" * 64)
REFUTATION = Refutation(A, 7, b"r" * 64)

ids = st.binary(min_size=32, max_size=32)
u64 = st.integers(0, 2**64 - 1)
signatures = st.binary(min_size=64, max_size=64)
suspicions = st.builds(Suspicion, ids, ids, u64, u64, signatures).filter(lambda one: one.accuser != one.accused)
refutations = st.builds(Refutation, ids, u64, signatures)
messages: st.SearchStrategy[AnyHeartbeatMessage] = st.one_of(
    st.builds(Heartbeat, u64, st.integers(1, 60_000)),
    st.builds(Probe, u64, ids),
    st.builds(ProbeAnswer, u64, ids, st.booleans(), u64),
    st.builds(Rumours, st.lists(suspicions, min_size=1, max_size=3).map(tuple), st.lists(refutations).map(tuple)),
    st.builds(LivenessRequest, ids),
    st.builds(Liveness, ids, st.binary(max_size=40)),
    st.builds(Liveness, ids, st.just(b""), st.lists(ids, max_size=3).map(tuple)),
)

VECTORS: list[tuple[AnyHeartbeatMessage, bytes]] = [
    (Heartbeat(1, 8_000), bytes(7) + b"\1\0\0\x1f\x40"),
    (Probe(2, A), bytes(7) + b"\2" + A),
    (ProbeAnswer(2, A, True, 3), bytes(7) + b"\2" + A + b"\1" + bytes(7) + b"\3"),
    (Rumours((SUSPICION,)), b"\0\1" + A + B + bytes(7) + b"\5" + bytes(7) + b"\6" + b"s" * 64 + b"\0\0"),
    (Rumours((), (REFUTATION,)), b"\0\0\0\1" + A + bytes(7) + b"\7" + b"r" * 64),
    (LivenessRequest(A), A),
    (Liveness(A, b"\x80"), A + b"\0\1\x80\0\0"),
    (Liveness(A, b"", (B,)), A + b"\0\0\0\1" + B),
]


@pytest.mark.parametrize(("message", "payload"), VECTORS, ids=[str(n) for n in range(len(VECTORS))])
def test_vectors(message: AnyHeartbeatMessage, payload: bytes) -> None:
    assert message.encode() == payload
    assert decode_message(message.TYPE, payload) == message


@given(messages)
def test_round_trip(message: AnyHeartbeatMessage) -> None:
    assert decode_message(message.TYPE, message.encode()) == message


@given(st.sampled_from([*HeartbeatType, 46, 47]), st.binary(max_size=400))
def test_any_bytes_are_a_value_or_a_wire_error(kind: int, payload: bytes) -> None:
    try:
        message = decode_message(kind, payload)
    except WireError:
        return
    assert decode_message(kind, message.encode()) == message


def test_types_are_handed_on_by_links() -> None:
    assert [int(kind) for kind in HeartbeatType] == list(range(40, 46))
    assert all(is_handed_on(kind) for kind in HeartbeatType)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (HeartbeatType.HEARTBEAT, bytes(12)),
        (HeartbeatType.HEARTBEAT, bytes(8) + (60_001).to_bytes(4, "big")),
        (HeartbeatType.PROBE_ANSWER, bytes(8) + A + b"\2" + bytes(8)),
        (HeartbeatType.RUMOURS, bytes(4)),
        (HeartbeatType.RUMOURS, b"\0\1" + A + A + bytes(80) + b"\0\0"),
        (HeartbeatType.RUMOURS, b"\0\x1d" + VECTORS[3][1][2:146] * 29 + b"\0\0"),
        (HeartbeatType.LIVENESS, A + b"\0\1\x80\0\1" + B),
        (HeartbeatType.LIVENESS, A + (MAX_BITS + 1).to_bytes(2, "big") + bytes(MAX_BITS + 1) + b"\0\0"),
        (HeartbeatType.LIVENESS, A + b"\0\0" + (MAX_DEAD + 1).to_bytes(2, "big") + bytes(32 * (MAX_DEAD + 1))),
        (46, b""),
    ],
)
def test_what_is_malformed_is_refused(kind: int, payload: bytes) -> None:
    with pytest.raises(WireError):
        decode_message(kind, payload)


def test_sizes() -> None:
    assert len(Rumours((SUSPICION,) * MAX_RUMOURS).encode()) < FRAGMENT_SIZE, "one cell"
    assert len(Liveness(A, b"", (B,) * MAX_DEAD).encode()) < MAX_MESSAGE
    assert MAX_BITS * 8 >= 20_000


@given(st.lists(ids, unique=True, max_size=40), st.data())
def test_bits(all_ids: list[bytes], data: st.DataObject) -> None:
    all_ids.sort()
    chosen = frozenset(data.draw(st.lists(st.sampled_from(all_ids), unique=True))) if all_ids else frozenset()
    bits = pack_bits(all_ids, chosen)
    assert unpack_bits(all_ids, bits) == chosen
    assert len(bits) <= (len(all_ids) + 7) // 8
    assert unpack_bits(all_ids, b"\xff" * 50) == frozenset(all_ids), "bits behind the end mean nothing"


def test_the_root_is_of_the_whole_list() -> None:
    assert len({list_root([]), list_root([A]), list_root([A, B]), list_root([B, A])}) == 4
