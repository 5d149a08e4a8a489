"""The text of rules about known entities: one rule, lists of them, and files (docs/known-entities.md).

    {de}  {??}  {bloc:14eyes}  {AS3320}  {org:Name}              by where an address is
    192.0.2.7  198.51.100.0/24  2001:db8::/32                    by address
    ID  FINGERPRINT  $FINGERPRINT  nickname  {nickname:Name}     by relay
    {family:RELAY}  {operator:Name}                              by who runs it
    file:LIST                                                    one rule on a line, "#" begins a comment

Every text is a rule or a `ConfigError` that names it, says where it stands and what is allowed. So is a rule that the
table of places cannot answer: it would be held by nobody.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Network, ip_address, ip_network

from backrooms.crypto.keys import parse_id
from backrooms.errors import ConfigError
from backrooms.netdir.geo import MAX_ASN, AnyTable
from backrooms.path.blocs import Blocs, builtin_blocs, country_code

MAX_RULES = 100_000
"""In one option, those in its files included."""
ALLOWED = (
    "a rule is {de} (a country), {bloc:14eyes}, {AS3320}, {org:Name}, {operator:Name}, {??} (unknown country), an "
    "address or a network such as 192.0.2.0/24, a relay's id, fingerprint or nickname, {family:RELAY}, or file:LIST"
)

_FINGERPRINT = re.compile(r"\$?([0-9A-Fa-f]{40})", re.ASCII)
_NICKNAME = re.compile(r"[A-Za-z0-9]{1,19}", re.ASCII)
_ASN = re.compile(r"[Aa][Ss]([0-9]{1,10})", re.ASCII)
_ID_SIZE = 52
_LINE = re.compile(r"(\{.*?\}|[^#\s]*)\s*(?:#.*)?")
_WORDS = re.compile(r"[\W_]+")
_TABLE_NEEDED = "; `backrooms geo import` makes one"


class Kind(Enum):
    """What a rule looks at, and what its value is."""

    COUNTRY = "country"
    """Countries, upper case: a frozenset."""
    UNKNOWN = "unknown"
    """None."""
    ASN = "asn"
    """A number."""
    ORG = "org"
    """Words, as `words` gives them."""
    NETWORK = "network"
    """(version, bits that do not count, network's number without them)."""
    RELAY = "relay"
    """A `RelayName`."""
    FAMILY = "family"
    """A `RelayName`."""
    OPERATOR = "operator"
    """Words, as `words` gives them."""


_OF_THE_TABLE = (Kind.COUNTRY, Kind.UNKNOWN, Kind.ASN, Kind.ORG)


@dataclass(frozen=True, slots=True)
class RelayName:
    """One way to name a relay: just one of the three is not empty."""

    id: bytes = b""
    fingerprint: str = ""
    """40 upper-case hex digits."""
    nickname: str = ""
    """Lower case. Nicknames are not unique: all relays of that name are meant."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule."""

    kind: Kind
    value: frozenset[str] | int | str | tuple[int, int, int] | RelayName | None
    text: str
    """As it was written."""
    where: str
    """`path.avoid[3]`, or `list.txt:4` for a line of a file."""
    in_file: bool = False

    def __str__(self) -> str:
        """The text, and for one out of a file also where."""
        return f"{self.text} ({self.where})" if self.in_file else self.text


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What rules are read with."""

    table: AnyTable | None = None
    """The table that will answer them."""
    blocs: Blocs | None = None
    """None for those that come with Backrooms."""
    read: Callable[[str], str] | None = None
    """Gives the text of a file by the name in a rule; may raise `OSError` or `UnicodeError`."""

    def all_blocs(self) -> Blocs:
        return builtin_blocs() if self.blocs is None else self.blocs


def words(text: str) -> str:
    """A name as words that can be compared: lower case, one blank before each word and nothing else between."""
    return " " + _WORDS.sub(" ", text.casefold()).strip()


def parse_rules(texts: Iterable[str], where: str, known: Knowledge | None = None) -> tuple[Rule, ...]:
    """The rules of one option, those of its files included. `where` is the option's name, such as `path.avoid`."""
    known = known or Knowledge()
    found: list[Rule] = []
    for index, text in enumerate(texts):
        place = f"{where}[{index}]"
        if text.strip().startswith("file:"):
            found += _file(text.strip().removeprefix("file:").strip(), place, known)
        else:
            found.append(parse_rule(text, place, known))
        if len(found) > MAX_RULES:
            raise ConfigError(f"{where}: more than {MAX_RULES} rules")
    return tuple(found)


def _file(name: str, place: str, known: Knowledge) -> list[Rule]:
    """The rules of a file."""
    if not name or known.read is None:
        raise ConfigError(
            f"{place}: 'file:{name[:80]}': " + ("no rule can be a file here" if name else "names no file")
        )
    try:
        lines = known.read(name).splitlines()
    except OSError as error:
        raise ConfigError(f"{place}: 'file:{name[:80]}': cannot be read: {error.strerror}") from None
    except ValueError:  # bytes that are no text, and names that no file can have
        raise ConfigError(f"{place}: 'file:{name[:80]}': is not UTF-8 text, or no file can be called so") from None
    if len(lines) > MAX_RULES:
        raise ConfigError(f"{place}: 'file:{name[:80]}': more than {MAX_RULES} lines")
    rules = []
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line.strip())
        rule = match[1] if match else line.strip()
        if rule:
            rules.append(parse_rule(rule, f"{name}:{number}", known, f"{place}, {name} line {number}"))
    return rules


def parse_rule(text: str, where: str, known: Knowledge | None = None, in_file: str = "") -> Rule:
    """One rule that is no file. `in_file` says where it stands in more words, if it is a file's."""
    known = known or Knowledge()
    clean = text.strip()
    try:
        kind, value = _parse(clean, known)
        if kind in _OF_THE_TABLE:
            _answerable(kind, known.table)
    except ConfigError as error:
        raise ConfigError(f"{in_file or where}: {clean[:80]!r}: {error}") from None
    return Rule(kind, value, clean, where, bool(in_file))


def _parse(
    text: str, known: Knowledge
) -> tuple[Kind, frozenset[str] | int | str | tuple[int, int, int] | RelayName | None]:
    if text.startswith("{"):
        if not text.endswith("}"):
            raise ConfigError(f"its brace is not closed; {ALLOWED}")
        return _braced(text[1:-1].strip(), known)
    if text.startswith("file:"):
        raise ConfigError("a file of rules cannot name another")
    if text.startswith("!"):
        raise ConfigError("there are no exceptions; write the rules so that none is needed")
    if "/" in text or ":" in text or "." in text:
        return Kind.NETWORK, _network(text)
    if re.fullmatch(r"[A-Za-z]{2}|\?\?", text, re.ASCII) or _ASN.fullmatch(text):
        raise ConfigError(f"a country or AS stands in braces: {{{text}}}; a relay of this name is {{nickname:{text}}}")
    if text.lower() in known.all_blocs():
        raise ConfigError(f"a bloc is written {{bloc:{text}}}; a relay of this name is {{nickname:{text}}}")
    return Kind.RELAY, _relay(text)


def _braced(
    text: str, known: Knowledge
) -> tuple[Kind, frozenset[str] | int | str | tuple[int, int, int] | RelayName | None]:
    """What stands in braces."""
    if text == "??":
        return Kind.UNKNOWN, None
    if match := _ASN.fullmatch(text):
        asn = int(match[1])
        if not 1 <= asn <= MAX_ASN:
            raise ConfigError(f"an AS number is 1 to {MAX_ASN}")
        return Kind.ASN, asn
    key, colon, value = (part.strip() for part in text.partition(":"))
    if not colon:
        if len(text) == 2 and text.isascii() and text.isalpha():
            return Kind.COUNTRY, frozenset([country_code(text)])
        raise ConfigError(ALLOWED)
    key = key.lower()
    if key == "bloc":
        blocs = known.all_blocs()
        if value.lower() not in blocs:
            raise ConfigError(f"no such bloc; there are {', '.join(sorted(blocs))}")
        return Kind.COUNTRY, blocs[value.lower()]
    if key in ("org", "operator"):
        if not words(value).strip():
            raise ConfigError("a name must have letters or digits")
        return (Kind.ORG if key == "org" else Kind.OPERATOR), words(value)
    if key == "family":
        return Kind.FAMILY, _relay(value)
    if key == "nickname":
        if not _NICKNAME.fullmatch(value):
            raise ConfigError("a nickname is 1 to 19 letters and digits")
        return Kind.RELAY, RelayName(nickname=value.lower())
    raise ConfigError(ALLOWED)


def _relay(text: str) -> RelayName:
    """A relay by id, fingerprint or nickname."""
    if match := _FINGERPRINT.fullmatch(text):
        return RelayName(fingerprint=match[1].upper())
    if len(text) == _ID_SIZE:
        try:
            return RelayName(id=parse_id(text))
        except ValueError as error:
            raise ConfigError(f"not a relay: {error}") from None
    if _NICKNAME.fullmatch(text):
        return RelayName(nickname=text.lower())
    raise ConfigError(
        "not a relay: an id is 52 characters of base32, a fingerprint 40 hex digits, a nickname 1 to 19 letters and "
        f"digits; {ALLOWED}"
    )


def _network(text: str) -> tuple[int, int, int]:
    """A network or a single address as (version, bits that do not count, number without them)."""
    try:
        if "%" in text:
            raise ValueError
        network = ip_network(text)
    except ValueError:
        raise ConfigError(_network_fault(text)) from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ConfigError("IPv4 inside IPv6: write the IPv4 address or network")
    bits = network.max_prefixlen - network.prefixlen
    return network.version, bits, int(network.network_address) >> bits


def _network_fault(text: str) -> str:
    """Why a text is no network."""
    address, _, prefix = text.partition("/")
    try:
        ip_address(address.partition("%")[0])
        if "%" not in text and prefix.isascii() and prefix.isdigit():
            return f"the network is {ip_network(text, strict=False)}: the bits of an address after the prefix must be 0"
    except ValueError:
        pass
    return f"not an address or a network; {ALLOWED}"


def _answerable(kind: Kind, table: AnyTable | None) -> None:
    """`ConfigError` if the table has not what the rule asks for."""
    if table is None:
        raise ConfigError(f"there is no table of countries and networks{_TABLE_NEEDED}, and tor-geoipdb has countries")
    what, has = {
        Kind.ASN: ("AS numbers", table.has_asns),
        Kind.ORG: ("names of AS", table.has_names),
    }.get(kind, ("countries", table.has_countries))
    if not has:
        raise ConfigError(f"the table ({table.source}) has no {what}{_TABLE_NEEDED} out of a source that has them")
