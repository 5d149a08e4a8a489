"""Other people's programs through a network of real processes, and what they say to anybody else meanwhile."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests import keys
from tests.live.site import BLOCK

NAME, NAME_6 = "page.backrooms.test", "page6.backrooms.test"
"""Host names of 127.0.0.1 and ::1 that nobody knows but the processes of the network."""
_ADD_NAMES = {"LD_PRELOAD": "libnss_wrapper.so"}
BINARY = BLOCK * 3 + b"end"
BINARY_HASH = hashlib.sha256(BINARY).hexdigest()

# A connection of TCP, or a connected socket of UDP, as strace shows it.
_CONNECT = re.compile(
    r"connect\(\d+<(\w+)[^>]*>, \{sa_family=AF_INET6?, sin6?_port=htons\((\d+)\),.*?\"([0-9a-f.:]+)\""
)
_UDP_SENT = re.compile(r"send\w*\(\d+<UDP")
# Services of the machine that resolve names for others.
_RESOLVER = re.compile(r"connect\(.*sun_path=\"[^\"]*(?:systemd.resolve|avahi)")
_DNS_PORT = "53"
_ROUTE_PROBE = "2001:4860:4860::8888"
"""An address that Chromium connects a socket of UDP to, without sending, to see whether there is IPv6."""


def can_add_names() -> bool:
    """Whether libnss-wrapper is installed; the loader complains of what it cannot find, and goes on."""
    return not subprocess.run(["true"], env={**os.environ, **_ADD_NAMES}, capture_output=True, check=True).stderr


@contextmanager
def names_of_the_network(folder: Path) -> Iterator[None]:
    """While this lasts, processes that are started know `NAME` and `NAME_6`."""
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 {NAME}\n::1 {NAME_6}\n")
    added = {**_ADD_NAMES, "NSS_WRAPPER_HOSTS": str(hosts)}
    assert not added.keys() & os.environ.keys()
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def is_unknown_here(name: str) -> bool:
    """Whether this machine's resolver does not know a name."""
    try:
        socket.getaddrinfo(name, 80)
    except OSError:
        return True
    return False


@functools.cache
def can_trace() -> bool:
    """Whether this machine lets one process watch another; some containers do not."""
    return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0


def run(
    *command: str | Path,
    folder: Path,
    proxy: str,
    seconds: float = 60,
    data: bytes | None = None,
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """What a program prints on its standard output. It must succeed, connect to `proxy` alone, and send no UDP.

    Where nothing can be traced, only the first is seen.
    """
    trace = folder / "trace"
    watch = ["strace", "-f", "-qq", "-yy", "--seccomp-bpf", "-o", str(trace)]
    watch += ["-e", "trace=connect,sendto,sendmsg,sendmmsg", "-e", "signal=none"]
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [*watch, "--", *map(str, command)] if can_trace() else [*map(str, command)],
        input=data,
        capture_output=True,
        timeout=seconds,
        env={**inherited, "HOME": str(folder), **(environment or {})},
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]!r} {done.stderr[-4000:]!r}"
    found = strays(trace.read_text(errors="replace"), proxy) if can_trace() else []
    assert not found, "\n".join(found)
    return done.stdout


def strays(trace: str, proxy: str) -> list[str]:
    """Lines of a trace that show something on the way to anybody but `proxy`."""
    host, _, port = proxy.partition(":")
    found = []
    through_proxy = False
    for line in trace.splitlines():
        if _UDP_SENT.search(line) or _RESOLVER.search(line):
            found.append(line)
        elif match := _CONNECT.search(line):
            kind, to_port, to_host = match.groups()
            if (to_host, to_port) == (host, port):
                through_proxy = True
            elif not kind.startswith("UDP") or (to_port == _DNS_PORT and to_host != _ROUTE_PROBE):
                # Any other socket of UDP that only connects has asked for the way there, and said nothing.
                found.append(line)
    return found if through_proxy else [*found, "it never connected to the proxy"]


class _Handler(SimpleHTTPRequestHandler):
    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:
        """Tests are not interested."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), functools.partial(_Handler, directory=str(folder)))
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of clients that go away in the middle."""


class Files:
    """Serves a folder; `ports` by name: "http" on 127.0.0.1, "http6" on ::1, "https" on 127.0.0.1."""

    def __init__(self, folder: Path, pem: Path) -> None:
        self.folder = folder
        pem.write_bytes(b"".join(keys.tls_pair(0)))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(pem)
        servers = {
            "http": _Server("127.0.0.1", folder),
            "http6": _Server("::1", folder),
            "https": _Server("127.0.0.1", folder, tls),
        }
        self.ports = {name: server.server_address[1] for name, server in servers.items()}
        self._servers = list(servers.values())
        for server in self._servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        (folder / "binary").write_bytes(BINARY)

    def url(self, path: str, scheme: str = "http", host: str = NAME) -> str:
        """An address that only the network can resolve, unless `host` is another one."""
        server = "http6" if scheme == "http" and (host == NAME_6 or ":" in host) else scheme
        return f"{scheme}://{host}:{self.ports[server]}/{path}"

    def stop(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
