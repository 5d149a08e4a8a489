"""The text of rules about known entities: what is a rule, and what the errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.crypto.keys import text_id
from backrooms.errors import ConfigError
from backrooms.path.blocs import blocs_of, builtin_blocs, parse_blocs
from backrooms.path.rules import MAX_RULES, Kind, Knowledge, RelayName, parse_rule, parse_rules, words
from tests.keys import fake_relay
from tests.netdir.places import countries_only, synthetic

RELAY = fake_relay(7)
ID = text_id(RELAY.id)
ALL = Knowledge(synthetic())


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("{de}", Kind.COUNTRY, frozenset(["DE"])),
        (" { DE } ", Kind.COUNTRY, frozenset(["DE"])),
        ("{bloc:5eyes}", Kind.COUNTRY, frozenset(["AU", "CA", "GB", "NZ", "US"])),
        ("{Bloc: 5Eyes }", Kind.COUNTRY, frozenset(["AU", "CA", "GB", "NZ", "US"])),
        ("{??}", Kind.UNKNOWN, None),
        ("{AS3320}", Kind.ASN, 3320),
        ("{as4294967295}", Kind.ASN, 4294967295),
        ("{org:Alpen-Wolke, Ltd}", Kind.ORG, " alpen wolke ltd"),
        ("{operator:  Foo   e.V. }", Kind.OPERATOR, " foo e v"),
        ("192.0.2.7", Kind.NETWORK, (4, 0, 0xC0000207)),
        ("198.51.100.0/24", Kind.NETWORK, (4, 8, 0xC63364)),
        ("0.0.0.0/0", Kind.NETWORK, (4, 32, 0)),
        ("2001:DB8::/32", Kind.NETWORK, (6, 96, 0x20010DB8)),
        ("::1", Kind.NETWORK, (6, 0, 1)),
        (ID, Kind.RELAY, RelayName(id=RELAY.id)),
        (ID.upper(), Kind.RELAY, RelayName(id=RELAY.id)),
        (RELAY.fingerprint, Kind.RELAY, RelayName(fingerprint=RELAY.fingerprint)),
        ("$" + RELAY.fingerprint.lower(), Kind.RELAY, RelayName(fingerprint=RELAY.fingerprint)),
        ("Some7", Kind.RELAY, RelayName(nickname="some7")),
        ("{nickname:de}", Kind.RELAY, RelayName(nickname="de")),
        ("{family:Some7}", Kind.FAMILY, RelayName(nickname="some7")),
        ("{family:" + ID + "}", Kind.FAMILY, RelayName(id=RELAY.id)),
        ("{family:$" + RELAY.fingerprint + "}", Kind.FAMILY, RelayName(fingerprint=RELAY.fingerprint)),
    ],
)
def test_rules(text: str, kind: Kind, value: Any) -> None:
    (rule,) = parse_rules([text], "path.avoid", ALL)
    assert (rule.kind, rule.value) == (kind, value)
    assert (rule.text, rule.where, str(rule)) == (text.strip(), "path.avoid[0]", text.strip())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "not a relay: an id is 52 characters.*a rule is {de}"),
        ("{}", "a rule is {de} .a country."),
        ("{de", "its brace is not closed; a rule is"),
        ("{uk}", "'uk' is no country's code of two letters .ISO 3166-1.; write gb instead"),
        ("{eu}", "'eu' is no country's code.*{bloc:eu}"),
        ("{xx}", "'xx' is no country's code"),
        ("{ß1}", "a rule is"),
        ("{deu}", "a rule is {de}"),
        ("{colour:red}", "a rule is {de}"),
        ("{bloc:15eyes}", "no such bloc; there are 14eyes, 5eyes, 9eyes, "),
        ("{AS0}", "an AS number is 1 to 4294967295"),
        ("{AS4294967296}", "an AS number is 1 to 4294967295"),
        ("{AS٣}", "a rule is"),
        ("{org:}", "a name must have letters or digits"),
        ("{operator: - }", "a name must have letters or digits"),
        ("{family:}", "not a relay"),
        ("{family:{de}}", "not a relay"),
        ("{nickname:a-b}", "a nickname is 1 to 19 letters and digits"),
        ("de", "a country or AS stands in braces: {de}; a relay of this name is {nickname:de}"),
        ("??", "a country or AS stands in braces"),
        ("AS3320", "a country or AS stands in braces: {AS3320}"),
        ("14eyes", "a bloc is written {bloc:14eyes}; a relay of this name is {nickname:14eyes}"),
        ("192.0.2.7/24", "the network is 192.0.2.0/24: the bits of an address after the prefix must be 0"),
        ("192.0.2/24", "not an address or a network"),
        ("192.0.2.0/33", "not an address or a network"),
        ("192.0.2.0/٢", "not an address or a network"),
        ("fe80::1%eth0", "not an address or a network"),
        ("fe80::/64%1", "not an address or a network"),
        ("::ffff:192.0.2.0/120", "IPv4 inside IPv6: write the IPv4"),
        ("example.org", "not an address or a network"),
        (ID[:-1] + "b", "not a relay: an id whose unused last bits"),
        (ID[:-1] + "1", "not a relay: an id is base32"),
        (RELAY.fingerprint[:-1], "not a relay: an id is 52 characters"),
        ("$" + "a" * 39, "not a relay"),
        ("a" * 20, "not a relay"),
        ("two words", "not a relay"),
        ("!{de}", "there are no exceptions"),
        ("file:", "names no file"),
        ("file:list.txt", "no rule can be a file here"),
    ],
)
def test_what_is_no_rule_is_told_with_its_place(text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error) as caught:
        parse_rules(["fine", text], "path.avoid_exit", ALL)
    assert str(caught.value).startswith(f"path.avoid_exit[1]: '{text.strip()}'"[:90])


@given(
    st.one_of(
        st.text(max_size=60),
        st.text(alphabet="{}:/.?!$ asdeorgblcfmilyntk0123456789", max_size=60),
        st.text(max_size=20).map(lambda text: "{" + text + "}"),
        st.text(max_size=20).map(lambda text: "{org:" + text + "}"),
    )
)
def test_any_text_is_a_rule_or_an_error_that_names_it(text: str) -> None:
    try:
        (rule,) = parse_rules([text], "path.avoid", ALL)
    except ConfigError as error:
        said = str(error)
    else:
        assert rule.text == text.strip()
        said = f"path.avoid[0]: {rule.text[:80]!r}"
    named = text.strip()
    if named.startswith("file:"):
        named = "file:" + named[5:].strip()
        assert said.startswith(f"path.avoid[0]: '{named[:85]}'")
    else:
        assert said.startswith(f"path.avoid[0]: {named[:80]!r}")


@pytest.mark.parametrize(
    ("knowledge", "text", "error"),
    [
        (Knowledge(), "{de}", r"'{de}': there is no table of countries and networks; `backrooms geo import`"),
        (Knowledge(), "{??}", "there is no table"),
        (Knowledge(), "{bloc:eu}", "there is no table"),
        (Knowledge(), "{AS1}", "there is no table"),
        (Knowledge(countries_only()), "{AS1}", r"the table .DB-IP Lite .db-ip.com.. has no AS numbers; `backrooms"),
        (Knowledge(countries_only()), "{org:x}", "has no names of AS"),
    ],
)
def test_a_rule_that_the_table_cannot_answer_is_an_error(knowledge: Knowledge, text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        parse_rules([text], "path.avoid", knowledge)


def test_rules_that_need_no_table() -> None:
    texts = ["192.0.2.0/24", ID, "$" + RELAY.fingerprint, "name", "{family:name}", "{operator:Foo}"]
    assert len(parse_rules(texts, "path.avoid")) == len(texts)
    assert len(parse_rules(["{de}", "{??}", "{bloc:eu}"], "path.avoid", Knowledge(countries_only()))) == 3


# files

LIST = """# people we do not know
{de}   # a country
{operator:No. #1}
{operator:a} b}

  nickname7
10.0.0.0/8#all of it
"""


def reading(text: str) -> Knowledge:
    return Knowledge(synthetic(), read=lambda name: {"list.txt": text}[name])


def test_files_of_rules() -> None:
    rules = parse_rules(["{ch}", "file: list.txt "], "path.avoid", reading(LIST))
    assert [rule.text for rule in rules] == [
        "{ch}", "{de}", "{operator:No. #1}", "{operator:a} b}", "nickname7", "10.0.0.0/8"
    ]  # fmt: skip
    assert [rule.where for rule in rules] == ["path.avoid[0]", *(f"list.txt:{line}" for line in (2, 3, 4, 6, 7))]
    assert [str(rule) for rule in rules[:2]] == ["{ch}", "{de} (list.txt:2)"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{de}\n{uk} # Britain\n", r"path.avoid\[0\], list.txt line 2: '{uk}': 'uk' is no country"),
        ("two words\n", r"list.txt line 1: 'two words': not a relay"),
        ("file:other.txt\n", r"list.txt line 1: 'file:other.txt': a file of rules cannot name another"),
        ("{de}\n" * (MAX_RULES + 1), r"'file:list.txt': more than 100000 lines"),
    ],
)
def test_a_wrong_line_of_a_file_is_named(text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        parse_rules(["file:list.txt"], "path.avoid", reading(text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    known = Knowledge(read=lambda name: (tmp_path / name).read_text("utf-8"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, error in (
        ("none", r"path.avoid\[0\]: 'file:none': cannot be read: No such file"),
        (".", "'file:.': cannot be read: Is a directory"),
        ("binary", "'file:binary': is not UTF-8 text"),
        ("a\0b", "no file can be called so"),
    ):
        with pytest.raises(ConfigError, match=error):
            parse_rules([f"file:{name}"], "path.avoid", known)


def test_there_are_not_more_rules_than_may_be() -> None:
    with pytest.raises(ConfigError, match=r"path.avoid: more than 100000 rules"):
        parse_rules(["file:list.txt", "x"], "path.avoid", reading("a\n" * MAX_RULES))


# blocs


def test_the_blocs_that_come_along() -> None:
    blocs = builtin_blocs()
    assert {"5eyes", "9eyes", "14eyes", "eu", "nato"} <= set(blocs)
    assert blocs["5eyes"] < blocs["9eyes"] < blocs["14eyes"]
    assert len(blocs["14eyes"]) == 14
    assert len(blocs["nato"]) == 32
    assert len(blocs["eu"] - {"AX", "GF", "GP", "MF", "MQ", "RE", "YT"}) == 27
    assert "GB" not in blocs["eu"]
    assert blocs_of("DE", blocs) == {"14eyes", "eu", "eea", "nato"}
    assert blocs_of("", blocs) == frozenset()


def test_blocs_of_ones_own() -> None:
    found = parse_blocs(["", "# comment", "Nordic: dk FI is no se # five", "more: nordic 5eyes de"], builtin_blocs())
    assert found["nordic"] == {"DK", "FI", "IS", "NO", "SE"}
    assert found["more"] == found["nordic"] | found["5eyes"] | {"DE"}
    assert parse_rule("{bloc:Nordic}", "x", Knowledge(synthetic(), found)).value == found["nordic"]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("nordic", "'nordic': a bloc is NAME: CODES, such as"),
        ("nordic:", "a bloc is NAME: CODES"),
        (": dk", "a bloc is NAME: CODES"),
        ("de: dk", "is no country's code"),
        ("a b: dk", "a bloc is NAME: CODES"),
        ("x" * 33 + ": dk", "a bloc is NAME: CODES"),
        ("5eyes: dk", "there is a bloc '5eyes' already"),
        ("mine: dk later", "bloc 'mine': 'later' is no country's code.*, nor a bloc defined before"),
    ],
)
def test_what_is_no_bloc(line: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        parse_blocs([line], builtin_blocs())


def test_words() -> None:
    assert words("FJORDNET-AS  Fjord_Hosting, Ltd.") == " fjordnet as fjord hosting ltd"
    assert words("Straße") == words("STRASSE")
    assert words(" - ") == " "
