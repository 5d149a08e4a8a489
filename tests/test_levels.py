"""Security levels: the fixed rows, and what custom may say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import ConfigError
from backrooms.levels import DEFAULT, LEVELS, MAX_HOPS, MIN_HOPS, parse_level


def test_rows() -> None:
    assert {name: level.hops for name, level in LEVELS.items()} == {"none": 1, "low": 2, "medium": 3, "high": 4}
    assert parse_level("medium") is DEFAULT
    assert all(parse_level(name).name == name for name in LEVELS)


def test_custom() -> None:
    for hops in range(MIN_HOPS, MAX_HOPS + 1):
        level = parse_level(f"custom:{hops}")
        assert (level.name, level.hops) == (f"custom:{hops}", hops)


def test_b6_max_is_refused_and_nothing_takes_its_place() -> None:
    with pytest.raises(ConfigError, match=r"'max' needs mixing.*Nothing weaker is used"):
        parse_level("max")


def test_b6_every_level_says_what_it_does_not_give() -> None:
    for level in (*LEVELS.values(), *(parse_level(f"custom:{hops}") for hops in range(MIN_HOPS, MAX_HOPS + 1))):
        assert level.gives
        assert level.lacks
    assert all("no padding" in " ".join(level.lacks) for level in LEVELS.values() if level.hops > 1)
    assert LEVELS["high"].layer2
    assert LEVELS["high"].strict
    assert LEVELS["high"].isolate_host
    assert not parse_level("custom:4").layer2


@pytest.mark.parametrize(
    "text", ["", "Medium", " low", "custom", "custom:", "custom:0", "custom:13", "custom:03", "custom:+3",
    "custom:\u0663",
     "custom:3 ", "custom:999999999999", "low:3", "default"],
)  # fmt: skip
def test_bad_levels(text: str) -> None:
    with pytest.raises(ConfigError, match="level"):
        parse_level(text)


@given(st.text(max_size=12))
def test_any_text_is_a_level_or_a_config_error(text: str) -> None:
    try:
        level = parse_level(text)
    except ConfigError:
        return
    assert level.name == text
