"""The relays that paths are chosen from, each with all that constraints and weights ask about it.

A row is made once for each descriptor, so that a change of one relay costs little in a list of ten thousand.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.geo import NOWHERE, Place
from backrooms.path.blocs import Blocs, blocs_of
from backrooms.path.constraints import Constraints

PlacesOf: TypeAlias = Callable[[Descriptor], tuple[Place, ...]]

SLOW_START = 7 * 86400.0
"""Seconds for which a relay must have been seen until it has its full weight, in a network that is older."""
AGES_TELL = 3600.0
"""While fewer than `OLD_PART` of the relays have been seen for this long, all have their full weight."""
OLD_PART = 0.25
"""New relays are measured by the age that this part of all relays has reached."""
NEW_FLOOR = 0.05
"""The part of its weight that a relay has when it is seen first."""

GROUPS = ("/16", "/32", "AS", "family", "operator")
"""What relays may have in common, so that one party may run them all."""


class Candidate:
    """One relay as path choice sees it. Only `kin`, `groups` and `weight` change."""

    __slots__ = (
        "asns", "capacity", "groups", "id", "is_exit", "kin", "operator", "places", "regions", "relay", "subnets",
        "weight",
    )  # fmt: skip

    def __init__(self, relay: Descriptor, places: tuple[Place, ...], regions: Callable[[str], frozenset[str]]) -> None:
        self.relay = relay
        self.id = relay.id
        self.is_exit = relay.is_exit
        self.subnets = relay.subnets()
        self.operator = " ".join(relay.operator.casefold().split())
        self.places = places
        self.asns = frozenset(place.asn for place in places if place.asn)
        self.regions: frozenset[str] | None = None
        """Countries and blocs of all its addresses; None if the country of one is unknown."""
        if places and all(place.country for place in places):
            self.regions = frozenset().union(*(regions(place.country) for place in places))
        self.kin: set[bytes] = set()
        """Relays that it names as its family and that name it."""
        self.capacity = float(max(1, relay.capacity))
        self.weight = self.capacity
        """By capacity and age, before any cap."""
        self.groups: tuple[str, ...] = ()
        """What has a share of selection together: words such as "AS 64500"; the first one is a kind of `GROUPS`."""
        self.regroup()

    def regroup(self) -> None:
        """Set `groups` after a change of `kin`."""
        groups = [f"/32 {net}" if ":" in net else f"/16 {net}" for net in self.subnets]
        groups += [f"AS {asn}" for asn in self.asns]
        groups += [f"family {key.hex()}" for key in self.relay.family_keys]
        if self.kin:
            groups.append(f"family {min(self.id, *self.kin).hex()}")
        if self.operator:
            groups.append(f"operator {self.operator}")
        self.groups = tuple(groups)


def conflict(a: Candidate, b: Candidate, constraints: Constraints) -> str | None:
    """Why two relays may not stand on one path; None if they may."""
    if a.id == b.id:
        return "on the path already"
    if constraints.distinct_subnets and not a.subnets.isdisjoint(b.subnets):
        return "in the /16 or /32 of another relay of the path"
    if constraints.distinct_families and (b.id in a.kin or not a.relay.family_keys.isdisjoint(b.relay.family_keys)):
        return "of the family of another relay of the path"
    if a.operator and a.operator == b.operator:
        return "of the operator of another relay of the path"
    if a.asns and not a.asns.isdisjoint(b.asns):
        return "in the AS of another relay of the path"
    return None


class Roster:
    """All known relays by rising id. `version` counts changes."""

    def __init__(self, places: PlacesOf | None = None, blocs: Blocs | None = None) -> None:
        """Without `places` nothing is known of where relays are."""
        self.version = 0
        self.by_id: dict[bytes, Candidate] = {}
        self.changed: list[Callable[[bytes], None]] = []
        """Called with the id of a relay that came, changed or went."""
        self._places = places or (lambda relay: (NOWHERE,) * len(relay.addresses))
        self._blocs = blocs or {}
        self._regions: dict[str, frozenset[str]] = {}
        self._seen: Mapping[bytes, float] = {}
        self._now = 0.0
        self._full = 0.0
        """The age from which on a relay has its full weight."""
        self._ids: list[bytes] = []
        self._rows: list[Candidate] | None = None

    @classmethod
    def of(cls, relays: Iterable[Descriptor], places: PlacesOf | None = None, blocs: Blocs | None = None) -> Roster:
        """A roster with these relays."""
        roster = cls(places, blocs)
        for relay in relays:
            roster.put(relay.id, relay)
        return roster

    def __len__(self) -> int:
        return len(self.by_id)

    def rows(self) -> list[Candidate]:
        """All by rising id. The same list until something changes: do not alter it."""
        if self._rows is None:
            self._rows = [self.by_id[one] for one in self._ids]
        return self._rows

    def put(self, relay_id: bytes, relay: Descriptor | None) -> None:
        """Take in what is known of a relay now, None when it is gone: about 10 microseconds."""
        old = self.by_id.pop(relay_id, None)
        if old is not None:
            for other in old.kin:
                self.by_id[other].kin.discard(relay_id)
                self.by_id[other].regroup()
        if relay is not None:
            row = Candidate(relay, self._places(relay), self._region)
            for other in relay.family:
                known = self.by_id.get(other)
                if known is not None and relay_id in known.relay.family:
                    row.kin.add(other)
                    known.kin.add(relay_id)
                    known.regroup()
            if row.kin:
                row.regroup()
            if old is None:
                insort(self._ids, relay_id)
            self._age(row)
            self.by_id[relay_id] = row
        elif old is not None:
            del self._ids[bisect_left(self._ids, relay_id)]
        else:
            return
        self._rows = None
        self.version += 1
        for tell in self.changed:
            tell(relay_id)

    def _region(self, country: str) -> frozenset[str]:
        """A country and the blocs that it is in."""
        region = self._regions.get(country)
        if region is None:
            region = self._regions[country] = blocs_of(country, self._blocs) | {country}
        return region

    def weigh(self, seen: Mapping[bytes, float], now: float) -> None:
        """Set all weights by capacity and by how long each relay has been seen (`seen`: since when, unix seconds).

        Ages are relative: new relays are measured by those that have been seen longest, so that a network or a node
        that is itself new does not lack relays.
        """
        rows = self.rows()
        starts = [seen.get(row.id, now) for row in rows]
        full = min(SLOW_START, now - sorted(starts)[int(len(starts) * OLD_PART)]) if starts else 0.0
        self._seen, self._now, self._full = seen, now, full
        for row in rows:
            self._age(row)

    def _age(self, row: Candidate) -> None:
        row.weight = row.capacity
        if self._full >= AGES_TELL:
            age = self._now - self._seen.get(row.id, self._now)
            if age < self._full:
                row.weight *= max(NEW_FLOOR, age / self._full)
