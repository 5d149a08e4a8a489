"""Others' files of places: every form, broken ones, and several made into one."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import ConfigError
from backrooms.netdir.geo import NOWHERE, GeoTable, Place
from backrooms.netdir.geosource import FORMATS, merge, read_row, read_table
from backrooms.netdir.geotext import GeoText
from tests.netdir.places import NAMES, ROWS, countries_only, iptoasn, slow_place, synthetic

TOR_4 = """# Location Database Export
#
# Generated: Thu, 25 Jun 2026 04:33:59 GMT
#
167837696,167903231,DE
167903232,167968767,NO
167968768,168034303,??
168296448,168361983,UK
"""
TOR_6 = """# a comment
2001:db8:1::,2001:db8:1:ffff:ffff:ffff:ffff:ffff,DE
2001:db8:3::,2001:db8:3:ffff:ffff:ffff:ffff:ffff,EU
"""


def read(text: str, form: str | None = None) -> GeoTable:
    return read_table(text.splitlines(keepends=True), "file", form)


def lines_of(form: str) -> str:
    """The synthetic rows in this form, but for iptoasn."""
    texts = {
        "tor": lambda start, end, country, asn: f"{start},{end},{country}",
        "four": lambda start, end, country, asn: f"{start},{end},{country},AS{asn}",
        "dbip-country": lambda start, end, country, asn: f'"{start}","{end}","{country}"',
        "dbip-asn": lambda start, end, country, asn: f'{start},{end},{asn},"{NAMES.get(asn, "")}"',
    }
    comment = "# a comment\n" if form == "tor" else ""
    return comment + "\n".join(texts[form](*row) for row in ROWS)


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_every_form_is_known_by_its_looks(form: str) -> None:
    text = "".join(iptoasn()) if form == "iptoasn" else lines_of(form)
    for table in (read(text), read(text, form), read(text.replace("\n", "\r\n"))):
        fields = FORMATS[form].fields
        assert table.source == (FORMATS[form].source or "file")
        assert table.licence == FORMATS[form].licence
        assert (table.has_countries, table.has_asns, table.has_names) == tuple(
            one in fields for one in ("country", "asn", "name")
        )
        for ip in ("10.1.0.0", "10.3.255.255", "10.5.1.1", "10.7.0.0", "10.7.0.1", "10.8.0.0", "2001:db8:3::1", "::"):
            country, asn = slow_place(ROWS, ip)
            place = table.place(ip)
            assert place.country == (country if "country" in fields else "")
            assert place.asn == (asn if "asn" in fields else 0)
            assert place.as_name == (NAMES.get(asn, "") if "name" in fields else "")


def test_tors_files() -> None:
    table = merge([read(TOR_4), read(TOR_6)])
    assert table.date == "25 Jun 2026"
    assert "CC BY-SA" in table.licence
    found = [table.place(ip).country for ip in ("10.1.0.1", "10.2.0.1", "10.3.0.1", "10.8.0.1", "10.4.0.1")]
    assert found == ["DE", "NO", "", "GB", ""]
    assert [table.place(ip).country for ip in ("2001:db8:1::1", "2001:db8:3::1", "::1")] == ["DE", "", ""]


def test_tors_files_as_they_are_on_disk_answer_the_same() -> None:
    text = GeoText(TOR_4.encode(), TOR_6.encode())
    table = merge([read(TOR_4), read(TOR_6)])
    assert (text.source, text.licence) == (table.source, table.licence)
    assert "25 Jun 2026" in text.date
    rng = random.Random(3)
    four = [IPv4Address((10 << 24) + rng.getrandbits(20)) for _ in range(300)]
    six = [IPv6Address((0x20010DB8 << 96) + (rng.getrandbits(3) << 80) + rng.getrandbits(70)) for _ in range(300)]
    for ip in [*four, *six, ip_address("0.0.0.0"), ip_address("255.255.255.255"), ip_address("::")]:
        assert text.place(ip) == table.place(ip)
    assert text.place("10.1.0.0") is text.place("::ffff:10.1.255.255")
    assert GeoText(TOR_4.encode().rstrip(), TOR_6.encode()).place("10.8.0.1").country == "GB"


@pytest.mark.parametrize("bad", [b"", b"# only a comment", b"# no end\n", b"1,2\n", b"\xff\xfe,1,DE\n"])
def test_tors_files_that_are_none(bad: bytes) -> None:
    with pytest.raises(ConfigError, match="not in Tor's form low,high,CC"):
        GeoText(bad, TOR_6.encode())


@given(st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_damaged_lines_of_tors_files_know_nothing(damage: bytes, number: int) -> None:
    text = GeoText(TOR_4.encode() + damage, TOR_6.encode() + damage)
    assert isinstance(text.place(IPv4Address(number)), Place)
    assert isinstance(text.place(IPv6Address(number << 90)), Place)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "file: has no ranges|what form"),
        ("# comment\n\n", "what form is it of"),
        ("1.0.0.0,1.0.0.255\n", "what form is it of"),
        ("a,b,c,d,e\n", "what form is it of.*--format"),
        ("10.0.0.0,10.0.0.255,DE\n10.0.1.0,DE\n", "file, line 2: 2 columns instead of 3; the form is 'dbip-country'"),
        ("10.0.0.0,10.0.0.255,DE\n\n10.0.1.0,10.0.0.9,DE\n", "file, line 3: the range ends before it begins"),
        ("10.0.0.0,10.0.0.999,DE\n", "file, line 1: '10.0.0.999' is no address"),
        ("10.0.0.0,fe80::1%eth0,DE\n", "file, line 1: 'fe80::1%eth0' is no plain address"),
        ("10.0.0.0,::1,DE\n", "file, line 1: the range begins and ends in different kinds"),
        ("10.0.0.0,10.0.0.255,Germany\n", "file, line 1: 'Germany' is no country"),
        ("1,4294967296,DE\n", "file, line 1: '4294967296' is no IPv4 address"),
        ("10.0.0.0,10.0.0.255,DE,12x\n", "file, line 1: '12x' is no AS number; the form is 'four'"),
        ("10.0.0.0,10.0.0.255,DE,4294967296\n", "file, line 1: '4294967296' is no AS number"),
        ("10.0.0.0,10.0.0.255,13335,a,b\n", "what form"),
        ('10.0.0.0,10.0.0.255,13335,"a\n', "file, line 1: unexpected end of data"),
        ("10.0.0.0\t10.0.0.255\t1\tDE\n", "file, line 1: 4 columns instead of 5; the form is 'iptoasn': startTABend"),
        ("10.0.0.0,10.0.0.255,DE\n10.0.0.255,10.0.1.0,FR\n", "file, line 2: its range overlaps that of line 1"),
        ("10.0.1.0,10.0.1.9,DE\n10.0.0.0,10.0.1.0,FR\n", "file, line 1: its range overlaps that of line 2"),
        ("::1,::5,DE\n::5,::5,DE\n", "file, line 2: its range overlaps that of line 1"),
        ("10.0.0.0,10.0.0.255,DE" + " " * 1000 + "\n", "file, line 1: longer than 1000"),
    ],
)
def test_a_bad_line_is_named(text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        read(text)


def test_a_form_that_is_not_the_files_is_told() -> None:
    with pytest.raises(ConfigError, match="line 1: 5 columns instead of 4; the form is 'four'") as caught:
        read("1.0.0.0,1.0.0.255,DE,1,x\n", "four")
    assert "start,end,country,asn" in str(caught.value)


@given(st.lists(st.text(alphabet=st.sampled_from('0123456789.,:"#\tDEab? \x00é'), max_size=40), max_size=6))
def test_any_lines_give_a_table_or_an_error_with_the_file(lines: list[str]) -> None:
    try:
        said = f"file.csv: {len(read_table(lines, 'file.csv'))} ranges"
    except ConfigError as error:
        said = str(error)
    assert said.startswith("file.csv")


@given(
    st.one_of(
        st.ip_addresses(v=6).map(str),
        st.ip_addresses(v=6).map(lambda ip: ip.exploded),
        st.ip_addresses(v=6, network="::/96").map(str),
        st.integers(0, 2**64 - 1).map(lambda n: str(IPv6Address(n << 64)).upper()),
        st.text(alphabet="0123456789abcF:.", max_size=45),
    )
)
def test_addresses_are_read_as_pythons_own_parser_does(text: str) -> None:
    try:
        expected = int(ip_address(text))
    except ValueError:
        if not text.isdigit():
            with pytest.raises(ValueError):
                read_row([text, text, "DE"], ("start", "end", "country"))
        return
    assert read_row([text, text, "DE"], ("start", "end", "country")).start == expected


def test_lines_in_any_order_and_neighbours_of_one_place() -> None:
    rows = iptoasn()
    random.Random(5).shuffle(rows)
    table = read_table(rows, "file")
    assert table.to_bytes() != b""
    assert all(table.place(ip) == synthetic().place(ip) for row in ROWS for ip in row[:2])
    joined = read("10.0.0.0,10.0.0.9,DE\n10.0.0.10,10.0.0.20,DE\n")
    assert len(joined.four) == 3  # unknown, Germany, unknown


def test_a_table_of_countries_and_one_of_networks_make_one() -> None:
    countries = countries_only()
    networks = read(lines_of("dbip-asn"))
    both = merge([countries, networks])
    assert both.has_countries
    assert both.has_asns
    assert both.has_names
    for row in ROWS:
        for ip in row[:2]:
            country, asn = slow_place(ROWS, ip)
            assert both.place(ip) == Place(country, asn, NAMES.get(asn, ""))
    assert both.place("10.8.0.0") == NOWHERE


def test_the_first_that_knows_decides() -> None:
    first = read("10.0.0.0,10.0.0.9,DE,0\n10.0.0.20,10.0.0.29,??,7\n")
    second = read("10.0.0.5,10.0.0.24,FR,5\n")
    both = merge([first, second])
    found = {last: (both.place(f"10.0.0.{last}").country, both.place(f"10.0.0.{last}").asn) for last in range(31)}
    assert found == {
        last: (
            "DE" if last <= 9 else "FR" if last <= 24 else "",
            7 if 20 <= last <= 29 else 5 if 5 <= last <= 24 else 0,
        )
        for last in range(31)
    }
