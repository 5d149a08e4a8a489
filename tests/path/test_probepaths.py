"""Paths of probes: everybody has a turn, and no rule is broken."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.policy import ExitPolicy
from backrooms.path.constraints import Constraints
from backrooms.path.declared import notes
from backrooms.path.probepaths import ProbePaths, probe_hops
from backrooms.path.roster import Candidate, Roster, conflict
from tests import keys


def rows(*relays: Descriptor) -> list[Candidate]:
    return list(Roster.of(relays).rows())


def paths_over(found: list[Candidate], hops: int = 3, focus: tuple[bytes, ...] = ()) -> ProbePaths:
    return ProbePaths(found, Constraints(), hops, {row.id for row in found}, focus)


@pytest.mark.parametrize(
    ("level", "relays", "hops"), [(3, 6, 3), (3, 100, 3), (3, 4, 2), (3, 3, 2), (1, 9, 1), (4, 6, 3)]
)
def test_probes_are_so_short_that_half_of_the_relays_are_not_on_one(level: int, relays: int, hops: int) -> None:
    assert probe_hops(level, relays) == hops


def test_every_relay_has_its_turn_in_every_place_and_company() -> None:
    found = rows(*(keys.fake_relay(number, capacity=10**number) for number in range(8)))
    paths, rng = paths_over(found), random.Random(1)
    places: Counter[tuple[int, bytes]] = Counter()
    pairs: Counter[frozenset[bytes]] = Counter()
    for _ in range(400):
        path = paths.next(rng)
        assert path is not None
        places.update((place, relay.id) for place, relay in enumerate(path))
        pairs.update(frozenset((a.id, b.id)) for a in path for b in path if a.id < b.id)
    assert max(paths.turns.values()) - min(paths.turns.values()) <= 5
    assert len(places) == 24
    assert min(places.values()) > 25
    assert len(pairs) == 28
    assert min(pairs.values()) > 15


def test_no_rule_is_broken() -> None:
    """Half of the relays are in the /16 of another one."""
    found = rows(*(keys.fake_relay(number, address=f"tls:11.{number // 2}.0.{number}:443") for number in range(8)))
    paths, rng = paths_over(found), random.Random(2)
    by_id = {row.id: row for row in found}
    for _ in range(200):
        path = paths.next(rng)
        assert path is not None
        chosen = [by_id[relay.id] for relay in path]
        assert all(conflict(a, b, Constraints()) is None for a in chosen for b in chosen if a is not b)


def test_only_entries_enter() -> None:
    found = rows(*(keys.fake_relay(number) for number in range(6)))
    paths = ProbePaths(found, Constraints(), 3, {found[0].id, found[1].id})
    rng = random.Random(3)
    entries = {path[0].id for _ in range(60) if (path := paths.next(rng)) is not None}
    assert entries == {found[0].id, found[1].id}
    assert ProbePaths(found, Constraints(), 3, ()).next(rng) is None


def test_those_in_question_are_on_most_paths_and_one_at_a_time() -> None:
    found = rows(*(keys.fake_relay(number) for number in range(8)))
    focus = (found[0].id, found[1].id)
    paths, rng = paths_over(found, focus=focus), random.Random(4)
    counts = Counter(
        sum(relay.id in focus for relay in path) for _ in range(200) if (path := paths.next(rng)) is not None
    )
    assert set(counts) == {0, 1}
    assert 110 < counts[1] < 170, "the rest shows what is usual"


def test_where_there_is_no_path_there_is_none() -> None:
    found = rows(*(keys.fake_relay(number, address=f"tls:11.1.0.{number}:443") for number in range(4)))
    paths = paths_over(found)
    assert paths.next(random.Random(5)) is None
    assert paths.ending(found[0].id, 3, random.Random(5)) is None
    assert paths.ending(bytes(32), 3, random.Random(5)) is None


def test_a_path_to_an_exit_ends_there() -> None:
    found = rows(*(keys.fake_relay(number, exit_policy=ExitPolicy.reduced()) for number in range(6)))
    entries = {row.id for row in found[:2]}
    paths = ProbePaths(found, Constraints(), 3, entries)
    for seed in range(30):
        path = paths.ending(found[3].id, 3, random.Random(seed))
        assert path is not None
        assert len({relay.id for relay in path}) == 3
        assert path[-1].id == found[3].id
        assert path[0].id in entries


# what relays say of themselves


def told(*relays: Descriptor) -> list[str]:
    """The notes on the first one."""
    by_id = Roster.of(relays).by_id
    return notes(by_id[relays[0].id], by_id)


def test_a_family_that_does_not_name_it_is_noted() -> None:
    a, b = keys.fake_relay(0, nickname="a"), keys.fake_relay(1, nickname="b")
    claims = keys.fake_relay(0, family=(b.id,), nickname="claims")
    assert told(claims, b) == ["names b as its family, which does not name it"]
    assert told(b, claims) == ["is named as family by claims, and does not name it"]
    both = keys.fake_relay(1, family=(a.id,))
    assert told(keys.fake_relay(0, family=(b.id,)), both) == []


def test_one_operator_without_a_family_is_noted() -> None:
    a, b, c = (
        keys.descriptor(number, operator="ACME  Inc", address=f"tls:{number + 5}.1.0.1:1") for number in range(3)
    )
    assert told(a, b, c) == ["says that it is run by the operator of relay1, relay2, without a family of both"]


def test_neighbours_without_a_family_are_noted() -> None:
    near = [
        keys.fake_relay(number, address=f"tls:11.1.0.{number + 1}:443", nickname=f"n{number}") for number in range(6)
    ]
    assert told(*near) == ["is in the /16 or /32 of n1, n2, n3 and 2 more, without a family of both"]
