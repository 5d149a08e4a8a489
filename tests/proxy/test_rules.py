"""What a listener makes of a request before anything leaves the node."""

from __future__ import annotations

import random
from typing import Any

import pytest

from backrooms.errors import ConfigError, StreamError
from backrooms.node.requests import StreamRequest
from backrooms.proxy.addressmap import AddressMap
from backrooms.proxy.isolation import Isolation
from backrooms.proxy.request import Kind, Request
from backrooms.proxy.rules import Rules
from backrooms.wire.relay import EndReason


class Listener:
    """Rules, and how often they warned."""

    def __init__(self, *addresses: str, **options: Any) -> None:
        self.warned = 0
        mapped = AddressMap(random.Random(1), addresses, automap=True)
        self.rules = Rules(Isolation("one", destination_host=True), mapped, on_literal=self.warn, **options)

    def warn(self) -> None:
        self.warned += 1

    def plan(self, host: str, kind: Kind = "connect", literal: bool = False, user: bytes = b"") -> StreamRequest:
        request = Request(kind, host, 80, "SOCKS5", user, literal=literal)
        return self.rules.plan(request, "127.0.0.1", "127.0.0.1:5")

    def refused(self, *arguments: Any) -> int:
        with pytest.raises(StreamError) as caught:
            self.plan(*arguments)
        return caught.value.reason


def test_a_mapped_request_is_isolated_by_where_it_goes() -> None:
    listener = Listener("a.example=b.example")
    assert listener.plan("a.example").host == "b.example"
    assert listener.plan("a.example").isolation == listener.plan("b.example").isolation


def test_levels_are_still_checked() -> None:
    with pytest.raises(ConfigError):
        Listener("a.example=b.example").plan("a.example", user=b"level=higher")


def test_literal_addresses() -> None:
    listener = Listener(literals="warn")
    listener.plan("www.example")
    listener.plan("9.9.9.9")  # written by hand as a name, or in a URL
    assert listener.warned == 0
    listener.plan("9.9.9.9", "connect", True)
    assert listener.warned == 1
    listener.plan("192.168.0.1", "connect", True)
    listener.plan("9.9.9.9", "resolve", True)
    listener.plan("9.9.9.9", "resolve_ptr", True)
    assert listener.warned == 1
    silent = Listener()
    silent.plan("9.9.9.9", "connect", True)
    assert silent.warned == 0
    strict = Listener(literals="refuse")
    assert strict.refused("9.9.9.9", "connect", True) == EndReason.EXITPOLICY
    assert strict.refused("2600::1", "connect", True) == EndReason.EXITPOLICY
    assert strict.plan("9.9.9.9", "resolve_ptr", True).host == "9.9.9.9"


def test_a_virtual_address_is_no_leak() -> None:
    strict = Listener(literals="refuse", allow_private=False)
    address = strict.plan("some.backrooms", "resolve").host
    assert strict.plan(address, "connect", True).host == "some.backrooms"
    assert strict.plan(address, "resolve_ptr", True).host == "some.backrooms"
    assert strict.refused("127.192.0.1", "connect", True) == EndReason.RESOLVEFAILED


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "192.168.1.1", "::1", "fc00::1", "::ffff:10.0.0.1"])
def test_private_addresses(address: str) -> None:
    strict = Listener(allow_private=False)
    assert strict.refused(address) == EndReason.EXITPOLICY
    assert strict.refused(address, "resolve_ptr") == EndReason.EXITPOLICY
    assert strict.plan(address, "resolve").host == address  # the answer is the question
    assert not strict.rules.believes(address)
    assert strict.rules.believes("9.9.9.9")
    assert strict.rules.believes("2600::1")
    loose = Listener()
    assert loose.plan(address).host == loose.plan(address, "resolve_ptr").host == address
    assert loose.rules.believes(address)


def test_an_exit_cannot_name_a_virtual_address() -> None:
    """It would stand for what another name was given."""
    assert not Listener().rules.believes("127.192.0.1")
    assert not Listener().rules.believes("fe80::1")
    assert not Listener().rules.believes("not.an.address")
