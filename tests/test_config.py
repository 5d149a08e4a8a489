"""The configuration is strict, and its errors say where and what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.config import Config
from backrooms.errors import ConfigError
from backrooms.levels import parse_level

FOLDER = Path("/etc/backrooms")
ELSEWHERE = "can be reached from other machines; add ':interface=127.0.0.1' or set allow_remote = true"
PROXY_ELSEWHERE = ELSEWHERE.replace(" or set", ", give it a password or set")
DNS_LISTEN = "dns.listen[0]: must be udp:PORT:interface=ADDRESS, such as 'udp:5353:interface=127.0.0.1'"


def parse(text: str) -> Config:
    return Config.parse(text, FOLDER)


def test_the_default_is_a_client_and_nothing_else() -> None:
    config = parse("")
    assert (config.client.enabled, config.relay.enabled, config.exit.enabled) == (True, False, False)
    assert [one.listen for one in config.socks] == ["tcp:9050:interface=127.0.0.1"]
    assert [one.listen for one in config.http] == ["tcp:9080:interface=127.0.0.1"]
    assert config.control.listen == ("unix:/etc/backrooms/control.sock:mode=600",)
    assert config.link.require_pq
    assert config.log.safe


def test_a_whole_file() -> None:
    config = parse(
        """
        socks = []
        [node]
        nickname = "r1"
        state = "../state"
        network = "/n"
        [[http]]
        listen = "unix:http.sock"
        level = "custom:5"
        isolate = ["host"]
        [[http]]
        listen = "tcp:1"
        allow_remote = true
        [client]
        level = "low"
        max_dirtiness = 60
        spares = {low = 4}
        [relay]
        enabled = true
        addresses = ["tls:192.0.2.1:9001"]
        """
    )
    assert config.socks == ()
    assert (config.node.state, config.node.network) == (FOLDER / "../state", Path("/n"))
    assert [one.listen for one in config.http] == ["unix:/etc/backrooms/http.sock", "tcp:1"]
    assert [one.level for one in config.http] == ["custom:5", "low"]
    assert config.http[0].isolate == ("host",)
    assert config.client.max_dirtiness == 60.0
    assert isinstance(config.client.max_dirtiness, float)
    assert (config.client.spares.low, config.client.spares.medium) == (4, 2)
    assert config.relay.addresses == ("tls:192.0.2.1:9001",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nod = 1", "nod: unknown option"),
        ("[node]\nnick = 1", "node.nick: unknown option"),
        ("[client.spares]\nmax = 1", "client.spares.max: unknown option"),
        ('[[socks]]\nlisten = "unix:a"\nport = 1', "socks[0].port: unknown option"),
        ("file = 1", "file: unknown option"),
        ("node = 1", "node: must be a table"),
        ("socks = 1", "socks: must be a list"),
        ('[socks]\nlisten = "unix:a"', "socks: must be a list"),
        ("socks = [1]", "socks[0]: must be a table"),
        ("[[socks]]", "socks[0].listen: must be given"),
        ("[[socks]]\nlisten = 3", "socks[0].listen: must be a string"),
        ('[[socks]]\nlisten = ""', "socks[0].listen: must not be empty"),
        ('[[socks]]\nlisten = "tcp:1"', f"socks[0].listen: 'tcp:1' {PROXY_ELSEWHERE}"),
        ('[[http]]\nlisten = "tcp:1:interface=::"', f"http[0].listen: 'tcp:1:interface=::' {PROXY_ELSEWHERE}"),
        (
            '[[socks]]\nlisten = "unix:a"\nisolate = ["auth", "x"]',
            "socks[0].isolate[1]: must be one of auth, client, protocol, host, port",
        ),
        ("[control]\nlisten = [1]", "control.listen[0]: must be a string"),
        ('[control]\nlisten = ["tcp:1"]', f"control.listen[0]: 'tcp:1' {ELSEWHERE}"),
        (
            '[control]\nlisten = ["unix:a"]\ncookie = false',
            "control.cookie: must be true while every local user can open listen[0]; "
            "a unix socket with mode=600 needs none",
        ),
        ("[node]\nnickname = true", "node.nickname: must be a string"),
        ('[node]\nnickname = "a b"', "node.nickname: must be 1 to 19 letters and digits"),
        ('[node]\nnickname = "é"', "node.nickname: must be 1 to 19 letters and digits"),
        ('[node]\nnickname = ""', "node.nickname: must be 1 to 19 letters and digits"),
        ('[node]\nstate = ""', "node.state: must not be empty"),
        ('[relay]\ncontact = "a\\nb"', "relay.contact: must not contain control characters"),
        ("[client]\nenabled = 1", "client.enabled: must be true or false"),
        ("[client]\nretries = true", "client.retries: must be a whole number"),
        ("[client]\nretries = 2.0", "client.retries: must be a whole number"),
        ("[client]\nretries = -1", "client.retries: must be at least 0"),
        ("[client]\nretries = 99", "client.retries: must be at most 20"),
        ("[client]\nmax_dirtiness = nan", "client.max_dirtiness: must be at least 1"),
        ('[client]\nmax_dirtiness = "1"', "client.max_dirtiness: must be a number"),
        ('[log]\nlevel = "loud"', "log.level: must be one of debug, info, warn, error, critical"),
        ("[log]\nlevel = [1]", "log.level: must be one of debug, info, warn, error, critical"),
        (
            "[relay]\nenabled = true",
            "relay.addresses: a relay needs one, such as 'tls:203.0.113.5:9001'",
        ),
        (
            '[relay]\nlisten = ["tls"]',
            "relay.listen[0]: must be TRANSPORT:ADDRESS, such as 'tls:203.0.113.5:9001'",
        ),
        ("[exit]\nenabled = true", "exit.enabled: an exit must be a relay too; set relay.enabled = true"),
        (
            '[relay]\nenabled = true\naddresses = ["tls:192.0.2.1:1"]\n[exit]\nenabled = true',
            "relay.contact: an exit needs one, such as 'abuse@example.org': "
            "who is bothered by what comes out of it must be able to reach you",
        ),
        (
            '[exit]\nnameservers = ["192.0.2.1", "ns.example"]',
            "exit.nameservers[1]: 'ns.example' is not an address with or without a port, such as '192.0.2.1:53'",
        ),
        (
            '[exit]\nnameservers = ["192.0.2.1:x"]',
            "exit.nameservers[0]: '192.0.2.1:x' is not an address with or without a port, such as '192.0.2.1:53'",
        ),
        (
            '[accounting]\nperiod = "month 31 00:00"',
            "accounting.period: must be 'month DAY HH:MM' (day 1 to 28), 'week DAY HH:MM' (1 is Monday) or 'day HH:MM'",
        ),
        ('[dns]\nlisten = ["tcp:53"]', DNS_LISTEN),
        ('[dns]\nlisten = ["udp:53"]', f"dns.listen[0]: 'udp:53' {ELSEWHERE}"),
        (
            '[map]\naddresses = ["a.example"]',
            "map.addresses[0]: must be FROM=TO, such as 'search.example=search.example.org'",
        ),
        (
            '[map]\nautomap_suffixes = ["exit"]',
            "map.automap_suffixes[0]: must be a dot and a name, such as '.backrooms'",
        ),
        ('[map]\nipv4 = "fe80::/10"', "map.ipv4: 'fe80::/10' is not an IPv4 network"),
        ('[map]\nipv6 = "x"', "map.ipv6: 'x' is not an IPv6 network"),
    ],
)
def test_errors_say_where_and_what(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("listen", "local"),
    [
        ("tcp:1:interface=127.0.0.1", True),
        ("tcp:port=1:interface=127.9.9.9", True),
        ("tcp:1:interface=localhost", True),
        (r"tcp6:1:interface=\:\:1", True),
        ("unix:/run/x", True),
        ("systemd:domain=INET:index=0", True),
        ("tcp:1:interface=", False),
        ("tcp:1:interface=192.0.2.1", False),
        ("tcp:1:127.0.0.1", False),
        (r"tcp:1:interface=192.0.2.1\:interface=127.0.0.1", False),
        (r"tcp6:1:interface=\:\:", False),
        (r"tcp6:1:interface=2001\:db8\:\:1", False),
        ("ssl:1", False),
        ("9050", False),
    ],
)
def test_remote_listeners_must_be_meant(listen: str, local: bool) -> None:
    for text in (f"[[socks]]\nlisten = '{listen}'", f"[control]\nlisten = ['{listen}']"):
        if local:
            parse(text)
        else:
            with pytest.raises(ConfigError, match="can be reached from other machines"):
                parse(text)
        parse(f"{text}\nallow_remote = true")


def test_relative_unix_sockets_count_from_the_folder() -> None:
    config = Config.parse("[control]\nlisten = ['unix:a', 'unix:address=b:mode=600', 'unix:/c']", Path("/x:y"))
    assert config.control.listen == (r"unix:/x\:y/a", r"unix:/x\:y/b:mode=600", "unix:/c")


@pytest.mark.parametrize(
    "level",
    ["none", "low", "medium", "high", "max", "custom", "default", "", "Low", "low ", "low\n"]
    + [f"custom:{n}" for n in ("", "0", "1", "5", "9", "10", "11", "12", "13", "05", "١", "1 ", "-1")],
)
def test_levels_are_those_of_the_levels_module(level: str) -> None:
    def accepts(function: Any) -> bool:
        try:
            function()
        except ConfigError:
            return False
        return True

    quoted = level.replace("\n", "\\n")
    known = accepts(lambda: parse_level(level))
    assert accepts(lambda: parse(f'[client]\nlevel = "{quoted}"')) == known
    listener = accepts(lambda: parse(f'[[socks]]\nlisten = "unix:a"\nlevel = "{quoted}"'))
    assert listener == (known or level == "default")


def test_load_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    for content, message in (
        (b"[node]\nx = 1", f"{file}: node.x: unknown option"),
        (b"x = \xff", f"{file}: is not UTF-8 text"),
        (b"x = ", f"{file}: not TOML: Invalid value (at end of document)"),
    ):
        file.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            Config.load(file)
        assert str(caught.value) == message
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Config.load(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Config.load(tmp_path)


def test_load_remembers_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    config = Config.load("b.toml")
    assert config.file == tmp_path / "b.toml"
    assert config.node.state == tmp_path / "state"


@given(st.text(max_size=200))
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    try:
        parse(text)
    except ConfigError:
        pass


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["listen", "low", "x"]), inner),
    max_leaves=5,
)


def test_a_proxy_with_a_password_may_be_open_to_others() -> None:
    (listener,) = parse('[[socks]]\nlisten = "tcp:1"\npassword = "x"').socks
    assert listener.password == "x"


@pytest.mark.parametrize("text", ["192.0.2.53", "192.0.2.53:5353", "2001:db8::53", "[2001:db8::53]:53"])
def test_nameservers_are_addresses_with_or_without_a_port(text: str) -> None:
    assert parse(f'[exit]\nnameservers = ["{text}"]').exit.nameservers == (text,)


@given(st.sampled_from(["node", "socks", "client", "relay", "control", "log"]), VALUES)
def test_any_value_is_a_config_or_a_config_error(key: str, value: Any) -> None:
    from backrooms.config.reader import read_table

    for table in ({key: value}, {key: {"listen": value, "level": value, "state": value, "spares": value}}):
        try:
            read_table(Config, table, "", FOLDER)
        except ConfigError:
            pass
