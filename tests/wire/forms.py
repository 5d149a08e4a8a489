"""What must hold for every message that has one form only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from backrooms.errors import WireError

Decode = Callable[[bytes], Any]


def check_any_bytes(decode: Decode, data: bytes) -> None:
    """They are a message that is written just so, or a `WireError`."""
    try:
        message = decode(data)
    except WireError:
        return
    assert message.encode() == data


def check_cut_and_addition(decode: Decode, payload: bytes, cut: int) -> None:
    """A message that ends too early, and one with a byte behind it, are a `WireError`."""
    for wrong in (payload[:cut], payload + b"\0"):
        with pytest.raises(WireError):
            decode(wrong)
