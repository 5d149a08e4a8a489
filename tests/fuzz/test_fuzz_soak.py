"""Every parser, at length: ten million inputs in all, or an hour. BACKROOMS_FUZZ_RUNS sets another number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.run import INPUT_SECONDS
from tests.fuzz.targets import TARGETS

RUNS = int(os.environ.get("BACKROOMS_FUZZ_RUNS", "10_000_000"))
"""Inputs for all targets together."""
SECONDS = 3600
"""Time for all targets together, one after the other."""
ROOT = Path(__file__).parents[2]


@pytest.mark.soak
@pytest.mark.parametrize("name", TARGETS)
def test_fuzz(name: str, tmp_path: Path) -> None:
    runs, seconds = -(-RUNS // len(TARGETS)), SECONDS // len(TARGETS)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.run", name, "--found", str(tmp_path)),
            *("--runs", str(runs), "--seconds", str(seconds)),
        ],
        cwd=ROOT,
        capture_output=True,
        timeout=seconds + 2 * INPUT_SECONDS + 300,
        check=False,
    )
    # libFuzzer saves what ends the process without an exception, a crash inside a library or a time-out.
    found = {path.name: path.read_bytes().hex() for path in tmp_path.iterdir()}
    assert (done.returncode, found) == (0, {}), done.stderr.decode(errors="replace")[-8000:]
