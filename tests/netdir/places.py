"""A small synthetic table of places, in the forms that others publish, and a search that needs no table."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from backrooms.netdir.geo import GeoTable
from backrooms.netdir.geosource import read_table

NAMES = {64496: "Alpenwolke GmbH", 64497: "FJORDNET-AS Fjord Hosting", 64498: "Prairie, Inc."}

ROWS = [
    ("10.1.0.0", "10.1.255.255", "de", 64496),
    ("10.2.0.0", "10.2.255.255", "no", 64497),
    ("10.3.0.0", "10.3.255.255", "us", 64498),
    ("10.4.0.0", "10.4.255.255", "ch", 64496),
    ("10.5.0.0", "10.5.255.255", "??", 64497),
    ("10.6.0.0", "10.6.255.255", "fr", 0),
    ("10.7.0.0", "10.7.0.0", "br", 64510),
    ("10.7.0.1", "10.7.255.255", "jp", 64511),
    ("2001:db8:1::", "2001:db8:1:ffff:ffff:ffff:ffff:ffff", "de", 64496),
    ("2001:db8:3::", "2001:db8:3:ffff:ffff:ffff:ffff:ffff", "us", 64498),
]
"""Ranges with a country and an AS number; 64510 and 64511 have no name."""


def iptoasn(rows: Iterable[tuple[str, str, str, int]] = ROWS) -> list[str]:
    """The rows as iptoasn publishes them."""
    return [
        f"{start}\t{end}\t{asn}\t{'None' if country == '??' else country.upper()}\t{NAMES.get(asn, '')}\n"
        for start, end, country, asn in rows
    ]


def synthetic() -> GeoTable:
    """The table with countries, AS numbers and names."""
    return read_table(iptoasn(), "synthetic.tsv")


def countries_only() -> GeoTable:
    """The same without networks."""
    return read_table([f"{start},{end},{country}\n" for start, end, country, _ in ROWS], "countries.csv")


def slow_place(rows: Iterable[tuple[str, str, str, int]], ip: str) -> tuple[str, int]:
    """Country and AS number by looking at one row after the other."""
    asked = ip_address(ip)
    for start, end, country, asn in rows:
        first, last = ip_address(start), ip_address(end)
        if first.version == asked.version and int(first) <= int(asked) <= int(last):
            return ("" if country == "??" else country.upper()), asn
    return "", 0
