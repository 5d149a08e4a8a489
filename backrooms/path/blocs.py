"""Blocs: named sets of countries that rules may speak of (backrooms/data/blocs.txt).

    NAME: CODE OR BLOC ...      9eyes: 5eyes dk fr nl no

A line defines one bloc by countries' codes of two letters and by blocs defined before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files

from backrooms.errors import ConfigError
from backrooms.netdir.geo import COUNTRIES

Blocs = Mapping[str, frozenset[str]]
"""The countries (upper case) of each bloc, by its name (lower case)."""
MAX_BLOCS = 1000
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,31}", re.ASCII)
_OTHER_CODES = {
    "UK": "gb",
    "EL": "gr",
    "EU": "{bloc:eu} in a rule, eu: in a list of blocs",
    "AP": "the countries meant",
}


def country_code(text: str) -> str:
    """The upper-case code of a country; `ConfigError` says what is wrong and what is allowed."""
    code = text.upper()
    if code not in COUNTRIES:
        instead = f"; write {_OTHER_CODES[code]} instead" if code in _OTHER_CODES else ""
        raise ConfigError(f"{text[:20]!r} is no country's code of two letters (ISO 3166-1){instead}")
    return code


def parse_blocs(lines: Iterable[str], known: Blocs | None = None) -> dict[str, frozenset[str]]:
    """`known` and the blocs of these lines, comments left out. `ConfigError` names the wrong bloc."""
    found = dict(known or {})
    for line in lines:
        text = line.partition("#")[0].strip()
        if not text:
            continue
        name, colon, members = text.partition(":")
        name = name.strip().lower()
        if not (colon and members.strip() and _NAME.fullmatch(name)) or name.upper() in COUNTRIES:
            raise ConfigError(
                f"{text[:80]!r}: a bloc is NAME: CODES, such as 'nordic: dk fi is no se'; "
                "its name has 2 to 32 letters, digits and hyphens, and is no country's code"
            )
        if name in found:
            raise ConfigError(f"{text[:80]!r}: there is a bloc {name!r} already")
        countries: set[str] = set()
        for word in members.split():
            if word.lower() in found:
                countries |= found[word.lower()]
                continue
            try:
                countries.add(country_code(word))
            except ConfigError as error:
                raise ConfigError(f"bloc {name!r}: {error}, nor a bloc defined before") from None
        found[name] = frozenset(countries)
        if len(found) > MAX_BLOCS:
            raise ConfigError(f"more than {MAX_BLOCS} blocs")
    return found


@cache
def builtin_blocs() -> Blocs:
    """The blocs that come with Backrooms."""
    text = files("backrooms").joinpath("data", "blocs.txt").read_text(encoding="utf-8")
    return parse_blocs(text.splitlines())


def blocs_of(country: str, blocs: Blocs) -> frozenset[str]:
    """The names of all blocs that a country is in."""
    return frozenset(name for name, countries in blocs.items() if country in countries)
