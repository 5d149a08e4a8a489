"""Targets of what keys are in: identities, key files, certificates, signed documents, circuit handshakes."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from backrooms.crypto.certs import check_tls_certificate, check_tls_files
from backrooms.crypto.keys import (
    OnionKey,
    PrivateIdentity,
    PublicIdentity,
    check_rsa_key,
    load_private_key,
    verify_ed25519,
)
from backrooms.crypto.ntor import KEY_MATERIAL, NtorClient, relay_respond
from backrooms.crypto.onion import split_hop_keys
from backrooms.crypto.replay import ReplayCache
from backrooms.errors import CryptoError, RemoteProtocolError
from backrooms.netdir import store
from backrooms.netdir.certificate import IdentityCertificate
from backrooms.netdir.descriptor import Descriptor, SignedCertificate, SignedRecord
from backrooms.netdir.directory import Directory
from backrooms.netdir.policy import ExitPolicy
from backrooms.wire.codec import Reader, Writer
from backrooms.wire.extensions import ClientExtensions
from tests.fuzz.target import Errors, Target
from tests.keys import NETWORK_ID, NOW, identity, tls_pair
from tests.keys import descriptor as make_descriptor

_REMOTE: Errors = (RemoteProtocolError,)
_RELAY_ID = bytes(range(32))


@cache
def _descriptor(number: int = 0) -> Descriptor:
    return make_descriptor(number, exit_policy=ExitPolicy.reduced(), operator="me")


def _documents(number: int = 0) -> bytes:
    relay = _descriptor(number)
    return Writer().bytes16(relay.certificate.raw).bytes16(relay.record_raw).done()


def _both(data: bytes) -> tuple[bytes, bytes]:
    reader = Reader(data)
    certificate, record = reader.bytes16(), reader.bytes16()
    reader.end()
    return certificate, record


# documents


def _certificate(data: bytes) -> None:
    signed = SignedCertificate.decode(data)
    assert len(signed.digest) == 32
    assert signed.verify(NOW, NETWORK_ID).raw == data


def _record(data: bytes) -> None:
    signed = SignedRecord.decode(data)
    relay = signed.verify(NOW, NETWORK_ID, _descriptor().certificate)
    assert relay.id == signed.record.id
    _use(relay)


def _use(relay: Descriptor) -> None:
    """What path choice and the control port ask of a relay."""
    repr((relay, relay.fingerprint, relay.subnets(), relay.is_exit, relay.allows_single_hop, relay.expires))
    relay.exit_policy.may_allow_port(443)
    assert ExitPolicy.parse(relay.exit_policy.lines()) == relay.exit_policy


def _unsigned_record(data: bytes) -> None:
    """A record whose signature would hold: what a relay with keys of its own can say."""
    record = SignedRecord.decode(Writer().bytes16(data).bytes(bytes(64)).done()).record
    _use(Descriptor(_descriptor().certificate, record, data))


def _directory_add(data: bytes) -> None:
    directory = Directory(NETWORK_ID, NOW)
    directory.insert(_descriptor(1), NOW)
    certificate, record = _both(data)
    relay = directory.add(certificate, record, NOW)
    assert directory.get(relay.id) is relay


class _Shelf:
    """Certificates that nobody reads."""

    def read(self, place: int, size: int, check: bytes) -> bytes:
        raise AssertionError("nobody asked for it")


def _saved_index(data: bytes) -> None:
    """Rows behind a checksum that holds: what another version may have written."""
    head = store.decode_head(_index(data))
    rows = list(store.decode_rows(_index(data), _Shelf(), 2**40))
    assert head.network_id == NETWORK_ID
    again = store.encode_index(head, [store.encode_row(row) for row in rows])
    for (relay, since), (other, seen) in zip(rows, store.decode_rows(again, _Shelf(), 2**40), strict=True):
        assert (relay.certificate.facts, relay.record, since) == (other.certificate.facts, other.record, seen)
        assert relay.certificate.place[1:] == other.certificate.place[1:]
    Directory(NETWORK_ID, NOW).restore(rows, NOW)


def _index(row: bytes) -> bytes:
    return store.encode_index(store.Head(NETWORK_ID, bytes(32), 1), [row])


@cache
def _row() -> bytes:
    relay = _descriptor()
    facts = relay.certificate.facts
    shelved = IdentityCertificate.shelved(facts, _Shelf(), 6000, 5000, bytes(16))
    return store.encode_row((Descriptor(shelved, relay.record, relay.record_raw), int(NOW)))


def _first_form(data: bytes) -> None:
    for certificate, record in store.decode_first_form(data):
        assert len(certificate) + len(record) < len(data)


@cache
def _saved() -> bytes:
    return Writer().bytes(b"backrooms-directory-1\n").u32(2).bytes(_documents(0)).bytes(_documents(1)).done()


# keys


def _public_identity(data: bytes) -> None:
    reader = Reader(data)
    public = PublicIdentity.decode(reader)
    reader.end()
    assert len(public.id) == 32
    writer = Writer()
    public.encode(writer)
    assert writer.done() == data


@cache
def _encoded_identity() -> bytes:
    writer = Writer()
    identity(0).public.encode(writer)
    return writer.done()


def _signatures(data: bytes) -> None:
    """Signatures of somebody else: Ed25519 64 | ML-DSA-65 3309 | RSA-PSS 512."""
    given = {"ed25519": data[:64], "ml-dsa-65": data[64:3373], "rsa-pss": data[3373:]}
    identity(0).public.verify(b"message", given, list(given))


@cache
def _signed_message() -> bytes:
    return b"".join(identity(0).sign(b"message", ["ed25519", "ml-dsa-65", "rsa-pss"]).values())


def _tls_files(data: bytes) -> None:
    key, _, certificate = data.partition(b"\0")
    check_tls_files(key, certificate)


@cache
def _certificate_der() -> bytes:
    return x509.load_pem_x509_certificate(tls_pair(0)[1]).public_bytes(Encoding.DER)


# circuit handshakes


_ONION_KEY = OnionKey(X25519PrivateKey.from_private_bytes(b"\1" * 32))
_MESSAGE = ClientExtensions(int(NOW // 60)).encode()


def _client() -> tuple[NtorClient, bytes]:
    return NtorClient.start(_RELAY_ID, _ONION_KEY.public, NETWORK_ID, _MESSAGE, random.Random(1))


def _respond(data: bytes) -> tuple[bytes, bytes]:
    seen = ReplayCache()
    return relay_respond(
        data,
        _RELAY_ID,
        lambda key, peer: _ONION_KEY.agree(peer),
        [_ONION_KEY.public, bytes(32)],
        NETWORK_ID,
        lambda message: seen.check(message, data, NOW),
        random.Random(2),
    )


def _ntor_relay(data: bytes) -> None:
    reply, keys = _respond(data)
    assert len(keys) == KEY_MATERIAL
    assert len(reply) == 1152
    split_hop_keys(keys)


@cache
def _ntor_client_run() -> tuple[NtorClient, bytes]:
    client, handshake = _client()
    return client, _respond(handshake)[0]


def _ntor_client(data: bytes) -> None:
    client = _ntor_client_run()[0]
    client.finished = False
    keys, _ = client.finish(data)
    assert len(keys) == KEY_MATERIAL


def _target(name: str, run: Callable[[bytes], Any], errors: Errors, *seeds: Callable[[], bytes]) -> Target:
    return Target(name, run, lambda: [seed() for seed in seeds], errors)


def targets() -> list[Target]:
    """All targets of this module."""
    value: Errors = (ValueError,)
    return [
        _target("netdir.certificate", _certificate, _REMOTE, lambda: _descriptor().certificate.raw),
        _target("netdir.record", _record, _REMOTE, lambda: _descriptor().record_raw),
        _target("netdir.record.signed", _unsigned_record, _REMOTE, lambda: _descriptor().record.encode()),
        _target("netdir.directory.add", _directory_add, _REMOTE, _documents, lambda: _documents(1)),
        _target("netdir.store.rows", _saved_index, _REMOTE, _row),
        _target("netdir.store.head", lambda data: store.decode_head(data), _REMOTE, lambda: _index(_row())),
        _target("netdir.store.first_form", _first_form, _REMOTE, _saved),
        _target("crypto.keys.public", _public_identity, _REMOTE, _encoded_identity),
        _target("crypto.keys.signatures", _signatures, (CryptoError,), _signed_message),
        _target("crypto.keys.rsa", check_rsa_key, (CryptoError,), lambda: identity(0).public.rsa),
        _target(
            "crypto.keys.ed25519",
            lambda data: verify_ed25519(data[:32], data[32:96], data[96:]),
            (CryptoError,),
            lambda: identity(0).public.ed25519 + identity(0).sign(b"m", ["ed25519"])["ed25519"] + b"m",
        ),
        _target("crypto.keys.identity_file", PrivateIdentity.from_pem, value, lambda: identity(0).to_pem()),
        _target("crypto.keys.onion_file", OnionKey.from_pem, value, _ONION_KEY.to_pem),
        _target("crypto.keys.private", load_private_key, value, _ONION_KEY.to_pem, lambda: tls_pair(0)[0]),
        _target("crypto.certs.der", check_tls_certificate, (CryptoError,), _certificate_der),
        _target("crypto.certs.files", _tls_files, value, lambda: b"\0".join(tls_pair(0))),
        _target("crypto.ntor.relay", _ntor_relay, (CryptoError,), lambda: _client()[1]),
        _target("crypto.ntor.client", _ntor_client, (CryptoError,), lambda: _ntor_client_run()[1]),
    ]
