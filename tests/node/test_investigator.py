"""Investigations in simulated networks: who is named, how soon, and what that changes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backrooms.errors import ConfigError, PathError
from backrooms.node.investigator import Investigator
from backrooms.node.requests import StreamRequest
from backrooms.node.scorefile import FILE_NAME, ScoreFile
from backrooms.node.timers import Timers
from backrooms.path.guards import PRIMARY
from backrooms.path.reputation import HALF_LIFE, Reputation
from backrooms.path.verdicts import Judgement, Verdict
from tests.node.conftest import MakeNetwork
from tests.node.probenet import ProbeNet
from tests.node.test_guards import guard_ids
from tests.node.test_streams import circuits
from tests.simnet.network import SimNet
from tests.simnet.node import SimNetwork, SimNode
from tests.spoil import spoil

KINDS = {"destroys": Verdict.DESTROYS, "refuses": Verdict.REFUSES, "delays": Verdict.DELAYS}
THREE_MINUTES = 180
NETWORKS: tuple[dict[str, Any], ...] = (
    {},
    {"jitter": 0.03, "noise": 0.01},
    {"slow": {"relay1": 0.15}},
    {"jitter": 0.06, "slow": {"relay3": 0.1}, "noise": 0.02},
)
"""Round trips that vary, circuits that end by themselves, one slow relay."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimNetwork]:
    """A network for tests that leave it as it was."""
    network = SimNetwork(tmp_path_factory.mktemp("shared"))
    network.start()
    network.ready()
    network.net.run(30)
    yield network
    network.stop()


def investigator(network: SimNetwork) -> Investigator:
    found = network.client.node.investigator
    assert found is not None
    return found


def finish(network: SimNetwork) -> None:
    """Let time pass until the investigation is over."""
    inquiry = investigator(network).inquiry
    assert inquiry is not None
    network.net.run_until(lambda: inquiry.state != "running", 240)


def note(network: SimNetwork, node: SimNode, strength: float = 40.0, verdict: Verdict = Verdict.DESTROYS) -> None:
    """Let a relay have been found bad."""
    found = Judgement(node.id, verdict, strength, {}, ["it did so"])
    investigator(network)._note([found], network.net.wall())


# a model of the network, the real investigation


@pytest.mark.parametrize("kind", KINDS)
def test_b10_each_kind_of_harm_is_named_within_three_minutes(kind: str) -> None:
    for seed in range(6):
        name = f"relay{seed}"
        net = ProbeNet(seed, bad={name: kind}).run(until_named=True)
        assert set(net.named) == {name}
        assert net.named[name] < THREE_MINUTES


def test_b10_no_false_positive_in_twenty_runs() -> None:
    for seed in range(20):
        net = ProbeNet(seed, **NETWORKS[seed % 4]).run()
        assert net.named == {}, f"run {seed}"
        assert {one.verdict for one in net.inquiry.judged.values()} == {Verdict.FINE}


def test_a_slow_relay_is_called_slow_and_nothing_worse() -> None:
    net = ProbeNet(1, slow={"relay1": 0.2}).run()
    report = {one["nickname"]: one for one in net.inquiry.report()["relays"]}
    assert report["relay1"]["verdict"] == "fine"
    assert any("is slow" in text for text in report["relay1"]["notes"])
    assert sum("is slow" in text for one in report.values() for text in one["notes"]) == 1


# real nodes


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_b10_a_relay_that_does_harm_is_named_and_avoided(make: MakeNetwork, kind: str) -> None:
    network = make()
    bad = network.relays[2]
    assert bad.node.relay is not None
    spoil(bad.node.relay, kind, 0.2, random.Random(1))
    network.start()
    network.ready()
    found = investigator(network)
    found.begin("all")
    inquiry = found.inquiry
    assert inquiry is not None
    # A guard is given up only beyond doubt, which takes a little longer than naming it.
    network.net.run_until(lambda: bool(inquiry.named_after) and bad.id not in guard_ids(network), THREE_MINUTES)
    found.end()
    finish(network)
    assert set(inquiry.named_after) == {bad.id}
    assert inquiry.judged[bad.id].verdict is KINDS[kind]
    assert bad.id in found.avoided()
    avoids(network, bad)


def avoids(network: SimNetwork, bad: SimNode) -> None:
    """New circuits go around a relay."""
    network.net.run(2)
    for number in range(8):
        streams = circuits(network).streams
        stream = streams.open(StreamRequest("web.example", 80, (number,), None, "", "SOCKS5"))
        network.net.run(1.5)
        stream.abort(1)
    new = network.used()
    assert len(new) >= 6
    paths = [[relay.nickname for relay in circuit.path] for circuit in new]
    assert not any(bad.host.name in path for path in paths), paths


def test_b10_a_relay_comes_back_when_its_score_is_forgotten_or_has_faded(network: SimNetwork) -> None:
    bad = network.relays[3]
    found = investigator(network)
    network.net.run(5)
    spares = [one for one in circuits(network).circuits.values() if one.isolation is None and not one.reserved]
    note(network, network.relay(spares[0].path[1].id), 10.0)
    network.net.run(5)
    assert spares[0].number not in circuits(network).circuits, "an unused circuit through it is replaced"
    assert found.forget("all") == 1
    note(network, bad, 10.0)
    assert found.avoided() == {bad.id}
    found.configure(0.0, False)
    assert list(found.avoided()) == [], "the option says that nobody is avoided"
    found.configure(0.0, True)
    assert found.forget("relay3") == 1
    assert found.avoided() == frozenset()
    note(network, bad, 10.0)
    assert found.scores.avoided(network.net.wall() + HALF_LIFE + 1) == frozenset()
    with pytest.raises(ConfigError, match="no relays are called so"):
        found.forget("nobody")


def test_a_guard_that_does_harm_beyond_doubt_is_given_up_and_a_doubtful_one_is_not(network: SimNetwork) -> None:
    guard = next(iter(guard_ids(network)))
    node = network.relay(guard)
    note(network, node, 10.0)
    assert guard_ids(network)[0] == guard
    note(network, node, 30.0, Verdict.OVERLOADED)
    assert guard_ids(network)[0] == guard
    note(network, node, 30.0)
    assert guard not in guard_ids(network)


def test_what_cannot_be_investigated_is_told(shared: SimNetwork) -> None:
    found = investigator(shared)
    assert found.report() is None
    for target in ("nobody", "path 99999", "path x", "path", ""):
        with pytest.raises(ConfigError):
            found.begin(target)
    with pytest.raises(ConfigError, match="minutes"):
        found.begin("all", 1e6)
    for url in ("ftp://web.example/", "http://", "http://user:x@web.example/", "http://web.example/a b", "http://1/"):
        with pytest.raises(ConfigError, match="no page"):
            found.begin("all", url=url)
    assert found.inquiry is None


def test_probes_carry_nothing_of_users(shared: SimNetwork) -> None:
    network = shared
    found = investigator(network)
    found.begin("all", 0.1)
    network.net.run(2)
    streams = circuits(network).streams
    items = [streams.open(StreamRequest("web.example", 80, (n,), None, "", "SOCKS5")) for n in range(4)]
    network.net.run(3)
    assert network.used()
    assert not any(circuit.reserved for circuit in network.used())
    for item in items:
        item.abort(1)
    finish(network)
    inquiry = found.inquiry
    assert inquiry is not None
    assert inquiry.state == "done"
    assert inquiry.counts["finished"] == inquiry.counts["started"] > 5
    network.net.run(1)
    side = network.client.node._client_side
    assert side is not None
    others = [connection.circuit for connection in side.dirstreams.connections]
    left = [one for one in circuits(network).circuits.values() if one.reserved and one not in others]
    assert left == [], "probes leave no circuits behind"


def test_only_one_investigation_runs_and_it_can_be_stopped(shared: SimNetwork) -> None:
    network = shared
    found = investigator(network)
    assert not found.end()
    told: list[str] = []
    found.on_progress = lambda: told.append(found.inquiry.state if found.inquiry is not None else "")
    found.begin("all")
    with pytest.raises(ConfigError, match="is running"):
        found.begin("all")
    network.net.run(12)
    assert told == ["running", "running"]
    assert found.end()
    report = found.report()
    assert report is not None
    assert report["state"] == "stopped"
    assert report["probes"]["started"] > 10
    assert told[-1] == "stopped"
    found.on_progress = lambda: None
    json.dumps(report)


def test_one_relay_or_one_path_is_investigated(shared: SimNetwork) -> None:
    network = shared
    found = investigator(network)
    name = network.relays[4].node.config.node.nickname
    found.begin(name)
    network.net.run(8)
    found.end()
    report = found.report()
    assert report is not None
    assert [one["nickname"] for one in report["relays"]] == [name]
    assert report["relays"][0]["figures"]["accepts"][0] > 0
    circuit = next(one for one in circuits(network).circuits.values() if not one.reserved)
    found.begin(f"path {circuit.number}", 0.1)
    inquiry = found.inquiry
    assert inquiry is not None
    assert set(inquiry.order.targets) == {relay.id for relay in circuit.path}
    found.end()


def test_with_two_relays_nobody_can_be_told_from_the_others(make: MakeNetwork) -> None:
    network = make(relays=2)
    network.start()
    network.net.run(20)
    with pytest.raises(PathError, match="2 of 2 relays"):
        investigator(network).begin("all")


def test_excluded_relays_are_tried_only_when_they_are_named(make: MakeNetwork) -> None:
    network = make()
    network.client.configure("client", build_timeout=5.0)
    network.client._config += '[path]\navoid = ["relay1"]\n'
    network.client._make()
    network.start()
    network.ready()
    found, out = investigator(network), network.relays[1]
    found.begin("all")
    inquiry = found.inquiry
    assert inquiry is not None
    network.net.run(6)
    assert out.id not in inquiry.judged
    on_paths = {relay.id for one in circuits(network).circuits.values() for relay in one.path}
    assert out.id not in on_paths
    found.end()
    found.begin("relay1")
    network.net.run(8)
    found.end()
    report = found.report()
    assert report is not None
    assert report["relays"][0]["figures"]["accepts"][0] > 0


def test_with_guarded_probes_enter_by_guards_only(shared: SimNetwork) -> None:
    network = shared
    found = investigator(network)
    found.begin("all", guarded=True)
    network.net.run(4)
    guards = guard_ids(network)[:PRIMARY]
    probes = [one for one in circuits(network).circuits.values() if one.reserved]
    assert probes
    assert all(one.path[0].id in guards for one in probes)
    found.end()


# scores on disk


def test_scores_outlive_a_crash(network: SimNetwork) -> None:
    bad = network.relays[3]
    note(network, bad)
    table = json.loads((network.client.folder / "state" / FILE_NAME).read_text())
    assert Reputation.from_json(table, network.net.wall()).avoided(network.net.wall()) == {bad.id}
    network.client.host.kill()
    network.client.start()
    found = investigator(network)
    assert found.avoided() == {bad.id}
    assert found.remembered()[0]["verdict"] == "destroys circuits"


def test_a_damaged_file_is_kept_aside_and_told(tmp_path: Path, said: list[str]) -> None:
    file = ScoreFile(tmp_path, Timers(SimNet(0).host("client").reactor))
    cases = (b"", b"{", b"\xff", b"[]", b'{"schema": 1}', b"[" * 100_000, b" " * (9 << 20))
    for number, data in enumerate(cases, 1):
        (tmp_path / FILE_NAME).write_bytes(data)
        assert len(file.load()) == 0
        assert (tmp_path / f"{FILE_NAME}.damaged-{number}").read_bytes() == data
        assert sum("cannot be used" in line for line in said) == number
    assert len(file.load()) == 0
    assert len(said) == len(cases), "that there is no file is nothing to tell"


def test_a_full_disk_is_told_and_survived(tmp_path: Path, said: list[str]) -> None:
    file = ScoreFile(tmp_path / "gone", Timers(SimNet(0).host("client").reactor))
    file.save(Reputation())
    assert any("cannot be written" in line for line in said)


# in the background


def test_probes_go_out_in_the_background_by_the_guards(shared: SimNetwork) -> None:
    network = shared
    found = investigator(network)
    found.configure(240.0, True)
    guards = guard_ids(network)[:PRIMARY]
    network.net.run(150)
    evidence = found._evidence
    assert 5 < len(evidence.kept) < 60
    assert {trial.suspects[0][0] for trial in evidence.kept if len(trial.suspects) == 1} <= set(guards)
    found.configure(0.0, True)
    before = len(evidence.kept)
    network.net.run(60)
    assert len(evidence.kept) <= before + 4, "the last one was still running"
