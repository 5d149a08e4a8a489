"""results.json as text: RESULTS.md for people, tables for the terminal."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.results import OURS

ROWS = (
    ("down_1", "1 stream down, MB/s"),
    ("down_8", "8 streams down, MB/s"),
    ("up_1", "1 stream up, MB/s"),
    ("ttfb_ms", "time to first byte, ms"),
    ("relay_cpu_s_per_gb", "relay CPU, s/GB per hop"),
    ("client_cpu_s_per_gb", "client CPU, s/GB"),
    ("relay_rss_mb", "biggest idle relay, RSS MB"),
    ("relay_pss_mb", "biggest idle relay, PSS MB"),
    ("idle_cpu_percent", "idle CPU, all processes, %"),
)
OWN_ROWS = (
    ("build_ms", "3-hop circuit, wall ms"),
    ("build_client_cpu_ms", "3-hop circuit, client CPU ms"),
    ("cell_us", "a cell away from the client through one relay, CPU µs"),
    ("cell_back_us", "a cell towards the client through one relay, CPU µs"),
    ("handshakes_per_s", "circuit handshakes a relay answers, per CPU second"),
    ("client_handshake_ms", "a client's handshake with one hop, CPU ms"),
)
DISTURBED_PERCENT = 10.0
HOW = """\
All networks run on this machine at the same time, each with 3-hop circuits on 127.0.0.1: Backrooms with 6
relays and a client (`backrooms testnet`), and networks of C tor with `TestingTorNetwork` (3 directory authorities
that are exits too, 2 relays, a client). While one is measured the others are idle. The same curl loads the same
server through each of them in turn, in rounds; the order of the networks changes from round to round. Streams
have SOCKS user names of their own, so each has its own circuit, made ready by a tiny request before the clock
starts. Throughput is payload / time; 8 streams together carry about as many bytes as one does alone, and the
last to end counts. Time to first byte is the median of {repetitions} tiny requests on a ready circuit, from the
start of the request at the SOCKS port to the first byte of the reply.

CPU is the sum of `/proc/PID/task/*/schedstat` over the time of the single download. What the same processes spend
in an interval of equal length in which all networks are idle, at the end of the round, is subtracted. The relays
that count are the hops of the circuits used, asked of the client's control port during the transfer; their
sum / 3 hops / payload is "per hop". MB and GB are powers of ten. Memory is read before the first load.

Figures are medians over rounds, with the least and greatest in brackets. Ratios are made within each round
(ours / theirs), then their median is taken. "The better tor" is, for each figure, the variant with the best median.

A circuit's client CPU is what requests that force new circuits cost beyond the same requests on a ready
circuit. Single operations are timed alone in one process. Client, relays, server and curl share the processor:
on a machine with few cores throughput is above all the sum of their costs.
"""


def about_machine() -> dict[str, Any]:
    """Processor, kernel, date and versions."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    curl = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {
            "backrooms": version("backrooms"),
            "python": platform.python_version(),
            "twisted": version("twisted"),
            "cryptography": version("cryptography"),
            "curl": curl.split()[1],
        },
    }


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.01 else f"{value:.2g}"


def cell(network: Mapping[str, Any], key: str) -> str:
    """A figure with its spread."""
    if key not in network:
        return "-"
    text = number(network[key])
    if key in network.get("spread", {}):
        low, high = network["spread"][key]
        text += f" ({number(low)}-{number(high)})"
    return text


def networks_in(results: Mapping[str, Any]) -> list[str]:
    """Networks with rounds, in the order they were measured."""
    return list(results["rounds"])


def figure_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """The main table, without its header."""
    names = networks_in(results)
    return [[title, *(cell(results[name], key) for name in names)] for key, title in ROWS] if names else []


def ratio_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Ratios ours / theirs, without the header."""
    ratios = results["ratios"]
    return [
        [title, *(f"{number(r['median'])} ({number(r['min'])}-{number(r['max'])})" for r in row)]
        for key, title in ROWS
        if (row := [ratios[name][key] for name in ratios if key in ratios[name]])
    ]


def bar_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """What must hold: figure, value, limit, verdict."""
    rows = []
    for bar in results["bars"]:
        spread = f" ({number(bar['min'])}-{number(bar['max'])})" if "min" in bar else ""
        sign = "<=" if bar["limit_is"] == "most" else ">="
        verdict = "holds" if bar["holds"] else "**FAIL**"
        rows.append([bar["bar"], number(bar["value"]) + spread, f"{sign} {bar['limit']:g}", verdict])
    return rows


def own_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Figures that only Backrooms has."""
    ours = results.get(OURS, {})
    return [[title, number(ours[key])] for key, title in OWN_ROWS if key in ours]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with the first column to the left and the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def disturbance(about: Mapping[str, Any]) -> str:
    """How busy the machine was with other things, and a warning when that spoils the figures."""
    if "machine_busy_percent" not in about:
        return ""
    busy = about["machine_busy_percent"]
    warning = ": **disturbed by other programs**" if busy > DISTURBED_PERCENT else ""
    return f", {number(busy)} % of the processors busy while all networks were idle{warning}"


def markdown(results: Mapping[str, Any]) -> str:
    """RESULTS.md."""
    about = results["about"]
    settings = about["settings"]
    versions = ", ".join(f"{name} {value}" for name, value in about["versions"].items())
    names = networks_in(results)
    parts = ["# Benchmark\n"]
    parts.append(
        f"{about['date']}; {about['cpu']}, {about['cores']} cores, Linux {about['kernel']}; {versions}.\n"
        f"{settings['rounds']} rounds of {settings['mb']} MB; "
        f"load average before the run {about['load_before']}{disturbance(about)}.\n"
        "Made by `make bench`; every round is in results.json.\n"
    )
    if warning := results.get("incomplete"):
        parts.append(f"**Incomplete run:** {warning}.\n")
    if names:
        parts.append("".join(f"* `{name}`: {results[name]['note']}\n" for name in names))
        parts.append(markdown_table(["median (min-max)", *names], figure_rows(results)))
    if results["ratios"]:
        parts.append("## Ours / theirs, paired by round\n")
        parts.append(markdown_table(["median (min-max)", *results["ratios"]], ratio_rows(results)))
    if results["bars"]:
        parts.append("## What must hold\n")
        parts.append(markdown_table(["figure", "measured", "limit", "verdict"], bar_rows(results)))
    if rows := own_rows(results):
        parts.append("## Backrooms alone\n")
        parts.append(markdown_table(["figure", "value"], rows))
    parts.append("## How it is measured\n")
    parts.append(HOW.format(repetitions=settings["ttfb_repetitions"]))
    return "\n".join(parts)


def terminal_tables(results: Mapping[str, Any]) -> list[Table]:
    """The same tables for the terminal."""
    tables = []
    for title, header, rows in (
        ("median (min-max)", ["figure", *networks_in(results)], figure_rows(results)),
        ("ours / theirs, paired by round", ["figure", *results["ratios"]], ratio_rows(results)),
        ("what must hold", ["figure", "measured", "limit", "verdict"], bar_rows(results)),
        ("Backrooms alone", ["figure", "value"], own_rows(results)),
    ):
        if rows:
            table = Table(*header, title=title)
            for row in rows:
                table.add_row(*(text.replace("**", "") for text in row))
            tables.append(table)
    return tables
