"""How many bytes a node may carry in a period, and what is left of them.

Periods and rules are those of Tor's AccountingStart and AccountingRule. What happens when the bytes are used up is in
`node.hibernation`; docs/decisions/014-bandwidth.md says why it is as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from twisted.logger import Logger

from backrooms.interfaces import Rng
from backrooms.node.statefile import StateFile, read_json
from backrooms.node.timers import Timers

log = Logger()

Hibernating = Literal["awake", "soft", "hard"]
"""`soft`: what runs goes on, nothing new is taken; `hard`: nothing passes."""
Rule = Literal["max", "sum", "in", "out"]

LOOK = 1.0
"""Seconds between looks at what the links have carried."""
SAVE = 60.0
"""Seconds, at least, between writes of the file."""
SOFT_PART = 0.05
SOFT_BYTES = 500 * 1024 * 1024
"""With no more left than this part of the limit, and than this many bytes, nothing new is taken; as Tor does."""
LONGEST = 32 * 86400
"""Seconds that no period is longer than."""
SCHEMA = 1
FILE_NAME = "accounting.json"
_MAX_FILE = 1 << 16
_FIELDS = {"schema", "start", "wake", "read", "written", "exhausted_after"}


@dataclass(frozen=True, slots=True)
class AccountingState:
    """What `GETINFO accounting/...` tells: bytes so far and left, and times in seconds since 1970."""

    hibernating: Hibernating
    read: int
    written: int
    read_left: int
    written_left: int
    start: float
    wake: float
    """When in this period the node wakes up."""
    end: float


def period_around(period: str, wall: float) -> tuple[float, float]:
    """The beginning and the end of the period that contains the time `wall`, by the local calendar.

    `period` is "month DAY HH:MM" (day 1 to 28), "week DAY HH:MM" (1 is Monday) or "day HH:MM".
    """
    kind, *days, time = period.split()
    hour, minute = map(int, time.split(":"))
    now = datetime.fromtimestamp(wall)
    begin = now.replace(hour=hour, minute=minute, second=0, microsecond=0, fold=0)
    if kind == "month":
        begin = begin.replace(day=int(days[0]))
    elif kind == "week":
        begin -= timedelta(days=now.weekday() - int(days[0]) + 1)
    if begin.timestamp() > wall:
        begin = _step(kind, begin, -1)
    end = _step(kind, begin, 1)
    if end.timestamp() <= wall:
        begin, end = end, _step(kind, end, 1)
    return begin.timestamp(), end.timestamp()


def _step(kind: str, when: datetime, count: int) -> datetime:
    """The beginning of the next period or the one before."""
    if kind == "month":
        months = when.year * 12 + when.month - 1 + count
        return when.replace(year=months // 12, month=months % 12 + 1)
    return when + timedelta(days=count * (7 if kind == "week" else 1))


class Accounting:
    """Counts what the links carry, and says when that is enough.

    `on_change(hibernating)` is called at each change, and once at the start unless the node is awake.
    """

    def __init__(
        self,
        timers: Timers,
        traffic: Callable[[], tuple[int, int]],
        state: Path,
        rng: Rng,
        limit: int = 0,
        period: str = "month 1 00:00",
        rule: Rule = "max",
    ) -> None:
        """`traffic()` gives bytes read and written since the start; `limit` is in bytes, 0 for none."""
        self.on_change: Callable[[Hibernating], None] = lambda hibernating: None
        self.hibernating: Hibernating = "awake"
        self._timers = timers
        self._traffic = traffic
        self._file = StateFile(state / FILE_NAME, timers, _MAX_FILE, "counting starts afresh")
        self._rng = rng
        self._limit, self._period, self._rule = limit, period, rule
        self._start = self._wake = self._end = 0.0
        self._read = self._written = 0
        self._seen = (0, 0)
        self._exhausted_after: float | None = None
        """Seconds awake in which the limit was reached."""
        self._saved_at = -SAVE
        self._unsaved = False
        self._timer: Any = None

    def start(self) -> None:
        """Go on counting where the last run left off. Does nothing without a limit."""
        if self._limit and self._timer is None:
            self._start, self._end = period_around(self._period, self._timers.wall())
            self._wake = self._start
            self._load()
            self._seen = self._traffic()
            self._look()

    def stop(self) -> None:
        """Count the last bytes and save."""
        if self._timer is not None:
            self._count()
            self._timer.cancel()
            self._timer = None
            self._save()

    def configure(self, limit: int, period: str, rule: Rule) -> None:
        """Set the limit anew; what has been carried in this period stays counted."""
        running, same = self._timer is not None, period == self._period
        self._limit, self._period, self._rule = limit, period, rule
        if not running:
            self.start()
        elif limit:
            self._exhausted_after = None
            if not same:
                self._start, self._end = period_around(period, self._timers.wall())
                self._wake = self._start
            self._timer.cancel()
            self._look()
        else:
            self.stop()
            self._become("awake", "there is no limit for a period any more: this node is awake")

    def state(self) -> AccountingState | None:
        """How things stand; None without a limit."""
        if not self._limit:
            return None
        self._count()
        lefts = self._lefts()
        # Tor's words: what no rule bounds has the whole limit left.
        read_left, written_left = lefts.get("in", self._limit), lefts.get("out", self._limit)
        return AccountingState(
            self.hibernating,
            self._read,
            self._written,
            max(0, read_left),
            max(0, written_left),
            self._start,
            self._wake,
            self._end,
        )

    def _lefts(self) -> dict[str, int]:
        """Bytes left each way, negative when there was more; a way that the rule does not bound is missing."""
        if self._rule == "sum":
            left = self._limit - self._read - self._written
            return {"in": left, "out": left}
        lefts = {"in": self._limit - self._read, "out": self._limit - self._written}
        return lefts if self._rule == "max" else {self._rule: lefts[self._rule]}

    # looking

    def _look(self) -> None:
        self._timer = self._timers.at(self._timers.now() + LOOK, self._look)
        self._count()
        wall = self._timers.wall()
        if not self._start <= wall < self._end:
            self._move(wall)
        left = min(self._lefts().values())
        until = datetime.fromtimestamp(self._end if left <= 0 else self._wake).strftime("%Y-%m-%d %H:%M")
        if left <= 0:
            if self._exhausted_after is None:
                self._exhausted_after = max(1.0, wall - self._wake)
            self._become("hard", f"the bytes of this accounting period are used up: this node hibernates until {until}")
        elif wall < self._wake:
            self._become("hard", f"this node hibernates until {until}: the bytes of a period do not last for all of it")
        elif left <= min(self._limit * SOFT_PART, SOFT_BYTES):
            self._become("soft", "few bytes of this accounting period are left: no new links and circuits are taken")
        else:
            self._become("awake", "this accounting period has bytes left: this node is awake")
        if self._unsaved and self._timers.now() - self._saved_at >= SAVE:
            self._save()

    def _count(self) -> None:
        read, written = self._traffic()
        if (read, written) != self._seen:
            self._unsaved = True
        self._read += read - self._seen[0]
        self._written += written - self._seen[1]
        self._seen = (read, written)

    def _move(self, wall: float) -> None:
        """The time is not in our period any more. A clock that was set back keeps what was counted."""
        before = self._start
        self._start, self._end = period_around(self._period, wall)
        self._unsaved = True
        if self._start < before:
            self._wake = self._start
            return
        self._read = self._written = 0
        self._wake = self._start
        took, self._exhausted_after = self._exhausted_after, None
        if took is not None:
            # All relays of a network would be awake, and asleep, at the same time if each woke at the beginning.
            self._wake += self._rng.random() * max(0.0, self._end - self._start - took)

    def _become(self, hibernating: Hibernating, text: str) -> None:
        if hibernating != self.hibernating:
            self.hibernating = hibernating
            log.info("{text}", text=text)
            self._save()
            self.on_change(hibernating)

    # keeping

    def _load(self) -> None:
        found = self._file.load(_parsed)
        if found is None:
            return
        self._start, self._wake = found["start"], found["wake"]
        self._read, self._written = found["read"], found["written"]
        self._exhausted_after = found["exhausted_after"]
        wall = self._timers.wall()
        if self._start != period_around(self._period, wall)[0]:
            self._move(wall)

    def _save(self) -> None:
        self._saved_at = self._timers.now()
        what = {
            "schema": SCHEMA,
            "start": self._start,
            "wake": self._wake,
            "read": self._read,
            "written": self._written,
            "exhausted_after": self._exhausted_after,
        }
        self._unsaved = not self._file.save(json.dumps(what) + "\n")


def _parsed(data: bytes) -> dict[str, Any]:
    """What `_save` wrote; `ValueError` for anything else."""
    found = read_json(data)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or set(found) != _FIELDS:
        raise ValueError(f"not an accounting file of schema {SCHEMA}")
    for name in _FIELDS:
        value = found[name]
        kinds: tuple[type, ...] = (int,) if name in ("read", "written") else (int, float)
        if value is None and name == "exhausted_after":
            continue
        if type(value) not in kinds or not 0 <= value < 1 << 62:
            raise ValueError(f"{name} is not a number of its kind")
    if not 0 <= found["wake"] - found["start"] <= LONGEST:
        raise ValueError("wake is not in the period")
    return found
