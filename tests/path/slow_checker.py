"""Says what is wrong with a path: slow, written from docs/known-entities.md, and without a line of what chooses paths.

It looks at one relay and one rule at a time, and compares text where the real code compares numbers and tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from itertools import combinations
from pathlib import Path

from backrooms.crypto.keys import text_id
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.geo import Place

BLOCS_FILE = Path(__file__).parent.parent.parent / "backrooms" / "data" / "blocs.txt"
PlacesOf = Callable[[Descriptor], tuple[Place, ...]]


def blocs(lines: Iterable[str] = ()) -> dict[str, set[str]]:
    """The blocs that come with Backrooms and those of `lines`: their countries in lower case."""
    found: dict[str, set[str]] = {}
    for line in [*BLOCS_FILE.read_text().split("\n"), *lines]:
        if line.strip() and not line.startswith("#"):
            name, members = line.split(":")
            found[name.lower()] = set()
            for member in members.lower().split():
                found[name.lower()] |= found.get(member, {member})
    return found


BLOCS = blocs()


class Checker:
    """Judges paths over one list of relays. What was asked about a relay and a rule is remembered."""

    def __init__(self, relays: Sequence[Descriptor], places: PlacesOf) -> None:
        self._relays = relays
        self._places = places
        self._found: dict[tuple[bytes, str | tuple[str, ...]], bool] = {}

    def violations(
        self, path: Sequence[Descriptor], rules: Mapping[str, Sequence[str]], exit_rules: Sequence[str] = ()
    ) -> list[str]:
        """What the relays of a path break; empty if nothing.

        `rules` has lists of rules by "any", "entry", "middle" and "exit". A path of one relay is entry and exit at
        once. The last relay must fit one of the `exit_rules`.
        """
        found = []
        for index, relay in enumerate(path):
            positions = ["any"]
            if index == 0:
                positions.append("entry")
            if index == len(path) - 1:
                positions.append("exit")
            if 0 < index < len(path) - 1:
                positions.append("middle")
            for position in positions:
                found += [
                    f"{position}: {relay.nickname} breaks {rule}"
                    for rule in rules.get(position, ())
                    if self._breaks(relay, rule)
                ]
        if exit_rules and path and not self._allows(path[-1], tuple(exit_rules)):
            found.append(f"exit: {path[-1].nickname} fits none of {list(exit_rules)}")
        return found

    def _breaks(self, relay: Descriptor, rule: str) -> bool:
        key = relay.id, rule
        if key not in self._found:
            self._found[key] = breaks(relay, rule, self._places(relay), self._relays)
        return self._found[key]

    def _allows(self, relay: Descriptor, rules: tuple[str, ...]) -> bool:
        key = relay.id, rules
        if key not in self._found:
            self._found[key] = allowed(relay, rules, self._places(relay), self._relays)
        return self._found[key]


def breaks(
    relay: Descriptor,
    rule: str,
    where: Sequence[Place],
    relays: Sequence[Descriptor],
    all_blocs: Mapping[str, set[str]] = BLOCS,
) -> bool:
    """Whether a rule excludes a relay: it names it, or what the rule asks for is not known."""
    text = rule.strip().lower()
    if "/" in text or re.fullmatch(r"[\d.]+", text) or (":" in text and "{" not in text):
        hosts = hosts_of(relay)
        return not hosts or any(ip_address(host) in ip_network(text) for host in hosts)
    if names_relay(relay, text, relays):
        return True
    if text.startswith("{org:") and stands_in(text[5:-1], relay.operator):
        return True
    if not is_about_places(text):
        return False
    return not where or any(place_breaks(place, text, all_blocs) for place in where)


def place_breaks(place: Place, text: str, all_blocs: Mapping[str, set[str]]) -> bool:
    """Whether a rule in lower case excludes what is at a place."""
    country = place.country.lower()
    if text == "{??}":
        return country == ""
    if text.startswith("{bloc:"):
        return country == "" or country in all_blocs[text[6:-1].strip()]
    if text.startswith("{org:"):
        return place.as_name == "" or stands_in(text[5:-1], place.as_name)
    if re.fullmatch(r"\{as\d+\}", text):
        return place.asn == 0 or place.asn == int(text[3:-1])
    return country == "" or "{" + country + "}" == text


def is_about_places(text: str) -> bool:
    return bool(re.fullmatch(r"\{(..|as\d+|bloc:.*|org:.*)\}", text))


def allowed(
    relay: Descriptor,
    rules: Sequence[str],
    where: Sequence[Place],
    relays: Sequence[Descriptor],
    all_blocs: Mapping[str, set[str]] = BLOCS,
) -> bool:
    """Whether rules that say what must be name a relay for certain: itself, or every one of its addresses."""
    texts = [rule.strip().lower() for rule in rules]
    if any(names_relay(relay, text, relays, for_certain=True) for text in texts):
        return True
    hosts = hosts_of(relay)
    if not hosts or len(hosts) != len(where):
        return False
    for host, place in zip(hosts, where, strict=True):
        fits = False
        for text in texts:
            if "/" in text or re.fullmatch(r"[\d.]+", text) or (":" in text and "{" not in text):
                fits = fits or ip_address(host) in ip_network(text)
            elif is_about_places(text):
                known = {"{b": place.country, "{o": place.as_name, "{a": str(place.asn or "")}
                asked = place.country if re.fullmatch(r"\{..\}", text) else known[text[:2]]
                fits = fits or ((bool(asked) or text == "{??}") and place_breaks(place, text, all_blocs))
        if not fits:
            return False
    return True


def names_relay(relay: Descriptor, text: str, relays: Sequence[Descriptor], for_certain: bool = False) -> bool:
    """Whether a rule in lower case is about the relay itself, its family or the operator it declares.

    To be excluded it is enough that a relay itself says of whose family it is.
    """
    if text.startswith("{family:"):
        head = text[8:-1].strip()
        if is_called(relay, head) or any(one_family(relay, other) for other in relays if is_called(other, head)):
            return True
        says = [text_id(member) for member in relay.family]
        heads = [head, *(text_id(other.id) for other in relays if is_called(other, head))]
        return not for_certain and any(one in says for one in heads)
    if text.startswith("{operator:"):
        return plain(text[10:-1]) == plain(relay.operator)
    if text.startswith("{nickname:"):
        return relay.nickname.lower() == text[10:-1].strip()
    return is_called(relay, text)


def is_called(relay: Descriptor, name: str) -> bool:
    """Whether a name in lower case is a relay's id, fingerprint or nickname."""
    return name in (
        text_id(relay.id),
        relay.fingerprint.lower(),
        "$" + relay.fingerprint.lower(),
        relay.nickname.lower(),
    )


def one_family(a: Descriptor, b: Descriptor) -> bool:
    return bool(set(a.family_keys) & set(b.family_keys)) or (a.id in b.family and b.id in a.family)


def plain(name: str) -> list[str]:
    """The words of a name."""
    return "".join(char if char.isalnum() else " " for char in name.casefold()).split()


def stands_in(part: str, name: str) -> bool:
    """Whether a name has these words one after the other, of which the last may be the beginning of a longer one."""
    asked, words = plain(part), plain(name)
    return any(
        words[i : i + len(asked) - 1] == asked[:-1] and words[i + len(asked) - 1].startswith(asked[-1])
        for i in range(len(words) - len(asked) + 1)
    )


def hosts_of(relay: Descriptor) -> list[str]:
    return [address.host for address in relay.addresses if address.host is not None]


def too_alike(path: Sequence[Descriptor], places: PlacesOf | None = None) -> list[str]:
    """Pairs of relays on a path that may not stand together: one relay, /16 or /32, family; with places, one AS."""
    found = []
    for a, b in combinations(path, 2):
        pair = f"{a.nickname} and {b.nickname}"
        if a.id == b.id:
            found.append(f"{pair} are one relay")
        if one_family(a, b):
            found.append(f"{pair} are of one family")
        for host in hosts_of(a):
            bits = 32 if ":" in host else 16
            net = ip_network(f"{host}/{bits}", strict=False)
            if any(ip_address(other) in net for other in hosts_of(b)):
                found.append(f"{pair} are both in {net}")
        if places is not None:
            shared = {place.asn for place in places(a)} & {place.asn for place in places(b)} - {0}
            found += [f"{pair} are both in AS{asn}" for asn in shared]
    return found
