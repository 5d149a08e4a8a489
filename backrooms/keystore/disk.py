"""Files that are there whole or not at all, and private."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from backrooms.errors import KeyStoreError

_LEFTOVER = re.compile(r"\..+\.\d+\.new", re.ASCII)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path` whole or not at all, flushed to disk. `OSError` as the system says it."""
    temporary = stage(path, data, mode)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink()
        raise
    sync_directory(path.parent)


def stage(path: Path, data: bytes, mode: int = 0o600) -> Path:
    """Write what is to become `path` beside it, flushed to disk; where it is. All that needs room on the disk."""
    temporary = temporary_beside(path)
    with suppress(FileNotFoundError):  # left by a process of our number that died
        os.unlink(temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fchmod(descriptor, mode)  # whatever the umask
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return temporary


def temporary_beside(path: Path) -> Path:
    """Where what becomes `path` is made. `remove_leftovers` knows such names."""
    return path.with_name(f".{path.name}.{os.getpid()}.new")


def sync_directory(path: Path) -> None:
    """Make renames and deletions in the directory last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> list[str]:
    """Remove what processes that died left half-written; the names. Nobody else may be writing in the folder."""
    found = sorted(path for path in folder.iterdir() if _LEFTOVER.fullmatch(path.name))
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return [path.name for path in found]


def is_full(error: OSError) -> bool:
    """Whether there is no room: on the disk, in a quota, in what a process may write. That may pass."""
    return error.errno in _FULL


def check_private(path: Path, status: os.stat_result, mode: int, forbidden: int = 0o077) -> None:
    """`KeyStoreError` if anybody but us owns the file, or if its mode has any of the `forbidden` bits."""
    if status.st_uid != os.geteuid():
        raise KeyStoreError(
            f"{path} belongs to user {status.st_uid}, but this process runs as user {os.geteuid()}; "
            f"run: chown {os.geteuid()} {path}"
        )
    if stat.S_IMODE(status.st_mode) & forbidden:
        raise KeyStoreError(
            f"{path} is open to other users (mode {stat.S_IMODE(status.st_mode):04o}); run: chmod {mode:o} {path}"
        )
