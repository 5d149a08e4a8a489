"""The file in which certificates lie that need not be in memory."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path

from backrooms.netdir.certificate import ShelfError, shelf_check


class CertificateFile:
    """Signed certificates, one behind the other. It only grows; what is of no use goes when it is written anew.

    It is read by `pread` and not mapped: a disk that fails is then an error and no signal, and what was read once is
    the kernel's memory and not ours. `on_damage` is called when something cannot be read back as it was written.
    """

    def __init__(
        self, path: Path, number: int, on_damage: Callable[[str], None] = lambda why: None, *, empty: bool = False
    ) -> None:
        self.number = number
        self._path = path
        self._on_damage = on_damage
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_TRUNC if empty else 0)
        self._descriptor = os.open(path, flags, 0o600)
        self.close = weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, place: int, size: int, check: bytes) -> bytes:
        """The certificate that lies there. `ShelfError` when it is not what it was."""
        if not self.close.alive:
            raise ShelfError(f"{self._path} is closed")  # nobody has this certificate any more
        try:
            data = os.pread(self._descriptor, size, place)
        except OSError as error:
            self._on_damage(str(error.strerror))
            raise ShelfError(f"{self._path}: {error.strerror}") from None
        if shelf_check(data) != check:
            self._on_damage("its checksum is wrong")
            raise ShelfError(f"{self._path}: {size} bytes at {place} are not what they were")
        return data

    def append(self, data: bytes) -> tuple[int, int, bytes]:
        """Put a certificate behind the others; its place, size and check. `OSError` when there is no room."""
        place, left = self.size, memoryview(data)
        try:
            while left:
                left = left[os.pwrite(self._descriptor, left, place + len(data) - len(left)) :]
        except OSError:
            os.ftruncate(self._descriptor, place)
            raise
        self.size = place + len(data)
        return place, len(data), shelf_check(data)

    def sync(self) -> None:
        """Flush it to disk. `OSError` when that fails."""
        os.fdatasync(self._descriptor)

    def remove(self) -> None:
        """It is of no use any more."""
        self.close()
        self._path.unlink(missing_ok=True)
