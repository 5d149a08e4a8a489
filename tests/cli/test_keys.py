"""`backrooms keys` and `backrooms network`, by their effects on files."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from backrooms.cli.main import main
from backrooms.crypto.keys import fingerprint, text_id
from backrooms.keystore.file import FileKeyStore
from backrooms.keystore.state import FolderLock
from backrooms.netdir.network import NetworkFile

ADDRESS = "tls:192.0.2.1:9001"


def backrooms(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def error_of(*arguments: str | Path) -> str:
    """The one line of a command that fails with exit status 1."""
    result = backrooms(*arguments)
    assert result.exit_code == 1, result.output
    (line,) = result.output.splitlines()
    return line


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real keys, made by the command itself."""
    folder = tmp_path_factory.mktemp("keys") / "new"
    result = backrooms("keys", "new", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def network(tmp_path: Path) -> Path:
    file = tmp_path / "network.toml"
    assert backrooms("network", "new", file, "--name", "mine").exit_code == 0
    return file


def test_keys_are_shown_and_private(keys: Path) -> None:
    node_id = FileKeyStore.open(keys).identity().id
    result = backrooms("keys", "show", keys)
    assert result.output == f"id           {text_id(node_id)}\nfingerprint  {fingerprint(node_id)}\n"
    told = json.loads(backrooms("keys", "show", keys, "--json").output)
    assert told == {"id": text_id(node_id), "fingerprint": fingerprint(node_id)}
    for path in (keys, *keys.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_keys_are_never_overwritten(keys: Path) -> None:
    assert "never overwritten" in error_of("keys", "new", keys)


def test_loose_keys_are_refused(keys: Path) -> None:
    keys.chmod(0o755)
    try:
        assert f"chmod 700 {keys}" in error_of("keys", "show", keys)
    finally:
        keys.chmod(0o700)


def test_keys_in_use_are_shown_and_not_touched(keys: Path, network: Path) -> None:
    """A node that runs holds the folder's lock."""
    before = {path.name: path.stat().st_mtime_ns for path in keys.iterdir()}
    with FolderLock(keys):
        assert backrooms("keys", "show", keys).exit_code == 0
        assert backrooms("network", "add", network, keys, ADDRESS).exit_code == 0
        assert f"in use by process {os.getpid()}" in error_of("keys", "new", keys)
    after = {path.name: path.stat().st_mtime_ns for path in keys.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} <= {"lock"}


def test_a_network_gets_contacts(keys: Path, network: Path) -> None:
    node_id = FileKeyStore.open(keys).identity().id
    assert backrooms("network", "add", network, keys, ADDRESS).output == f"{network}: contacts: 1\n"
    assert backrooms("network", "add", network, text_id(os.urandom(32)), ADDRESS).output == f"{network}: contacts: 2\n"
    assert backrooms("network", "add", network, text_id(node_id), "tls:192.0.2.9:1").exit_code == 0
    found = NetworkFile.parse(network.read_text())
    assert found.name == "mine"
    assert [contact.address for contact in found.contacts] == [ADDRESS, "tls:192.0.2.9:1"]
    assert found.contacts[1].id == node_id
    shown = backrooms("network", "show", network).output
    assert text_id(found.id) in shown
    assert f"{text_id(node_id)}  tls:192.0.2.9:1" in shown
    told = json.loads(backrooms("network", "show", network, "--json").output)
    assert (told["name"], told["id"], told["charter"]) == ("mine", text_id(found.id), [])
    assert told["contacts"][1] == {"id": text_id(node_id), "address": "tls:192.0.2.9:1"}


def test_two_networks_differ(network: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    assert backrooms("network", "new", other, "--name", "mine").exit_code == 0
    assert NetworkFile.parse(network.read_text()).id != NetworkFile.parse(other.read_text()).id


def test_mistakes_are_one_line_and_change_nothing(network: Path, tmp_path: Path) -> None:
    before = network.read_bytes()
    some_id = text_id(bytes(32))
    assert "not overwritten" in error_of("network", "new", network, "--name", "mine")
    assert "name" in error_of("network", "new", tmp_path / "n", "--name", "a b")
    assert not (tmp_path / "n").exists()
    assert "contacts[0].address" in error_of("network", "add", network, some_id, "192.0.2.1:1")
    assert "no folder, and not an id" in error_of("network", "add", network, "relay", ADDRESS)
    assert "No such file" in error_of("network", "add", tmp_path / "none", some_id, ADDRESS)
    assert network.read_bytes() == before
    network.write_bytes(b"\xff")
    assert "not UTF-8" in error_of("network", "show", network)
    network.write_bytes(b"name = 1")
    assert f"{network}: " in error_of("network", "show", network)


def test_a_reader_that_is_gone_is_no_error_of_a_file(keys: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "backrooms.cli.main", "keys", "show", str(keys)]
    try:
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    finally:
        os.close(writer)
    assert (ended.stderr, ended.returncode) == ("", 1)
