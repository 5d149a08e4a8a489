"""The list of relays on disk, for the next start and instead of memory.

    relays                the index (`netdir.store`), written anew now and then, whole or not at all
    certificates-N        the certificates that it names, see `shelf`
    *.damaged             what could not be read, put aside

A certificate goes into its file as soon as it is in the list, and out of memory. An index names only what was flushed
to disk before, so whenever the process dies the last index and all that it names are there.
"""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet import threads
from twisted.logger import Logger

from backrooms.errors import WireError
from backrooms.keystore.disk import sync_directory, write_atomic
from backrooms.netdir import store
from backrooms.netdir.certificate import IdentityCertificate, ShelfError
from backrooms.netdir.descriptor import Descriptor, SignedRecord
from backrooms.netdir.directory import Directory
from backrooms.node.logs import Seldom
from backrooms.node.shelf import CertificateFile
from backrooms.node.timers import Timers
from backrooms.wire.documents import Documents

log = Logger()

FILE_NAME = "relays"
SAVE_SOON = 5.0
"""Seconds after a change until the index is written."""
SAVE_PAUSE = 60.0
"""Seconds between two writings, at least: each takes 0.2 s of a thread with 10,000 relays."""
WASTE = 1 << 20
"""Bytes of no use that a file of certificates may hold beside as many as are of use."""
ROWS_AT_ONCE = 32
"""Rows encoded by a thread before it lets the reactor go on: 0.3 ms."""
BREATH = 0.0005
MANY = 512
"""Relays that come until the collector of garbage is told to leave alone what is there."""
_CERTIFICATES = re.compile(r"certificates-(\d{1,9})", re.ASCII)

Moved = list[tuple[IdentityCertificate, int, int, bytes]]
"""Certificates, each with its new place, size and check."""


class Written(NamedTuple):
    """What was written, and when the certificates moved into a fresh file, where to."""

    revision: int
    fresh: CertificateFile | None = None
    moved: Moved = []  # noqa: RUF012  (never changed)


class SavedList:
    """The saved list of one directory, in the state folder. `load` it first, `stop` it last."""

    def __init__(self, reactor: Any, timers: Timers, directory: Directory, state: Path) -> None:
        self.unverified: list[Documents] = []
        """What `load` found that has to be verified anew: it was taken by other rules, or is of an older form."""
        self._reactor = reactor
        self._timers = timers
        self._directory = directory
        self._state = state
        self._file = state / FILE_NAME
        self._rules = store.rules_of(directory.charter)
        self._shelf: CertificateFile | None = None
        self._saved = 0
        """The revision of the list that is on disk."""
        self._saved_at = -SAVE_PAUSE
        self._timer: Any = None
        self._writing = threading.Lock()
        self._written = 0
        """The revision that was written last; a thread that comes late writes nothing."""
        self._busy = False
        self._stopped = False
        self._left_alone = 0
        """How many relays there were when the collector was told."""
        self._homeless: set[bytes] = set()
        """Relays whose certificates are in memory, since there was no room on the disk."""
        self._seldom = Seldom()
        directory.on_change.append(self._changed)

    # --- reading

    def load(self) -> None:
        """Put what was saved into the list. It was verified before it was saved."""
        try:
            data = self._file.read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            log.warn("the saved list of relays cannot be read: {error}", error=error.strerror)
            data = b""
        if data:
            collecting = gc.isenabled()
            gc.disable()  # what is made here stays: to look for garbage in it takes a quarter of the time
            try:
                self._restore(data)
            except (WireError, OSError) as error:
                why = error.reason if isinstance(error, WireError) else error.strerror
                self._put_aside(str(why))
            finally:
                if collecting:
                    gc.enable()
        self._tidy()

    def _restore(self, data: bytes) -> None:
        if store.is_first_form(data):
            self.unverified = [
                Documents(SignedRecord.decode(record).record.id, certificate, record)
                for certificate, record in store.decode_first_form(data)
            ]
            return
        head = store.decode_head(data)
        if head.network_id != self._directory.network_id:
            log.info("the saved list of relays is of another network: it is made anew")
            return
        path = self._certificates(head.generation)
        if not path.exists():
            raise WireError(f"{path.name} is missing")
        shelf = CertificateFile(path, head.generation, self._damaged)
        rows = list(store.decode_rows(data, shelf, shelf.size))
        self._shelf = shelf
        if head.rules != self._rules:
            log.info("the network's charter has changed: {count} saved relays are verified anew", count=len(rows))
            for relay, _ in rows:
                with suppress(ShelfError):
                    self.unverified.append(Documents(relay.id, relay.certificate.raw, relay.record_raw))
            return
        self._directory.restore(rows, self._timers.wall())
        count = len(self._directory)
        log.info("{count} relays from the saved list, {gone} expired", count=count, gone=len(rows) - count)
        self._saved = self._written = self._directory.revision

    def _put_aside(self, why: str) -> None:
        aside = self._file.with_name(f"{FILE_NAME}.damaged")
        log.warn(
            "the saved list of relays is damaged ({why}); it is kept as {name} and made anew", why=why, name=aside.name
        )
        try:
            os.replace(self._file, aside)
        except OSError as error:
            log.warn("it cannot be put aside: {error}", error=error.strerror)

    def _damaged(self, why: str) -> None:
        if self._seldom.is_due("damage", self._timers.now()):
            log.error("a saved certificate cannot be read ({why}): its relay is asked for anew", why=why)

    def _certificates(self, number: int) -> Path:
        return self._state / f"certificates-{number}"

    def _tidy(self) -> None:
        """Remove files of certificates that no index names."""
        mine = self._shelf.number if self._shelf is not None else 0
        try:
            for path in self._state.iterdir():
                match = _CERTIFICATES.fullmatch(path.name)
                if match is not None and int(match[1]) != mine:
                    path.unlink()
        except OSError as error:
            log.warn("old certificates cannot be removed: {error}", error=error.strerror)

    # --- writing

    def _changed(self, relay_id: bytes, relay: Descriptor | None) -> None:
        if relay is not None:
            self._shelve(relay)
            if len(self._directory) >= self._left_alone + MANY:
                self._leave_alone()
        self._save_soon()

    def _leave_alone(self) -> None:
        """Relays have no cycles and stay for days; to look at all of 10,000 again and again takes 50 ms each time."""
        self._left_alone = len(self._directory)
        gc.freeze()

    def _save_soon(self) -> None:
        if self._timer is None and not self._busy and not self._stopped:
            now = self._timers.now()
            self._timer = self._timers.at(max(now + SAVE_SOON, self._saved_at + SAVE_PAUSE), self._due)

    def _shelve(self, relay: Descriptor) -> None:
        """Let a certificate lie in the file, if there is room."""
        certificate = relay.certificate
        if self._shelf is not None and certificate.place[0] is self._shelf:
            return
        self._homeless.discard(relay.id)
        try:
            if self._shelf is None:
                self._shelf = CertificateFile(self._certificates(1), 1, self._damaged)
            certificate.shelve(self._shelf, *self._shelf.append(certificate.raw))
        except OSError as error:
            self._homeless.add(relay.id)
            if self._shelf is not None and not self._shelf.size:
                self._shelf.remove()
                self._shelf = None
            self._full(error)
        except ShelfError:
            self._directory.drop(relay.id)

    def _full(self, error: OSError) -> None:
        if self._seldom.is_due("save", self._timers.now()):
            log.warn("the list of relays cannot be saved: {error}", error=error.strerror)

    def _due(self) -> None:
        self._timer = None
        self.save()

    def save(self) -> None:
        """Write the list in a thread if it is not as it was saved. Without room on the disk, call it again later."""
        if self._directory.revision == self._saved or self._busy or self._stopped:
            return
        self._cancel()
        self._busy = True
        self._saved_at = self._timers.now()
        working = threads.deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._work())
        working.addCallbacks(self._done, self._failed)

    def stop(self) -> None:
        """Write what is not written yet, and no more after it."""
        self._cancel()
        if self._directory.revision != self._saved and not self._stopped:
            try:
                self._done(self._work(breath=0.0, may_move=not self._busy)())
            except OSError as error:
                self._full(error)
        self._stopped = True

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _work(self, breath: float = BREATH, may_move: bool = True) -> Callable[[], Written]:
        """What writes the list as it is now; any thread may call it."""
        directory = self._directory
        for relay in filter(None, map(directory.held, tuple(self._homeless))):
            self._shelve(relay)
        revision = -1 if self._homeless else directory.revision  # what is missing has to be written again
        held, seen, shelf = directory.snapshot(), directory.times(), self._shelf
        return lambda: self._write(held, seen, shelf, revision, breath, may_move)

    def _write(
        self,
        held: Sequence[Descriptor],
        seen: Mapping[bytes, int],
        shelf: CertificateFile | None,
        revision: int,
        breath: float,
        may_move: bool,
    ) -> Written:
        """In a thread."""
        with self._writing:
            if 0 <= revision < self._written or shelf is None:
                return Written(revision)
            rows = [(relay, seen.get(relay.id, 0)) for relay in held if relay.certificate.place[0] is shelf]
            used = sum(relay.certificate.place[2] for relay, _ in rows)
            fresh: CertificateFile | None = None
            moved: Moved = []
            if may_move and shelf.size > 2 * used + WASTE:
                number = shelf.number + 1
                fresh = CertificateFile(self._certificates(number), number, self._damaged, empty=True)
                rows, moved = self._move(rows, fresh, breath)
            encoded: list[bytes] = []
            for start in range(0, len(rows), ROWS_AT_ONCE):
                encoded += map(store.encode_row, rows[start : start + ROWS_AT_ONCE])
                time.sleep(breath)
            (fresh or shelf).sync()
            head = store.Head(self._directory.network_id, self._rules, (fresh or shelf).number)
            write_atomic(self._file, store.encode_index(head, encoded))
            self._written = max(self._written, revision)
            return Written(revision, fresh, moved)

    def _move(self, rows: Sequence[store.Row], fresh: CertificateFile, breath: float) -> tuple[list[store.Row], Moved]:
        """Copy the certificates that are of use; the rows as they are after it."""
        kept: list[store.Row] = []
        moved: Moved = []
        for relay, since in rows:
            try:
                place, size, check = fresh.append(relay.certificate.raw)
            except ShelfError:
                continue
            copy = IdentityCertificate.shelved(relay.certificate.facts, fresh, place, size, check)
            kept.append((Descriptor(copy, relay.record, relay.record_raw), since))
            moved.append((relay.certificate, place, size, check))
            if len(kept) % ROWS_AT_ONCE == 0:
                time.sleep(breath)
        sync_directory(self._state)
        return kept, moved

    def _done(self, written: Written) -> None:
        if self._stopped:
            return  # `stop` wrote after it, and the files are as that says
        self._busy = False
        self._saved = written.revision
        if len(self._directory) > max(self._left_alone, MANY):
            self._leave_alone()  # and what others made of the relays meanwhile
        if written.fresh is not None:
            old, self._shelf = self._shelf, written.fresh
            for certificate, place, size, check in written.moved:
                certificate.shelve(written.fresh, place, size, check)
            for relay in self._directory.snapshot():
                self._shelve(relay)  # those that came while the others moved
            assert old is not None
            old.remove()
        if self._directory.revision != self._saved:
            self._save_soon()

    def _failed(self, failure: Any) -> None:
        self._busy = False
        if isinstance(failure.value, OSError):
            self._full(failure.value)
        else:
            log.failure("bug while saving the list of relays", failure)
        self._save_soon()
