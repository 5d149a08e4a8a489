"""The link handshake between honest ends, and its limits."""

from __future__ import annotations

import hashlib
import hmac
import random
from typing import Any

import pytest

from backrooms.channel.events import LinkClosed, LinkOpen, SignRequest
from backrooms.channel.machine import HANDSHAKE_SECONDS
from backrooms.errors import LocalProtocolError, RemoteProtocolError
from backrooms.wire.cell import CELL_SIZE, CellCommand, pack_cell
from backrooms.wire.codec import Reader
from backrooms.wire.link import Hello, LinkOk, encode_message, fragment
from tests.channel.links import (
    BINDING,
    INITIATOR,
    NOW,
    OTHER_BINDING,
    RESPONDER,
    WALL,
    End,
    initiator,
    message_in,
    responder,
    talk,
)
from tests.keys import NETWORK_ID, identity


def u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def enc(data: bytes) -> bytes:
    return u64(len(data)) + data


@pytest.mark.parametrize("relay", [False, True], ids=["client", "relay"])
@pytest.mark.parametrize("chunk", [0, 1, 7, CELL_SIZE - 1, CELL_SIZE + 1])
def test_a_link_opens(relay: bool, chunk: int) -> None:
    a, b = initiator(relay), responder()
    assert talk(a, b, chunk) is None
    me = identity(INITIATOR).public.id if relay else None
    assert a.found(LinkOpen) == [LinkOpen(identity(RESPONDER).public.id, 1, 0)]
    assert b.found(LinkOpen) == [LinkOpen(me, 1, 0 if relay else None)]
    assert (a.channel.peer_id, b.channel.peer_id) == (identity(RESPONDER).public.id, me)
    assert a.channel.open
    assert b.channel.open
    assert (a.channel.initiator, b.channel.initiator) == (True, False)


def test_relays_sign_with_three_algorithms_and_to_clients_with_two() -> None:
    for relay, algorithms in ((False, ("ed25519", "ml-dsa-65")), (True, ("ed25519", "ml-dsa-65", "rsa-pss"))):
        a, b = initiator(relay), responder()
        talk(a, b)
        assert [one.algorithms for one in b.found(SignRequest)] == [algorithms]
        assert [one.algorithms for one in a.found(SignRequest)] == ([algorithms] if relay else [])


def test_the_exact_bytes_that_are_signed() -> None:
    """Written down from docs/protocol.md a second time, for both roles."""
    a, b = initiator(relay=True), responder()
    talk(a, b)
    id_r, id_i = identity(RESPONDER).public.id, identity(INITIATOR).public.id
    hello, proof = a.sent[0], b.sent[0]

    def signed(role: bytes, initiator_sent: bytes, responder_sent: bytes) -> bytes:
        return (
            enc(b"backrooms-link-proof-1")
            + role
            + b"\x00\x01"
            + enc(BINDING.kind)
            + enc(BINDING.value)
            + NETWORK_ID
            + id_r
            + id_i
            + BINDING.certificate
            + hashlib.sha256(initiator_sent).digest()
            + hashlib.sha256(responder_sent).digest()
            + u64(int(WALL) // 60 * 60)
        )

    assert b.found(SignRequest)[0].message == signed(b"R", hello, b"")
    assert a.found(SignRequest)[0].message == signed(b"I", hello, proof)


def test_the_exact_knock() -> None:
    kind, payload = message_in(initiator().channel.output())
    hello = Hello.decode(Reader(payload))
    id_r = identity(RESPONDER).public.id
    key = hashlib.sha3_256(b"backrooms-knock" + NETWORK_ID + id_r).digest()
    assert kind == 1
    assert hello == Hello((1,), id_r, bytes(32), hmac.new(key, BINDING.value, hashlib.sha256).digest())


def test_without_a_right_knock_nothing_is_signed_or_sent() -> None:
    """All wrong ones look alike from outside: an error, no event but the close, not one byte."""
    id_r = identity(RESPONDER).public.id
    knock = bytes(32)
    wrong: list[tuple[str, bytes]] = [
        ("network", initiator(network_id=b"n" * 32).channel.output()),
        ("relay", initiator(expected=2).channel.output()),
        ("binding", initiator(binding=OTHER_BINDING).channel.output()),
        ("knock", fragment(encode_message(Hello((1,), id_r, bytes(32), knock)))[0]),
        ("id", fragment(encode_message(Hello((1,), bytes(32), bytes(32), knock)))[0]),
        ("type", fragment(encode_message(LinkOk()))[0]),
        ("version", initiator(versions=(2,)).channel.output()),
        ("padding", pack_cell(0, CellCommand.PADDING, b"")),
        ("create", pack_cell(5, CellCommand.CREATE, b"\0\1x")),
        ("garbage", random.Random(1).randbytes(CELL_SIZE)),
        ("http", b"GET / HTTP/1.1\r\n".ljust(CELL_SIZE, b"\n")),
    ]
    for name, data in wrong:
        b = responder()
        with pytest.raises(RemoteProtocolError):
            b.give(data)
        b.collect()
        assert [type(event) for event in b.events] == [LinkClosed], name
        assert b.channel.output() == b"", name
        assert b.channel.closed, name
        assert b.channel.deadline() is None, name


def test_no_common_version_names_both_lists() -> None:
    a, b = initiator(versions=(2, 3)), responder()
    error = talk(a, b)
    assert error is not None
    assert "the peer speaks 2, 3, we 1" in error.reason


@pytest.mark.parametrize(("theirs", "ours", "chosen"), [((1, 2, 3), (2, 1), 2), ((1,), (1, 2), 1), ((9, 1), (1, 9), 9)])
def test_the_highest_common_version_is_chosen(theirs: tuple[int, ...], ours: tuple[int, ...], chosen: int) -> None:
    a, b = initiator(relay=True, versions=theirs), responder(versions=ours)
    assert talk(a, b) is None
    assert (a.channel.version, b.channel.version) == (chosen, chosen)


@pytest.mark.parametrize("when", ["before the signature", "before the proof"])
def test_nothing_else_is_read_before_the_proof(when: str) -> None:
    a = initiator(relay=True)
    early = pack_cell(7 | 1 << 31, CellCommand.CREATE, b"\0\1x")
    for more in (early, pack_cell(0, CellCommand.PADDING, b""), fragment(b"\x10x")[0], early[:CELL_SIZE]):
        b = responder()
        b.channel.receive(a.channel.output() or hello_of(), NOW)
        if when == "before the proof":
            b.collect()
        with pytest.raises(RemoteProtocolError):
            b.channel.receive(more, NOW)
        b.collect()
        assert {type(event) for event in b.events} == {SignRequest, LinkClosed}


def hello_of() -> bytes:
    return initiator(relay=True).channel.output()


def test_a_signature_that_comes_too_late_is_ignored() -> None:
    b = responder()
    b.channel.receive(hello_of(), NOW)
    (request,) = b.channel.events()
    b.channel.receive_eof(NOW)
    b.channel.signed(b.key.public, b.key.sign(request.message, request.algorithms), NOW)
    assert b.channel.output() == b""
    assert not b.channel.open


def test_a_signature_that_nobody_asked_for() -> None:
    b = responder()
    with pytest.raises(LocalProtocolError, match="not asked for"):
        b.channel.signed(b.key.public, {}, NOW)
    b.channel.receive(hello_of(), NOW)
    with pytest.raises(LocalProtocolError, match="missing: ml-dsa-65, rsa-pss"):
        b.channel.signed(b.key.public, {"ed25519": bytes(64)}, NOW)


@pytest.mark.parametrize(("ahead", "told"), [(0, 0), (3600, 3600), (-86400, -86400), (59, 0), (60, 60)])
def test_clock_skew_is_told_and_nothing_more(ahead: int, told: int) -> None:
    a, b = initiator(relay=True), responder(wall_now=WALL + ahead)
    assert talk(a, b) is None
    assert a.found(LinkOpen)[0].skew_seconds == told
    assert b.found(LinkOpen)[0].skew_seconds == -told


def test_a_clock_before_1970_tells_nothing() -> None:
    a, b = initiator(), responder(wall_now=-5.0)
    assert talk(a, b) is None
    assert a.found(LinkOpen)[0].skew_seconds is None


@pytest.mark.parametrize("end", ["initiator", "responder"])
def test_the_handshake_has_a_deadline(end: str) -> None:
    one: End = initiator() if end == "initiator" else responder()
    channel = one.channel
    assert channel.deadline() == NOW + HANDSHAKE_SECONDS
    channel.receive(b"\0", NOW + 9)  # trickling does not help
    assert channel.deadline() == NOW + HANDSHAKE_SECONDS
    channel.tick(NOW + HANDSHAKE_SECONDS - 0.001)
    with pytest.raises(RemoteProtocolError, match="over 10 s"):
        channel.tick(NOW + HANDSHAKE_SECONDS)
    assert channel.deadline() is None
    channel.tick(NOW + 100)
    channel.receive(b"\0" * CELL_SIZE, NOW + 100)
    assert [type(event) for event in channel.events()] == [LinkClosed]


def test_the_peer_closes_during_the_handshake() -> None:
    a = initiator()
    a.channel.receive_eof(NOW)
    (closed,) = a.channel.events()
    assert "wrong network, id or version" in closed.reason
    assert a.channel.output() == b""


def test_a_flood_of_fragments_before_the_proof_is_bounded() -> None:
    b = responder()
    endless = pack_cell(0, CellCommand.MESSAGE, b"\0" + (2037).to_bytes(2, "big") + b"x" * 2037)
    for _ in range(8):
        b.give(endless)
    with pytest.raises(RemoteProtocolError, match="more than 16384 bytes"):
        b.give(endless)


@pytest.mark.parametrize(
    "changes", [{"network_id": b"short"}, {"expected_id": b""}, {"my_id": b"x"}], ids=lambda c: next(iter(c))
)
def test_ids_have_32_bytes(changes: dict[str, bytes]) -> None:
    from backrooms.channel.machine import Channel

    options: dict[str, Any] = {"network_id": bytes(32), "expected_id": bytes(32), "my_id": b"m" * 32} | changes
    with pytest.raises(LocalProtocolError, match="32 bytes"):
        Channel.initiate(BINDING, versions=(1,), rng=random.Random(1), now=0.0, wall_now=0.0, **options)


def test_nothing_secret_is_shown() -> None:
    b = responder()
    b.channel.receive(hello_of(), NOW)
    (request,) = b.channel.events()
    assert "message" not in repr(request)
