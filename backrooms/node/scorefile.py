"""The scores of relays on disk, for the next start."""

from __future__ import annotations

import json
import os
from pathlib import Path

from twisted.logger import Logger

from backrooms.keystore.disk import write_atomic
from backrooms.node.logs import Seldom
from backrooms.node.timers import Timers
from backrooms.path.reputation import Reputation

log = Logger()

FILE_NAME = "scores.json"
KEPT_ASIDE = 9
"""Damaged files that are kept, at most."""
_MAX_FILE = 8 << 20


class ScoreFile:
    """The file `scores.json` in the state folder: JSON that people can read."""

    def __init__(self, state: Path, timers: Timers) -> None:
        self._file = state / FILE_NAME
        self._timers = timers
        self._seldom = Seldom()

    def load(self) -> Reputation:
        """What was saved. A file that is not as it should be is kept aside and told of; the scores are empty then."""
        try:
            with self._file.open("rb") as file:
                data = file.read(_MAX_FILE + 1)
            if len(data) > _MAX_FILE:
                raise ValueError("it is too long")
            return Reputation.from_json(json.loads(data), self._timers.wall())
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warn("{file} cannot be read: {why}; all relays are unknown again", file=FILE_NAME, why=error.strerror)
        except (ValueError, RecursionError) as error:
            log.warn(
                "{file} is not as it should be ({why}); it is kept as {kept}, and all relays are unknown again",
                file=FILE_NAME,
                why=str(error),
                kept=self._keep_aside(),
            )
        return Reputation()

    def _keep_aside(self) -> str:
        names = [f"{FILE_NAME}.damaged-{number}" for number in range(1, KEPT_ASIDE + 1)]
        name = next((one for one in names if not self._file.with_name(one).exists()), names[-1])
        os.replace(self._file, self._file.with_name(name))
        return name

    def save(self, reputation: Reputation) -> None:
        """Write the scores; without room on the disk they are not kept for the next start, and that is told."""
        try:
            write_atomic(self._file, (json.dumps(reputation.to_json(), indent=1) + "\n").encode())
        except OSError as error:
            if self._seldom.is_due("save", self._timers.now()):
                log.warn("{file} cannot be written: {why}", file=FILE_NAME, why=error.strerror)
