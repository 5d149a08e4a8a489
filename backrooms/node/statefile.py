"""Small files of JSON in the state folder: read at the start, replaced whole, kept aside where they cannot be used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from twisted.logger import Logger

from backrooms.errors import BackroomsError
from backrooms.keystore.disk import write_atomic
from backrooms.node.logs import Seldom
from backrooms.node.timers import Timers

log = Logger()

KEPT_ASIDE = 9
"""Files of one name that are kept aside, at most; the last one makes room."""

T = TypeVar("T")


class StateFile:
    """One such file. It is there in the old form or the new one whenever the process dies."""

    def __init__(self, path: Path, timers: Timers, most: int, instead: str) -> None:
        """`most` bytes are read. `instead` tells in the log what follows if it cannot be: "guards are chosen anew"."""
        self._path = path
        self._timers = timers
        self._most = most
        self._instead = instead
        self._seldom = Seldom()

    def load(self, parse: Callable[[bytes], T]) -> T | None:
        """What `parse` makes of the file; None if there is none, or none that can be used, which is told.

        `parse` raises `ValueError` or `BackroomsError` for what is not as it should be.
        """
        name = self._path.name
        try:
            with self._path.open("rb") as file:
                data = file.read(self._most + 1)
            if len(data) > self._most:
                raise ValueError("it is too long")
            return parse(data)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warn("{file} cannot be read: {why}; {instead}", file=name, why=error.strerror, instead=self._instead)
        except (ValueError, BackroomsError) as error:
            log.warn(
                "{file} cannot be used ({why}); {kept}, and {instead}",
                file=name,
                why=str(error),
                kept=self._put_aside(),
                instead=self._instead,
            )
        return None

    def _put_aside(self) -> str:
        """Give the file another name; what became of it, in words."""
        places = [self._path.with_name(f"{self._path.name}.damaged-{number}") for number in range(1, KEPT_ASIDE + 1)]
        place = next((one for one in places if not one.exists()), places[-1])
        try:
            os.replace(self._path, place)
        except OSError as error:
            return f"it cannot be put aside ({error.strerror})"
        return f"it is kept as {place.name}"

    def save(self, text: str) -> bool:
        """Replace the file; whether that was possible. Where it was not, that is told now and then."""
        try:
            write_atomic(self._path, text.encode())
        except OSError as error:
            if self._seldom.is_due("save", self._timers.now()):
                log.warn("{file} cannot be written: {why}", file=self._path.name, why=error.strerror)
            return False
        return True


def read_json(data: bytes) -> Any:
    """What the JSON text says; `ValueError` for whatever is none."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("too many brackets") from None
