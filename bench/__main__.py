"""`python -m bench`: Backrooms beside C tor. Prints tables, writes RESULTS.md and results.json."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.builds import measure_builds
from bench.control import ControlError
from bench.cpu import ProcessGone, pss_mb, rss_mb
from bench.load import Load, LoadError
from bench.micro import measure_micro
from bench.network import Network, NetworkError, Testbed
from bench.ours import RELAYS, OurNetwork
from bench.report import DISTURBED_PERCENT, about_machine, markdown, terminal_tables
from bench.results import OURS, Measured, results_json
from bench.rounds import NetworkRound, Round, idle_together
from bench.sink import Sink
from bench.tornet import VARIANTS, TorNetwork, find_tor, tor_version

BOOT_SECONDS = 120.0
HERE = Path(__file__).parent
FULL_ROUNDS, FULL_MB = 5, 100
FAILURES = (NetworkError, LoadError, ControlError, ProcessGone, OSError)


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, and how often."""

    networks: tuple[str, ...]
    rounds: int
    mb: int
    ttfb_repetitions: int = 15
    builds: int = 50

    def shortfalls(self) -> list[str]:
        """Why this is less than the benchmark that figures are quoted from."""
        missing = [name for name in (OURS, *VARIANTS) if name not in self.networks]
        reasons = [f"without {', '.join(missing)}"] if missing else []
        if self.rounds < FULL_ROUNDS:
            reasons.append(f"{self.rounds} rounds instead of {FULL_ROUNDS}")
        if self.mb < FULL_MB:
            reasons.append(f"{self.mb} MB instead of {FULL_MB}")
        return reasons


def make_testbed(name: str, folder: Path) -> tuple[Testbed, str]:
    """A network by its name, and what it is in words."""
    if name == OURS:
        return OurNetwork(folder / name), f"Backrooms, {RELAYS} relays, as shipped"
    return TorNetwork(VARIANTS[name], folder / name), VARIANTS[name].note


def start_networks(
    settings: Settings, folder: Path, stack: ExitStack, console: Console
) -> list[tuple[Network, Measured]]:
    """All networks, started together and stopped by `stack`."""
    started = time.monotonic()
    made = [make_testbed(name, folder) for name in settings.networks]
    for testbed, _ in made:
        stack.callback(testbed.stop)
        testbed.launch()
    running = []
    with ThreadPoolExecutor(len(made)) as pool:
        waits = [pool.submit(testbed.wait, BOOT_SECONDS) for testbed, _ in made]
        for (_, note), wait in zip(made, waits, strict=True):
            network = wait.result()
            console.print(f"{network.name}: up after {time.monotonic() - started:.0f} s")
            running.append((network, Measured(network.name, note)))
    return running


def describe(result: Round) -> str:
    """A round in one line."""
    rates = ", ".join(f"{kind} {rate:.1f}" for kind, rate in result.mb_per_s.items())
    cost = result.cost["down_1"]
    return f"{rates} MB/s; relay {cost.relay:.2f} client {cost.client:.2f} s/GB; {result.ttfb_ms:.1f} ms"


def measure(settings: Settings, console: Console) -> tuple[dict[str, Measured], list[str]]:
    """Run all rounds: what was measured, and why it is not complete."""
    problems: list[str] = []
    measured: dict[str, Measured] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="backrooms-bench-")))
        sink = stack.enter_context(Sink())
        load = stack.enter_context(Load(sink.port, settings.mb))
        running = start_networks(settings, folder, stack, console)
        measured = {network.name: record for network, record in running}
        for network, record in running:
            load.warm_up(network.socks, ["first"])
            record.relay_rss_mb = [rss_mb(relay.pid) for relay in network.relays]
            record.relay_pss_mb = [pss_mb(relay.pid) for relay in network.relays]
        progress = stack.enter_context(
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
        )
        task = progress.add_task("rounds", total=settings.rounds * len(running))
        try:
            measure_rounds(settings, running, load, progress, task)
        except KeyboardInterrupt:
            problems.append("interrupted")
        except FAILURES as error:
            problems.append(f"{type(error).__name__}: {error}")
        complete = min(len(record.rounds) for record in measured.values())
        if complete < settings.rounds:
            problems.insert(0, f"{complete} of {settings.rounds} rounds")
    return (measured if complete else {}), problems


def measure_rounds(
    settings: Settings, running: list[tuple[Network, Measured]], load: Load, progress: Progress, task: Any
) -> None:
    """All rounds, then what is measured of our network alone."""
    for number in range(settings.rounds):
        turn = number % len(running)
        parts = []
        for network, _ in running[turn:] + running[:turn]:
            progress.update(task, description=f"round {number + 1}: {network.name}")
            parts.append(NetworkRound(network))
            parts[-1].run(load, number, settings.ttfb_repetitions)
            progress.advance(task)
        progress.update(task, description=f"round {number + 1}: idle")
        finished = {result.network: result for result in idle_together(parts)}
        busy = next(iter(finished.values())).machine_busy_percent
        if busy > DISTURBED_PERCENT:
            progress.console.print(f"round {number + 1}: the machine is {busy:.0f} % busy with other things")
        for network, record in running:
            record.rounds.append(finished[network.name])
            progress.console.print(f"round {number + 1} {network.name:12}{describe(finished[network.name])}")
    for network, record in running:
        if network.name == OURS:
            progress.update(task, description="circuit builds")
            builds = measure_builds(network, load, settings.builds)
            record.extra |= {
                "build_ms": builds.wall_ms,
                "build_client_cpu_ms": builds.client_cpu_ms,
                "builds": builds.count,
                "relay_rss_after_mb": max(rss_mb(relay.pid) for relay in network.relays),
            }


def write_results(results: dict[str, Any], folder: Path, console: Console) -> None:
    """Both files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "RESULTS.md").write_text(markdown(results))
    console.print(f"written: {folder / 'RESULTS.md'} and results.json")


def chosen_networks(only: Sequence[str], skip_tor: bool) -> tuple[str, ...]:
    """Names of networks from the options; `tor` stands for all its variants."""
    names = [OURS, *VARIANTS]
    if only:
        wanted = {name for word in only for name in (VARIANTS if word == "tor" else [word])}
        names = [name for name in names if name in wanted]
    return tuple(name for name in names if name == OURS or not skip_tor)


@click.command()
@click.option("--rounds", default=FULL_ROUNDS, show_default=True, type=click.IntRange(1), help="Rounds.")
@click.option("--mb", default=FULL_MB, show_default=True, type=click.IntRange(1), help="MB of each load.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([OURS, "tor", *VARIANTS]),
    help="Only this network; may be repeated.",
)
@click.option("--skip-tor", is_flag=True, help="Only our network.")
@click.option("--micro", is_flag=True, help="Only the figures of single operations.")
@click.option("--quick", is_flag=True, help="2 rounds of 20 MB: does it work?")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for RESULTS.md and results.json.  [default: bench/ for a full run, else build/bench/]",
)
def main(
    rounds: int, mb: int, only: tuple[str, ...], skip_tor: bool, micro: bool, quick: bool, out: Path | None
) -> None:
    """Measure Backrooms beside networks of C tor on this machine; about nine minutes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell may have started us with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    console = Console(highlight=False)
    settings = Settings(chosen_networks(only, skip_tor), 2 if quick else rounds, 20 if quick else mb)
    if micro:
        settings = Settings((), 0, 0)
    elif not settings.networks:
        raise click.UsageError("there is nothing to measure")
    missing = find_tor() if any(name in VARIANTS for name in settings.networks) else None
    if missing:
        raise click.ClickException(f"{missing}; or use --skip-tor")
    about = about_machine() | {"settings": asdict(settings)}
    if any(name in VARIANTS for name in settings.networks):
        about["versions"]["tor"] = tor_version().removeprefix("Tor version ")
    problems = settings.shortfalls()
    figures: dict[str, float] = {}
    measured: dict[str, Measured] = {}
    if micro or OURS in settings.networks:
        figures = asdict(measure_micro())
    if settings.networks:
        try:
            measured, broken = measure(settings, console)
        except FAILURES as error:
            raise click.ClickException(str(error)) from error
        if not measured:
            raise click.ClickException("; ".join(broken))
        problems = [*broken, *problems]
    results = results_json(measured, about, figures)
    if problems:
        results["incomplete"] = "; ".join(problems)
    for table in terminal_tables(results):
        console.print(table)
    if not micro:
        if problems:
            console.print(f"incomplete: {results['incomplete']}", markup=False)
        write_results(results, out or (HERE.parent / "build" / "bench" if problems else HERE), console)
    if settings.networks and broken:
        sys.exit(1)


if __name__ == "__main__":
    main()
