"""Keys and relays for tests. RSA-4096 keys are slow to make, and relay ids come from keys.

The first ones lie in tests/pem, so that the same test meets the same relays everywhere; others are made once per
machine and kept under .pytest_cache. They are good for nothing but tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from backrooms.crypto.certs import make_tls_certificate
from backrooms.crypto.keys import PrivateIdentity, PublicIdentity
from backrooms.keystore.disk import write_atomic
from backrooms.keystore.file import FileKeyStore
from backrooms.keystore.state import write_schema
from backrooms.netdir.descriptor import Descriptor, IdentityCertificate, make_descriptor
from backrooms.netdir.policy import ExitPolicy
from backrooms.wire.records import Address, CertificateBody, ContactRecord, FamilyProof, Roles

FIXED = Path(__file__).parent / "pem"
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "backrooms-keys"
NETWORK_ID = bytes(range(32))
NOW = 1_800_000_000.0
"""Unix time that test documents are made at unless told otherwise."""
_RSA_HEAD = bytes.fromhex("30820222300d06092a864886f70d01010105000382020f003082020a0282020100")


def _kept(name: str, make: Callable[[], bytes]) -> Path:
    """The fixed file, or the cached one, made by `make` if there is none; of two made at once, the first counts."""
    if (FIXED / name).exists():
        return FIXED / name
    path = CACHE / name
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        mine = CACHE / f"{name}.{os.getpid()}"
        write_atomic(mine, make())
        try:
            os.link(mine, path)
        except FileExistsError:
            pass
        mine.unlink()
    return path


@cache
def identity(number: int = 0) -> PrivateIdentity:
    """One of a few identities; those below 12 are the same everywhere. From there on each costs a second once."""
    path = _kept(f"identity-{number}.pem", lambda: PrivateIdentity.generate().to_pem())
    return PrivateIdentity.from_pem(path.read_bytes())


@cache
def tls_pair(number: int = 0) -> tuple[bytes, bytes]:
    """An RSA-4096 key and its certificate, PEM both."""
    joined = _kept(f"tls-{number}.pem", lambda: b"".join(make_tls_certificate(NOW))).read_bytes()
    end = b"-----END PRIVATE KEY-----\n"
    key, _, certificate = joined.partition(end)
    return key + end, certificate


def key_store(directory: Path, number: int = 0, now: float = NOW) -> FileKeyStore:
    """A key store in `directory` that holds `identity(number)`; takes milliseconds."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key, certificate = tls_pair(number)
    write_atomic(directory / "identity.pem", identity(number).to_pem())
    write_atomic(directory / "tls_key.pem", key)
    write_atomic(directory / "tls_cert.pem", certificate)
    write_schema(directory)
    return FileKeyStore.open(directory, now)


def descriptor(
    number: int = 0,
    *,
    now: float = NOW,
    network_id: bytes = NETWORK_ID,
    nickname: str | None = None,
    onion_key: bytes | None = None,
    address: str | None = None,
    exit_policy: ExitPolicy | None = None,
    certificate: IdentityCertificate | None = None,
    after: int = 0,
    family: tuple[bytes, ...] = (),
    proofs: tuple[FamilyProof, ...] = (),
    operator: str = "",
) -> Descriptor:
    """A descriptor of `identity(number)` with real signatures."""
    keys = identity(number)
    return make_descriptor(
        keys.sign,
        keys.public,
        network_id,
        now,
        nickname=nickname or f"relay{number}",
        onion_key=onion_key or bytes([number]) * 32,
        addresses=[address or f"tls:127.0.0.1:{5001 + number}"],
        exit_policy=exit_policy,
        capacity=1_000_000,
        certificate=certificate,
        after=after,
        family=family,
        proofs=proofs,
        operator=operator,
    )


def fake_public(number: int) -> PublicIdentity:
    """Public keys of the right form that nobody has the private halves of."""
    seed = number.to_bytes(4, "big")
    modulus = b"\xc0" + (seed * 128)[:510] + b"\x01"
    return PublicIdentity(seed * 8, seed * 488, _RSA_HEAD + modulus + bytes.fromhex("0203010001"))


def fake_relay(
    number: int,
    *,
    address: str | None = None,
    capacity: int = 1_000_000,
    exit_policy: ExitPolicy | None = None,
    single_hop: bool = False,
    family: tuple[bytes, ...] = (),
    family_keys: frozenset[bytes] = frozenset(),
    nickname: str | None = None,
) -> Descriptor:
    """A relay that no signature stands behind, for path choice and views: thousands can be made in a second.

    Without an address each has a /16 of its own, up to number 50,000.
    """
    public = fake_public(number)
    where = address or f"tls:{number % 200 + 11}.{number // 200}.0.1:443"
    roles = Roles.EXIT if exit_policy is not None else Roles(0)
    if single_hop:
        roles |= Roles.SINGLE_HOP
    created = int(NOW)
    body = CertificateBody(public.ed25519, public.ml_dsa, public.rsa, created, created + 86400, tuple(sorted(family)))
    record = ContactRecord(
        id=public.id,
        revision=created,
        expires=created + 86400,
        nickname=nickname or f"fake{number}",
        onion_key=bytes(32),
        addresses=(Address.parse(where),),
        roles=int(roles),
        exit_rules=exit_policy.rules if exit_policy is not None else (),
        capacity=capacity,
    )
    return Descriptor(IdentityCertificate(public, body, family_keys, b"", bytes(32)), record, b"")
