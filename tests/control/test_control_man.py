"""The man page of the control port is complete, and what it promises is there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from backrooms.cli.main import COMMANDS
from backrooms.control.auth import COOKIE_NAME
from backrooms.control.formats import EVENT_NAMES
from backrooms.control.information import FEATURES, SIGNALS
from backrooms.control.server import AUTHENTICATION_TIME, MAX_CONTROLLERS
from tests.control.sessions import entered

MAN = Path(__file__).parent.parent.parent / "man"
CONTROL = (MAN / "backrooms-control.7").read_text()
COMMAND = (MAN / "backrooms.1").read_text()


def words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z0-9_./+-]+", text))


def test_every_key_is_explained() -> None:
    names = [line.partition(" -- ")[0].removesuffix("*") for line in entered().value("info/names")]
    missing = [name for name in names if name not in words(CONTROL)]
    assert not missing


def test_every_word_of_the_commands_is_explained() -> None:
    options = [line.split()[0] for line in entered().value("config/names")]
    missing = {*EVENT_NAMES, *SIGNALS, *FEATURES, *options, COOKIE_NAME} - words(CONTROL)
    assert not missing
    for number in (MAX_CONTROLLERS, int(AUTHENTICATION_TIME)):
        assert str(number) in words(CONTROL)


@pytest.mark.parametrize("command", re.findall(r"^\.It Ic ([A-Z]+)", CONTROL, re.MULTILINE))
def test_every_command_that_is_explained_exists(command: str) -> None:
    assert entered().answer(f"{command} x").reply.code != 510


def test_every_command_that_exists_is_explained() -> None:
    explained = set(re.findall(r"^\.It Ic ([A-Z]+)", CONTROL, re.MULTILINE))
    assert explained == set(entered().session._commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_subcommand_is_explained(command: str) -> None:
    assert re.search(rf"^\.It Cm {command}\b", COMMAND, re.MULTILINE)


@pytest.mark.parametrize("page", ["backrooms.1", "backrooms-control.7"])
def test_mandoc_has_no_complaint(page: str, require: Callable[[str], str]) -> None:
    run = subprocess.run(
        [require("mandoc"), "-T", "lint", "-W", "warning", str(MAN / page)], capture_output=True, text=True
    )
    assert (run.stdout, run.returncode) == ("", 0)
