"""What a running node says about its paths: explanations, circuits, levels."""

from __future__ import annotations

import json

import pytest

from backrooms.config.routes import Pattern
from backrooms.crypto.keys import text_id
from backrooms.errors import BackroomsError, ConfigError
from backrooms.levels import LOW, MEDIUM
from backrooms.path.route import Route
from backrooms.proxy.isolation import RouteRule
from tests.node.test_levels import COUNTRIES, placed, through  # noqa: F401
from tests.node.test_streams import circuits
from tests.simnet.node import SimNetwork


def test_b10_the_explanation_is_of_the_path_that_is_used(placed: SimNetwork) -> None:  # noqa: F811
    node = placed.client.node
    report = node.path_report
    assert report is not None
    before = dict(circuits(placed).circuits)
    found = report.explain({"level": "high", "to": "web.example:80", "top": "all"})
    assert (found["level"], found["hops"], found["known"], found["error"]) == ("high", 4, 8, "")
    assert [step["index"] for step in found["steps"]] == [0, 1, 3, 2]  # type: ignore[attr-defined]
    guards = {text_id(one) for one in circuits(placed).paths.guards.sample.guards}
    assert found["path"][0]["id"] in guards  # type: ignore[index]
    assert found["path"][3]["countries"][0] in ("IS", "CH")  # type: ignore[index]
    assert found["steps"][0]["excluded"]  # type: ignore[index]
    json.dumps(found)
    assert circuits(placed).circuits.keys() == before.keys(), "nothing was built"
    short = report.explain({"top": "2"})
    assert all(len(step["relays"]) == 2 for step in short["steps"])  # type: ignore[attr-defined]

    assert node.front is not None
    node.front.routes.rules = (RouteRule("routes[0]", (Pattern.parse("*.example:80"),), MEDIUM, ("{CL}",), ("{CH}",)),)
    ruled = report.explain({"to": "web.example:80"})
    assert (ruled["rule"], ruled["avoid"], ruled["exit"]) == ("routes[0]", ["{CL}"], ["{CH}"])
    assert ruled["path"][2]["countries"] == ["CH"]  # type: ignore[index]
    assert any("{CL}" in reason for reason in ruled["steps"][0]["excluded"])  # type: ignore[index]
    assert report.explain({"to": "web.example:443"})["rule"] == ""
    assert report.explain({"to": "web.example:80", "level": "low"})["hops"] == 2
    node.front.routes.rules = (RouteRule("routes[0]", (Pattern.parse("*.example:80"),), None, ("{CL}",)),)
    circuits(placed).options.level = LOW
    assert report.explain({"to": "web.example:80"})["level"] == "low", "the rule leaves the level to the node"
    circuits(placed).options.level = MEDIUM

    for wrong in ({"level": "max"}, {"level": "x"}, {"to": "nowhere"}, {"to": "a:0"}, {"top": "-1"}, {"colour": "red"}):
        with pytest.raises(ConfigError):
            report.explain(wrong)


def test_b10_circuits_and_levels(placed: SimNetwork) -> None:  # noqa: F811
    report = placed.client.node.path_report
    assert report is not None
    circuit = through(placed, Route(MEDIUM))
    found = report.inspect(circuit.number)
    assert (found["status"], found["level"]) == ("BUILT", "medium")
    for relay, told in zip(circuit.path, found["path"], strict=True):  # type: ignore[call-overload]
        number = [node.id for node in placed.relays].index(relay.id)
        assert told["id"] == text_id(relay.id)
        assert told["countries"] == [COUNTRIES[number]]
        assert told["nets"] == [f"40.{number}.0.0/16"]
        assert told["asns"] == [65000 + number]
        assert told["first_seen"] is not None
    with pytest.raises(BackroomsError, match="no circuit 99999"):
        report.inspect(99999)
    levels = {one["level"]: one for one in report.levels()}
    assert list(levels) == ["none", "low", "medium", "high"]
    assert levels["medium"]["default"]
    view = placed.client.node.view
    assert [view.country(f"40.{number}.0.9") for number in range(len(COUNTRIES))] == list(COUNTRIES)
    assert view.country("203.0.113.1") == ""
    with pytest.raises(ValueError):
        view.country("nowhere")
    status = report.status()
    assert status["level"] == "medium"
    assert status["lacks"]
    assert status["gaps"] == []
