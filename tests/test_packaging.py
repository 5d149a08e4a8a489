"""Installed from a wheel and as an editable install, twistd finds the plugin and the command runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PLUGIN = "twisted/plugins/backrooms_plugin.py"


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; the test fails with all of it if the command fails."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is under version control, so that building leaves nothing in the tree and finds nothing old."""
    copy = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "dropin.cache", ".*_cache")
    for name in ("backrooms", "twisted", "tests", "bench", "docs", "etc", "man", ".ci"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy / path.name)
    return copy


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source distribution."""
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist", "--outdir", target, source, cwd=target)
    (wheel,), (sdist,) = target.glob("*.whl"), target.glob("*.tar.gz")
    return wheel, sdist


def fresh_venv(path: Path) -> Path:
    """A virtual environment without Backrooms that borrows our dependencies; its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", path, cwd=path.parent)
    (packages,) = path.glob("lib/python*/site-packages")
    # .pth files in a borrowed folder are not read, so our own editable install stays outside
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return path / "bin" / "python"


def check_installed(python: Path, cwd: Path, location: Path) -> None:
    """twistd lists the plugin, its options work, and the command says its version."""
    where = run(python, "-c", "import backrooms; print(backrooms.__file__)", cwd=cwd)
    assert Path(where.strip()).is_relative_to(location)
    twistd: list[str | Path] = [python, "-c", "from twisted.scripts.twistd import run; run()"]
    listed = [line.split()[0] for line in run(*twistd, "--help", cwd=cwd).splitlines() if line.strip()]
    assert listed.count("backrooms") == 1
    assert "--config" in run(*twistd, "-n", "backrooms", "--help", cwd=cwd)
    assert run(python.with_name("backrooms"), "--version", cwd=cwd).startswith("backrooms ")
    blocs = "from backrooms.path.blocs import builtin_blocs; print(len(builtin_blocs()['14eyes']))"
    assert run(python, "-c", blocs, cwd=cwd) == "14\n"


def test_the_wheel_has_what_it_needs(built: tuple[Path, Path]) -> None:
    names = set(ZipFile(built[0]).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "backrooms").rglob("*.py")}
    assert modules | {PLUGIN, "backrooms/py.typed", "backrooms/data/blocs.txt"} <= names
    assert not [name for name in names if name in ("twisted/__init__.py", "twisted/plugins/__init__.py")]
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"backrooms", "twisted"}


def test_the_source_distribution_has_the_rest(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {"etc/backrooms.toml", "man/backrooms.toml.5", "tests/conftest.py", "Makefile", ".ci/run", "LICENSE"}
    expected |= {"backrooms/data/blocs.txt"}
    assert expected | {PLUGIN, "docs/architecture.md", "README.md", "SECURITY.md"} <= names


def test_twistd_finds_the_plugin_of_a_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    python = fresh_venv(tmp_path / "venv")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        built[0],
        cwd=tmp_path,
    )
    check_installed(python, tmp_path, tmp_path / "venv")


def test_twistd_finds_the_plugin_of_an_editable_install(source: Path, tmp_path: Path) -> None:
    python = fresh_venv(tmp_path / "venv")
    editable: list[str | Path] = [
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--editable",
        source,
    ]
    run(sys.executable, "-m", "pip", "--python", python, *editable, cwd=tmp_path)
    check_installed(python, tmp_path, source)
