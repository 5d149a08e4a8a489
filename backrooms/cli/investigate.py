"""`backrooms investigate`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from backrooms.cli.render import duration, plain, print_table, print_text
from backrooms.cli.target import Failure, node_options

if TYPE_CHECKING:
    from backrooms.cli.client import ControlClient

    OpenNode = Callable[[], AbstractContextManager[ControlClient]]

PAUSE = 0.5
"""Seconds between questions how far it is."""
FOUND_BAD = 4
"""Exit status when a relay was found that does harm."""
BAD_FIRST = ("destroys circuits", "refuses to extend", "delays cells", "unreachable", "overloaded")


@click.command(context_settings={"max_content_width": 100})
@node_options
@click.argument("target", nargs=-1)
@click.option("--minutes", type=click.FloatRange(min=0.1, max=240), help="How long at most; 2.6 if not given.")
@click.option("--url", help="A page to fetch through several exits; http:// in full, of https:// the certificates.")
@click.option("--guarded", is_flag=True, help="Enter the network by our guards only: slower to tell who it is.")
@click.option("--forget", is_flag=True, help="Forget what was found of TARGET, which is a relay or all.")
@click.option("--stop", is_flag=True, help="Stop the investigation that runs.")
@click.option("--scores", is_flag=True, help="Show what is remembered of relays, without any new probe.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def investigate(
    open_node: OpenNode,
    target: tuple[str, ...],
    minutes: float | None,
    url: str | None,
    guarded: bool,
    forget: bool,
    stop: bool,
    scores: bool,
    as_json: bool,
) -> None:
    """Find relays that destroy circuits, refuse to extend them or delay what passes.

    TARGET is a relay (id, fingerprint or nickname), `path N` for the relays of circuit N, or `all`. Probes are circuits
    of the node's own, which carry nothing. Relays that are found bad are avoided for some hours.

    \b
    Examples:
      backrooms investigate all --testnet ./testnet
      backrooms investigate path 12 --minutes 1
      backrooms investigate all --url http://example.com/ --json | jq '.relays[] | select(.bad)'
      backrooms investigate --forget relay3

    Exit status: 0 nobody does harm, 4 somebody does, 1 error, 2 wrong usage, 3 the node is not running.
    """
    if stop + scores + bool(target) > 1 or not (stop or scores or target):
        raise click.UsageError("give a relay, `path N` or `all`; or one of --stop and --scores")
    words = _words(target)
    with open_node() as client:
        if stop:
            client.command("INVESTIGATE STOP")
            return
        if scores:
            _show_scores(client.json("backrooms/scores"), as_json)
            return
        if forget:
            answer = client.command(f"INVESTIGATE FORGET {words}")
            click.echo(answer.lines[0].text.replace("FORGOTTEN=", "scores forgotten: "))
            return
        options = [f"MINUTES={minutes:.6f}"] if minutes is not None else []
        options += [f"URL={_quoted(url)}"] if url is not None else []
        options += ["GUARDED"] if guarded else []
        client.command(" ".join(["INVESTIGATE", words, *options]))
        try:
            report = _wait(client, as_json)
        except KeyboardInterrupt:
            client.command("INVESTIGATE STOP")
            report = client.json("backrooms/investigation")
    try:
        bad = any(relay["bad"] for relay in report["relays"])
        if as_json:
            click.echo(json.dumps(report, indent=2))
        else:
            _show(report)
    except (KeyError, TypeError, ValueError):
        raise Failure("the node's report is not what this version expects; try --json") from None
    if bad:
        raise SystemExit(FOUND_BAD)


def _words(target: tuple[str, ...]) -> str:
    if len(target) > 2 or (len(target) == 2 and target[0] != "path") or target == ("path",):
        raise click.UsageError("TARGET is a relay, `path N` or `all`")
    return " ".join(_quoted(word) for word in target)


def _quoted(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise click.UsageError(f"{text!r}: only printable ASCII characters can be sent")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _wait(client: ControlClient, quiet: bool) -> Any:
    """Show how far it is until it is over; the report."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("probes", total=1.0)
        while True:
            report = client.json("backrooms/investigation")
            try:
                bad = [plain(relay["nickname"]) for relay in report["relays"] if relay["bad"]]
                said = f"{report['probes']['finished']} probes" + (f", found {', '.join(bad)}" if bad else "")
                progress.update(task, completed=report["progress"], description=said)
                if report["state"] != "running":
                    return report
            except (KeyError, TypeError):
                raise Failure("the node's report is not what this version expects") from None
            time.sleep(PAUSE)


def _show(report: dict[str, Any]) -> None:
    probes = report["probes"]
    click.echo(
        f"{probes['started']} probes in {duration(report['elapsed'])}: {probes['failed']} ended early, "
        f"{probes['void']} say nothing, {probes['round_trips']} round trips"
    )
    relays = sorted(report["relays"], key=_rank)
    rows = [
        [
            relay["nickname"],
            relay["fingerprint"][:8],
            relay["verdict"],
            *(_figure(relay["figures"].get(role)) for role in ("accepts", "extends", "carries", "delays")),
            "" if relay["round_trip_ms"] is None else f"{relay['round_trip_ms']:.0f} ms",
            "avoided" if relay["avoided"] else "",
        ]
        for relay in relays
    ]
    titles = ["Relay", "", "Verdict", "Refused", "Not extended", "Ended early", "Late", "Round trip", ""]
    print_table(titles, rows)
    for relay in relays:
        lines = [*relay["evidence"], *relay["notes"]]
        if lines:
            click.echo(f"\n{plain(relay['nickname'])} ({relay['fingerprint']}): {plain(relay['verdict'])}")
            for line in lines:
                print_text(f"  {line}")
    if report["exits"] is not None:
        click.echo(f"\n{plain(report['exits']['url'])}: {plain(report['exits']['verdict'])}")
        for look in report["exits"]["looks"]:
            print_text(f"  {look['nickname']}: {look['shown'] or look['error']}")


def _rank(relay: dict[str, Any]) -> tuple[int, str]:
    verdict = relay["verdict"]
    return (BAD_FIRST.index(verdict) if verdict in BAD_FIRST else len(BAD_FIRST)), relay["nickname"]


def _figure(pair: list[int] | None) -> str:
    return f"{pair[1]} of {pair[0]}" if pair and pair[0] else "-"


def _show_scores(scores: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(scores, indent=2))
        return
    try:
        rows = [
            [
                one["fingerprint"],
                one["verdict"],
                f"{one['strength']:g}",
                "avoided" if one["avoided"] else "",
                one["text"],
            ]
            for one in scores
        ]
    except (KeyError, TypeError, ValueError):
        raise Failure("the node's scores are not what this version expects; try --json") from None
    if rows:
        print_table(["Relay", "Verdict", "Score", "", "Evidence"], rows)
    else:
        click.echo("nothing bad is remembered of any relay")
