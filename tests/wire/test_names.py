"""Host names: what is taken for one, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import WireError
from backrooms.wire.names import check_host, ip_literal


@pytest.mark.parametrize(
    ("raw", "host"),
    [
        (b"Example.ORG", "example.org"),
        (b"example.org.", "example.org."),
        (b"_sip._tcp.example", "_sip._tcp.example"),
        (b"192.0.2.7", "192.0.2.7"),
        (b"[2001:DB8::1]", "2001:db8::1"),
        (b"a" * 63 + b".example", "a" * 63 + ".example"),
    ],
)
def test_hosts(raw: bytes, host: str) -> None:
    assert check_host(raw) == host


@pytest.mark.parametrize(
    "raw",
    [b"", b".", b"a..b", b"a" * 64 + b".example", b"x" * 256, b"a b", b"a\0b", b"127.1", b"0x7f000001", b"[192.0.2.7]",
     b"fe80::1%eth0", "münchen.example".encode(), b"-a.example", b"\xff"],
)  # fmt: skip
def test_what_is_no_host(raw: bytes) -> None:
    with pytest.raises(WireError):
        check_host(raw)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_host_or_refused(raw: bytes) -> None:
    try:
        host = check_host(raw)
    except WireError:
        return
    assert check_host(host.encode()) == host
    assert ip_literal(host) is None or str(ip_literal(host)) == host
