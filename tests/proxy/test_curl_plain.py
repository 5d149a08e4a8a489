"""curl with plain http:// through the HTTP proxy, and with passwords."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from backrooms.levels import LOW
from tests.proxy.loopback import BODY, Proxies, until
from tests.proxy.test_curl import CURL_PROXY_FAILED
from tests.proxy.web import Website

Curl = Callable[..., Deferred[tuple[bytes, bytes, int]]]


class Setting:
    """A website behind an HTTP proxy, and curl that uses it."""

    def __init__(self, proxies: Proxies, curl: Curl) -> None:
        self.site = Website()
        self.proxies = proxies
        proxies.opener.servers["site.example"] = proxies.opener.servers["other.example"] = self.site
        self._curl = curl
        self.port = 0

    async def fetch(self, *arguments: str, user: str = "") -> bytes:
        """What curl prints."""
        self.port = self.port or await self.proxies.start("http", level=LOW)
        out, err, code = await self._curl("-x", f"http://{user}127.0.0.1:{self.port}", *arguments)
        assert (err, code) == (b"", 0)
        return out


@pytest.fixture
def setting(proxies: Proxies, curl: Curl) -> Setting:
    return Setting(proxies, curl)


async def test_get(setting: Setting) -> None:
    assert await setting.fetch("http://site.example/page?x") == b"/page?x"
    (request,) = setting.site.requests
    assert {name for name, _ in request.headers} == {b"host", b"user-agent", b"accept"}
    asked = setting.proxies.request
    assert (asked.host, asked.port, asked.protocol, asked.level) == ("site.example", 80, "HTTP", LOW)


async def test_several_pages_over_one_connection(setting: Setting) -> None:
    urls = ["http://site.example/1", "http://site.example/2", "http://other.example/3", "http://site.example/chunks"]
    assert await setting.fetch(*urls) == b"/1/2/3/chunks"
    assert len({request.source for request in setting.proxies.opener.requests}) == 1
    assert setting.site.connections == 3


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1"])
async def test_every_way_a_body_can_end(setting: Setting, version: str) -> None:
    for path in ("page", "chunks"):
        assert await setting.fetch(version, f"http://site.example/{path}") == f"/{path}".encode()
    assert await setting.fetch(version, "http://site.example/close") == b"until the end"
    head = await setting.fetch(version, "-I", "http://site.example/page")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.lower().count(b"content-length: 64\r\n") == 1


@pytest.mark.parametrize("how", [[], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect:"], ["--http1.0"]])
async def test_uploads(setting: Setting, how: list[str], tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(BODY)
    digest = hashlib.sha256(BODY).hexdigest().encode()
    for way in (["-T", f"{tmp_path}/body"], ["--data-binary", f"@{tmp_path}/body"]):
        assert await setting.fetch(*how, *way, "http://site.example/") == digest
    assert {request.method for request in setting.site.requests} == {b"PUT", b"POST"}


async def test_other_methods(setting: Setting) -> None:
    for method in ("DELETE", "PROPFIND", "OPTIONS"):
        assert await setting.fetch("-X", method, "http://site.example/x") == hashlib.sha256().hexdigest().encode()
    assert [request.method for request in setting.site.requests] == [b"DELETE", b"PROPFIND", b"OPTIONS"]


async def test_users_are_kept_apart_and_from_the_server(setting: Setting) -> None:
    for user in ("alice:one@", "bob:one@", ""):
        await setting.fetch("http://site.example/", user=user)
    await setting.fetch("http://site.example/", "--proxy-header", "Tor-Stream-Isolation: x")
    assert len({request.isolation for request in setting.proxies.opener.requests}) == 4
    names = {name for request in setting.site.requests for name, _ in request.headers}
    assert names == {b"host", b"user-agent", b"accept"}


async def test_failures(setting: Setting) -> None:
    for host, code in (("refused.example", b"403"), ("unknown.example", b"503"), ("breaks.example", b"000")):
        port = setting.port = setting.port or await setting.proxies.start("http")
        out, _, _ = await setting._curl("-x", f"http://127.0.0.1:{port}", "-w", "%{http_code}", f"http://{host}/")
        assert out.endswith(code) or (host == "breaks.example" and out == b"half of it200")
    await until(lambda: len(setting.proxies.listener) == 0)


async def test_a_download_of_unknown_length_that_breaks_is_an_error(setting: Setting) -> None:
    port = await setting.proxies.start("http")
    out, err, code = await setting._curl("-x", f"http://127.0.0.1:{port}", "http://breaks.example/")
    assert out == b"half of it"
    assert code == 56, err


async def test_megabytes(setting: Setting) -> None:
    assert hashlib.sha256(await setting.fetch("http://big.example/")).digest() == hashlib.sha256(BODY).digest()


async def test_https_by_mistake(setting: Setting) -> None:
    port = await setting.proxies.start("http")
    out, _, code = await setting._curl(
        "-x", f"http://127.0.0.1:{port}", "--request-target", "https://a.b/", "http://a.b/"
    )
    assert code == 0
    assert b"CONNECT" in out


# passwords

PASSWORD = os.urandom(8).hex()
BY_PASSWORD: dict[str, tuple[Any, list[str]]] = {
    "socks5": ("socks", ["-x", "socks5h://{user}127.0.0.1:{port}"]),
    "connect": ("http", ["-p", "-x", "http://{user}127.0.0.1:{port}"]),
    "plain": ("http", ["-x", "http://{user}127.0.0.1:{port}"]),
}


@pytest.mark.parametrize("name", BY_PASSWORD)
async def test_password(name: str, proxies: Proxies, curl: Curl) -> None:
    kind, arguments = BY_PASSWORD[name]
    port = await proxies.start(kind, "tcp:0:interface=0.0.0.0", password=PASSWORD)

    def options(user: str) -> list[str]:
        return [argument.format(user=user, port=port) for argument in arguments]

    for user in ("alice", "bob"):
        out, err, code = await curl(*options(f"{user}:{PASSWORD}@"), "http://web.example/")
        assert (out, err, code) == (b"hello from the web\n", b"", 0)
    assert len({request.isolation for request in proxies.opener.requests}) == 2
    for user in ("", "alice:wrong@", f"{PASSWORD}:x@", "alice:@", f"alice:{PASSWORD}x@"):
        out, err, code = await curl("-w", "%{http_code}", *options(user), "http://web.example/")
        if kind == "socks":
            assert code == CURL_PROXY_FAILED
        else:
            assert b"407" in out + err
    assert len(proxies.opener.requests) == 2


async def test_socks4_cannot_show_a_password(proxies: Proxies, curl: Curl) -> None:
    port = await proxies.start("socks", password=PASSWORD)
    _, _, code = await curl("-x", f"socks4a://{PASSWORD}@127.0.0.1:{port}", "http://web.example/")
    assert code == CURL_PROXY_FAILED
    assert not proxies.opener.requests


async def test_curl_asks_again_when_it_has_a_password(proxies: Proxies, curl: Curl) -> None:
    """With --proxy-anyauth it shows it only when it is asked."""
    port = await proxies.start("http", password=PASSWORD)
    user = ["--proxy-anyauth", "--proxy-user", f"a:{PASSWORD}"]
    out, err, code = await curl("-x", f"http://127.0.0.1:{port}", *user, "http://web.example/")
    assert (out, err, code) == (b"hello from the web\n", b"", 0)
