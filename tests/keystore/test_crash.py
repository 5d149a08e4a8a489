"""State is killed at every system call that changes it, and must be of use at the next start."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backrooms.crypto.keys import PrivateIdentity
from backrooms.keystore import file as file_module
from backrooms.keystore import state
from backrooms.keystore.disk import write_atomic
from backrooms.keystore.file import FileKeyStore
from backrooms.keystore.state import SCHEMA, StateFolder, read_schema
from tests.keys import NOW, identity, key_store, tls_pair

CALLS = ("open", "write", "fchmod", "fsync", "close", "replace", "unlink", "mkdir", "ftruncate", "pwrite")
WEEK = 7 * 86400


def killed(operation: Callable[[], object], at: int) -> bool:
    """Run `operation` in a child that kills itself at its call number `at`; false if there are not so many.

    A write that it is killed at is made by half.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return True
        assert os.waitstatus_to_exitcode(status) == 0, "it failed by itself"
        return False
    left = at

    def watch(name: str) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(os, name, call)

    try:
        for name in CALLS:
            watch(name)
        operation()
        os._exit(0)
    finally:
        os._exit(1)


def each_kill(operation: Callable[[], object], least: int) -> Iterator[int]:
    """Kill it at its first call, its second, and so on until it comes through, which is at `least` calls on."""
    at = 1
    while killed(operation, at):
        yield at
        at += 1
    assert at > least


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are made already, and no waiting for the disk: that a process is killed takes nothing from it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(PrivateIdentity, "generate", lambda: identity(0))
    monkeypatch.setattr(file_module, "make_tls_certificate", lambda now: tls_pair(1))
    tls_pair(0), identity(1)  # made now, not in children


def started(folder: Path) -> FileKeyStore:
    """What a node does at its start. Nothing half-made may be left after it."""
    StateFolder.open(folder, with_keys=True).close()
    store = FileKeyStore.open_or_create(folder / "keys", NOW)
    assert not [path for path in folder.rglob("*") if path.name.endswith(".new")]
    assert len(list(folder.glob("keys/onion-*"))) == len(store.onion_keys())
    assert read_schema(folder) == read_schema(folder / "keys") == SCHEMA
    return store


def test_the_first_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "state"
    found = []
    for _ in each_kill(lambda: started(folder), 60):
        kept = (folder / "keys" / "identity.pem").exists()
        with monkeypatch.context() as later:
            later.setattr(PrivateIdentity, "generate", lambda: identity(1))
            assert started(folder).identity() == identity(0 if kept else 1).public
        found.append(kept)
        shutil.rmtree(folder)
    assert found == sorted(found)
    assert set(found) == {False, True}


def test_a_new_onion_key(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    key_store(folder / "keys", 0)
    folder.chmod(0o700)
    now = NOW
    started(folder).rotate_onion_key(now, force=True)
    seen = set()
    for _ in each_kill(lambda: started(folder).rotate_onion_key(now, force=True), 10):
        before = set(folder.glob("keys/onion-*"))
        store = started(folder)
        after = set(folder.glob("keys/onion-*"))
        seen.add(len(after - before))
        assert len(store.onion_keys()) == 2
    assert seen == {0}, "a key that is there at a start was there when the process died"


def test_a_new_tls_pair(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    key_store(folder / "keys", 0)
    started(folder)
    pairs = set()
    for _ in each_kill(lambda: FileKeyStore.open(folder / "keys", NOW).renew_tls(NOW), 10):
        store = started(folder)  # checks that key and certificate belong together
        pairs.add(store.tls_files()[1].read_bytes())
        for path, data in zip(store.tls_files(), tls_pair(0), strict=True):
            write_atomic(path, data)
    assert pairs == {tls_pair(0)[1], tls_pair(1)[1]}


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "relays"
    old, new = b"old" * 5000, b"new" * 7000
    StateFolder.open(tmp_path, with_keys=False).close()
    found = []
    write_atomic(path, old)
    for _ in each_kill(lambda: write_atomic(path, new), 6):
        StateFolder.open(tmp_path, with_keys=False).close()
        found.append(path.read_bytes())
        assert {one.name for one in tmp_path.iterdir()} == {"lock", "schema", "relays"}
        write_atomic(path, old)
    assert set(found) == {old, new}
    assert found == sorted(found, reverse=True), "the old one, and from some call on the new one"


def test_a_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two files that a step changes, after a kill either both are as before or the step is made again."""

    def step(folder: Path) -> None:
        for name in ("a", "b"):
            text = (folder / name).read_bytes()
            if not text.endswith(b", changed"):
                write_atomic(folder / name, text + b", changed")

    monkeypatch.setattr(state, "MIGRATIONS", {1: step})
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "b").write_bytes(b"second")
    for at in each_kill(lambda: StateFolder.open(tmp_path, with_keys=False), 20):
        StateFolder.open(tmp_path, with_keys=False).close()
        assert read_schema(tmp_path) == SCHEMA
        assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"first, changed", b"second, changed"]
        copy = tmp_path / "copy-of-schema-1"
        assert [(copy / name).read_bytes() for name in "ab"] == [b"first", b"second"], f"killed at {at}"
        shutil.rmtree(copy)
        (tmp_path / "schema").unlink()
        (tmp_path / "a").write_bytes(b"first")
        (tmp_path / "b").write_bytes(b"second")
