"""What the tests fetch through the network: a web server on loopback, IPv4, IPv6 and TLS."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests import keys

BLOCK = hashlib.shake_128(b"what the server has").digest(1 << 20)
"""A mebibyte; bodies are repetitions of it."""


def body_hash(size: int) -> str:
    """SHA-256 of the server's body of `size` bytes."""
    digest = hashlib.sha256()
    for start in range(0, size, len(BLOCK)):
        digest.update(BLOCK[: size - start])
    return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30  # of a client that is gone without a word

    def do_GET(self) -> None:
        """`/N` is a body of N bytes.

        `/slow` is one that goes on for minutes, `/steady` one that takes three seconds, any other path is its own body.
        """
        path = self.path[1:]
        if path.isdigit():
            self._body(int(path))
        elif path == "slow":
            self._slowly(12_000, 4096)
        elif path == "steady":
            self._slowly(60, 65_536)
        else:
            self._reply(self.path.encode())

    def _body(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for start in range(0, size, len(BLOCK)):
            self.wfile.write(BLOCK[: size - start])

    def _slowly(self, times: int, size: int) -> None:
        """So many bytes every 50 ms."""
        self.send_response(200)
        self.send_header("Content-Length", str(times * size))
        self.end_headers()
        site: Any = self.server
        while times and not site.stopping.wait(0.05):
            self.wfile.write(BLOCK[:size])
            times -= 1

    def do_PUT(self) -> None:
        """Answers with the SHA-256 of what it was sent."""
        left = int(self.headers["Content-Length"])
        digest = hashlib.sha256()
        while left:
            data = self.rfile.read(min(left, 1 << 20))
            if not data:
                return
            digest.update(data)
            left -= len(data)
        self._reply(digest.hexdigest().encode())

    def _reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests are not interested."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, tls: ssl.SSLContext | None = None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.stopping = threading.Event()
        self._tls = tls
        super().__init__((host, 0), _Handler)

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away in the middle are what half of the tests are about."""


class Site:
    """The servers; `ports` by name: "http" on 127.0.0.1, "http6" on ::1, "https"."""

    def __init__(self, folder: Path) -> None:
        key, certificate = keys.tls_pair(0)
        pem = folder / "site.pem"
        pem.write_bytes(key + certificate)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(pem)
        servers = {"http": _Server("127.0.0.1"), "http6": _Server("::1"), "https": _Server("127.0.0.1", tls)}
        self.ports = {name: server.server_address[1] for name, server in servers.items()}
        self._servers = list(servers.values())
        for server in self._servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def url(self, path: str, host: str = "localhost") -> str:
        """An address on the plain IPv4 server."""
        return f"http://{host}:{self.ports['http']}/{path}"

    def stop(self) -> None:
        for server in self._servers:
            server.stopping.set()
            server.shutdown()
            server.server_close()
