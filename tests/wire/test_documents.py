"""Directory messages and the bodies of relay documents: bytes to values and back."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import LocalProtocolError, WireError
from backrooms.wire import documents as d
from backrooms.wire import records as r
from backrooms.wire.codec import Reader, Writer
from tests.wire.forms import check_any_bytes, check_cut_and_addition

ids = st.binary(min_size=32, max_size=32)
u64 = st.integers(0, 2**64 - 1)
texts = st.text(st.characters(categories=["L", "N", "P"]), max_size=40)
entries = st.builds(d.ListEntry, ids, ids, u64)
documents = st.builds(d.Documents, ids, st.binary(max_size=300), st.binary(max_size=300))


def rising(items: st.SearchStrategy[Any], *, min_size: int = 0, max_size: int) -> st.SearchStrategy[tuple[Any, ...]]:
    def key(item: Any) -> bytes:
        if isinstance(item, r.FamilyProof):
            return item.key
        return item if isinstance(item, bytes) else item.id

    lists = st.lists(items, unique_by=key, min_size=min_size, max_size=max_size)
    return lists.map(lambda some: tuple(sorted(some, key=key)))


parts = st.sampled_from([d.Parts.CERTIFICATE, d.Parts.RECORD, d.Parts.BOTH])
messages = st.one_of(
    st.builds(d.DirListRequest, ids),
    st.builds(d.DirList, rising(entries, min_size=1, max_size=5), st.booleans()),
    st.builds(d.DirFetch, rising(ids, min_size=1, max_size=5), parts),
    st.builds(d.DirDocs, rising(documents, min_size=1, max_size=4)),
    st.builds(d.DirPublish, st.binary(max_size=300), st.binary(min_size=1, max_size=300)),
    st.builds(d.DirPublished, st.integers(0, 255), texts),
)


def rule(accept: bool, version: int, number: int, prefix: int, ports: list[int]) -> r.PolicyRule:
    size = {0: 0, 4: 4, 6: 16}[version]
    prefix = prefix % (size * 8 + 1)
    number = number % (1 << size * 8) >> (size * 8 - prefix) << (size * 8 - prefix)
    return r.PolicyRule(accept, version, number.to_bytes(size, "big"), prefix, *sorted(ports))


ports = st.lists(st.integers(0, 65535), min_size=2, max_size=2)
bits = st.integers(0, 500)
versions = st.sampled_from([0, 4, 6])
rules = st.builds(rule, st.booleans(), versions, st.integers(0, 2**128), bits, ports)


def address(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> r.Address:
    return r.Address.parse(f"tls:{ip}:{port}" if ip.version == 4 else f"tls:[{ip}]:{port}")


ips = st.ip_addresses().filter(lambda ip: ip.version == 4 or ip.ipv4_mapped is None)
addresses = st.builds(address, ips, st.integers(1, 65535))
records = st.builds(
    lambda life, revision, **rest: r.ContactRecord(revision=revision, expires=revision + life, **rest),
    life=st.integers(1, r.MAX_RECORD_LIFE),
    revision=st.integers(0, 2**63),
    id=ids,
    nickname=st.from_regex(r"[A-Za-z0-9]{1,19}", fullmatch=True),
    onion_key=ids,
    addresses=st.lists(addresses, min_size=1, max_size=8).map(tuple),
    roles=st.integers(0, 65535),
    exit_rules=st.lists(rules, max_size=6).map(tuple),
    capacity=u64,
    link_versions=st.lists(st.integers(0, 65535), min_size=1, max_size=16).map(tuple),
    protocol_version=st.integers(0, 65535),
)
proofs = st.builds(r.FamilyProof, ids, st.binary(min_size=64, max_size=64))
certificates = st.builds(
    lambda life, created, **rest: r.CertificateBody(created=created, expires=created + life, **rest),
    life=st.integers(1, r.MAX_CERTIFICATE_LIFE),
    created=st.integers(0, 2**63),
    ed25519=ids,
    ml_dsa=st.just(bytes(1952)),
    rsa=st.just(bytes(550)),
    family=rising(ids, max_size=4),
    proofs=rising(proofs, max_size=4),
    operator=texts,
    contact=texts,
)
RECORD = r.ContactRecord(
    id=b"\1" * 32,
    revision=1_800_000_000,
    expires=1_800_086_400,
    nickname="relay1",
    onion_key=b"\2" * 32,
    addresses=(r.Address.parse("tls:127.0.0.1:5001"), r.Address.parse("tls:[::1]:5001")),
    roles=int(r.Roles.EXIT),
    exit_rules=(r.PolicyRule(True, 4, bytes([10, 0, 0, 0]), 8, 80, 443),),
    capacity=1_000_000,
)
CERTIFICATE = r.CertificateBody(b"\3" * 32, b"\4" * 1952, b"\5" * 550, 1_800_000_000, 1_800_086_400, operator="me")


@given(messages)
def test_messages_round_trip(message: d.AnyDirectoryMessage) -> None:
    assert d.decode_message(message.TYPE, message.encode()) == message


@given(st.integers(0, 40), st.binary(max_size=400))
def test_any_bytes_are_a_message_or_a_wire_error(kind: int, data: bytes) -> None:
    check_any_bytes(partial(d.decode_message, kind), data)


@given(messages, st.data())
def test_every_cut_and_every_addition_is_a_wire_error(message: d.AnyDirectoryMessage, data: st.DataObject) -> None:
    payload = message.encode()
    cut = data.draw(st.integers(0, len(payload) - 1))
    check_cut_and_addition(partial(d.decode_message, message.TYPE), payload, cut)


def test_message_vectors() -> None:
    one, two = b"\1" * 32, b"\2" * 32
    assert [int(kind) for kind in d.DirectoryMessageType] == [16, 17, 18, 19, 20, 21]
    vectors: list[tuple[d.AnyDirectoryMessage, bytes]] = [
        (d.DirListRequest(), bytes(32)),
        (d.DirList((d.ListEntry(one, two, 3),), True), b"\1\0\1" + one + two + bytes(7) + b"\3"),
        (d.DirFetch((one, two), d.Parts.RECORD), b"\2\0\2" + one + two),
        (d.DirDocs((d.Documents(one, b"c", b"rr"),)), b"\0\1" + one + b"\0\1c\0\2rr"),
        (d.DirPublish(b"", b"r"), b"\0\0\0\1r"),
        (d.DirPublished(2, "no"), b"\2\2no"),
    ]
    for message, payload in vectors:
        assert message.encode() == payload
        assert d.decode_message(message.TYPE, payload) == message


ONE, TWO = b"\1" * 32, b"\2" * 32


@pytest.mark.parametrize(
    ("kind", "payload", "reason"),
    [
        (15, b"", "not of the directory"),
        (17, b"\2\0\0", "more = 2"),
        (17, b"\1\0\0", "empty page"),
        (17, b"\0\0\2" + (TWO + ONE + bytes(8)) + (ONE + ONE + bytes(8)), "rising"),
        (17, b"\0\xff\xff", "65535 items"),
        (18, b"\0\0\1" + ONE, "parts 0"),
        (18, b"\4\0\1" + ONE, "parts 4"),
        (18, b"\1\0\0", "FETCH of nothing"),
        (18, b"\1\0\2" + ONE + ONE, "rising"),
        (18, b"\1\0\x81" + ONE * 129, "129 items"),
        (19, b"\0\0", "without documents"),
        (19, b"\0\1" + ONE + b"\x2e\xe1" + bytes(12001) + b"\0\0", "certificate of 12001"),
        (19, b"\0\1" + ONE + b"\0\0" + b"\x1f\x41" + bytes(8001), "record of 8001"),
        (20, b"\0\1x\0\0", "without a contact record"),
        (21, b"\0\1\n", "not printable"),
        (21, b"\0\xc9" + b"a" * 201, "too long"),
        (21, b"\0\1\xff", "UTF-8"),
    ],
)
def test_hostile_messages(kind: int, payload: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        d.decode_message(kind, payload)


def test_sizes_are_bounded_both_ways() -> None:
    def some(count: int) -> tuple[bytes, ...]:
        return tuple(n.to_bytes(32, "big") for n in range(count))

    full = d.DirList(tuple(d.ListEntry(node_id, ONE, 1) for node_id in some(d.MAX_LIST_ENTRIES)), True)
    assert len(full.encode()) <= d.MAX_MESSAGE
    many = d.DirFetch(some(d.MAX_FETCH_IDS))
    assert d.DirFetch.decode(many.encode()) == many
    big = d.DirDocs(tuple(d.Documents(node_id, bytes(12000), bytes(8000)) for node_id in some(3)))
    with pytest.raises(LocalProtocolError, match="60000"):
        big.encode()
    with pytest.raises(WireError, match="60000"):
        d.decode_message(19, bytes(60_001))
    with pytest.raises(LocalProtocolError):
        d.DirPublished(0, "a\nb").encode()


@given(records)
def test_records_round_trip(record: r.ContactRecord) -> None:
    assert r.ContactRecord.decode(record.encode()) == record


@given(certificates)
def test_certificates_round_trip(body: r.CertificateBody) -> None:
    assert r.CertificateBody.decode(body.encode()) == body


@given(st.binary(max_size=400))
def test_any_bytes_are_a_body_or_a_wire_error(data: bytes) -> None:
    for decode in (r.ContactRecord.decode, r.CertificateBody.decode):
        for start in (b"", b"\1"):
            with pytest.raises(WireError):
                decode(start + data)


bodies = st.sampled_from([RECORD.encode(), CERTIFICATE.encode()])


@given(bodies, st.integers(0), st.binary(max_size=12), st.booleans())
def test_damaged_bodies_are_a_body_or_a_wire_error(data: bytes, at: int, patch: bytes, insert: bool) -> None:
    at %= len(data)
    changed = data[:at] + patch + data[at + (0 if insert else len(patch)) :]
    for decode in (r.ContactRecord.decode, r.CertificateBody.decode):
        try:
            decode(changed)
        except WireError:
            pass


def test_every_cut_body_is_a_wire_error() -> None:
    data = RECORD.encode()
    for end in range(len(data)):
        with pytest.raises(WireError):
            r.ContactRecord.decode(data[:end])


def with_extensions(data: bytes, fields: bytes) -> bytes:
    return data[:-2] + len(fields).to_bytes(2, "big") + fields


@pytest.mark.parametrize(
    ("body", "decode"), [(RECORD, r.ContactRecord.decode), (CERTIFICATE, r.CertificateBody.decode)]
)
def test_new_fields_from_0x80_on_are_ignored(body: Any, decode: Callable[[bytes], Any]) -> None:
    assert decode(with_extensions(body.encode(), b"\x8f\0\1x\xfe\0\0")) == body
    for fields in (b"\x7f\0\0", b"\x81\0\0\x80\0\0", b"\x80\0\5x"):
        with pytest.raises(WireError):
            decode(with_extensions(body.encode(), fields))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"expires": RECORD.revision}, "lifetime"),
        ({"expires": RECORD.revision + r.MAX_RECORD_LIFE + 1}, "lifetime"),
        ({"nickname": ""}, "nickname"),
        ({"nickname": "a" * 20}, "nickname"),
        ({"nickname": "a b"}, "nickname"),
        ({"nickname": "é"}, "nickname"),
        ({"nickname": "a\n"}, "nickname"),
        ({"addresses": ()}, "without an address"),
        ({"addresses": RECORD.addresses * 5}, "10 items"),
        ({"link_versions": ()}, "link versions"),
        ({"link_versions": (1,) * 17}, "17 items"),
        ({"exit_rules": RECORD.exit_rules * 257}, "257 items"),
        ({"exit_rules": (r.PolicyRule(True, 4, b"\xff" * 4, 7, 0, 1),)}, "after its prefix"),
        ({"exit_rules": (r.PolicyRule(True, 4, b"\xff" * 4, 33, 0, 1),)}, "33 bits"),
        ({"exit_rules": (r.PolicyRule(True, 0, b"", 0, 2, 1),)}, "falling ports"),
        ({"onion_key": b""}, r"without|items|short|trailing|unknown"),
    ],
)
def test_hostile_records(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        r.ContactRecord.decode(replace(RECORD, **change).encode())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"expires": CERTIFICATE.created}, "lifetime"),
        ({"expires": CERTIFICATE.created + r.MAX_CERTIFICATE_LIFE + 1}, "lifetime"),
        ({"family": (TWO, ONE)}, "rising"),
        ({"family": (ONE, ONE)}, "rising"),
        ({"family": tuple(n.to_bytes(32, "big") for n in range(65))}, "65 items"),
        ({"proofs": (r.FamilyProof(ONE, bytes(64)),) * 2}, "rising"),
        ({"operator": "a" * 201}, "operator"),
        ({"contact": "a\x1b[2J"}, "contact"),
    ],
)
def test_hostile_certificates(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        r.CertificateBody.decode(replace(CERTIFICATE, **change).encode())


@pytest.mark.parametrize("data", [RECORD.encode(), CERTIFICATE.encode()])
def test_unknown_schema(data: bytes) -> None:
    for decode in (r.ContactRecord.decode, r.CertificateBody.decode):
        with pytest.raises(WireError, match="schema 2"):
            decode(b"\2" + data[1:])


def test_largest_documents_fit_their_bounds() -> None:
    wide = replace(
        RECORD,
        nickname="a" * 19,
        addresses=(r.Address.parse("other:" + "x" * 122),) * 8,
        exit_rules=(r.PolicyRule(True, 6, b"\xff" * 16, 128, 1, 2),) * r.MAX_RULES,
        link_versions=(1,) * 16,
    )
    assert r.ContactRecord.decode(wide.encode()) == wide
    assert len(wide.encode()) + 2 + 64 <= r.MAX_RECORD
    many = replace(
        CERTIFICATE,
        family=tuple(n.to_bytes(32, "big") for n in range(r.MAX_FAMILY)),
        proofs=tuple(r.FamilyProof(n.to_bytes(32, "big"), bytes(64)) for n in range(r.MAX_FAMILY_PROOFS)),
        operator="a" * 200,
        contact="b" * 200,
    )
    assert r.CertificateBody.decode(many.encode()) == many
    assert len(many.encode()) + 2 + 64 + 3309 <= r.MAX_CERTIFICATE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tls",
        "tls:",
        "TLS:127.0.0.1:1",
        "tls:127.0.0.1",
        "tls:127.0.0.1:0",
        "tls:127.0.0.1:01",
        "tls:127.0.0.1:65536",
        "tls:127.0.0.1:+1",
        "tls:127.1:80",
        "tls:127.0.0.01:80",
        "tls:256.0.0.1:80",
        "tls:example.com:80",
        "tls:::1:80",
        "tls:[::1]",
        "tls:[::01]:80",
        "tls:[0:0::1]:80",
        "tls:[::1%eth0]:80",
        "tls:[::ffff:127.0.0.1]:80",
        "tls:[::ffff:7f00:1]:80",
        "tls:127.0.0.1:80 ",
        "tls:127.0.0.1:80\n",
        "tls:\u0661.0.0.1:80",
        "other:" + "x" * 123,
        "other:a b",
    ],
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="address is"):
        r.Address.parse(text)


def test_addresses() -> None:
    address = r.Address.parse("tls:[2001:db8::1]:443")
    assert (address.transport, address.host, address.port) == ("tls", "2001:db8::1", 443)
    assert str(address) == "tls:[2001:db8::1]:443"
    other = r.Address.parse("web:example.com/path")
    assert (other.transport, other.rest, other.host, other.port) == ("web", "example.com/path", None, None)


@given(st.text(max_size=40) | st.text("tls:[]0123456789abf.", max_size=40))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = r.Address.parse(text)
    except ValueError:
        return
    assert str(address) == text
    if address.host is not None:
        ipaddress.ip_address(address.host)


def test_policy_rules_are_compact() -> None:
    writer = Writer()
    r.PolicyRule(True, 4, bytes([10, 0, 0, 0]), 8, 80, 443).encode(writer)
    assert writer.done() == bytes([3, 8, 10, 0, 80, 1, 187])
    for flags in (6, 8, 0xFF):
        with pytest.raises(WireError, match="flags"):
            r.PolicyRule.decode(Reader(bytes([flags]) + bytes(30)))
