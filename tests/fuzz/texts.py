"""Targets of text that people write: configuration, network file, exit policy, addresses, levels, ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from backrooms.cli.client import ControlAddress
from backrooms.config import Config
from backrooms.config.routes import Pattern
from backrooms.crypto.keys import parse_id, text_id
from backrooms.errors import BackroomsError, ConfigError
from backrooms.levels import parse_level
from backrooms.netdir.network import NetworkFile
from backrooms.netdir.ownaddress import OwnAddress, listen_addresses
from backrooms.netdir.policy import REDUCED_PORTS, ExitPolicy, is_private
from backrooms.node.evidence import Proof, from_text, to_text
from backrooms.node.resolvers import parse_nameserver
from backrooms.proxy.dnsport import parse_listen
from backrooms.proxy.isolation import requested_level
from backrooms.proxy.request import Request
from backrooms.transport.tls import TlsTransport
from backrooms.wire.records import MAX_RULES, Address, check_nickname
from tests.fuzz.target import Errors, Target

ROOT = Path(__file__).parents[2]
_ID = text_id(bytes(range(32)))
NETWORK = f"""
name = "example"
id = "{_ID}"
charter = ["{"ab" * 32}"]
[[contacts]]
id = "{text_id(bytes(32))}"
address = "tls:192.0.2.1:5001"
[[contacts]]
id = "{_ID}"
address = "tls:[2001:db8::1]:5001"
"""
CONFIG = """
[node]
nickname = "a1"
state = "~/state"
[[socks]]
listen = "tcp:9050:interface=127.0.0.1"
level = "custom:5"
isolate = ["auth", "host"]
[client]
max_dirtiness = 1e3
spares = { low = 0x3, medium = 0 }
[control]
listen = ["unix:control.sock:mode=600"]
"""
POLICY = "accept *:80-443\nreject 10.0.0.0/8:*\naccept [2000::]/3:443\naccept *4:*\nreject *6:1\naccept private:*"


def _policy(text: str) -> None:
    policy = ExitPolicy.parse(text.split("\n"), allow_private=text.startswith("accept *:*"))
    assert len(policy.rules) <= MAX_RULES
    assert ExitPolicy.parse(policy.lines()) == policy
    for address in ("192.0.2.1", "10.1.2.3", "2001:db8::1", "::ffff:10.1.2.3"):
        for port in (0, 80, 443, 65535):
            if policy.allows(address, port):
                assert policy.may_allow_port(port)
                assert policy.may_allow_address(address)


def _network(text: str) -> None:
    network = NetworkFile.parse(text)
    assert NetworkFile.parse(network.to_toml()) == network
    assert network.is_local in (True, False)


def _config(text: str) -> None:
    repr(Config.parse(text, Path("/nowhere")))


def _level(text: str) -> None:
    level = parse_level(text)
    assert level.name == text
    assert 1 <= level.hops <= 12


def _requested_level(text: str) -> None:
    user, _, token = text.encode("utf-8", "surrogateescape").partition(b"\n")
    requested_level(Request("connect", "example.org", 80, "SOCKS5", user, b"", token))


def _pattern(text: str) -> None:
    made = Pattern.parse(text)
    for host in ("example.org", "192.0.2.1", "2001:db8::1"):
        made.matches(host, 443)


def _id(text: str) -> None:
    assert text_id(parse_id(text)) == text.lower()


def _address(text: str) -> None:
    address = Address.parse(text)
    assert Address.parse(str(address)) == address
    if address.host is not None:
        is_private(address.host)
    if address.transport == "tls":
        assert TlsTransport(bytes(32)).parse(address.rest) == (address.host, address.port)


def _tls_address(text: str) -> None:
    host, port = TlsTransport(bytes(32)).parse(text)
    assert 0 <= port <= 65535
    is_private(host)


def _nameserver(text: str) -> None:
    host, port = parse_nameserver(text)
    is_private(host)
    assert 0 < port < 65536


def _dns_listen(text: str) -> None:
    host, port = parse_listen(text)
    is_private(host)
    assert 0 <= port < 65536


def _own_address(text: str) -> None:
    own = OwnAddress.parse(text)
    assert 0 <= own.port < 65536
    if own.family:
        assert own.at("192.0.2.1" if own.family == 4 else "2001:db8::1").port == own.port
    assert listen_addresses([text, text])


def _evidence(text: str) -> None:
    proofs = from_text(text.encode())
    assert from_text(to_text(proofs).encode()) == proofs


def _target(
    name: str, run: Callable[[str], Any], seeds: tuple[str, ...], errors: Errors, encoding_errors: str = "replace"
) -> Target:
    return Target(
        name, lambda data: run(data.decode("utf-8", encoding_errors)), lambda: [text.encode() for text in seeds], errors
    )


def _example_config() -> str:
    return (ROOT / "etc" / "backrooms.toml").read_text(encoding="utf-8")


def targets() -> list[Target]:
    """All targets of this module."""
    config, value = (ConfigError,), (ValueError,)
    reduced = "\n".join(f"accept *:{ports}" for ports in REDUCED_PORTS.split())
    return [
        _target("netdir.policy", _policy, (POLICY, "accept *:*", reduced), config),
        _target("netdir.network", _network, (NETWORK,), config),
        _target("config", _config, (CONFIG, _example_config()), config),
        _target("levels", _level, ("medium", "none", "custom:12"), config),
        _target("proxy.isolation", _requested_level, ("level=low;x", "a,level=custom:3\nlevel=custom:3"), config),
        _target("config.routes", _pattern, ("*.example.org:443", "[2001:db8::]/32:22,80-90", "10.0.0.0/8"), config),
        _target("crypto.keys.id", _id, (_ID, _ID.upper()), value),
        _target("wire.records.address", _address, ("tls:127.0.0.1:443", "tls:[2001:db8::1]:1", "other:x"), value),
        _target("wire.records.nickname", check_nickname, ("relay1",), value),
        _target("transport.tls.address", _tls_address, ("127.0.0.1:443", "[::1]:0"), value),
        _target("node.evidence", _evidence, (to_text([Proof(bytes(32), 7, b"c", b"1", b"22")]),), value),
        _target(
            "node.resolvers.nameserver",
            _nameserver,
            ("192.0.2.1", "192.0.2.1:53", "2001:db8::1", "[2001:db8::1]:53"),
            config,
        ),
        _target("proxy.dnsport.listen", _dns_listen, ("udp:5353:interface=127.0.0.1", "udp:53"), config),
        _target("netdir.ownaddress", _own_address, ("tls:203.0.113.5:9001", "tls:auto:9001", "tls:auto6:1"), value),
        _target(
            "cli.control_address",
            ControlAddress.parse,
            ("unix:/run/backrooms/control.sock", "127.0.0.1:9051", "tcp:9051:interface=127.0.0.1", "[::1]:9051"),
            (BackroomsError,),
            "surrogateescape",
        ),
    ]
