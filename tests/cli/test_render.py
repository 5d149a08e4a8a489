"""Text and tables on a terminal and on a pipe."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable

import pytest

from backrooms.cli.render import print_table, print_text

COLUMNS = ["Nickname", "Fingerprint", "Operator", "Country", "Exit"]
ROWS = [["relay1", "0011AABB", "Some people with a long name", "de", "exit"], ["relay2", "2233CCDD", "-", "?", ""]]
PROSE = "  gives: " + "a word " * 20


class Terminal(io.StringIO):
    """What says that somebody looks at it."""

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, show: Callable[[], None]) -> str:
    """What is shown where standard output is a terminal of so many columns, without its escape sequences."""
    found = Terminal()
    with monkeypatch.context() as changed:
        changed.setattr(sys, "stdout", found)
        changed.setenv("COLUMNS", str(columns))
        changed.setenv("TERM", "xterm")
        show()
    return re.sub(r"\x1b\[[0-9;]*m", "", found.getvalue())


def test_prose_is_broken_between_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = on_terminal(monkeypatch, 40, lambda: print_text(PROSE))
    lines = shown.splitlines()
    assert len(lines) > 3
    assert all(len(line) <= 40 for line in lines)
    assert lines[0].startswith("  gives: a word")
    assert all(line.startswith("    ") and line[4] != " " for line in lines[1:])
    assert " ".join(shown.split()) == " ".join(PROSE.split())


def test_a_table_that_does_not_fit_becomes_paragraphs(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = on_terminal(monkeypatch, 40, lambda: print_table(COLUMNS, ROWS, paragraphs=True))
    assert shown.splitlines() == [
        "relay1 0011AABB: Operator Some people",
        "  with a long name; Country de; exit",
        "relay2 2233CCDD: Country ?",
    ]


def test_one_that_fits_stays_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = on_terminal(monkeypatch, 80, lambda: print_table(COLUMNS, ROWS, paragraphs=True))
    assert shown.splitlines()[0].split() == COLUMNS
    assert len(shown.splitlines()) == 3


def test_on_a_pipe_lines_are_whole_and_end_where_their_text_does(capsys: pytest.CaptureFixture[str]) -> None:
    print_text(PROSE)
    print_table(COLUMNS, ROWS, paragraphs=True)
    prose, *table = capsys.readouterr().out.splitlines()
    assert prose == PROSE
    assert len(table) == 3
    assert table[1].endswith("de       exit")
    assert table[2].endswith("?")
