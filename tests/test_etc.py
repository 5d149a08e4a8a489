"""The example configuration shows every option at its default."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from backrooms.config import Config
from backrooms.config.routes import RouteOptions

EXAMPLE = Path(__file__).parent.parent / "etc" / "backrooms.toml"


def uncommented() -> str:
    """The example with its options switched on: "#" directly before a table or a key."""
    return re.sub(r"^#(?=\[|\w+ = )", "", EXAMPLE.read_text(), flags=re.MULTILINE)


def all_options(kind: Any = Config, prefix: str = "") -> set[str]:
    """The dotted names of all options."""
    found = set()
    hints = get_type_hints(kind)
    for one in fields(kind):
        if not one.metadata.get("option", True):
            continue
        inner = next((t for t in (hints[one.name], *get_args(hints[one.name])) if is_dataclass(t)), None)
        found |= all_options(inner, f"{prefix}{one.name}.") if inner else {prefix + one.name}
    return found


def shown_options(table: dict[str, Any], prefix: str = "") -> set[str]:
    """The dotted names of all options in a parsed file."""
    found = set()
    for key, value in table.items():
        inner = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
        found |= shown_options(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {prefix + key}
    return found


def test_the_example_as_it_is_changes_nothing() -> None:
    assert Config.load(EXAMPLE) == Config.parse("", EXAMPLE.parent)


def test_the_example_uncommented_has_the_defaults() -> None:
    assert uncommented() != EXAMPLE.read_text()
    found = Config.parse(uncommented(), EXAMPLE.parent)
    assert replace(found, routes=()) == Config.parse("", EXAMPLE.parent)
    assert found.routes == (RouteOptions(match=("*.example.org:443",)),)  # there is none by default


def test_the_example_is_complete() -> None:
    assert shown_options(tomllib.loads(uncommented())) == all_options()


def test_every_option_is_found_by_this_test() -> None:
    assert {"node.state", "socks.listen", "client.spares.medium", "path.avoid_exit"} <= all_options()
    assert "file" not in all_options()
