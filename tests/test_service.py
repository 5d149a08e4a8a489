"""A node out of its configuration: what the options do, and how it starts, reads them again and ends."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import Factory
from twisted.logger import ILogObserver, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from backrooms.config import Config
from backrooms.control.nodeview import View
from backrooms.control.view import CircuitChanged, LogLine, SignalReceived
from backrooms.errors import ConfigError, KeyStoreError
from backrooms.levels import LOW, MEDIUM, parse_level
from backrooms.netdir.network import NetworkFile
from backrooms.netdir.policy import ExitPolicy
from backrooms.service import Node
from tests import keys
from tests.simnet.network import EPOCH, SimNet
from tests.simnet.node import SimNetwork

RELAY = """
socks = []
http = []
[client]
enabled = false
[relay]
enabled = true
addresses = ["tls:10.1.0.1:9001"]
assume_reachable = true
contact = "operator@example.org"
"""


class Made:
    """A node on a simulated host, not started."""

    def __init__(self, folder: Path, text: str = "", relay: bool = False) -> None:
        (folder / "network.toml").write_text(NetworkFile("test", keys.NETWORK_ID, ()).to_toml())
        self.file = folder / "backrooms.toml"
        self.file.write_text("control.listen = []\n" + text)
        self.net = SimNet(start=EPOCH)
        self.host = self.net.host("host")
        store = keys.key_store(folder / "state" / "keys", 0, EPOCH) if relay else None
        self.node = Node(Config.load(self.file), self.host.reactor, random.Random(1), store)


# options


def test_the_default_is_a_client(tmp_path: Path) -> None:
    node = Made(tmp_path).node
    assert node.relay is None
    assert node.circuits is not None
    assert node.circuits.options.level == MEDIUM
    assert not (tmp_path / "state" / "keys").exists(), "a client needs no keys"


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", None),
        ("[exit]\nenabled = true\n", ExitPolicy.reduced()),
        ("[exit]\nenabled = true\npolicy = []\n", ExitPolicy.reduced()),
        ('[exit]\nenabled = true\npolicy = ["accept *:443"]\n', ExitPolicy.parse(["accept *:443"])),
        (
            '[exit]\nenabled = true\nallow_private = true\npolicy = ["accept *:*"]\n',
            ExitPolicy.parse(["accept *:*"], allow_private=True),
        ),
    ],
)
def test_exit_policy(tmp_path: Path, text: str, policy: ExitPolicy | None) -> None:
    node = Made(tmp_path, RELAY + text, relay=True).node
    assert node.relay is not None
    assert node.relay.exit.policy == policy
    assert node._relay_side is not None
    descriptor = node._relay_side.describe(None)
    assert descriptor.is_exit == (policy is not None)
    if policy is not None:
        assert descriptor.exit_policy == policy, "what is published is what is done"


def test_an_exit_without_a_policy_allows_usual_services_and_no_private_address(tmp_path: Path) -> None:
    node = Made(tmp_path, RELAY + "[exit]\nenabled = true\n", relay=True).node
    assert node.relay is not None
    policy = node.relay.exit.policy
    assert policy is not None
    assert policy.allows("93.184.216.34", 443)
    assert not policy.allows("93.184.216.34", 25)
    assert not policy.allows("127.0.0.1", 443)


@pytest.mark.parametrize("word", ["auth", "client", "protocol", "host", "port"])
def test_every_isolation_word_counts(tmp_path: Path, word: str) -> None:
    text = f'http = []\n[[socks]]\nlisten = "tcp:9050:interface=127.0.0.1"\nisolate = ["{word}"]\n'
    node = Made(tmp_path, "\n[client]\nlevel = 'low'\n").node  # a listener takes the client's level
    assert node.front is not None
    assert node.front.proxies[0].isolation.level == LOW
    folder = tmp_path / "second"
    folder.mkdir()
    made = Made(folder)
    made.file.write_text("control.listen = []\n" + text)
    second = Node(Config.load(made.file), made.host.reactor, random.Random(1))
    assert second.front is not None
    isolation = second.front.proxies[0].isolation
    flags = {
        "auth": isolation.credentials,
        "client": isolation.client_address,
        "protocol": isolation.client_protocol,
        "host": isolation.destination_host,
        "port": isolation.destination_port,
    }
    assert [name for name, flag in flags.items() if flag] == [word]


def test_an_unknown_keystore(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keys.store: no keystore 'vault'; there are file"):
        Made(tmp_path, RELAY + '[keys]\nstore = "vault"\n')


def test_loose_keys_are_refused(tmp_path: Path) -> None:
    keys.key_store(tmp_path / "state" / "keys", 0, EPOCH)
    (tmp_path / "state" / "keys" / "identity.pem").chmod(0o644)
    with pytest.raises(KeyStoreError, match="chmod 600"):
        Made(tmp_path, RELAY)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (RELAY.replace("tls:", "carrier:"), r"relay.addresses\[0\]: no transport 'carrier'; there are tls"),
        (RELAY.replace("10.1.0.1:9001", "example:1"), r"relay.addresses\[0\]: .* is not IPV4:PORT"),
        ('[path]\navoid = ["fake1", "non-sense"]\n', r"path.avoid\[1\]: 'non-sense': .*a rule is"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        Made(tmp_path, text, relay="relay" in text)


def test_a_missing_network_file(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text("")
    with pytest.raises(ConfigError, match=r"node.network: .*network.toml cannot be read: No such file"):
        Node(Config.load(tmp_path / "b.toml"), SimNet().host("host").reactor, random.Random(1))


# reading them again


def test_reload_takes_what_is_new(tmp_path: Path) -> None:
    made = Made(tmp_path, RELAY + "[exit]\nenabled = true\n", relay=True)
    assert made.node.relay is not None
    text = made.file.read_text()
    made.file.write_text(text + 'policy = ["accept *:80"]\n')
    made.net.run_until(made.node.keeper._fetch())  # as if it had been started
    made.node.reload()
    assert made.node.relay.exit.policy == ExitPolicy.parse(["accept *:80"])
    own = made.node.directory.get(keys.identity(0).public.id)
    assert own is not None
    assert own.exit_policy == ExitPolicy.parse(["accept *:80"]), "it is published, too"
    made.net.run_until(made.node.stopService())


@pytest.mark.parametrize("bad", ["nonsense", 'policy = ["accept everything"]'])
def test_reload_changes_nothing_when_something_is_wrong(tmp_path: Path, bad: str) -> None:
    made = Made(tmp_path, RELAY + "[exit]\nenabled = true\n", relay=True)
    assert made.node.relay is not None
    config, policy = made.node.config, made.node.relay.exit.policy
    made.file.write_text(made.file.read_text() + bad + "\n")
    with pytest.raises(ConfigError):
        made.node.reload()
    assert made.node.config is config
    assert made.node.relay.exit.policy is policy


def test_reload_for_clients(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.file.write_text('[control]\nlisten = []\n[client]\nlevel = "custom:4"\nretries = 9\n')
    made.node.view.reload()
    assert made.node.circuits is not None
    assert made.node.circuits.options.level == parse_level("custom:4")
    assert made.node.circuits.options.retries == 9


def test_reload_takes_routes_or_changes_nothing(tmp_path: Path) -> None:
    made = Made(tmp_path)
    assert made.node.front is not None
    text = '[control]\nlisten = []\n[[routes]]\nmatch = ["a.example"]\nlevel = "high"\navoid = ["fake1"]\n'
    made.file.write_text(text)
    made.node.view.reload()
    (rule,) = made.node.front.routes.rules
    assert (rule.level, rule.avoid) == (parse_level("high"), ("fake1",))
    for wrong, message in (
        ('avoid = ["not a rule"]', r"routes\[1\]\.avoid\[0\]: 'not a rule'"),
        ('level = "max"', r"routes\[1\]\.level: max needs mixing"),
    ):
        made.file.write_text(f'{text}[[routes]]\nmatch = ["b.example"]\n{wrong}\n')
        with pytest.raises(ConfigError, match=message):
            made.node.view.reload()
        assert made.node.front.routes.rules == (rule,)


# life


def test_an_idle_node_starts_and_stops_and_leaves_nothing(tmp_path: Path) -> None:
    made = Made(tmp_path, RELAY, relay=True)
    made.node.startService()
    made.net.run(100)
    assert made.node.listening("or") == ["10.1.0.1:9001"]
    made.net.run_until(made.node.stopService(), 10)
    made.net.run(1)
    assert made.host.reactor.getDelayedCalls() == []
    assert made.node.listening("or") == []


def test_a_port_in_use_is_told_and_ends_the_node(tmp_path: Path) -> None:
    made = Made(tmp_path, RELAY, relay=True)
    said: list[str] = []
    made.host.reactor.listenTCP(9001, Factory(), interface="10.1.0.1")
    stopped: list[bool] = []
    made.host.reactor.stop = lambda: stopped.append(True)  # type: ignore[method-assign]

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        said.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        made.node.startService()
        made.net.run(1)
    finally:
        globalLogPublisher.removeObserver(observe)
    assert stopped == [True]
    assert [line for line in said if line.startswith("cannot start:") and "9001" in line]
    made.net.run_until(made.node.stopService(), 10)


# what the control port sees


def test_isolation_is_a_short_stable_text_without_its_secrets(tmp_path: Path) -> None:
    network = SimNetwork(tmp_path)
    network.start()
    network.ready()
    node = network.client.node
    events: list[Any] = []
    node.view.subscribe(events.append)
    assert node.circuits is not None
    circuit = next(one for one in node.circuits.circuits.values() if one.status == "BUILT")
    key = ("socks", (b"alice", b"hunter2", b""), "127.0.0.1", 0)
    node.circuits.use(circuit, key)
    texts = [one.isolation for one in node.view.circuits() if one.isolation]
    assert texts == [node.view._isolation(key)]
    assert len(texts[0]) == 8
    assert texts[0].isalnum()
    assert node.view._isolation(("socks", (b"alice", b"hunter3", b""), "127.0.0.1", 0)) != texts[0]
    other = View(node, b"another process")
    assert other._isolation(key) != texts[0], "nobody can try passwords out elsewhere"
    node.view.log_line(LogLevel.warn, "odd")
    node.view.log_line(LogLevel.debug, "a detail")
    node.view.newnym()
    assert [one for one in events if not isinstance(one, CircuitChanged)] == [
        LogLine("WARN", "odd"),
        SignalReceived("NEWNYM"),
    ]
    network.stop()
