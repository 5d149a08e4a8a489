"""`backrooms geo`: the table of countries and networks that rules about known entities ask."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

from backrooms.cli.keys import failing_plainly
from backrooms.cli.render import byte_count, plain, print_table
from backrooms.cli.target import DEFAULT_CONFIG, SYSTEM_CONFIG
from backrooms.errors import ConfigError
from backrooms.keystore.disk import write_atomic
from backrooms.netdir.geo import AnyTable, GeoTable
from backrooms.netdir.geosource import FORMATS
from backrooms.node.geofile import Origin, find_table, import_files, load, open_table

FILE = click.Path(dir_okay=False, path_type=Path)
_NO_STATE = Path("/nonexistent")

_config = click.option("-c", "--config", metavar="FILE", type=FILE, help="The node with this configuration.")
_table = click.option("--table", metavar="FILE", type=FILE, help="This table, whatever any configuration says.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def geo() -> None:
    """Make and ask the table of countries and networks.

    Rules such as {de} or {AS3320} need it (backrooms.toml(5), [path]). It is a file on this machine; no address is
    ever looked up anywhere else.

    \b
    Examples:
      backrooms geo import ip2asn-combined.tsv.gz
      backrooms geo import dbip-country-lite.csv.gz dbip-asn-lite.csv.gz
      backrooms geo lookup 192.0.2.1
    """


@geo.command("import")
@click.argument("files", metavar="FILE...", type=FILE, nargs=-1, required=True)
@click.option("--format", "form", type=click.Choice(sorted(FORMATS)), help="The files' form; guessed if not given.")
@click.option("--source", metavar="TEXT", help="Who made the data, if the form does not tell.")
@click.option("--licence", metavar="TEXT", help="What is allowed with the data, if the form does not tell.")
@_config
@_table
@_json
def import_(
    files: tuple[Path, ...],
    form: str | None,
    source: str | None,
    licence: str | None,
    config: Path | None,
    table: Path | None,
    as_json: bool,
) -> None:
    """Make the table out of files that others publish.

    They may be compressed by gzip. Of several, the first that knows something about an address counts, so that one
    can have the countries and another the networks. Forms: tor (of the Debian package tor-geoipdb), iptoasn
    (iptoasn.com, any of its TSV files), dbip-country and dbip-asn (CSV files of DB-IP Lite), four (start,end,CC,ASN).

    The table is put where the node looks for it: path.geo of its configuration, or geo.table in its state folder. A
    running node takes it when it reads its configuration again.
    """
    with failing_plainly():
        target, state = _target(config, table)
        with _progress(files, as_json) as progress:
            found = import_files(files, form, progress)
        found.source, found.licence = source or found.source, licence or found.licence
        if state is not None and not state.exists():
            from backrooms.keystore.state import StateFolder

            StateFolder.open(state, with_keys=False).close()  # the node shall find its folder as it makes it itself
        data = found.to_bytes()
        write_atomic(target, data, 0o644)
    told = {"path": str(target), **describe(found)}
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"{target}: {len(found)} ranges, {byte_count(len(data))}, {_contents(found)}")
    if found.licence:
        click.echo(f"{plain(found.source)}: {plain(found.licence)}")


@geo.command()
@click.argument("addresses", metavar="ADDRESS...", nargs=-1, required=True)
@_config
@_table
@_json
def lookup(addresses: tuple[str, ...], config: Path | None, table: Path | None, as_json: bool) -> None:
    """Show where addresses are, and in which blocs.

    \b
    Example:
      backrooms geo lookup 192.0.2.1 2001:db8::1
    """
    with failing_plainly():
        blocs = _blocs(config)
        found = _open(_origin(config, table))
        rows = []
        for text in addresses:
            try:
                place = found.place(ip_address(text))
            except ValueError:
                raise ConfigError(f"{text}: is no address") from None
            its_blocs = sorted(name for name, countries in blocs.items() if place.country in countries)
            rows.append((text, place, its_blocs))
    if as_json:
        told = [
            {
                "address": text,
                "country": place.country or None,
                "asn": place.asn or None,
                "as_name": place.as_name or None,
                "blocs": its_blocs,
            }
            for text, place, its_blocs in rows
        ]
        click.echo(json.dumps(told, indent=2))
        return
    print_table(
        ["Address", "Country", "AS", "Name", "Blocs"],
        [
            [text, place.country or "??", f"AS{place.asn}" if place.asn else "??", place.as_name, " ".join(its_blocs)]
            for text, place, its_blocs in rows
        ],
    )


@geo.command()
@_config
@_table
@_json
def status(config: Path | None, table: Path | None, as_json: bool) -> None:
    """Show which table a node uses, who made it, and what it can answer."""
    with failing_plainly():
        origin = _origin(config, table)
        found = open_table(origin)
    told: dict[str, Any] = {"used": origin.kind, "path": str(origin.path) if found is not None else None}
    if found is not None:
        told |= describe(found)
    if as_json:
        click.echo(json.dumps(told, indent=2))
    elif found is None:
        click.echo("no table: rules about countries and networks are refused; `backrooms geo import` makes one")
    else:
        rows = [["used", _WORDS[origin.kind]], ["path", str(origin.path)], ["source", found.source]]
        rows += [["licence", found.licence], ["date", found.date], ["has", _contents(found)]]
        if isinstance(found, GeoTable):
            rows += [["ranges", str(len(found))], ["memory", byte_count(found.memory())]]
        print_table(["", ""], [row for row in rows if row[1]], header=False)


_WORDS = {
    "table": "the table that was named",
    "path.geo": "the table of the configuration, path.geo",
    "state": "the table in the node's state folder",
    "tor-geoipdb": "tor-geoipdb, since no table was imported",
}


def describe(table: AnyTable) -> dict[str, Any]:
    """What is told of a table as JSON."""
    told: dict[str, Any] = {
        "source": table.source,
        "licence": table.licence,
        "date": table.date,
        "countries": table.has_countries,
        "asns": table.has_asns,
        "names": table.has_names,
    }
    if isinstance(table, GeoTable):
        told |= {"ranges": len(table), "memory": table.memory()}
    return told


def _contents(table: AnyTable) -> str:
    """What a table can answer, in words."""
    parts = (("countries", table.has_countries), ("AS numbers", table.has_asns), ("names of AS", table.has_names))
    return ", ".join(name for name, has in parts if has)


def _find_config(config: Path | None) -> Path | None:
    """The configuration that is meant: the one given, or where the other commands look."""
    if config is not None:
        return config
    return next((path for path in (Path(DEFAULT_CONFIG), SYSTEM_CONFIG) if path.exists()), None)


def _places(config: Path) -> tuple[Path | None, Path]:
    """`path.geo`, if it is set, and the state folder of a configuration."""
    from backrooms.config import Config

    read = Config.load(config)
    return read.geo_file(), read.node.state


def _target(config: Path | None, table: Path | None) -> tuple[Path, Path | None]:
    """Where an imported table goes, and the state folder if it goes there."""
    if table is not None:
        return table, None
    found = _find_config(config)
    if found is None:
        raise ConfigError(
            f"where to? Give -c FILE or --table FILE (there is no {DEFAULT_CONFIG} here nor in {SYSTEM_CONFIG.parent})"
        )
    geo_file, state = _places(found)
    return (geo_file, None) if geo_file is not None else (state / "geo.table", state)


def _origin(config: Path | None, table: Path | None) -> Origin:
    """Where the table is that these options mean; without a configuration, tor-geoipdb."""
    if table is not None:
        return Origin("table", table)
    found = _find_config(config)
    return find_table(*_places(found)) if found is not None else find_table(None, _NO_STATE)


def _open(origin: Origin) -> AnyTable:
    found = load(origin.path) if origin.kind == "table" else open_table(origin)
    if found is None:
        raise ConfigError("there is no table; `backrooms geo import` makes one, or install tor-geoipdb")
    return found


def _blocs(config: Path | None) -> dict[str, frozenset[str]]:
    """The blocs that come with Backrooms and those of the configuration."""
    from backrooms.config import Config
    from backrooms.path.blocs import builtin_blocs, parse_blocs

    found = _find_config(config)
    own = Config.load(found).path.blocs if found is not None else ()
    return parse_blocs(own, builtin_blocs())


@contextmanager
def _progress(files: tuple[Path, ...], quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """A bar over the bytes of all files, where somebody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("reading", total=sum(path.stat().st_size for path in files))
        yield lambda done: progress.update(task, completed=done)
