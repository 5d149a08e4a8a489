"""The `backrooms` command as people run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from twisted.internet.utils import getProcessOutputAndValue

from backrooms.cli.main import COMMANDS, main
from backrooms.cli.render import byte_count, duration, plain
from tests.control.fakes import Served, circuit

NODE_COMMANDS = ["status", "circuits", "relays", "newnym"]


async def run(*args: str, **env: str) -> tuple[str, str, int]:
    """Standard output, standard error and exit status of `backrooms ARGS` as a process of its own."""
    clean = {key: value for key, value in os.environ.items() if key != "BACKROOMS_CONTROL"}
    out, err, code = await getProcessOutputAndValue(  # type: ignore[no-untyped-call]
        sys.executable, ["-m", "backrooms.cli.main", *args], env={**clean, **env}
    )
    return out.decode(), err.decode(), code


def invoke(*args: str) -> Result:
    return CliRunner(env={"BACKROOMS_CONTROL": None}).invoke(main, args)


async def test_status(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        served.view.fingerprint = "AB" * 20
        out, err, code = await run("status", "--control", f"unix:{served.socket}")
        assert (err, code) == ("", 0)
        rows = dict(line.split("  ", 1) for line in out.splitlines() if line)
        shown = {title: " ".join(text.split()) for title, text in rows.items()}
        assert shown["Relay"] == "Tester " + "AB" * 20
        assert shown["Start"] == "100 % Done"
        assert shown["Circuits"] == "1 built, 1 being built"
        assert shown["Relays known"] == "5, 2 of them exits"
        assert shown["Traffic"] == "1.23 kB read, 5.68 kB written"
        assert shown["In queues"] == "0 B of 1.07 GB"
        assert "Refused so far" not in shown
        assert f"unix:{served.socket}" in out
        assert "127.0.0.1:9050" in out
        assert shown["View"] == "epoch 7, root 00112233445566aa"
        assert "Alarm" not in shown

        served.view.refusals = {f"link: kind {number}": number for number in range(1, 8)}
        out, err, code = await run("status", "--control", f"unix:{served.socket}")
        assert (err, code) == ("", 0)
        (line,) = [line for line in out.splitlines() if line.startswith("Refused so far ")]
        assert line.split(maxsplit=3)[3].startswith("7 link: kind 7, 6 link: kind 6, ")
        assert line.rstrip().endswith(", 3 link: kind 3, and 2 more kinds")

        last = {"at": 1_800_000_000.0, "same": 7, "compared": 8}
        served.view.view_of_network |= {"last": last, "alarm": "3 of 8 relays showed", "two-faced": ["x"]}
        out, err, code = await run("status", "--control", f"unix:{served.socket}")
        assert (err, code) == ("", 0)
        assert "epoch 7, root 00112233445566aa; 7 of 8 relays had ours, 2027-01-" in out
        assert "3 of 8 relays showed" in out
        assert "signed two records of one revision: 1" in out

        out, err, code = await run("status", "--json", BACKROOMS_CONTROL=str(served.socket))
        assert (err, code) == ("", 0)
        assert json.loads(out)["bootstrap"] == {"percent": 100, "tag": "done", "summary": "Done"}


async def test_circuits(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        target = ("--control", str(served.socket))
        served.view.circuit_list.append(circuit(9, isolation="\x1b[31mred[/bold]"))
        out, err, code = await run("circuits", *target)
        assert (err, code) == ("", 0)
        header, first, second, third = out.splitlines()
        assert header.split() == ["Id", "Status", "Level", "Streams", "Built", "in", "Path", "Shared", "by"]
        assert first.split()[:6] == ["7", "BUILT", "medium", "1", "12", "ms"]
        assert "relay1 (01010101) > relay2 (02020202) > relay3 (03030303)" in first
        assert second.split() == ["8", "EXTENDED", "medium", "0", "relay1", "(01010101)"]
        assert third.rstrip().endswith("?[31mred[/bold]")  # neither colours the terminal nor rich

        out, err, code = await run("circuits", "--json", *target)
        assert (err, code) == ("", 0)
        assert [item["id"] for item in json.loads(out)] == [7, 8, 9]

        served.view.circuit_list = []
        assert (await run("circuits", *target))[0] == "no circuits\n"


async def test_relays(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        target = ("--control", str(served.socket))
        everybody = json.loads((await run("relays", "--json", *target))[0])
        exits = json.loads((await run("relays", "--exits", "--json", *target))[0])
        assert exits == [relay for relay in everybody if relay["exit"]]
        out, err, code = await run("relays", *target)
        assert (err, code) == ("", 0)
        assert len(out.splitlines()) == 1 + len(everybody)
        for relay in everybody:
            assert relay["fingerprint"] in out
            assert all(address in out for address in relay["addresses"])
        served.view.relay_list = []
        assert (await run("relays", *target))[0] == "no relays\n"


async def test_newnym(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        out, err, code = await run("newnym", "--control", str(served.socket))
        assert (out, err, code) == ("new connections use new circuits from now on\n", "", 0)
        assert served.view.asked == ["newnym"]


async def test_a_node_is_found_by_its_configuration_or_network(tmp_path: Path) -> None:
    config = tmp_path / "backrooms.toml"
    config.write_text('[control]\nlisten = ["unix:control.sock:mode=600"]\n')
    (tmp_path / "testnet.json").write_text(json.dumps({"control": f"unix:{tmp_path}/control.sock"}))
    async with Served(tmp_path) as served:
        for target in (("-c", str(config)), ("--config", str(config)), ("--testnet", str(tmp_path))):
            _, err, code = await run("newnym", *target, BACKROOMS_CONTROL="unix:/nowhere")
            assert (err, code) == ("", 0)
        assert served.view.asked == ["newnym"] * 3


async def test_a_node_is_found_by_the_configuration_in_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "backrooms.toml").write_text("")
    async with Served(tmp_path):
        _, err, code = await getProcessOutputAndValue(  # type: ignore[no-untyped-call]
            sys.executable, ["-m", "backrooms.cli.main", "newnym"], env={"PATH": ""}, path=str(tmp_path)
        )
        assert (err, code) == (b"", 0)


@pytest.mark.parametrize("command", NODE_COMMANDS)
def test_a_node_that_is_not_running(tmp_path: Path, command: str) -> None:
    result = invoke(command, "--control", f"{tmp_path}/control.sock")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr == (
        f"Error: no node answers at unix:{tmp_path}/control.sock; "
        "start one with `twistd -n backrooms -c FILE` or `make run`\n"
    )


def test_a_network_that_is_not_running(tmp_path: Path) -> None:
    result = invoke("status", "--testnet", str(tmp_path))
    assert result.exit_code == 3
    assert f"start one with `backrooms testnet --dir {tmp_path}`" in result.stderr


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"control": 5}', "\xff"])
def test_a_damaged_testnet_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "testnet.json").write_text(text, encoding="latin-1")
    result = invoke("status", "--testnet", str(tmp_path))
    assert result.exit_code == 1
    assert "testnet.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_configuration(tmp_path: Path) -> None:
    config = tmp_path / "backrooms.toml"
    for text, complaint in (("[nosuch]\n", "nosuch: unknown option"), ("control.listen = []", "no control port")):
        config.write_text(text)
        result = invoke("status", "-c", str(config))
        assert result.exit_code == 1
        assert complaint in result.stderr
    assert invoke("status", "-c", str(tmp_path / "missing")).exit_code == 1


def test_no_node_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("backrooms.cli.target.SYSTEM_CONFIG", tmp_path / "etc" / "backrooms.toml")
    result = invoke("status")
    assert result.exit_code == 1
    assert "which node?" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["nosuch"],
        ["status", "--nosuch"],
        ["status", "extra"],
        ["status", "--control", "a:1", "--testnet", "b"],
        ["status", "--timeout", "0"],
    ],
)
def test_wrong_usage(args: list[str]) -> None:
    assert invoke(*args).exit_code == 2


def test_an_address_that_is_none() -> None:
    result = invoke("status", "--control", "nonsense")
    assert result.exit_code == 1
    assert "no control address" in result.stderr


def test_help_names_every_command_and_imports_none_of_them() -> None:
    script = (
        "import sys\nfrom backrooms.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted(name for name in sys.modules if name.startswith('backrooms.cli.')))\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in out
        assert text in out
    assert out.splitlines()[-1] == "['backrooms.cli.main']"


@pytest.mark.parametrize("command", NODE_COMMANDS)
def test_every_node_command_explains_itself(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    for word in ("--control", "--testnet", "--config", "--timeout"):
        assert word in result.stdout
    assert len(result.stdout.splitlines()) > 8


def test_asking_a_node_needs_neither_twisted_nor_cryptography(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom backrooms.cli.main import main\n"
        f"try: main(['status', '--control', '{tmp_path}/s'])\nexcept SystemExit as end: print(end.code)\n"
        "print([name for name in ('twisted', 'cryptography', 'OpenSSL', 'txtorcon') if name in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["3", "[]"]


def test_version() -> None:
    assert invoke("--version").stdout == "backrooms 0.1.0\n"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_400, "999 kB"),
        (999_500, "1 MB"),
        (12_345_678, "12.3 MB"),
        (5e15, "5 PB"),
    ],
)
def test_byte_counts(number: float, text: str) -> None:
    assert byte_count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3661, "1 h 1 min"), (90_000, "1 d 1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain() -> None:
    assert plain("a\x1b[0m\n\u202eb é") == "a?[0m??b é"
