"""The twistd plugin: options, errors of one line, and nothing loaded before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.python.usage import UsageError

from backrooms.tap import Options, makeService

TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]


def parsed(*arguments: str) -> Options:
    options = Options()  # type: ignore[no-untyped-call]
    options.parseOptions(list(arguments))  # type: ignore[no-untyped-call]
    return options


def twistd(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run twistd in `folder`; it must end by itself."""
    command = [*TWISTD, "-n", "--pidfile=", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_plugin_is_found_once() -> None:
    makers: list[Any] = [maker for maker in getPlugins(IServiceMaker) if maker.tapname == "backrooms"]
    assert [maker.module for maker in makers] == ["backrooms.tap"]
    assert makers[0].options is Options
    assert makers[0].makeService is makeService


@pytest.mark.parametrize("option", ["-c", "--config"])
def test_config_is_read(tmp_path: Path, option: str) -> None:
    file = tmp_path / "b.toml"
    file.write_text('[node]\nnickname = "r7"\n')
    assert parsed(option, str(file)).configuration.node.nickname == "r7"


@pytest.mark.parametrize("arguments", [[], ["--config", ""]])
def test_config_is_needed(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="--config FILE is needed"):
        parsed(*arguments)


def test_a_wrong_config_is_a_usage_error(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_text("[node]\nnick = 1\n")
    with pytest.raises(UsageError) as caught:
        parsed("-c", str(file))
    assert str(caught.value) == f"{file}: node.nick: unknown option"
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        parsed("-c", str(tmp_path / "none"))


def test_options_do_not_load_the_node() -> None:
    """`twistd --help` imports every plugin's module for its description; keep that quick."""
    code = "import sys, backrooms.tap; print([m for m in sys.modules if m.startswith(('backrooms.node', 'OpenSSL'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_twistd_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_text("[client]\nretries = -1\n")
    done = twistd(tmp_path, "backrooms", "-c", "b.toml")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith(f": {file.name}: client.retries: must be at least 0")
    assert "Traceback" not in done.stdout + done.stderr


def test_a_node_that_cannot_be_made_says_why_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text("")
    done = twistd(tmp_path, "backrooms", "-c", "b.toml")
    assert done.returncode == 1
    assert done.stderr.startswith("backrooms: ")
    assert f"{tmp_path}/network.toml" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stdout + done.stderr
