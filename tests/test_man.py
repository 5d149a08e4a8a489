"""The manual pages are well formed, and backrooms.toml(5) explains every option with its default."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_etc import all_options, uncommented

PAGES = sorted((Path(__file__).parent.parent / "man").iterdir())
CONFIG_PAGE = Path(__file__).parent.parent / "man" / "backrooms.toml.5"

# Complaints about which other manuals are installed.
OF_THE_MACHINE = ("outdated mandoc.db", "referenced manual not found")


def explained() -> dict[str, str]:
    """Option by its dotted name, and the default that the page shows, without white space."""
    found = {}
    tables: list[str] = []
    for line in CONFIG_PAGE.read_text().splitlines():
        if line.startswith(".Ss "):
            tables = re.findall(r"\[+([\w.]+)\]+", line)
        elif match := re.match(r"\.It Ic (\w+) No = (.*)", line):
            for table in tables:
                found[f"{table}.{match[1]}"] = default_of(match[2])
    return found


def default_of(macros: str) -> str:
    """What mdoc prints for the default: quotes for Qq, Qo and Qc."""
    text = re.sub(r"\bQq (\S+)", r'"\1"', macros).replace(r"\&", "")
    return re.sub(r"\s*\b(Qo|Qc)\b\s*", '"', text).replace(" ", "")


def shown_defaults() -> dict[str, str]:
    """The same, out of etc/backrooms.toml."""
    found = {}
    table = ""
    for line in uncommented().splitlines():
        if match := re.match(r"\[+([\w.]+)\]+$", line):
            table = match[1]
        elif match := re.match(r"(\w+) = (.*)$", line):
            found[f"{table}.{match[1]}"] = match[2].replace(" ", "")
    return found


def test_every_option_is_explained() -> None:
    assert set(explained()) == all_options()


def test_the_defaults_are_right() -> None:
    shown = shown_defaults()
    del shown["http.listen"]  # one text explains both kinds of listeners, and says this port in words
    assert {name: explained()[name] for name in shown} == shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_well_formed(page: Path, require: Callable[[str], str]) -> None:
    lint = subprocess.run([require("mandoc"), "-T", "lint", page], capture_output=True, text=True, check=False)
    assert [line for line in lint.stdout.splitlines() if not any(word in line for word in OF_THE_MACHINE)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_refer_to_pages_that_exist(page: Path) -> None:
    ours = {f"{name} {section}" for name, section in re.findall(r"^\.Xr (backrooms\S*) (\d)", page.read_text(), re.M)}
    assert ours <= {other.name[:-2] + " " + other.name[-1] for other in PAGES}
