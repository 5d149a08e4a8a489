"""Looks addresses up in Tor's own files of countries, `low,high,CC`, as they are on disk.

The lines are in rising order, so a look-up is a bisection over the text: 50 to 100 microseconds, nothing is read at
start, and processes share the pages. A `GeoTable` (`backrooms geo import`) answers fifty times faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from mmap import mmap

from backrooms.errors import ConfigError
from backrooms.netdir.geo import NOWHERE, Place
from backrooms.netdir.geosource import FORMATS, read_row

_MAX_LINE = 200


class GeoText:
    """Countries out of one file for IPv4 and one for IPv6. A line that is not of the form knows nothing."""

    source = FORMATS["tor"].source
    licence = FORMATS["tor"].licence
    has_countries = True
    has_asns = False
    has_names = False

    def __init__(self, four: bytes | mmap, six: bytes | mmap) -> None:
        self._texts = {4: four, 6: six}
        self._starts = {version: _after_comments(text) for version, text in self._texts.items()}
        self._made: dict[str, Place] = {"": NOWHERE}

    @property
    def date(self) -> str:
        """When the data was made, by the comment at the beginning."""
        line = next((line for line in self._head() if b"Generated:" in line), b"")
        return line.partition(b"Generated:")[2].strip().decode("utf-8", "replace")

    def _head(self) -> Sequence[bytes]:
        return self._texts[4][: self._starts[4]].splitlines()

    def place(self, ip: str | IPv4Address | IPv6Address) -> Place:
        """Where an address is. `ValueError` if the text is no address."""
        address = ip_address(ip) if isinstance(ip, str) else ip
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        country = self._country(address.version, int(address))
        if country not in self._made:
            self._made[country] = Place(country)
        return self._made[country]

    def _country(self, version: int, number: int) -> str:
        text = self._texts[version]
        low, high = self._starts[version], len(text)
        while low < high:  # both stand at the beginning of a line, or at the end of the text
            middle = (low + high) // 2
            start = max(low, text.rfind(b"\n", low, middle) + 1)
            end = text.find(b"\n", start, start + _MAX_LINE)
            end = end if end >= 0 else len(text)
            try:
                row = read_row(text[start:end].decode().strip().split(","), FORMATS["tor"].fields)
            except ValueError:
                return ""
            if row.version != version:
                return ""
            if number < row.start:
                high = start
            elif number > row.end:
                low = end + 1
            else:
                return row.country
        return ""


def _after_comments(text: bytes | mmap) -> int:
    """Where the first line begins that is no comment. `ConfigError` if it is not of the form."""
    at = 0
    while text[at : at + 1] == b"#":
        at = text.find(b"\n", at) + 1 or len(text)
    try:
        read_row(text[at : at + _MAX_LINE].partition(b"\n")[0].decode().strip().split(","), FORMATS["tor"].fields)
    except ValueError as error:
        raise ConfigError(f"is not in Tor's form low,high,CC: {error}") from None
    return at
