"""Synthetic networks for path choice: relays in countries and autonomous systems, with families and operators."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from backrooms.crypto.keys import text_id
from backrooms.netdir.certificate import IdentityCertificate
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.geo import GeoTable, Places
from backrooms.netdir.geosource import read_table
from backrooms.netdir.policy import ExitPolicy
from backrooms.path.constraints import Constraints
from backrooms.path.entities import KnownEntities, Rules, parse_rules
from backrooms.path.rules import Knowledge
from backrooms.path.selectors import Selectors
from backrooms.wire.records import Address
from tests.keys import NETWORK_ID, fake_public, fake_relay

COUNTRIES = ("DE", "FR", "NL", "US", "SE", "CH", "IS", "BR", "JP", "ZA", "MD", "CL")
WEB = ExitPolicy.parse(["accept *:80", "accept *:443"])
MAIL = ExitPolicy.parse(["accept *:25", "accept *:465"])


def table() -> GeoTable:
    """One /8 for each country from 20.0.0.0 on; an AS for each eight /16 of it. 40.0.0.0 and above is unknown."""
    rows = [
        f"{20 + number}.{block}.0.0\t{20 + number}.{block + 7}.255.255\t{64500 + number * 32 + block // 8}"
        f"\t{country}\tNet {number}\n"
        for number, country in enumerate(COUNTRIES)
        for block in range(0, 256, 8)
    ]
    return read_table(rows, "synthetic.tsv")


TABLE = table()
PLACES = Places(TABLE)
KNOWLEDGE = Knowledge(TABLE)


def relay(rng: random.Random, number: int, count: int) -> Descriptor:
    """A relay somewhere: every fourth an exit, some with two addresses, in a family, or of an operator of several."""
    place = rng.randrange(len(COUNTRIES) + 1)
    block = rng.randrange(24)
    host = f"{20 + place}.{block}.{rng.randrange(256)}.{rng.randrange(1, 255)}" if place < 12 else f"44.{block}.1.1"
    policy = rng.choice((WEB, WEB, MAIL)) if number % 4 == 0 else None
    group = number // 6
    family = tuple(fake_public(group * 6 + one).id for one in range(6)) if group % 5 == 1 else ()
    if rng.random() < 0.1:
        family += (fake_public(rng.randrange(count)).id,)  # that one does not name it
    made = fake_relay(
        number,
        address=f"tls:{host}:443",
        capacity=int(rng.paretovariate(1.2) * 1e6),
        exit_policy=policy,
        single_hop=number % 16 == 0,
        family=tuple(set(family) - {fake_public(number).id}),
        family_keys=frozenset([bytes([group % 7]) * 32]) if group % 5 == 2 else frozenset(),
    )
    addresses = [*made.record.addresses]
    if rng.random() < 0.2:
        addresses.append(Address.parse(f"tls:[2001:{rng.randrange(1, 256):x}::1]:443"))
    if rng.random() < 0.1:
        addresses.append(Address.parse(f"tls:{20 + rng.randrange(12)}.{rng.randrange(24)}.9.9:443"))
    operator = rng.choice(("", "", f"Operator {rng.randrange(count // 8 + 1)}", "  BIG   Operator", "big operator"))
    return with_operator(replace(made, record=replace(made.record, addresses=tuple(addresses))), operator)


def with_operator(made: Descriptor, operator: str) -> Descriptor:
    """The relay with another operator declared."""
    body = replace(made.certificate.body, operator=operator)
    return replace(made, certificate=IdentityCertificate(made.identity, body, made.family_keys, b"", bytes(32)))


def network(seed: int, count: int) -> list[Descriptor]:
    """So many relays, the same for the same seed."""
    rng = random.Random(seed)
    return [relay(rng, number, count) for number in range(count)]


class List:
    """As much of `Directory` as path choice needs, without signatures."""

    def __init__(self, relays: list[Descriptor]) -> None:
        self.network_id = NETWORK_ID
        self.on_change: list[object] = []
        self._relays = {one.id: one for one in relays}

    def relays(self) -> list[Descriptor]:
        return sorted(self._relays.values(), key=lambda one: one.id)

    def get(self, relay_id: bytes) -> Descriptor | None:
        return self._relays.get(relay_id)

    def __len__(self) -> int:
        return len(self._relays)

    def put(self, relay: Descriptor) -> None:
        """A relay came or changed."""
        self._relays[relay.id] = relay
        self._tell(relay.id)

    def drop(self, relay_id: bytes) -> None:
        """A relay is gone."""
        del self._relays[relay_id]
        self._tell(relay_id)

    def _tell(self, relay_id: bytes) -> None:
        for call in self.on_change:
            call(relay_id, self._relays.get(relay_id))  # type: ignore[operator]


def entities(
    rules: Mapping[str, tuple[str, ...]], by_level: Mapping[str, tuple[str, ...]] | None = None
) -> KnownEntities:
    """Rules by position ("any", "entry", "middle", "exit"), and more by level."""
    levels = {
        name: Rules(any=parse_rules(texts, f"path.levels.{name}", KNOWLEDGE))
        for name, texts in (by_level or {}).items()
    }
    parsed = {where: parse_rules(texts, f"path.{where}", KNOWLEDGE) for where, texts in rules.items()}
    return KnownEntities(Rules(**parsed), levels, KNOWLEDGE, PLACES)


def selectors(relays: list[Descriptor], known: KnownEntities | None = None, **options: Any) -> Selectors:
    """Selectors over these relays."""
    constraints = Constraints(**options)
    return Selectors(List(relays), constraints, known or entities({}))  # type: ignore[arg-type]


def text_ids(relays: list[Descriptor]) -> tuple[str, ...]:
    """How rules name these relays."""
    return tuple(text_id(one.id) for one in relays)
