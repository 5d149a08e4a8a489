"""`backrooms charter` and `backrooms keys revoke`: what they write is what a node takes."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from backrooms.crypto.keys import parse_id, text_id
from backrooms.netdir.certificate import check_admission
from backrooms.netdir.directory import Directory
from backrooms.netdir.network import NetworkFile
from backrooms.node.revocations import read_revocation
from backrooms.wire.admission import Admission
from tests import keys
from tests.cli.test_keys import backrooms, error_of

RELAY = keys.identity(0).public.id


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A network file with the charter key that lies beside it."""
    made = backrooms("charter", "new", tmp_path / "charter.pem")
    assert made.exit_code == 0, made.output
    text = NetworkFile("mine", keys.NETWORK_ID).to_toml()
    (tmp_path / "network.toml").write_text(text + made.stdout)
    return tmp_path / "network.toml"


def value(line: str) -> str:
    """The text in a line such as `name = "text"`."""
    return line.split('"')[1]


def test_a_charter_key_admits_relays(network: Path) -> None:
    key = network.parent / "charter.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    charter = NetworkFile.parse(network.read_text()).charter
    shown = backrooms("charter", "show", key).output
    assert shown == f'charter = ["{text_id(charter[0])}"]\n'
    result = backrooms("charter", "admit", key, network, text_id(RELAY), "--days", "30")
    assert result.exit_code == 0, result.output
    admission = Admission.parse(value(result.output.splitlines()[0]))
    assert abs(admission.expires - time.time() - 30 * 86400) < 60
    check_admission(admission, RELAY, keys.NETWORK_ID, charter, time.time())
    assert "is admitted to mine until" in result.output
    assert f"charter  {text_id(charter[0])}\n" in backrooms("network", "show", network).output


def test_mistakes_are_one_line(network: Path, tmp_path: Path) -> None:
    key = tmp_path / "charter.pem"
    before = key.read_bytes()
    assert error_of("charter", "new", key).endswith("is there already; a key is never overwritten")
    assert key.read_bytes() == before
    assert backrooms("charter", "new", tmp_path / "other.pem").exit_code == 0
    text = error_of("charter", "admit", tmp_path / "other.pem", network, text_id(RELAY))
    assert "does not have this key; add above its first [[contacts]]: charter = [" in text
    assert "not an id" in error_of("charter", "admit", key, network, "nobody")
    key.chmod(0o644)
    assert "is open to other users" in error_of("charter", "admit", key, network, text_id(RELAY))
    key.chmod(0o600)
    key.write_bytes(b"nonsense")
    assert "is no charter key" in error_of("charter", "show", key)
    key.write_bytes(keys.identity(0).to_pem())
    assert "is no charter key" in error_of("charter", "show", key)


def test_keys_are_revoked_for_those_who_have_them(network: Path, tmp_path: Path) -> None:
    keys.key_store(tmp_path / "state" / "keys", 0)
    folder = tmp_path / "state" / "keys"
    asked = backrooms("keys", "revoke", folder, network)
    assert asked.exit_code == 1
    assert "Nobody will ever use the relay" in asked.output
    assert not (tmp_path / "state" / "revocations").exists()
    admitted = backrooms("charter", "admit", tmp_path / "charter.pem", network, text_id(RELAY))
    admission = value(admitted.output.splitlines()[0])
    done = backrooms("keys", "revoke", folder, network, "--yes", "--admission", admission)
    assert done.exit_code == 0, done.output
    file = tmp_path / "state" / "revocations" / f"{text_id(RELAY)}.revocation"
    documents = read_revocation(file)
    charter = NetworkFile.parse(network.read_text()).charter
    directory = Directory(keys.NETWORK_ID, time.time(), charter=charter)
    directory.add(documents.certificate, documents.record, time.time())
    assert directory.is_revoked(RELAY)
    assert parse_id(file.stem) == RELAY
    assert "relay.admission: an admission is what" in error_of(
        "keys", "revoke", folder, network, "--yes", "--admission", "nonsense"
    )
