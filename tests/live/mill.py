"""Mixed load for a long time: what applications do to a client, and a count of what went wrong."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable

from bench.flood.honest import read_exactly
from tests.live.site import BLOCK, Site, body_hash

PATIENCE = 30.0
BULK = 20 << 20
UPLOAD = 5 << 20


class Refused(OSError):
    """SOCKS said no."""


class Mill:
    """Threads that each do one kind of thing over and over. `done` and `failed` count by kind."""

    def __init__(self, socks: str, site: Site) -> None:
        host, _, port = socks.partition(":")
        self._socks = (host, int(port))
        self._site = site
        self._rng = random.Random(1)
        self._stopping = threading.Event()
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.wrong: list[str] = []
        """Answers that came whole but were not what the server has."""
        kinds: list[tuple[Callable[[], None], float, int]] = [
            (self.page, 0.1, 2),
            (self.bulk, 1.0, 2),
            (self.upload, 1.0, 1),
            (self.abandon, 0.5, 1),
            (self.resolve, 0.5, 1),
            (self.nobody, 1.0, 1),
            (self.burst, 5.0, 1),
        ]
        self._threads = [
            threading.Thread(target=self._run, args=(work, pause), daemon=True)
            for work, pause, count in kinds
            for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every thread finish what it does."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)

    def _run(self, work: Callable[[], None], pause: float) -> None:
        while not self._stopping.wait(pause):
            try:
                work()
                self.done[work.__name__] += 1
            except OSError:
                self.failed[work.__name__] += 1

    def _open(self, port: int, command: int = 1, host: bytes = b"localhost") -> socket.socket:
        """A stream, on one of a few circuits."""
        one = socket.create_connection(self._socks, timeout=PATIENCE)
        try:
            user = b"user%d" % self._rng.randrange(6)
            one.sendall(b"\x05\x01\x02\x01" + bytes([len(user)]) + user + b"\x01x")
            read_exactly(one, 4)
            one.sendall(bytes([5, command, 0, 3, len(host)]) + host + struct.pack(">H", port))
            answer = read_exactly(one, 4)
            if answer[1]:
                raise Refused(answer[1])
            read_exactly(one, {1: 6, 4: 18}[answer[3]])
        except BaseException:
            one.close()
            raise
        return one

    def _get(self, path: str, limit: int | None = None) -> bytes:
        """The hash of a body, or of its beginning."""
        with self._open(self._site.ports["http"]) as one:
            one.sendall(f"GET /{path} HTTP/1.0\r\n\r\n".encode())
            return _body(one, limit)

    def _check(self, what: str, got: bytes, expected: str) -> None:
        if got.hex() != expected:
            self.wrong.append(what)

    def page(self) -> None:
        """A small page."""
        self._check("page", self._get("4000"), body_hash(4000))

    def bulk(self) -> None:
        """A download that takes a while."""
        self._check("bulk", self._get(str(BULK)), body_hash(BULK))

    def abandon(self) -> None:
        """A download that the application gives up."""
        self._get(str(BULK), limit=300_000)

    def upload(self) -> None:
        """A PUT; the server answers with the hash of what it got."""
        with self._open(self._site.ports["http"]) as one:
            one.sendall(b"PUT /x HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % UPLOAD)
            for start in range(0, UPLOAD, len(BLOCK)):
                one.sendall(BLOCK[: UPLOAD - start])
            answer = _everything(one)
        self._check("upload", bytes.fromhex(answer.rpartition(b"\r\n\r\n")[2].decode()), body_hash(UPLOAD))

    def resolve(self) -> None:
        """A look-up at the exit."""
        self._open(0, command=0xF0).close()

    def nobody(self) -> None:
        """A port that nobody listens on: being refused is what should happen."""
        try:
            self._open(1).close()
        except Refused:
            return
        self.wrong.append("somebody listens on port 1")

    def burst(self) -> None:
        """Many streams at once."""
        streams: list[socket.socket] = []
        try:
            for _ in range(40):
                streams.append(self._open(self._site.ports["http"]))
            for one in streams:
                one.sendall(b"GET /1000 HTTP/1.0\r\n\r\n")
            for one in streams:
                self._check("burst", _body(one, None), body_hash(1000))
        finally:
            for one in streams:
                one.close()


def _everything(one: socket.socket) -> bytes:
    parts = []
    while piece := one.recv(65536):
        parts.append(piece)
    return b"".join(parts)


def _body(one: socket.socket, limit: int | None) -> bytes:
    """SHA-256 of the body; a body that is shorter than announced is an error."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = one.recv(65536)
        if not piece:
            raise ConnectionError("closed early")
        head += piece
    head, _, rest = head.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    size, digest = len(rest), hashlib.sha256(rest)
    while size < length and (limit is None or size < limit):
        piece = one.recv(262144)
        if not piece:
            raise ConnectionError("closed early")
        size += len(piece)
        digest.update(piece)
    return digest.digest()
