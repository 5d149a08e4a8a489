"""Addresses that stand for others."""

from __future__ import annotations

import ipaddress
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import ConfigError, StreamError
from backrooms.proxy import addressmap
from backrooms.proxy.addressmap import AddressMap
from backrooms.proxy.request import Kind
from backrooms.wire.relay import EndReason

KINDS: tuple[Kind, ...] = ("connect", "resolve", "resolve_ptr")


def mapping(*addresses: str, **options: Any) -> AddressMap:
    return AddressMap(random.Random(1), addresses, **options)


def automapping(**options: Any) -> AddressMap:
    return mapping(automap=True, suffixes=(".backrooms", ".lan"), **options)


# configured


def test_tors_examples() -> None:
    """As its manual has them."""
    last = mapping("www.torproject.org=192.0.2.1", "www.torproject.org=198.51.100.1")
    assert last.apply("connect", "www.torproject.org") == "198.51.100.1"
    again = mapping("192.0.2.1=203.0.113.1", "www.torproject.org=192.0.2.1")
    assert again.apply("connect", "www.torproject.org") == "203.0.113.1"
    assert again.apply("connect", "192.0.2.1") == "203.0.113.1"
    below = mapping("*.example.com=*.torproject.org")
    for name, target in (
        ("example.com", "torproject.org"),
        ("a.example.com", "a.torproject.org"),
        ("a.b.example.com", "a.b.torproject.org"),
        ("ample.com", "ample.com"),
        ("anexample.com", "anexample.com"),
        ("example.com.org", "example.com.org"),
    ):
        assert below.apply("connect", name) == target
    one = mapping("*.example.com=www.example.com")
    assert {one.apply("connect", name) for name in ("a.example.com", "example.com")} == {"www.example.com"}


def test_the_nearest_fits() -> None:
    mapped = mapping("*.b.c=x.example", "*.a.b.c=y.example", "z.a.b.c=192.0.2.9", "[2001:DB8::1]=six.example")
    assert mapped.apply("connect", "q.b.c") == "x.example"
    assert mapped.apply("connect", "q.a.b.c") == "y.example"
    assert mapped.apply("connect", "z.a.b.c") == "192.0.2.9"
    assert mapped.apply("connect", "Z.A.b.c.") == "192.0.2.9"
    assert mapped.apply("connect", "2001:db8::1") == "six.example"
    assert mapped.apply("connect", "b.c.example") == "b.c.example"


def test_look_ups_are_mapped_too() -> None:
    mapped = mapping("a.example=192.0.2.1", "b.example=c.example")
    assert mapped.apply("resolve", "a.example") == "192.0.2.1"
    assert mapped.apply("resolve", "b.example") == "c.example"
    assert mapped.apply("resolve_ptr", "192.0.2.1") == "192.0.2.1"


@pytest.mark.parametrize(
    ("addresses", "complaint"),
    [
        (["a.b"], r"addresses\[0\]: 'a.b' is not FROM=TO"),
        (["a.b=c.d", "a.b=*.c.d"], r"addresses\[1\]: .* one address cannot be mapped to many"),
        (["*ample.com=a.b"], "labels"),
        (["a.*.b=c.d"], "labels"),
        (["*.1.2.3.4=a.b"], "a name is wanted"),
        (["*.a.b=*.1.2.3.4"], "a name is wanted"),
        (["a.b=www.somebody.exit"], "exit"),
        (["a.exit=b.c"], "exit"),
        (["a.b=ü.example"], "ASCII"),
        (["a.b="], "1 to 255"),
        (["=a.b"], "1 to 255"),
        (["a.b=c.d:80"], "labels"),
        (["a.b=127.1"], "number"),
        (["a.b=c.d", "c.d=a.b"], r"addresses\[0\]: .*loop"),
        (["*.a.b=*.x.a.b"], "loop"),
    ],
)
def test_mappings_that_are_none(addresses: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        mapping(*addresses)


def test_an_address_may_be_mapped_to_itself() -> None:
    assert mapping("a.b=a.b").apply("connect", "a.b") == "a.b"
    assert mapping("*.a.b=*.a.b").apply("connect", "x.a.b") == "x.a.b"


@pytest.mark.parametrize(
    "options",
    [{"ipv4": "127.0.0.0/17"}, {"ipv4": "fe80::/10"}, {"ipv6": "fc00::/105"}, {"ipv6": "x"}, {"ipv4": "::1.2"}],
)
def test_ranges_that_are_none(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"ipv[46]: "):
        mapping(**options)


# automapped


def test_a_name_has_an_address_and_is_reached_by_it() -> None:
    mapped = automapping()
    address = mapped.apply("resolve", "some.service.backrooms")
    assert ipaddress.ip_address(address) in ipaddress.ip_network("127.192.0.0/10")
    assert mapped.apply("resolve", "some.service.backrooms") == address
    assert mapped.apply("connect", address) == "some.service.backrooms"
    assert mapped.apply("resolve_ptr", address) == "some.service.backrooms"
    six = mapped.apply("resolve", "other.lan", ipv6=True)
    assert ipaddress.ip_address(six) in ipaddress.ip_network("fe80::/10")
    assert mapped.apply("connect", six) == "other.lan"
    assert mapped.apply("resolve", "other.lan", ipv6=True) == six
    assert mapped.apply("resolve", "other.lan") not in (six, address)


def test_what_is_not_automapped() -> None:
    mapped = automapping()
    assert mapped.apply("resolve", "www.example") == "www.example"
    assert mapped.apply("resolve", "notlan") == "notlan"
    assert mapped.apply("connect", "some.lan") == "some.lan"
    assert mapped.apply("resolve", "192.0.2.1") == "192.0.2.1"
    assert mapping().apply("resolve", "some.backrooms") == "some.backrooms"
    everything = mapping(automap=True, suffixes=(".",))
    assert everything.apply("resolve", "www.example") == "www.example"  # a suffix is a suffix


def test_virtual_addresses_never_leave() -> None:
    mapped = automapping()
    for address in ("127.192.0.7", "127.255.1.1", "fe80::1", "::ffff:127.192.0.7", "abc.virtual", "ABC.Virtual."):
        for kind in KINDS:
            with pytest.raises(StreamError) as caught:
                mapped.apply(kind, address)
            assert caught.value.reason == EndReason.RESOLVEFAILED
    assert mapped.apply("connect", "127.0.0.1") == "127.0.0.1"


def test_a_configured_address_in_the_virtual_range_works() -> None:
    mapped = mapping("127.192.0.1=intranet.example", "a.b=127.192.0.2")
    assert mapped.apply("connect", "127.192.0.1") == "intranet.example"
    with pytest.raises(StreamError):
        mapped.apply("connect", "a.b")


def test_the_address_unused_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addressmap, "MAX_MAPPINGS", 3)
    mapped = automapping()
    found = {name: mapped.apply("resolve", f"{name}.lan") for name in "abc"}
    assert mapped.apply("connect", found["a"]) == "a.lan"
    found["d"] = mapped.apply("resolve", "d.lan")
    assert [mapped.apply("connect", found[name]) for name in "acd"] == ["a.lan", "c.lan", "d.lan"]
    with pytest.raises(StreamError):
        mapped.apply("connect", found["b"])
    assert len(mapped.mappings()) == 3


class OneNumber(random.Random):
    def randrange(self, *_: Any) -> int:
        return 5


def test_a_range_that_is_used_up() -> None:
    mapped = AddressMap(OneNumber(), automap=True)
    assert mapped.apply("resolve", "a.backrooms") == "127.192.0.5"
    with pytest.raises(StreamError) as caught:
        mapped.apply("resolve", "b.backrooms")
    assert caught.value.reason == EndReason.RESOURCELIMIT


# a controller's


def test_a_controller_maps() -> None:
    mapped = mapping("a.example=b.example")
    assert mapped.map("b.example", "192.0.2.1") == ("b.example", "192.0.2.1")
    assert mapped.apply("connect", "a.example") == "192.0.2.1"
    assert mapped.map("b.example", "c.example") == ("b.example", "c.example")
    assert mapped.apply("connect", "a.example") == "c.example"
    assert mapped.mappings("control") == [("b.example", "c.example")]
    assert mapped.mappings("config") == [("a.example", "b.example")]
    assert len(mapped.mappings()) == 2
    mapped.map("b.example", "b.example")
    assert mapped.apply("connect", "a.example") == "b.example"


@pytest.mark.parametrize(
    ("wish", "found"), [("0.0.0.0", "127.192.0.0/10"), ("::0", "fe80::/10"), ("::", "fe80::/10"), (".", None)]
)
def test_a_controller_gets_virtual_addresses(wish: str, found: str | None) -> None:
    mapped = mapping()
    address, target = mapped.map(wish, "www.example")
    assert target == "www.example"
    if found is None:
        assert len(address) == len("abcdefghijklmnop.virtual")
        assert address.endswith(".virtual")
    else:
        assert ipaddress.ip_address(address) in ipaddress.ip_network(found)
    assert mapped.apply("connect", address) == "www.example"
    assert mapped.map(wish, "www.example") == (address, target)
    mapped.map(address, address)
    with pytest.raises(StreamError):
        mapped.apply("connect", address)
    assert mapped.map(wish, "www.example")[0] != address


def test_a_controller_can_make_a_loop_and_it_is_found() -> None:
    mapped = mapping()
    mapped.map("a.b", "c.d")
    mapped.map("c.d", "a.b")
    with pytest.raises(StreamError):
        mapped.apply("connect", "a.b")


def test_a_controllers_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = mapping()
    for original, replacement in (("a b", "c.d"), ("a.b", "*.c"), ("a.b", ""), ("a.exit", "a.b"), ("0.0.0.0", "a b")):
        with pytest.raises(ConfigError):
            mapped.map(original, replacement)
    monkeypatch.setattr(addressmap, "MAX_MAPPINGS", 1)
    mapped.map("a.b", "c.d")
    mapped.map("a.b", "e.f")
    with pytest.raises(ConfigError, match="already"):
        mapped.map("x.y", "c.d")


NAMES = st.sampled_from(["a.b", "c.d", "x.a.b", "y.x.a.b", "192.0.2.1", "2001:db8::1", "d", "127.200.1.1", "q.lan"])


@given(st.lists(st.tuples(NAMES, NAMES), max_size=8), st.lists(NAMES, max_size=8))
def test_any_mappings_end(pairs: list[tuple[str, str]], hosts: list[str]) -> None:
    mapped = mapping("*.a.b=*.d", automap=True, suffixes=(".lan",))
    for original, replacement in pairs:
        mapped.map(original, replacement)
    for host in hosts:
        for kind in KINDS[:2]:
            try:
                found = mapped.apply(kind, host)
            except StreamError:
                continue
            assert kind == "resolve" or not mapped.is_virtual(found)
