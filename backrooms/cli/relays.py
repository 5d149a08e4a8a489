"""`backrooms relays`."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from backrooms.cli.render import byte_count, print_table
from backrooms.cli.target import Failure, node_options

if TYPE_CHECKING:
    from backrooms.cli.client import ControlClient

    OpenNode = Callable[[], AbstractContextManager[ControlClient]]


@click.command()
@node_options
@click.option("--exits", is_flag=True, help="Only those that connect to the outside.")
@click.option("--json", "as_json", is_flag=True, help="Print what the node says as JSON.")
def relays(open_node: OpenNode, exits: bool, as_json: bool) -> None:
    """Show the relays that a node knows.

    \b
    Examples:
      backrooms relays
      backrooms relays --exits --json | jq -r '.[].addresses[]'
    """
    with open_node() as client:
        found = client.json("backrooms/relays")
    try:
        if exits:
            found = [relay for relay in found if relay["exit"]]
        rows = [_row(relay) for relay in found]
    except (KeyError, TypeError, ValueError):
        raise Failure("the node's relays are not what this version expects; try --json") from None
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif rows:
        print_table(["Nickname", "Fingerprint", "Exit", "Capacity", "Addresses"], rows)
    else:
        click.echo("no relays")


def _row(relay: dict[str, Any]) -> list[str]:
    return [
        relay["nickname"],
        relay["fingerprint"],
        "revoked" if relay.get("revoked") else "exit" if relay["exit"] else "",
        f"{byte_count(relay['capacity'])}/s",
        " ".join(relay["addresses"]),
    ]
