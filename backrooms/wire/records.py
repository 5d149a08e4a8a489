"""What a relay says of itself, as bytes (docs/protocol.md, "Directory").

A relay is described by two signed parts, so that little is moved often: an identity certificate (keys,
family, operator; on change) and a contact record (onion key, addresses, exit policy, capacity; daily). Here
is how their unsigned bodies are written; `netdir.descriptor` checks signatures and times, `wire.documents`
moves them.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from itertools import pairwise
from typing import ClassVar

from backrooms.errors import WireError
from backrooms.wire.admission import Admission
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.extensions import decode_extensions, encode_extensions

ID_SIZE = 32
SCHEMA = 1

MAX_CERTIFICATE = 12_000
"""Bytes of one signed identity certificate."""
MAX_RECORD = 8_000
"""Bytes of one signed contact record."""
MAX_FAMILY = 64
MAX_FAMILY_PROOFS = 4
MAX_TEXT = 200
"""Bytes of the operator's name and of the contact."""
MAX_ADDRESSES = 8
MAX_ADDRESS = 128
MAX_RULES = 256
MAX_LINK_VERSIONS = 16
MAX_RECORD_LIFE = 3 * 86400
"""Seconds between a contact record's revision and its end."""
MAX_CERTIFICATE_LIFE = 366 * 86400
"""Seconds between a certificate's making and its end."""
REVOKED = 2**64 - 1
"""The revision of a relay's last record: there is none after it. It has no end: it expires at the same number."""
_KEPT_POLICIES = 64

_NICKNAME = re.compile(r"[A-Za-z0-9]{1,19}")
_ADDRESS = re.compile(r"([a-z][a-z0-9-]{0,15}):([!-~]+)")
_IP_PORT = re.compile(r"(?:(\d{1,3}(?:\.\d{1,3}){3})|\[([0-9a-f:]+)\]):([1-9]\d{0,4})")


class Roles(IntFlag):
    """What a relay offers. Bits that this version does not know are kept and mean nothing."""

    EXIT = 1
    """Opens connections for clients, as its exit policy allows."""
    SINGLE_HOP = 2
    """As an exit, also serves circuits on which it is the only relay."""


class CertificateExtension(IntEnum):
    """Extensions of identity certificates."""

    ADMISSION = 0x80
    """An `Admission`. Networks without charter keys have no use for it, so those who do not know it may skip it."""


def check_nickname(text: str) -> str:
    """`text` if it may be a nickname: 1 to 19 letters and digits. `ValueError` otherwise."""
    if not _NICKNAME.fullmatch(text):
        raise ValueError("a nickname is 1 to 19 letters A-Z, a-z and digits")
    return text


def _canonical(host: str) -> str | None:
    """The one form of an IP address; None for anything else and for IPv4 inside IPv6, which has two."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 6 and address.ipv4_mapped is not None:
        return None
    return str(address)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a relay can be reached: "tls:192.0.2.1:443" or "tls:[2001:db8::1]:443"."""

    transport: str
    rest: str
    """What the transport reads; for `tls` an IP address and a port."""
    host: str | None
    """The IP address in canonical form, None where the transport's addresses are not of that kind."""
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Address:
        """`ValueError` says what is wrong. Addresses of unknown transports are taken as they are."""
        match = _ADDRESS.fullmatch(text)
        if match is None or len(text) > MAX_ADDRESS:
            raise ValueError(f"an address is TRANSPORT:WHERE in at most {MAX_ADDRESS} printable characters")
        transport, rest = match.groups()
        where = _IP_PORT.fullmatch(rest)
        if where is None and transport != "tls":
            return cls(transport, rest, None, None)
        host = "" if where is None else where[1] or where[2]
        port = 0 if where is None else int(where[3])
        if _canonical(host) != host or not 1 <= port <= 65535:
            raise ValueError("a tls address is IPV4:PORT or [IPV6]:PORT, in canonical form")
        return cls(transport, rest, host, port)

    def __str__(self) -> str:
        return f"{self.transport}:{self.rest}"


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One line of an exit policy: flags u8 | [prefix u8 | network, cut to it] | low port u16 | high u16."""

    accept: bool
    version: int
    """4 or 6; 0 for any address, names included."""
    network: bytes
    """4 or 16 bytes whose bits after `prefix` are zero; empty for version 0."""
    prefix: int
    low: int
    high: int

    def encode(self, writer: Writer) -> None:
        writer.u8(int(self.accept) | {0: 0, 4: 2, 6: 4}[self.version])
        if self.version:
            writer.u8(self.prefix).bytes(self.network[: (self.prefix + 7) // 8])
        writer.u16(self.low).u16(self.high)

    @classmethod
    def decode(cls, reader: Reader) -> PolicyRule:
        flags = reader.u8()
        version = {0: 0, 2: 4, 4: 6}.get(flags & 0xFE)
        if version is None:
            raise WireError(f"policy rule with flags {flags}")
        network, prefix = b"", 0
        if version:
            size = 4 if version == 4 else 16
            prefix = reader.u8()
            if prefix > size * 8:
                raise WireError(f"policy rule with a prefix of {prefix} bits")
            network = reader.bytes((prefix + 7) // 8).ljust(size, b"\0")
            if int.from_bytes(network, "big") & ((1 << (size * 8 - prefix)) - 1):
                raise WireError("policy rule with address bits after its prefix")
        low, high = reader.u16(), reader.u16()
        if low > high:
            raise WireError("policy rule with falling ports")
        return cls(bool(flags & 1), version, network, prefix, low, high)


@dataclass(frozen=True, slots=True)
class FamilyProof:
    """A family key's word that a relay belongs to it: key 32 | Ed25519 signature 64."""

    key: bytes
    signature: bytes

    def encode(self, writer: Writer) -> None:
        writer.bytes(self.key).bytes(self.signature)

    @classmethod
    def decode(cls, reader: Reader) -> FamilyProof:
        return cls(reader.bytes(32), reader.bytes(64))


def _read_id(reader: Reader) -> bytes:
    return reader.bytes(ID_SIZE)


def _write_bytes(writer: Writer, data: bytes) -> None:
    writer.bytes(data)


def _read_text(reader: Reader, what: str) -> str:
    text = reader.text8()
    if len(text.encode()) > MAX_TEXT or not text.isprintable():
        raise WireError(f"{what} is too long or not printable")
    return text


def _rising(items: list[bytes], what: str) -> None:
    if any(a >= b for a, b in pairwise(items)):
        raise WireError(f"{what} are not in rising order")


def _read_schema(reader: Reader, what: str) -> None:
    schema = reader.u8()
    if schema != SCHEMA:
        raise WireError(f"{what} of unknown schema {schema}")


def _read_no_extensions(reader: Reader) -> None:
    """No extension is defined yet: those from 0x80 on are skipped (the signed bytes keep them)."""
    decode_extensions(reader.bytes16(), ())


@dataclass(frozen=True, slots=True)
class CertificateBody:
    """What an identity certificate says, its keys still raw.

    schema u8 | Ed25519 32 | ML-DSA-65 1952 | RSA DER 550 | created u64 | expires u64 | family ids, u16 and 32
    each | family proofs, u16 and 96 each | operator text8 | contact text8 | extensions u16
    """

    ed25519: bytes = field(repr=False)
    ml_dsa: bytes = field(repr=False)
    rsa: bytes = field(repr=False)
    created: int
    """Unix seconds. Of two certificates the one made later counts."""
    expires: int
    family: tuple[bytes, ...] = ()
    """Ids of relays that this one says belong to the same people, rising. Counts where both sides say so."""
    proofs: tuple[FamilyProof, ...] = ()
    """Family keys that vouch for this relay, keys rising."""
    operator: str = ""
    contact: str = ""
    admission: Admission | None = None

    ML_DSA_SIZE: ClassVar[int] = 1952
    RSA_SIZE: ClassVar[int] = 550

    def encode(self) -> bytes:
        writer = Writer().u8(SCHEMA).bytes(self.ed25519).bytes(self.ml_dsa).bytes(self.rsa)
        writer.u64(self.created).u64(self.expires)
        writer.vector(list(self.family), _write_bytes)
        writer.vector(list(self.proofs), lambda w, proof: proof.encode(w))
        extensions = {}
        if self.admission is not None:
            extensions[int(CertificateExtension.ADMISSION)] = self.admission.encode()
        writer.text8(self.operator).text8(self.contact).bytes16(encode_extensions(extensions))
        return writer.done()

    @classmethod
    def decode(cls, data: bytes) -> CertificateBody:
        reader = Reader(data)
        _read_schema(reader, "identity certificate")
        ed, ml_dsa, rsa = reader.bytes(32), reader.bytes(cls.ML_DSA_SIZE), reader.bytes(cls.RSA_SIZE)
        created, expires = reader.u64(), reader.u64()
        if not created < expires <= created + MAX_CERTIFICATE_LIFE:
            raise WireError("identity certificate with a lifetime that is not allowed")
        family = reader.vector(_read_id, MAX_FAMILY)
        _rising(family, "family ids")
        proofs = reader.vector(FamilyProof.decode, MAX_FAMILY_PROOFS)
        _rising([proof.key for proof in proofs], "family keys")
        operator, contact = _read_text(reader, "operator"), _read_text(reader, "contact")
        admission = decode_extensions(reader.bytes16(), (CertificateExtension.ADMISSION,)).get(
            CertificateExtension.ADMISSION
        )
        reader.end()
        return cls(
            ed, ml_dsa, rsa, created, expires, tuple(family), tuple(proofs), operator, contact,
            None if admission is None else Admission.decode(admission),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ContactRecord:
    """What a relay says of itself today.

    schema u8 | id 32 | revision u64 | expires u64 | nickname text8 | onion key 32 | addresses, u16 and text8
    each | roles u16 | policy rules, u16 and `PolicyRule` each | capacity u64 | link versions, u16 and u16
    each | protocol version u16 | extensions u16
    """

    id: bytes
    revision: int
    """When it was made, unix seconds. Of two records the higher counts."""
    expires: int
    nickname: str
    onion_key: bytes
    """X25519 public key for circuit handshakes."""
    addresses: tuple[Address, ...]
    roles: int
    """Bits of `Roles`."""
    exit_rules: tuple[PolicyRule, ...]
    capacity: int
    """Bytes per second that the relay says it can carry."""
    link_versions: tuple[int, ...] = (1,)
    protocol_version: int = 1

    @classmethod
    def revocation(cls, node_id: bytes, nickname: str) -> ContactRecord:
        """A relay's last record. It says nothing but that the relay is no more."""
        return cls(node_id, REVOKED, REVOKED, nickname, bytes(32), (), 0, (), 0, (), 0)

    @property
    def is_revocation(self) -> bool:
        return self.revision == REVOKED

    def encode(self) -> bytes:
        writer = Writer().u8(SCHEMA).bytes(self.id).u64(self.revision).u64(self.expires)
        writer.text8(self.nickname).bytes(self.onion_key)
        writer.vector([str(address) for address in self.addresses], lambda w, text: w.text8(text))
        writer.u16(self.roles)
        writer.vector(list(self.exit_rules), lambda w, rule: rule.encode(w))
        writer.u64(self.capacity)
        writer.vector(list(self.link_versions), lambda w, version: w.u16(version))
        return writer.u16(self.protocol_version).bytes16(b"").done()

    @classmethod
    def decode(cls, data: bytes) -> ContactRecord:
        reader = Reader(data)
        _read_schema(reader, "contact record")
        node_id, revision, expires = _read_id(reader), reader.u64(), reader.u64()
        last = revision == REVOKED
        if not (expires == REVOKED if last else revision < expires <= revision + MAX_RECORD_LIFE):
            raise WireError("contact record with a lifetime that is not allowed")
        nickname = reader.text8()
        if not _NICKNAME.fullmatch(nickname):
            raise WireError("contact record with a nickname that is not allowed")
        onion_key = reader.bytes(32)
        addresses = reader.vector(_read_address, MAX_ADDRESSES)
        if not addresses and not last:
            raise WireError("contact record without an address")
        roles = reader.u16()
        rules = _read_rules(reader)
        capacity = reader.u64()
        versions = reader.vector(Reader.u16, MAX_LINK_VERSIONS)
        if not versions and not last:
            raise WireError("contact record without link versions")
        protocol_version = reader.u16()
        _read_no_extensions(reader)
        reader.end()
        record = cls(
            node_id, revision, expires, nickname, onion_key, tuple(addresses), roles, rules, capacity,
            tuple(versions), protocol_version,
        )  # fmt: skip
        if last and record != cls.revocation(node_id, nickname):
            raise WireError("revocation that says more than that")
        return record


_policies: dict[int, dict[bytes, tuple[PolicyRule, ...]]] = {}
"""Exit policies seen lately, by their number of rules and their bytes. Most exits have one of a few."""


def _read_rules(reader: Reader) -> tuple[PolicyRule, ...]:
    count = reader.u16()
    if count > MAX_RULES:
        raise WireError(f"{count} items where at most {MAX_RULES} may stand")
    if not count:
        return ()
    for data, rules in tuple(_policies.get(count, {}).items()):
        if reader.accept(data):
            return rules
    start = reader.position
    rules = tuple(PolicyRule.decode(reader) for _ in range(count))
    if sum(map(len, tuple(_policies.values()))) >= _KEPT_POLICIES:
        _policies.clear()
    _policies.setdefault(count, {})[reader.since(start)] = rules
    return rules


def _read_address(reader: Reader) -> Address:
    try:
        return Address.parse(reader.text8())
    except ValueError as error:
        raise WireError(f"contact record: {error}") from None
