"""Relays that are killed, stopped, reloaded, stalled or strange. The tests share a network and use its relays up."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.live.network import CANARY, Network, is_alive, kill, resident, start, wait_until
from tests.live.site import Site

pytestmark = pytest.mark.live

MAX_RESIDENT = 80
"""MiB of an idle relay."""


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory, require: Any) -> Iterator[Network]:
    """Nine relays, three of them exits."""
    require("curl")
    made = start(tmp_path_factory.mktemp("fragile") / "net", 9, 3)
    yield made
    made.stop()
    assert made.faults() == []


def path(network: Network, circuit: dict[str, Any]) -> list[dict[str, Any]]:
    """The relays of a circuit, the entry first."""
    return [network.relay_at(hop) for hop in circuit["path"]]


def test_an_idle_relay_is_small(fragile: Network) -> None:
    sizes = {one["nickname"]: resident(one["pid"]) for one in fragile.state["relays"]}
    assert max(sizes.values()) < MAX_RESIDENT, sizes


@pytest.mark.parametrize("hop", [1, 2], ids=["middle", "exit"])
def test_a_killed_relay_ends_the_stream_and_the_next_request_succeeds(fragile: Network, site: Site, hop: int) -> None:
    with fragile.open_stream(site.url("slow")) as (curl, circuit):
        kill(path(fragile, circuit)[hop]["pid"])
        assert curl.wait(5) != 0, "an error, not an end"
    for number in range(4):  # other circuits, other paths: the dead one is still in the list
        assert fragile.fetch(site.url("next"), f"{CANARY}{number}", seconds=10) == b"/next"


def test_a_stopped_entry_relay_drains_and_ends_in_order(fragile: Network, site: Site) -> None:
    with fragile.open_stream(site.url("slow")) as (curl, circuit):
        relay = path(fragile, circuit)[0]
        stopped = time.monotonic()
        os.kill(relay["pid"], signal.SIGTERM)
        assert curl.wait(9) != 0
        assert time.monotonic() - stopped > 2, "a circuit in use was given time"
        assert wait_until(lambda: not is_alive(relay["pid"]), 9)
    log = fragile.log(relay["nickname"])
    assert "Server Shut Down" in log
    assert "Traceback" not in log
    assert fragile.fetch(site.url("next"), seconds=20) == b"/next"


def test_a_download_shorter_than_the_drain_is_whole(fragile: Network, site: Site) -> None:
    with fragile.open_stream(site.url("steady")) as (curl, circuit):
        relay = path(fragile, circuit)[1]
        os.kill(relay["pid"], signal.SIGTERM)
        assert curl.wait(20) == 0
    assert wait_until(lambda: not is_alive(relay["pid"]), 9)
    assert "Traceback" not in fragile.log(relay["nickname"])


def test_hangup_reads_the_configuration_again(fragile: Network, site: Site) -> None:
    config = fragile.folder / "client" / "backrooms.toml"
    text = config.read_text()
    pid = fragile.state["client"]["pid"]
    config.write_text(text + "\nnonsense\n")
    os.kill(pid, signal.SIGHUP)
    assert wait_until(lambda: "the configuration stays as it was" in fragile.log("client"), 5)
    config.write_text(text.replace("[client]", '[log]\nlevel = "warn"\n[client]\nlevel = "low"'))
    os.kill(pid, signal.SIGHUP)
    assert wait_until(lambda: fragile.ask("status")["level"] == "low", 5)
    assert is_alive(pid)
    config.write_text(text)
    fragile.signal("RELOAD")
    assert fragile.ask("status")["level"] == "medium"


def alive(network: Network) -> dict[str, Any]:
    return next(one for one in network.state["relays"] if is_alive(one["pid"]))


def refusal(network: Network, relay: dict[str, Any], words: str) -> None:
    """The relay says so in its log once, and goes on."""
    assert wait_until(lambda: words in network.log(relay["nickname"]), 5), network.log(relay["nickname"])[-800:]
    assert network.log(relay["nickname"]).count(words) == 1
    assert is_alive(relay["pid"])


def address(relay: dict[str, Any]) -> tuple[str, int]:
    host, _, port = relay["address"].removeprefix("tls:").partition(":")
    return host, int(port)


def converse(relay: dict[str, Any], context: ssl.SSLContext | None) -> None:
    """Say something that is no link, with TLS or without, and listen until the relay closes."""
    # or an end without a word, which comes as no data
    with socket.create_connection(address(relay), 5) as plain, suppress(ssl.SSLError, ConnectionError):
        pipe = plain if context is None else context.wrap_socket(plain)
        pipe.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while data := pipe.recv(4096):
            assert context is None, f"the relay answered {data!r}"


def test_b5_w23_old_tls_no_ml_kem_and_no_tls_at_all_are_refused_with_the_reason(fragile: Network, site: Site) -> None:
    relay = alive(fragile)
    old, classical = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (old, classical):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    classical.set_ecdh_curve("prime256v1")
    for _ in range(3):
        for context in (old, classical):
            converse(relay, context)
        converse(relay, None)
    refusal(fragile, relay, "TLS 1.3 is required, the peer does not speak it (unsupported protocol)")
    refusal(fragile, relay, "X25519MLKEM768 is required")
    refusal(fragile, relay, "TLS handshake failed: http request")
    assert fragile.fetch(site.url("next"), seconds=20) == b"/next"
