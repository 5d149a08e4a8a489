"""`backrooms circuits` and `backrooms newnym`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from backrooms.cli.render import print_table
from backrooms.cli.target import Failure, node_options

if TYPE_CHECKING:
    from backrooms.cli.client import ControlClient

    OpenNode = Callable[[], AbstractContextManager[ControlClient]]


@click.command()
@node_options
@click.option("--json", "as_json", is_flag=True, help="Print what the node says as JSON.")
def circuits(open_node: OpenNode, as_json: bool) -> None:
    """Show a node's own circuits and the relays they go through, from the first hop to the last.

    \b
    Examples:
      backrooms circuits
      backrooms circuits --json | jq '.[] | select(.status == "BUILT") | .path'
    """
    with open_node() as client:
        found = client.json("backrooms/circuits")
        streams = [] if as_json else client.json("backrooms/streams")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    try:
        carried = Counter(stream["circuit_id"] for stream in streams)
        rows = [_row(circuit, carried[circuit["id"]]) for circuit in found]
    except (KeyError, TypeError, ValueError):
        raise Failure("the node's circuits are not what this version expects; try --json") from None
    if rows:
        print_table(["Id", "Status", "Level", "Streams", "Built in", "Path", "Shared by"], rows)
    else:
        click.echo("no circuits")


def _row(circuit: dict[str, Any], streams: int) -> list[str]:
    milliseconds = circuit["build_ms"]
    return [
        str(circuit["id"]),
        circuit["status"],
        circuit["level"],
        str(streams),
        "" if milliseconds is None else f"{milliseconds:.0f} ms",
        " > ".join(f"{hop['nickname']} ({hop['fingerprint'][:8]})" for hop in circuit["path"]),
        circuit["isolation"],
    ]


@click.command()
@node_options
def newnym(open_node: OpenNode) -> None:
    """Use new circuits from now on, so that what follows cannot be tied to what was before.

    Open connections stay on their circuits until they end.
    """
    with open_node() as client:
        client.command("SIGNAL NEWNYM")
    click.echo("new connections use new circuits from now on")
