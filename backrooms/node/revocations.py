"""Revocations that an operator laid into the state folder, for this node to tell the others."""

from __future__ import annotations

from pathlib import Path

from twisted.logger import Logger

from backrooms.crypto.keys import text_id
from backrooms.errors import RemoteProtocolError, WireError
from backrooms.netdir.descriptor import SignedRecord
from backrooms.netdir.directory import Directory
from backrooms.node.timers import Timers
from backrooms.wire.documents import DirPublish

log = Logger()

FOLDER = "revocations"
ENDING = ".revocation"
_MOST = 64
"""Files read at once."""
_LARGEST = 32_000


def read_revocation(path: Path) -> DirPublish:
    """The documents in a file. `WireError` when it is no revocation, `OSError` when it cannot be read."""
    with path.open("rb") as file:
        data = file.read(_LARGEST)
    documents = DirPublish.decode(data)
    if not SignedRecord.decode(documents.record).record.is_revocation:
        raise WireError("a contact record that revokes nothing")
    return documents


def take_revocations(state: Path, directory: Directory, timers: Timers) -> list[bytes]:
    """Put all that lie in `state` into the list, from where they spread; the ids that are newly revoked."""
    found: list[bytes] = []
    folder = state / FOLDER
    if not folder.is_dir():
        return found
    for path in sorted(folder.glob(f"*{ENDING}"))[:_MOST]:
        try:
            documents = read_revocation(path)
            before = directory.revision
            relay = directory.add(documents.certificate, documents.record, timers.wall())
        except RemoteProtocolError as error:
            log.error("{path} is not taken: {reason}", path=path, reason=error.reason)
        except OSError as error:
            log.error("{path} cannot be read: {error}", path=path, error=error.strerror)
        else:
            if directory.revision != before:
                log.warn("relay {id} is revoked by {name}", id=text_id(relay.id), name=path.name)
                found.append(relay.id)
    return found
