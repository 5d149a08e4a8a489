"""Reads others' files of countries and networks into a `GeoTable` (docs/known-entities.md).

    tor           low,high,CC                16777216,16777471,AU      numbers for IPv4; comments begin with "#"
    four          start,end,CC,ASN           192.0.2.0,192.0.2.255,de,AS64496
    iptoasn       start TAB end TAB ASN TAB CC TAB name
    dbip-country  start,end,CC
    dbip-asn      start,end,ASN,name

Lines may be in any order, but no two may speak of one address. Files are merged in the order they are given: a later
one only tells what none before it knew of an address.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from itertools import chain
from typing import NamedTuple

from backrooms.errors import ConfigError
from backrooms.netdir.geo import COUNTRIES, MAX_ASN, GeoTable, Ranges

MAX_LINE = 1000
MAX_RANGES = 20_000_000
MAX_NAME = 200
_NUMBER = re.compile(r"[0-9]{1,39}", re.ASCII)
_HALF = re.compile(r"((?:[0-9A-Fa-f]{1,4}:){0,6}[0-9A-Fa-f]{1,4})::", re.ASCII)
"""An IPv6 address that ends in zeros,"""
_FULL = re.compile(r"(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}", re.ASCII)
"""and one without."""
_SHIFTS = range(112, -1, -16)
_AS = re.compile(r"(?:AS)?([0-9]{1,10})", re.ASCII | re.IGNORECASE)
_CODE = re.compile(r"[A-Z][A-Z0-9]|\?\?|-|", re.ASCII)
_NO_COUNTRY = {"NONE", "UNKNOWN", "N/A"}
_SAME_COUNTRY = {"UK": "GB", "EL": "GR"}
_DATE = re.compile(
    r"[0-9]{1,2} (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]* [0-9]{4}|[0-9]{4}-[0-9]{2}-[0-9]{2}"
)


@dataclass(frozen=True, slots=True)
class Format:
    """A form of file, and what is known of those who publish it."""

    fields: tuple[str, ...]
    """The columns: start, end, country, asn, name."""
    source: str
    licence: str
    separator: str = ","


FORMATS = {
    "tor": Format(
        ("start", "end", "country"),
        "tor-geoipdb, from the IPFire Location database (location.ipfire.org)",
        "CC BY-SA 4.0, (c) IPFire Project: whoever passes the table on names them and keeps the licence",
    ),
    "four": Format(("start", "end", "country", "asn"), "", ""),
    "iptoasn": Format(("start", "end", "asn", "country", "name"), "iptoasn.com", "PDDL 1.0 (public domain)", "\t"),
    "dbip-country": Format(
        ("start", "end", "country"),
        "DB-IP Lite (db-ip.com)",
        "CC BY 4.0: whoever shows or passes on what is in it links to IP Geolocation by DB-IP, https://db-ip.com",
    ),
    "dbip-asn": Format(
        ("start", "end", "asn", "name"),
        "DB-IP Lite (db-ip.com)",
        "CC BY 4.0: whoever shows or passes on what is in it links to IP Geolocation by DB-IP, https://db-ip.com",
    ),
}
"""Every form by its name."""


class Row(NamedTuple):
    """One range of addresses: both ends as numbers, both are in it."""

    version: int
    start: int
    end: int
    country: str
    asn: int
    name: str


@dataclass(slots=True)
class _Columns:
    """The ranges of one address family as they come."""

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)


def read_table(
    lines: Iterable[str], file: str, form: str | None = None, progress: Callable[[int], None] | None = None
) -> GeoTable:
    """The table in a file's lines, of which `file` is the name in errors. Its form is guessed where none is given.

    `progress` is called with the number of lines read, every few thousand. `ConfigError` names file and line.
    """
    head, rest = _head(lines)
    found = form or _guess(head, file)
    layout = FORMATS[found]
    families = {4: _Columns(), 6: _Columns()}
    numbers: dict[tuple[str, int], int] = {("", 0): 0}
    names: dict[int, str] = {}
    count = 0
    for number, fields in _rows(chain(head, rest), layout.separator, file):
        try:
            row = read_row(fields, layout.fields)
        except ValueError as error:
            raise ConfigError(f"{file}, line {number}: {error}; the form is {found!r}: {_shape(layout)}") from None
        columns = families[row.version]
        columns.starts.append(row.start)
        columns.ends.append(row.end)
        columns.places.append(numbers.setdefault((row.country, row.asn), len(numbers)))
        columns.lines.append(number)
        if row.name and row.asn:
            names.setdefault(row.asn, row.name)
        count += 1
        if count > MAX_RANGES:
            raise ConfigError(f"{file}: more than {MAX_RANGES} ranges")
        if progress is not None and count % 4096 == 0:
            progress(number)
    if not count:
        raise ConfigError(f"{file}: has no ranges")
    return GeoTable(
        _packed(families[4], 32, file),
        _packed(families[6], 128, file),
        list(numbers),
        names,
        source=layout.source or file,
        licence=layout.licence,
        date=next((match[0] for line in head if (match := _DATE.search(line))), ""),
        has_countries="country" in layout.fields,
        has_asns="asn" in layout.fields,
    )


def _head(lines: Iterable[str]) -> tuple[list[str], Iterator[str]]:
    """The comments and the first line that is none, and all lines after it."""
    rest, head = iter(lines), []
    for line in rest:
        head.append(line)
        if (line.strip() and not line.startswith("#")) or len(head) > 1000:
            break
    return head, rest


def _guess(head: Sequence[str], file: str) -> str:
    """The form of a file by its first line that is no comment."""
    first = head[-1].strip() if head else ""
    if "\t" in first:
        return "iptoasn"
    try:
        fields = next(csv.reader([first]), []) if first else []
    except csv.Error:
        fields = []
    if len(fields) == 3:
        return "tor" if len(head) > 1 or _NUMBER.fullmatch(fields[0].strip()) else "dbip-country"
    if len(fields) == 4:
        return "dbip-asn" if _AS.fullmatch(fields[2].strip()) else "four"
    raise ConfigError(f"{file}: what form is it of? Say --format {', '.join(FORMATS)}")


def _shape(layout: Format) -> str:
    return ("TAB" if layout.separator == "\t" else layout.separator).join(layout.fields)


def _rows(lines: Iterable[str], separator: str, file: str) -> Iterator[tuple[int, list[str]]]:
    """The fields of each line that has any, with its number from 1."""
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text or text.startswith("#"):
            continue
        if len(text) > MAX_LINE:
            raise ConfigError(f"{file}, line {number}: longer than {MAX_LINE} characters")
        if '"' in text and separator == ",":
            try:
                yield number, next(csv.reader([text], strict=True))
            except csv.Error as error:
                raise ConfigError(f"{file}, line {number}: {error}") from None
        else:
            yield number, text.split(separator)


def read_row(fields: list[str], layout: tuple[str, ...]) -> Row:
    """One range; `ValueError` says what is wrong."""
    if len(fields) != len(layout):
        raise ValueError(f"{len(fields)} columns instead of {len(layout)}")
    country, asn, name = "", 0, ""
    for kind, text in zip(layout[2:], fields[2:], strict=True):
        if kind == "country":
            country = _country(text.strip())
        elif kind == "asn":
            asn = _asn(text.strip())
        else:
            name = "".join(char if char.isprintable() else " " for char in text).strip()[:MAX_NAME]
    version, start = _address(fields[0].strip())
    version_of_end, end = _address(fields[1].strip())
    if version != version_of_end:
        raise ValueError("the range begins and ends in different kinds of addresses")
    if start > end:
        raise ValueError("the range ends before it begins")
    return Row(version, start, end, country, asn, name)


def _address(text: str) -> tuple[int, int]:
    """An address as its version and number; a plain number is IPv4, as Tor writes it."""
    if _NUMBER.fullmatch(text):
        number = int(text)
        if number >= 1 << 32:
            raise ValueError(f"{text!r} is no IPv4 address")
        return 4, number
    if text.endswith("::") and _HALF.fullmatch(text):  # nearly all IPv6 is of these two; ipaddress takes much longer
        return 6, sum([int(part, 16) << shift for part, shift in zip(text[:-2].split(":"), _SHIFTS, strict=False)])
    if _FULL.fullmatch(text):
        return 6, int("".join([part.rjust(4, "0") for part in text.split(":")]), 16)
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"{text[:50]!r} is no address") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError(f"{text[:50]!r} is no plain address")
    return address.version, int(address)


def _country(text: str) -> str:
    """A country's code, or nothing for what stands for "unknown" and for codes of no one country (EU, AP, A1)."""
    code = text.upper()
    code = _SAME_COUNTRY.get(code, code)
    if code in COUNTRIES:
        return code
    if code in _NO_COUNTRY or _CODE.fullmatch(code):
        return ""
    raise ValueError(f"{text[:20]!r} is no country's code of two letters")


def _asn(text: str) -> int:
    if text in ("", "-"):
        return 0
    match = _AS.fullmatch(text)
    if match is None or int(match[1]) > MAX_ASN:
        raise ValueError(f"{text[:20]!r} is no AS number")
    return int(match[1])


def _packed(columns: _Columns, bits: int, file: str) -> Ranges:
    """The ranges in order; `ConfigError` where two speak of one address."""
    starts, ends, places, lines = columns.starts, columns.ends, columns.places, columns.lines
    ranges = Ranges(bits)
    last, last_line = -1, 0
    for i in sorted(range(len(starts)), key=starts.__getitem__):
        if starts[i] <= last:
            raise ConfigError(f"{file}, line {lines[i]}: its range overlaps that of line {last_line}")
        ranges.append(starts[i], ends[i], places[i])
        last, last_line = ends[i], lines[i]
    ranges.finish()
    return ranges


def merge(tables: Sequence[GeoTable]) -> GeoTable:
    """One table out of several, such as one of countries and one of AS numbers: the first that knows decides."""
    if len(tables) == 1:
        return tables[0]
    numbers: dict[tuple[str, int], int] = {("", 0): 0}
    names: dict[int, str] = {}
    for table in reversed(tables):
        names.update(table.names())

    def all_of(key: Callable[[GeoTable], str]) -> str:
        return "; ".join(dict.fromkeys(text for table in tables if (text := key(table))))

    return GeoTable(
        _merged([table.four for table in tables], tables, numbers),
        _merged([table.six for table in tables], tables, numbers),
        # filled by the two lines before: arguments are evaluated in their order
        list(numbers),
        names,
        source=all_of(lambda table: table.source),
        licence=all_of(lambda table: table.licence),
        date=all_of(lambda table: table.date),
        has_countries=any(table.has_countries for table in tables),
        has_asns=any(table.has_asns for table in tables),
    )


def _merged(layers: Sequence[Ranges], tables: Sequence[GeoTable], numbers: dict[tuple[str, int], int]) -> Ranges:
    """The boundaries of all layers; at each, what the first layer that knows says."""
    ranges = Ranges(layers[0].bits)
    pairs = [[table.pair(number) for number in range(table.place_count())] for table in tables]
    known = [which for which, layer in enumerate(layers) if any(layer.places)]
    if len(known) == 1:  # files of one kind of addresses each
        layer, of_layer = layers[known[0]], pairs[known[0]]
        renumbered = [numbers.setdefault(pair, len(numbers)) for pair in of_layer]
        ranges.high, ranges.low = layer.high, layer.low
        ranges.places = array("I", [renumbered[place] for place in layer.places])
        return ranges
    boundaries = sorted({layer.boundary(i) for layer in layers for i in range(len(layer))})
    at = [-1] * len(layers)
    sizes = [len(layer) for layer in layers]
    for number, start in enumerate(boundaries):
        country, asn = "", 0
        for which, layer in enumerate(layers):
            index = at[which]
            while index + 1 < sizes[which] and layer.boundary(index + 1) <= start:
                index += 1
            at[which] = index
            if index >= 0:
                its_country, its_asn = pairs[which][layer.places[index]]
                country, asn = country or its_country, asn or its_asn
        end = boundaries[number + 1] - 1 if number + 1 < len(boundaries) else (1 << ranges.bits) - 1
        ranges.append(start, end, numbers.setdefault((country, asn), len(numbers)))
    ranges.finish()
    return ranges
