"""The list of relays on disk, for the next start."""

from __future__ import annotations

from pathlib import Path

from twisted.logger import Logger

from backrooms.errors import WireError
from backrooms.keystore.disk import write_atomic
from backrooms.netdir.directory import Directory
from backrooms.node.logs import Seldom
from backrooms.node.timers import Timers

log = Logger()

FILE_NAME = "relays"


class SavedList:
    """The file `relays` in the state folder."""

    def __init__(self, state: Path, directory: Directory, timers: Timers) -> None:
        self._file = state / FILE_NAME
        self._directory = directory
        self._timers = timers
        self._saved = 0
        """The revision of the list that is on disk."""
        self._seldom = Seldom()

    def load(self) -> None:
        """Add what was saved to the list, verified anew."""
        try:
            data = self._file.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            log.warn("the saved list of relays cannot be read: {error}", error=error.strerror)
            return
        try:
            refused = self._directory.restore(data, self._timers.wall())
        except WireError as error:
            log.warn("saved list of relays is damaged and left alone: {error}", error=error.reason)
            return
        count = len(self._directory)
        log.info("{count} relays from the saved list, {refused} expired", count=count, refused=refused)
        self._saved = self._directory.revision

    def save(self) -> None:
        """Save the list if it is not as it was saved. Without room on the disk, call it again later."""
        if self._directory.revision == self._saved:
            return
        try:
            write_atomic(self._file, self._directory.to_bytes())
            self._saved = self._directory.revision
        except OSError as error:
            if self._seldom.is_due("save", self._timers.now()):
                log.warn("the list of relays cannot be saved: {error}", error=error.strerror)
