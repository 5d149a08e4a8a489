"""A node for the proxies under test: it opens streams to servers that live in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from backrooms.circuit.events import StreamConnected, StreamEnded
from backrooms.circuit.stream import Stream as CircuitStream
from backrooms.errors import StreamError
from backrooms.node.requests import Answer, StreamRequest
from backrooms.proxy.opener import Opener, Stream
from backrooms.wire.relay import EndReason

OUTPUT_LIMIT = 65536


class FakeStream:
    """A stream whose far end is a `Server`: it connects, sends and ends when the server says so."""

    def __init__(self, server: Server) -> None:
        self.on_dirty: Callable[[], None] | None = None
        self.paused = False
        self.received = bytearray()
        self.eof = False
        self.aborted: int | None = None
        self.ended: int | None = None
        self._server = server
        self._events: list[Any] = []
        self._out = bytearray()

    # towards the proxy

    def receive(self, data: bytes, now: float) -> None:
        assert not self.eof, "data after EOF"
        self.received += data
        self._server.on_data(self, data)

    def receive_eof(self, now: float) -> None:
        assert not self.eof, "EOF twice"
        self.eof = True
        self._server.on_eof(self)

    def events(self) -> list[Any]:
        events, self._events = self._events, []
        return events

    def output(self) -> bytes:
        data = bytes(self._out[:OUTPUT_LIMIT])
        del self._out[:OUTPUT_LIMIT]
        return data

    @property
    def finished(self) -> bool:
        return self.ended is not None and not self._out

    def deadline(self) -> float | None:
        return None

    def tick(self, now: float) -> None:
        raise AssertionError("this stream has no deadline")

    def abort(self, reason: int) -> None:
        self.aborted = reason

    # towards the server

    def connect(self, address: str | None = None) -> None:
        self._tell(StreamConnected(address))

    def send(self, data: bytes) -> None:
        self._out += data
        self._dirty()

    def end(self, reason: int = EndReason.DONE) -> None:
        self.ended = reason
        self._tell(StreamEnded(reason))

    def pause(self, paused: bool) -> None:
        self.paused = paused
        self._dirty()

    def _tell(self, event: object) -> None:
        self._events.append(event)
        self._dirty()

    def _dirty(self) -> None:
        if self.on_dirty is not None:
            self.on_dirty()


class Server:
    """Connects and says nothing."""

    def on_open(self, stream: FakeStream) -> None:
        stream.connect()

    def on_data(self, stream: FakeStream, data: bytes) -> None:
        pass

    def on_eof(self, stream: FakeStream) -> None:
        pass


class Silent(Server):
    """Never connects."""

    def on_open(self, stream: FakeStream) -> None:
        pass


class Echo(Server):
    """Sends back what it gets, and ends when the application does."""

    def on_data(self, stream: FakeStream, data: bytes) -> None:
        stream.send(data)

    def on_eof(self, stream: FakeStream) -> None:
        stream.end()


class Ends(Server):
    """Ends instead of connecting."""

    def __init__(self, reason: int) -> None:
        self.reason = reason

    def on_open(self, stream: FakeStream) -> None:
        stream.end(self.reason)


class Web(Server):
    """Answers every request with `body` and ends."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def on_data(self, stream: FakeStream, data: bytes) -> None:
        if b"\r\n\r\n" in stream.received and stream.ended is None:
            stream.send(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(self.body), self.body))
            stream.end()


class BreaksOff(Server):
    """Sends half an answer, then its circuit dies."""

    def __init__(self, part: bytes) -> None:
        self.part = part

    def on_data(self, stream: FakeStream, data: bytes) -> None:
        if stream.ended is None:
            stream.send(self.part)
            stream.end(EndReason.DESTROY)


class FakeOpener:
    """Opens streams to `servers` by host name; every other name fails to resolve."""

    def __init__(self, **servers: Server) -> None:
        self.servers = {name.replace("_", "."): server for name, server in servers.items()}
        self.requests: list[StreamRequest] = []
        self.streams: list[FakeStream] = []
        self.addresses: dict[str, Sequence[str]] = {}
        self.names: dict[str, Sequence[str]] = {}
        self.hanging: list[Deferred[Any]] = []

    def open(self, request: StreamRequest) -> Stream:
        self.requests.append(request)
        server = self.servers.get(request.host, Ends(EndReason.RESOLVEFAILED))
        stream = FakeStream(server)
        self.streams.append(stream)
        server.on_open(stream)
        return stream

    def resolve(self, request: StreamRequest) -> Deferred[list[Answer]]:
        self.requests.append(request)
        if request.host == "hang.example":
            self.hanging.append(Deferred())
            return self.hanging[-1]
        if request.host not in self.addresses:
            return fail(StreamError(EndReason.RESOLVEFAILED))
        return succeed([Answer(address, 60) for address in self.addresses[request.host]])

    def resolve_ptr(self, request: StreamRequest) -> Deferred[list[Answer]]:
        self.requests.append(request)
        if request.host not in self.names:
            return fail(StreamError(EndReason.RESOLVEFAILED))
        return succeed([Answer(name, 90) for name in self.names[request.host]])


def check_protocols(opener: FakeOpener, stream: FakeStream) -> tuple[Opener, Stream]:
    """The type checker holds that the fakes are what the proxies ask for."""
    return opener, stream


def check_circuit_stream(stream: CircuitStream) -> Stream:
    """The type checker holds that a circuit's stream is one."""
    return stream
