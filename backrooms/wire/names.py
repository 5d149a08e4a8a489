"""Host names and addresses as people and programs write them."""

from __future__ import annotations

import ipaddress
import re

from backrooms.errors import WireError

MAX_HOST = 255
"""Bytes of a host name, as in SOCKS 5 (RFC 1928) and DNS (RFC 1035)."""

_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


def ip_literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """`host` as an address, or None when it is a name, or has a zone ("fe80::1%eth0"): that is for one machine only."""
    try:
        return ipaddress.ip_address(host) if "%" not in host else None
    except ValueError:
        return None


def check_host(raw: bytes) -> str:
    """A host name or IP literal (IPv6 with or without brackets) in canonical form, or `WireError`.

    A name that ends in a number ("127.1", "0x7f000001") is refused: no such name exists in DNS, but many
    resolvers would take it for an address that nobody checked.
    """
    if not raw or len(raw) > MAX_HOST:
        raise WireError(f"a host name has 1 to {MAX_HOST} bytes, not {len(raw)}")
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        raise WireError("a host name is ASCII (international names in their xn-- form)") from None
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    address = ip_literal(bare)
    if address is not None and (bare == text or address.version == 6):
        return str(address)
    labels = text.removesuffix(".").split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise WireError("a host name has labels of 1 to 63 letters, digits, - and _")
    if _NUMBER.fullmatch(labels[-1]):
        raise WireError("a host name does not end in a number")
    return text.lower()
