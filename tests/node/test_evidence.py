"""The file of proofs against two-faced relays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from backrooms.netdir.directory import Directory, EquivocationError
from backrooms.node.evidence import FILE_NAME, KEPT, KEPT_FOR, Evidence, Proof, from_text, to_text
from backrooms.node.timers import Timers
from tests import keys


def made(folder: Path) -> tuple[Evidence, Directory, Any]:
    """Evidence in `folder`, over a directory of twelve relays."""
    clock = Clock()
    clock.advance(keys.NOW)
    directory = Directory(keys.NETWORK_ID, keys.NOW)
    return Evidence(folder, directory, Timers(clock)), directory, clock


def equivocate(directory: Directory, number: int) -> bytes:
    """Have somebody prove that a relay signed two records of one revision; its id."""
    first, second = keys.descriptor(number), keys.descriptor(number, nickname="another")
    directory.add(first.certificate.raw, first.record_raw, keys.NOW)
    with pytest.raises(EquivocationError) as caught:
        directory.verify(second.certificate.raw, second.record_raw, keys.NOW)
    for call in directory.on_equivocation:
        call(caught.value)
    return first.id


def test_proof_is_kept_and_read_again_and_anybody_can_check_it(tmp_path: Path) -> None:
    evidence, directory, _ = made(tmp_path)
    relay_id = equivocate(directory, 3)
    assert evidence.ids() == {relay_id}
    again, _, clock = made(tmp_path)
    assert again.proofs == evidence.proofs
    proof = again.proofs[relay_id]
    fresh = Directory(keys.NETWORK_ID, keys.NOW)
    fresh.add(proof.certificate, proof.first, keys.NOW)
    with pytest.raises(EquivocationError):
        fresh.verify(None, proof.second, keys.NOW)
    clock.advance(KEPT_FOR + 1)
    again._forget(clock.seconds())
    assert not again.proofs


def test_the_file_is_bounded(tmp_path: Path) -> None:
    evidence, directory, _ = made(tmp_path)
    for number in range(KEPT + 10):
        relay_id = bytes([number]) * 32
        evidence.proofs[relay_id] = Proof(relay_id, int(keys.NOW) - 1000 + number, b"c", b"1", b"2")
    newest = equivocate(directory, 1)
    assert len(evidence.proofs) == KEPT
    assert newest in evidence.proofs
    assert bytes(32) not in evidence.proofs
    assert len(from_text((tmp_path / FILE_NAME).read_bytes())) == KEPT


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"schema": 2, "equivocations": []}',
        '{"schema": 1, "equivocations": {}}',
        '{"schema": 1, "equivocations": [3]}',
        '{"schema": 1, "equivocations": [{"seen": true}]}',
        '{"schema": 1, "equivocations": [{"seen": 1, "relay": "x", "certificate": "", "first": "", "second": ""}]}',
        to_text([Proof(bytes(32), 7, b"c", b"1", b"2")]).replace('"Yw=="', '"!"'),
    ],
)
def test_a_damaged_file_is_kept_aside_and_made_anew(tmp_path: Path, text: str, said: list[str]) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    evidence, directory, _ = made(tmp_path)
    assert not evidence.proofs
    assert (tmp_path / f"{FILE_NAME}.damaged-1").read_text() == text
    assert any("cannot be used" in line for line in said)
    equivocate(directory, 2)
    assert len(json.loads((tmp_path / FILE_NAME).read_text())["equivocations"]) == 1
