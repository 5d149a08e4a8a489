"""`backrooms path`: why paths are chosen, what circuits go through, and what levels give."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from backrooms.cli.render import byte_count, duration, print_table, print_text
from backrooms.cli.target import Failure, node_options

if TYPE_CHECKING:
    from backrooms.cli.client import ControlClient

    OpenNode = Callable[[], AbstractContextManager[ControlClient]]

TOP = 10


@click.group()
def path() -> None:
    """Ask why paths are as they are.

    \b
    Examples:
      backrooms path explain --to example.org:443 --level high
      backrooms path inspect 12
      backrooms path levels
    """


@click.group()
def route() -> None:
    """Ask what circuits go through."""


@path.command()
@node_options
@click.option("--to", metavar="HOST:PORT", default="", help="For a stream to there; else for one to anywhere.")
@click.option("--level", metavar="LEVEL", default="", help="At this level; else at that of the rule or the node.")
@click.option(
    "--top", type=click.IntRange(0, 100_000), default=TOP, show_default=True, help="Relays shown per position."
)
@click.option("--all", "everything", is_flag=True, help="Show every relay.")
@click.option("--json", "as_json", is_flag=True, help="Print what the node says as JSON.")
def explain(open_node: OpenNode, to: str, level: str, top: int, everything: bool, as_json: bool) -> None:
    """Choose a path as for a circuit, and say why it is this one. Nothing is built or sent.

    Each position is shown in the order in which it is filled: who could be there, how likely each was, and which rule
    excluded how many.
    """
    words = {"to": to, "level": level, "top": "all" if everything else str(top)}
    asked = ",".join(f"{key}:{value}" for key, value in words.items() if value)
    if any(char.isspace() or char == "," for value in words.values() for char in value):
        raise click.UsageError("neither a destination nor a level has spaces or commas")
    with open_node() as client:
        found = client.json(f"backrooms/explain/{asked}")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    try:
        _show(found)
    except (KeyError, TypeError, ValueError):
        raise Failure("the node's explanation is not what this version expects; try --json") from None
    if found["error"]:
        raise click.exceptions.Exit(1)


def _show(found: Mapping[str, Any]) -> None:
    by = f", by {found['rule']}" if found["rule"] else ""
    where = f" to {found['to']}" if found["to"] else ""
    print_text(f"{found['level']}{where}{by}: {found['hops']} of {found['known']} relays")
    for key in ("avoid", "exit"):
        if found[key]:
            print_text(f"  {key}: {', '.join(found[key])}")
    for text in found["warnings"]:
        print_text(f"  warning: {text}")
    for text in found["gaps"]:
        print_text(f"  not held: {text}")
    for number, step in enumerate(found["steps"], 1):
        click.echo("")
        print_text(
            f"{number}. {step['position']} (relay {step['index'] + 1}): {step['candidates']} could be; rules leave "
            f"{step['left']:.1%} of the weight, {step['fitting']:.1%} of that fits what was chosen before"
        )
        for reason, count in step["excluded"].items():
            print_text(f"   {count:6} {reason}")
        rows = [
            [
                "  >" if relay["chosen"] else "",
                relay["nickname"],
                relay["fingerprint"][:8],
                f"{relay['weight']:.2%}",
                f"{relay['chance']:.2%}",
                relay["reason"],
            ]
            for relay in step["relays"]
        ]
        if rows:
            print_table(["   ", "Nickname", "Fingerprint", "Weight", "Chance", "Excluded by"], rows)
    click.echo("")
    if found["error"]:
        print_text(found["error"])
    else:
        click.echo("Path:")
        _show_relays(found["path"])


@click.command(short_help="Show the relays of a circuit.")
@node_options
@click.argument("circuit", type=click.IntRange(1, 10**11))
@click.option("--json", "as_json", is_flag=True, help="Print what the node says as JSON.")
def inspect(open_node: OpenNode, circuit: int, as_json: bool) -> None:
    """Show the relays of CIRCUIT, a number that `backrooms circuits` tells: operator, family, network, country, age."""
    with open_node() as client:
        found = client.json(f"backrooms/path/{circuit}")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    try:
        by = f", by {found['rule']}" if found["rule"] else ""
        print_text(f"circuit {found['id']}: {found['status']}, level {found['level']}{by}")
        _show_relays(found["path"])
    except (KeyError, TypeError, ValueError):
        raise Failure("the node's circuit is not what this version expects; try --json") from None


path.add_command(inspect)
route.add_command(inspect)


def _show_relays(relays: list[dict[str, Any]]) -> None:
    now = datetime.now(UTC).timestamp()
    columns = [
        "Nickname",
        "Fingerprint",
        "Operator",
        "Family",
        "Networks",
        "Country",
        "AS",
        "Exit",
        "Capacity",
        "Known for",
    ]
    rows = []
    for relay in relays:
        if relay.get("gone"):
            rows.append(["(not in the list any more)", *[""] * (len(columns) - 1)])
            continue
        seen = relay["first_seen"]
        rows.append(
            [
                relay["nickname"],
                relay["fingerprint"][:8],
                relay["operator"] or "-",
                " ".join(one[:8] for one in relay["family"]) or "-",
                " ".join(relay["nets"]) or "-",
                " ".join(relay["countries"]) or "?",
                " ".join([f"AS{asn}" for asn in relay["asns"]] + relay["as_names"]) or "?",
                "exit" if relay["exit"] else "",
                f"{byte_count(relay['capacity'])}/s",
                duration(max(0, now - seen)) if seen else "?",
            ]
        )
    print_table(columns, rows, paragraphs=True)


@path.command(short_help="Show what each level gives and does not give.")
@node_options
@click.option("--json", "as_json", is_flag=True, help="Print what the node says as JSON.")
def levels(open_node: OpenNode, as_json: bool) -> None:
    """Show what each level gives and what it does not give, on this node."""
    with open_node() as client:
        found = client.json("backrooms/levels")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for one in found:
        default = ", the default" if one["default"] else ""
        relays = "1 relay" if one["hops"] == 1 else f"{one['hops']} relays"
        print_text(f"{one['level']}: {relays}{default}")
        print_text(f"  gives: {one['gives']}")
        for text in one["lacks"]:
            print_text(f"  does not give: {text}")
        click.echo("")
