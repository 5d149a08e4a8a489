"""The server behind the exit: `GET /N` gets N bytes; a PUT or POST is read and answered with its length.

Runs as a process of its own (`python -m bench.sink`), prints its port as its first line, and ends with its
standard input, so that it never outlives the benchmark.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass

CHUNK = 1 << 20
ZEROS = bytes(CHUNK)
MAX_HEADER = 65536


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked: bytes it wants (`GET /N`) and bytes it sends (Content-Length)."""

    method: str
    wanted: int
    length: int
    expects_continue: bool


def parse_request(head: bytes) -> Request:
    """The header of an HTTP/1.1 request, its blank line excluded; ValueError when it is not one we serve."""
    lines = head.decode("latin-1").split("\r\n")
    match = re.fullmatch(r"(GET|PUT|POST) (?:http://[^/ ]+)?/([0-9]*)\S* HTTP/1\.[01]", lines[0])
    if match is None:
        raise ValueError(f"not a request for the sink: {lines[0]!r}")
    headers = {key.strip().lower(): value.strip() for key, _, value in (x.partition(":") for x in lines[1:])}
    return Request(
        match[1],
        int(match[2] or 0),
        int(headers.get("content-length", 0)),
        headers.get("expect", "").lower() == "100-continue",
    )


def response_head(length: int, status: str = "200 OK") -> bytes:
    """The header of a reply of `length` bytes."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n".encode()


def serve(connection: socket.socket) -> None:
    """Answer one request and close."""
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = b""
        while b"\r\n\r\n" not in data:
            received = connection.recv(65536)
            if not received or len(data) > MAX_HEADER:
                return
            data += received
        head, _, rest = data.partition(b"\r\n\r\n")
        try:
            request = parse_request(head)
        except ValueError:
            connection.sendall(response_head(0, "400 Bad Request"))
            return
        if request.method == "GET":
            send_zeros(connection, request.wanted)
        else:
            if request.expects_continue:
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = str(len(rest) + swallow(connection, request.length - len(rest))).encode()
            connection.sendall(response_head(len(body)) + body)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # wait for the other side to close, or unread bytes would reset the connection


def send_zeros(connection: socket.socket, count: int) -> None:
    """A reply of `count` zero bytes, header and first bytes in one segment."""
    connection.sendall(response_head(count) + ZEROS[: min(count, 1024)])
    count -= min(count, 1024)
    view = memoryview(ZEROS)
    while count > 0:
        connection.sendall(view[: min(count, CHUNK)])
        count -= CHUNK


def swallow(connection: socket.socket, count: int) -> int:
    """Read up to `count` bytes; how many came before the other side closed."""
    buffer = bytearray(CHUNK)
    left = count
    while left > 0 and (size := connection.recv_into(buffer, min(left, CHUNK))):
        left -= size
    return count - max(left, 0)


def serve_quietly(connection: socket.socket) -> None:
    """`serve`; a client that goes away is not worth a traceback."""
    try:
        serve(connection)
    except OSError:
        pass


def run() -> None:
    """Serve on a free loopback port until standard input ends."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as server:
        print(server.getsockname()[1], flush=True)
        threading.Thread(target=_end_with_stdin, daemon=True).start()
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve_quietly, args=(connection,), daemon=True).start()


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


class Sink:
    """The sink as a child process; use it as a context manager."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.sink"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is handled by the parent, in its own order
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the sink did not start (exit code {self.process.wait()})")
        self.port = int(line)

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


if __name__ == "__main__":
    run()
