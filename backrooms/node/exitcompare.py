"""The same page through several exits: who shows another one?

The page is the user's choice. `http:` pages are fetched and compared as a whole; of `https:` servers the certificates
are. A page that changes by itself, which is seen by fetching it twice through one exit, proves nothing.
"""

from __future__ import annotations

import hashlib
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import h11
from twisted.internet.defer import Deferred

from backrooms.circuit.stream import Stream
from backrooms.errors import BackroomsError, CircuitError, ConfigError, StreamError
from backrooms.interfaces import Rng
from backrooms.netdir.descriptor import Descriptor
from backrooms.node.circuits import Circuits, ClientCircuit
from backrooms.path.constraints import Target, allows
from backrooms.path.probepaths import ProbePaths
from backrooms.wire.cell import DestroyReason
from backrooms.wire.names import check_host, ip_literal
from backrooms.wire.relay import EndReason

MOST_EXITS = 4
FETCH_TIME = 30.0
"""Seconds for one page."""
MOST_BYTES = 1 << 20
"""Bytes of a page that are looked at; what is behind is not."""


@dataclass(frozen=True, slots=True)
class Url:
    """What to fetch."""

    secure: bool
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Url:
        """`http://HOST[:PORT]/...` or `https://...`; `ConfigError` for everything else."""
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
            if parts.scheme not in ("http", "https") or parts.username is not None or not text.isascii():
                raise ValueError
            if ip_literal(host) is None:
                check_host(host.encode("ascii"))
        except (ValueError, BackroomsError):
            raise ConfigError(
                f"{text!r} is no page to compare: it must be http://HOST/... or https://HOST/..."
            ) from None
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if any(char <= " " or char == "\x7f" for char in path):
            raise ConfigError(f"{text!r} is no page to compare: there is a blank or control character in it")
        secure = parts.scheme == "https"
        return cls(secure, host, port or (443 if secure else 80), path)


class Pipe:
    """Reads and writes a stream by waiting for it."""

    def __init__(self, stream: Stream, circuits: Circuits) -> None:
        self._stream = stream
        self._timers = circuits.timers
        self._end = circuits.timers.now() + FETCH_TIME
        self._wake: Deferred[None] | None = None
        stream.on_dirty = stream.on_change = self._changed

    def _changed(self) -> None:
        waiting, self._wake = self._wake, None
        if waiting is not None:
            waiting.callback(None)

    async def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._wake = Deferred()
            alarm = self._timers.at(self._end, self._changed)
            try:
                await self._wake
            finally:
                alarm.cancel()
            if self._timers.now() >= self._end and not done():
                raise StreamError(EndReason.TIMEOUT, "no answer in time")

    async def connected(self) -> None:
        """Wait for the exit to connect."""
        stream = self._stream
        await self._until(lambda: stream.connected or stream.closed)
        if not stream.connected:
            reason = stream.ended or EndReason.MISC
            raise StreamError(reason, f"the exit did not connect: {_name(reason)}")

    def write(self, data: bytes) -> None:
        self._stream.receive(data, self._timers.now())

    async def read(self) -> bytes:
        """What comes next; nothing at the end."""
        got: list[bytes] = []

        def more() -> bool:
            data = self._stream.output()
            got.append(data)
            return bool(data) or self._stream.finished or self._stream.closed

        await self._until(more)
        return got[-1]


def _name(reason: int) -> str:
    try:
        return EndReason(reason).name
    except ValueError:
        return f"reason {reason}"


class ExitComparison:
    """Fetches a page through some exits, each over a circuit of its own."""

    def __init__(self, url: str, exits: Sequence[Descriptor], paths: ProbePaths, circuits: Circuits, rng: Rng) -> None:
        """`exits` that refuse the page are left out, and so are those beyond `MOST_EXITS`."""
        self.url = Url.parse(url)
        target = Target(self.url.host, self.url.port)
        willing = sorted((one for one in exits if allows(one, target)), key=lambda _: rng.random())
        self._text = url
        self._exits = willing[:MOST_EXITS]
        self._paths = paths
        self._circuits = circuits
        self._rng = rng
        self._seen: list[tuple[Descriptor, str, str]] = []
        """Exit, what it showed (a digest with words), or an error."""
        self._over = False

    async def run(self) -> None:
        """Ask one exit after the other, the first one twice."""
        for relay in (*self._exits, *self._exits[:1]):
            try:
                self._seen.append((relay, await self._look(relay), ""))
            except (BackroomsError, ssl.SSLError, h11.ProtocolError) as error:
                self._seen.append((relay, "", str(error)))
        self._over = True

    async def _look(self, relay: Descriptor) -> str:
        level = self._circuits.options.level
        path = self._paths.ending(relay.id, max(2, level.hops), self._rng)
        if path is None:
            raise CircuitError("no path to this exit")
        circuit: ClientCircuit = await self._circuits.build(level, path)
        stream = Stream()
        try:
            assert circuit.machine is not None
            pipe = Pipe(stream, self._circuits)
            circuit.machine.begin(stream, self.url.host, self.url.port)
            await pipe.connected()
            return await (self._certificate(pipe) if self.url.secure else self._page(pipe))
        finally:
            stream.on_dirty = stream.on_change = None
            stream.abort(EndReason.MISC)
            circuit.end(DestroyReason.FINISHED)

    async def _page(self, pipe: Pipe) -> str:
        url = self.url
        host = f"[{url.host}]" if ":" in url.host else url.host
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=65536)
        headers = [("Host", f"{host}:{url.port}" if url.port != 80 else host), ("Connection", "close")]
        pipe.write(http.send(h11.Request(method="GET", target=url.path, headers=headers)) or b"")
        http.send(h11.EndOfMessage())
        digest, size, status = hashlib.sha256(), 0, 0
        while size < MOST_BYTES:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await pipe.read())
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                data = bytes(event.data)[: MOST_BYTES - size]
                digest.update(data)
                size += len(data)
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                break
        return f"status {status}, {size} bytes, SHA-256 {digest.hexdigest()}"

    async def _certificate(self, pipe: Pipe) -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # what is shown is compared, not believed
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = self.url.host if ip_literal(self.url.host) is None else None
        tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                pipe.write(outgoing.read())
                data = await pipe.read()
                if not data:
                    raise StreamError(EndReason.CONNRESET, "the connection ended in the TLS handshake") from None
                incoming.write(data)
        return f"certificate with SHA-256 {hashlib.sha256(tls.getpeercert(True) or b'').hexdigest()}"

    # what it shows

    def report(self) -> dict[str, Any]:
        """Each look with what was shown, and what that means."""
        looks = [
            {"fingerprint": relay.fingerprint, "nickname": relay.nickname, "shown": shown, "error": error}
            for relay, shown, error in self._seen
        ]
        return {"url": self._text, "looks": looks, "verdict": self.verdict()}

    def verdict(self) -> str:
        """In plain words."""
        if not self._over:
            return "not done yet"
        if len(self._exits) < 2:
            return f"{len(self._exits)} exits allow it: two are needed to compare"
        *first, again = self._seen
        shown = [(relay, what) for relay, what, _ in first if what]
        if len(shown) < 2:
            return "fewer than two exits showed it"
        kinds = Counter(what for _, what in shown)
        if len(kinds) == 1:
            return f"the same through {len(shown)} exits"
        if self._seen[0][1] and again[1] and self._seen[0][1] != again[1]:
            return "it changes by itself: it was not the same twice through one exit"
        (usual, most), *others = kinds.most_common()
        if most == max(count for _, count in others):
            return "exits differ, and it cannot be told which of them is wrong"
        wrong = ", ".join(sorted(relay.nickname for relay, what in shown if what != usual))
        return f"not the same as through the others by {wrong}"
