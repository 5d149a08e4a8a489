"""The addresses of a relay's configuration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.netdir.ownaddress import OwnAddress, family, listen_addresses, plain_ip, subnet


@pytest.mark.parametrize(
    ("text", "kind", "port", "ip", "address"),
    [
        ("tls:203.0.113.5:9001", 4, 9001, "198.51.100.1", "tls:203.0.113.5:9001"),
        ("tls:[2001:db8::5]:9001", 6, 9001, "2001:db8::6", "tls:[2001:db8::5]:9001"),
        ("tls:auto:9001", 4, 9001, "198.51.100.1", "tls:198.51.100.1:9001"),
        ("tls:auto6:443", 6, 443, "2001:db8::6", "tls:[2001:db8::6]:443"),
        ("other:auto:1", 4, 1, "198.51.100.1", "other:198.51.100.1:1"),
        ("webrtc:somewhere", 0, 0, "198.51.100.1", "webrtc:somewhere"),
    ],
)
def test_addresses(text: str, kind: int, port: int, ip: str, address: str) -> None:
    own = OwnAddress.parse(text)
    assert (own.text, own.family, own.port) == (text, kind, port)
    assert str(own.at(ip)) == address
    assert (own.fixed is None) == ("auto" in text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tls",
        "tls:",
        "tls:auto",
        "tls:auto:",
        "tls:auto:0",
        "tls:auto:09001",
        "tls:auto:65536",
        "tls:auto:99999",
        "tls:auto4:9001",
        "tls:auto6:x",
        "tls:auto66:9001",
        "tls:AUTO:9001",
        "tls:[auto6]:9001",
        "tls:example.org:9001",
        "tls:203.0.113.5:0",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        OwnAddress.parse(text)


@given(st.text(max_size=30) | st.from_regex(r"tls:auto6?:[0-9]{0,6}", fullmatch=True))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        own = OwnAddress.parse(text)
    except ValueError:
        return
    assert own.text == text


@pytest.mark.parametrize(
    ("texts", "listened"),
    [
        (["tls:203.0.113.5:9001"], ["tls:203.0.113.5:9001"]),
        (["tls:auto:9001"], ["tls:0.0.0.0:9001"]),
        (["tls:auto6:9001"], ["tls:[::]:9001"]),
        (["tls:auto:9001", "tls:auto6:9001"], ["tls:[::]:9001"]),
        (["tls:auto6:443", "tls:auto:9001"], ["tls:[::]:443", "tls:0.0.0.0:9001"]),
        (["tls:auto:9001", "tls:auto:9001"], ["tls:0.0.0.0:9001"]),
    ],
)
def test_where_to_listen(texts: list[str], listened: list[str]) -> None:
    assert listen_addresses(texts) == listened


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:DB8::0001", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("example.org", ""),
        ("", ""),
    ],
)
def test_plain_ip(host: str, plain: str) -> None:
    assert plain_ip(host) == plain


def test_families_and_subnets() -> None:
    assert [family(text) for text in ("192.0.2.1", "2001:db8::1", "x", "", None)] == [4, 6, 0, 0, 0]
    assert subnet("192.0.2.1") == "192.0.0.0/16"
    assert subnet("2001:db8:5::1") == "2001:db8::/32"
    assert subnet("192.0.2.1", 24, 48) == "192.0.2.0/24"
    assert subnet("2001:db8:5:6::1", 24, 48) == "2001:db8:5::/48"
