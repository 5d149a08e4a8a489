"""Security levels: how many relays a circuit passes.

The rows are fixed: a private level of one's own would be a fingerprint. Only `custom` may differ.
"""

from __future__ import annotations

from dataclasses import dataclass

from backrooms.errors import ConfigError

MIN_HOPS = 1
MAX_HOPS = 12


@dataclass(frozen=True, slots=True)
class Level:
    """One row: what a stream of this level gets."""

    name: str
    """How it is written in configuration and user names: "medium", "custom:5"."""
    hops: int
    """Relays of a circuit, the exit counted."""


NONE = Level("none", 1)
LOW = Level("low", 2)
MEDIUM = Level("medium", 3)
DEFAULT = MEDIUM
LEVELS = {level.name: level for level in (NONE, LOW, MEDIUM)}
"""The fixed rows by name; `custom:N` is made on request."""
_LATER = ("high", "max")
_CUSTOM = "custom"


def parse_level(text: str) -> Level:
    """The level called "none", "low", "medium" or "custom:N" (N relays). `ConfigError` says what is wrong."""
    level = LEVELS.get(text)
    if level is not None:
        return level
    if text in _LATER:
        raise ConfigError(
            f"level {text!r} arrives in a later version; this one has none, low, medium and custom:N. "
            "Nothing weaker is used in its place"
        )
    name, colon, number = text.partition(":")
    if name != _CUSTOM:
        raise ConfigError(f"no level {text!r}; the levels are none, low, medium and custom:N")
    # isdecimal alone would take digits of other scripts and make two names of one level
    if not colon or not (number.isascii() and number.isdecimal()) or number.startswith("0") or len(number) > 2:
        raise ConfigError(f"level {text!r}: write custom:N with N relays, {MIN_HOPS} to {MAX_HOPS}")
    hops = int(number)
    if not MIN_HOPS <= hops <= MAX_HOPS:
        raise ConfigError(f"level {text!r}: {hops} relays, allowed are {MIN_HOPS} to {MAX_HOPS}")
    return Level(f"{_CUSTOM}:{hops}", hops)
