"""Security levels: how many relays a circuit passes.

The rows are fixed: a private level of one's own would be a fingerprint. Only `custom` may differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    layer2: bool = False
    """Whether the second relay, too, is one of a few that are kept for days."""
    strict: bool = False
    """Whether entry and exit are never in one country or bloc of countries."""
    isolate_host: bool = False
    """Whether streams to different hosts never share a circuit."""
    gives: str = field(default="", compare=False)
    lacks: tuple[str, ...] = field(default=(), compare=False)
    """What it does not give, in words for people."""


_TIMING = (
    "who sees both ends of a circuit, or both its first and its last relay, matches them by time and volume: "
    "there is no padding and no delay"
)
_GUARD = (
    "your guard learns your address and when you are online; whoever finds it by patience learns where to ask for you"
)
_EXIT = "the exit sees where you go, and all that you send without encryption of its own"

NONE = Level(
    "none",
    1,
    gives="Hides your address from the destination.",
    lacks=("the one relay sees your address and your destination, and can write both down", _EXIT),
)
LOW = Level(
    "low",
    2,
    gives="No single relay sees both your address and your destination.",
    lacks=("the two relays know each other: together they know you and your destination", _TIMING, _GUARD, _EXIT),
)
MEDIUM = Level(
    "medium",
    3,
    gives="The exit does not know your guard: two relays that know you and your destination do not know of each other.",
    lacks=(_TIMING, _GUARD, _EXIT),
)
HIGH = Level(
    "high",
    4,
    layer2=True,
    strict=True,
    isolate_host=True,
    gives=(
        "The second relay is one of four kept for days, so that finding your guard takes much longer; entry and exit "
        "are never in one country or bloc, as far as a table of countries is installed; each destination host has "
        "circuits of its own."
    ),
    lacks=(
        f"{_TIMING}. Link padding comes with the emission scheduler",
        _EXIT,
    ),
)
DEFAULT = MEDIUM
LEVELS = {level.name: level for level in (NONE, LOW, MEDIUM, HIGH)}
"""The fixed rows by name; `custom:N` is made on request."""
_CUSTOM = "custom"


def _custom(hops: int) -> Level:
    """The level of so many relays and nothing else."""
    like = {1: NONE, 2: LOW}.get(hops, MEDIUM)
    lacks = like.lacks
    if hops > MEDIUM.hops:
        lacks = ("each relay more is one more that can fail or watch: more than three hide little more", *lacks)
    gives = like.gives if hops <= MEDIUM.hops else f"{like.gives} {hops - MEDIUM.hops} more stand between them."
    rare = "few use it: the number of relays on your circuits tells you from others"
    return Level(f"{_CUSTOM}:{hops}", hops, gives=gives, lacks=(*lacks, rare))


def parse_level(text: str) -> Level:
    """The level called "none", "low", "medium", "high" or "custom:N" (N relays). `ConfigError` says what is wrong."""
    level = LEVELS.get(text)
    if level is not None:
        return level
    if text == "max":
        raise ConfigError(
            "level 'max' needs mixing, which this version does not have; it has none, low, medium, high and custom:N. "
            "Nothing weaker is used in its place"
        )
    name, colon, number = text.partition(":")
    if name != _CUSTOM:
        raise ConfigError(f"no level {text!r}; the levels are none, low, medium, high and custom:N")
    # isdecimal alone would take digits of other scripts and make two names of one level
    if not colon or not (number.isascii() and number.isdecimal()) or number.startswith("0") or len(number) > 2:
        raise ConfigError(f"level {text!r}: write custom:N with N relays, {MIN_HOPS} to {MAX_HOPS}")
    hops = int(number)
    if not MIN_HOPS <= hops <= MAX_HOPS:
        raise ConfigError(f"level {text!r}: {hops} relays, allowed are {MIN_HOPS} to {MAX_HOPS}")
    return _custom(hops)
