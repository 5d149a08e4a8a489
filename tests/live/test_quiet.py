"""What a network's logs do not say, and that the look-out for it would see it."""

from __future__ import annotations

import time

import pytest

from tests.live.network import CANARY, Network
from tests.live.site import Site

pytestmark = pytest.mark.live


def test_b4_no_destination_and_no_client_in_any_log(network: Network, site: Site) -> None:
    """Working and failing requests, names, addresses, users, look-ups: none of it is in any log."""
    assert network.fetch(site.url("x"), f"{CANARY}-user")
    for url in (f"http://{CANARY}.invalid/", "http://localhost:1/", "http://127.0.0.77:1/", f"http://{CANARY}/"):
        done = network.curl("--socks5-hostname", network.socks, url, "--proxy-user", f"{CANARY}:x", seconds=3)
        assert done.returncode != 0
        network.curl("--proxytunnel", "--proxy", f"http://{network.http}", url, seconds=3)
    network.curl("--socks4a", network.socks, f"http://{CANARY}.invalid/", seconds=5)
    network.curl(f"http://{network.socks}/{CANARY}", seconds=5)  # a browser at the wrong port
    time.sleep(0.2)
    assert network.faults() == []
    for name in ("client", "relay1", "exit1"):
        assert "node is up" in network.log(name), "the logs are not just empty"


def test_the_look_out_sees(network: Network) -> None:
    log = network.folder / "lookout" / "log"
    log.parent.mkdir()
    for line in (f"went to {CANARY}.example", "from 127.0.0.1:5", "from [::1]:5", "Traceback (most recent call last):"):
        log.write_text(f"2026-01-01 [-] {line}\n")
        assert len(network.faults()) == 1
    log.unlink()
