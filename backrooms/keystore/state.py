"""The folder of a node's state: one process at a time, and files in a form that this version knows.

    lock                  held by flock(2) while a node runs, with its process id; the kernel lets go of it
    schema                the number of the form that all files here have; none in the first form
    copy-of-schema-N      what was here before a newer version changed it
    keys/                 see `backrooms.keystore.file`; has a lock and a schema of its own

A folder of keys can be moved about and used by itself, so it has its own two files.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from backrooms.errors import StateError
from backrooms.keystore.disk import (
    check_private,
    remove_leftovers,
    sync_directory,
    temporary_beside,
    write_atomic,
)

SCHEMA = 2
"""The form of all files of state; `MIGRATIONS` and `KEY_MIGRATIONS` lead to it from older ones."""
KEYS = "keys"
_LOCK = "lock"
_SCHEMA = "schema"
_COOKIE = "control_auth_cookie"
_NOT_COPIED = re.compile(rf"\.|onion-|{_LOCK}$|{_COOKIE}$")
"""What must not outlive its time (a copy of an onion key would open recorded handshakes), or serves nobody."""

Step = Callable[[Path], None]


class FolderLock:
    """A folder that no other process may change meanwhile. `StateError` says who has it."""

    def __init__(self, folder: Path) -> None:
        path = folder / _LOCK
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StateError(f"{path} cannot be opened: {error.strerror}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            why = f"cannot be locked: {error.strerror}"
            if isinstance(error, BlockingIOError):
                holder = os.pread(self._descriptor, 20, 0).strip()
                who = f"process {int(holder)}" if holder.isdigit() else "another process"
                why = f"is in use by {who}; stop that first, or use another folder"
            os.close(self._descriptor)
            raise StateError(f"{folder} {why}") from None
        self.sign()

    def sign(self) -> None:
        """Write down who we are; once more after a fork, for the lock goes on to the child."""
        text = f"{os.getpid()}\n".encode()
        with suppress(OSError):  # on a full disk nobody learns the number, but the lock holds
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text, 0)

    def release(self) -> None:
        """Let others have the folder. The file stays: without it two could hold locks on two files."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


class StateFolder:
    """The state of one node, locked and in the present form. `notes` are lines for the log."""

    def __init__(self, path: Path, locks: list[FolderLock], notes: list[str]) -> None:
        self.path = path
        self.notes = notes
        self._locks = locks

    @classmethod
    def open(cls, path: Path, *, with_keys: bool) -> StateFolder:
        """Make the folder if need be, take it, clear up after a process that died, and bring it up to date.

        `with_keys` says whether this node has keys, so that their folder is made and taken, too. `StateError` when
        another process has it or a newer version wrote it; `KeyStoreError` when other users can change it.
        """
        locks: list[FolderLock] = []
        notes: list[str] = []
        keys = path / KEYS
        try:
            for folder in (path, keys):
                if folder is path or with_keys:
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                elif not folder.is_dir():
                    continue
                check_private(folder, folder.stat(), 0o700, stat.S_IWGRP | stat.S_IWOTH)
                locks.append(FolderLock(folder))
                notes += [
                    f"removed {folder / name}, which a process that died left" for name in remove_leftovers(folder)
                ]
                steps = MIGRATIONS if folder is path else KEY_MIGRATIONS
                notes += bring_up_to_date(folder, steps)
        except BaseException as error:
            for lock in locks:
                lock.release()
            if isinstance(error, OSError):
                raise StateError(f"{error.filename or path} cannot be used: {error.strerror}") from None
            raise
        return cls(path, locks, notes)

    def sign(self) -> None:
        """Write down our process id, which is another one after twistd became a daemon."""
        for lock in self._locks:
            lock.sign()

    def close(self) -> None:
        """Let other processes have the folder. The kernel does it, too, when the process ends."""
        for lock in self._locks:
            lock.release()


# the form of the files


def read_schema(folder: Path) -> int | None:
    """The number of the form that the files here have; None where there is none."""
    path = folder / _SCHEMA
    try:
        text = path.read_bytes()[:20].strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}") from None
    if not text.isdigit() or int(text) < 1:
        raise StateError(f"{path} is damaged: there must be a number in it, such as {SCHEMA}")
    return int(text)


def check_schema(folder: Path) -> None:
    """`StateError` if a newer version wrote what is here."""
    found = read_schema(folder)
    if found is not None and found > SCHEMA:
        raise StateError(
            f"{folder} was written by a newer version of Backrooms (schema {found}, this one knows {SCHEMA}); "
            "run that version, or use another folder"
        )


def write_schema(folder: Path, number: int = SCHEMA) -> None:
    """Say that the files here have this form."""
    write_atomic(folder / _SCHEMA, b"%d\n" % number)


def bring_up_to_date(folder: Path, steps: Mapping[int, Step]) -> list[str]:
    """Bring the files of this folder to the present form, step by step; what was done, as lines for the log.

    Before the first step they are copied. A step may be broken off and begun again: it must bear what it did itself.
    """
    check_schema(folder)
    found = read_schema(folder)
    if found is None:
        is_new = {path.name for path in folder.iterdir()} <= {_LOCK, KEYS}
        found = SCHEMA if is_new else 1
        if is_new:
            write_schema(folder)
    if found == SCHEMA:
        return []
    copy = _keep_copy(folder, found)
    for number in range(found, SCHEMA):
        steps[number](folder)
        write_schema(folder, number + 1)
    return [f"{folder} was brought from schema {found} to {SCHEMA}; what was there before is in {copy}"]


def _keep_copy(folder: Path, number: int) -> Path:
    """Copy the files that are here. A copy that is there already stays: after it, they may have been changed."""
    copy = folder / f"copy-of-schema-{number}"
    if not copy.exists():
        temporary = temporary_beside(copy)
        temporary.mkdir(mode=0o700)
        for path in folder.iterdir():
            if path.is_file() and not path.is_symlink() and not _NOT_COPIED.match(path.name):
                write_atomic(temporary / path.name, path.read_bytes())
        os.replace(temporary, copy)
        sync_directory(folder)
    return copy


def _number_files(folder: Path) -> None:
    """From 1 to 2: the same files, and a number. Cookies that were broken off had names of another kind."""
    for path in folder.glob(f".{_COOKIE}.*"):
        path.unlink()


def _number_keys(folder: Path) -> None:
    """From 1 to 2: the same files, and a number."""


MIGRATIONS: dict[int, Step] = {1: _number_files}
"""What leads the files of state from one form to the next."""
KEY_MIGRATIONS: dict[int, Step] = {1: _number_keys}
"""The same for the folder of keys."""
