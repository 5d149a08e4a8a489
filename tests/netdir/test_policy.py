"""Exit policies: first match, private ranges, names, and the same answer on both ends of the wire."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import ConfigError
from backrooms.netdir.policy import PRIVATE_NETWORKS, ExitPolicy, is_private

PRIVATE = [
    "127.0.0.1", "10.1.2.3", "192.168.1.1", "172.16.0.1", "172.31.255.255", "169.254.169.254", "100.64.0.1",
    "0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255", "198.18.0.1", "::", "::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:1::",
    "fe80::1", "fc00::1", "fd12::1", "ff02::1", "fec0::1", "192.0.2.7", "198.51.100.9", "203.0.113.200",
    "192.88.99.1", "::ffff:0:10.0.0.1", "100::1", "1fff::1", "2001:1ff::1", "2001:10::1", "2001:db8::1",
    "3fff:fff::1", "4000::1", "5f00::1", "fe79::1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "192.0.3.1", "223.255.255.255", "2606:4700::1",
    "::ffff:1.1.1.1", "2000::1", "2001:200::1", "2001:db7:ffff::1", "2003::1", "3ffe::1",
]  # fmt: skip

hosts = st.ip_addresses().map(str) | st.sampled_from(PRIVATE + PUBLIC)


def network(address: ipaddress.IPv4Address | ipaddress.IPv6Address, bits: int) -> str:
    """A rule's way to write the network around an address; `bits` counts modulo what there is."""
    net = ipaddress.ip_network(f"{address}/{bits % (address.max_prefixlen + 1)}", strict=False)
    return str(net) if net.version == 4 else f"[{net.network_address}]/{net.prefixlen}"


networks = st.sampled_from(["*", "*4", "*6", "private"]) | st.builds(
    network, st.ip_addresses() | st.sampled_from(PRIVATE).map(ipaddress.ip_address), st.integers(0, 128)
)
ports = st.one_of(
    st.just("*"),
    st.integers(0, 65535).map(str),
    st.lists(st.integers(0, 65535), min_size=2, max_size=2).map(lambda p: f"{min(p)}-{max(p)}"),
)
verbs = st.sampled_from(["accept", "reject"])
lines = st.builds(lambda verb, where, port: f"{verb} {where}:{port}", verbs, networks, ports)


def test_first_match_decides() -> None:
    policy = ExitPolicy.parse(["reject 1.2.3.0/24:80", "accept 1.2.0.0/16:80-90", "reject *:*", "accept *:*"])
    assert not policy.allows("1.2.3.4", 80)
    assert policy.allows("1.2.3.4", 81)
    assert policy.allows("1.2.4.4", 80)
    assert not policy.allows("1.2.4.4", 91)
    assert not policy.allows("1.3.4.4", 80)
    assert not policy.allows("2606:4700::1", 80)


def test_what_no_rule_fits_is_refused() -> None:
    assert not ExitPolicy.reject_all().allows("1.1.1.1", 80)
    assert not ExitPolicy.reject_all().may_allow_port(80)
    assert not ExitPolicy.parse(["accept *:80"]).allows("1.1.1.1", 81)


@pytest.mark.parametrize("host", PRIVATE)
def test_private_ranges_need_to_be_named(host: str) -> None:
    assert not ExitPolicy.parse(["accept *:*"]).allows(host, 80)
    wide = ["accept 0.0.0.0/0:*", "accept [::]/0:*", "accept 0.0.0.0/1:*"]
    assert not ExitPolicy.parse(wide).allows(host, 80)
    assert ExitPolicy.parse(["accept private:80"]).allows(host, 80)
    opened = ExitPolicy.parse(["accept *:80"], allow_private=True)
    assert opened.allows(host, 80)
    assert not opened.allows(host, 81)
    closed = ExitPolicy.parse(["reject private:*", "accept *:80"], allow_private=True)
    assert not closed.allows(host, 80)


@pytest.mark.parametrize("host", PUBLIC)
def test_public_addresses(host: str) -> None:
    assert ExitPolicy.parse(["accept *:*"]).allows(host, 80)
    assert not ExitPolicy.parse(["accept private:*"]).allows(host, 80)


def test_naming_one_range_opens_no_other() -> None:
    policy = ExitPolicy.parse(["accept *:80", "accept 127.0.0.1:*", "accept [::1]:*"])
    assert policy.allows("127.0.0.1", 80)
    assert policy.allows("::1", 22)
    assert policy.allows("::ffff:127.0.0.1", 22)
    assert not policy.allows("127.0.0.2", 80)
    assert not policy.allows("10.0.0.1", 80)


def test_allow_private_with_families() -> None:
    policy = ExitPolicy.parse(["accept *4:80"], allow_private=True)
    assert policy.allows("127.0.0.1", 80)
    assert not policy.allows("::1", 80)


def test_ports_of_names() -> None:
    rules = ["reject 1.0.0.0/8:*", "reject *4:25", "reject *:22", "accept *:1-100", "reject *:*"]
    policy = ExitPolicy.parse(rules)
    assert policy.may_allow_port(80)
    assert policy.may_allow_port(25)
    assert not policy.may_allow_port(22)
    assert not policy.may_allow_port(101)
    assert not ExitPolicy.parse(["reject *4:25", "reject *6:25", "accept *:*"]).may_allow_port(25)
    assert not ExitPolicy.parse(["reject *4:25", "accept *4:25"]).may_allow_port(25)


def test_reduced_policy() -> None:
    policy = ExitPolicy.reduced()
    assert all(policy.may_allow_port(port) for port in (22, 80, 443, 993, 6667, 8080))
    assert not any(policy.may_allow_port(port) for port in (25, 119, 135, 139, 445, 1214, 4661, 6346, 6699, 6881))
    assert not policy.allows("127.0.0.1", 80)


@pytest.mark.parametrize(
    "line",
    ["", "accept", "accept *", "allow *:80", "accept *:80-", "accept *:-80", "accept *:90-80",
     "accept *:65536", "accept 1.2.3.4/33:80", "accept 1.2.3.4/8:80", "accept 1.2.3:80", "accept ::1:80",
     "accept [::1:80", "accept [::1]/129:80", "accept [1.2.3.4]x:80", "accept example.com:80",
     "accept *:80 # web", "accept *:٨٠"],
)  # fmt: skip
def test_bad_rules_are_named(line: str) -> None:
    with pytest.raises(ConfigError, match="exit policy"):
        ExitPolicy.parse(["accept *:443", line])


def test_too_many_rules() -> None:
    with pytest.raises(ConfigError, match="257 rules"):
        ExitPolicy.parse(["accept *:80"] * 257)
    with pytest.raises(ConfigError, match="after expansion"):
        ExitPolicy.parse(["accept *:80"] * 20, allow_private=True)


@given(st.text(max_size=30))
def test_any_text_is_a_rule_or_a_config_error(text: str) -> None:
    try:
        ExitPolicy.parse([text])
    except ConfigError:
        pass


@given(st.lists(lines, max_size=5), hosts, st.integers(0, 65535))
def test_against_plain_reading_of_the_rules(texts: list[str], host: str, port: int) -> None:
    """The same decision as a slow reading with `ipaddress` networks, and the same after printing and
    parsing."""
    policy = ExitPolicy.parse(texts)
    assert policy.allows(host, port) == slow(texts, host, port)
    assert ExitPolicy.parse(policy.lines()) == policy
    if policy.allows(host, port):
        assert policy.may_allow_port(port)


def slow(texts: list[str], host: str, port: int) -> bool:
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    private = [net for net in PRIVATE_NETWORKS if net.version == address.version and address in net]
    for text in texts:
        verb, _, rest = text.partition(" ")
        where, _, span = rest.rpartition(":")
        low, _, high = ("0-65535" if span == "*" else span).partition("-")
        if not int(low) <= port <= int(high or low):
            continue
        if where.startswith("*"):
            named, hit = False, where[1:] in ("", str(address.version))
        elif where == "private":
            named = hit = bool(private)
        else:
            network = ipaddress.ip_network(where.replace("[", "").replace("]", ""))
            hit = network.version == address.version and address in network
            named = hit and any(network.subnet_of(net) for net in private)  # type: ignore[arg-type]
        if hit and verb == "reject":
            return False
        if hit and (named or not private):
            return True
    return False


def test_an_address_may_be_allowed_on_some_port() -> None:
    policy = ExitPolicy.parse(["reject *:25", "reject 11.22.33.0/24:*", "accept *:80-443"])
    assert policy.may_allow_address("1.1.1.1")
    assert policy.may_allow_address("2600::1")
    assert not policy.may_allow_address("11.22.33.9")
    assert not policy.may_allow_address("127.0.0.1")
    assert not policy.may_allow_address("::ffff:10.0.0.1")
    assert ExitPolicy.parse(["accept 127.0.0.0/8:*"]).may_allow_address("127.0.0.1")
    assert not ExitPolicy.reject_all().may_allow_address("1.1.1.1")


def test_private_ranges_are_those_of_the_protocol_document() -> None:
    text = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    block = re.search(r"\*\*Private addresses\*\*.*?\n((?: {4}\S[^\n]*\n)+)", text, re.DOTALL)
    assert block is not None
    assert [ipaddress.ip_network(one) for one in block[1].split()] == list(PRIVATE_NETWORKS)


@given(st.ip_addresses())
def test_what_python_knows_to_be_no_public_address_is_private(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    known = inner or address
    if not known.is_global or known.is_multicast or known.is_reserved:
        assert is_private(address)


def test_a_relay_refuses_its_own_addresses() -> None:
    own = ["11.1.2.3", "2600::1", "::ffff:11.9.9.9"]
    policy = ExitPolicy.parse(["accept *:*"]).refusing(own)
    assert not any(policy.allows(address, 80) for address in (*own, "::ffff:11.1.2.3", "11.9.9.9"))
    assert policy.allows("11.1.2.4", 80)
    assert policy.may_allow_port(80)
    assert policy.refusing(own) is policy
    assert ExitPolicy.parse(policy.lines()) == policy


def test_a_relay_may_name_an_address_of_its_own() -> None:
    policy = ExitPolicy.parse(["accept 11.1.2.3:80", "accept *:*"])
    assert policy.refusing(["11.1.2.3"]) is policy
    wide = ExitPolicy.parse(["accept 11.1.2.0/24:80"])
    assert not wide.refusing(["11.1.2.3"]).allows("11.1.2.3", 80)


def test_private_addresses_of_a_relay_need_no_rule() -> None:
    """A network on one machine has its relays and its web server at one address."""
    policy = ExitPolicy.parse(["accept *:*"], allow_private=True)
    assert policy.refusing(["127.0.0.1", "::1"]) is policy
    assert not ExitPolicy.parse(["accept *:*"]).refusing(["10.0.0.1"]).allows("10.0.0.1", 80)


def test_own_addresses_count_as_rules() -> None:
    full = ExitPolicy.parse(["accept *:80"] * 256)
    with pytest.raises(ConfigError, match="257 rules"):
        full.refusing(["11.1.2.3"])
