"""`python -m bench.profile ROLE`: where a node of a loopback network spends its CPU time while it carries traffic.

Samples a running process with py-spy (`pip install py-spy`), so what is measured is not slowed down. Without
py-spy, stop one relay of a network and run it in the foreground under Python's own profiler instead:

    twistd --profile=relay.prof --profiler=cprofile --savestats -n backrooms -c DIR/relay1/backrooms.toml
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bench.control import ControlError
from bench.cpu import ProcessGone, cpu_between, cpu_sample
from bench.load import MB, Load, LoadError
from bench.network import Network, NetworkError
from bench.ours import OurNetwork
from bench.rounds import watch_paths
from bench.sink import Sink

ROLES = ("client", "guard", "middle", "exit")
ENOUGH_MB = 4000
FAILURES = (NetworkError, LoadError, ControlError, ProcessGone, OSError)
WAITING = ("Condition.wait (threading.py", "EPollReactor.doPoll (")
"""Functions that wait: their samples are no CPU time, but py-spy cannot always tell."""


def parse_stacks(text: str) -> list[tuple[list[str], int]]:
    """py-spy's raw format: `outer;...;inner COUNT` a line, as stacks, innermost function last, without WAITING."""
    stacks = []
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        if stack and not stack.rpartition(";")[2].startswith(WAITING):
            stacks.append((stack.split(";"), int(count)))
    return stacks


def shares(stacks: list[tuple[list[str], int]]) -> list[tuple[str, float, float]]:
    """Function, percent of samples in itself, percent in itself and what it called; the hungriest first."""
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for stack, count in stacks:
        own[stack[-1]] += count
        for name in set(stack):
            within[name] += count
    total = sum(own.values())
    return [(name, 100 * own[name] / total, 100 * within[name] / total) for name, _ in own.most_common()]


def find_sampler() -> str:
    """The py-spy of the environment that runs this, else of the PATH."""
    beside = Path(sys.executable).parent / "py-spy"
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise click.ClickException("py-spy is not installed (pip install py-spy); see python -m bench.profile --help")
    return found


def sample(sampler: str, pid: int, seconds: int, native: bool, raw: Path) -> None:
    """Let py-spy look at `pid` 200 times a second, without stopping it, and write collapsed stacks to `raw`."""
    command = [sampler, "record", "--pid", str(pid), "--duration", str(seconds), "--rate", "200", "--nonblocking"]
    command += ["--format", "raw", "--function", "--output", str(raw)]
    if native:
        command.append("--native")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"py-spy: {(done.stderr or done.stdout).strip()}")


def pick(network: Network, path: list[int], role: str) -> int:
    """The process that plays `role` for the circuit with hops `path`."""
    return network.client_pid if role == "client" else path[ROLES.index(role) - 1]


@click.command(help=__doc__)
@click.argument("role", type=click.Choice(ROLES))
@click.option("--up", is_flag=True, help="Upload instead of download.")
@click.option("--seconds", default=10, show_default=True, type=click.IntRange(1), help="How long to sample.")
@click.option("--native", is_flag=True, help="Show functions of C libraries, too.")
@click.option("--rows", default=30, show_default=True, help="Functions to list.")
@click.option("--raw", type=click.Path(dir_okay=False, path_type=Path), help="Keep the collapsed stacks here.")
def main(role: str, up: bool, seconds: int, native: bool, rows: int, raw: Path | None) -> None:
    """Profile one node of a fresh loopback network."""
    sampler = find_sampler()
    try:
        show_profile(sampler, role, up, seconds, native, rows, raw)
    except FAILURES as error:
        raise click.ClickException(str(error)) from error


def show_profile(sampler: str, role: str, up: bool, seconds: int, native: bool, rows: int, raw: Path | None) -> None:
    """Start a network, load it, sample the process and print the table."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="backrooms-profile-")))
        sink = stack.enter_context(Sink())
        testbed = OurNetwork(folder / "ours")
        stack.callback(testbed.stop)
        testbed.launch()
        network = testbed.wait(120)
        load = stack.enter_context(Load(sink.port, ENOUGH_MB))
        kind = "up_1" if up else "down_1"
        users = load.users(kind, "profile")
        load.warm_up(network.socks, users)
        running = load.start(kind, network.socks, users)
        stack.callback(running.abandon)
        path = [relay.pid for relay in watch_paths(network, running, 1, sink.port)[0]]
        pid = pick(network, path, role)
        raw = raw or folder / "stacks"
        before, started = cpu_sample(pid), time.monotonic()
        sample(sampler, pid, seconds, native, raw)
        busy = cpu_between(before, cpu_sample(pid)) / (time.monotonic() - started)
        if not running.active():
            raise click.ClickException(f"{ENOUGH_MB * MB} bytes were not enough for {seconds} s")
        table = Table("function", "own %", "with calls %", title=f"{role}, {kind}: {100 * busy:.0f} % of a core")
        for name, own, within in shares(parse_stacks(raw.read_text()))[:rows]:
            table.add_row(name, f"{own:.1f}", f"{within:.1f}")
        Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
