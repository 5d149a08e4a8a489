"""Every key of GETINFO and every event, against a node that is known."""

from __future__ import annotations

import json
import os
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.control.formats import (
    circuit_text,
    event_reply,
    host_port,
    relay_lines,
    stream_text,
    version_text,
)
from backrooms.control.view import (
    Bandwidth,
    CircuitChanged,
    LogLine,
    NodeEvent,
    SignalReceived,
    StreamChanged,
    clean_nickname,
)
from backrooms.node.accounting import AccountingState
from backrooms.node.guards import GuardStatus
from tests.control.fakes import HOPS, circuit, relay, stream
from tests.control.sessions import entered

STEM_VERSION = re.compile(r"^\d+\.\d+\.\d+(\.\d+)?(-\S*)?(( \(\S*\))*)$")
"""What stem takes for a version of tor."""

ACCOUNTING = {
    "enabled": "1",
    "hibernating": "soft",
    "bytes": "1 2",
    "bytes-left": "3 4",
    "interval-start": "2027-01-15 08:00:00",
    "interval-wake": "2027-01-15 09:00:00",
    "interval-end": "2027-02-14 08:00:00",
}
"""In Tor's form (control-spec, GETINFO accounting/...)."""


# -- GETINFO --


def test_every_listed_key_has_a_value() -> None:
    controller = entered()
    names = controller.value("info/names")
    keys = [name.partition(" -- ")[0] for name in names]
    assert len(keys) > 30
    for key in keys:
        if key.endswith("/*") or key == "fingerprint":
            continue
        controller.value(key)
    # a name is a leaf or a folder, never both: txtorcon's TorInfo needs that
    assert not [key for key in keys if any(other.startswith(f"{key}/") for other in keys)]


def test_version_is_one_that_stem_understands() -> None:
    assert entered().value("version") == "0.4.9.11 (backrooms-0.1.0)"
    for version in ("0.1.0", "1.0.0rc1", "0.2.0.dev3+g12 dirty"):
        assert STEM_VERSION.match(version_text(version))


def test_circuit_status() -> None:
    controller = entered()
    path = ",".join(f"${digits}~{name}" for digits, name in HOPS[:3])
    assert controller.value("circuit-status") == [
        f"7 BUILT {path} BUILD_FLAGS=NEED_CAPACITY PURPOSE=GENERAL "
        "TIME_CREATED=2027-01-15T08:00:00.250000 LEVEL=medium BUILD_MS=12",
        f"8 EXTENDED ${HOPS[0][0]}~{HOPS[0][1]} BUILD_FLAGS=NEED_CAPACITY PURPOSE=GENERAL "
        "TIME_CREATED=2027-01-15T08:00:00.250000 LEVEL=medium",
    ]
    controller.view.circuit_list = []
    assert controller.say("GETINFO circuit-status") == "250-circuit-status=\n250 OK"


def test_circuit_words() -> None:
    launched = circuit_text(circuit(status="LAUNCHED", path=(), build_ms=None))
    assert launched.startswith("7 LAUNCHED BUILD_FLAGS=")
    closed = circuit_text(circuit(status="CLOSED", reason="FINISHED"))
    assert " REASON=FINISHED " in closed
    shared = circuit_text(circuit(isolation='alice "x"=y\n\xe9'))
    assert shared.endswith(" ISOLATION=alice%20%22x%22%3Dy%0A%C3%A9")


def test_stream_status() -> None:
    controller = entered()
    assert controller.value("stream-status") == [
        "3 SUCCEEDED 7 example.com:443 SOURCE_ADDR=127.0.0.1:50123 PURPOSE=USER CLIENT_PROTOCOL=SOCKS5"
    ]
    controller.view.stream_list = []
    assert controller.value("stream-status") == ""


def test_stream_words() -> None:
    assert stream_text(stream(target="a b=c\n:80", source="", protocol="")) == (
        "3 SUCCEEDED 7 a%20b%3Dc%0A:80 PURPOSE=USER"
    )
    assert stream_text(stream(target="example.com")).split()[3] == "example.com:0"
    assert stream_text(stream(target="[::1]:80")).split()[3] == "[::1]:80"
    assert " REASON=DONE SOURCE_ADDR=" in stream_text(stream(status="CLOSED", reason="DONE"))


@given(st.text(st.characters()), st.text(st.characters()))
def test_any_text_stays_one_word(target: str, isolation: str) -> None:
    assert len(stream_text(stream(target=target)).split()) == 7
    text = circuit_text(circuit(isolation=isolation))
    assert len(text.split()) == (9 if isolation else 8)
    assert text.isascii()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:80", ("a", 80)),
        ("[::1]:65535", ("[::1]", 65535)),
        ("a:65536", ("a:65536", 0)),
        ("a:x", ("a:x", 0)),
        ("a", ("a", 0)),
        ("", ("", 0)),
    ],
)
def test_host_port(text: str, expected: tuple[str, int]) -> None:
    assert host_port(text) == expected


ROUTER = [
    "r relay4 BAQEBAQEBAQEBAQEBAQEBAQEBAQ AAAAAAAAAAAAAAAAAAAAAAAAAAA 2027-01-15 08:00:00 192.0.2.4 9001 0",
    "a [2001:db8::4]:9002",
    "s Exit Fast Running Stable Valid",
    "w Bandwidth=10000",
]


def test_router_status() -> None:
    controller = entered()
    everything = controller.value("ns/all")
    assert [line for line in everything if line.startswith("r relay4")] == ROUTER[:1]
    assert sum(line.startswith("r ") for line in everything) == 5
    digits, nickname = HOPS[3]
    for key in (
        f"ns/id/{digits}",
        f"ns/id/${digits.lower()}",
        f"ns/id/${digits}~{nickname}",
        "ns/name/RELAY4",
    ):
        assert controller.value(key) == ROUTER
    assert controller.say("GETINFO ns/id/xyz") == "551 Data not decodable as hex"
    for key in (f"ns/id/{'0' * 40}", "ns/name/nobody", "ns/name/"):
        assert controller.say(f"GETINFO {key}") == f'552 Unrecognized key "{key}"'


def test_router_status_with_odd_addresses() -> None:
    lines = relay_lines(relay(0, addresses=("tls:[2001:db8::1]:1", "tls:name:2"), nickname="é-_!", capacity=1))
    assert lines[0].startswith("r Unnamed ")
    assert lines[0].endswith(" 0.0.0.0 0 0")
    assert lines[1:] == ("a [2001:db8::1]:1", "s Fast Running Stable Valid", "w Bandwidth=1")
    both = relay_lines(relay(0, addresses=("tls:192.0.2.1:1", "tls:192.0.2.2:2", "junk", "")))
    assert both[0].endswith(" 192.0.2.1 1 0")


def test_nicknames() -> None:
    assert clean_nickname("my-relay_1") == "myrelay1"
    assert clean_nickname("ü") == clean_nickname("") == "Unnamed"
    assert clean_nickname("x" * 30) == "x" * 19


def test_entry_guards_is_a_block_even_when_empty() -> None:
    assert entered().say("GETINFO entry-guards") == "250+entry-guards=\n.\n250 OK"


def test_entry_guards() -> None:
    controller = entered()
    controller.view.guard_list = [
        GuardStatus("A" * 40, "first", "up", 1_700_000_000.0),
        GuardStatus("B" * 40, "second one", "down", 1_700_000_000.0),
        GuardStatus("C" * 40, "third", "never-connected", None),
        GuardStatus("D" * 40, "", "unusable", 1_700_000_000.0),
    ]
    lines = controller.say("GETINFO entry-guards").splitlines()
    assert lines[1:-2] == [
        f"${'A' * 40}~first up",
        f"${'B' * 40}~secondone down 2023-11-14 22:13:20",
        f"${'C' * 40}~third never-connected",
        f"${'D' * 40} unusable 2023-11-14 22:13:20",
    ]


def test_status_keys() -> None:
    controller = entered()
    ready = "GETINFO dormant status/enough-dir-info status/circuit-established"
    assert controller.say(ready) == (
        "250-dormant=0\n250-status/enough-dir-info=1\n250-status/circuit-established=1\n250 OK"
    )
    controller.view.phase = (74, "loading", 'say "hi"')
    controller.view.circuit_list = [circuit(status="EXTENDED")]
    assert controller.value("status/enough-dir-info") == "0"
    assert controller.value("status/circuit-established") == "0"
    assert controller.value("status/bootstrap-phase") == (
        'NOTICE BOOTSTRAP PROGRESS=74 TAG=loading SUMMARY="say \\"hi\\""'
    )
    controller.view.phase = (75, "enough_dirinfo", "x")
    assert controller.value("status/enough-dir-info") == "1"


def test_process_keys() -> None:
    controller = entered()
    assert controller.value("process/pid") == str(os.getpid())
    assert int(str(controller.value("process/descriptor-limit"))) > 0
    controller.view.started = time.time() - 100
    assert 99 <= int(str(controller.value("uptime"))) <= 110
    assert controller.value("config-file") == "/etc/backrooms/backrooms.toml"
    assert controller.say("GETINFO traffic/read traffic/written") == (
        "250-traffic/read=1234\n250-traffic/written=5678\n250 OK"
    )
    assert controller.value("address-mappings/all") == ""
    assert controller.say("GETINFO ip-to-country/192.0.2.1") == "551 GeoIP data not loaded"
    controller.view.countries = {"192.0.2.1": "DE"}
    assert controller.value("ip-to-country/192.0.2.1") == "de"
    assert controller.value("ip-to-country/2001:db8::1") == "??"
    assert controller.say("GETINFO ip-to-country/nowhere").startswith("552 Unrecognized key")


def test_accounting() -> None:
    controller = entered()
    assert controller.value("accounting/enabled") == "0"
    assert controller.value("accounting/hibernating") == "awake"
    assert controller.value("accounting/bytes-left") == "0 0"
    controller.view.account = AccountingState("soft", 1, 2, 3, 4, 1_800_000_000.0, 1_800_003_600.0, 1_802_592_000.0)
    assert {key: controller.value(f"accounting/{key}") for key in ACCOUNTING} == ACCOUNTING


def test_listeners() -> None:
    controller = entered()
    assert controller.value("net/listeners/socks") == '"127.0.0.1:9050" "unix:/run/socks"'
    assert controller.value("net/listeners/http") == '"[::1]:9080"'
    assert controller.value("net/listeners/or") == ""
    assert controller.value("net/listeners/control") == '"unix:/run/backrooms/control.sock"'
    controller.view.addresses["socks"] = ['unix:/a "b"']
    assert controller.value("net/listeners/socks") == r'"unix:/a\ \"b\""'


def test_fingerprint() -> None:
    controller = entered()
    assert controller.say("GETINFO fingerprint") == "551 Not running in server mode"
    controller.view.fingerprint = HOPS[0][0]
    assert controller.value("fingerprint") == HOPS[0][0]


def test_limits() -> None:
    controller = entered()
    controller.view.refusals = {"link: subnet rate": 2, "exit: BEGIN: too many streams": 11}
    controller.view.queued = (123, 456)
    assert controller.value("backrooms/limits") == ["exit: BEGIN: too many streams=11", "link: subnet rate=2"]
    assert controller.value("backrooms/memory") == "123 456"
    status = json.loads(str(controller.value("backrooms/status")))
    assert status["refused"] == controller.view.refusals
    assert status["memory"] == {"waiting": 123, "limit": 456}
    controller.view.refusals = {}
    assert controller.value("backrooms/limits") == ""


def test_the_view_of_the_network() -> None:
    controller = entered()
    assert json.loads(str(controller.value("backrooms/view"))) == controller.view.view_of_network
    assert json.loads(str(controller.value("backrooms/status")))["view"]["root"] == "00112233445566aa"


def test_json_keys() -> None:
    controller = entered()

    def parsed(key: str) -> object:
        value = controller.value(key)
        return json.loads(value if isinstance(value, str) else "\n".join(value))

    status = parsed("backrooms/status")
    assert isinstance(status, dict)
    assert status["circuits"] == {"built": 1, "building": 1}
    assert status["relays"] == {"known": 5, "exits": 2}
    assert status["listeners"]["control"] == ["unix:/run/backrooms/control.sock"]
    circuits = parsed("backrooms/circuits")
    assert isinstance(circuits, list)
    assert circuits[1]["path"] == [{"fingerprint": HOPS[0][0], "nickname": "relay1"}]
    assert parsed("backrooms/streams") == [
        {
            "id": 3,
            "status": "SUCCEEDED",
            "circuit_id": 7,
            "target": "example.com:443",
            "source": "127.0.0.1:50123",
            "protocol": "SOCKS5",
            "reason": "",
        }
    ]
    relays = parsed("backrooms/relays")
    assert isinstance(relays, list)
    assert [item["nickname"] for item in relays] == ["relay1", "relay2", "relay3", "relay4", "relay5"]
    links = parsed("backrooms/links")
    assert isinstance(links, list)
    assert links[0]["rtt"] == 0.012
    controller.view.circuit_list = []
    assert parsed("backrooms/circuits") == []
    controller.view.circuit_list = [circuit(isolation="\n.\n250 OK\u2603")]
    again = parsed("backrooms/circuits")
    assert isinstance(again, list)
    assert again[0]["isolation"] == "\n.\n250 OK\u2603"


def test_unknown_keys_are_all_named_and_nothing_else_is_said() -> None:
    assert entered().say("GETINFO a version b") == '552-Unrecognized key "a"\n552 Unrecognized key "b"'
    assert entered().say("GETINFO") == "250 OK"
    assert entered().say('GETINFO "x') == "512 Bad arguments to GETINFO: a quoted string has no end"


def test_a_key_that_is_asked_often_is_answered_once() -> None:
    assert len(entered().say("GETINFO " + "ns/all " * 9000)) < 2000


@pytest.mark.parametrize(
    ("event", "name", "wire"),
    [
        (Bandwidth(1, 2), "BW", b"650 BW 1 2\r\n"),
        (LogLine("WARN", "caf\xe9\r\n250 OK"), "WARN", b"650 WARN caf\\xe9\\r\\n250 OK\r\n"),
        (SignalReceived("NEWNYM"), "SIGNAL", b"650 SIGNAL NEWNYM\r\n"),
        (CircuitChanged(circuit()), "CIRC", f"650 CIRC {circuit_text(circuit())}\r\n".encode()),
        (StreamChanged(stream()), "STREAM", f"650 STREAM {stream_text(stream())}\r\n".encode()),
    ],
)
def test_events(event: NodeEvent, name: str, wire: bytes) -> None:
    found, line = event_reply(event)
    assert (found, line.encode()) == (name, wire)
