"""`backrooms geo`, by its effects on files."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from backrooms.cli.main import main
from backrooms.errors import ConfigError
from backrooms.netdir.geo import GeoTable
from backrooms.node.geofile import TOR_FOLDER, Origin, find_table, import_files, load, open_table
from tests.netdir.places import ROWS, iptoasn, slow_place, synthetic

PLAIN = "".join(iptoasn())


def backrooms(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["geo", *(str(argument) for argument in arguments)])


def output(*arguments: str | Path) -> str:
    result = backrooms(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def error(*arguments: str | Path) -> str:
    """The one line of a command that fails with exit status 1."""
    result = backrooms(*arguments)
    assert result.exit_code == 1, result.output
    (line,) = result.output.splitlines()
    return line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a source of places and an empty configuration, where the command is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ip2asn.tsv").write_text(PLAIN)
    (tmp_path / "backrooms.toml").write_text("")
    return tmp_path


def test_import_look_up_and_status(folder: Path) -> None:
    said = output("import", "ip2asn.tsv")
    assert said.startswith(f"{folder}/state/geo.table: ")
    assert "countries, AS numbers, names of AS" in said
    assert "iptoasn.com: PDDL 1.0" in said
    assert (folder / "state" / "schema").read_text() == "2\n"
    found = json.loads(output("lookup", "--json", "10.1.0.1", "10.5.0.1", "2001:db8:3::1", "192.0.2.1"))
    assert found[0] == {
        "address": "10.1.0.1",
        "country": "DE",
        "asn": 64496,
        "as_name": "Alpenwolke GmbH",
        "blocs": ["14eyes", "eea", "eu", "nato"],
    }
    assert [(one["country"], one["asn"]) for one in found[1:]] == [(None, 64497), ("US", 64498), (None, None)]
    text = output("lookup", "10.1.0.1", "192.0.2.1").splitlines()
    assert text[1].split() == ["10.1.0.1", "DE", "AS64496", "Alpenwolke", "GmbH", "14eyes", "eea", "eu", "nato"]
    assert text[2].split() == ["192.0.2.1", "??", "??"]
    told = json.loads(output("status", "--json"))
    assert (told["used"], told["path"], told["asns"]) == ("state", f"{folder}/state/geo.table", True)
    assert "the table in the node's state folder" in output("status")


def test_a_configuration_may_name_another_file_and_blocs(folder: Path) -> None:
    (folder / "backrooms.toml").write_text('[path]\ngeo = "places/mine.table"\nblocs = ["mine: de ch"]\n')
    assert "No such file" in error("import", "ip2asn.tsv")
    (folder / "places").mkdir()
    output("import", "ip2asn.tsv")
    assert not (folder / "state").exists()
    assert load(folder / "places" / "mine.table").to_bytes() == import_files([folder / "ip2asn.tsv"]).to_bytes()
    assert "mine" in json.loads(output("lookup", "--json", "10.4.0.1"))[0]["blocs"]
    assert json.loads(output("status", "--json"))["used"] == "path.geo"


def test_compressed_files_and_several_make_one_table(folder: Path) -> None:
    countries = "".join(f"{start},{end},{country}\n" for start, end, country, _ in ROWS)
    networks = "".join(f'{start},{end},{asn},"Name {asn}"\n' for start, end, _, asn in ROWS if asn)
    (folder / "c.csv.gz").write_bytes(gzip.compress(countries.encode()))
    (folder / "n.csv").write_text(networks)
    told = json.loads(output("import", "--json", "--table", "out", "c.csv.gz", "n.csv"))
    assert told["source"] == "DB-IP Lite (db-ip.com)"
    assert "IP Geolocation by DB-IP" in told["licence"]
    for row in ROWS:
        (place,) = json.loads(output("lookup", "--json", "--table", "out", row[0]))
        assert (place["country"] or "", place["asn"] or 0) == slow_place(ROWS, row[0])


def test_what_others_publish_without_a_name_is_told(folder: Path) -> None:
    (folder / "four.csv").write_text("192.0.2.0,192.0.2.255,de,AS64500\n")
    output("import", "--table", "out", "--source", "Us", "--licence", "ask first", "four.csv")
    told = json.loads(output("status", "--json", "--table", "out"))
    assert (told["source"], told["licence"]) == ("Us", "ask first")


def test_errors(folder: Path) -> None:
    (folder / "bad.tsv").write_text(PLAIN + "10.9.0.0\t10.8.0.0\t1\tDE\tx\n")
    assert error("import", "bad.tsv") == (
        "Error: bad.tsv, line 11: the range ends before it begins; the form is 'iptoasn': "
        "startTABendTABasnTABcountryTABname"
    )
    assert error("import", "none.tsv") == "Error: none.tsv: cannot be read: No such file or directory"
    assert "2 columns instead of 4" not in error("import", "--format", "four", "ip2asn.tsv")
    (folder / "bad.gz").write_bytes(gzip.compress(PLAIN.encode())[:-20])
    assert error("import", "bad.gz") == "Error: bad.gz: its compression is damaged"
    (folder / "bytes").write_bytes(b"10.0.0.0\t\xff\n")
    assert error("import", "bytes") == "Error: bytes: is not UTF-8 text"
    assert error("lookup", "--table", "bad.tsv", "10.1.0.1") == (
        "Error: bad.tsv: is no table made by `backrooms geo import`"
    )
    assert not (folder / "state").exists()
    output("import", "ip2asn.tsv")
    assert error("lookup", "10.1.0") == "Error: 10.1.0: is no address"
    data = bytearray((folder / "state" / "geo.table").read_bytes())
    data[-1] ^= 1
    (folder / "state" / "geo.table").write_bytes(data)
    assert error("status") == (f"Error: {folder}/state/geo.table: is damaged: its checksum is wrong; import it again")
    os.unlink("backrooms.toml")
    assert "Give -c FILE or --table FILE" in error("import", "ip2asn.tsv")
    assert backrooms("import").exit_code == 2


def test_a_failed_import_leaves_the_old_table(folder: Path) -> None:
    output("import", "ip2asn.tsv")
    before = (folder / "state" / "geo.table").read_bytes()
    (folder / "ip2asn.tsv").write_text(PLAIN + "nonsense\n")
    error("import", "ip2asn.tsv")
    assert (folder / "state" / "geo.table").read_bytes() == before


def test_where_a_table_is_looked_for(tmp_path: Path) -> None:
    state, tor, nowhere = tmp_path / "state", tmp_path / "tor", tmp_path / "none"
    state.mkdir()
    tor.mkdir()
    assert find_table(None, state, nowhere) == Origin("none", state / "geo.table")
    assert open_table(find_table(None, state, nowhere)) is None
    (tor / "geoip").write_text("167837696,167903231,DE\n")
    assert find_table(None, state, tor).kind == "none"
    (tor / "geoip6").write_text("2001:db8:1::,2001:db8:1:ffff:ffff:ffff:ffff:ffff,DE\n")
    found = find_table(None, state, tor)
    assert found == Origin("tor-geoipdb", tor)
    table = open_table(found)
    assert table is not None
    assert [table.place(ip).country for ip in ("10.1.0.1", "2001:db8:1::1", "::1")] == ["DE", "DE", ""]
    assert not table.has_asns
    (state / "geo.table").write_bytes(synthetic().to_bytes())
    assert find_table(None, state, tor).kind == "state"
    assert find_table(tmp_path / "mine", state, tor) == Origin("path.geo", tmp_path / "mine")
    with pytest.raises(ConfigError, match="mine: cannot be read: No such file"):
        open_table(find_table(tmp_path / "mine", state, tor))
    for text, error in (("", "is empty"), ("x,y\n", "is not in Tor's form")):
        (tor / "geoip6").write_text(text)
        with pytest.raises(ConfigError, match=f"{tor}: a file of tor-geoipdb {error}"):
            open_table(found)


@pytest.fixture(scope="module")
def tor_geoipdb() -> Any:
    """The Debian package's table; without it the test is skipped, and fails where CI is set."""
    found = find_table(None, Path("/nonexistent"))
    if found.kind == "none":
        reason = f"tor-geoipdb is not installed (no {TOR_FOLDER}/geoip); 'make test-deps' installs it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return open_table(found)


def test_tor_geoipdb_as_it_is_installed(tor_geoipdb: Any) -> None:
    """Addresses whose holders have been the same for decades."""
    assert [tor_geoipdb.place(ip).country for ip in ("193.0.6.139", "8.8.8.8", "2001:67c:2e8:22::c100:68b")] == [
        "NL",
        "US",
        "NL",
    ]
    assert [tor_geoipdb.place(ip).country for ip in ("10.0.0.1", "127.0.0.1", "::1", "fe80::1")] == ["", "", "", ""]
    assert tor_geoipdb.date
    assert "CC BY-SA" in tor_geoipdb.licence


@pytest.mark.slow
def test_tor_geoipdb_on_disk_and_imported_are_the_same(tor_geoipdb: Any) -> None:
    """A part of the file that is a table, against the look-up in the whole text."""
    lines = (TOR_FOLDER / "geoip").read_text().splitlines()
    part = [line for line in lines if not line.startswith("#")][100_000:140_000]
    from backrooms.netdir.geosource import read_table

    table: GeoTable = read_table(part, "geoip", "tor")
    for line in part[::400]:
        low, high, _ = line.split(",")
        for number in (int(low), int(high)):
            ip = ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))
            assert table.place(ip) == tor_geoipdb.place(ip)
