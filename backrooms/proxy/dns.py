"""DNS messages as a local port reads and writes them (RFC 1035): one question in, addresses or a name out. Pure.

Answers have no more than 512 bytes, whatever the question allows: what does not fit is left out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from backrooms.errors import WireError
from backrooms.proxy.request import Kind
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.names import check_host, ip_literal

MAX_ANSWER = 512
MAX_NAME = 255
"""Bytes of a name as it is sent, with its lengths."""
MAX_TTL = 3600
"""Seconds that an answer is said to be good for, whatever an exit says."""

_RESPONSE, _OPCODE, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x7800, 0x0100, 0x0080
_IN = 1
_NAME_OF_QUESTION = 0xC00C
"""A pointer to where the question's name begins."""


class Type(IntEnum):
    """Types of records that can be asked for."""

    A = 1
    PTR = 12
    AAAA = 28


class Code(IntEnum):
    """How a question was answered (RFC 1035, section 4.1.1)."""

    NOERROR = 0
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5


class Unanswerable(Exception):
    """A question that is not asked any further; `code` is the answer."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.name)
        self.code = code


@dataclass(frozen=True, slots=True)
class Query:
    """A question. `name` is in its labels' bytes, `question` as it came."""

    id: int
    flags: int
    name: tuple[bytes, ...] = field(repr=False)
    type: int
    cls: int
    question: bytes = field(repr=False)

    @classmethod
    def decode(cls, data: bytes) -> Query:
        """A datagram with one question; `WireError` for anything else, answers to nobody's question too."""
        reader = Reader(data)
        query_id, flags, questions, answers = (reader.u16() for _ in range(4))
        reader.u16()
        reader.u16()
        if flags & _RESPONSE or questions != 1 or answers:
            raise WireError("a DNS message that is no single question")
        labels = []
        size = 1
        while length := reader.u8():
            # A pointer would begin with 0xC0: there is nothing before the first name that it could mean.
            size += 1 + length
            if length > 63 or size > MAX_NAME:
                raise WireError("a DNS name that is none")
            labels.append(reader.bytes(length))
        kind, class_ = reader.u16(), reader.u16()
        end = 12 + size + 4
        return cls(query_id, flags, tuple(labels), kind, class_, data[12:end])

    def request(self) -> tuple[Kind, str]:
        """What is asked of the network, and about what; `Unanswerable` if nothing is."""
        if self.flags & _OPCODE or self.cls != _IN or self.type not in set(Type):
            raise Unanswerable(Code.NOTIMP)
        if self.type == Type.PTR:
            return "resolve_ptr", self._address()
        try:
            host = check_host(b".".join(self.name))
        except WireError:
            raise Unanswerable(Code.NXDOMAIN) from None
        # No label has a dot in it, or it would have been two; and no name is an address.
        if ip_literal(host) is not None or any(b"." in label for label in self.name):
            raise Unanswerable(Code.NXDOMAIN)
        return "resolve", host

    def _address(self) -> str:
        """The address that a name such as 4.3.2.1.in-addr.arpa means (RFC 1035, section 3.5; RFC 3596)."""
        labels = [label.lower() for label in self.name]
        try:
            if labels[4:] == [b"in-addr", b"arpa"]:
                return str(ipaddress.IPv4Address(b".".join(reversed(labels[:4])).decode("ascii")))
            if labels[32:] == [b"ip6", b"arpa"] and all(len(label) == 1 for label in labels[:32]):
                return str(ipaddress.IPv6Address(bytes.fromhex(b"".join(reversed(labels[:32])).decode("ascii"))))
        except ValueError:
            pass
        raise Unanswerable(Code.NXDOMAIN)

    def answer(self, values: Iterable[tuple[str, int]]) -> bytes:
        """The answer: addresses or names with their seconds to live. Those of another type are left out."""
        records: list[bytes] = []
        size = 12 + len(self.question)
        for value, ttl in values:
            data = self._data(value)
            if data is None:
                continue
            record = Writer().u16(_NAME_OF_QUESTION).u16(self.type).u16(_IN).u32(min(ttl, MAX_TTL)).bytes16(data).done()
            size += len(record)
            if size > MAX_ANSWER:
                break
            records.append(record)
        return self._head(Code.NOERROR, len(records)) + b"".join(records)

    def failure(self, code: Code) -> bytes:
        """The answer that there is none."""
        return self._head(code, 0)

    def _head(self, code: Code, answers: int) -> bytes:
        flags = _RESPONSE | (self.flags & (_OPCODE | _RECURSION_DESIRED)) | _RECURSION_AVAILABLE | code
        return Writer().u16(self.id).u16(flags).u16(1).u16(answers).u16(0).u16(0).bytes(self.question).done()

    def _data(self, value: str) -> bytes | None:
        address = ip_literal(value)
        if self.type == Type.PTR:
            return _encode_name(value) if address is None else None
        if address is None or address.version != (4 if self.type == Type.A else 6):
            return None
        return address.packed


def _encode_name(name: str) -> bytes | None:
    """A name that an exit gave as DNS has it; None if it is no host name."""
    try:
        labels = check_host(name.encode()).removesuffix(".").encode().split(b".")
    except WireError:
        return None
    data = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return data if len(data) <= MAX_NAME else None
