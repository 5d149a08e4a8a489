"""The messages of reachability tests: bytes to values and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import LocalProtocolError, WireError
from backrooms.wire.link import REACH_TYPES, is_handed_on
from backrooms.wire.reach import ReachResult, ReachStatus, ReachTest
from backrooms.wire.records import Address
from tests.wire.forms import check_any_bytes, check_cut_and_addition

Message = ReachTest | ReachResult
KINDS: dict[int, type[ReachTest] | type[ReachResult]] = {kind.TYPE: kind for kind in (ReachTest, ReachResult)}

u64 = st.integers(0, 2**64 - 1)
ips = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).filter(lambda ip: getattr(ip, "ipv4_mapped", None) is None).map(str),
)
ports = st.integers(1, 65535)
addresses = st.builds(
    lambda ip, port: Address.parse(f"tls:[{ip}]:{port}" if ":" in ip else f"tls:{ip}:{port}"), ips, ports
)
texts = st.text(st.characters(categories=["L", "N", "P"]), max_size=40)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(ReachTest, u64, st.none() | addresses),
    st.builds(ReachResult, u64, st.integers(0, 255), st.just("") | ips, texts),
)

VECTORS: list[tuple[Message, bytes]] = [
    (ReachTest(1), b"\0\0\0\0\0\0\0\1\0"),
    (ReachTest(2, Address.parse("tls:192.0.2.1:443")), b"\0\0\0\0\0\0\0\2\x11tls:192.0.2.1:443"),
    (ReachTest(3, Address.parse("webrtc:abc")), b"\0\0\0\0\0\0\0\3\x0awebrtc:abc"),
    (ReachResult(4, ReachStatus.SEEN, "192.0.2.1"), b"\0\0\0\0\0\0\0\4\0\4\xc0\0\2\1\0"),
    (
        ReachResult(5, ReachStatus.REFUSED, "2001:db8::1", "no"),
        b"\0\0\0\0\0\0\0\5\3\x10\x20\1\x0d\xb8" + bytes(11) + b"\1\2no",
    ),
    (ReachResult(2**64 - 1, ReachStatus.BUSY), b"\xff" * 8 + b"\4\0\0"),
]


@pytest.mark.parametrize(("message", "payload"), VECTORS, ids=[str(n) for n in range(len(VECTORS))])
def test_vectors(message: Message, payload: bytes) -> None:
    assert message.encode() == payload
    assert type(message).decode(payload) == message


def test_types_and_statuses() -> None:
    assert sorted(KINDS) == list(REACH_TYPES) == [144, 145]
    assert [int(status) for status in ReachStatus] == [0, 1, 2, 3, 4]
    assert [kind for kind in range(128, 256) if is_handed_on(kind)] == [144, 145], "all others are still ignored"


@given(messages)
def test_round_trip(message: Message) -> None:
    assert type(message).decode(message.encode()) == message


@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_wire_error(kind: int, data: bytes) -> None:
    check_any_bytes(KINDS[kind].decode, data)


@given(messages, st.data())
def test_every_cut_and_every_addition_is_a_wire_error(message: Message, data: st.DataObject) -> None:
    payload = message.encode()
    cut = data.draw(st.integers(0, len(payload) - 1))
    check_cut_and_addition(type(message).decode, payload, cut)


@pytest.mark.parametrize(
    ("kind", "payload", "reason"),
    [
        (ReachTest, bytes(8) + b"\x0bno address!", "an address is"),
        (ReachTest, bytes(8) + b"\x0ftls:example.org", "a tls address is"),
        (ReachTest, bytes(8) + b"\x0btls:auto:80", "a tls address is"),
        (ReachTest, bytes(8) + b"\x0ftls:192.0.2.1:0", "a tls address is"),
        (ReachTest, bytes(8) + b"\1\xff", "UTF-8"),
        (ReachResult, bytes(8) + b"\0\3abc\0", "address of 3 bytes"),
        (ReachResult, bytes(8) + b"\0\x10" + bytes(10) + b"\xff\xff\1\2\3\4\0", "IPv4 inside IPv6"),
        (ReachResult, bytes(8) + b"\0\0\1\n", "not printable"),
        (ReachResult, bytes(8) + b"\0\0\xc9" + b"a" * 201, "too long"),
    ],
)
def test_hostile(kind: type[ReachTest] | type[ReachResult], payload: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        kind.decode(payload)


@pytest.mark.parametrize("text", ["a" * 201, "two\nlines"])
def test_our_own_mistakes_are_told(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        ReachResult(1, ReachStatus.UNREACHED, "", text).encode()
