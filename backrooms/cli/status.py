"""`backrooms status`."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from backrooms.cli.render import byte_count, duration, print_table
from backrooms.cli.target import Failure, node_options

if TYPE_CHECKING:
    from backrooms.cli.client import ControlClient

    OpenNode = Callable[[], AbstractContextManager[ControlClient]]


SHOWN = 5
"""Kinds of refusals that are shown."""


@click.command()
@node_options
@click.option("--json", "as_json", is_flag=True, help="Print what the node says as JSON.")
def status(open_node: OpenNode, as_json: bool) -> None:
    """Show how a node is doing: is it ready, where does it listen, what has it got.

    \b
    Examples:
      backrooms status -c /etc/backrooms/backrooms.toml
      backrooms status --testnet ./testnet
      backrooms status --control 127.0.0.1:9051 --json | jq .bootstrap.percent
    """
    with open_node() as client:
        state = client.json("backrooms/status")
    if as_json:
        click.echo(json.dumps(state, indent=2))
        return
    try:
        rows = _rows(state)
    except (KeyError, TypeError, ValueError):
        raise Failure("the node's status is not what this version expects; try --json") from None
    print_table(["", ""], rows, header=False)


def _view_rows(view: dict[str, Any]) -> list[list[str]]:
    """What comparing views of the network came to."""
    last = view["last"]
    text = f"epoch {view['epoch']}, root {view['root']}"
    if last is not None:
        when = datetime.fromtimestamp(last["at"]).astimezone().strftime("%Y-%m-%d %H:%M")
        found = (
            f"{last['same']} of {last['compared']} relays had ours" if last["compared"] else "no relay showed one yet"
        )
        text += f"; {found}, {when}"
    rows = [["View", text]]
    if view["alarm"]:
        rows.append(["Alarm", view["alarm"]])
    if view["two-faced"]:
        rows.append(["Two-faced", f"relays that signed two records of one revision: {len(view['two-faced'])}"])
    return rows


def _rows(state: dict[str, Any]) -> list[list[str]]:
    start, circuits, relays, traffic = (state[k] for k in ("bootstrap", "circuits", "relays", "traffic"))
    memory, refused = state["memory"], state["refused"]
    rows = [
        ["Backrooms", f"{state['version']}, process {state['pid']}, up {duration(state['uptime'])}"],
        ["Start", f"{start['percent']} % {start['summary']}"],
        ["Level", f"{state['level']}"],
        ["Circuits", f"{circuits['built']} built, {circuits['building']} being built"],
        ["Streams", f"{state['streams']}"],
        ["Relays known", f"{relays['known']}, {relays['exits']} of them exits"],
        ["Links", f"{state['links']}"],
        ["Traffic", f"{byte_count(traffic['read'])} read, {byte_count(traffic['written'])} written"],
        ["In queues", f"{byte_count(memory['waiting'])} of {byte_count(memory['limit'])}"],
    ]
    rows += _view_rows(state["view"])
    if state["path"]:
        rows += [["Does not give", text] for text in state["path"]["lacks"] + state["path"]["gaps"]]
        rows += [["Warning", text] for text in state["path"]["warnings"]]
    if refused:
        often = sorted(refused.items(), key=lambda one: -one[1])
        more = f", and {len(often) - SHOWN} more kinds" if len(often) > SHOWN else ""
        rows.append(["Refused so far", ", ".join(f"{count} {kind}" for kind, count in often[:SHOWN]) + more])
    if state["fingerprint"]:
        rows.insert(1, ["Relay", f"{state['nickname']} {state['fingerprint']}"])
    for one in state["addresses"]:
        why = f" ({one['error']})" if one["error"] and not one["published"] else ""
        done = "published" if one["published"] else "not published"
        rows.append(["Reached at", f"{one['address'] or one['configured']}, {one['verdict']}, {done}{why}"])
    titles = {"socks": "SOCKS", "http": "HTTP proxy", "or": "Links on", "control": "Control"}
    for kind, title in titles.items():
        rows += [[title, address] for address in state["listeners"][kind]]
    if state["config_file"]:
        rows.append(["Configuration", state["config_file"]])
    return rows
