"""The scores of relays on disk, for the next start."""

from __future__ import annotations

import json
from pathlib import Path

from backrooms.node.statefile import StateFile, read_json
from backrooms.node.timers import Timers
from backrooms.path.reputation import Reputation

FILE_NAME = "scores.json"
_MAX_FILE = 8 << 20


class ScoreFile:
    """The file `scores.json` in the state folder: JSON that people can read."""

    def __init__(self, state: Path, timers: Timers) -> None:
        self._file = StateFile(state / FILE_NAME, timers, _MAX_FILE, "all relays are unknown again")
        self._timers = timers

    def load(self) -> Reputation:
        """What was saved. Without a file that can be used, the scores are empty."""
        found = self._file.load(lambda data: Reputation.from_json(read_json(data), self._timers.wall()))
        return Reputation() if found is None else found

    def save(self, reputation: Reputation) -> None:
        """Write the scores; without room on the disk they are not kept for the next start, and that is told."""
        self._file.save(json.dumps(reputation.to_json(), indent=1) + "\n")
