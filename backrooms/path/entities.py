"""Known entities: which relays the rules name, for each position of a path (docs/known-entities.md).

What is not known counts against a relay: a rule about countries also excludes a relay of which an address is in no
known country. Every address of a relay counts, one is enough. Rules are hard: nothing here relaxes any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from ipaddress import ip_address
from typing import cast

from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.geo import Place, Places
from backrooms.path.constraints import same_family
from backrooms.path.rules import Kind, Knowledge, RelayName, Rule, parse_rules, words

__all__ = ["Exclusions", "Knowledge", "KnownEntities", "PlacesOf", "Rule", "Rules", "parse_rules"]

PlacesOf = Callable[[Descriptor], tuple[Place, ...]]
"""`netdir.geo.Places`: one place for each IP address of a relay."""
Placed = tuple[Descriptor, bytes, tuple[Place, ...]]
"""A relay, its id, and where it is."""


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Relays that may not stand at a position, by id, and the rule that says so."""

    entry: Mapping[bytes, str] = field(default_factory=dict)
    middle: Mapping[bytes, str] = field(default_factory=dict)
    exit: Mapping[bytes, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """What to avoid at each position; `any` holds for all three."""

    any: tuple[Rule, ...] = ()
    entry: tuple[Rule, ...] = ()
    middle: tuple[Rule, ...] = ()
    exit: tuple[Rule, ...] = ()

    def __add__(self, other: Rules) -> Rules:
        """What both avoid: rules of a level or a route come on top of the others and never replace them."""
        return Rules(self.any + other.any, self.entry + other.entry, self.middle + other.middle, self.exit + other.exit)

    def __bool__(self) -> bool:
        return bool(self.any or self.entry or self.middle or self.exit)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.any, self.entry, self.middle, self.exit))

    @cached_property
    def _matchers(self) -> tuple[Matcher, Matcher, Matcher, Matcher]:
        return Matcher(self.any), Matcher(self.entry), Matcher(self.middle), Matcher(self.exit)

    def exclusions(self, relays: Sequence[Descriptor], places: PlacesOf) -> Exclusions:
        """Who of these relays is excluded where, and why: a few microseconds for each relay."""
        if not self:
            return Exclusions()
        placed = [(relay, relay.id, places(relay)) for relay in relays]
        everywhere, *more = (matcher.excluded(placed) for matcher in self._matchers)
        entry, middle, exit_ = ({**one, **everywhere} if one else everywhere for one in more)
        return Exclusions(entry, middle, exit_)


@dataclass(frozen=True, slots=True)
class KnownEntities:
    """What a node is told to avoid, and what further rules are read and judged with."""

    rules: Rules = Rules()
    """For every path."""
    by_level: Mapping[str, Rules] = field(default_factory=dict)
    """More of them, by the name of a level; "custom" for all custom:N."""
    knowledge: Knowledge = field(default_factory=Knowledge)
    places: PlacesOf = field(default_factory=lambda: Places(None))

    @property
    def avoids(self) -> bool:
        """Whether there is any rule."""
        return bool(self.rules) or any(self.by_level.values())

    def rules_for(self, level: str, avoid: Sequence[str] = (), where: str = "avoid") -> Rules:
        """All rules for a level ("high", "custom:4") and those that a route adds. `ConfigError` for a wrong one."""
        more = self.by_level.get(level.partition(":")[0], Rules())
        return self.rules + more + Rules(any=parse_rules(avoid, where, self.knowledge))


def required(rules: Sequence[Rule], relays: Sequence[Descriptor], places: PlacesOf) -> dict[bytes, str]:
    """The ids of the relays that the rules name for certain, and the rule: for what must be, as `exit = ["{ch}"]`.

    Here what is not known does not fit, and every address of a relay must be at a place or in a network that is named.
    """
    return Matcher(rules).required([(relay, relay.id, places(relay)) for relay in relays])


class Matcher:
    """A list of rules, sorted into tables so that thousands of rules cost no more than a few."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._countries: dict[str, Rule] = {}
        self._unknown: Rule | None = None
        self._asns: dict[int, Rule] = {}
        self._orgs: dict[str, Rule] = {}
        self._operators: dict[str, Rule] = {}
        self._networks: dict[tuple[int, int], dict[int, Rule]] = {}
        """Networks' numbers by version and the bits that do not count."""
        self._relays: dict[RelayName, Rule] = {}
        self._families: dict[RelayName, Rule] = {}
        self._needs: dict[Kind, Rule] = {}
        """The first rule that needs to know something of this kind."""
        self._judged: dict[Place, str | None] = {}
        """What is said against each place that was seen."""
        for rule in rules:
            self._needs.setdefault(rule.kind, rule)
            value = rule.value
            if rule.kind is Kind.COUNTRY:
                for country in sorted(cast(frozenset[str], value)):
                    self._countries.setdefault(country, rule)
            elif rule.kind is Kind.UNKNOWN:
                self._unknown = self._unknown or rule
            elif rule.kind is Kind.ASN:
                self._asns.setdefault(cast(int, value), rule)
            elif rule.kind is Kind.ORG:
                self._orgs.setdefault(cast(str, value), rule)
            elif rule.kind is Kind.OPERATOR:
                self._operators.setdefault(cast(str, value), rule)
            elif rule.kind is Kind.NETWORK:
                version, bits, number = cast(tuple[int, int, int], value)
                self._networks.setdefault((version, bits), {}).setdefault(number, rule)
            elif rule.kind is Kind.RELAY:
                self._relays.setdefault(cast(RelayName, value), rule)
            elif rule.kind is Kind.FAMILY:
                self._families.setdefault(cast(RelayName, value), rule)
        self._ids = {name.id: rule for name, rule in self._relays.items() if name.id}
        self._fingerprints = {name.fingerprint: rule for name, rule in self._relays.items() if name.fingerprint}
        self._nicknames = {name.nickname: rule for name, rule in self._relays.items() if name.nickname}
        self._about_places = bool(self._countries or self._unknown or self._asns or self._orgs)

    def excluded(self, placed: Sequence[Placed]) -> dict[bytes, str]:
        """The ids of the relays that a rule names or may name, and that rule."""
        if not self._needs:
            return {}
        members = _members(self._families, placed)
        found = ((relay_id, self._against(relay, relay_id, places, members)) for relay, relay_id, places in placed)
        return {relay_id: reason for relay_id, reason in found if reason is not None}

    def required(self, placed: Sequence[Placed]) -> dict[bytes, str]:
        """The ids of the relays that a rule names for certain, and that rule."""
        members = _members(self._families, placed, for_certain=True)
        found = ((relay_id, self._in_favour(relay, relay_id, places, members)) for relay, relay_id, places in placed)
        return {relay_id: reason for relay_id, reason in found if reason is not None}

    def _against(
        self, relay: Descriptor, relay_id: bytes, places: tuple[Place, ...], members: Mapping[bytes, Rule]
    ) -> str | None:
        """The rule that excludes a relay, in words; None if none does."""
        rule = self._itself(relay, relay_id, members) or (self._org(relay.operator) if self._orgs else None)
        if rule is not None:
            return str(rule)
        if self._about_places:
            for place in places or (Place(),):
                if place not in self._judged:
                    self._judged[place] = self._against_place(place)
                if (reason := self._judged[place]) is not None:
                    return reason
        if self._networks:
            hosts = [address.host for address in relay.addresses if address.host is not None]
            for host in hosts:
                if (rule := self._network(host)) is not None:
                    return str(rule)
            if not hosts:
                return f"{self._needs[Kind.NETWORK]}: it has no IP address"
        return None

    def _against_place(self, place: Place) -> str | None:
        """The rule that excludes a place, because it names it or because too little is known of it."""
        if (rule := self._named(place)) is not None:
            return str(rule)
        unknown = (
            (Kind.COUNTRY, not place.country, "country"),
            (Kind.ASN, not place.asn, "AS"),
            (Kind.ORG, not place.as_name, "name of its AS"),
        )
        for kind, missing, what in unknown:
            if missing and kind in self._needs:
                return f"{self._needs[kind]}: {what} unknown"
        return None

    def _in_favour(
        self, relay: Descriptor, relay_id: bytes, places: tuple[Place, ...], members: Mapping[bytes, Rule]
    ) -> str | None:
        """The rule that names a relay for certain; None if none does."""
        if (rule := self._itself(relay, relay_id, members)) is not None:
            return str(rule)
        hosts = [address.host for address in relay.addresses if address.host is not None]
        if not hosts or len(hosts) != len(places):
            return None
        found = [self._named(place) or self._network(host) for place, host in zip(places, hosts, strict=True)]
        return str(found[0]) if all(found) else None

    def _itself(self, relay: Descriptor, relay_id: bytes, members: Mapping[bytes, Rule]) -> Rule | None:
        """The rule that names the relay itself, its family, or the operator it declares."""
        rule = self._ids.get(relay_id) or members.get(relay_id)
        if rule is None and self._nicknames:
            rule = self._nicknames.get(relay.nickname.lower())
        if rule is None and self._fingerprints:
            rule = self._fingerprints.get(relay.fingerprint)
        if rule is None and self._operators and relay.operator:
            rule = self._operators.get(words(relay.operator))
        return rule

    def _named(self, place: Place) -> Rule | None:
        """The rule that names a place."""
        return (
            self._countries.get(place.country)
            or self._asns.get(place.asn)
            or (self._unknown if not place.country else None)
            or (self._org(place.as_name) if self._orgs else None)
        )

    def _org(self, name: str) -> Rule | None:
        """The rule whose name stands in this one, beginning with a word."""
        text = words(name)
        return next((rule for org, rule in self._orgs.items() if org in text), None)

    def _network(self, host: str) -> Rule | None:
        """The rule whose network has this address."""
        if not self._networks:
            return None
        version, number = _numbered(host)
        for (its_version, bits), networks in self._networks.items():
            if its_version == version and (rule := networks.get(number >> bits)) is not None:
                return rule
        return None


@lru_cache(maxsize=50_000)
def _numbered(host: str) -> tuple[int, int]:
    """An IP address as its version and number."""
    address = ip_address(host)
    return address.version, int(address)


def _members(
    families: Mapping[RelayName, Rule], placed: Sequence[Placed], for_certain: bool = False
) -> dict[bytes, Rule]:
    """The ids of the relays of named families, and the rule.

    A relay is of a named one's family if both say so (a family key, or each names the other). Unless it must be
    `for_certain`, it is enough that it says so itself: that costs nobody but itself, and holds while the named one
    is not in the list.
    """
    found: dict[bytes, Rule] = {}
    relays = [relay for relay, _, _ in placed] if families else []
    for name, rule in families.items():
        named = [
            relay
            for relay in relays
            if relay.id == name.id or relay.nickname.lower() == name.nickname or relay.fingerprint == name.fingerprint
        ]
        ids = {relay.id for relay in named} | ({name.id} if name.id else set())
        for relay in relays:
            says = not for_certain and not ids.isdisjoint(relay.family)
            if relay.id in ids or says or any(same_family(one, relay) for one in named):
                found.setdefault(relay.id, rule)
    return found
