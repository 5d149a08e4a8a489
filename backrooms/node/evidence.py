"""Proof that relays signed two records of one revision, kept in the state folder.

Anybody can check it with the relay's certificate. Relays that it speaks against are avoided in paths as long as it is
kept; what other relays do cannot put anybody here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from backrooms.crypto.keys import parse_id, text_id
from backrooms.netdir.certificate import ShelfError
from backrooms.netdir.directory import Directory, EquivocationError
from backrooms.node.statefile import StateFile, read_json
from backrooms.node.timers import Timers

log = Logger()

FILE_NAME = "equivocations.json"
KEPT = 64
"""Relays against which proof is kept; the oldest go first."""
KEPT_FOR = 30 * 86400
"""Seconds for which it is kept."""
_MOST = 4 << 20
"""Bytes of the file, at most."""
_DOCUMENTS = ("certificate", "first", "second")


@dataclass(frozen=True, slots=True)
class Proof:
    """A relay's certificate and two records that it signed, with the time when that was noticed."""

    id: bytes
    seen: int
    certificate: bytes = field(repr=False)
    first: bytes = field(repr=False)
    second: bytes = field(repr=False)


class Evidence:
    """The file `equivocations.json`."""

    def __init__(self, state: Path, directory: Directory, timers: Timers) -> None:
        self.on_proof: Callable[[bytes], object] = lambda relay_id: None
        """Called with the id of a relay against which there is proof now."""
        self._file = StateFile(state / FILE_NAME, timers, _MOST, "what was proven is forgotten")
        self._directory = directory
        self._timers = timers
        directory.on_equivocation.append(self.note)
        self.proofs: dict[bytes, Proof] = {proof.id: proof for proof in self._file.load(from_text) or ()}
        self._forget(timers.wall())

    def ids(self) -> frozenset[bytes]:
        """Relays that there is proof against."""
        return frozenset(self.proofs)

    def note(self, error: EquivocationError) -> None:
        """There is proof against a relay."""
        relay_id = error.relay_id
        known = self._directory.held(relay_id)
        if relay_id in self.proofs or known is None:
            return
        log.warn("the relay {relay} has signed two records of one revision; proof is kept", relay=text_id(relay_id))
        wall = self._timers.wall()
        try:
            certificate = known.certificate.raw
        except ShelfError:
            certificate = b""  # others have it
        self.proofs[relay_id] = Proof(relay_id, int(wall), certificate, error.held, error.offered)
        self._forget(wall)
        self._file.save(to_text(self.proofs.values()))
        self.on_proof(relay_id)

    def _forget(self, wall: float) -> None:
        self.proofs = {one: proof for one, proof in self.proofs.items() if proof.seen > wall - KEPT_FOR}
        while len(self.proofs) > KEPT:
            del self.proofs[min(self.proofs, key=lambda one: self.proofs[one].seen)]


def to_text(proofs: Any) -> str:
    """The file: JSON, documents in base64."""
    rows = [
        {
            "relay": text_id(proof.id),
            "seen": proof.seen,
            **{name: base64.b64encode(getattr(proof, name)).decode() for name in _DOCUMENTS},
        }
        for proof in proofs
    ]
    return json.dumps({"schema": 1, "equivocations": rows}, indent=1) + "\n"


def from_text(data: bytes) -> list[Proof]:
    """What `to_text` wrote. `ValueError` or `BackroomsError` when it is something else."""
    whole = read_json(data)
    if not isinstance(whole, dict) or whole.get("schema") != 1 or not isinstance(whole.get("equivocations"), list):
        raise ValueError("not a list of equivocations")
    proofs = []
    for row in whole["equivocations"]:
        if not isinstance(row, dict) or type(row.get("seen")) is not int:
            raise ValueError("an equivocation without a time")
        if not all(isinstance(row.get(name), str) for name in ("relay", *_DOCUMENTS)):
            raise ValueError("an equivocation that lacks something")
        documents = (base64.b64decode(row[name], validate=True) for name in _DOCUMENTS)
        proofs.append(Proof(parse_id(row["relay"]), row["seen"], *documents))
    return proofs
