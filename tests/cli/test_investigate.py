"""`backrooms investigate` as people run it, and its words at the control port."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backrooms.control.formats import event_reply
from backrooms.control.view import InvestigationProgress
from tests.cli.test_cli_commands import invoke, run
from tests.control.fakes import Served
from tests.control.sessions import entered


def relay(nickname: str, verdict: str = "fine", **more: Any) -> dict[str, Any]:
    values = {
        "id": "00" * 32,
        "fingerprint": "AB" * 20,
        "nickname": nickname,
        "verdict": verdict,
        "bad": verdict.startswith("destroys"),
        "strength": 0.0,
        "named_after": None,
        "figures": {"accepts": [160, 0], "carries": [220, 23]},
        "evidence": [],
        "notes": [],
        "round_trip_ms": 61.2,
        "avoided": False,
    }
    return values | more


def report(*relays: dict[str, Any], **more: Any) -> dict[str, object]:
    values: dict[str, object] = {
        "state": "done",
        "target": "all",
        "started": 1_800_000_000.0,
        "elapsed": 130.0,
        "limit": 156.0,
        "progress": 1.0,
        "probes": {"started": 320, "finished": 320, "failed": 23, "void": 1, "round_trips": 7000},
        "relays": list(relays),
        "exits": None,
    }
    return values | more


async def test_a_report_for_people(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        bad = relay("evil\x1b[31m", "destroys circuits", evidence=["23 ended early"], avoided=True)
        looks = [{"fingerprint": "A", "nickname": "exit1", "shown": "status 200", "error": ""}]
        exits = {"url": "http://x/", "verdict": "the same through 2 exits", "looks": looks}
        served.view.found = report(relay("good"), bad, exits=exits)
        out, _, code = await run("investigate", "all", "--minutes", "1.5", "--control", str(served.socket))
        assert code == 4, "somebody does harm"
        assert served.view.asked == ["investigate all minutes=1.5 url= guarded=False"]
        lines = out.splitlines()
        assert lines[0] == "320 probes in 2 min 10 s: 23 ended early, 1 say nothing, 7000 round trips"
        assert lines[2].split()[:3] == ["evil?[31m", "ABABABAB", "destroys"]
        assert "23 of 220" in lines[2]
        assert lines[2].endswith("avoided")
        assert "  23 ended early" in lines
        assert "\x1b" not in out
        assert "http://x/: the same through 2 exits" in lines
        assert "  exit1: status 200" in lines


async def test_a_report_for_programs(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        served.view.found = report(relay("good"))
        arguments = ("path", "7", "--url", "http://x/?a=b", "--guarded", "--json", "--control", str(served.socket))
        out, err, code = await run("investigate", *arguments)
        assert (err, code) == ("", 0)
        assert json.loads(out) == served.view.found
        assert served.view.asked == ["investigate path 7 minutes=0 url=http://x/?a=b guarded=True"]


async def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        out, err, code = await run("investigate", "nobody", "--control", str(served.socket))
        assert (out, code) == ("", 1)
        assert err == "Error: the node says: 551 Cannot investigate: 'nobody': no relays are called so\n"


async def test_forgetting_stopping_and_scores(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        target = ("--control", str(served.socket))
        out, err, code = await run("investigate", "--forget", "relay3", *target)
        assert (out, err, code) == ("scores forgotten: 2\n", "", 0)
        assert served.view.asked == ["forget relay3"]
        out, err, code = await run("investigate", "--stop", *target)
        assert (code, "No investigation is running" in err) == (1, True)
        out, err, code = await run("investigate", "--scores", *target)
        assert (out, err, code) == ("nothing bad is remembered of any relay\n", "", 0)


@pytest.mark.parametrize("arguments", [(), ("path",), ("a", "b"), ("all", "--stop"), ("path", "1", "2"), ("\x07",)])
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    assert invoke("investigate", *arguments).exit_code == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("all", 250),
        ("all MINUTES=2.5 GUARDED", 250),
        ("path 3 URL=http://x/", 250),
        ("", 512),
        ("all MINUTES=1e9", 512),
        ("all MINUTES=-1", 512),
        ("all FOO=1", 512),
        ("all URL=", 512),
        ("all GUARDED=1", 512),
        ("nobody", 551),
        ("stop", 552),
        ("forget", 250),
        ("a b c d e f", 512),
    ],
)
def test_the_command_of_the_control_port(words: str, code: int) -> None:
    assert entered().answer(f"INVESTIGATE {words}").reply.code == code


def test_keys_and_event_of_the_control_port() -> None:
    assert list(entered().value("backrooms/investigation")) == ["null"]
    assert list(entered().value("backrooms/scores")) == ["[", "]"]
    name, line = event_reply(InvestigationProgress("running", 0.4123, 120, 1))
    assert (name, line.encode()) == (
        "INVESTIGATION",
        b"650 INVESTIGATION STATE=running PROGRESS=0.41 PROBES=120 BAD=1\r\n",
    )
