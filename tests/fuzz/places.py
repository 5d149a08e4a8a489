"""Targets of tables of places and of rules: files that others publish or that a user wrote."""

from __future__ import annotations

import hashlib

from backrooms.crypto.keys import text_id
from backrooms.errors import ConfigError
from backrooms.netdir.geo import MAGIC, GeoTable
from backrooms.netdir.geosource import merge, read_table
from backrooms.path.blocs import builtin_blocs, parse_blocs
from backrooms.path.entities import Knowledge, Rules, parse_rules
from tests.fuzz.target import Target
from tests.netdir.places import ROWS, iptoasn, synthetic

TABLE = synthetic()
ADDRESSES = ("0.0.0.0", "10.1.0.0", "10.7.0.1", "255.255.255.255", "::", "2001:db8:3::1", "ffff::")
RULES = "\n".join(
    [
        "{de} # a country",
        "{bloc:14eyes}",
        "{AS64496}",
        "{org:Fjord Hosting}",
        "{operator:Some Body}",
        "{??}",
        "192.0.2.0/24",
        "2001:db8::1",
        text_id(bytes(32)),
        "$" + "0" * 40,
        "{family:nickname}",
        "{nickname:de}",
    ]
)


def _look_up(table: GeoTable) -> None:
    for address in ADDRESSES:
        place = table.place(address)
        assert len(place.country) in (0, 1, 2)
        str(place)


def _table(data: bytes) -> None:
    """A file whose checksum is right, whatever it says."""
    table = GeoTable.from_bytes(MAGIC + hashlib.sha256(data).digest() + data)
    _look_up(table)
    repr(table.names())


def _source(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    table = read_table(text.split("\n"), "file")
    _look_up(table)
    _look_up(GeoTable.from_bytes(table.to_bytes()))
    _look_up(merge([table, TABLE]))


def _rules(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    rules = parse_rules(["file:list"], "path.avoid", Knowledge(TABLE, read=lambda name: text))
    Rules(any=rules).exclusions([], lambda relay: ())
    assert parse_rules([rule.text for rule in rules], "again", Knowledge(TABLE)) is not None


def _blocs(data: bytes) -> None:
    parse_blocs(data.decode("utf-8", "replace").split("\n"), builtin_blocs())


def _sources() -> list[bytes]:
    plain = [f"{start},{end},{country}" for start, end, country, _ in ROWS]
    four = [f"{start},{end},{country},{asn}" for start, end, country, asn in ROWS]
    numbers = ["# a comment", "167837696,167903231,DE", "167903232,167968767,??"]
    return ["\n".join(lines).encode() for lines in (plain, four, numbers)] + ["".join(iptoasn()).encode()]


def targets() -> list[Target]:
    """All targets of this module."""
    errors = (ConfigError,)
    return [
        Target("netdir.geo", _table, lambda: [TABLE.to_bytes()[len(MAGIC) + 32 :]], errors),
        Target("netdir.geosource", _source, _sources, errors),
        Target("path.rules", _rules, lambda: [RULES.encode()], errors),
        Target("path.blocs", _blocs, lambda: [b"mine: de fr # two\nmore: mine 5eyes"], errors),
    ]
