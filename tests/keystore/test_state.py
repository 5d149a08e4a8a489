"""The state folder: who has it, in what form it is, and what dead processes leave in it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backrooms.errors import KeyStoreError, StateError
from backrooms.keystore import disk, state
from backrooms.keystore.file import FileKeyStore
from backrooms.keystore.state import SCHEMA, FolderLock, StateFolder, read_schema
from backrooms.netdir.directory import Directory
from backrooms.netdir.store import decode_first_form
from tests import keys

OLD = Path(__file__).parent / "schema-1"
"""A state folder of the first form: a list of two relays. The keys are made by `old_folder`."""

HOLDER = """
import sys, time
from pathlib import Path
from backrooms.keystore.state import StateFolder
held = StateFolder.open(Path(sys.argv[1]), with_keys=True)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    """A state folder as the first form has it, with keys, a cookie, and a cookie that was broken off."""
    folder = tmp_path / "state"
    shutil.copytree(OLD, folder)
    folder.chmod(0o700)
    keys.key_store(folder / "keys", 0)
    (folder / "keys" / "schema").unlink()
    for name in ("control_auth_cookie", ".control_auth_cookie.x1y2z3"):
        (folder / name).write_bytes(bytes(32))
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# one process at a time


def test_a_new_folder(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    opened = StateFolder.open(folder, with_keys=True)
    assert opened.notes == []
    assert names(folder) == {"lock", "schema", "keys"}
    assert read_schema(folder) == read_schema(folder / "keys") == SCHEMA
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((folder / "keys").stat().st_mode) == 0o700
    opened.close()
    assert StateFolder.open(folder, with_keys=True).notes == []


def test_a_client_gets_no_folder_of_keys(tmp_path: Path) -> None:
    StateFolder.open(tmp_path / "state", with_keys=False).close()
    assert not (tmp_path / "state" / "keys").exists()


@pytest.mark.parametrize("what", ["state", "keys"])
def test_a_second_process_is_told_who_has_it_and_kill_9_frees_it(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "state"
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            place = folder if what == "state" else folder / "keys"
            with pytest.raises(StateError, match=f"{place} is in use by process {holder.pid}; stop that first"):
                FolderLock(place)
            with pytest.raises(StateError, match=f"in use by process {holder.pid}"):
                StateFolder.open(folder, with_keys=True)
        finally:
            holder.kill()
    StateFolder.open(folder, with_keys=True).close()


def test_a_folder_of_keys_that_is_taken_does_not_keep_the_state_locked(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    (folder / "keys").mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)
    with FolderLock(folder / "keys"), pytest.raises(StateError, match=f"keys is in use by process {os.getpid()}"):
        StateFolder.open(folder, with_keys=True)
    StateFolder.open(folder, with_keys=True).close()


def test_the_lock_goes_on_to_a_child_that_signs_it(tmp_path: Path) -> None:
    """As when twistd becomes a daemon: the parent, whose number is in the file, is gone."""
    lock = FolderLock(tmp_path)
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        os.close(write_end)
        lock.sign()
        os.read(read_end, 1)
        os._exit(0)
    os.close(read_end)
    lock.release()
    try:
        end = f"in use by process {child}"
        for _ in range(2000):  # until it has come to sign
            with pytest.raises(StateError) as caught:
                FolderLock(tmp_path)
            if end in str(caught.value):
                break
            time.sleep(0.01)
        assert end in str(caught.value)
    finally:
        os.close(write_end)
        os.waitpid(child, 0)
    FolderLock(tmp_path).release()


@pytest.mark.parametrize("bits", [0o770, 0o703, 0o720])
def test_a_folder_that_others_can_change_is_refused(tmp_path: Path, bits: int) -> None:
    tmp_path.chmod(bits)
    with pytest.raises(KeyStoreError, match="chmod 700"):
        StateFolder.open(tmp_path, with_keys=False)
    assert names(tmp_path) == set()
    tmp_path.chmod(0o750)  # others may be let in to a socket
    StateFolder.open(tmp_path, with_keys=False).close()


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="file cannot be used: File exists"):
        StateFolder.open(tmp_path / "file", with_keys=False)
    (tmp_path / "lock").symlink_to(tmp_path / "file")
    with pytest.raises(StateError, match="lock cannot be opened"):
        StateFolder.open(tmp_path, with_keys=False)


def test_leftovers_are_removed_and_told(tmp_path: Path) -> None:
    StateFolder.open(tmp_path, with_keys=True).close()
    (tmp_path / ".relays.77.new").touch()
    (tmp_path / ".copy-of-schema-1.77.new").mkdir()
    (tmp_path / ".copy-of-schema-1.77.new" / "x").touch()
    (tmp_path / "keys" / ".identity.pem.1.new").touch()
    for name in (".other", "x.1.new", ".y.new"):
        (tmp_path / name).touch()
    opened = StateFolder.open(tmp_path, with_keys=True)
    assert opened.notes == [
        f"removed {tmp_path}/{name}, which a process that died left"
        for name in (".copy-of-schema-1.77.new", ".relays.77.new", "keys/.identity.pem.1.new")
    ]
    assert names(tmp_path) == {"lock", "schema", "keys", ".other", "x.1.new", ".y.new"}
    opened.close()


# the form


def test_the_first_form_is_brought_up_to_date_and_kept(old_folder: Path) -> None:
    before = {path: path.read_bytes() for path in old_folder.rglob("*") if path.is_file()}
    identity = FileKeyStore.open(old_folder / "keys", keys.NOW)
    opened = StateFolder.open(old_folder, with_keys=True)
    opened.close()
    copies = [old_folder / "copy-of-schema-1", old_folder / "keys" / "copy-of-schema-1"]
    assert opened.notes == [
        f"{copy.parent} was brought from schema 1 to {SCHEMA}; what was there before is in {copy}" for copy in copies
    ]
    assert names(copies[0]) == {"relays"}, "no cookie"
    assert names(copies[1]) == {"identity.pem", "tls_cert.pem", "tls_key.pem"}, "no onion keys"
    for copy in copies:
        assert stat.S_IMODE(copy.stat().st_mode) == 0o700
        for path in copy.iterdir():
            assert path.read_bytes() == before[copy.parent / path.name]
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_schema(old_folder) == read_schema(old_folder / "keys") == SCHEMA
    assert ".control_auth_cookie.x1y2z3" not in names(old_folder)
    again = FileKeyStore.open(old_folder / "keys", keys.NOW)
    assert again.identity() == identity.identity()
    assert again.onion_keys() == identity.onion_keys()
    directory = Directory(keys.NETWORK_ID, keys.NOW)
    for certificate, record in decode_first_form((old_folder / "relays").read_bytes()):
        directory.add(certificate, record, keys.NOW)
    assert len(directory) == 2
    assert StateFolder.open(old_folder, with_keys=True).notes == [], "once"


@pytest.mark.parametrize("place", ["state", "keys"])
def test_a_newer_form_is_refused_and_not_touched(old_folder: Path, place: str) -> None:
    folder = old_folder if place == "state" else old_folder / "keys"
    state.write_schema(folder, SCHEMA + 1)
    before = names(folder)
    with pytest.raises(StateError, match=rf"{folder} was written by a newer version .*schema {SCHEMA + 1}.*{SCHEMA}\)"):
        StateFolder.open(old_folder, with_keys=True)
    if place == "keys":
        with pytest.raises(StateError, match="newer version"):
            FileKeyStore.open(folder, keys.NOW)
        with pytest.raises(StateError, match="newer version"):
            FileKeyStore.read_identity(folder)
    assert names(folder) == before | {"lock"}


@pytest.mark.parametrize("data", [b"", b"two\n", b"-1", b"0", b"\xff" * 100])
def test_a_damaged_number_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "schema").write_bytes(data)
    with pytest.raises(StateError, match=f"{tmp_path}/schema is damaged"):
        StateFolder.open(tmp_path, with_keys=False)


def test_steps_are_made_in_order_and_one_that_was_broken_off_is_made_again(
    old_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def step(number: int) -> Callable[[Path], None]:
        def run(folder: Path) -> None:
            made.append(number)
            (folder / "relays").write_bytes(b"in form %d" % (number + 1))
            if made == [1, 2]:
                raise OSError(28, "No space left on device", str(folder))

        return run

    before = (old_folder / "relays").read_bytes()
    monkeypatch.setattr(state, "SCHEMA", 4)
    monkeypatch.setattr(state, "MIGRATIONS", {number: step(number) for number in (1, 2, 3)})
    with pytest.raises(StateError, match="No space left"):
        StateFolder.open(old_folder, with_keys=False)
    assert read_schema(old_folder) == 2, "the first step is done"
    monkeypatch.setattr(state, "KEY_MIGRATIONS", {number: lambda _: None for number in (1, 2, 3)})
    StateFolder.open(old_folder, with_keys=False).close()
    assert made == [1, 2, 2, 3]
    assert read_schema(old_folder) == 4
    assert (old_folder / "copy-of-schema-1" / "relays").read_bytes() == before
    assert (old_folder / "relays").read_bytes() == b"in form 4"


# on the disk


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("write", "fsync", "replace"):
        real: Callable[..., object] = getattr(os, name)

        def watched(*arguments: object, name: str = name, real: Callable[..., object] = real) -> object:
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(os, name, watched)
    disk.write_atomic(tmp_path / "file", b"data")
    assert calls == ["write", "fsync", "replace", "fsync"], "the last one is the folder's"


def test_write_atomic_writes_what_the_system_takes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    disk.write_atomic(tmp_path / "file", b"0123456789", 0o644)
    assert (tmp_path / "file").read_bytes() == b"0123456789"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
