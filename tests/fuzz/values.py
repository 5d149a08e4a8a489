"""Targets of the wire formats: every class of `backrooms.wire` that has a `decode`, found by itself."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

from backrooms import wire
from backrooms.wire import (
    admission,
    cell,
    documents,
    extensions,
    frames,
    gossip,
    heartbeat,
    link,
    names,
    reach,
    records,
    relay,
    views,
)
from backrooms.wire.codec import Reader, Writer
from tests.fuzz.target import Target

ID, OTHER_ID = bytes(range(32)), bytes(range(1, 33))
RULES = (
    records.PolicyRule(True, 4, bytes([10, 0, 0, 0]), 8, 80, 443),
    records.PolicyRule(False, 6, b"\x20\x01" + bytes(14), 16, 0, 65535),
    records.PolicyRule(True, 0, b"", 0, 443, 443),
)
ADDRESSES = tuple(map(records.Address.parse, ("tls:127.0.0.1:5001", "tls:[::1]:5001", "other:where")))
PROOF = records.FamilyProof(ID, bytes(64))
RECORD = records.ContactRecord(
    ID, 1_800_000_000, 1_800_086_400, "relay1", OTHER_ID, ADDRESSES, 3, RULES, 1_000_000, (1, 2), 1
)
CERTIFICATE = records.CertificateBody(
    ID, bytes(1952), bytes(550), 1_800_000_000, 1_800_086_400, (ID, OTHER_ID), (PROOF,), "me", "me@example.org"
)
ADMISSION = admission.Admission(ID, 1_800_086_400, bytes(64))
ENTRIES = tuple(documents.ListEntry(node_id, OTHER_ID, 7) for node_id in (ID, OTHER_ID))
SUSPICION = heartbeat.Suspicion(ID, OTHER_ID, 1_800_000_000, 1_800_000_100, bytes(64))
REFUTATION = heartbeat.Refutation(ID, 1_800_000_001, bytes(64))
CHANGE = views.Change(ID, 7, bytes(16), bytes(range(16)))
NEWS = gossip.News(OTHER_ID, b"\0\x29\1" + ID + bytes(8), b"certificate")

EXAMPLES: dict[type, tuple[Any, ...]] = {
    relay.Begin: (relay.Begin("example.org", 80, 3), relay.Begin("::1", 1)),
    relay.Connected: (relay.Connected("192.0.2.1", 60), relay.Connected("2001:db8::1", 60), relay.Connected("", 0)),
    relay.End: (relay.End(6),),
    relay.Credit: (relay.Credit(65536),),
    relay.Resolve: (relay.Resolve("example.org", False), relay.Resolve("192.0.2.1", True)),
    relay.Resolved: (
        relay.Resolved((relay.Answer("192.0.2.1", 60), relay.Answer("example.org", 5))),
        relay.Resolved((), True),
    ),
    relay.Extend: (relay.Extend(ID, bytes(1312)),),
    link.Hello: (link.Hello((1, 2), ID, bytes(32), OTHER_ID),),
    link.Proof: (link.Proof(1, bytes(2534), 1_800_000_000, bytes(64), bytes(3309), bytes(512)),),
    link.LinkOk: (link.LinkOk(),),
    link.Ping: (link.Ping(77),),
    link.Pong: (link.Pong(77),),
    extensions.ClientExtensions: (extensions.ClientExtensions(30_000_000),),
    documents.ListEntry: ENTRIES,
    documents.DirListRequest: (documents.DirListRequest(ID),),
    documents.DirList: (documents.DirList(ENTRIES, True), documents.DirList((), False)),
    documents.DirFetch: (documents.DirFetch((ID, OTHER_ID)),),
    documents.Documents: (documents.Documents(ID, b"certificate", b"record"),),
    documents.DirDocs: (documents.DirDocs((documents.Documents(ID, b"c", b"r"), documents.Documents(OTHER_ID))),),
    documents.DirPublish: (documents.DirPublish(b"certificate", b"record"),),
    documents.DirPublished: (documents.DirPublished(2, "no"),),
    gossip.News: (NEWS,),
    gossip.Summary: (
        gossip.Summary(ID),
        gossip.Summary(ID, bytes(gossip.BUCKETS * gossip.BUCKET_DIGEST), (NEWS, NEWS)),
    ),
    gossip.Buckets: (gossip.Buckets.of([0, 1], ENTRIES), gossip.Buckets.of([255], ())),
    gossip.Offer: (gossip.Offer(ENTRIES),),
    reach.ReachTest: (reach.ReachTest(7, ADDRESSES[1]), reach.ReachTest(7)),
    reach.ReachResult: (reach.ReachResult(7, 1, "192.0.2.1", "yes"), reach.ReachResult(7, 3, "2001:db8::1", "no")),
    heartbeat.Heartbeat: (heartbeat.Heartbeat(1_800_000_000, 8_000),),
    heartbeat.Probe: (heartbeat.Probe(7, ID),),
    heartbeat.ProbeAnswer: (heartbeat.ProbeAnswer(7, ID, True, 1_800_000_000),),
    heartbeat.Suspicion: (SUSPICION,),
    heartbeat.Refutation: (REFUTATION,),
    heartbeat.Rumours: (heartbeat.Rumours((SUSPICION,) * 3), heartbeat.Rumours((SUSPICION,), (REFUTATION,))),
    heartbeat.LivenessRequest: (heartbeat.LivenessRequest(ID),),
    heartbeat.Liveness: (heartbeat.Liveness(ID, b"\x80\1"), heartbeat.Liveness(ID, b"", (ID, OTHER_ID))),
    views.ChangesRequest: (views.ChangesRequest(bytes(16), 7),),
    views.Change: (CHANGE,),
    views.Changes: (views.Changes(bytes(16), 7, (CHANGE,), (OTHER_ID,), True), views.Changes(bytes(16), 9, anew=True)),
    views.ViewRequest: (views.ViewRequest(2_000_000),),
    views.ViewRoot: (views.ViewRoot(2_000_000, True, 2, ID), views.ViewRoot(7)),
    views.BucketsRequest: (views.BucketsRequest(2_000_000),),
    views.ViewBuckets: (views.ViewBuckets(2_000_000, (bytes(16),) * views.BUCKETS), views.ViewBuckets(7)),
    views.IdsRequest: (views.IdsRequest(2_000_000, frozenset({0, 255}), ID),),
    views.ViewIds: (views.ViewIds(2_000_000, (ID, OTHER_ID), True), views.ViewIds(7)),
    records.PolicyRule: RULES,
    records.FamilyProof: (PROOF,),
    records.CertificateBody: (CERTIFICATE, dataclasses.replace(CERTIFICATE, admission=ADMISSION)),
    records.ContactRecord: (RECORD, records.ContactRecord.revocation(ID, "relay1")),
    admission.Admission: (ADMISSION,),
}
"""Values of every class that has a `decode`; a test says which class has none here."""


def decoders() -> Iterator[type[Any]]:
    """The classes of `backrooms.wire` that are decoded from bytes."""
    for module_info in pkgutil.iter_modules(wire.__path__, "backrooms.wire."):
        module = importlib.import_module(module_info.name)
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == module.__name__ and "decode" in vars(value):
                yield value


def _takes_reader(method: Callable[..., Any]) -> bool:
    return any(str(one.annotation).endswith("Reader") for one in inspect.signature(method).parameters.values())


def encode(value: Any) -> bytes:
    """The bytes of a value, whichever way its class writes them."""
    if inspect.signature(value.encode).parameters:
        writer = Writer()
        value.encode(writer)
        return writer.done()
    data: bytes = value.encode()
    return data


def decode(kind: type[Any], data: bytes) -> Any:
    """A value of `kind` out of all of `data`."""
    if not _takes_reader(kind.decode):
        return kind.decode(data)
    reader = Reader(data)
    value = kind.decode(reader)
    reader.end()
    return value


def _decoder(kind: type[Any]) -> Target:
    def run(data: bytes) -> None:
        value = decode(kind, data)
        assert decode(kind, encode(value)) == value, "its own encoding is another value"
        repr(value)

    name = f"{kind.__module__.removeprefix('backrooms.')}.{kind.__name__}"
    return Target(name, run, lambda: [encode(value) for value in EXAMPLES.get(kind, ())])


def _cell(data: bytes) -> None:
    """Short input is filled up to a cell; what is longer than one is not."""
    padded = data.ljust(cell.CELL_SIZE, b"\0")
    circuit_id, command, payload = cell.unpack_cell(padded)
    assert cell.pack_cell(circuit_id, command, payload) == padded
    handshake = cell.unpack_handshake(payload)
    assert payload.startswith(cell.pack_handshake(handshake))


def _relay_messages(data: bytes) -> None:
    body = data.ljust(cell.BODY_SIZE, b"\0")
    messages = relay.parse_messages(body)
    assert len(messages) <= relay.MAX_MESSAGES
    packed = b"".join(relay.pack_message(*message) for message in messages)
    assert relay.parse_messages(packed) == messages


def _link_message(data: bytes) -> None:
    kind, payload = link.split_message(data)
    if kind in set(documents.DirectoryMessageType):
        message = documents.decode_message(kind, payload)
        assert documents.decode_message(kind, message.encode()) == message


def _reassembler(data: bytes) -> None:
    """MESSAGE cells, each as `length u16 | payload`, the zeros behind it left out."""
    reassembler = link.Reassembler(link.MAX_HANDSHAKE_MESSAGE)
    reader = Reader(data)
    while reader.remaining:
        payload = reader.bytes16()[: cell.PAYLOAD_SIZE]
        message = reassembler.feed(payload.ljust(cell.PAYLOAD_SIZE, b"\0"))
        assert message is None or 0 < len(message) <= link.MAX_HANDSHAKE_MESSAGE


def _frames(data: bytes) -> None:
    """Directory messages of a stream, all at once and in pieces."""
    whole, pieces = frames.Unframer(500), frames.Unframer(500)
    whole.feed(data)
    for start in range(0, len(data), 7):
        pieces.feed(data[start : start + 7])
    while (message := whole.next()) is not None:
        assert pieces.next() == message
        assert len(message[1]) <= 500
    assert pieces.next() is None


def _extensions(data: bytes) -> None:
    known = range(0, 256, 3)
    fields = extensions.decode_extensions(data, known)
    assert extensions.decode_extensions(extensions.encode_extensions(fields), known) == fields


def _host(data: bytes) -> None:
    host = names.check_host(data)
    assert host.isascii()
    assert host.isprintable()
    assert len(host) <= names.MAX_HOST
    assert names.check_host(host.encode()) == host
    address = names.ip_literal(host)
    assert address is None or str(address) == host


def _hello_in_pieces() -> bytes:
    message = link.encode_message(EXAMPLES[link.Proof][0])
    parts = [message[at : at + 1000] for at in range(0, len(message), 1000)]
    writer = Writer()
    for number, part in enumerate(parts, 1):
        writer.bytes16(Writer().u8(number == len(parts)).bytes16(part).done())
    return writer.done()


def _cells() -> list[bytes]:
    return [cell.pack_cell(7, command, cell.pack_handshake(b"hello")) for command in cell.CellCommand]


def _bodies() -> list[bytes]:
    values = [value for kind, some in EXAMPLES.items() if kind.__module__ == relay.__name__ for value in some]
    codes = {"Begin": 1, "Connected": 2, "End": 4, "Credit": 5, "Resolve": 6, "Resolved": 7, "Extend": 9}
    single = [
        relay.pack_message(codes[type(one).__name__], type(one) is not relay.Extend, one.encode()) for one in values
    ]
    return [*single, b"".join(single[:10]), relay.pack_message(3, 1, bytes(relay.MAX_DATA))]


def _link_messages() -> list[bytes]:
    made = [value for some in EXAMPLES.values() for value in some if hasattr(value, "TYPE")]
    return [bytes([value.TYPE]) + encode(value) for value in made]


def targets() -> list[Target]:
    """All targets of this module."""
    return [
        *map(_decoder, decoders()),
        Target("wire.cell", _cell, _cells),
        Target("wire.relay.messages", _relay_messages, _bodies),
        Target("wire.link.message", _link_message, _link_messages),
        Target("wire.link.reassembler", _reassembler, lambda: [_hello_in_pieces()]),
        Target("wire.frames", _frames, lambda: [frames.frame(17, b"page") + frames.frame(129, b"")]),
        Target("wire.extensions", _extensions, lambda: [b"\x03\0\2ab\x80\0\0\xff\0\1c", b""]),
        Target(
            "wire.names", _host, lambda: [b"example.org", b"www_1.xn--9ca.net.", b"192.0.2.1", b"[2001:db8::1]", b"::1"]
        ),
    ]
