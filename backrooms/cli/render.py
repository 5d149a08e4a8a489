"""Numbers and tables for people."""

from __future__ import annotations

from typing import Any

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


def print_table(columns: list[str], rows: list[list[str]], header: bool = True) -> None:
    """A table without frame; on a pipe it is as wide as it needs to be."""
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
    console.print(table)
