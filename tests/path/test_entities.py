"""Known entities: rules and relays in, verdicts out; all of it against the slow checker."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backrooms.crypto.keys import text_id
from backrooms.errors import ConfigError
from backrooms.netdir.certificate import IdentityCertificate
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.geo import Place, Places
from backrooms.path.blocs import builtin_blocs, parse_blocs
from backrooms.path.entities import Knowledge, KnownEntities, Rules, parse_rules, required
from backrooms.wire.records import Address
from tests.keys import fake_public, fake_relay
from tests.netdir.places import synthetic
from tests.path import slow_checker

TABLE = synthetic()
PLACES = Places(TABLE)
KNOWN = Knowledge(TABLE)


def relay(
    number: int,
    *addresses: str,
    operator: str = "",
    family: tuple[bytes, ...] = (),
    key: bytes = b"",
    nickname: str | None = None,
) -> Descriptor:
    """A relay at these IP addresses; without any, only where rules cannot follow."""
    made = fake_relay(number, family=family, family_keys=frozenset([key] if key else []), nickname=nickname)
    texts = [f"tls:[{host}]:1" if ":" in host else f"tls:{host}:1" for host in addresses] or ["other:somewhere"]
    record = replace(made.record, addresses=tuple(Address.parse(text) for text in texts))
    body = replace(made.certificate.body, operator=operator)
    certificate = IdentityCertificate(made.identity, body, made.family_keys, b"", bytes(32))
    return replace(made, certificate=certificate, record=record)


def ids(*numbers: int) -> tuple[bytes, ...]:
    return tuple(fake_public(number).id for number in numbers)


NETWORK = [
    relay(0, "10.1.0.1", operator="Alpenwolke"),
    relay(1, "10.2.0.1"),
    relay(2, "10.3.0.1", "10.1.0.2"),
    relay(3, "10.4.0.1", operator="Some Body e.V."),
    relay(4, "10.5.0.1", key=b"k" * 32),
    relay(5, "10.6.0.1", family=ids(6)),
    relay(6, "10.7.0.0", family=ids(5, 7), key=b"k" * 32),
    relay(7, "10.7.0.1", nickname="twin"),
    relay(8, "192.0.2.1", nickname="Twin", family=ids(7)),
    relay(9, "2001:db8:1::5"),
    relay(10, "2001:db8:3::5", "10.3.0.9"),
    relay(11, operator="some-body E V"),
]
"""By the table: 0 de; 1 no; 2 us and de; 3 ch; 4 no country, but an AS; 5 fr, but no AS; 6 br and 7 jp, ASs without
a name; 8 nothing known; 9 de by IPv6; 10 us; 11 has no IP address at all."""

NOWHERE = {4, 8, 11}
"""Of no known country."""
NO_AS = {5, 8, 11}
NO_NAME = NO_AS | {6, 7}

VERDICTS: list[tuple[str, set[int]]] = [
    ("{de}", {0, 2, 9} | NOWHERE),
    ("{US}", {2, 10} | NOWHERE),
    ("{fr}", {5} | NOWHERE),
    ("{at}", NOWHERE),
    ("{??}", NOWHERE),
    ("{bloc:5eyes}", {2, 10} | NOWHERE),
    ("{bloc:14eyes}", {0, 1, 2, 5, 9, 10} | NOWHERE),
    ("{AS64496}", {0, 2, 3, 9} | NO_AS),
    ("{AS64510}", {6} | NO_AS),
    ("{AS1}", NO_AS),
    ("{org:Alpenwolke GmbH}", {0, 2, 3, 9} | NO_NAME),
    ("{org:alpenwolke}", {0, 2, 3, 9} | NO_NAME),
    ("{org:alpen}", {0, 2, 3, 9} | NO_NAME),
    ("{org:wolke}", NO_NAME),
    ("{org:fjord hosting}", {1, 4} | NO_NAME),
    ("{org:some body}", {3} | NO_NAME),
    ("{operator:Some Body e.V.}", {3, 11}),
    ("{operator:alpenwolke}", {0}),
    ("{operator:alpen}", set()),
    ("10.1.0.0/16", {0, 2, 11}),
    ("10.1.0.2", {2, 11}),
    ("10.0.0.0/8", {0, 1, 2, 3, 4, 5, 6, 7, 10, 11}),
    ("2001:db8::/32", {9, 10, 11}),
    ("::/0", {9, 10, 11}),
    ("0.0.0.0/0", set(range(12)) - {9}),
    (text_id(NETWORK[3].id), {3}),
    (NETWORK[3].fingerprint, {3}),
    ("$" + NETWORK[3].fingerprint.lower(), {3}),
    ("fake3", {3}),
    ("TWIN", {7, 8}),
    ("{nickname:twin}", {7, 8}),
    ("nobody", set()),
    ("{family:fake5}", {5, 6}),
    ("{family:fake6}", {4, 5, 6}),
    ("{family:" + text_id(NETWORK[4].id) + "}", {4, 6}),
    ("{family:twin}", {6, 7, 8}),
    ("{family:$" + NETWORK[7].fingerprint + "}", {6, 7, 8}),
    ("{family:nobody}", set()),
]


@pytest.mark.parametrize(("rule", "excluded"), VERDICTS, ids=[rule for rule, _ in VERDICTS])
def test_verdicts(rule: str, excluded: set[int]) -> None:
    found = Rules(any=parse_rules([rule], "path.avoid", KNOWN)).exclusions(NETWORK, PLACES)
    assert {n for n, one in enumerate(NETWORK) if one.id in found.entry} == excluded
    assert found.entry == found.middle == found.exit
    assert all(reason.startswith(rule) for reason in found.entry.values())
    by_hand = {n for n, one in enumerate(NETWORK) if slow_checker.breaks(one, rule, PLACES(one), NETWORK)}
    assert by_hand == excluded


def test_reasons_say_what_is_not_known() -> None:
    rules = parse_rules(["{de}", "{AS64496}", "{org:Prairie}", "192.0.2.0/24"], "path.avoid", KNOWN)
    found = Rules(any=rules).exclusions(NETWORK, PLACES).exit
    said = [found.get(one.id, "") for one in NETWORK]
    assert said[0] == "{de}"
    assert said[3] == "{AS64496}"
    assert said[4] == "{de}: country unknown"
    assert said[5] == "{AS64496}: AS unknown"
    assert said[6] == "{org:Prairie}: name of its AS unknown"
    only_networks = Rules(any=rules[3:]).exclusions(NETWORK, PLACES).exit
    assert only_networks[NETWORK[11].id] == "192.0.2.0/24: it has no IP address"
    from_file = parse_rules(["file:l"], "path.avoid", Knowledge(TABLE, read=lambda name: "\nfake1\n"))
    assert Rules(exit=from_file).exclusions(NETWORK, PLACES).exit == {NETWORK[1].id: "fake1 (l:2)"}


def test_positions() -> None:
    rules = Rules(
        any=parse_rules(["fake0"], "path.avoid"),
        entry=parse_rules(["fake1", "fake0"], "path.avoid_entry"),
        exit=parse_rules(["fake2"], "path.avoid_exit"),
    )
    found = rules.exclusions(NETWORK, PLACES)
    names = [
        {relay.nickname for relay in NETWORK if relay.id in one} for one in (found.entry, found.middle, found.exit)
    ]
    assert names == [{"fake0", "fake1"}, {"fake0"}, {"fake0", "fake2"}]
    assert bool(rules)
    assert not Rules()
    more = rules + Rules(middle=parse_rules(["fake3"], "x"))
    assert NETWORK[3].id in more.exclusions(NETWORK, PLACES).middle
    assert more.any == rules.any


def test_a_family_whose_head_is_not_in_the_list() -> None:
    """What names itself a member stays excluded; what only the head names does not, and is not known anyway."""
    rules = Rules(any=parse_rules(["{family:" + text_id(NETWORK[6].id) + "}"], "path.avoid"))
    left = [one for one in NETWORK if one is not NETWORK[6]]
    assert set(rules.exclusions(left, PLACES).exit) == {NETWORK[5].id}


def test_what_must_be_is_held_the_other_way_round() -> None:
    """For rules that say what an exit must be, what is not known does not fit, and every address must."""
    expected: list[tuple[list[str], set[int]]] = [
        (["{de}"], {0, 9}),
        (["{us}"], {10}),
        (["{us}", "{de}"], {0, 2, 9, 10}),
        (["{AS64496}"], {0, 3, 9}),
        (["{org:alpen}"], {0, 3, 9}),
        (["{org:some body}"], set()),
        (["{operator:some body e v}"], {3, 11}),
        (["10.0.0.0/8"], {0, 1, 2, 3, 4, 5, 6, 7}),
        (["10.3.0.0/16", "{bloc:eu}"], {0, 2, 5, 9}),
        (["{??}"], {4, 8}),
        (["twin"], {7, 8}),
        (["{family:fake5}"], {5, 6}),
        (["{family:twin}"], {7, 8}),
        ([], set()),
    ]
    for texts, fitting in expected:
        found = required(parse_rules(texts, "exit", KNOWN), NETWORK, PLACES)
        assert {n for n, one in enumerate(NETWORK) if one.id in found} == fitting, texts
        by_hand = {n for n, one in enumerate(NETWORK) if slow_checker.allowed(one, texts, PLACES(one), NETWORK)}
        assert by_hand == fitting, texts


@settings(max_examples=100)
@given(st.data())
def test_many_rules_at_once_are_as_the_slow_checker_says(data: st.DataObject) -> None:
    """Random relays, random rules for every position; each relay is judged in each position."""
    hosts = [f"{a}.{b}.0.{c}" for a, b, c in product((10, 192), (1, 2, 3, 4, 5, 6, 7, 9), (0, 1))]
    hosts += ["2001:db8:1::1", "2001:db8:3::1", "2001:db8:9::1"]
    count = data.draw(st.integers(1, 8))
    relays = [
        relay(
            n,
            *data.draw(st.lists(st.sampled_from(hosts), max_size=3, unique=True)),
            operator=data.draw(st.sampled_from(["", "Alpenwolke", "Some Body e.V."])),
            family=ids(*data.draw(st.sets(st.integers(0, count)))),
            key=data.draw(st.sampled_from([b"", b"a" * 32, b"b" * 32])),
            nickname=data.draw(st.sampled_from([None, "twin", "fake1"])),
        )
        for n in range(count)
    ]
    texts = st.lists(st.sampled_from([rule for rule, _ in VERDICTS]), max_size=4)
    rules = {position: data.draw(texts) for position in ("any", "entry", "middle", "exit")}
    exit_rules = data.draw(texts)
    parsed = {position: parse_rules(ones, position, KNOWN) for position, ones in rules.items()}
    found = Rules(**parsed).exclusions(relays, PLACES)
    fitting = required(parse_rules(exit_rules, "exit", KNOWN), relays, PLACES)
    for one in relays:
        for position, verdict in (("entry", found.entry), ("middle", found.middle), ("exit", found.exit)):
            wrong = [
                rule
                for rule in (*rules["any"], *rules[position])
                if slow_checker.breaks(one, rule, PLACES(one), relays)
            ]
            assert (one.id in verdict) == bool(wrong)
            assert one.id not in verdict or any(verdict[one.id].startswith(rule) for rule in wrong)
        assert (one.id in fitting) == slow_checker.allowed(one, exit_rules, PLACES(one), relays)


def test_the_slow_checker_finds_what_is_wrong_with_a_path() -> None:
    path = [NETWORK[0], NETWORK[5], NETWORK[6]]
    rules = {"any": ["fake5"], "entry": ["{de}"], "middle": ["fake6"], "exit": ["10.7.0.0/16"]}
    checker = slow_checker.Checker(NETWORK, PLACES)
    assert checker.violations(path, rules, exit_rules=["{de}"]) == [
        "entry: fake0 breaks {de}",
        "any: fake5 breaks fake5",
        "exit: fake6 breaks 10.7.0.0/16",
        "exit: fake6 fits none of ['{de}']",
    ]
    assert slow_checker.too_alike(path) == ["fake5 and fake6 are of one family"]
    assert slow_checker.too_alike([NETWORK[0], NETWORK[2]], PLACES) == [
        "fake0 and fake2 are both in 10.1.0.0/16",
        "fake0 and fake2 are both in AS64496",
    ]
    assert checker.violations([NETWORK[0]], {"exit": ["{de}"]})
    assert checker.violations([NETWORK[1]], rules) == []


def test_the_slow_checker_knows_the_blocs() -> None:
    assert {name: {code.upper() for code in codes} for name, codes in slow_checker.BLOCS.items()} == builtin_blocs()
    assert slow_checker.blocs(["mine: 5eyes de"])["mine"] == {"au", "ca", "gb", "nz", "us", "de"}


def test_levels_and_routes_add_rules_and_take_none_away() -> None:
    known = Knowledge(TABLE, parse_blocs(["mine: jp br"], builtin_blocs()))
    entities = KnownEntities(
        Rules(any=parse_rules(["fake1"], "path.avoid")),
        {"high": Rules(any=parse_rules(["{de}"], "path.levels.high", known)), "custom": Rules()},
        known,
        PLACES,
    )
    assert [str(rule) for rule in entities.rules_for("medium").any] == ["fake1"]
    assert [str(rule) for rule in entities.rules_for("high", ["{bloc:mine}"]).any] == ["fake1", "{de}", "{bloc:mine}"]
    assert [str(rule) for rule in entities.rules_for("custom:4").any] == ["fake1"]
    with pytest.raises(ConfigError, match=r"routes\[2\].avoid\[1\]: '{uk}'"):
        entities.rules_for("high", ["{de}", "{uk}"], "routes[2].avoid")
    assert not KnownEntities().rules_for("high")
    assert KnownEntities().places(NETWORK[0]) == (Place(),)
