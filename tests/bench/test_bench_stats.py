"""Medians, spreads, paired ratios, and the figures and verdicts made from rounds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load import KINDS
from bench.report import markdown, terminal_tables
from bench.results import Bar, Measured, bars_of, better, ratios_of, results_json
from bench.rounds import Cost, Round, cost_per_gb
from bench.stats import Spread, paired_ratios

FIGURES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=9)


def measured(name: str, speeds: list[float], relay_cost: float = 6.0, ttfb: float = 5.0) -> Measured:
    """A network with a round for each speed: 8 streams are twice as fast, an upload half as fast."""
    rounds = []
    for speed in speeds:
        rates = {"down_1": speed, "down_8": 2 * speed, "up_1": speed / 2}
        cost = {kind: Cost(relay_cost, 7.0) for kind in KINDS}
        rounds.append(Round(name, rates, cost, {kind: ["a b c"] for kind in KINDS}, ttfb, 1.0))
    return Measured(name, f"note on {name}", [70.0, 71.5], [30.0, 31.0], rounds)


def about() -> dict[str, object]:
    """What results.json says of the machine and the run."""
    return {
        "date": "2026-01-01",
        "cpu": "a processor",
        "cores": 2,
        "kernel": "6.1",
        "load_before": 0.1,
        "versions": {"backrooms": "0.1.0"},
        "settings": {"rounds": 3, "mb": 100, "ttfb_repetitions": 15},
    }


@given(FIGURES)
def test_spread_contains_its_median(values: list[float]) -> None:
    spread = Spread.of(values)
    assert min(values) == spread.low <= spread.median <= spread.high == max(values)


def test_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


@given(FIGURES, st.floats(0.01, 100))
def test_paired_ratios_ignore_what_disturbs_a_whole_round(values: list[float], factor: float) -> None:
    spread = paired_ratios([value * factor for value in values], values)
    assert spread.low == pytest.approx(factor)
    assert spread.high == pytest.approx(factor)


def test_paired_ratios_differ_from_the_ratio_of_medians() -> None:
    assert paired_ratios([10, 40, 60], [20, 10, 30]) == Spread(2.0, 0.5, 4.0)


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_unpaired_or_zero_rounds_are_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError):
        paired_ratios(ours, theirs)


def test_cost_is_net_of_idle_and_by_hop() -> None:
    spent = {1: 1.0, 11: 0.7, 12: 0.6, 13: 0.5, 14: 9.0}
    idle = {1: 0.2, 11: 0.1, 12: 0.0, 13: 0.2, 14: 0.0}
    cost = cost_per_gb(spent, idle, client=1, hops={11, 12, 13}, size=100_000_000)
    assert cost.client == pytest.approx(8.0)  # (1.0 - 0.2) / 0.1 GB
    assert cost.relay == pytest.approx(5.0)  # (0.6 + 0.6 + 0.3) / 3 / 0.1 GB; 14 was no hop


def test_the_better_tor_depends_on_the_figure() -> None:
    fast, cheap = measured("fast", [50, 60, 70], 9.0), measured("cheap", [10, 20, 100], 3.0)
    assert better("down_1", [fast, cheap]) is fast
    assert better("relay_cpu_s_per_gb", [fast, cheap]) is cheap


def test_bars_say_what_holds_and_what_fails() -> None:
    networks = {
        "ours": measured("ours", [60, 60, 60], 4.5, ttfb=5.0),
        "tor_default": measured("tor_default", [10, 10, 10], 7.0, ttfb=12.0),
        "tor_vanilla": measured("tor_vanilla", [45, 30, 45], 6.0, ttfb=4.0),
    }
    networks["ours"].extra["build_client_cpu_ms"] = 3.1
    verdicts = {bar.text: (round(bar.value, 3), bar.holds) for bar in bars_of(networks)}
    assert verdicts == {
        "1 stream down / tor_vanilla": (1.333, False),
        "1 stream down / tor_default": (6.0, True),
        "8 streams down / tor_vanilla, the better tor": (1.333, True),
        "relay CPU-s/GB per hop / tor_vanilla, the better tor": (0.75, False),
        "client CPU-s/GB / tor_default, the better tor": (1.0, True),
        "time to first byte / tor_vanilla, the better tor": (1.25, False),
        "client CPU of a 3-hop build, ms": (3.1, False),
        "RSS of the biggest idle relay, MB": (71.5, True),
    }


@pytest.mark.parametrize(("at_least", "below", "above"), [(True, False, True), (False, True, False)])
def test_a_bar_is_met_at_its_limit(at_least: bool, below: bool, above: bool) -> None:
    assert Bar("x", 1.0, 1.0, at_least).holds
    assert Bar("x", 0.99, 1.0, at_least).holds is below
    assert Bar("x", 1.01, 1.0, at_least).holds is above


def test_without_our_network_there_is_nothing_to_judge() -> None:
    networks = {"tor_vanilla": measured("tor_vanilla", [40])}
    assert bars_of(networks) == []
    assert ratios_of(networks) == {}


def test_results_have_the_promised_keys_and_survive_json() -> None:
    networks = {name: measured(name, [30, 40, 50]) for name in ("ours", "tor_default", "tor_vanilla")}
    networks["ours"].extra |= {"build_ms": 6.0, "build_client_cpu_ms": 2.5}
    results = results_json(networks, about(), {"cell_us": 3.9, "handshakes_per_s": 5000.0})
    assert json.loads(json.dumps(results)) == results
    promised = {
        "down_1",
        "down_8",
        "up_1",
        "ttfb_ms",
        "relay_cpu_s_per_gb",
        "client_cpu_s_per_gb",
        "relay_rss_mb",
    }
    for name in networks:
        assert promised <= results[name].keys()
    assert {"build_ms", "build_client_cpu_ms", "cell_us", "handshakes_per_s"} <= results["ours"].keys()
    assert results["ours"]["down_1"] == 40
    assert results["ours"]["spread"]["down_1"] == [30, 50]
    assert results["ours"]["relay_rss_mb"] == 71.5
    assert results["ratios"]["tor_vanilla"]["down_8"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert len(results["rounds"]["ours"]) == 3


def test_the_report_names_failures_and_what_is_missing() -> None:
    networks = {"ours": measured("ours", [40]), "tor_vanilla": measured("tor_vanilla", [40])}
    results = results_json(networks, about(), {"cell_us": 3.9})
    results["incomplete"] = "without tor_default"
    text = markdown(results)
    assert "**Incomplete run:** without tor_default." in text
    assert "| 1 stream down / tor_vanilla | 1 (1-1) | >= 1.5 | **FAIL** |" in text
    assert "| time to first byte / tor_vanilla, the better tor | 1 (1-1) | <= 1 | holds |" in text
    assert "`tor_vanilla`: note on tor_vanilla" in text
    assert [table.title for table in terminal_tables(results)] == [
        "median (min-max)",
        "ours / theirs, paired by round",
        "what must hold",
        "Backrooms alone",
    ]


@pytest.mark.parametrize(("busy", "warned"), [(3.0, False), (40.0, True)])
def test_the_report_warns_when_other_programs_disturbed(busy: float, warned: bool) -> None:
    network = measured("ours", [40])
    network.rounds[0].machine_busy_percent = busy
    text = markdown(results_json({"ours": network}, about(), {}))
    assert f"{busy:g}" in text
    assert ("**disturbed by other programs**" in text) is warned


def test_a_report_of_single_operations_needs_no_network() -> None:
    results = results_json({}, about(), {"cell_us": 3.9})
    assert "through one relay, CPU µs | 3.9 |" in markdown(results)
    assert len(terminal_tables(results)) == 1
