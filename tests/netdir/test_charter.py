"""Networks that let in only whom their charter admits, and only versions that they require."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backrooms.crypto.keys import CharterKey
from backrooms.errors import ConfigError, WireError
from backrooms.netdir.certificate import (
    CLOCK_TOLERANCE,
    IdentityCertificate,
    NotAdmittedError,
    admission_message,
    make_certificate,
)
from backrooms.netdir.descriptor import Descriptor, make_descriptor, make_revocation
from backrooms.netdir.directory import Directory
from backrooms.netdir.network import NetworkFile
from backrooms.wire.admission import Admission
from tests.keys import NETWORK_ID, NOW, identity

DAY = 86400
KEY, OTHER = CharterKey.generate(), CharterKey.generate()
KEYS = identity(0)


def admission(
    key: CharterKey = KEY,
    node_id: bytes = KEYS.public.id,
    network_id: bytes = NETWORK_ID,
    expires: int = int(NOW) + DAY,
) -> Admission:
    return Admission(key.public, expires, key.sign(admission_message(network_id, node_id, expires)))


def relay(given: Admission | None, now: float = NOW, version: int = 1) -> Descriptor:
    return make_descriptor(
        KEYS.sign, KEYS.public, NETWORK_ID, now, nickname="a", onion_key=bytes(32), addresses=["tls:192.0.2.1:443"],
        admission=given, protocol_version=version,
    )  # fmt: skip


def take(descriptor: Descriptor, now: float = NOW, **rules: object) -> Directory:
    directory = Directory(NETWORK_ID, now, **rules)  # type: ignore[arg-type]
    directory.add(descriptor.certificate.raw, descriptor.record_raw, now)
    return directory


def test_an_admitted_relay_is_taken() -> None:
    for keys in ((KEY.public,), (OTHER.public, KEY.public)):
        assert len(take(relay(admission()), charter=keys)) == 1
    assert len(take(relay(admission(OTHER)))) == 1, "where there is no charter, an admission means nothing"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (None, "without the admission"),
        (admission(OTHER), "not in this network's charter"),
        (admission(node_id=identity(1).public.id), "does not hold"),
        (admission(network_id=bytes(32)), "does not hold"),
        (replace(admission(), expires=int(NOW) + 9 * DAY), "does not hold"),
        (replace(admission(OTHER), key=KEY.public), "does not hold"),
        (admission(expires=int(NOW) - CLOCK_TOLERANCE - 9), "expired 5409 seconds ago"),
    ],
)
def test_others_are_refused_with_the_reason(given: Admission | None, why: str) -> None:
    with pytest.raises(NotAdmittedError, match=why):
        take(relay(given), charter=(KEY.public,))


def test_who_is_not_admitted_any_more_goes() -> None:
    directory = take(relay(admission()), charter=(KEY.public,))
    end = NOW + DAY + CLOCK_TOLERANCE
    assert directory.expire(end - 1) == []
    first = directory.relays()[0]
    later = make_descriptor(
        KEYS.sign, KEYS.public, NETWORK_ID, end + 1, nickname="a", onion_key=bytes(32),
        addresses=["tls:192.0.2.1:443"], certificate=first.certificate,
    )  # fmt: skip
    with pytest.raises(NotAdmittedError, match="has expired"):
        directory.add(None, later.record_raw, end + 1)
    renewed = relay(admission(expires=int(end) + DAY), end + 1)
    directory.add(renewed.certificate.raw, renewed.record_raw, end + 1)
    assert directory.expire(end + 2) == []
    assert directory.end(directory.relays()[0]) == int(end) + DAY


def test_revoked_members() -> None:
    """Who is in the list can be revoked without an admission; one nobody knows needs one, even if it has run out."""
    plain = make_revocation(KEYS.sign, KEYS.public, NETWORK_ID, NOW + 1)
    directory = take(relay(admission()), charter=(KEY.public,))
    directory.add(plain.certificate.raw, plain.record_raw, NOW + 1)
    assert directory.is_revoked(KEYS.public.id)
    with pytest.raises(NotAdmittedError):
        take(plain, charter=(KEY.public,))
    certificate: IdentityCertificate = make_certificate(
        KEYS.sign, KEYS.public, NETWORK_ID, NOW, admission=admission(expires=int(NOW) - 30 * DAY)
    )
    last = make_revocation(KEYS.sign, KEYS.public, NETWORK_ID, NOW, certificate=certificate)
    assert take(last, charter=(KEY.public,)).is_revoked(KEYS.public.id)


def test_versions() -> None:
    assert len(take(relay(None, version=3), required=3)) == 1
    with pytest.raises(NotAdmittedError, match="protocol version 2; this network requires 3"):
        take(relay(None, version=2), required=3)
    last = make_revocation(KEYS.sign, KEYS.public, NETWORK_ID, NOW)
    assert take(last, required=3).is_revoked(KEYS.public.id)


def test_the_text_of_an_admission() -> None:
    one = admission()
    assert Admission.parse(one.text) == one
    assert len(one.text) == 139
    for text in ("", "x", one.text[:-1], one.text + "A", one.text[:-1] + "*", "é" * 139, one.text.upper() + "=="):
        with pytest.raises(ValueError, match="charter admit"):
            Admission.parse(text)
    with pytest.raises(WireError):
        Admission.decode(one.encode() + b"x")


TEXT = f'name = "a"\nid = "{bytes(32).hex()}"\n'


def test_the_network_file() -> None:
    found = NetworkFile.parse(TEXT + "[versions]\nrequired = 2\nrecommended = 3\n")
    assert (found.required, found.recommended) == (2, 3)
    assert NetworkFile.parse(found.to_toml()) == found
    assert NetworkFile.parse(TEXT + "[versions]\nrequired = 2\n").recommended == 2
    assert NetworkFile.parse(TEXT).required == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("versions = 3\n", "versions: must be a table"),
        ("[versions]\nrequired = -1\n", "versions.required: must be a number"),
        ("[versions]\nrequired = true\n", "versions.required: must be a number"),
        ('[versions]\nrecommended = "1"\n', "versions.recommended: must be a number"),
        ("[versions]\nrequired = 65536\n", "versions.required: must be a number"),
        ("[versions]\nrequired = 2\nrecommended = 1\n", "versions.recommended: must not be below"),
        ("[versions]\nmost = 2\n", "versions.most: unknown key"),
    ],
)
def test_a_wrong_network_file(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        NetworkFile.parse(TEXT + text)
