"""`backrooms path` and `backrooms route` as people run them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from backrooms.levels import MEDIUM
from backrooms.path.constraints import Target
from backrooms.path.explain import describe, explain, step_json
from backrooms.path.route import Route
from tests.cli.test_cli_commands import invoke, run
from tests.control.fakes import Served
from tests.path import networks


def explanation(top: int = 10) -> dict[str, object]:
    """What a node would say, of two thousand relays and some rules."""
    chooser = networks.selectors(networks.network(4, 2000), networks.entities({"any": ("{US}",), "exit": ("{DE}",)}))
    selector = chooser.get(Route(MEDIUM))
    path = selector.select(3, Target(None, 443), random.Random(1))
    assert selector.last is not None
    return {
        "to": "example.org:443",
        "level": "medium",
        "hops": 3,
        "rule": "routes[0]",
        "avoid": ["{bloc:5eyes}"],
        "exit": [],
        "known": 2000,
        "path": [describe(selector.roster.by_id[one.id], 1_700_000_000.0) for one in path],
        "error": "",
        "warnings": ["the rules exclude much"],
        "gaps": ["no table of AS numbers is installed"],
        "steps": [step_json(step, top) for step in explain(selector.last, path)],
    }


async def test_b10_explain(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        target = ("--control", str(served.socket))
        served.view.explanation = told = explanation()
        out, err, code = await run("path", "explain", "--to", "example.org:443", "--level", "medium", *target)
        assert (err, code) == ("", 0)
        assert out.startswith("medium to example.org:443, by routes[0]: 3 of 2000 relays\n  avoid: {bloc:5eyes}\n")
        assert "  warning: the rules exclude much\n" in out
        assert "  not held: no table of AS numbers" in out
        assert len(out.splitlines()) < 120, "ten of two thousand relays are shown for each position"
        for step in told["steps"]:  # type: ignore[attr-defined]
            assert f"{step['position']} (relay {step['index'] + 1}): {step['candidates']} could be" in out
            for reason, count in step["excluded"].items():
                assert f"{count:6} {reason}" in out
        for relay in told["path"]:  # type: ignore[attr-defined]
            assert any("  >" in line and relay["nickname"] in line for line in out.splitlines())
        shown = out[out.index("Path:") :]
        assert [line.split()[0] for line in shown.splitlines()[2:]] == [one["nickname"] for one in told["path"]]  # type: ignore[attr-defined]

        out, err, code = await run("path", "explain", "--json", "--all", *target)
        assert (err, code) == ("", 0)
        assert json.loads(out)["asked"] == {"top": "all"}
        out, _, _ = await run("path", "explain", "--json", "--to", "[::1]:80", *target)
        assert json.loads(out)["asked"] == {"to": "[::1]:80", "top": "10"}

        _, err, code = await run("path", "explain", "--level", "max", *target)
        assert code == 1
        assert "level 'max' needs mixing" in err

        served.view.explanation = {**explanation(), "path": [], "error": "no path of 3 relays: nothing was relaxed"}
        out, _, code = await run("path", "explain", *target)
        assert code == 1
        assert out.rstrip().endswith("no path of 3 relays: nothing was relaxed")


async def test_b10_inspect(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        target = ("--control", str(served.socket))
        served.view.explanation = told = explanation()
        told["path"][1] |= {"operator": "Some\x1b[31mbody"}  # type: ignore[index]
        told["path"][2] = {"gone": True}  # type: ignore[index]
        for command in ("path", "route"):
            out, err, code = await run(command, "inspect", "7", *target)
            assert (err, code) == ("", 0)
            assert out.startswith("circuit 7: BUILT, level high, by routes[0]\n")
            header = out.splitlines()[1]
            for column in ("Operator", "Family", "Networks", "Country", "AS", "Known for"):
                assert column in header
            assert "Some?[31mbody" in out
            assert "(not in the list any more)" in out
        _, err, code = await run("path", "inspect", "8", *target)
        assert code == 1
        assert "no circuit 8" in err


async def test_b6_levels(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        out, err, code = await run("path", "levels", "--control", str(served.socket))
        assert (err, code) == ("", 0)
        assert "none: 1 relay\n  gives: A little.\n  does not give: much\n" in out
        assert "low: 2 relays, the default\n" in out
        out, _, _ = await run("status", "--control", str(served.socket))
        rows = [line.split("  ") for line in out.splitlines()]
        assert [row[-1].strip() or row[1].strip() for row in rows if row[0] == "Does not give"] == ["padding", "places"]
        assert any(line.startswith("Warning") and "little left" in line for line in out.splitlines())


def test_wrong_usage() -> None:
    for args in (
        ["explain", "--to", "a b:1"],
        ["explain", "--level", "a,b"],
        ["inspect", "x"],
        ["inspect"],
        ["nothing"],
    ):
        assert invoke("path", *args).exit_code == 2
    assert invoke("path", "explain", "--help").exit_code == 0
