"""curl, unchanged, through a network of real processes."""

from __future__ import annotations

import hashlib
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.live.network import CANARY, Network, wait_until
from tests.live.site import BLOCK, Site, body_hash

pytestmark = pytest.mark.live

BIG = 100_000_000
RESOLVE_FAILED = b"Can't complete SOCKS5 connection"

WAYS = {
    "socks4a": ["--socks4a", "{socks}"],
    "socks5": ["--socks5-hostname", "{socks}"],
    "socks5 user": ["--socks5-hostname", "{socks}", "--proxy-user", f"{CANARY}:secret"],
    "connect": ["--proxytunnel", "--proxy", "http://{http}"],
    "connect user": ["--proxytunnel", "--proxy", "http://{http}", "--proxy-user", f"{CANARY}:secret"],
}


def way(network: Network, name: str) -> list[str]:
    return [argument.format(socks=network.socks, http=network.http) for argument in WAYS[name]]


@pytest.mark.parametrize("name", WAYS)
def test_host_names(network: Network, site: Site, name: str) -> None:
    done = network.curl(*way(network, name), site.url("hello"))
    assert (done.stdout, done.stderr, done.returncode) == (b"/hello", b"", 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@pytest.mark.parametrize("name", ["socks5", "connect"])
def test_addresses(network: Network, site: Site, name: str, host: str) -> None:
    port = site.ports["http6" if ":" in host else "http"]
    # --socks5 makes curl send the address itself instead of a name
    arguments = ["--socks5", network.socks] if name == "socks5" else way(network, name)
    done = network.curl("--globoff", *arguments, f"http://{host}:{port}/literal")
    assert (done.stdout, done.stderr, done.returncode) == (b"/literal", b"", 0)


@pytest.mark.parametrize("name", ["socks5", "connect"])
def test_https(network: Network, site: Site, name: str) -> None:
    done = network.curl("-k", *way(network, name), f"https://localhost:{site.ports['https']}/private")
    assert (done.stdout, done.stderr, done.returncode) == (b"/private", b"", 0)


@pytest.mark.parametrize("name", ["socks5", "connect"])
def test_100_mb_down_and_up_are_whole(network: Network, site: Site, name: str, tmp_path: Path) -> None:
    command = ["curl", "-sS", "--noproxy", "", "--max-time", "60", *way(network, name), site.url(str(BIG))]
    digest = hashlib.sha256()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        while data := curl.stdout.read(1 << 18):
            digest.update(data)
    assert curl.returncode == 0
    assert digest.hexdigest() == body_hash(BIG)
    file = tmp_path / "upload"
    with file.open("wb") as out:
        for start in range(0, BIG, len(BLOCK)):
            out.write(BLOCK[: BIG - start])
    done = network.curl(*way(network, name), "--upload-file", str(file), "-H", "Expect:", site.url("up"))
    assert done.stdout.decode() == body_hash(BIG), done.stderr


def test_eight_isolated_streams_at_once(network: Network, site: Site) -> None:
    size = 4_000_000

    def one(number: int) -> str:
        return hashlib.sha256(network.fetch(site.url(str(size)), f"{CANARY}-{number}")).hexdigest()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [body_hash(size)] * 8


def test_nobody_there(network: Network, site: Site) -> None:
    done = network.curl("--socks5-hostname", network.socks, f"http://{CANARY}.invalid/")
    assert done.returncode == 97
    assert RESOLVE_FAILED in done.stderr
    done = network.curl("--socks5-hostname", network.socks, "http://localhost:1/")
    assert done.returncode == 97
    done = network.curl(*way(network, "connect"), f"http://{CANARY}.invalid/")
    assert done.returncode == 56  # CURLE_RECV_ERROR: the proxy's refusal
    assert b"50" in done.stderr


def test_a_stalled_reader_stalls_only_its_own_stream(network: Network, site: Site) -> None:
    # Nobody reads the pipe: it, curl and the stream fill up.
    with network.open_stream(site.url(str(BIG)), stdout=subprocess.PIPE) as (stalled, circuit):
        time.sleep(1)
        for _ in range(3):
            assert hashlib.sha256(network.fetch(site.url("3000000"))).hexdigest() == body_hash(3_000_000)
        assert [one for one in network.ask("streams") if one["circuit_id"] == circuit["id"]], "it is gone"
        mine = [one for one in network.ask("circuits") if one["isolation"] == circuit["isolation"]]
        assert [one["id"] for one in mine] == [circuit["id"]], "all were on one circuit"
        assert stalled.stdout is not None
        digest = hashlib.sha256()
        while data := stalled.stdout.read(1 << 18):
            digest.update(data)
        assert digest.hexdigest() == body_hash(BIG)


def test_streams_end_with_their_applications(network: Network, site: Site) -> None:
    with network.open_stream(site.url("slow")) as (_, circuit):
        assert circuit["id"] in {stream["circuit_id"] for stream in network.ask("streams")}
    assert wait_until(lambda: network.ask("streams") == [], 5)
