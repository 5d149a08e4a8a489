"""Gossip in whole networks: how fast news spreads, how partitions heal, what it costs, whether paths can be built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from backrooms.gossip.exchange import FANOUT, ROUND
from backrooms.netdir.descriptor import Descriptor
from backrooms.wire.cell import CELL_SIZE
from bench.sim.churn import Churn
from bench.sim.gossipnet import GossipNet, SimRelay
from bench.sim.relays import START, make_relay
from bench.sim.section import Section

SEED = 17
LOSS = 0.2
DEAD = 0.2
RENEWAL = 18 * 3600.0
"""Seconds between records of one relay (`node.publishing`)."""
LINK_BYTES = 32_768
"""Bytes that making one link takes, both ways, about: TLS with its certificate, and five cells or six of proofs."""

Rows = list[tuple[str, str, str]]


@dataclass(slots=True)
class Outcome:
    """What the parts of the simulation add to."""

    rows: Rows = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, name: str, what: str, value: str, must: str, holds: bool, number: float) -> None:
        self.rows.append((what, value, must))
        self.data[name] = number
        if not holds:
            self.failures.append(f"{what}: {value}, must be {must}")


def network(size: int) -> list[Descriptor]:
    """Relays that published some hours ago, so that everybody has their certificates."""
    return [make_relay(number, START - 4 * 3600) for number in range(size)]


def _numbers(base: list[Descriptor]) -> dict[bytes, int]:
    return {relay.id: number for number, relay in enumerate(base)}


def _has(relays: list[SimRelay], news: Descriptor) -> Callable[[], bool]:
    def all_have() -> bool:
        for relay in relays:
            held = relay.directory.get(news.id)
            if held is None or held.record.revision < news.record.revision:
                return False
        return True

    return all_have


def spread(outcome: Outcome, base: list[Descriptor]) -> tuple[int, int]:
    """1,000 relays, a fifth of them dead, a fifth of all messages lost: a new relay, then a renewed record."""
    net = GossipNet(SEED, LOSS)
    for own in base:
        net.add(own, base)
    relays = list(net.relays.values())
    for relay in net.rng.sample(relays, int(len(relays) * DEAD)):
        net.kill(relay)
    net.run(30)
    new = make_relay(len(base), net.wall())
    living = net.living()
    net.add(new, base).publish(new)
    began = net.now
    told = net.run(20 * ROUND, _has(living, new))
    rounds = (net.now - began) / ROUND
    what = f"a new relay known to all {len(living)} living of {len(base)}, 20 % dead, 20 % loss"
    outcome.add("new_relay_rounds", what, f"{rounds:.1f} rounds", "<= 10 rounds", told and rounds <= 10, rounds)
    speaker = living[0]
    renewed = make_relay(_numbers(base)[speaker.id], net.wall(), after=speaker.own)
    speaker.publish(renewed)
    began = net.now
    told = net.run(20 * ROUND, _has(living, renewed))
    rounds = (net.now - began) / ROUND
    what = "a renewed record, same network"
    outcome.add("renewal_rounds", what, f"{rounds:.1f} rounds", "<= 10 rounds", told and rounds <= 10, rounds)
    return net.verified, net.looked_up


def partition(outcome: Outcome, base: list[Descriptor], seconds: float = 60.0) -> None:
    """64 relays in two halves for a minute, with news in each; then how long until all lists are equal."""
    net = GossipNet(SEED + 1)
    half = base[:64]
    numbers = _numbers(half)
    for own in half:
        net.add(own, half)
    net.run(60)
    relays = list(net.relays.values())
    for number, relay in enumerate(relays):
        relay.side = number % 2
    for relay in relays[:16]:
        relay.publish(make_relay(numbers[relay.id], net.wall(), after=relay.own))
    net.run(seconds)
    apart = not net.equal(relays)
    for relay in relays:
        relay.side = 0
    began = net.now
    healed = net.run(120, lambda: net.equal(relays))
    took = net.now - began
    what = f"64 relays, partition of {seconds:.0f} s: equal roots after it"
    outcome.add("heal_seconds", what, f"{took:.1f} s", "< 30 s", apart and healed and took < 30, took)


def cost(outcome: Outcome, base: list[Descriptor], seconds: float) -> tuple[float, float]:
    """Bytes an hour of a relay where nothing but renewals happens; bytes without them, and those of one renewal."""
    net = GossipNet(SEED + 2)
    numbers = _numbers(base)
    for own in base:
        net.add(own, base)
    net.run(60)
    relays = list(net.relays.values())

    def measure(span: float) -> tuple[float, float]:
        sent, links = sum(one.sent for one in relays), sum(one.links_made for one in relays)
        net.run(span)
        return (
            (sum(one.sent for one in relays) - sent) / len(relays),
            (sum(one.links_made for one in relays) - links) / len(relays),
        )

    idle, links = measure(seconds / 2)
    renewals = max(2, round(len(base) * seconds / 2 / RENEWAL))
    for relay in net.rng.sample(relays, renewals):
        relay.publish(make_relay(numbers[relay.id], net.wall(), after=relay.own))
    busy, more_links = measure(seconds / 2)
    each = max(busy - idle, 0.0) / renewals
    hour = idle * 2 * 3600 / seconds + each * len(base) * 3600 / RENEWAL
    outcome.rows.append(
        (
            f"bytes a relay sends in an hour, {len(base):,} relays, all renewing every 18 h",
            f"{hour / 1e6:.1f} MB",
            f"measured over {seconds:.0f} s",
        )
    )
    outcome.data[f"bytes_per_hour_{len(base)}"] = hour
    outcome.data[f"links_per_hour_{len(base)}"] = (links + more_links) * 3600 / seconds
    return idle * 2 * 3600 / seconds, each


def paths(outcome: Outcome) -> None:
    """60 nodes of which half are replaced in ten minutes, all of which want circuits all the time."""
    churn = Churn(SEED + 3)
    churn.run()
    share, first = churn.share(), churn.attempts[1] / max(1, churn.built)
    outcome.rows.append(("circuits built by the first path", f"{first:.1%}", "60 nodes, 50 % replaced in 10 minutes"))
    what = f"circuits built before a stream gives up (60 s), of {churn.built + churn.failed:,}"
    outcome.add("paths_built", what, f"{share:.2%}", ">= 99 %", share >= 0.99, share)


def run() -> Section:
    """All parts."""
    outcome = Outcome()
    base = network(1000)
    verified, looked_up = spread(outcome, base)
    partition(outcome, base)
    paths(outcome)
    cost(outcome, base[:100], 600.0)
    idle, each = cost(outcome, base, 120.0)
    large = idle + each * 10_000 * 3600 / RENEWAL
    per_round = 2 * FANOUT * CELL_SIZE * 3600 / ROUND
    outcome.rows.append(
        (
            "the same with 10,000 relays",
            f"{large / 1e6:.1f} MB",
            f"computed: {per_round / 1e6:.1f} MB of summaries and answers of one cell each, {each / CELL_SIZE:.1f} "
            "cells for each of 556 renewals",
        )
    )
    outcome.data["bytes_per_hour_10000_computed"] = large
    links = outcome.data["links_per_hour_1000"]
    outcome.rows.append(
        (
            "links made for gossip in an hour, 1,000 relays",
            f"{links:.0f}",
            f"computed: {links * LINK_BYTES / 1e6:.1f} MB, both ways together",
        )
    )
    outcome.data |= {"documents_verified": verified, "documents_verified_by_hash": looked_up}
    return Section(
        "Gossip",
        ("what", "came out", "must be, or how it was found"),
        outcome.rows,
        notes=(
            "The gossip machines and directories of all relays, with real signatures; a document is verified once and "
            f"then known by its bytes ({verified} verified, {looked_up:,} found so). Messages take 20 to 120 ms, a "
            "dial to a dead relay fails after 5 s. A round is 10 s.",
            "Nodes that are replaced die without a word. The others choose paths of 3 from their own lists, around "
            "what failed in the last 30 s and what the real bounds let them doubt; that relays know within 5 s who is "
            "dead is assumed here, and simulated by itself elsewhere.",
        ),
        data=outcome.data,
        failures=outcome.failures,
    )
