"""Numbers and tables for people."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def byte_count(number: float) -> str:
    """A count of bytes with three digits and a decimal unit: `12.3 MB`."""
    power = 0
    while number >= 999.5 and power < len(UNITS) - 1:  # below 1000, or it would print as 1e+03
        number /= 1000
        power += 1
    return f"{number:.3g} {UNITS[power]}"


def duration(seconds: float) -> str:
    """Seconds as the two largest units that matter: `3 h 5 min`."""
    whole = int(seconds)
    for size, unit, smaller_size, smaller in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size} {smaller}"
    return f"{whole} s"


def plain(value: Any) -> str:
    """Text that a node sent, fit for a terminal: no control characters."""
    return "".join(char if char.isprintable() else "?" for char in str(value))


def print_text(text: str) -> None:
    """One line; on a terminal it is broken between words, and goes on two columns further in than it began."""
    text = plain(text)
    if sys.stdout.isatty():
        begin = " " * (len(text) - len(text.lstrip()) + 2)
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, subsequent_indent=begin, break_long_words=False, break_on_hyphens=False)
    click.echo(text)


def print_table(columns: list[str], rows: list[list[str]], header: bool = True, paragraphs: bool = False) -> None:
    """A table without frame; on a pipe it is as wide as it needs to be.

    With `paragraphs`, one that is too wide for the terminal becomes a paragraph for each row: the first two cells,
    then the others that say something, each after its column's title.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=header, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)
        with console.capture() as capture:
            console.print(table)
        click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))
    elif paragraphs and _width(console, table) > console.width:
        for row in rows:
            cells = zip(columns[2:], row[2:], strict=True)
            told = "; ".join(
                cell if cell == title.lower() else f"{title} {cell}" for title, cell in cells if cell not in ("", "-")
            )
            print_text(": ".join(part for part in (" ".join(row[:2]).strip(), told) if part))
    else:
        console.print(table)


def _width(console: Console, table: Table) -> int:
    """How many columns a table would have if there was room."""
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum
