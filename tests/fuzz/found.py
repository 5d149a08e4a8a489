"""Inputs that a parser once fell over."""

from __future__ import annotations

DEEP = 2_000

FOUND: list[tuple[str, bytes]] = [
    # Text that Python's own parsers answer with an error of another kind than theirs.
    ("config", b"a = " + b"[" * DEEP),
    ("config", b"a = " + b"{a = " * DEEP),
    ("config", b"a = " + b"1" * 5_000),
    ("config", b'node = { state = "~nobody-of-this-name/state" }'),
    ("config", b"[client]\nmax_dirtiness = 1" + b"0" * 400),
    ("netdir.network", b"id = " + b"[" * DEEP),
    ("netdir.network", b"id = " + b"1" * 5_000),
    ("netdir.policy", b"accept *:" + b"1" * 5_000),
    ("cli.control_address", b"127.0.0.1:" + b"1" * 5_000),
]
