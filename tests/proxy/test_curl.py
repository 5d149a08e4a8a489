"""curl as the proxies' application, in every dialect it has."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from backrooms.levels import LOW, MEDIUM, Level
from backrooms.node.requests import StreamRequest
from backrooms.proxy.socks import HTTP_PAGE
from tests.proxy.loopback import BODY, Proxies

Curl = Callable[..., Deferred[tuple[bytes, bytes, int]]]

CURL_PROXY_FAILED = 97

DIALECTS = {
    "socks4": ("socks", ["--socks4", "127.0.0.1:{}"], "http://127.0.0.1/", "SOCKS4"),
    "socks4a": ("socks", ["--socks4a", "127.0.0.1:{}"], "http://web.example/", "SOCKS4A"),
    "socks5": ("socks", ["--socks5", "127.0.0.1:{}"], "http://127.0.0.1/", "SOCKS5"),
    "socks5h": ("socks", ["--socks5-hostname", "127.0.0.1:{}"], "http://web.example/", "SOCKS5"),
    "http -p": ("http", ["--proxy", "http://127.0.0.1:{}", "-p"], "http://web.example/", "HTTPCONNECT"),
    "http 1.0": ("http", ["--proxy1.0", "127.0.0.1:{}", "-p"], "http://web.example/", "HTTPCONNECT"),
}  # fmt: skip


def options(name: str, port: int) -> list[str]:
    return [argument.format(port) for argument in DIALECTS[name][1]]


@pytest.mark.parametrize("name", DIALECTS)
async def test_curl(name: str, proxies: Proxies, curl: Curl) -> None:
    kind, _, url, protocol = DIALECTS[name]
    port = await proxies.start(kind, level=LOW)
    out, err, code = await curl(*options(name, port), url)
    assert (out, err, code) == (b"hello from the web\n", b"", 0)
    request = proxies.request
    assert (request.port, request.protocol, request.level) == (80, protocol, LOW)
    assert request.source.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", ["socks4a", "socks5h", "http -p"])
async def test_curl_moves_megabytes(name: str, proxies: Proxies, curl: Curl, tmp_path: Path) -> None:
    port = await proxies.start(DIALECTS[name][0])
    out, _, code = await curl(*options(name, port), "http://big.example/")
    assert code == 0
    assert hashlib.sha256(out).digest() == hashlib.sha256(BODY).digest()
    (tmp_path / "body").write_bytes(BODY)
    upload = ["--data-binary", f"@{tmp_path}/body", "http://sink.example/"]
    out, _, code = await curl(*options(name, port), *upload)
    assert (out, code) == (hashlib.sha256(BODY).hexdigest().encode(), 0)


@pytest.mark.parametrize("name", ["socks4a", "socks5h", "http -p"])
async def test_curl_learns_of_failures(name: str, proxies: Proxies, curl: Curl) -> None:
    kind, _, _, _ = DIALECTS[name]
    port = await proxies.start(kind)
    for host in ("refused.example", "forbidden.example", "unknown.example"):
        out, err, code = await curl(*options(name, port), f"http://{host}/")
        assert out == b""
        # exit code 97: the proxy's handshake failed; 56 is curl's for CONNECT
        assert code == (56 if kind == "http" else CURL_PROXY_FAILED)
        if kind == "http":
            assert (b"response 503" if host == "unknown.example" else b"response 403") in err


async def test_broken_stream_is_an_error_for_curl(proxies: Proxies, curl: Curl) -> None:
    port = await proxies.start("socks")
    out, err, code = await curl("--socks4a", f"127.0.0.1:{port}", "http://breaks.example/")
    assert out == b"half of it"
    assert code == 56, err


async def test_curl_isolates_and_chooses_a_level(proxies: Proxies, curl: Curl) -> None:
    socks, http = await proxies.start("socks"), await proxies.start("http")

    async def fetch(*arguments: str) -> StreamRequest:
        out, err, code = await curl(*arguments, "-p", "http://web.example/")
        assert (out, err, code) == (b"hello from the web\n", b"", 0)
        return proxies.request

    def at(user: str) -> str:
        return f"socks5h://{user}127.0.0.1:{socks}"

    alice = await fetch("-x", at("alice:one@"))
    assert alice.isolation == (await fetch("-x", at("alice:one@"))).isolation
    others = [
        await fetch("-x", at("alice:two@")),
        await fetch("-x", at("bob:one@")),
        await fetch("-x", at("")),
        await fetch("-x", at("alice,level=low:one@")),
        await fetch("-x", f"http://alice:one@127.0.0.1:{http}"),
        await fetch("-x", f"http://127.0.0.1:{http}", "--proxy-header", "Tor-Stream-Isolation: alice"),
        await fetch("-x", f"socks4a://alice@127.0.0.1:{socks}"),
    ]
    assert len({alice.isolation, *(other.isolation for other in others)}) == 8
    assert alice.level is None
    assert others[3].level == LOW
    five = await fetch("-x", at("level=custom%3A5@"))
    assert five.level == Level("custom:5", 5)
    by_header = await fetch("-x", f"http://127.0.0.1:{http}", "--proxy-header", "Tor-Stream-Isolation: a;level=medium")
    assert by_header.level == MEDIUM


async def test_curl_with_a_wrong_level(proxies: Proxies, curl: Curl) -> None:
    socks, http = await proxies.start("socks"), await proxies.start("http")
    _, _, code = await curl("-x", f"socks5h://level=higher@127.0.0.1:{socks}", "http://web.example/")
    assert code == CURL_PROXY_FAILED
    _, err, code = await curl("-x", f"http://level=higher@127.0.0.1:{http}", "-p", "http://web.example/")
    assert code == 56
    assert b"response 400" in err
    assert not proxies.opener.requests


async def test_curl_that_takes_socks_for_http(proxies: Proxies, curl: Curl) -> None:
    port = await proxies.start("socks")
    out, _, code = await curl("-i", f"http://127.0.0.1:{port}/")
    assert code == 0
    assert out == HTTP_PAGE
    out, _, code = await curl("-x", f"http://127.0.0.1:{port}", "http://web.example/")
    assert b"This is a SOCKS proxy" in out


async def test_curl_options(proxies: Proxies, curl: Curl) -> None:
    port = await proxies.start("http")
    out, _, code = await curl("-i", "-X", "OPTIONS", f"http://127.0.0.1:{port}/")
    assert code == 0
    assert out.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nAllow: CONNECT, OPTIONS\r\n" in out
