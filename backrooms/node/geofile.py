"""Where a node's table of countries and networks is on disk, and how it gets there.

path.geo             the table of the configuration, if it names one: it must be there
STATE/geo.table      what `backrooms geo import` makes
/usr/share/tor       the Debian package tor-geoipdb (countries only), read as it is
"""

from __future__ import annotations

import errno
import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, NamedTuple

from backrooms.errors import ConfigError
from backrooms.netdir.geo import AnyTable, GeoTable
from backrooms.netdir.geosource import merge, read_table
from backrooms.netdir.geotext import GeoText

TOR_FOLDER = Path("/usr/share/tor")
TOR_FILES = ("geoip", "geoip6")
MAX_TABLE = 256 << 20
"""Bytes of a table's file; one with 660,000 ranges has about ten million."""

MAX_RULES_FILE = 8 << 20
"""Bytes of a file with rules."""
_MAX_READ = 8192
"""Bytes of a line that are read at most; what is longer is no line of any form."""


class Origin(NamedTuple):
    """Where a node's table comes from."""

    kind: str
    """`path.geo`, `state`, `tor-geoipdb`, or `none`."""
    path: Path


def find_table(geo: Path | None, state: Path, tor_folder: Path | None = None) -> Origin:
    """Where the table is for a node with these options; it may be missing or wrong there."""
    own, tor_folder = state / "geo.table", tor_folder or TOR_FOLDER
    if geo is not None:
        return Origin("path.geo", geo)
    if own.exists():
        return Origin("state", own)
    if all((tor_folder / name).exists() for name in TOR_FILES):
        return Origin("tor-geoipdb", tor_folder)
    return Origin("none", own)


def load(path: Path) -> GeoTable:
    """The table in a file; `ConfigError` names the file."""
    try:
        if path.stat().st_size > MAX_TABLE:
            raise ConfigError(f"{path}: is larger than {MAX_TABLE} bytes")
        return GeoTable.from_bytes(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None


def import_files(
    files: Sequence[Path], form: str | None = None, progress: Callable[[int], None] | None = None
) -> GeoTable:
    """One table out of others' files, which may be compressed by gzip. `ConfigError` names file and line.

    `progress` gets the number of bytes of the files that were read so far.
    """
    tables = []
    before = 0
    for path in files:
        try:
            with _opened(path) as (raw, lines):
                step = None if progress is None else (lambda _, raw=raw, before=before: progress(before + raw.tell()))
                tables.append(read_table(lines, str(path), form, step))
                before += path.stat().st_size
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: is not UTF-8 text") from None
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise ConfigError(f"{path}: its compression is damaged") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return merge(tables)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], Iterator[str]]]:
    """The file as it is on disk, and the lines of text in it."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        source = gzip.GzipFile(fileobj=raw) if packed else raw
        yield raw, (line.decode("utf-8") for line in iter(lambda: source.readline(_MAX_READ), b""))


def open_table(origin: Origin) -> AnyTable | None:
    """The table there; None if there is none. `ConfigError` if it cannot be read."""
    if origin.kind == "none":
        return None
    if origin.kind != "tor-geoipdb":  # "table" where a command was told which
        return load(origin.path)
    try:
        return GeoText(*(_mapped(origin.path / name) for name in TOR_FILES))
    except OSError as error:
        raise ConfigError(f"{origin.path}: the files of tor-geoipdb cannot be read: {error.strerror}") from None
    except ValueError:  # an empty file cannot be mapped
        raise ConfigError(f"{origin.path}: a file of tor-geoipdb is empty") from None
    except ConfigError as error:
        raise ConfigError(f"{origin.path}: a file of tor-geoipdb {error}") from None


def read_rules_file(path: Path) -> str:
    """The text of a file with rules. `OSError` or `ValueError` if it cannot be read."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a file")
    with path.open("rb") as file:
        data = file.read(MAX_RULES_FILE + 1)
    if len(data) > MAX_RULES_FILE:
        raise OSError(errno.EFBIG, f"larger than {MAX_RULES_FILE} bytes")
    return data.decode("utf-8")


def _mapped(path: Path) -> mmap:
    with path.open("rb") as file:
        return mmap(file.fileno(), 0, access=ACCESS_READ)
