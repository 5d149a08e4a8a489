"""`python -m bench.sim`: runs the simulations, prints their tables, writes SIM.md and sim.json beside RESULTS.md."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

import bench.sim
from bench.sim.section import Section

HERE = Path(__file__).parent.parent


def simulations() -> Iterator[tuple[str, Any]]:
    """The modules of this package that have a `run`, by name."""
    for module in sorted(pkgutil.iter_modules(bench.sim.__path__), key=lambda one: one.name):
        if module.name not in ("__main__", "section"):
            found = importlib.import_module(f"bench.sim.{module.name}")
            if hasattr(found, "run"):
                yield module.name, found


def markdown(section: Section, seconds: float) -> str:
    """The section of SIM.md."""
    lines = [f"## {section.title}", ""]
    lines += [f"{note}  " for note in section.notes] + [""] * bool(section.notes)
    lines += ["| " + " | ".join(section.columns) + " |", "|" + "---|" * len(section.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in section.rows]
    lines += [""] + [f"**Falls short:** {failure}  " for failure in section.failures]
    return "\n".join([*lines, f"Took {seconds:.0f} s.", ""])


@click.command()
@click.option("--only", multiple=True, metavar="NAME", help="Run only this simulation; may be given several times.")
@click.option("--json", "as_json", is_flag=True, help="Print what sim.json gets instead of tables.")
def main(only: tuple[str, ...], as_json: bool) -> None:
    """Simulate whole networks with the real code, and print what came of it.

    All simulations together take a few minutes and write bench/SIM.md and bench/sim.json; with --only nothing is
    written.
    """
    console = Console(stderr=as_json)
    texts: list[str] = []
    data: dict[str, Any] = {}
    failures: list[str] = []
    known = dict(simulations())
    for name in only:
        if name not in known:
            raise click.BadParameter(f"no simulation {name!r}; there are {', '.join(known)}")
    for name, module in known.items():
        if only and name not in only:
            continue
        began = time.monotonic()
        with console.status(f"simulating {name}"):
            section: Section = module.run()
        seconds = time.monotonic() - began
        texts.append(markdown(section, seconds))
        data[name] = section.data
        failures += [f"{name}: {failure}" for failure in section.failures]
        if not as_json:
            table = Table(*section.columns, title=section.title, caption=f"{seconds:.0f} s")
            for row in section.rows:
                table.add_row(*row)
            console.print(table)
    if as_json:
        click.echo(json.dumps(data, indent=1))
    if not only:
        head = "# Simulations\n\nWritten by `make sim`. The code is real, time and the network are simulated.\n\n"
        (HERE / "SIM.md").write_text(head + "\n".join(texts), "utf-8")
        (HERE / "sim.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    for failure in failures:
        console.print(f"[red]falls short: {failure}[/red]")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
