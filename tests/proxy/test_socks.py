"""SOCKS 4, 4a and 5, byte for byte."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backrooms.errors import WireError
from backrooms.proxy.request import Request, RequestRefused
from backrooms.proxy.socks import HTTP_PAGE, SocksParser, socks4_reply, socks5_reply
from backrooms.wire.relay import EndReason

NAME = b"example.com"
CONNECT_NAME = b"\x05\x01\x00\x03\x0bexample.com\x01\xbb"
GREETING = b"\x05\x01\x00"
AUTH_GREETING = b"\x05\x02\x00\x02"
AUTH = b"\x01\x05alice\x06secret"

# What a client sends, what it is answered before the request, and the request.
TRANSCRIPTS = {
    "socks4": (
        b"\x04\x01\x00\x50\x42\x66\x07\x63Fred\x00",
        b"",
        Request("connect", "66.102.7.99", 80, "SOCKS4", b"Fred", literal=True),
    ),
    "socks4 without user": (b"\x04\x01\x01\xbb\x01\x02\x03\x04\x00", b"", ("1.2.3.4", 443, "SOCKS4")),
    "socks4a": (
        b"\x04\x01\x00\x50\x00\x00\x00\x01Fred\x00example.com\x00",
        b"",
        Request("connect", "example.com", 80, "SOCKS4A", b"Fred"),
    ),
    "socks4a resolve": (
        b"\x04\xf0\x00\x00\x00\x00\x00\x01\x00example.com\x00",
        b"",
        Request("resolve", "example.com", 0, "SOCKS4A"),
    ),
    "socks5 name": (
        GREETING + CONNECT_NAME,
        b"\x05\x00",
        Request("connect", "example.com", 443, "SOCKS5"),
    ),
    "socks5 IPv4": (
        GREETING + b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50",
        b"\x05\x00",
        ("127.0.0.1", 80, "SOCKS5"),
    ),
    "socks5 IPv6": (
        GREETING + b"\x05\x01\x00\x04" + bytes(15) + b"\x01\x00\x50",
        b"\x05\x00",
        ("::1", 80, "SOCKS5"),
    ),
    "socks5 literal as a name": (
        GREETING + b"\x05\x01\x00\x03\x0c[2001:DB8::]\x00\x50",
        b"\x05\x00",
        ("2001:db8::", 80, "SOCKS5"),
    ),
    "socks5 user": (
        AUTH_GREETING + AUTH + CONNECT_NAME,
        b"\x05\x02\x01\x00",
        Request("connect", "example.com", 443, "SOCKS5", b"alice", b"secret"),
    ),
    "socks5 empty user and password": (
        b"\x05\x01\x02\x01\x00\x00" + CONNECT_NAME,
        b"\x05\x02\x01\x00",
        Request("connect", "example.com", 443, "SOCKS5"),
    ),
    "socks5 user unasked": (
        GREETING + AUTH + CONNECT_NAME,
        b"\x05\x00\x01\x00",
        Request("connect", "example.com", 443, "SOCKS5", b"alice", b"secret"),
    ),
    "socks5 resolve": (
        GREETING + b"\x05\xf0\x00\x03\x0bexample.com\x00\x00",
        b"\x05\x00",
        Request("resolve", "example.com", 0, "SOCKS5"),
    ),
    "socks5 resolve_ptr": (
        GREETING + b"\x05\xf1\x00\x01\x01\x02\x03\x04\x00\x00",
        b"\x05\x00",
        Request("resolve_ptr", "1.2.3.4", 0, "SOCKS5", literal=True),
    ),
    "socks5 resolve_ptr IPv6": (
        GREETING + b"\x05\xf1\x00\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01\x00\x00",
        b"\x05\x00",
        Request("resolve_ptr", "2001:db8::1", 0, "SOCKS5", literal=True),
    ),
    "socks5 longest": (
        b"\x05\xff" + bytes([2] * 255) + b"\x01\xff" + b"u" * 255 + b"\xff" + b"p" * 255
        # 4 labels of 63 would be 255 bytes with their dots: the longest name there is
        + b"\x05\x01\x00\x03\xff" + b".".join([b"a" * 63] * 4) + b"\x00\x50",
        b"\x05\x02\x01\x00",
        Request("connect", ".".join(["a" * 63] * 4), 80, "SOCKS5", b"u" * 255, b"p" * 255),
    ),
}  # fmt: skip

# What is refused, and the whole answer.
REFUSED = {
    "4: bind": (b"\x04\x02\x00\x50\x01\x02\x03\x04\x00", socks4_reply(0x5B)),
    "4: resolve_ptr": (b"\x04\xf1\x00\x00\x01\x02\x03\x04\x00", socks4_reply(0x5B)),
    "4: port 0": (b"\x04\x01\x00\x00\x01\x02\x03\x04\x00", socks4_reply(0x5B)),
    "4: endless user": (b"\x04\x01\x00\x50\x01\x02\x03\x04" + b"u" * 256, socks4_reply(0x5B)),
    "4: reserved user": (b"\x04\x01\x00\x50\x01\x02\x03\x04<torS0X>0\x00", socks4_reply(0x5B)),
    "4a: endless name": (b"\x04\x01\x00\x50\x00\x00\x00\x01\x00" + b"a" * 256, socks4_reply(0x5B)),
    "4a: empty name": (b"\x04\x01\x00\x50\x00\x00\x00\x01\x00\x00", socks4_reply(0x5B)),
    "4a: space": (b"\x04\x01\x00\x50\x00\x00\x00\x01\x00a b\x00", socks4_reply(0x5B)),
    "5: no method": (b"\x05\x00", b"\x05\xff"),
    "5: GSSAPI only": (b"\x05\x01\x01", b"\x05\xff"),
    "5: no authentication": (AUTH_GREETING + b"\x05", b"\x05\x02\x01\x01"),
    "5: reserved user": (AUTH_GREETING + b"\x01\x09<torS0X>0\x00", b"\x05\x02\x01\x01"),
    "5: neither": (GREETING + b"\x07", b"\x05\x00" + socks5_reply(1)),
    "5: version after authentication": (
        AUTH_GREETING + AUTH + b"\x04\x01\x00\x01\x01",
        b"\x05\x02\x01\x00" + socks5_reply(1),
    ),
    "5: bind": (GREETING + b"\x05\x02\x00\x01\x01\x02\x03\x04\x00\x50", b"\x05\x00" + socks5_reply(7)),
    "5: UDP": (GREETING + b"\x05\x03\x00\x01\x01\x02\x03\x04\x00\x50", b"\x05\x00" + socks5_reply(7)),
    "5: address type": (GREETING + b"\x05\x01\x00\x02\x00", b"\x05\x00" + socks5_reply(8)),
    "5: port 0": (GREETING + b"\x05\x01\x00\x01\x01\x02\x03\x04\x00\x00", b"\x05\x00" + socks5_reply(1)),
    "5: empty name": (GREETING + b"\x05\x01\x00\x03\x00\x00\x50", b"\x05\x00" + socks5_reply(1)),
    "5: NUL in name": (GREETING + b"\x05\x01\x00\x03\x03a\x00b\x00\x50", b"\x05\x00" + socks5_reply(1)),
    "5: UTF-8 name": (GREETING + b"\x05\x01\x00\x03\x02\xc3\xa9\x00\x50", b"\x05\x00" + socks5_reply(1)),
    "5: hidden address": (GREETING + b"\x05\x01\x00\x03\x05127.1\x00\x50", b"\x05\x00" + socks5_reply(1)),
    "5: scoped address": (GREETING + b"\x05\x01\x00\x03\x05::1%1\x00\x50", b"\x05\x00" + socks5_reply(1)),
    "5: resolve_ptr of a name": (
        GREETING + b"\x05\xf1\x00\x03\x01a\x00\x00",
        b"\x05\x00" + socks5_reply(8),
    ),
    **{f"HTTP {first}": (first.encode(), HTTP_PAGE) for first in "GHPCODTghpcodt"},
    "TLS": (b"\x16\x03\x01", b""),
    "garbage": (b"\xff" * 10_000, b""),
}


def drive(pieces: list[bytes], **options: Any) -> tuple[bytes, Request | None, bytes]:
    """Everything that was answered, the request if there is one, and the early data."""
    parser = SocksParser(**options)
    out = b""
    request = None
    for index, piece in enumerate(pieces):
        try:
            request = parser.receive(piece)
        except RequestRefused as refusal:
            return out + parser.output() + refusal.reply, None, b""
        out += parser.output()
        assert len(parser._buffer) < 1024 or request is not None
        if request is not None:
            return out, request, parser.early + b"".join(pieces[index + 1 :])
    return out, request, b""


def trickle(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize("name", TRANSCRIPTS)
@pytest.mark.parametrize("early", [b"", b"GET / HTTP/1.1\r\n\r\n\x00\x05"])
def test_transcripts(name: str, early: bytes) -> None:
    data, answer, expected = TRANSCRIPTS[name]
    for pieces in ([data + early], trickle(data + early), [data[:1], data[1:] + early]):
        out, request, rest = drive(pieces)
        assert request is not None
        assert (out, rest) == (answer, early)
        if isinstance(expected, Request):
            assert request == expected
        else:
            assert (request.host, request.port, request.protocol) == expected
            assert request.literal == (name != "socks5 literal as a name")


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_every_prefix_waits(name: str) -> None:
    data = TRANSCRIPTS[name][0]
    for size in range(len(data)):
        assert drive([data[:size]])[1] is None


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    data, answer = REFUSED[name]
    for pieces in ([data], trickle(data)):
        out, request, _ = drive(pieces)
        assert request is None
        assert out == answer


@given(st.binary(max_size=1200))
@example(b"\x05\x02\x00\x02\x01\x00\x00" + CONNECT_NAME)
def test_any_bytes(data: bytes) -> None:
    assert issubclass(RequestRefused, WireError)
    assert drive([data]) == drive(trickle(data))  # which lets nothing but RequestRefused pass


@given(
    st.sampled_from([data for data, _, _ in TRANSCRIPTS.values()]),
    st.integers(0, 600),
    st.integers(0, 255),
)
def test_one_byte_changed(data: bytes, position: int, value: int) -> None:
    changed = bytearray(data)
    changed[position % len(data)] = value
    assert drive([bytes(changed)]) == drive(trickle(bytes(changed)))


def test_page_says_what_is_wrong() -> None:
    head, _, body = HTTP_PAGE.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 501 ")
    assert b"Content-Length: %d\r\n" % len(body) in head
    assert b"SOCKS proxy, not an HTTP proxy" in body


def parsed(data: bytes) -> SocksParser:
    parser = SocksParser()
    assert parser.receive(data) is not None
    return parser


def test_answers_of_socks4() -> None:
    parser = parsed(TRANSCRIPTS["socks4a"][0])
    assert parser.granted() == b"\x00\x5a\x00\x00\x00\x00\x00\x00"
    for reason in range(256):
        assert parser.failed(reason) == b"\x00\x5b\x00\x00\x00\x00\x00\x00"
    assert parser.refused("no such level") == parser.failed(1)
    assert parser.resolved(["::1", "9.8.7.6"]) == b"\x00\x5a\x00\x00\x09\x08\x07\x06"
    assert parser.resolved(["::1"]) is None


def test_answers_of_socks5() -> None:
    parser = parsed(GREETING + CONNECT_NAME)
    assert parser.granted() == b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    codes = {reason: parser.failed(reason)[1] for reason in range(256)}
    assert codes[EndReason.CONNECTREFUSED] == codes[EndReason.CONNRESET] == 5
    assert codes[EndReason.RESOLVEFAILED] == codes[EndReason.NOROUTE] == 4
    assert codes[EndReason.EXITPOLICY] == 2
    assert codes[EndReason.TIMEOUT] == 6
    assert {codes[reason] for reason in set(codes) - {2, 3, 4, 7, 8, 12}} == {1}
    assert parser.resolved(["9.8.7.6", "::1"]) == b"\x05\x00\x00\x01\x09\x08\x07\x06\x00\x00"
    assert parser.resolved(["::1"]) == b"\x05\x00\x00\x04" + bytes(15) + b"\x01\x00\x00"
    assert parser.resolved([]) is None
    assert parser.resolved_ptr(["host.example"]) == b"\x05\x00\x00\x03\x0chost.example\x00\x00"
    assert parser.resolved_ptr(["", "é", "a" * 256]) is None


def test_secrets_stay_out_of_repr() -> None:
    request = drive([TRANSCRIPTS["socks5 user"][0]])[1]
    for secret in ("alice", "secret", "example.com"):
        assert secret not in repr(request)


LOGIN = b"\x01\x05alice\x06secret"
REFUSED_WITHOUT_PASSWORD = {
    "4": (TRANSCRIPTS["socks4"][0], socks4_reply(0x5B)),
    "4a": (TRANSCRIPTS["socks4a"][0], socks4_reply(0x5B)),
    "5: not offered": (GREETING, b"\x05\xff"),
    "5: wrong": (AUTH_GREETING + b"\x01\x05alice\x06Secret", b"\x05\x02\x01\x01"),
    "5: empty": (AUTH_GREETING + b"\x01\x00\x00", b"\x05\x02\x01\x01"),
    "5: as the user": (AUTH_GREETING + b"\x01\x06secret\x00", b"\x05\x02\x01\x01"),
    "5: beginning": (AUTH_GREETING + b"\x01\x00\x05secre", b"\x05\x02\x01\x01"),
    "5: skipped": (AUTH_GREETING + CONNECT_NAME, b"\x05\x02\x01\x01"),
}


@pytest.mark.parametrize("name", REFUSED_WITHOUT_PASSWORD)
def test_password(name: str) -> None:
    data, answer = REFUSED_WITHOUT_PASSWORD[name]
    for pieces in ([data], trickle(data)):
        assert drive(pieces, password=b"secret") == (answer, None, b"")


def test_the_user_name_stays_free() -> None:
    for user in (b"\x00", b"\x05alice", b"\x09level=low"):
        sent = AUTH_GREETING + b"\x01" + user + b"\x06secret" + CONNECT_NAME
        out, request, _ = drive(trickle(sent), password=b"secret")
        assert out == b"\x05\x02\x01\x00"
        assert request is not None
        assert request.user == user[1:]


@given(st.binary(max_size=60))
@example(b"\x05\x01\x02\x01\x00\x06secret" + CONNECT_NAME)
def test_nobody_gets_in_without_the_password(data: bytes) -> None:
    for start in (b"", GREETING, AUTH_GREETING, AUTH_GREETING + b"\x01\x00"):
        request = drive([start + data], password=b"secret")[1]
        assert request is None or b"\x06secret" in start + data


def test_extended_errors_tell_of_services_only() -> None:
    def codes(name: bytes, **options: Any) -> dict[int, int]:
        parser = SocksParser(**options)
        sent = b"\x05\x01\x00\x03" + bytes([len(name)]) + name + b"\x00\x50"
        assert parser.receive(GREETING + sent) is not None
        return {reason: parser.failed(reason)[1] for reason in range(256)}

    plain = codes(b"some.backrooms")
    assert max(plain.values()) < 9
    assert codes(b"example.com", extended_errors=True) == plain
    assert codes(b"backrooms.example", extended_errors=True) == plain
    for name in (b"some.backrooms", b"Some.Onion."):
        extended = codes(name, extended_errors=True)
        changed = {reason: code for reason, code in extended.items() if code != plain[reason]}
        assert changed == {
            EndReason.RESOLVEFAILED: 0xF0,
            EndReason.NOROUTE: 0xF3,
            EndReason.DESTROY: 0xF3,
            EndReason.TIMEOUT: 0xF7,
        }
    four = SocksParser(extended_errors=True)
    assert four.receive(b"\x04\x01\x00\x50\x00\x00\x00\x01\x00a.onion\x00") is not None
    assert four.failed(EndReason.TIMEOUT) == socks4_reply(0x5B)
