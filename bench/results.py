"""From raw rounds to results.json: medians, ratios paired by round, and the bars that must hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.load import KINDS
from bench.rounds import Round
from bench.stats import Spread, paired_ratios

OURS = "ours"
CPU_KIND = "down_1"
"""The load that relay_cpu_s_per_gb and client_cpu_s_per_gb come from; the idle interval is as long as it."""
ROUND_KEYS = (*KINDS, "ttfb_ms", "relay_cpu_s_per_gb", "client_cpu_s_per_gb")
MORE_IS_BETTER = set(KINDS)


@dataclass(slots=True)
class Measured:
    """All figures of one network: its rounds, its memory (MB by relay, idle after the start), others."""

    name: str
    note: str
    relay_rss_mb: list[float] = field(default_factory=list)
    relay_pss_mb: list[float] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)

    def values(self, key: str) -> list[float]:
        """The value of `key` in each round."""
        if key in KINDS:
            return [r.mb_per_s[key] for r in self.rounds]
        if key == "ttfb_ms":
            return [r.ttfb_ms for r in self.rounds]
        if key == "relay_cpu_s_per_gb":
            return [r.cost[CPU_KIND].relay for r in self.rounds]
        if key == "client_cpu_s_per_gb":
            return [r.cost[CPU_KIND].client for r in self.rounds]
        raise KeyError(key)

    def summary(self) -> dict[str, Any]:
        """The network's part of results.json."""
        result: dict[str, Any] = {"note": self.note}
        spreads = {key: Spread.of(self.values(key)) for key in ROUND_KEYS}
        result |= {key: round(spread.median, 3) for key, spread in spreads.items()}
        result["relay_rss_mb"] = round(max(self.relay_rss_mb), 1)
        result["relay_pss_mb"] = round(max(self.relay_pss_mb), 1)
        result |= {key: round(value, 3) for key, value in self.extra.items()}
        result["spread"] = {key: [round(s.low, 3), round(s.high, 3)] for key, s in spreads.items()}
        result["cpu_by_load"] = {
            kind: {
                "relay": round(Spread.of([r.cost[kind].relay for r in self.rounds]).median, 3),
                "client": round(Spread.of([r.cost[kind].client for r in self.rounds]).median, 3),
            }
            for kind in KINDS
        }
        result["idle_cpu_percent"] = round(Spread.of([r.idle_cpu_percent for r in self.rounds]).median, 2)
        return result


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that must hold. `spread` is of paired ratios; without one the figure was measured once."""

    text: str
    value: float
    limit: float
    at_least: bool
    spread: Spread | None = None

    @property
    def holds(self) -> bool:
        """Whether it is reached."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def as_json(self) -> dict[str, Any]:
        """For results.json."""
        result: dict[str, Any] = {
            "bar": self.text,
            "value": round(self.value, 3),
            "limit": self.limit,
            "limit_is": "least" if self.at_least else "most",
            "holds": self.holds,
        }
        if self.spread is not None:
            result |= {"min": round(self.spread.low, 3), "max": round(self.spread.high, 3)}
        return result


def better(key: str, others: Sequence[Measured]) -> Measured:
    """The network with the better median of `key`."""
    choose = max if key in MORE_IS_BETTER else min
    return choose(others, key=lambda other: Spread.of(other.values(key)).median)


def ratio_bars(ours: Measured, others: Mapping[str, Measured]) -> list[Bar]:
    """The bars that compare us with tor. "The better tor" is chosen for each figure, among all variants."""

    def bar(text: str, key: str, other: Measured, limit: float, at_least: bool) -> Bar:
        spread = paired_ratios(ours.values(key), other.values(key))
        return Bar(text, spread.median, limit, at_least, spread)

    bars = []
    for name, limit in (("tor_vanilla", 1.5), ("tor_default", 3.0)):
        if name in others:
            bars.append(bar(f"1 stream down / {name}", "down_1", others[name], limit, True))
    tors = list(others.values())
    if tors:
        for text, key, limit, at_least in (
            ("8 streams down", "down_8", 1.2, True),
            ("relay CPU-s/GB per hop", "relay_cpu_s_per_gb", 0.7, False),
            ("client CPU-s/GB", "client_cpu_s_per_gb", 1.0, False),
            ("time to first byte", "ttfb_ms", 1.0, False),
        ):
            best = better(key, tors)
            bars.append(bar(f"{text} / {best.name}, the better tor", key, best, limit, at_least))
    return bars


def bars_of(networks: Mapping[str, Measured]) -> list[Bar]:
    """All bars that what was measured allows to judge."""
    ours = networks.get(OURS)
    if ours is None:
        return []
    bars = ratio_bars(ours, {name: network for name, network in networks.items() if name != OURS})
    if "build_client_cpu_ms" in ours.extra:
        bars.append(Bar("client CPU of a 3-hop build, ms", ours.extra["build_client_cpu_ms"], 3.0, False))
    if ours.relay_rss_mb:
        bars.append(Bar("RSS of the biggest idle relay, MB", max(ours.relay_rss_mb), 80.0, False))
    return bars


def ratios_of(networks: Mapping[str, Measured]) -> dict[str, dict[str, dict[str, float]]]:
    """Ours divided by each tor, for each figure that has rounds."""
    ours = networks.get(OURS)
    if ours is None:
        return {}
    return {
        name: {key: paired_ratios(ours.values(key), other.values(key)).rounded(3) for key in ROUND_KEYS}
        for name, other in networks.items()
        if name != OURS
    }


def results_json(
    networks: Mapping[str, Measured], about: Mapping[str, Any], micro: Mapping[str, float]
) -> dict[str, Any]:
    """The whole of results.json. `about` is the machine, the versions and the settings of the run."""
    result: dict[str, Any] = {"about": dict(about)}
    result |= {name: network.summary() for name, network in networks.items()}
    if micro:
        result.setdefault(OURS, {}).update({key: round(value, 3) for key, value in micro.items()})
    busy = [r.machine_busy_percent for network in networks.values() for r in network.rounds]
    if busy:
        result["about"]["machine_busy_percent"] = round(Spread.of(busy).median, 1)
    result["ratios"] = ratios_of(networks)
    result["bars"] = [bar.as_json() for bar in bars_of(networks)]
    result["rounds"] = {
        name: [
            {
                "mb_per_s": {kind: round(value, 3) for kind, value in r.mb_per_s.items()},
                "ttfb_ms": round(r.ttfb_ms, 3),
                "relay_cpu_s_per_gb": {kind: round(cost.relay, 3) for kind, cost in r.cost.items()},
                "client_cpu_s_per_gb": {kind: round(cost.client, 3) for kind, cost in r.cost.items()},
                "idle_cpu_percent": round(r.idle_cpu_percent, 2),
                "machine_busy_percent": round(r.machine_busy_percent, 1),
                "paths": r.paths,
            }
            for r in network.rounds
        ]
        for name, network in networks.items()
    }
    return result
