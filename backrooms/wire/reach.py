"""The link messages by which a relay asks others whether they can reach it (docs/protocol.md, "Reachability").

As with directory messages, `TYPE` is the type of the link message whose payload they are. Their types lie above
0x7F, so a node that does not know them ignores them, and there is simply no answer.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from backrooms.errors import LocalProtocolError, WireError
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.documents import MAX_STATUS_TEXT
from backrooms.wire.link import REACH_TYPES
from backrooms.wire.records import Address

_IP_SIZES = (0, 4, 16)


class ReachStatus(IntEnum):
    """What became of a test. Statuses that this version does not know count as REFUSED."""

    SEEN = 0
    """No address was given, and none was dialled."""
    REACHED = 1
    """A new link to the asker came up at the address."""
    UNREACHED = 2
    """None did. The text says why."""
    REFUSED = 3
    """It was not tried. The text says why."""
    BUSY = 4
    """It was not tried now; later it may be."""


@dataclass(frozen=True, slots=True)
class ReachTest:
    """Asks to be dialled: nonce u64 | text8(address). An empty address only asks where one is seen."""

    TYPE: ClassVar[int] = REACH_TYPES[0]
    nonce: int
    address: Address | None = None

    def encode(self) -> bytes:
        return Writer().u64(self.nonce).text8(str(self.address) if self.address is not None else "").done()

    @classmethod
    def decode(cls, payload: bytes) -> ReachTest:
        reader = Reader(payload)
        nonce, text = reader.u64(), reader.text8()
        reader.end()
        try:
            return cls(nonce, Address.parse(text) if text else None)
        except ValueError as error:
            raise WireError(f"REACH_TEST: {error}") from None


@dataclass(frozen=True, slots=True)
class ReachResult:
    """Answers REACH_TEST: nonce u64 | status u8 (`ReachStatus`) | bytes8(IP address) | text8, one printable line."""

    TYPE: ClassVar[int] = REACH_TYPES[1]
    nonce: int
    status: int
    seen: str = ""
    """The asker's IP address as the answerer sees it on this link; empty if it does not tell."""
    text: str = ""

    def encode(self) -> bytes:
        if len(self.text.encode()) > MAX_STATUS_TEXT or not self.text.isprintable():
            raise LocalProtocolError("the text of REACH_RESULT is too long or not printable")
        seen = ipaddress.ip_address(self.seen).packed if self.seen else b""
        return Writer().u64(self.nonce).u8(self.status).bytes8(seen).text8(self.text).done()

    @classmethod
    def decode(cls, payload: bytes) -> ReachResult:
        reader = Reader(payload)
        nonce, status, packed, text = reader.u64(), reader.u8(), reader.bytes8(), reader.text8()
        reader.end()
        if len(packed) not in _IP_SIZES:
            raise WireError(f"REACH_RESULT with an IP address of {len(packed)} bytes")
        seen = ipaddress.ip_address(packed) if packed else None
        if isinstance(seen, ipaddress.IPv6Address) and seen.ipv4_mapped is not None:
            raise WireError("REACH_RESULT with IPv4 inside IPv6")
        if len(text.encode()) > MAX_STATUS_TEXT or not text.isprintable():
            raise WireError("REACH_RESULT: the text is too long or not printable")
        return cls(nonce, status, str(seen) if seen is not None else "", text)
