"""Routes, rules that leave little, positions that only some may take, and explanations that are exact."""

from __future__ import annotations

import random
import re
import time
from collections import Counter

import pytest

from backrooms.errors import LocalProtocolError, PathError
from backrooms.levels import HIGH, LOW, MEDIUM, NONE, parse_level
from backrooms.netdir.descriptor import Descriptor
from backrooms.path.constraints import Constraints, Position, Target
from backrooms.path.explain import explain
from backrooms.path.route import Route
from backrooms.path.selector import ANYWHERE, Choice, PathSelector
from backrooms.path.selectors import SHORT, Selectors
from tests.keys import fake_relay
from tests.path import networks
from tests.path.networks import PLACES, WEB

RELAYS = networks.network(2, 250)
PLAIN = [fake_relay(n, exit_policy=WEB if n % 4 == 0 else None) for n in range(60)]


def by_country(counts: dict[str, int], exits: int = 3) -> list[Descriptor]:
    """Relays in /16s of their own in countries, every third an exit."""
    found: list[Descriptor] = []
    for country, count in counts.items():
        block = 20 + networks.COUNTRIES.index(country)
        for n in range(count):
            policy = WEB if n % exits == 0 else None
            found.append(fake_relay(len(found), address=f"tls:{block}.{n}.0.1:1", exit_policy=policy))
    return found


# how much is left


def test_an_exclusion_that_leaves_too_few_is_an_error_with_numbers() -> None:
    """Enough weight is left, but not three relays that fit."""
    relays = by_country({"DE": 4, "SE": 2})
    chooser = networks.selectors(relays, networks.entities({"any": ("{DE}",)}))
    with pytest.raises(PathError) as caught:
        chooser.get(Route(MEDIUM)).select(3, ANYWHERE, random.Random(1))
    text = str(caught.value)
    assert text.startswith("no path of 3 relays: 6 relays known, 0 excluded, ")
    for position in ("entry", "middle", "exit"):
        assert re.search(rf"4 excluded as {position} \(4 by [^)]*\{{DE\}}", text), text
    assert "2 usable relays" in text
    assert text.endswith("nothing was relaxed")


def test_rules_that_leave_less_than_a_fifth_are_warned_of_once() -> None:
    relays = by_country({"DE": 170, "SE": 20})
    chooser = networks.selectors(relays, networks.entities({"any": ("{DE}",)}))
    told: list[str] = []
    chooser.on_warning = told.append
    for _ in range(3):
        path = chooser.get(Route(MEDIUM)).select(3, ANYWHERE, random.Random(1))
        assert all(PLACES(one)[0].country == "SE" for one in path)
        chooser._changed(relays[0].id, relays[0])
    assert len(told) == 1
    assert re.search(r"170 of 190 relays, 1\d\.\d% of the weight left, as entry", told[0])
    assert list(chooser.warnings.values()) == told
    # Enough is left: nothing is said, and what was said is taken back.
    fine = networks.selectors(relays, networks.entities({"any": ("{SE}",)}))
    fine.on_warning = told.append
    fine.get(Route(MEDIUM)).select(3, ANYWHERE, random.Random(1))
    assert len(told) == 1
    assert fine.warnings == {}


@pytest.mark.parametrize(
    ("where", "said"), [("any", "entry"), ("entry", "entry"), ("middle", "middle"), ("exit", "exit")]
)
def test_rules_that_leave_less_than_one_percent_are_refused(where: str, said: str) -> None:
    relays = by_country({"DE": 250, "FR": 250, "NL": 250, "SE": 4}, exits=1)
    chooser = networks.selectors(relays, networks.entities({where: ("{DE}", "{FR}", "{NL}")}))
    with pytest.raises(PathError) as caught:
        chooser.get(Route(MEDIUM)).select(3, ANYWHERE, random.Random(1))
    assert re.search(
        r"750 of 754 relays, 0\.\d% of the weight left, as (\w+): at least 1% must be left", str(caught.value)
    )
    if where != "any":
        assert f"left, as {said}:" in str(caught.value)
    # One position less: what is not asked for does not count.
    if where == "middle":
        assert len(chooser.get(Route(LOW)).select(2, ANYWHERE, random.Random(1))) == 2


def test_a_route_may_have_one_exit_of_its_own_but_is_warned() -> None:
    chooser = networks.selectors(PLAIN, networks.entities({}))
    told: list[str] = []
    chooser.on_warning = told.append
    route = Route(MEDIUM, exit=("fake8",), name="routes[0]")
    for seed in range(20):
        assert chooser.get(route).select(3, ANYWHERE, random.Random(seed))[-1].nickname == "fake8"
    assert told == ["the exits that the route allows have 6.7% of the weight of all exits"]
    with pytest.raises(PathError, match="1 exits fit what the route allows"):
        chooser.get(route).select(3, Target(None, 25), random.Random(1))


def test_a_route_with_a_wrong_rule_gets_no_path() -> None:
    chooser = networks.selectors(PLAIN)
    with pytest.raises(PathError, match=r"routes\[3\].avoid\[0\].*'\{zz\}'"):
        chooser.get(Route(MEDIUM, ("{zz}",), name="routes[3]"))


# high


def test_b6_high_keeps_entry_and_exit_apart() -> None:
    relays = by_country({"DE": 40, "FR": 40, "US": 40, "BR": 40, "CL": 40})
    chooser = networks.selectors(relays)
    seen = set()
    for seed in range(300):
        path = chooser.get(Route(HIGH)).select(4, ANYWHERE, random.Random(seed))
        seen.add((PLACES(path[0])[0].country, PLACES(path[-1])[0].country))
    assert all(one != other for one, other in seen)
    assert not {("DE", "FR"), ("FR", "DE"), ("DE", "US"), ("US", "FR")} & seen  # in one bloc
    assert {("BR", "DE"), ("CL", "BR"), ("US", "CL")} <= seen
    near = networks.selectors(by_country({"DE": 40, "FR": 40, "US": 40}))
    with pytest.raises(PathError, match="entry and exit in one country or bloc"):
        near.get(Route(HIGH)).select(4, ANYWHERE, random.Random(1))


def test_b6_high_says_what_it_cannot_hold() -> None:
    """Without a table `high` is built and says so; with one, a relay of no known country is neither entry nor exit."""
    from backrooms.path.entities import KnownEntities

    without = networks.selectors(PLAIN, KnownEntities())
    assert len(without.get(Route(HIGH)).select(4, ANYWHERE, random.Random(1))) == 4
    assert any("no table of countries is installed" in text for text in without.gaps(Route(HIGH)))
    assert networks.selectors(PLAIN).gaps(Route(HIGH)) == []
    unknown = [fake_relay(n, address=f"tls:99.{n}.0.1:1", exit_policy=WEB) for n in range(50)]
    with pytest.raises(PathError, match="0 usable exits"):
        networks.selectors(unknown).get(Route(HIGH)).select(4, ANYWHERE, random.Random(1))
    assert networks.selectors(unknown, distinct_subnets=False).gaps(Route(HIGH)) != []


# positions that only some may take


def test_given_relays_stand_where_they_are_given_and_all_rules_hold() -> None:
    chooser = networks.selectors(RELAYS, networks.entities({"entry": ("{FR}",), "any": ("{US}",)}))
    selector = chooser.get(Route(HIGH))
    firsts = [one for one in RELAYS if selector.may_stand(one.id, Position.ENTRY)][:3]
    bad = next(one for one in RELAYS if not selector.may_stand(one.id, Position.ENTRY))
    seconds = [one for one in RELAYS if selector.may_stand(one.id, Position.MIDDLE)][10:14]
    used: Counter[str] = Counter()
    for seed in range(150):
        path = selector.select(4, Target(None, 443), random.Random(seed), first=[*firsts, bad], second=seconds)
        assert path[0] in firsts
        assert path[1] in seconds
        used[path[0].nickname] += 1
    assert len(used) > 1
    with pytest.raises(PathError, match="0 of 1 guards usable"):
        selector.select(4, Target(None, 443), random.Random(1), first=[bad])
    with pytest.raises(LocalProtocolError):
        selector.select(2, ANYWHERE, random.Random(1), second=seconds)


def test_a_guard_that_is_also_avoided_is_not_used() -> None:
    selector = PathSelector.over(PLAIN, Constraints())
    with pytest.raises(PathError, match="1 avoided this time"):
        selector.select(3, ANYWHERE, random.Random(1), first=[PLAIN[1]], avoid={PLAIN[1].id})


def test_draws_for_one_position_hold_its_rules() -> None:
    selector = networks.selectors(RELAYS, networks.entities({"entry": ("{FR}",)})).get(Route(MEDIUM))
    drawn = {selector.draw(Position.ENTRY, random.Random(seed)) for seed in range(200)}
    assert all(one is not None and "FR" not in {place.country for place in PLACES(one)} for one in drawn)
    assert selector.draw(Position.ENTRY, random.Random(1), {one.id for one in RELAYS}) is None


# explanations


@pytest.mark.parametrize("level", ["none", "low", "medium", "high", "custom:6"])
def test_explanations_are_exact(level: str) -> None:
    """Where the explanation sees no reason the choice goes, and nowhere else, and as often as it says."""
    chooser = networks.selectors(RELAYS, networks.entities({"any": ("{SE}",), "exit": ("{US}",), "entry": ("fake7",)}))
    route, target = Route(parse_level(level), ("{IS}",)), Target(None, 443)
    selector = chooser.get(route)
    for seed in range(25):
        path = selector.select(route.level.hops, target, random.Random(seed), avoid={RELAYS[3].id})
        assert selector.last is not None
        steps = explain(selector.last, path)
        assert sorted(step.index for step in steps) == list(range(route.level.hops))
        for step in steps:
            assert [one.row.relay for one in step.relays if one.chosen] == [path[step.index]]
            assert step.relays[0].chosen
            assert not step.relays[0].reason
            assert len(step.relays) == len(RELAYS)
            assert sum(one.chance for one in step.relays) == pytest.approx(1.0)
            assert all((one.chance > 0) == (one.reason == "") for one in step.relays)
            assert sum(step.excluded.values()) == sum(one.reason != "" for one in step.relays)
            excluded = {one.reason for one in step.relays if one.row.relay is RELAYS[3]}
            assert "" not in excluded


def test_the_chances_told_are_those_of_the_draw() -> None:
    selector = networks.selectors(RELAYS).get(Route(LOW))
    path = selector.select(2, ANYWHERE, random.Random(0))
    assert selector.last is not None
    first = explain(selector.last, path)[0]
    likely = {one.row.relay.nickname: one.chance for one in first.relays[:12]}
    rng = random.Random(1)
    drawn = Counter(selector.select(2, ANYWHERE, rng)[first.index].nickname for _ in range(4000))
    for nickname, chance in likely.items():
        assert drawn[nickname] / 4000 == pytest.approx(chance, abs=0.025)


def test_what_cannot_be_is_explained_too() -> None:
    chooser = networks.selectors(RELAYS, networks.entities({"any": ("{SE}",)}))
    selector = chooser.get(Route(MEDIUM))
    with pytest.raises(PathError):
        selector.select(3, Target(None, 6667), random.Random(1))
    assert selector.last is not None
    steps = explain(selector.last, None)
    exits = next(step for step in steps if step.position == "exit")
    assert exits.excluded["refuses the port"] > 0
    assert exits.excluded["no exit"] > 0
    assert not any(one.chosen or not one.reason for one in exits.relays)


def test_reasons_are_the_rules_as_they_were_written() -> None:
    chooser = networks.selectors(PLAIN, networks.entities({"entry": ("fake5",), "any": ("fake6",)}))
    choice = Choice(chooser.get(Route(MEDIUM)), 3)
    told = {step.position: step.excluded for step in explain(choice, None)}
    assert any("fake5" in reason for reason in told["entry"])
    assert not any("fake5" in reason for reason in told["middle"])
    assert all(any("fake6" in reason for reason in reasons) for reasons in told.values())


# many relays


def test_long_lists_are_worked_through_in_steps() -> None:
    relays = [fake_relay(n, exit_policy=WEB if n % 4 == 0 else None) for n in range(SHORT + 400)]
    listed = networks.List(relays)
    chooser = Selectors(listed, Constraints(), networks.entities({"any": ("fake7",)}))  # type: ignore[arg-type]
    calls: list[None] = []
    chooser.on_stale = lambda: calls.append(None)
    assert not chooser.ready
    chooser.keep(Route(MEDIUM))
    assert calls
    steps = 1
    while chooser.work():
        steps += 1
    assert chooser.ready
    assert steps > len(relays) // 250
    before = chooser.get(Route(MEDIUM))
    # One is gone and one has a rule against it now: neither is on a path, though the tables are the old ones.
    gone, rng = before.select(3, ANYWHERE, random.Random(3)), random.Random(3)
    for one in gone:
        listed.drop(one.id)
    calls.clear()
    while chooser.work():
        pass
    stale = chooser.get(Route(MEDIUM))
    assert calls
    assert stale is before
    assert not {one.id for one in stale.select(3, ANYWHERE, rng)} & {one.id for one in gone}
    while chooser.work():
        pass
    assert chooser.get(Route(MEDIUM)) is not before


def test_routes_that_differ_in_length_alone_share_their_weights() -> None:
    chooser = networks.selectors(PLAIN, networks.entities({"any": ("fake7",)}))
    assert chooser.get(Route(LOW)) is chooser.get(Route(MEDIUM, name="x")) is chooser.get(Route(NONE))
    assert chooser.get(Route(MEDIUM, ("fake8",))) is not chooser.get(Route(MEDIUM))
    for number in range(300):  # a program that asks for ever new routes does not fill the memory
        chooser.get(Route(MEDIUM, (f"fake{number}",)))
    assert len(chooser._made) <= 70


def test_one_choice_among_ten_thousand_takes_less_than_a_millisecond() -> None:
    """By the time of this thread, the best of a few hundred rounds of ten: it takes about 0.03 ms."""
    relays = [fake_relay(n, exit_policy=WEB if n % 4 == 0 else None) for n in range(10_000)]
    selector = PathSelector.over(relays, Constraints())
    rng, target = random.Random(1), Target(None, 443)
    selector.select(4, target, rng)
    best = float("inf")
    for _ in range(300):
        start = time.thread_time()
        for _ in range(10):
            selector.select(4, target, rng)
        best = min(best, (time.thread_time() - start) / 10)
    assert best < 0.001
