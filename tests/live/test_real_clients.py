"""Programs as people have them, through the SOCKS port and the HTTP proxy.

What they get is whole, the names they ask for are known to the network's processes only, and they talk to nobody but
the proxy.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.web.client import HTTPConnectionPool, readBody
from txtorcon import socks, web

from tests.live import programs
from tests.live.network import Network, start, wait_until
from tests.live.programs import BINARY, BINARY_HASH, NAME, NAME_6, Files

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory, require: Any) -> Iterator[Network]:
    """A network whose processes know the names; this process and the programs do not."""
    require("strace")
    if not programs.can_add_names():
        reason = "libnss-wrapper is not installed; 'make test-deps' installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("named")
    with programs.names_of_the_network(folder):
        made = start(folder / "net")
    assert programs.is_unknown_here(NAME)
    yield made
    made.stop()
    assert made.faults() == []


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    made = Files(tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("keys") / "key.pem")
    yield made
    made.stop()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_look_out_sees_a_look_up(named: Network, tmp_path: Path) -> None:
    if not programs.can_trace():
        pytest.skip("this machine does not let strace watch anything")
    host, _, port = named.socks.partition(":")
    script = f"""
import socket
socket.create_connection(({host!r}, {port}))
try:
    socket.getaddrinfo({NAME!r}, 80)
except OSError:
    pass
"""
    with pytest.raises(AssertionError, match=r"htons|sun_path"):
        programs.run(sys.executable, "-c", script, folder=tmp_path, proxy=named.socks)
    with pytest.raises(AssertionError, match="never connected"):
        programs.run("true", folder=tmp_path, proxy=named.socks)


# curl

CURL = {
    "socks4": ("socks", ["--socks4"], ["127.0.0.1"]),
    "socks4a": ("socks", ["--socks4a"], [NAME]),
    "socks5": ("socks", ["--socks5"], ["127.0.0.1", "[::1]"]),
    "socks5h": ("socks", ["--socks5-hostname"], [NAME, NAME_6, "[::1]"]),
    "http": ("http", ["--proxy"], [NAME, NAME_6, "[::1]"]),
    "connect": ("http", ["--proxytunnel", "--proxy"], [NAME, NAME_6, "[::1]"]),
}


@pytest.mark.parametrize("name", CURL)
def test_curl(named: Network, files: Files, tmp_path: Path, require: Any, name: str) -> None:
    kind, arguments, hosts = CURL[name]
    proxy = getattr(named, kind)
    for host in hosts:
        command = [require("curl"), "-sSgf", *arguments, proxy, files.url("binary", host=host)]
        assert digest(programs.run(*command, folder=tmp_path, proxy=proxy)) == BINARY_HASH


# wget


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_wget(named: Network, files: Files, tmp_path: Path, require: Any, scheme: str) -> None:
    command = [require("wget"), "-q", "-O", "-", "--tries=1", "--no-check-certificate", files.url("binary", scheme)]
    setting = {f"{scheme}_proxy": f"http://{named.http}/"}
    assert digest(programs.run(*command, folder=tmp_path, proxy=named.http, environment=setting)) == BINARY_HASH


# Python's requests

REQUESTS = """
import hashlib, sys, warnings, requests
warnings.simplefilter("ignore")
url, proxy = sys.argv[1:]
with requests.get(url, proxies={"http": proxy, "https": proxy}, verify=False, timeout=30) as answer:
    answer.raise_for_status()
    print(hashlib.sha256(answer.content).hexdigest())
"""


@pytest.mark.parametrize(
    ("scheme", "proxy_scheme"),
    [("http", "socks5h"), ("https", "socks5h"), ("https", "http"), ("http", "http")],
)
def test_requests(named: Network, files: Files, tmp_path: Path, scheme: str, proxy_scheme: str) -> None:
    proxy = named.http if proxy_scheme == "http" else named.socks
    url = files.url("binary", scheme)
    command = [sys.executable, "-c", REQUESTS, url, f"{proxy_scheme}://{proxy}"]
    assert programs.run(*command, folder=tmp_path, proxy=proxy).decode().strip() == BINARY_HASH


# txtorcon


@pytest.mark.filterwarnings("ignore:Using readBody with a transport:DeprecationWarning")
async def test_txtorcon(named: Network, files: Files) -> None:
    """Its web agent, and a bare connection by its SOCKS endpoint."""
    host, _, port = named.socks.partition(":")
    proxy = TCP4ClientEndpoint(reactor, host, int(port))
    agent: Any = web.tor_agent(reactor, proxy, pool=HTTPConnectionPool(reactor, persistent=False))  # type: ignore[no-untyped-call]
    response: Any = await agent.request(b"GET", files.url("binary").encode())
    assert digest(await readBody(response)) == BINARY_HASH
    collected = _Collect()
    endpoint = socks.TorSocksEndpoint(proxy, NAME_6, files.ports["http6"])
    await connectProtocol(endpoint, collected)  # type: ignore[no-untyped-call]
    assert digest((await collected.done).partition(b"\r\n\r\n")[2]) == BINARY_HASH


class _Collect(Protocol):
    """Asks for the file, and gives what came until the other side closed."""

    def __init__(self) -> None:
        self.done: Deferred[bytes] = Deferred()
        self._parts: list[bytes] = []

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"GET /binary HTTP/1.0\r\n\r\n")

    def dataReceived(self, data: bytes) -> None:
        self._parts.append(data)

    def connectionLost(self, reason: object = None) -> None:
        self.done.callback(b"".join(self._parts))


# git


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout


@pytest.fixture(scope="module")
def repository(files: Files, require: Any) -> str:
    """A bare repository in the served folder; its last commit."""
    require("git")
    work = files.folder / "work"
    work.mkdir()
    git(work, "init", "-q")
    for number in range(3):
        (work / f"file{number}").write_bytes(BINARY[: 300_000 * (number + 1)])
        git(work, "add", ".")
        git(work, "commit", "-q", "-m", f"commit {number}")
    git(files.folder, "clone", "-q", "--bare", "work", "repository.git")
    git(files.folder / "repository.git", "update-server-info")
    return git(work, "rev-parse", "HEAD")


@pytest.mark.parametrize("way", ["socks5h", "http"])
def test_git_clones_over_http(named: Network, files: Files, tmp_path: Path, repository: str, way: str) -> None:
    proxy = named.http if way == "http" else named.socks
    setting = f"http.proxy={way}://{proxy}"
    programs.run(
        *("git", "-c", setting, "clone", "-q", files.url("repository.git"), "copy"),
        folder=tmp_path,
        proxy=proxy,
        environment={"GIT_TERMINAL_PROMPT": "0"},
    )
    assert git(tmp_path / "copy", "rev-parse", "HEAD") == repository
    git(tmp_path / "copy", "fsck", "--full", "--strict")
    assert (tmp_path / "copy" / "file2").read_bytes() == BINARY[:900_000]


# ssh


class SshServer:
    """sshd on loopback with keys of its own; our own user may log in with `key`."""

    def __init__(self, folder: Path, require: Any) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # as Debian's service does
        for name in ("host", "user"):
            make = [require("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
            subprocess.run(make, check=True)
        self.key = folder / "user"
        self.host_key = (folder / "host.pub").read_text().strip()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        config = folder / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
            "PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n"
        )
        self._process = subprocess.Popen(
            [require("sshd"), "-D", "-e", "-f", str(config)], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        if not wait_until(self._answers, 10):
            self._process.kill()
            raise AssertionError(f"sshd did not start: {self._process.communicate()[1]!r}")

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=10)


@pytest.fixture(scope="module")
def ssh_server(tmp_path_factory: pytest.TempPathFactory, require: Any) -> Iterator[SshServer]:
    made = SshServer(tmp_path_factory.mktemp("ssh"), require)
    yield made
    made.stop()


def test_ssh(named: Network, ssh_server: SshServer, tmp_path: Path, require: Any) -> None:
    """A host that ssh knows by its key under a name that only the exit can resolve, and a file there and back."""
    (tmp_path / "known").write_text(f"[{NAME}]:{ssh_server.port} {ssh_server.host_key}\n")
    options = {
        "ProxyCommand": f"{require('nc.openbsd')} -X 5 -x {named.socks} %h %p",
        "UserKnownHostsFile": str(tmp_path / "known"),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
    }
    command = ["ssh", "-F", "none", "-T", "-i", str(ssh_server.key), "-p", str(ssh_server.port)]
    command += [f"-o{name}={value}" for name, value in options.items()]
    command += [f"{pwd.getpwuid(os.geteuid()).pw_name}@{NAME}", "cat"]
    assert digest(programs.run(*command, folder=tmp_path, proxy=named.socks, data=BINARY)) == BINARY_HASH


# Chromium

PAGE = """<!DOCTYPE html><title>page</title><body><script>
const request = new XMLHttpRequest();
request.open("GET", "binary", false);
request.overrideMimeType("text/plain; charset=x-user-defined");
request.send();
let sum = 0;
for (let i = 0; i < request.responseText.length; i++)
    sum = (Math.imul(sum, 31) + (request.responseText.charCodeAt(i) & 255)) >>> 0;
document.body.textContent = location.host + " " + request.responseText.length + " " + sum;
</script></body>
"""


def checksum(data: bytes) -> int:
    """What `PAGE` computes."""
    total = 0
    for byte in data:
        total = (total * 31 + byte) & 0xFFFFFFFF
    return total


@pytest.mark.parametrize(
    ("way", "scheme"),
    [("socks5", "http"), ("socks5", "https"), ("http", "https"), ("http", "http")],
)
def test_chromium(named: Network, files: Files, tmp_path: Path, require: Any, way: str, scheme: str) -> None:
    (files.folder / "page.html").write_text(PAGE)
    proxy = named.http if way == "http" else named.socks
    command = [
        *(require("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={tmp_path}/profile", f"--proxy-server={way}://{proxy}", "--proxy-bypass-list=<-loopback>"),
        *("--ignore-certificate-errors", "--dump-dom", files.url("page.html", scheme)),
    ]
    shown = programs.run(*command, folder=tmp_path, proxy=proxy).decode()
    port = files.ports[scheme]
    assert f"<body>{NAME}:{port} {len(BINARY)} {checksum(BINARY)}\n" in shown
