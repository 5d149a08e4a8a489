"""Fuzz one target: `python -m tests.fuzz.run TARGET --runs 200000`.

With atheris installed inputs are chosen by what they make the code do; without it they are mutations at random. An
input that finds something is saved, printed in hexadecimal digits, and ends the run with an error. `--input FILE` runs
a saved one again, `--list` names the targets.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tests.fuzz.mutate import mutated

if TYPE_CHECKING:
    from tests.fuzz.target import Target

try:
    import atheris
except ImportError:
    atheris = None

INPUT_SECONDS = 30
"""Time one input may take, on a busy machine."""
MEMORY = 2048
"""MiB that the process may have."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description="Fuzz one target.")
    parser.add_argument("target", nargs="?", default="")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs to try (%(default)s)")
    parser.add_argument("--seconds", type=int, default=600, help="to stop after, at the latest (%(default)s)")
    parser.add_argument("--found", type=Path, default=Path(), metavar="DIR", help="where inputs are saved")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="inputs to begin with and to add to")
    parser.add_argument("--input", type=Path, metavar="FILE", help="run this one input only")
    parser.add_argument("--seed", type=int, default=1, help="of the random mutations (%(default)s)")
    parser.add_argument("--list", action="store_true", help="name the targets")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if atheris is None:
        from tests.fuzz.targets import TARGETS
    else:
        with atheris.instrument_imports(include=["backrooms", "h11"], enable_loader_override=False):
            from tests.fuzz.targets import TARGETS
    if options.list:
        print(*sorted(TARGETS), sep="\n")
        return
    if options.target not in TARGETS:
        sys.exit(f"no target {options.target!r}; --list names them")
    target = TARGETS[options.target]
    if options.input is not None:
        print("accepted" if target.accepts(options.input.read_bytes()) else "refused")
        return

    def one(data: bytes) -> None:
        try:
            target.accepts(data)
        except BaseException:
            path = options.found / f"found-{target.name}"
            path.write_bytes(data)
            print(f"\n{target.name} failed with {len(data)} bytes, saved in {path}:\n{data.hex()}", file=sys.stderr)
            raise

    if atheris is None:
        at_random(one, target, options)
    else:
        with TemporaryDirectory() as folder:
            guided(one, target, options, options.corpus or Path(folder))


def at_random(one: Callable[[bytes], None], target: Target, options: argparse.Namespace) -> None:
    """Mutations of the seeds, without regard to what they do."""
    rng = Random(options.seed)
    end = time.monotonic() + options.seconds
    done = 0
    while done < options.runs and time.monotonic() < end:
        one(mutated(target.seeds(), rng)[: target.longest])
        done += 1
    print(f"{options.target}: {done} inputs at random")


def guided(one: Callable[[bytes], None], target: Target, options: argparse.Namespace, corpus: Path) -> None:
    """libFuzzer's search for new coverage. It ends the process."""
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    flags = {
        "runs": options.runs,
        "max_total_time": options.seconds,
        "seed": options.seed,
        "max_len": target.longest,
        "timeout": INPUT_SECONDS,
        "rss_limit_mb": MEMORY,
        "artifact_prefix": f"{options.found}/",
        "verbosity": 0,
        "print_final_stats": 1,
    }
    atheris.Setup([sys.argv[0], str(corpus), *(f"-{name}={value}" for name, value in flags.items())], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
