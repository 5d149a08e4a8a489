"""Attacks on path choice: many false relays, one that lies about its capacity, contacts that hide the network.

The paths are drawn by `path.selector` as a client draws them. "Off" is a client without defences: relays by what they
claim to carry, and nothing but that they are distinct.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from functools import cache

from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory
from backrooms.netdir.geo import NOWHERE, Place
from backrooms.path.constraints import Constraints
from backrooms.path.roster import Roster
from backrooms.path.selector import ANYWHERE, PathSelector
from backrooms.wire.documents import ZERO_ID, DirFetch, DirListRequest
from bench.sim.relays import ANYWHERE as ANY_EXIT
from bench.sim.relays import NETWORK_ID, START, make_relay
from bench.sim.section import Section

HONEST = 1000
SYBILS = 250
"""A fifth of all relays."""
SYBIL_NETWORKS = 3
SYBIL_AS = 64_500
DAY = 86400.0
PATHS = 10_000
CONTACTS = 5
_FIRST_SYBIL = 10_000

Path = Sequence[Descriptor]


@cache
def network() -> tuple[tuple[Descriptor, ...], dict[bytes, Place]]:
    """Honest relays: capacities over three orders of magnitude, a /16 for a few of them, an AS for a few /16s."""
    rng = random.Random("honest relays")
    relays, places = [], {}
    for number in range(HONEST):
        net = int(600 * rng.random() ** 1.5)
        capacity = int(min(50e6, 1e6 * rng.lognormvariate(0.0, 1.2)))
        relay = make_relay(
            number,
            addresses=[f"tls:{net % 200 + 11}.{net // 200}.{number // 250}.{number % 250 + 1}:443"],
            capacity=capacity,
            exit_policy=ANY_EXIT if rng.random() < 0.35 else None,
        )
        relays.append(relay)
        places[relay.id] = Place("", 1000 + net // 4)
    return tuple(relays), places


def sybils(capacity: int) -> tuple[tuple[Descriptor, ...], dict[bytes, Place]]:
    """Relays of one attacker, all exits, in few networks of one AS."""
    relays, places = [], {}
    for number in range(SYBILS):
        net, host = number % SYBIL_NETWORKS, number // SYBIL_NETWORKS
        relay = make_relay(
            _FIRST_SYBIL + number,
            addresses=[f"tls:5.{net}.{host // 250}.{host % 250 + 1}:443"],
            capacity=capacity,
            exit_policy=ANY_EXIT,
        )
        relays.append(relay)
        places[relay.id] = Place("", SYBIL_AS)
    return tuple(relays), places


def drawn(relays: Sequence[Descriptor], places: Mapping[bytes, Place], seen: Mapping[bytes, float]) -> list[Path]:
    """Paths as a client draws them that has known relays since `seen` and a table with these places."""
    roster = Roster.of(relays, lambda relay: (places.get(relay.id, NOWHERE),))
    roster.weigh(seen, START)
    selector = PathSelector(roster, Constraints())
    rng = random.Random("paths")
    return [selector.select(3, ANYWHERE, rng) for _ in range(PATHS)]


def naive(relays: Sequence[Descriptor]) -> list[Path]:
    """Paths by claimed capacity alone."""
    rng = random.Random("naive paths")
    exits = [relay for relay in relays if relay.is_exit]
    every, among = (list(itertools.accumulate(one.capacity for one in some)) for some in (relays, exits))
    paths: list[Path] = []
    while len(paths) < PATHS:
        last = rng.choices(exits, cum_weights=among)[0]
        path = [*rng.choices(relays, cum_weights=every, k=2), last]
        if len({one.id for one in path}) == len(path):
            paths.append(path)
    return paths


def shares(paths: Sequence[Path], bad: frozenset[bytes]) -> tuple[float, float, float]:
    """Parts of the paths whose entry, whose exit, and whose both are of the attacker."""
    entries = sum(path[0].id in bad for path in paths) / len(paths)
    exits = sum(path[-1].id in bad for path in paths) / len(paths)
    both = sum(path[0].id in bad and path[-1].id in bad for path in paths) / len(paths)
    return entries, exits, both


def percent(share: float) -> str:
    """For the table."""
    return f"{share * 100:.2f} %"


def many_relays() -> tuple[list[list[str]], dict[str, float]]:
    """A fifth of all relays are one attacker's, each as large as the largest tenth of the honest ones."""
    honest, places = network()
    large = sorted(relay.capacity for relay in honest)[int(HONEST * 0.9)]
    false, their_places = sybils(large)
    bad = frozenset(relay.id for relay in false)
    relays, where = [*honest, *false], {**places, **their_places}
    old = {relay.id: START - 60 * DAY for relay in honest}
    rows, data = [], {}
    for name, paths in (
        ("off", naive(relays)),
        ("on, a day after they came", drawn(relays, where, old | dict.fromkeys(bad, START - DAY))),
        ("on, months after", drawn(relays, where, old | dict.fromkeys(bad, START - 60 * DAY))),
        ("on, months after, no AS table", drawn(relays, {}, old | dict.fromkeys(bad, START - 60 * DAY))),
    ):
        found = shares(paths, bad)
        rows.append(["20 % Sybils, 3 /16s, one AS", name, *map(percent, found)])
        data[f"sybils {name}"] = found[2]
    return rows, data


def one_liar() -> tuple[list[list[str]], dict[str, float]]:
    """A relay of usual size says that it is a hundred times as large; it is an exit."""
    honest, places = network()
    usual = sorted(relay.capacity for relay in honest)[HONEST // 2]
    seen = {relay.id: START - 60 * DAY for relay in honest}
    rows, data = [], {}
    for name, capacity in (("honest", usual), ("says 100 x", 100 * usual)):
        liar = make_relay(_FIRST_SYBIL, capacity=capacity, exit_policy=ANY_EXIT)
        relays = [*honest, liar]
        where = {**places, liar.id: Place("", SYBIL_AS)}
        old = seen | {liar.id: START - 60 * DAY}
        for defence, paths in (("off", naive(relays)), ("on", drawn(relays, where, old))):
            found = shares(paths, frozenset([liar.id]))
            rows.append([f"one relay of usual size, {name}", defence, *map(percent, found)])
            data[f"liar {name}, {defence}"] = max(found[:2])
    return rows, data


def exchanged(client: Directory, server: Directory) -> None:
    """What `client` learns from `server` as its contact, page by page."""
    after = ZERO_ID
    while True:
        page = server.answer_list(DirListRequest(after))
        for request in client.wanted(page.entries):
            missing = list(request.ids)
            while missing:
                documents = server.answer_fetch(DirFetch(tuple(missing), request.what)).documents
                for one in documents:
                    client.add(one.certificate or None, one.record, START)
                missing = missing[len(documents) :]
        if not page.more:
            return
        after = page.entries[-1].id


def eclipse() -> tuple[list[list[str]], dict[str, float]]:
    """Some of five contacts show a new client only the attacker's relays. Each way of asking is gone through whole."""
    honest, places = network()
    false, their_places = sybils(sorted(relay.capacity for relay in honest)[HONEST // 2])
    bad = frozenset(relay.id for relay in false)
    whole, hostile = Directory(NETWORK_ID), Directory(NETWORK_ID)
    for relay in (*honest, *false):
        whole.insert(relay, START)
    for relay in false:
        hostile.insert(relay, START)
    clients = {False: Directory(NETWORK_ID), True: Directory(NETWORK_ID)}
    exchanged(clients[False], hostile)
    exchanged(clients[True], hostile)
    exchanged(clients[True], whole)  # what one honest contact tells is enough
    where, seen = {**places, **their_places}, {relay.id: START for relay in (*honest, *false)}
    captured = {
        found: shares(drawn(client.relays(), {} if not found else where, seen), bad)[2]
        for found, client in clients.items()
    }
    rows, data = [], {}
    for count in (1, 3, 4, 5):
        for name, asked in (("off, asks one contact", 1), ("asks two", 2), ("on, hears all", CONTACTS)):
            ways = list(itertools.combinations(range(CONTACTS), asked))
            eclipsed = sum(all(contact < count for contact in way) for way in ways) / len(ways)
            share = eclipsed * captured[False] + (1 - eclipsed) * captured[True]
            rows.append([f"{count} of {CONTACTS} contacts hide the network", name, "", "", percent(share)])
            data[f"eclipse {count} of {CONTACTS}, {name}"] = share
    return rows, data


def run() -> Section:
    """All attacks of this module."""
    rows, data = many_relays()
    for more in (one_liar(), eclipse()):
        rows += more[0]
        data |= more[1]
    failures = []
    if data["sybils on, months after"] > 0.01:
        failures.append("Sybils in three networks capture more than 1 % of the circuits")
    if data[f"eclipse {CONTACTS - 1} of {CONTACTS}, on, hears all"] > 0.01:
        failures.append("one honest contact of five does not save a new client from an eclipse")
    if data["liar says 100 x, on"] > 0.06:
        failures.append("a relay that lies about its capacity gets more than its cap")
    return Section(
        "Attacks on path choice",
        ["attack", "defence", "entry", "exit", "captured (both ends)"],
        rows,
        [
            f"{HONEST} honest relays in some 500 networks, 35 % of them exits; {PATHS:,} paths of three relays each.",
            "Nothing helps a client all of whose contacts are hostile; contacts are what a user trusts.",
            "Guards are not in here: a client has few first hops, so a share of entries is a share of clients.",
        ],
        data,
        failures,
    )
