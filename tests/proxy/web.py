"""A small web server behind a fake stream, strict as h11 is."""

from __future__ import annotations

import hashlib

import h11

from tests.proxy.fakes import FakeStream, Server


class Website(Server):
    """Answers GET with the path, `/close` without saying how long it is; other methods with the hash of the body.

    `requests` are those that came, with their headers.
    """

    def __init__(self) -> None:
        self.requests: list[h11.Request] = []
        self.connections = 0
        self._states: dict[FakeStream, h11.Connection] = {}
        self._digests: dict[FakeStream, hashlib._Hash] = {}

    def on_open(self, stream: FakeStream) -> None:
        self._states[stream] = h11.Connection(h11.SERVER)
        self.connections += 1
        stream.connect()

    def on_data(self, stream: FakeStream, data: bytes) -> None:
        stream.received.clear()
        state = self._states[stream]
        state.receive_data(data)
        while (event := state.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            self._take(stream, state, event)

    def on_eof(self, stream: FakeStream) -> None:
        if stream.ended is None:
            stream.end()

    def _take(self, stream: FakeStream, state: h11.Connection, event: object) -> None:
        if isinstance(event, h11.Request):
            self.requests.append(event)
            self._digests[stream] = hashlib.sha256()
            if state.they_are_waiting_for_100_continue:
                self._say(stream, state, h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        elif isinstance(event, h11.Data):
            self._digests[stream].update(event.data)
        elif isinstance(event, h11.EndOfMessage):
            self._answer(stream, state, self.requests[-1])

    def _answer(self, stream: FakeStream, state: h11.Connection, request: h11.Request) -> None:
        body = request.target if request.method == b"GET" else self._digests[stream].hexdigest().encode()
        if request.target == b"/close":
            stream.send(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
            stream.end()
            return
        length = [("Content-Length", str(len(body)))]
        headers = length if request.target != b"/chunks" else [("Transfer-Encoding", "chunked")]
        self._say(stream, state, h11.Response(status_code=200, headers=headers, reason=b"OK"))
        if request.method != b"HEAD":
            self._say(stream, state, h11.Data(data=body))
        self._say(stream, state, h11.EndOfMessage())
        if state.our_state is h11.MUST_CLOSE:
            stream.end()
        else:
            state.start_next_cycle()

    def _say(self, stream: FakeStream, state: h11.Connection, event: h11.Event) -> None:
        stream.send(state.send(event) or b"")
