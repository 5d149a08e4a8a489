"""Path choice: every constraint holds in every path, and what cannot be is an error with numbers."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import LocalProtocolError, PathError
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.geo import Place
from backrooms.netdir.policy import ExitPolicy
from backrooms.path.constraints import Constraints, Target, same_family
from backrooms.path.roster import Roster, conflict
from backrooms.path.selector import ANYWHERE, PathSelector
from tests.keys import fake_public, fake_relay

WEB = ExitPolicy.parse(["accept *:80", "accept *:443"])
LOOPBACK = ExitPolicy.parse(["accept 127.0.0.0/8:*"])
TARGET = Target("example.com", 443)
RULES = Constraints()
LOCAL = Constraints(distinct_subnets=False)
MIXED = [fake_relay(n, exit_policy=WEB if n % 4 == 0 else None, single_hop=n == 8) for n in range(40)]


def rng(seed: int = 1) -> random.Random:
    return random.Random(seed)


def select_path(
    relays: list[Descriptor], hops: int, target: Target, constraints: Constraints, rng: random.Random, **more: Any
) -> list[Descriptor]:
    return PathSelector.over(relays, constraints).select(hops, target, rng, **more)


def compatible(a: Descriptor, b: Descriptor, constraints: Constraints) -> bool:
    rows = Roster.of([a, b]).by_id
    return conflict(rows[a.id], rows[b.id], constraints) is None


def local(number: int, policy: ExitPolicy | None = None) -> Descriptor:
    return fake_relay(number, address=f"tls:127.0.0.1:{5000 + number}", exit_policy=policy)


@pytest.mark.parametrize("hops", range(2, 13))
def test_paths_of_every_length(hops: int) -> None:
    for seed in range(20):
        path = select_path(MIXED, hops, TARGET, RULES, rng(seed))
        assert len(path) == len({relay.id for relay in path}) == hops
        assert path[-1].is_exit


def test_same_seed_same_path() -> None:
    one, two = (select_path(MIXED, 5, TARGET, RULES, rng(7)) for _ in range(2))
    assert one == two
    assert len({tuple(relay.id for relay in select_path(MIXED, 3, TARGET, RULES, rng(n))) for n in range(50)}) > 40


def test_single_hop_needs_an_exit_that_allows_it() -> None:
    assert {select_path(MIXED, 1, TARGET, RULES, rng(n))[0].nickname for n in range(20)} == {"fake8"}
    others = [relay for relay in MIXED if relay.nickname != "fake8"]
    with pytest.raises(PathError, match="9 usable exits, of which 0 allow single hops"):
        select_path(others, 1, TARGET, RULES, rng())
    assert len(select_path(others, 1, ANYWHERE, RULES, rng(), exit_required=False)) == 1


@pytest.mark.parametrize(
    ("target", "who"),
    [
        (Target(None, 25), {"mail"}),
        (Target("example.com", 25), {"mail"}),
        (Target("1.1.1.1", 25), {"mail"}),
        (Target("127.0.0.1", 25), {"loop"}),
        (Target("127.0.0.1", 80), {"loop"}),
        (Target("8.8.8.8", 80), {"web"}),
        (Target("::ffff:127.0.0.1", 80), {"loop"}),
        (Target(None, 443), {"web", "loop"}),
        (Target(), {"web", "mail", "loop"}),
    ],
)
def test_the_exit_allows_the_target(target: Target, who: set[str]) -> None:
    exits = {"web": WEB, "mail": ExitPolicy.parse(["accept *:25"]), "loop": LOOPBACK}
    if target.port == 25 and target.address is None:
        who = who | {"loop"}  # a name may lead to an address that the loopback exit takes
    relays = MIXED[1:4] + [
        fake_relay(100 + n, exit_policy=policy, nickname=name) for n, (name, policy) in enumerate(exits.items())
    ]
    found = {select_path(relays, 3, target, RULES, rng(n))[-1].nickname for n in range(40)}
    assert found == who


def test_target_knows_addresses_from_names() -> None:
    assert str(Target("1.2.3.4", 80).address) == "1.2.3.4"
    assert str(Target("::1").address) == "::1"
    assert Target("1.2.3", 80).address is None
    assert Target(None, 80).address is None
    assert Target("a", 1) == Target("a", 1)


def test_excluded_and_avoided_relays_are_never_used() -> None:
    bad = frozenset(relay.id for relay in MIXED[::3])
    selector = PathSelector.over(MIXED, Constraints(exclude=bad))
    avoid = {MIXED[1].id, MIXED[4].id}
    for seed in range(60):
        path = {relay.id for relay in selector.select(4, TARGET, rng(seed), avoid=avoid)}
        assert path.isdisjoint(bad | avoid)


def test_subnets() -> None:
    relays = [fake_relay(n, address=f"tls:10.{n % 3}.{n}.1:1", exit_policy=WEB) for n in range(30)]
    for seed in range(40):
        path = select_path(relays, 3, TARGET, RULES, rng(seed))
        assert len(set().union(*(relay.subnets() for relay in path))) == 3
    with pytest.raises(PathError, match=r"no path of 4 relays: 30 relays known.*30 usable relays, in 3 subnets"):
        select_path(relays, 4, TARGET, RULES, rng())
    assert len(select_path(relays, 4, TARGET, LOCAL, rng())) == 4


def test_loopback_network() -> None:
    relays = [local(n, LOOPBACK if n < 2 else None) for n in range(6)]
    with pytest.raises(PathError, match="in 1 subnets"):
        select_path(relays, 3, Target("127.0.0.1", 80), RULES, rng())
    for seed in range(30):
        assert select_path(relays, 3, Target("127.0.0.1", 80), LOCAL, rng(seed))[-1].is_exit


def test_unknown_subnet_is_not_distinct() -> None:
    relays = [fake_relay(n, address="other:somewhere", exit_policy=WEB) for n in range(100, 103)] + MIXED[:2]
    with pytest.raises(PathError, match="3 of unknown subnet"):
        select_path(relays, 3, TARGET, RULES, rng())
    assert len(select_path(relays, 3, TARGET, LOCAL, rng())) == 3


def test_families_need_both_sides_or_one_key() -> None:
    a, b = fake_public(1).id, fake_public(2).id
    key = frozenset([b"k" * 32])
    assert same_family(fake_relay(1, family=(b,)), fake_relay(2, family=(a,)))
    assert not same_family(fake_relay(1, family=(b,)), fake_relay(2))
    assert not same_family(fake_relay(1), fake_relay(2, family=(a,)))
    assert same_family(fake_relay(1, family_keys=key), fake_relay(2, family_keys=key))
    assert not same_family(fake_relay(1, family_keys=key), fake_relay(2, family_keys=frozenset([b"l" * 32])))
    assert not compatible(fake_relay(1, family_keys=key), fake_relay(2, family_keys=key), LOCAL)
    free = Constraints(distinct_families=False)
    assert compatible(fake_relay(1, family_keys=key), fake_relay(2, family_keys=key), free)


def test_a_relay_cannot_steer_paths_by_naming_everybody() -> None:
    honest = [fake_relay(n, exit_policy=WEB) for n in range(1, 20)]
    liar = fake_relay(0, family=tuple(relay.id for relay in honest[:18]))
    exits = {
        path[-1].nickname
        for seed in range(300)
        if (path := select_path([liar, *honest], 3, TARGET, RULES, rng(seed)))[0] is liar
    }
    assert len(exits) > 5


def test_families_are_hard() -> None:
    keys = [frozenset([bytes([n]) * 32]) for n in range(3)]
    relays = [fake_relay(n, family_keys=keys[n % 3], exit_policy=WEB) for n in range(12)]
    for seed in range(30):
        path = select_path(relays, 3, TARGET, RULES, rng(seed))
        assert len(frozenset().union(*(relay.family_keys for relay in path))) == 3
    with pytest.raises(PathError, match="families must differ"):
        select_path(relays, 4, TARGET, RULES, rng())


def test_a_path_that_chance_hardly_finds_is_found() -> None:
    """A heavy exit shares its subnet with every other relay but one pair; only the light exit leads on."""
    trap = [
        fake_relay(n, address=f"tls:10.0.{n}.1:1", capacity=10**9, exit_policy=WEB if n < 20 else None)
        for n in range(60)
    ]
    way = [fake_relay(100 + n, capacity=1, exit_policy=WEB if n == 0 else None) for n in range(2)]
    for seed in range(5):
        path = select_path(trap + way, 3, TARGET, RULES, rng(seed))
        assert sum(relay in way for relay in path) == 2


@given(st.data())
def test_choice_agrees_with_trying_everything(data: st.DataObject) -> None:
    """In small random networks: a path comes out exactly if one exists, and it holds all constraints."""
    count = data.draw(st.integers(0, 7))
    relays = [
        fake_relay(
            n,
            address=f"tls:10.{data.draw(st.integers(0, 3))}.0.1:1",
            exit_policy=WEB if data.draw(st.booleans()) else None,
            single_hop=data.draw(st.booleans()),
            family_keys=frozenset([bytes([data.draw(st.integers(0, 4))]) * 32]),
        )
        for n in range(count)
    ]
    hops = data.draw(st.integers(1, 4))
    constraints = Constraints(data.draw(st.booleans()), data.draw(st.booleans()))

    def exists(chosen: list[Descriptor]) -> bool:
        if len(chosen) == hops:
            return True
        return any(
            exists([*chosen, relay])
            for relay in relays
            if all(compatible(relay, other, constraints) for other in chosen)
        )

    lasts = [relay for relay in relays if (relay.allows_single_hop if hops == 1 else relay.is_exit)]
    possible = any(exists([last]) for last in lasts)
    seed = data.draw(st.integers(0, 99))
    if not possible:
        with pytest.raises(PathError, match=f"{count} relays known"):
            select_path(relays, hops, TARGET, constraints, rng(seed))
        return
    path = select_path(relays, hops, TARGET, constraints, rng(seed))
    assert len(path) == hops
    assert path[-1] in lasts
    for index, relay in enumerate(path):
        assert all(compatible(relay, other, constraints) for other in path[:index])


def test_errors_have_numbers_and_no_destination() -> None:
    with pytest.raises(PathError) as caught:
        select_path(MIXED, 3, Target("secret.example", 25), Constraints(exclude=frozenset([MIXED[0].id])), rng())
    text = str(caught.value)
    assert "40 relays known, 1 excluded, 9 usable exits, of which 0 allow the target" in text
    assert "secret" not in text
    with pytest.raises(PathError, match="0 relays known"):
        select_path([], 3, TARGET, RULES, rng())
    with pytest.raises(PathError, match="2 avoided"):
        PathSelector.over(MIXED[:4], RULES).select(3, TARGET, rng(), avoid={MIXED[0].id, MIXED[1].id})


@pytest.mark.parametrize("hops", [0, -1, 13])
def test_lengths_that_do_not_exist_are_our_bug(hops: int) -> None:
    with pytest.raises(LocalProtocolError):
        select_path(MIXED, hops, TARGET, RULES, rng())


def test_no_relay_is_chosen_above_its_cap() -> None:
    """One exit and one plain relay claim a thousand times what all others have."""
    relays = [fake_relay(n, exit_policy=WEB if n % 2 else None) for n in range(100)]
    relays += [fake_relay(200, capacity=10**12, exit_policy=WEB), fake_relay(201, capacity=10**12)]
    selector = PathSelector.over(relays, RULES)
    counts: list[Counter[str]] = [Counter(), Counter(), Counter()]
    for seed in range(3000):
        for position, relay in enumerate(selector.select(3, TARGET, rng(seed))):
            counts[position][relay.nickname] += 1
    assert all(count.most_common(1)[0][1] / 3000 < 0.07 for count in counts)


def test_hopeless_searches_end_soon() -> None:
    """Twelve relays out of eleven subnets, two hundred in each: more combinations than can be looked at."""
    relays = [fake_relay(n, address=f"tls:10.{n % 11}.{n // 11}.1:1", exit_policy=WEB) for n in range(2200)]
    start = time.process_time()
    with pytest.raises(PathError, match=r"in 11 subnets.*ended before all combinations"):
        select_path(relays, 12, TARGET, RULES, rng())
    assert time.process_time() - start < 2


def test_exit_tables_do_not_pile_up() -> None:
    selector = PathSelector.over([fake_relay(n, exit_policy=ExitPolicy.parse(["accept *:*"])) for n in range(5)], RULES)
    for port in range(1, 400):
        selector.select(2, Target(None, port), rng(port))
    assert len(selector._tables) <= 128


def test_one_autonomous_system_is_named_in_the_error() -> None:
    relays = [fake_relay(number, exit_policy=WEB) for number in range(6)]
    roster = Roster.of(relays, lambda relay: (Place("", 64500),))
    with pytest.raises(PathError, match="6 usable relays, in 6 subnets, in 1 autonomous systems, which must differ"):
        PathSelector(roster, RULES).select(3, TARGET, rng())
