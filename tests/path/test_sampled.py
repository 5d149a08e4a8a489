"""Ten thousand paths under mixed rules, judged by a checker that shares no code with what chose them."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backrooms.errors import PathError
from backrooms.levels import parse_level
from backrooms.netdir.descriptor import Descriptor
from backrooms.path.constraints import Target
from backrooms.path.route import Route
from tests.path import networks, slow_checker
from tests.path.networks import PLACES
from tests.path.slow_checker import Checker

RELAYS = networks.network(1, 400)
RULES = {
    "any": ("{US}", "24.3.0.0/16", "{family:fake31}", "{operator:big operator}"),
    "entry": ("{FR}", "{AS64501}"),
    "middle": ("{org:Net 5}",),
    "exit": ("{bloc:5eyes}", "fake40"),
}
BY_LEVEL = {"high": ("{BR}",), "custom": ("{JP}",)}
ROUTES = [
    ("none", (), ()),
    ("low", (), ()),
    ("medium", (), ()),
    ("medium", ("{SE}",), ()),
    ("medium", (), ("{CH}", "{ZA}")),
    ("high", (), ()),
    ("high", ("{CL}", "30.0.0.0/8"), ()),
    ("custom:5", (), ("{DE}", "{NL}")),
    ("custom:7", (), ()),
    ("custom:2", ("{IS}",), ("fake60", "fake100", "fake140", "fake56", "fake120")),
]
TARGETS = [Target(), Target(None, 443), Target(None, 25), Target("9.9.9.9", 80)]


def one_operator(path: list[Descriptor]) -> list[str]:
    """Pairs that say they are of one operator, by a comparison of our own."""

    def words(one: Descriptor) -> list[str]:
        return one.operator.lower().split()

    return [f"{a.nickname} and {b.nickname}" for a, b in combinations(path, 2) if words(a) and words(a) == words(b)]


def regions(relay: Descriptor) -> set[str]:
    """The countries of all addresses and their blocs; "?" for an unknown one."""
    found = {place.country or "?" for place in PLACES(relay)} or {"?"}
    return found | {name for name, members in slow_checker.BLOCS.items() for one in found if one.lower() in members}


CHECKER = Checker(RELAYS, PLACES)


def faults(
    path: list[Descriptor], route: Route, target: Target, rules: dict[str, tuple[str, ...]], checker: Checker = CHECKER
) -> list[str]:
    """All that is wrong with a path."""
    name = route.level.name.partition(":")[0]
    everywhere = (*rules.get("any", ()), *BY_LEVEL.get(name, ()), *route.avoid)
    found = checker.violations(path, {**rules, "any": everywhere}, route.exit)
    found += slow_checker.too_alike(path, PLACES) + one_operator(path)
    if len(path) != route.level.hops:
        found.append(f"{len(path)} relays")
    last = path[-1]
    if not last.is_exit or (len(path) == 1 and not last.allows_single_hop):
        found.append("no exit")
    if target.port is not None:
        fits = [rule for rule in last.exit_policy.rules if rule.low <= target.port <= rule.high]
        if not fits:
            found.append("the exit refuses the port")
    if name == "high":
        if "?" in regions(path[0]) | regions(last):
            found.append("entry or exit in an unknown country")
        if regions(path[0]) & regions(last):
            found.append(f"entry and exit both in {regions(path[0]) & regions(last)}")
    return found


def test_b10_ten_thousand_paths_without_a_violation() -> None:
    chooser = networks.selectors(RELAYS, networks.entities(RULES, BY_LEVEL))
    rng = random.Random(5)
    wrong: list[str] = []
    lengths = set()
    for number in range(10_000):
        level, avoid, exits = ROUTES[number % len(ROUTES)]
        route, target = Route(parse_level(level), avoid, exits), TARGETS[number % 7 % 4]
        if exits and target.port == 25:
            target = Target(None, 443)
        path = chooser.get(route).select(route.level.hops, target, rng)
        lengths.add(len(path))
        wrong += faults(path, route, target, RULES)
    assert wrong == []
    assert lengths == {1, 2, 3, 4, 5, 7}


def test_the_checker_sees_every_kind_of_fault() -> None:
    """Paths chosen without rules break all of them now and then."""
    chooser = networks.selectors(RELAYS, distinct_subnets=False, distinct_families=False)
    rng, seen = random.Random(6), set()
    for _ in range(600):
        path = chooser.get(Route(parse_level("medium"))).select(3, Target(), rng)
        for fault in faults(path, Route(parse_level("high"), ("{SE}",), ("{CH}",)), Target(None, 25), RULES):
            seen.add(fault.split(" ")[0] if ":" in fault else fault.split(" ")[-1])
    assert {"any:", "entry:", "middle:", "exit:", "port", "country", "relays"} <= seen


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_network_any_rules_no_violation(data: st.DataObject) -> None:
    """In random networks under random rules: a path holds them all, or there is an error with numbers."""
    count = data.draw(st.integers(0, 40))
    relays = networks.network(data.draw(st.integers(0, 10**6)), count)
    texts = st.sampled_from(["{DE}", "{US}", "{SE}", "{bloc:eu}", "{AS64500}", "{org:Net 3}", "fake4", "21.0.0.0/8"])
    lists = st.lists(texts, max_size=2).map(tuple)
    rules = {where: data.draw(lists) for where in ("any", "entry", "middle", "exit")}
    route = Route(
        parse_level(data.draw(st.sampled_from(["none", "low", "medium", "high", "custom:4"]))),
        data.draw(lists),
        data.draw(st.sampled_from([(), ("{CH}", "{DE}"), ("fake8", "fake0")])),
    )
    target = data.draw(st.sampled_from(TARGETS[:3]))
    chooser = networks.selectors(relays, networks.entities(rules, BY_LEVEL))
    found = ""
    try:
        path = chooser.get(route).select(route.level.hops, target, random.Random(data.draw(st.integers(0, 99))))
    except PathError as error:
        found = str(error)
    if found:
        assert found.endswith("nothing was relaxed")
        assert f"{count} relays" in found
        return
    assert faults(path, route, target, rules, Checker(relays, PLACES)) == []


@pytest.mark.parametrize("changes", [1, 40])
def test_changes_of_the_list_are_seen_at_once(changes: int) -> None:
    """What is gone, changed or new is judged by the rules as if it had been there from the start."""
    relays = networks.network(3, 200)
    listed = networks.List(relays[:150])
    from backrooms.path.constraints import Constraints
    from backrooms.path.selectors import Selectors

    chooser = Selectors(listed, Constraints(), networks.entities(RULES, BY_LEVEL))  # type: ignore[arg-type]
    route, rng = Route(parse_level("medium"), ("{SE}",)), random.Random(1)
    chooser.get(route).select(3, Target(), rng)
    for number in range(changes):
        listed.drop(relays[number].id)
        listed.put(relays[150 + number])
    fresh = networks.selectors(listed.relays(), networks.entities(RULES, BY_LEVEL))
    for position in ("entry", "middle", "exit"):
        old, new = (getattr(one.get(route).exclusions, position) for one in (chooser, fresh))
        assert old == new
    for seed in range(100):
        paths = [one.get(route).select(3, Target(), random.Random(seed)) for one in (chooser, fresh)]
        assert paths[0] == paths[1]
