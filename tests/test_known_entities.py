"""Known entities out of a node's configuration: what is wrong is told at the start, what is right holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backrooms import assembly
from backrooms.config import Config
from backrooms.errors import BackroomsError, ConfigError
from backrooms.netdir.descriptor import Descriptor
from backrooms.node import geofile
from tests.netdir.places import countries_only, synthetic
from tests.path import slow_checker
from tests.simnet.node import SimNetwork
from tests.test_service import Made


@pytest.fixture(autouse=True)
def no_tor_geoipdb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is installed on this machine must not matter."""
    monkeypatch.setattr(geofile, "TOR_FOLDER", tmp_path / "nowhere")


def with_table(folder: Path, table: bytes | None = None) -> None:
    (folder / "state").mkdir(mode=0o700, exist_ok=True)
    (folder / "state" / "geo.table").write_bytes(synthetic().to_bytes() if table is None else table)


def test_every_option_is_read(tmp_path: Path) -> None:
    with_table(tmp_path)
    (tmp_path / "list.txt").write_text("# a list\n{AS64496}\n")
    text = """
[path]
avoid = ["{bloc:mine}", "file:list.txt"]
avoid_entry = ["{us}"]
avoid_middle = ["10.1.0.0/16"]
avoid_exit = ["{operator:Somebody}"]
blocs = ["mine: jp br", "more: mine de"]
[path.levels]
high = ["{bloc:more}"]
custom = ["nickname"]
"""
    (tmp_path / "b.toml").write_text(text)
    entities = assembly.known_entities(Config.load(tmp_path / "b.toml"))
    rules = entities.rules
    assert [str(one) for one in rules.any] == ["{bloc:mine}", "{AS64496} (list.txt:2)"]
    assert [[str(one) for one in part] for part in (rules.entry, rules.middle, rules.exit)] == [
        ["{us}"],
        ["10.1.0.0/16"],
        ["{operator:Somebody}"],
    ]
    assert [str(one) for one in entities.rules_for("high").any][2:] == ["{bloc:more}"]
    assert [str(one) for one in entities.rules_for("custom:4").any][2:] == ["nickname"]
    assert not entities.by_level["medium"]
    assert entities.avoids
    assert not assembly.known_entities(Config.parse("", tmp_path)).avoids


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('avoid = ["{uk}"]', r"path.avoid\[0\]: '{uk}': 'uk' is no country's code.*write gb"),
        ('avoid_entry = ["a", "AS1"]', r"path.avoid_entry\[1\]: 'AS1': a country or AS stands in braces: {AS1}"),
        ('avoid_middle = ["{AS1}"]', r"path.avoid_middle\[0\]: '{AS1}': the table .* has no AS numbers"),
        ('avoid_exit = ["file:no.txt"]', r"path.avoid_exit\[0\]: 'file:no.txt': cannot be read: No such file"),
        ('avoid = ["file:."]', "cannot be read: not a file"),
        ('blocs = ["mine: de", "mine: fr"]', r"path.blocs\[1\]: 'mine: fr': there is a bloc 'mine' already"),
        ('geo = "other.table"', "other.table: cannot be read: No such file"),
        ('geo = "b.toml"', "b.toml: is no table made by `backrooms geo import`"),
        ('levels = {high = ["{org:x}"]}', r"path.levels.high\[0\]: '{org:x}': the table .* has no names of AS"),
        ('levels = {max = ["{de}"]}', "path.levels.max: unknown option"),
        ('exclude = ["a"]', "path.exclude: unknown option"),
        ('avoid = "a"', "path.avoid: must be a list"),
    ],
)
def test_what_is_wrong_is_named_and_the_node_does_not_start(tmp_path: Path, text: str, error: str) -> None:
    with_table(tmp_path, countries_only().to_bytes())
    (tmp_path / "b.toml").write_text("")
    with pytest.raises(ConfigError, match=error):
        Made(tmp_path, f"[path]\n{text}\n")


def test_without_a_table_rules_about_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"path.avoid\[0\]: '{de}': there is no table of countries"):
        Made(tmp_path, '[path]\navoid = ["{de}"]\n')


def test_a_list_is_read_again_with_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("one\n")
    made = Made(tmp_path, '[path]\navoid = ["file:list.txt"]\n')
    circuits = made.node.circuits
    assert circuits is not None
    (tmp_path / "list.txt").write_text("one\ntwo\n")
    made.node.reload()
    assert [str(rule) for rule in circuits.options.entities.rules.any] == ["one (list.txt:1)", "two (list.txt:2)"]
    (tmp_path / "list.txt").write_text("one\n{xx}\n")
    with pytest.raises(BackroomsError, match=r"path.avoid\[0\], list.txt line 2: '{xx}'"):
        made.node.reload()
    assert len(circuits.options.entities.rules.any) == 2


def test_circuits_hold_the_rules_and_new_rules_take_effect_at_once(tmp_path: Path) -> None:
    """A whole network: relay0 is in de, relay1 no, relay2 us, relay3 ch, relay4 unknown; the exits in fr and jp."""
    network = SimNetwork(tmp_path, relays=7, exits=2, places=lambda number: (f"10.{number + 1}.0.1",))
    with_table(network.client.folder)
    node = network.client
    plain = node.config
    rules = {"any": ["{us}"], "entry": ["file:list.txt"]}
    file = node.folder / "backrooms.toml"
    (node.folder / "list.txt").write_text("{ch}\n")

    def write(avoid: list[str]) -> None:
        table = f"[path]\navoid = {json.dumps(avoid)}\navoid_entry = {json.dumps(rules['entry'])}\n"
        file.write_text(plain + table)

    write(rules["any"])
    node.config_file(file)
    network.start()
    network.ready()
    circuits = node.node.circuits
    assert circuits is not None

    def paths() -> list[list[Descriptor]]:
        return [one.path for one in circuits.circuits.values() if one.status == "BUILT" and not one.retired]

    def wrong(avoid: list[str]) -> list[str]:
        entities = circuits.options.entities
        relays = node.node.directory.relays()
        own = {"any": avoid, "entry": ["{ch}"]}
        checker = slow_checker.Checker(relays, entities.places)
        return [fault for path in paths() for fault in checker.violations(path, own)]

    try:
        assert paths()
        assert wrong(["{us}"]) == []
        middle = paths()[0][1]
        write(["{us}", middle.nickname])
        node.node.reload()
        assert wrong(["{us}", middle.nickname]) == []
        network.net.run(30)
        assert paths()
        assert wrong(["{us}", middle.nickname]) == []
    finally:
        network.stop()
