"""Documents of strangers are verified in threads, and whatever is wrong with them is an answer and no accident."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from backrooms.errors import CryptoError, RemoteProtocolError, WireError
from backrooms.netdir import directory as directory_module
from backrooms.netdir.descriptor import CLOCK_TOLERANCE, RECORD_LIFE, Descriptor, DocumentTimeError
from backrooms.netdir.directory import Directory, EquivocationError
from backrooms.node import verifying
from backrooms.node.verifying import Verifier
from backrooms.wire.documents import Documents
from backrooms.wire.records import MAX_CERTIFICATE, MAX_RECORD
from tests import keys
from tests.simnet.network import SimNet

NOW = keys.NOW
RELAYS = [keys.descriptor(number) for number in range(5)]


def documents(relay: Descriptor, **changed: bytes) -> Documents:
    parts = {"id": relay.id, "certificate": relay.certificate.raw, "record": relay.record_raw, **changed}
    return Documents(**parts)


class Taken:
    """A verifier on a simulated reactor."""

    def __init__(self, now: float = NOW) -> None:
        self.net = SimNet(start=now)
        self.directory = Directory(keys.NETWORK_ID, now)
        self.verifier = Verifier(self.net.host("host").reactor, self.directory, self.net.wall)

    def take(self, *given: Documents) -> list[Any]:
        found: list[Any] = self.net.run_until(Deferred.fromCoroutine(self.verifier.take(given)), 10)
        return found


def flipped(data: bytes, at: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_results_come_in_order_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 16):
        monkeypatch.setattr(verifying, "CHUNK", size)
        taken = Taken()
        unknown = Documents(bytes(32))
        forged = documents(RELAYS[2], record=flipped(RELAYS[2].record_raw, -1))
        results = taken.take(documents(RELAYS[0]), unknown, documents(RELAYS[1]), forged, documents(RELAYS[3]))
        assert [type(one) for one in results] == [Descriptor, Descriptor, CryptoError, Descriptor]
        assert [one.id for one in results if isinstance(one, Descriptor)] == [RELAYS[n].id for n in (0, 1, 3)]
        assert len(taken.directory) == 3
    assert taken.take() == []


BAD: dict[str, tuple[Callable[[], Documents], type[RemoteProtocolError]]] = {
    "forged record": (lambda: documents(RELAYS[0], record=flipped(RELAYS[0].record_raw, -1)), CryptoError),
    "forged Ed25519 signature": (
        lambda: documents(RELAYS[0], certificate=flipped(RELAYS[0].certificate.raw, -3309 - 1)),
        CryptoError,
    ),
    "forged ML-DSA signature": (
        lambda: documents(RELAYS[0], certificate=flipped(RELAYS[0].certificate.raw, -1)),
        CryptoError,
    ),
    "record of another relay": (lambda: documents(RELAYS[0], record=RELAYS[1].record_raw), CryptoError),
    "another id": (lambda: documents(RELAYS[0], id=RELAYS[1].id), WireError),
    "another network": (lambda: documents(keys.descriptor(0, network_id=bytes(32))), CryptoError),
    "expired": (lambda: documents(keys.descriptor(0, now=NOW - RECORD_LIFE - CLOCK_TOLERANCE - 9)), DocumentTimeError),
    "future": (lambda: documents(keys.descriptor(0, now=NOW + CLOCK_TOLERANCE + 9)), DocumentTimeError),
    "far future": (lambda: documents(keys.descriptor(0, now=2.0**40)), DocumentTimeError),
    "oversized certificate": (lambda: documents(RELAYS[0], certificate=bytes(MAX_CERTIFICATE + 1)), WireError),
    "oversized record": (lambda: documents(RELAYS[0], record=bytes(MAX_RECORD + 1)), WireError),
    "cut": (lambda: documents(RELAYS[0], record=RELAYS[0].record_raw[:-1]), WireError),
    "garbage": (lambda: documents(RELAYS[0], record=b"garbage"), WireError),
    "no certificate": (lambda: documents(RELAYS[0], certificate=b""), RemoteProtocolError),
}


@pytest.mark.parametrize("kind", BAD)
def test_b4_bad_documents_are_refused_and_the_rest_is_taken(kind: str) -> None:
    make, error = BAD[kind]
    taken = Taken()
    bad, good = taken.take(make(), documents(RELAYS[2]))
    assert type(bad) is error, bad
    assert good.id == RELAYS[2].id
    assert [relay.id for relay in taken.directory.relays()] == [RELAYS[2].id]


def test_b4_replayed_documents_change_nothing() -> None:
    taken = Taken()
    new = keys.descriptor(0, now=NOW + 5)
    taken.take(documents(new))
    revision = taken.directory.revision
    for replay in (documents(RELAYS[0]), documents(new), documents(new, certificate=RELAYS[0].certificate.raw)):
        (found,) = taken.take(replay)
        assert found is taken.directory.get(new.id)
    assert taken.directory.revision == revision


def test_b4_a_full_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "MAX_RELAYS", 2)
    results = Taken().take(*(documents(RELAYS[number]) for number in range(3)))
    assert [type(one) for one in results] == [Descriptor, Descriptor, RemoteProtocolError]


def test_b4_two_records_of_one_revision_are_told() -> None:
    taken = Taken()
    heard: list[EquivocationError] = []
    taken.directory.on_equivocation.append(heard.append)
    twin = keys.descriptor(0, onion_key=b"\7" * 32, certificate=RELAYS[0].certificate)
    results = taken.take(documents(RELAYS[0]), documents(RELAYS[1]))
    (refused,) = taken.take(documents(twin))
    assert refused is heard[0]
    assert (heard[0].held, heard[0].offered) == (RELAYS[0].record_raw, twin.record_raw)
    assert taken.directory.get(twin.id) is results[0]


async def test_in_real_threads() -> None:
    """Many at once, asked for by several: each is verified once and all are there."""
    directory = Directory(keys.NETWORK_ID, NOW)
    verifier = Verifier(reactor, directory, lambda: NOW)
    many = [documents(relay) for relay in RELAYS]
    asked = [Deferred.fromCoroutine(verifier.take(many[start:] + many[:start])) for start in range(4)]
    for start, one in enumerate(asked):
        taken = [relay.id for relay in await one if isinstance(relay, Descriptor)]
        assert taken == [given.id for given in many[start:] + many[:start]]
    assert len(directory) == 5
    assert directory.revision == 5
