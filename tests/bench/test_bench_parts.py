"""Reading /proc, tor's and curl's output, testnet.json; the sink; ports."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.__main__ import chosen_networks, main
from bench.builds import cpu_per_build, new_builds
from bench.control import Circuit
from bench.cpu import (
    TICKS,
    CpuSample,
    ProcessGone,
    cpu_between,
    cpu_sample,
    parse_busy_seconds,
    parse_kb,
    parse_schedstat,
    parse_stat_seconds,
    pss_mb,
    rss_mb,
)
from bench.load import Load, LoadError, curl_command, parse_transfer
from bench.network import Network, NetworkError, Relay, free_ports
from bench.ours import OurNetwork, parse_identities, parse_testnet
from bench.profile import parse_stacks, shares
from bench.report import markdown_table, number
from bench.sink import parse_request, serve_quietly
from bench.tornet import (
    VARIANTS,
    parse_fingerprint,
    parse_v3_identity,
    torrc_authority,
    torrc_common,
    torrc_relay,
)


def test_schedstat_stat_and_memory() -> None:
    assert parse_schedstat("12345678 99 7\n") == 12345678
    stat = "42 (a ) (b c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0"
    assert parse_stat_seconds(stat) == pytest.approx(200 / TICKS)
    status = "Name:\tVmRSS: 5\nVmRSS:\t    1000 kB\n"
    assert parse_kb(status, "VmRSS") == pytest.approx(1.024)
    machine = "cpu  100 1 50 9999 77 2 3 4 0 0\ncpu0 1 2 3\n"
    assert parse_busy_seconds(machine) == pytest.approx(160 / TICKS)
    with pytest.raises(KeyError, match="Pss"):
        parse_kb(status, "Pss")


def test_cpu_between_counts_new_threads_and_survives_ended_ones() -> None:
    before = CpuSample({1: 1_000_000_000, 2: 500_000_000}, 1.5)
    assert cpu_between(before, CpuSample({1: 2_000_000_000, 2: 500_000_000, 3: 250_000_000}, 2.7)) == 1.25
    assert cpu_between(before, CpuSample({1: 2_000_000_000}, 2.75)) == pytest.approx(1.25)


def test_cpu_of_this_process_grows_with_work_and_not_with_sleep() -> None:
    before = cpu_sample(os.getpid())
    own = time.process_time()
    while time.process_time() < own + 0.1:
        pass
    worked = cpu_sample(os.getpid())
    assert 0.08 <= cpu_between(before, worked) <= 0.5
    time.sleep(0.1)
    assert cpu_between(worked, cpu_sample(os.getpid())) < 0.05
    assert 5 < pss_mb(os.getpid()) <= rss_mb(os.getpid()) + 1


def test_a_process_that_has_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProcessGone, match="77"):
        cpu_sample(77, tmp_path)


FIGURES = '{"http_code": %d, "size_download": %d, "size_upload": %d, "time_total": 2.5, "time_starttransfer": 0.25}'


def test_curl_figures() -> None:
    down = parse_transfer(FIGURES % (200, 1000, 0), 0, 1000, upload=False)
    assert (down.size, down.seconds, down.first_byte) == (1000, 2.5, 0.25)
    assert parse_transfer(FIGURES % (200, 4, 1000), 0, 1000, upload=True).size == 1000


@pytest.mark.parametrize(
    ("text", "code"),
    [(FIGURES % (200, 999, 0), 0), (FIGURES % (503, 1000, 0), 0), (FIGURES % (200, 1000, 0), 18), ("", 7)],
)
def test_transfers_that_are_not_what_was_asked_for(text: str, code: int) -> None:
    with pytest.raises(LoadError, match=f"curl {code}"):
        parse_transfer(text, code, 1000, upload=False)


def test_curl_goes_through_the_proxy_even_to_loopback() -> None:
    command = curl_command("127.0.0.1:9050", "user", "http://127.0.0.1:1/2")
    assert command[command.index("--proxy") + 1] == "socks5h://user:x@127.0.0.1:9050"
    assert command[command.index("--noproxy") + 1] == ""


def test_streams_are_isolated_by_user() -> None:
    users = Load(1, 1).users("down_8", "round0")
    assert len(set(users)) == 8
    assert not set(users) & set(Load(1, 1).users("down_1", "round0"))


def exchange(request: bytes) -> bytes:
    """What the sink answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    thread = threading.Thread(target=serve_quietly, args=(theirs,))
    thread.start()
    with ours:
        ours.sendall(request)
        answer = b""
        while data := ours.recv(1 << 20):
            answer += data
    thread.join(5)
    assert not thread.is_alive()
    return answer


@pytest.mark.parametrize("size", [0, 1, 1024, 1025, (1 << 20) + 1025, 3_000_000])
def test_sink_sends_exactly_what_was_asked_for(size: int) -> None:
    head, _, body = exchange(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % size).partition(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % size in head
    assert len(body) == size


@pytest.mark.parametrize("size", [0, 5, 2_000_000])
def test_sink_reads_all_and_says_how_much(size: int) -> None:
    request = b"PUT /up HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % size
    assert exchange(request + bytes(size)).endswith(b"\r\n\r\n%d" % size)


def test_sink_answers_expect_and_refuses_nonsense() -> None:
    head = b"POST /up HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    assert exchange(head + b"abc").startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
    assert exchange(b"DELETE /1 HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400")
    with pytest.raises(ValueError, match="not a request"):
        parse_request(b"GET / FTP")


def test_free_ports_are_distinct_and_free() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()
    with socket.create_server(("127.0.0.1", ports[0])), pytest.raises(NetworkError, match="no 1 free"):
        free_ports(1, ports[0], ports[0] + 1)


def test_tor_fingerprints() -> None:
    text = "some notice\nauth0 0123 4567 89AB CDEF 0123 4567 89AB CDEF 0123 4567\n"
    assert parse_fingerprint(text, "auth0") == "0123456789ABCDEF0123456789ABCDEF01234567"
    with pytest.raises(ValueError, match="auth1"):
        parse_fingerprint(text, "auth1")
    assert parse_v3_identity("version 3\nfingerprint " + "A" * 40 + "\n") == "A" * 40
    with pytest.raises(ValueError, match="fingerprint"):
        parse_v3_identity("version 3\n")


@pytest.mark.parametrize(
    ("name", "vanilla", "conflux_off"),
    [("tor_default", False, True), ("tor_vanilla", True, True), ("tor_conflux", False, False)],
)
def test_variants_differ_only_in_what_their_name_says(name: str, vanilla: bool, conflux_off: bool) -> None:
    torrc = torrc_common(Path("/x"), VARIANTS[name], 1).splitlines()
    assert ("Schedulers Vanilla" in torrc) is vanilla
    assert ("ConfluxEnabled 0" in torrc) is conflux_off


def test_all_listeners_of_tor_are_on_loopback() -> None:
    text = torrc_relay("r", 1234, True) + torrc_authority(2345)
    listeners = [line for line in text.splitlines() if line.startswith(("ORPort", "DirPort", "Address"))]
    assert listeners == ["Address 127.0.0.1", "ORPort 127.0.0.1:1234", "DirPort 127.0.0.1:2345"]
    assert "ExitRelay 0" in torrc_relay("r", 1234, False).splitlines()


TESTNET = {
    "socks": "127.0.0.1:1",
    "http": "127.0.0.1:2",
    "control": "unix:/x/control",
    "relays": [{"id": "x", "nickname": "relay0", "pid": 11, "address": "tls:127.0.0.1:3", "exit": True}],
    "client": {"pid": 10},
}


def test_testnet_json_and_the_names_in_paths() -> None:
    identity = bytes(range(20))
    identities = parse_identities("r relay0 AAECAwQFBgcICQoLDA0ODxAREhM digest 2038-01-01 00:00:00\ns Exit\n")
    assert identities == {"relay0": identity.hex().upper()}
    network = parse_testnet(TESTNET, identities)
    assert network.pids == [10, 11]
    assert network.hops([Circuit("1", "BUILT", (identity.hex(),))]) == [[network.relays[0]]]
    with pytest.raises(NetworkError, match="unknown relay ff"):
        network.hops([Circuit("1", "BUILT", ("FF",))])
    with pytest.raises(NetworkError, match="relay0"):
        parse_testnet(TESTNET, {})


def test_a_testnet_that_ends_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "backrooms"
    command.write_text("#!/bin/sh\necho it cannot work\nexit 3\n")
    command.chmod(0o755)
    monkeypatch.setattr("bench.ours.find_command", lambda: str(command))
    network = OurNetwork(tmp_path / "net")
    network.launch()
    with pytest.raises(NetworkError, match=r"ended with 3\nit cannot work"):
        network.wait(10)
    network.stop()


def test_a_testnet_is_found_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "net"
    testnet = json.dumps(TESTNET | {"client": {}})
    command = tmp_path / "backrooms"
    command.write_text(
        f"#!/bin/sh\ntrap 'touch {tmp_path}/stopped; exit 0' INT\nmkdir -p $3\n"
        f"echo '{testnet}' > $3/testnet.json\nwhile :; do sleep 0.05; done\n"
    )
    command.chmod(0o755)
    monkeypatch.setattr("bench.ours.find_command", lambda: str(command))
    monkeypatch.setattr("bench.ours.open_control", lambda address, timeout: pytest.fail("no client to ask"))
    network = OurNetwork(folder)
    network.launch()
    while not (folder / "testnet.json").exists():
        time.sleep(0.01)
    network.stop()
    network.stop()
    assert (tmp_path / "stopped").exists()


def test_builds_count_only_new_circuits_of_three_hops() -> None:
    path = [["A", "a"], ["B", "b"], ["C", "c"]]
    circuits: list[dict[str, Any]] = [
        {"id": 3, "build_ms": 9.0, "path": path},
        {"id": 4, "build_ms": 5.0, "path": path},
        {"id": 5, "build_ms": None, "path": path[:2]},
        {"id": 6, "build_ms": 2.0, "path": path[:1]},
    ]
    assert new_builds(circuits, 3) == [5.0]
    assert cpu_per_build(0.35, 0.10, 50) == pytest.approx(5.0)


def test_profile_shares() -> None:
    waiting = "main;Condition.wait (threading.py:320) 90\n"
    stacks = parse_stacks(waiting + "main;loop;read 6\nmain;loop;loop;write 3\nmain 1\n")
    assert shares(stacks) == [("read", 60, 60), ("write", 30, 30), ("main", 10, 100)]
    assert parse_stacks("") == []


def test_choosing_networks() -> None:
    assert chosen_networks((), False) == ("ours", "tor_default", "tor_vanilla", "tor_conflux")
    assert chosen_networks((), True) == ("ours",)
    assert chosen_networks(("tor",), False) == ("tor_default", "tor_vanilla", "tor_conflux")
    assert chosen_networks(("tor_vanilla", "ours"), False) == ("ours", "tor_vanilla")


def test_asking_for_nothing_is_an_error() -> None:
    result = CliRunner().invoke(main, ["--only", "tor", "--skip-tor"])
    assert result.exit_code == 2
    assert "nothing to measure" in result.output


def test_numbers_and_tables() -> None:
    assert [number(x) for x in (0.00123, 0.5, 3.14159, 42.42, 1234.5)] == ["0.0012", "0.5", "3.14", "42.4", "1234"]
    assert markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"


def test_relay_pids_come_after_the_client() -> None:
    network = Network("n", "s", "c", 5, (Relay("a", "A", 6), Relay("b", "B", 7)))
    assert network.pids == [5, 6, 7]
