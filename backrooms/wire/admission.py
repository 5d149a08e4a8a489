"""Admissions: what a charter key signs to let a relay into its network (docs/protocol.md, "Charter")."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import ClassVar

from backrooms.wire.codec import Reader, Writer


@dataclass(frozen=True, slots=True)
class Admission:
    """A charter key's word that a relay may be in its network: key 32 | expires u64 | Ed25519 signature 64."""

    key: bytes
    expires: int
    """Unix seconds."""
    signature: bytes = field(repr=False)

    SIZE: ClassVar[int] = 104

    def encode(self) -> bytes:
        return Writer().bytes(self.key).u64(self.expires).bytes(self.signature).done()

    @classmethod
    def decode(cls, data: bytes) -> Admission:
        reader = Reader(data)
        admission = cls(reader.bytes(32), reader.u64(), reader.bytes(64))
        reader.end()
        return admission

    @property
    def text(self) -> str:
        """The form in configurations: 139 characters of base64 for URLs, no padding."""
        return base64.urlsafe_b64encode(self.encode()).decode("ascii").rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Admission:
        """The inverse of `text`. `ValueError` says what is wrong."""
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if len(data) != cls.SIZE:
            raise ValueError("an admission is what `backrooms charter admit` prints, 139 characters in one line")
        return cls.decode(data)
