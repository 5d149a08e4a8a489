"""DNS messages, with Twisted's as the other side."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.names import dns

from backrooms.errors import WireError
from backrooms.proxy.dns import MAX_ANSWER, Code, Query, Type, Unanswerable

# As dig 9.18 sends it for example.com A: EDNS with a cookie.
DIG = bytes.fromhex(
    "cafe01200001000000000001076578616d706c6503636f6d000001000100002904d000000000000c000a00080123456789abcdef"
)


def question(name: bytes, kind: int = dns.A, cls: int = dns.IN, **options: Any) -> bytes:
    message = dns.Message(id=7, recDes=1, **options)
    message.addQuery(name, kind, cls)
    return bytes(message.toStr())


def read(answer: bytes) -> Any:
    message: Any = dns.Message()
    message.fromStr(answer)
    return message


def refused(data: bytes) -> Code:
    with pytest.raises(Unanswerable) as caught:
        Query.decode(data).request()
    return caught.value.code


def test_dig() -> None:
    query = Query.decode(DIG)
    assert query.request() == ("resolve", "example.com")
    answer = query.answer([("9.8.7.6", 60)])
    assert answer == bytes.fromhex(
        "cafe81800001000100000000076578616d706c6503636f6d0000010001c00c000100010000003c000409080706"
    )


QUESTIONS = {
    (b"Example.COM", dns.A): ("resolve", "example.com"),
    (b"example.com", dns.AAAA): ("resolve", "example.com"),
    (b"_service.a-b.example", dns.A): ("resolve", "_service.a-b.example"),
    (b"4.3.2.1.in-addr.arpa", dns.PTR): ("resolve_ptr", "1.2.3.4"),
    (b"4.3.2.1.IN-ADDR.ARPA", dns.PTR): ("resolve_ptr", "1.2.3.4"),
    (b"1." + b"0." * 23 + b"8.b.d.0.1.0.0.2.ip6.arpa", dns.PTR): ("resolve_ptr", "2001:db8::1"),
}


@pytest.mark.parametrize(("name", "kind"), QUESTIONS)
def test_questions(name: bytes, kind: int) -> None:
    assert Query.decode(question(name, kind)).request() == QUESTIONS[name, kind]


@pytest.mark.parametrize("kind", [dns.MX, dns.TXT, dns.NS, dns.SOA, dns.SRV, dns.ALL_RECORDS, dns.AXFR, 65])
def test_other_types_are_not_implemented(kind: int) -> None:
    assert refused(question(b"example.com", kind)) == Code.NOTIMP


def test_other_classes_and_operations_are_not_implemented() -> None:
    assert refused(question(b"version.bind", dns.A, dns.CH)) == Code.NOTIMP
    assert refused(question(b"example.com", opCode=dns.OP_STATUS)) == Code.NOTIMP


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"", dns.A),
        (b"a b.example", dns.A),
        (b"1.2.3.4", dns.A),
        (b"127.1", dns.A),
        (b"\xc3\xa9.example", dns.A),
        (b"example.com", dns.PTR),
        (b"1.2.3.in-addr.arpa", dns.PTR),
        (b"5.4.3.2.1.in-addr.arpa", dns.PTR),
        (b"256.3.2.1.in-addr.arpa", dns.PTR),
        (b"b._dns-sd._udp.0.0.10.in-addr.arpa", dns.PTR),
        (b"1." * 31 + b"ip6.arpa", dns.PTR),
        (b"11." + b"1." * 31 + b"ip6.arpa", dns.PTR),
        (b"x." + b"1." * 31 + b"ip6.arpa", dns.PTR),
    ],
)
def test_names_that_cannot_exist(name: bytes, kind: int) -> None:
    assert refused(question(name, kind)) == Code.NXDOMAIN


def test_a_dot_inside_a_label() -> None:
    data = struct.pack(">6H", 1, 0x100, 1, 0, 0, 0) + b"\x03a.b\x07example\0" + struct.pack(">2H", 1, 1)
    assert refused(data) == Code.NXDOMAIN


HEAD = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0)
TAIL = struct.pack(">2H", 1, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEAD[:-1],
        HEAD,
        HEAD + b"\x03abc",
        HEAD + b"\x03abc\0\0\1\0",
        HEAD + b"\xc0\x0c" + TAIL,  # a pointer to itself
        HEAD + b"\x01a\xc0\x0c" + TAIL,
        HEAD + b"\x40" + b"a" * 64 + b"\0" + TAIL,
        HEAD + (b"\x3f" + b"a" * 63) * 4 + b"\0" + TAIL,  # 257 bytes
        struct.pack(">6H", 7, 0x8180, 1, 0, 0, 0) + b"\x01a\0" + TAIL,  # an answer
        struct.pack(">6H", 7, 0x100, 0, 0, 0, 0),
        struct.pack(">6H", 7, 0x100, 2, 0, 0, 0) + (b"\x01a\0" + TAIL) * 2,
        struct.pack(">6H", 7, 0x100, 1, 1, 0, 0) + (b"\x01a\0" + TAIL) * 2,
    ],
    ids=lambda data: data.hex()[:40],
)
def test_what_gets_no_answer(data: bytes) -> None:
    with pytest.raises(WireError):
        Query.decode(data)


def check(sent: bytes) -> None:
    """Whatever comes is dropped, or answered by what another reader takes for an answer."""
    try:
        query = Query.decode(sent)
    except WireError:
        return
    try:
        kind, host = query.request()
    except Unanswerable as refusal:
        answer = query.failure(refusal.code)
    else:
        answer = query.answer([("9.8.7.6", 5), ("::1", 5), ("name.example", 5)])
        assert kind in ("resolve", "resolve_ptr")
        assert host.isascii()
    message = read(answer)
    assert (message.id, message.answer, len(message.queries)) == (query.id, 1, 1)
    assert len(answer) <= MAX_ANSWER


@given(st.binary(max_size=80))
@example(DIG)
def test_any_bytes(data: bytes) -> None:
    check(data)
    check(HEAD + data)


@given(st.integers(0, len(DIG) - 1), st.integers(0, 255))
def test_one_byte_changed(position: int, value: int) -> None:
    changed = bytearray(DIG)
    changed[position] = value
    check(bytes(changed))


def test_answers() -> None:
    values = [("9.8.7.6", 60), ("2001:db8::1", 120), ("5.4.3.2", 2**32 - 1), ("name.example", 5)]
    message = read(Query.decode(question(b"eXample.com")).answer(values))
    assert (message.rCode, message.recAv, message.recDes, message.auth) == (dns.OK, 1, 1, 0)
    assert message.queries[0].name.name == b"eXample.com"
    assert [(one.payload.dottedQuad(), one.ttl) for one in message.answers] == [("9.8.7.6", 60), ("5.4.3.2", 3600)]
    (six,) = read(Query.decode(question(b"example.com", dns.AAAA)).answer(values)).answers
    assert (six.payload._address, six.ttl) == ("2001:db8::1", 120)
    (name,) = read(Query.decode(question(b"4.3.2.1.in-addr.arpa", dns.PTR)).answer(values)).answers
    assert (name.payload.name.name, name.ttl) == (b"name.example", 5)


def test_no_answer_of_the_type_is_no_error() -> None:
    message = read(Query.decode(question(b"example.com", dns.AAAA)).answer([("9.8.7.6", 60)]))
    assert (message.rCode, message.answers) == (dns.OK, [])


def test_names_that_an_exit_cannot_mean() -> None:
    query = Query.decode(question(b"4.3.2.1.in-addr.arpa", dns.PTR))
    bad = ["", "a b", "é.example", "a" * 64 + ".example", ".".join(["a" * 63] * 4), "1.2.3.4", "::1"]
    assert read(query.answer([(name, 5) for name in bad])).answers == []


def test_what_does_not_fit_is_left_out() -> None:
    name = b".".join([b"a" * 63, b"b" * 63, b"c" * 63, b"d" * 61])
    query = Query.decode(question(name, dns.AAAA))
    answer = query.answer([(f"2001:db8::{number}", 60) for number in range(16)])
    assert len(answer) <= MAX_ANSWER
    assert len(read(answer).answers) == (MAX_ANSWER - 12 - 255 - 4) // 28


def test_failures() -> None:
    query = Query.decode(question(b"example.com"))
    for code in Code:
        message = read(query.failure(code))
        assert (message.rCode, message.answers, message.id) == (code, [], 7)
    assert {Type.A, Type.AAAA, Type.PTR} == {dns.A, dns.AAAA, dns.PTR}
