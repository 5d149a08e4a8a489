"""The guards of this client: kept on disk, and told what happens to them.

The file `guards.json` in the state folder is written when the sample changes, not when a guard is used. It is replaced
whole, so it is there in the old form or the new one whenever the process dies.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from twisted.logger import Logger

from backrooms.crypto.keys import fingerprint, parse_id, text_id
from backrooms.errors import PathError
from backrooms.interfaces import Rng
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory
from backrooms.node.logs import Seldom
from backrooms.node.statefile import StateFile, read_json
from backrooms.node.timers import Timers
from backrooms.path.constraints import Position
from backrooms.path.guards import (
    LAYER2_MOST,
    SAMPLE_LIMIT,
    Allowed,
    Guard,
    GuardSample,
    Second,
    drawing,
    first_hops,
)
from backrooms.path.selector import PathSelector

log = Logger()

FILE_NAME = "guards.json"
SCHEMA = 1
KNOWN_ENOUGH = 0.8
"""A sample stays when the list turns out to be whole, if this part of it was known when it was drawn."""
PATIENCE = 600.0
"""Seconds after which the list of relays counts as whole even if it has not settled."""
_MAX_FILE = 1 << 20
_MAX_REASON = 200
_FARTHEST = 6e10
"""Seconds from 1970, before or after: what is nearer can be written as a date."""


class GuardStatus(NamedTuple):
    """What is told of one guard. `status` is in Tor's words, `since` in seconds since 1970, None if there is none."""

    fingerprint: str
    nickname: str
    status: str
    since: float | None


class Guards:
    """Chooses first and second hops, and remembers them."""

    def __init__(
        self, timers: Timers, directory: Directory, state: Path, rng: Rng, settled: Callable[[], bool] = lambda: True
    ) -> None:
        """`settled` says whether the directory is complete."""
        self._timers = timers
        self._directory = directory
        self._file = StateFile(state / FILE_NAME, timers, _MAX_FILE, "guards are chosen anew")
        self._rng = rng
        self._settled = settled
        self._began = timers.now()
        self._seldom = Seldom()
        self._updated_for = -1
        self._updated_at = float("-inf")
        self.sample = self._file.load(lambda data: from_text(data, directory.network_id)) or GuardSample()
        self._kept = bool(self.sample.guards) and not self.sample.drawn_from
        """Whether this is our sample for good. One drawn from half a list is replaced when the list is whole."""

    # choosing

    def first(self, selector: PathSelector) -> list[list[Descriptor]]:
        """Entries for a path, as groups to try one after the other. Empty: nothing can be done but to wait.

        `PathError` when waiting will not help.
        """
        self._look_at_list()
        whole, count = self._is_whole(), len(self._directory)
        allowed = Allowed(selector, Position.ENTRY)
        if whole and not self._kept and self.sample.drawn_from < KNOWN_ENOUGH * count:
            self.sample = GuardSample(seconds=self.sample.seconds.values())
        if whole or not self._kept:
            self._kept = whole
            if whole and self.sample.drawn_from:
                self.sample.drawn_from, self.sample.changed = 0, True
            elif not whole and not self.sample.guards:
                self.sample.drawn_from = count
            draw = drawing(selector, Position.ENTRY, self.sample.guards, self._rng)
            self.sample.extend(
                allowed, len(selector.table(Position.ENTRY)), count, draw, self._timers.wall(), self._rng
            )
        groups = first_hops(self.sample.candidates(allowed, self._timers.wall()))
        self.save()
        if not groups and whole:
            given_up = sum(guard.distrusted is not None for guard in self.sample.guards.values())
            raise PathError(
                f"no guard: of {count} relays known {len(selector.table(Position.ENTRY))} may be the entry, the sample "
                f"has {len(self.sample.guards)} of which {given_up} were given up; nothing was relaxed"
            )
        return [self._descriptors(group) for group in groups]

    def second(self, selector: PathSelector) -> list[Descriptor]:
        """The second hops in use that the selector allows there."""
        found = self.sample.second_hops(
            Allowed(selector, Position.MIDDLE),
            drawing(selector, Position.MIDDLE, self.sample.guards, self._rng),
            self._timers.wall(),
            self._rng,
        )
        self.save()
        return self._descriptors(found)

    def add_second(self, relay: Descriptor) -> bool:
        """Use one more second hop, since a path could not be had with the others; False if there are too many."""
        added = self.sample.add_second(relay.id, self._timers.wall(), self._rng)
        self.save()
        return added

    def is_outdone(self, relay_id: bytes, selector: PathSelector, since: float) -> bool:
        """Whether an unused circuit through this entry, built `since` then (unix seconds), should be replaced."""
        return self.sample.is_outdone(relay_id, Allowed(selector, Position.ENTRY), since)

    def due_before(self, relay_id: bytes, selector: PathSelector) -> list[bytes]:
        """Guards that are better than this entry and of which it is time to see if they are back."""
        return self.sample.due_before(relay_id, Allowed(selector, Position.ENTRY), self._timers.wall())

    def _descriptors(self, ids: Any) -> list[Descriptor]:
        return [one for one in map(self._directory.get, ids) if one is not None]

    def _is_whole(self) -> bool:
        return self._settled() or self._timers.now() - self._began >= PATIENCE

    def _look_at_list(self) -> None:
        """Note who has left the list, once it is whole: what is missing in half a list has not left."""
        now = self._timers.now()
        if (self._updated_for != self._directory.revision or now - self._updated_at > 3600) and self._is_whole():
            self._updated_for, self._updated_at = self._directory.revision, now
            self.sample.update(self._directory, self._timers.wall(), self._rng)

    # what happens

    def reached(self, relay_id: bytes, confirm: bool = True) -> None:
        """The first hop of a circuit answered; `confirm` if the order of the guards chose it."""
        self.sample.reached(relay_id, self._timers.wall(), self._rng, confirm)
        self.save()

    def failed(self, relay_id: bytes) -> None:
        """The first hop of a circuit could not be reached, or did not answer."""
        self.sample.failed(relay_id, self._timers.wall())

    def missed(self, relay_id: bytes) -> None:
        """It could not be reached a moment ago, whatever for: that counts like a circuit that failed there."""
        guard = self.sample.guards.get(relay_id)
        if guard is not None and guard.up is not False:
            self.failed(relay_id)

    def distrust(self, relay_id: bytes, reason: str) -> bool:
        """Use a relay as a guard no more; whether that changed anything. Said in the log, with the reason."""
        name = fingerprint(relay_id)[:8]
        guard = self.sample.guards.get(relay_id)
        if guard is None or guard.distrusted is not None:
            return False
        if not self.sample.distrust(relay_id, reason[:_MAX_REASON], self._timers.wall(), self._rng):
            if self._seldom.is_due("distrust", self._timers.now()):
                log.warn(
                    "guard {relay} stays, though {why}: too many guards were given up lately", relay=name, why=reason
                )
            return False
        log.warn("guard {relay} is not used any more: {why}", relay=name, why=reason)
        self.save()
        return True

    def status(self) -> list[GuardStatus]:
        """The guards in the order in which they are used, then those that are not usable now."""
        ranked = self.sample.ranked(self._directory)
        others = [one for one in self.sample.guards.values() if one not in ranked]
        return [self._status(guard) for guard in [*ranked, *others]]

    def _status(self, guard: Guard) -> GuardStatus:
        relay = self._directory.get(guard.id)
        word, since = "never-connected", None
        if relay is None or guard.distrusted is not None:
            word, since = "unusable", guard.unlisted if guard.distrusted is None else guard.distrusted
        elif guard.up is not None:
            word, since = ("up" if guard.up else "down"), guard.since
        return GuardStatus(fingerprint(guard.id), relay.nickname if relay is not None else "", word, since)

    # keeping

    def save(self) -> None:
        """Write the file, if it does not say what it should."""
        if not self.sample.changed:
            return
        self.sample.changed = not self._file.save(to_text(self.sample, self._directory.network_id))


def to_text(sample: GuardSample, network_id: bytes) -> str:
    """The file: JSON that people can read."""
    guards = [
        {
            "id": text_id(guard.id),
            "added": _date(guard.added),
            "confirmed": _date(guard.confirmed),
            "order": guard.order,
            "unlisted": _date(guard.unlisted),
            "distrusted": _date(guard.distrusted),
            "reason": guard.reason,
        }
        for guard in sample.guards.values()
    ]
    seconds = [{"id": text_id(second.id), "until": _date(second.until)} for second in sample.seconds.values()]
    whole = {
        "schema": SCHEMA,
        "network": network_id.hex(),
        "drawn_from": sample.drawn_from,
        "guards": guards,
        "second_hops": seconds,
    }
    return json.dumps(whole, indent=1) + "\n"


def from_text(data: bytes, network_id: bytes) -> GuardSample:
    """What `to_text` wrote. `ValueError` says what is wrong with it."""
    whole = read_json(data)
    kinds = {"schema": int, "network": str, "drawn_from": int, "guards": list, "second_hops": list}
    _need(whole, kinds, "the file")
    if whole["schema"] != SCHEMA:
        raise ValueError(f"schema {whole['schema']}, this version reads {SCHEMA}")
    if whole["network"] != network_id.hex():
        raise ValueError("it belongs to another network")
    if len(whole["guards"]) > SAMPLE_LIMIT or len(whole["second_hops"]) > LAYER2_MOST:
        raise ValueError("too many guards")
    sample = GuardSample(map(_guard, whole["guards"]), map(_second, whole["second_hops"]))
    sample.drawn_from = max(0, whole["drawn_from"])
    if len(sample.guards) != len(whole["guards"]) or len(sample.seconds) != len(whole["second_hops"]):
        raise ValueError("a guard is there twice")
    return sample


def _guard(entry: Any) -> Guard:
    maybe = (str, type(None))
    kinds = {"id": str, "added": str, "order": int, "reason": str}
    _need(entry, {**kinds, "confirmed": maybe, "unlisted": maybe, "distrusted": maybe}, "a guard")
    if not 0 <= entry["order"] < 1 << 31 or (entry["order"] == 0) != (entry["confirmed"] is None):
        raise ValueError("a guard's order is not a place among the confirmed")
    return Guard(
        parse_id(entry["id"]),
        _seconds(entry["added"]),
        None if entry["confirmed"] is None else _seconds(entry["confirmed"]),
        entry["order"],
        None if entry["unlisted"] is None else _seconds(entry["unlisted"]),
        None if entry["distrusted"] is None else _seconds(entry["distrusted"]),
        entry["reason"][:_MAX_REASON],
    )


def _second(entry: Any) -> Second:
    _need(entry, {"id": str, "until": str}, "a second hop")
    return Second(parse_id(entry["id"]), _seconds(entry["until"]))


def _need(value: Any, fields: dict[str, Any], what: str) -> None:
    """`ValueError` unless this is a table with just these fields, each of its type."""
    if not isinstance(value, dict) or set(value) != set(fields):
        raise ValueError(f"{what} does not have the fields {', '.join(sorted(fields))}")
    for name, kind in fields.items():
        if not isinstance(value[name], kind) or isinstance(value[name], bool):
            raise ValueError(f"{name} of {what} is of the wrong type")


def _date(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(text: str) -> float:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text!r} does not say its time zone")
    seconds = found.timestamp()
    if abs(seconds) > _FARTHEST:
        raise ValueError(f"{text!r} is a time out of bounds")
    return seconds
