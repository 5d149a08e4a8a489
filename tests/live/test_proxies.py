"""Plain HTTP, passwords, look-ups and mapped names, with unchanged programs and real processes."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from backrooms.cli.localnet import free_ports
from tests.live.network import CANARY, Network, wait_until
from tests.live.node import NodeProcess
from tests.live.site import Site, body_hash

pytestmark = pytest.mark.live

BIG = 100_000_000
UPLOAD = hashlib.shake_128(b"what curl has").digest(3_000_000)
PASSWORD = f"{CANARY}-password"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def setup(self) -> None:
        super().setup()
        pages: Any = self.server
        pages.connections += 1

    def do_GET(self) -> None:
        """The headers as they came; `/socket` is an echo after 101."""
        if self.path == "/socket":
            self.send_response(101)
            self.send_header("Connection", "Upgrade")
            self.send_header("Upgrade", "websocket")
            self.end_headers()
            incoming: Any = self.rfile
            while data := incoming.read1(65536):
                self.wfile.write(data)
            self.close_connection = True
        else:
            handler: Any = self
            self._reply(handler.raw_requestline + bytes(self.headers))

    def do_POST(self) -> None:
        """The SHA-256 of the body."""
        body = b""
        if self.headers["Transfer-Encoding"] == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self._reply(hashlib.sha256(body).hexdigest().encode())

    do_PUT = do_POST

    def _reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests are not interested."""


class Pages(ThreadingHTTPServer):
    """A web server that shows what it is sent, and counts connections."""

    daemon_threads = True

    def __init__(self) -> None:
        self.connections = 0
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, path: str = "", host: str = "localhost") -> str:
        return f"http://{host}:{self.server_address[1]}/{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no failure here."""


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    made = Pages()
    yield made
    made.shutdown()
    made.server_close()


def plain(network: Network, *arguments: str) -> bytes:
    """What curl prints, through the HTTP proxy without CONNECT."""
    done = network.curl("--proxy", f"http://{network.http}", *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


# plain HTTP


def test_the_server_sees_what_a_direct_request_would_show(network: Network, pages: Pages) -> None:
    through = plain(network, "-A", "someone", "--proxy-user", f"{CANARY}:x", pages.url("page?x"))
    direct = network.curl("-A", "someone", pages.url("page?x")).stdout
    assert through == direct


def test_two_pages_over_one_connection(network: Network, pages: Pages) -> None:
    before = pages.connections
    quiet = ["-o", "/dev/null", "-o", "/dev/null", "-w", "%{http_code} %{num_connects}\n"]
    assert plain(network, *quiet, pages.url("one"), pages.url("two")) == b"200 1\n200 0\n"
    assert pages.connections == before + 1
    assert wait_until(lambda: network.ask("streams") == [], 10)


UPLOADS = {
    "put": ["-T", "{file}"],
    "post": ["--data-binary", "@{file}"],
    "chunked": ["-T", "{file}", "-H", "Transfer-Encoding: chunked"],
    "unasked": ["-T", "{file}", "-H", "Expect:"],
    "HTTP/1.0": ["--http1.0", "-T", "{file}"],
}


@pytest.mark.parametrize("name", UPLOADS)
def test_uploads(network: Network, pages: Pages, name: str, tmp_path: Path) -> None:
    file = tmp_path / "upload"
    file.write_bytes(UPLOAD)
    arguments = [argument.format(file=file) for argument in UPLOADS[name]]
    assert plain(network, *arguments, pages.url("up")) == hashlib.sha256(UPLOAD).hexdigest().encode()


def test_100_mb_are_whole(network: Network, site: Site, tmp_path: Path) -> None:
    plain(network, "-o", str(tmp_path / "body"), site.url(str(BIG)))
    with (tmp_path / "body").open("rb") as body:
        assert hashlib.file_digest(body, "sha256").hexdigest() == body_hash(BIG)


def test_nobody_there(network: Network) -> None:
    for host, code in ((f"{CANARY}.invalid", b"503"), ("localhost:1", b"403"), (f"{CANARY}.onion", b"503")):
        assert plain(network, "-o", "/dev/null", "-w", "%{http_code}", f"http://{host}/") == code


def test_levels_and_isolation(network: Network, site: Site) -> None:
    for level, hops in (("none", 1), ("low", 2)):
        proxy = ["--proxy", f"http://level={level},{CANARY}:x@{network.http}"]
        with network.open_stream(site.url("slow"), *proxy) as (_, circuit):
            assert len(circuit["path"]) == hops


def test_a_websocket(network: Network, pages: Pages) -> None:
    host, _, port = network.http.partition(":")
    with socket.create_connection((host, int(port)), 30) as application:
        head = f"GET {pages.url('socket')} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        application.sendall(head.encode())
        seen = b""
        while not seen.endswith(b"\r\n\r\n"):
            seen += application.recv(1000)
        assert seen.startswith(b"HTTP/1.1 101 ")
        application.sendall(b"frames")
        assert application.recv(1000) == b"frames"


def test_tors_own_resolver(network: Network, require: Callable[[str], str]) -> None:
    def resolve(*arguments: str) -> tuple[int, bytes]:
        command = [require("tor-resolve"), *arguments, network.socks]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        return done.returncode, done.stdout

    assert resolve("localhost") in ((0, b"127.0.0.1\n"), (0, b"::1\n"))
    assert resolve("-4", "localhost") == (0, b"127.0.0.1\n")
    assert resolve("-x", "127.0.0.1")[0] == 0
    assert resolve(f"{CANARY}.invalid")[0] != 0


# a client with everything


class Guarded:
    """A client with passwords, a DNS port and mapped names, in the network of the others."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.socks, self.http, self.dns = free_ports(3)
        self.network = network
        config = f"""
[node]
network = "{network.folder}/network.toml"
[path]
distinct_subnets = false
[client]
allow_private = true
[[socks]]
listen = "tcp:{self.socks}:interface=127.0.0.1"
password = "{PASSWORD}"
literal_addresses = "refuse"
[[http]]
listen = "tcp:{self.http}:interface=127.0.0.1"
password = "{PASSWORD}"
[dns]
listen = ["udp:{self.dns}:interface=127.0.0.1"]
[map]
addresses = ["*.{CANARY}.example=localhost"]
automap = true
automap_suffixes = [".{CANARY}"]
"""
        self.process = NodeProcess(folder, config, None)
        self.process.start()
        self.process.ready()

    def curl(self, *arguments: str) -> tuple[int, bytes]:
        done = self.network.curl(*arguments)
        return done.returncode, done.stdout

    def by_socks(self, url: str, option: str = "--socks5-hostname", password: str = PASSWORD) -> tuple[int, bytes]:
        login = ["--proxy-user", f"{CANARY}:{password}"] if password else []
        return self.curl(option, f"127.0.0.1:{self.socks}", *login, url)

    def by_http(self, url: str, *options: str, password: str = PASSWORD) -> bytes:
        login = ["--proxy-user", f"{CANARY}:{password}"] if password else []
        proxy = ["--proxy", f"http://127.0.0.1:{self.http}", *login]
        return self.curl("-w", "%{http_code} %{http_connect}", *proxy, *options, url)[1]


@pytest.fixture(scope="module")
def guarded(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    made = Guarded(tmp_path_factory.mktemp("guarded"), network)
    yield made
    made.process.close()
    log = made.process.log()
    assert "Traceback" not in log
    assert CANARY not in log


def test_passwords(guarded: Guarded, pages: Pages) -> None:
    code, out = guarded.by_socks(pages.url("in"))
    assert (code, out[:7]) == (0, b"GET /in")
    for password in ("", "wrong", PASSWORD + "x"):
        assert guarded.by_socks(pages.url(), password=password)[0] == 97
        assert guarded.by_http(pages.url(), password=password).endswith(b"407 000")
        assert guarded.by_http(pages.url(), "-p", password=password).endswith(b"000 407")
    assert guarded.by_http(pages.url("in")).endswith(b"200 000")
    assert guarded.by_http(pages.url("in"), "-p").endswith(b"200 200")


def test_an_application_that_resolves_names_itself_is_refused(guarded: Guarded, pages: Pages) -> None:
    assert guarded.by_socks(pages.url(), "--socks5")[0] == 97


def test_mapped_names(guarded: Guarded, pages: Pages) -> None:
    for host in (f"{CANARY}.example", f"a.b.{CANARY}.example"):
        assert guarded.by_socks(pages.url("mapped", host))[1].startswith(b"GET /mapped")
        answer = guarded.by_http(pages.url("mapped", host))
        assert host.encode() in answer  # the server is asked for the page of that name
        assert answer.endswith(b"200 000")


def test_dig(guarded: Guarded, require: Callable[[str], str]) -> None:
    def dig(*arguments: str) -> str:
        command = [require("dig"), "@127.0.0.1", "-p", str(guarded.dns), "+tries=1", "+time=30", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    assert dig("+short", "localhost") == "127.0.0.1\n"
    assert dig("+short", f"x.{CANARY}.example") == "127.0.0.1\n"
    assert "status: NXDOMAIN" in dig(f"{CANARY}.invalid")
    assert "status: NXDOMAIN" in dig(f"{CANARY}.onion")
    assert "status: NOTIMP" in dig("localhost", "MX")
    virtual = dig("+short", f"service.{CANARY}")
    assert re.fullmatch(r"127\.(19[2-9]|2\d\d)\.\d+\.\d+\n", virtual)
    assert dig("+short", "-x", virtual.strip()) == f"service.{CANARY}.\n"


def test_basic_is_what_the_password_is_sent_as(guarded: Guarded, pages: Pages) -> None:
    """By hand, byte for byte."""
    login = base64.b64encode(f":{PASSWORD}".encode()).decode()
    with socket.create_connection(("127.0.0.1", guarded.http), 30) as application:
        head = f"GET {pages.url('x')} HTTP/1.0\r\nProxy-Authorization: basic {login}\r\n\r\n"
        application.sendall(head.encode())
        answer = b""
        while data := application.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"roxy" not in answer
