"""Where addresses are: countries and autonomous systems, out of a local table (docs/known-entities.md).

A table is boundaries in rising order: from each boundary on, up to the next, all addresses are at one place. So a
look-up is one bisection over packed arrays: 660,000 ranges take about 10 MB and a few microseconds each.

    file     "backrooms-geo-1\\n" | SHA-256 of the rest, 32 | header length u32 | header, JSON | arrays, little-endian
    arrays   IPv4 boundaries u32 | their places u32 | IPv6 boundaries, upper halves u64 | lower halves u64 |
             their places u32 | places: countries, 2 bytes each | AS numbers u32 | names: AS numbers u32, rising |
             ends of their names u32 | names, UTF-8

Addresses are not looked up anywhere else: nobody learns which ones we ask about.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Protocol

from backrooms.errors import ConfigError

MAGIC = b"backrooms-geo-1\n"
MAX_ASN = 2**32 - 1
_DIGEST = 32
_LOW = 2**64 - 1
_MAX_HEADER = 65_536
_MAX_CACHE = 50_000

_CODES = (
    "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY "
    "BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK "
    "FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR "
    "IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK "
    "ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM "
    "PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF "
    "TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW"
)
COUNTRIES = frozenset(_CODES.split())
"""ISO 3166-1's codes of two letters, and XK for Kosovo, which tables use."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an address is, as far as the table knows."""

    country: str = ""
    """Two upper-case letters (`COUNTRIES`), empty if unknown."""
    asn: int = 0
    """The number of the autonomous system, 0 if unknown."""
    as_name: str = ""
    """What the source calls that system, empty if it does not say."""

    def __hash__(self) -> int:  # asked for each relay that rules judge
        return hash(self.country) ^ self.asn

    def __str__(self) -> str:
        """`DE AS3320 Deutsche Telekom`; `??` for an unknown country."""
        return " ".join(
            part for part in (self.country or "??", f"AS{self.asn}" if self.asn else "", self.as_name) if part
        )


NOWHERE = Place()
"""Of which nothing is known."""


class _Addressed(Protocol):
    @property
    def host(self) -> str | None: ...


class HasAddresses(Protocol):
    """What `Places` needs of a descriptor."""

    @property
    def addresses(self) -> Sequence[_Addressed]: ...


class Ranges:
    """Boundaries of one address family while a table is made; ranges come in rising order and do not overlap."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.high = array("Q")
        """Upper halves of the boundaries; unused for IPv4."""
        self.low = array("Q" if bits == 128 else "I")
        self.places = array("I")
        self._next = 0
        self._last = -1

    def append(self, start: int, end: int, place: int) -> None:
        """The addresses `start` to `end` are at the place of this number; what is left out between is at place 0."""
        if start > self._next:
            self._boundary(self._next, 0)
        self._boundary(start, place)
        self._next = end + 1

    def finish(self) -> None:
        """All addresses after the last range are at place 0."""
        if self._next >> self.bits == 0:
            self._boundary(self._next, 0)

    def _boundary(self, start: int, place: int) -> None:
        if place == self._last:
            return
        self._last = place
        if self.bits == 128:
            self.high.append(start >> 64)
            self.low.append(start & _LOW)
        else:
            self.low.append(start)
        self.places.append(place)

    def index(self, number: int) -> int:
        """The position of the boundary that this address is at or after."""
        if self.bits == 128:
            high, low = number >> 64, number & _LOW
            first = bisect_left(self.high, high)
            return bisect_right(self.low, low, first, bisect_right(self.high, high, first)) - 1
        return bisect_right(self.low, number) - 1

    def boundary(self, index: int) -> int:
        """The first address of the range at this position."""
        return (self.high[index] << 64 | self.low[index]) if self.bits == 128 else self.low[index]

    def __len__(self) -> int:
        return len(self.places)


class GeoTable:
    """A table of places. `geosource` makes them out of others' files; `to_bytes` and `from_bytes` keep them."""

    def __init__(
        self,
        four: Ranges,
        six: Ranges,
        places: Sequence[tuple[str, int]],
        names: dict[int, str],
        *,
        source: str,
        licence: str = "",
        date: str = "",
        has_countries: bool = True,
        has_asns: bool = False,
    ) -> None:
        """`places` are pairs of country and AS number by place number, the first of them ("", 0)."""
        self.four, self.six = four, six
        self.source, self.licence, self.date = source, licence, date
        self.has_countries, self.has_asns = has_countries, has_asns
        self.has_names = bool(names)
        self._countries = b"".join(country.encode().ljust(2, b"\0") for country, _ in places)
        self._asns = array("I", (asn for _, asn in places))
        self._name_asns = array("I", sorted(names))
        texts = [names[asn].encode() for asn in self._name_asns]
        self._name_ends = array("I")
        end = 0
        for text in texts:
            end += len(text)
            self._name_ends.append(end)
        self._names = b"".join(texts)
        self._made: dict[int, Place] = {}

    def __len__(self) -> int:
        """How many ranges it has, those between known ones included."""
        return len(self.four) + len(self.six)

    def place(self, ip: str | IPv4Address | IPv6Address) -> Place:
        """Where an address is. `ValueError` if the text is no address."""
        address = ip_address(ip) if isinstance(ip, str) else ip
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        ranges = self.four if address.version == 4 else self.six
        index = ranges.index(int(address))
        return self.by_number(ranges.places[index]) if index >= 0 else NOWHERE

    def by_number(self, number: int) -> Place:
        """The place of this number; one object for each."""
        place = self._made.get(number)
        if place is None:
            country, asn = self.pair(number)
            if len(self._made) > _MAX_CACHE:
                self._made.clear()
            place = self._made[number] = Place(country, asn, self.name(asn)) if country or asn else NOWHERE
        return place

    def pair(self, number: int) -> tuple[str, int]:
        """Country and AS number of a place."""
        return self._countries[2 * number : 2 * number + 2].rstrip(b"\0").decode(), self._asns[number]

    def name(self, asn: int) -> str:
        """The name of an autonomous system, empty if unknown."""
        index = bisect_left(self._name_asns, asn)
        if index == len(self._name_asns) or self._name_asns[index] != asn:
            return ""
        start = self._name_ends[index - 1] if index else 0
        return self._names[start : self._name_ends[index]].decode("utf-8", "replace")

    def names(self) -> dict[int, str]:
        """All names by AS number."""
        return {asn: self.name(asn) for asn in self._name_asns}

    def place_count(self) -> int:
        """How many different pairs of country and AS there are, "unknown" included."""
        return len(self._asns)

    def memory(self) -> int:
        """Bytes that its arrays take."""
        arrays = [part for ranges in (self.four, self.six) for part in (ranges.high, ranges.low, ranges.places)]
        arrays += [self._asns, self._name_asns, self._name_ends]
        return sum(len(one) * one.itemsize for one in arrays) + len(self._countries) + len(self._names)

    def _arrays(self) -> list[array[int]]:
        """The arrays in the order of the file, but for the texts."""
        four, six = self.four, self.six
        return [four.low, four.places, six.high, six.low, six.places, self._asns, self._name_asns, self._name_ends]

    def to_bytes(self) -> bytes:
        """The table as a file."""
        arrays = self._arrays()
        header = {
            "source": self.source,
            "licence": self.licence,
            "date": self.date,
            "countries": self.has_countries,
            "asns": self.has_asns,
            "sizes": [len(one) for one in arrays],
            "texts": [len(self._countries), len(self._names)],
        }
        text = json.dumps(header).encode()
        body = [len(text).to_bytes(4, "little"), text, *(_little(one).tobytes() for one in arrays)]
        data = b"".join([*body, self._countries, self._names])
        return MAGIC + hashlib.sha256(data).digest() + data

    @classmethod
    def from_bytes(cls, data: bytes) -> GeoTable:
        """What `to_bytes` wrote, in a few hundredths of a second; `ConfigError` for anything else."""
        if not data.startswith(MAGIC):
            raise ConfigError("is no table made by `backrooms geo import`")
        view = memoryview(data)
        start = len(MAGIC) + _DIGEST
        if hashlib.sha256(view[start:]).digest() != data[len(MAGIC) : start]:
            raise ConfigError("is damaged: its checksum is wrong; import it again")
        try:
            return cls._read(view[start:])
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
            raise ConfigError("is not in the form that this version reads; import it again") from None

    @classmethod
    def _read(cls, view: memoryview) -> GeoTable:
        size = int.from_bytes(view[:4], "little")
        if size > _MAX_HEADER:
            raise ValueError("header")
        header: dict[str, Any] = json.loads(bytes(view[4 : 4 + size]))
        at = 4 + size
        table = cls(
            Ranges(32),
            Ranges(128),
            (),
            {},
            source=str(header["source"]),
            licence=str(header["licence"]),
            date=str(header["date"]),
            has_countries=header["countries"] is True,
            has_asns=header["asns"] is True,
        )
        for one, count in zip(table._arrays(), header["sizes"], strict=True):
            end = at + count * one.itemsize
            one.frombytes(view[at:end])
            if sys.byteorder == "big":
                one.byteswap()
            at = end
        countries, names = header["texts"]
        table._countries, table._names = bytes(view[at : at + countries]), bytes(view[at + countries :])
        table.has_names = bool(names)
        table._check(len(table._names) == names)
        return table

    def _check(self, right: bool) -> None:
        """`ValueError` where looking something up could fail later."""
        for ranges in (self.four, self.six):
            right = right and len(ranges.low) == len(ranges.places) and max(ranges.places, default=0) < len(self._asns)
        right = right and len(self.six.high) == len(self.six.low) and len(self._countries) == 2 * len(self._asns)
        right = right and len(self._name_asns) == len(self._name_ends) and self._countries.isascii()
        if not right or (self._name_ends[-1] if self._name_ends else 0) != len(self._names):
            raise ValueError("sizes")


def _little(one: array[int]) -> array[int]:
    """The array in little-endian order."""
    if sys.byteorder == "little":
        return one
    copy = one[:]
    copy.byteswap()
    return copy


class AnyTable(Protocol):
    """What rules ask: a `GeoTable`, or a `geotext.GeoText`."""

    source: str
    licence: str
    has_countries: bool
    has_asns: bool
    has_names: bool

    @property
    def date(self) -> str: ...

    def place(self, ip: str | IPv4Address | IPv6Address) -> Place: ...


class Places:
    """Where a relay is, by all its addresses: what rules ask. Each set of addresses is looked up once."""

    def __init__(self, table: AnyTable | None) -> None:
        self.table = table
        self._known: dict[tuple[str, ...], tuple[Place, ...]] = {}

    def __call__(self, descriptor: HasAddresses) -> tuple[Place, ...]:
        """One place for each of its IP addresses; empty if it has none, that is, if nothing is known of it."""
        hosts = tuple([address.host for address in descriptor.addresses if address.host is not None])
        places = self._known.get(hosts)
        if places is None:
            if len(self._known) > _MAX_CACHE:
                self._known.clear()
            places = self._known[hosts] = tuple(self.table.place(host) if self.table else NOWHERE for host in hosts)
        return places
