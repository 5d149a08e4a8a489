"""Rules for destinations: what their patterns match, whose level counts, and what they add."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.config import Config
from backrooms.config.routes import Pattern
from backrooms.errors import ConfigError
from backrooms.levels import HIGH, LOW, MEDIUM, NONE, Level
from backrooms.path.route import Route
from backrooms.proxy.isolation import Isolation, RouteRule, RouteRules
from backrooms.proxy.request import Request

FOLDER = Path("/nowhere")


@pytest.mark.parametrize(
    ("pattern", "fits", "others"),
    [
        ("example.org", [("example.org", 1), ("EXAMPLE.org.", 443)], [("www.example.org", 1), ("example.org.de", 1)]),
        ("*.example.org", [("a.example.org", 1), ("a.b.example.org", 9)], [("example.org", 1), ("anexample.org", 1)]),
        ("*.example.org:443", [("a.example.org", 443)], [("a.example.org", 80)]),
        ("Example.ORG.:80,8000-8002", [("example.org", 80), ("example.org", 8001)], [("example.org", 8003)]),
        ("*", [("a", 1), ("1.2.3.4", 65535), ("2001:db8::1", 1)], []),
        ("*:22", [("a", 22), ("::1", 22)], [("a", 23)]),
        ("*:*", [("a", 22)], []),
        (
            "10.0.0.0/8",
            [("10.255.0.1", 1), ("::ffff:10.0.0.1", 1)],
            [("11.0.0.1", 1), ("ten.example", 1), ("::a00:1", 1)],
        ),
        ("192.0.2.7:443", [("192.0.2.7", 443)], [("192.0.2.7", 80), ("192.0.2.8", 443)]),
        ("2001:db8::/32", [("2001:db8:9::1", 1)], [("2001:db9::1", 1), ("10.0.0.1", 1)]),
        ("[2001:db8::]/32:443", [("2001:db8::1", 443)], [("2001:db8::1", 80)]),
        ("[::1]", [("::1", 5)], [("::2", 5)]),
        ("[::ffff:10.0.0.0]/104:80", [("10.9.9.9", 80), ("::ffff:10.9.9.9", 80)], [("12.0.0.1", 80)]),
        ("xn--bcher-kva.example", [("xn--bcher-kva.example", 1)], [("bucher.example", 1)]),
        ("_dmarc.example.org", [("_dmarc.example.org", 1)], []),
    ],
)
def test_patterns(pattern: str, fits: list[tuple[str, int]], others: list[tuple[str, int]]) -> None:
    made = Pattern.parse(pattern)
    assert [one for one in fits if not made.matches(*one)] == []
    assert [one for one in others if made.matches(*one)] == []


def test_look_ups_go_where_streams_to_the_host_go() -> None:
    assert Pattern.parse("*.example.org:443").matches("a.example.org", None)
    assert not Pattern.parse("*.example.org:443").matches("a.example.net", None)
    assert Pattern.parse("10.0.0.0/8:22").matches("10.0.0.1", None)


@pytest.mark.parametrize(
    "text",
    ["", ":443", "*.", "*a", "a.*", "-a", "a b", "a/8", "10.0.0.1/8", "1.2.3", "300.1.1.1", "10.0.0.0/33", "a:0",
     "a:65536", "a:b", "a:1-", "a:9-8", "a:1,,2", "a:\u0663", "b\u00fccher.example", "[::1", "[a]:1",
     "[::1]x", "::1/64", "a:999999999999"],
)  # fmt: skip
def test_wrong_patterns_say_what_is_allowed(text: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed are a name, \*\.name, an IP address or network, or \*"):
        Pattern.parse(text)


@given(st.text(alphabet="a.*:/0123456789[]-,x\u00e9", max_size=20), st.text(max_size=12), st.integers(1, 65535))
def test_any_text_is_a_pattern_or_a_config_error(text: str, host: str, port: int) -> None:
    try:
        made = Pattern.parse(text)
    except ConfigError:
        return
    made.matches(host, port)


def rules(*rows: RouteRule) -> RouteRules:
    return RouteRules(rows)


def rule(pattern: str, level: Level | None = None, **more: object) -> RouteRule:
    return RouteRule("routes[0]", (Pattern.parse(pattern),), level, **more)  # type: ignore[arg-type]


def route(
    listener: Isolation, user: bytes = b"", token: bytes = b"", host: str = "a.example.org", port: int = 443
) -> Route:
    request = Request("connect", host, port, "SOCKS5", user, b"", token)
    found = listener.stream_request(request, "c", "c:1").route
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("user", "token", "destination", "listener", "expected"),
    [
        (b"level=none", b"", LOW, MEDIUM, NONE),  # who asks is asked first
        (b"", b"level=none", LOW, MEDIUM, NONE),
        (b"level=high", b"", LOW, NONE, HIGH),
        (b"somebody", b"", HIGH, LOW, HIGH),  # then the rule for the destination
        (b"", b"", NONE, HIGH, NONE),
        (b"", b"", None, LOW, LOW),  # then the listener, which has the node's default if nothing else
        (b"level=low;x", b"", None, MEDIUM, LOW),
    ],
)
def test_b6_whose_level_counts(
    user: bytes, token: bytes, destination: Level | None, listener: Level, expected: Level
) -> None:
    made = Isolation("one", listener, routes=rules(rule("*.example.org:443", destination, avoid=("{de}",))))
    found = route(made, user, token)
    assert found == Route(expected, ("{de}",))  # whoever names the level, the rule's own rules stay
    assert found.name == "routes[0]"
    elsewhere = route(made, user, token, port=80)
    assert elsewhere.level == (expected if b"level" in user + token else listener)
    assert elsewhere.avoid == ()


@pytest.mark.parametrize("user", [b"level=max", b"level=extreme", b"level=low,level=high", b"level=custom:13"])
def test_b6_a_level_that_cannot_be_is_refused_whatever_the_rules_say(user: bytes) -> None:
    made = Isolation("one", LOW, routes=rules(rule("*", MEDIUM)))
    with pytest.raises(ConfigError, match="level"):
        route(made, user)


def test_the_first_rule_that_matches_counts() -> None:
    first = RouteRule("routes[0]", (Pattern.parse("bank.example"), Pattern.parse("*.bank.example")), HIGH)
    second = RouteRule("routes[1]", (Pattern.parse("*:443"),), LOW, exit=("{se}",))
    made = Isolation("one", MEDIUM, routes=rules(first, second))
    assert route(made, host="www.bank.example") == Route(HIGH)
    assert route(made, host="bank.example", port=22) == Route(HIGH)
    assert route(made) == Route(LOW, exit=("{se}",))
    assert route(made, port=22) == Route(MEDIUM)


def test_rules_add_isolation_and_high_isolates_by_host() -> None:
    def key(listener: Isolation, host: str, port: int = 443, user: bytes = b"") -> object:
        request = Request("connect", host, port, "SOCKS5", user, b"", b"")
        return listener.stream_request(request, "c", "c:1").isolation

    plain = Isolation("one", MEDIUM)
    assert key(plain, "a") == key(plain, "b")
    assert key(plain, "a", user=b"level=high") != key(plain, "b", user=b"level=high")
    assert key(plain, "a", 1, b"level=high") == key(plain, "a", 2, b"level=high")
    by_rule = Isolation("one", MEDIUM, routes=rules(rule("*:443", isolate=frozenset({"host"}))))
    assert key(by_rule, "a") != key(by_rule, "b")
    assert key(by_rule, "a", 80) == key(by_rule, "b", 80)
    assert key(by_rule, "a", 80) != key(by_rule, "a", 443)  # the rule's streams have circuits of their own
    ports = Isolation("one", MEDIUM, routes=rules(rule("*", isolate=frozenset({"port"}))))
    assert key(ports, "a", 1) != key(ports, "a", 2)
    loose = Isolation("one", MEDIUM, False, False, routes=rules(rule("*", isolate=frozenset({"auth", "client"}))))
    assert key(loose, "a", user=b"x") != key(loose, "a", user=b"y")
    listener_high = Isolation("one", HIGH)
    assert key(listener_high, "a") != key(listener_high, "b")


# the configuration


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[routes]]", "routes[0].match: must be given"),
        ("[[routes]]\nmatch = []", "routes[0].match: needs at least one pattern"),
        ('[[routes]]\nmatch = "a"', "routes[0].match: must be a list"),
        ('[[routes]]\nmatch = ["a", "b c"]', "routes[0].match[1]: 'b c': is no name or network; allowed are a name"),
        ('[[routes]]\nmatch = ["a:99999"]', "routes[0].match[0]: 'a:99999': '99999' is not between 1 and 65535"),
        ('[[routes]]\nmatch = ["a"]\n[[routes]]\nmatch = ["b"]\nlevel = "best"', "routes[1].level: must be none, low"),
        ('[[routes]]\nmatch = ["a"]\nlevel = "max"', "routes[0].level: max needs mixing"),
        ('[[routes]]\nmatch = ["a"]\nisolate = ["hosts"]', "routes[0].isolate[0]: must be one of auth, client"),
        ('[[routes]]\nmatch = ["a"]\nexits = []', "routes[0].exits: unknown option"),
        ("routes = 3", "routes: must be a list"),
    ],
)
def test_errors_in_routes_name_the_key_and_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse(text, FOLDER)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('avoid = ["{de}", "not a rule"]', r"routes\[1\]\.avoid\[1\]: 'not a rule': .*a rule is"),
        ('exit = ["{xx}"]', r"routes\[1\]\.exit\[0\]: '\{xx\}'"),
        ('avoid = ["file:/nonexistent/list"]', r"routes\[1\]\.avoid\[0\].*list"),
    ],
)
def test_wrong_rules_of_routes_are_named(line: str, message: str) -> None:
    from backrooms import assembly
    from backrooms.path.entities import KnownEntities
    from tests.path.networks import KNOWLEDGE

    config = Config.parse(f'[[routes]]\nmatch = ["a"]\n[[routes]]\nmatch = ["b"]\n{line}', FOLDER)
    with pytest.raises(ConfigError, match=message):
        assembly.route_rules(config, KnownEntities(knowledge=KNOWLEDGE))


def test_routes_of_the_configuration() -> None:
    from backrooms import assembly
    from backrooms.path.entities import KnownEntities
    from tests.path.networks import KNOWLEDGE

    text = """
    [[routes]]
    match = ["*.bank.example:443"]
    level = "high"
    avoid = ["{bloc:5eyes}"]
    isolate = ["port"]
    [[routes]]
    match = ["10.0.0.0/8"]
    exit = ["{se}"]
    """
    first, second = assembly.route_rules(Config.parse(text, FOLDER), KnownEntities(knowledge=KNOWLEDGE))
    assert (first.name, first.level, first.avoid, first.isolate) == (
        "routes[0]",
        HIGH,
        ("{bloc:5eyes}",),
        frozenset({"port"}),
    )
    assert (second.level, second.exit) == (None, ("{se}",))
