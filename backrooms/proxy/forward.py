"""Plain HTTP through the proxy: `GET http://...`, one request after the other on an application's connection. Pure.

Requests are parsed one at a time; what an application sends ahead waits, and above a limit it is not read. An answer is
passed on as it comes. The stream of the last request is used again for a next one to the same place, if that may be
sent twice without harm: the server may have closed it meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from backrooms.errors import WireError
from backrooms.node.requests import StreamRequest
from backrooms.proxy.body import LAST_CHUNK, Chunked, Endless, chunks
from backrooms.proxy.events import Event, HandOver, Limits, State
from backrooms.proxy.http import MAX_HEAD, failure, response
from backrooms.proxy.message import Answer, PlainRequest, is_forwarded, read_answer, read_request
from backrooms.proxy.opener import Stream
from backrooms.proxy.request import Request, RequestRefused
from backrooms.proxy.tunnel import Tunnel
from backrooms.wire.relay import EndReason

_END_OF_HEAD = re.compile(rb"\n\r?\n")
_TOKEN_START = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]")


@dataclass(slots=True)
class Exchange:
    """A request that was sent, and its answer as far as it has come."""

    plain: PlainRequest
    planned: StreamRequest
    reused: bool
    """Whether it went into a stream that had carried others before."""
    answer: Answer | None = None
    """The final head, once it is here."""
    heard: bool = False
    """Whether the server has said anything."""
    rest: bytes = field(default=b"", repr=False)
    """What came with the head and is not passed on yet."""
    ended: int | None = None
    """The `EndReason` of the stream."""


class ForwardSession(Tunnel):
    """A Machine (`interfaces.Machine`) that forwards requests in absolute form.

    What is none (CONNECT, or a request to the proxy itself) it hands over: `HandOver`, after which it is done. With a
    `password` only requests are served that show it. `let_go` gets a stream that has done its work: the server has not
    closed it yet, and a reset would be rude.
    """

    def __init__(
        self,
        plan: Callable[[Request], StreamRequest],
        open_stream: Callable[[StreamRequest], Stream],
        let_go: Callable[[Stream], None],
        now: float,
        limits: Limits | None = None,
        password: bytes = b"",
    ) -> None:
        super().__init__(plan, open_stream, now, limits)
        self._let_go = let_go
        self._password = password
        self._buffer = bytearray()
        """What the application sent and nobody has taken yet."""
        self._searched = 0
        self._served = False
        self._look_ahead = False
        """Whether the buffer may have another request."""
        self._exchange: Exchange | None = None
        self._idle_for: StreamRequest | None = None
        """Where the stream leads if it is one that the last exchange left."""

    # From the application

    def receive(self, data: bytes, now: float) -> None:
        self._now = now
        exchange = self._exchange
        if self.state is State.TUNNEL and self._stream is not None:
            self._stream.receive(data, now)
            if self._write_closed:
                self._limit = now + self._limits.half_closed
        elif self.state is State.ANSWER and exchange is not None:
            # The buffer is empty as long as the body is not whole.
            self._buffer += data if exchange.plain.body.done else self._send_body(exchange, data)
        elif self.state is State.REQUEST:
            self._buffer += data
            self._next_request()
        self._start_wait(now)

    def _end_of_application(self, stream: Stream, now: float) -> None:
        exchange = self._exchange
        if exchange is None:
            super()._end_of_application(stream, now)
        elif not exchange.plain.body.done:
            self._close()  # half a request; `lost` tells the server

    def _next_request(self) -> None:
        """Serve the request at the head of the buffer, if it is complete."""
        buffer = self._buffer
        if self._served and not self._searched:
            buffer[:] = buffer.lstrip(b"\r\n")  # some applications send an empty line behind a body
        if not buffer:
            return
        end = _END_OF_HEAD.search(buffer, max(0, self._searched - 2), MAX_HEAD)
        if end is None and len(buffer) < MAX_HEAD and _TOKEN_START.match(buffer):
            if self._served and not self._searched:
                self._set_wait(self._limits.request)
            self._searched = len(buffer)
            return
        self._searched = 0
        if end is None or not is_forwarded(buffer):
            self._hand_over()
            return
        head = bytes(buffer[: end.end()])
        del buffer[: end.end()]
        self._served = True
        try:
            plain = read_request(head, self._password)
        except RequestRefused as refusal:
            self._refuse(refusal.reason, refusal.reply)
        else:
            self._serve(plain)

    def _hand_over(self) -> None:
        self._release_stream()
        self._pause(False)
        self.state = State.CLOSED
        self._limit = self._wait = None
        self._events.append(HandOver(bytes(self._buffer)))
        self._buffer.clear()

    def _serve(self, plain: PlainRequest) -> None:
        planned = self._planned(plain.request)
        if planned is None:
            return
        self.state = State.ANSWER
        reused = self._is_idle_for(planned, plain)
        exchange = self._exchange = Exchange(plain, planned, reused)
        if reused:
            self._idle_for = None
            self._set_wait(None)
            self._send_head(exchange)
        else:
            self._release_stream()
            self._open_for(exchange)
        if self._buffer and not plain.body.done:
            data = bytes(self._buffer)
            self._buffer.clear()
            self._buffer += self._send_body(exchange, data)

    def _is_idle_for(self, planned: StreamRequest, plain: PlainRequest) -> bool:
        """Whether the stream that the last exchange left is good for this one."""
        stream = self._stream
        if stream is None or self._idle_for != planned or not plain.repeatable:
            return False
        return not stream.finished and not stream.output()

    def _open_for(self, exchange: Exchange) -> None:
        """Send the request into a stream of its own."""
        self._set_wait(self._limits.answer)
        if self._opened(exchange.planned) is not None:
            self._send_head(exchange)

    def _send_head(self, exchange: Exchange) -> None:
        if self._stream is not None:
            self._stream.receive(exchange.plain.head, self._now)

    def _send_body(self, exchange: Exchange, data: bytes) -> bytes:
        """Pass on what belongs to the request's body; returns what lies behind its end."""
        stream, body = self._stream, exchange.plain.body
        if stream is None:
            return b""
        try:
            payload, rest = body.take(data)
        except WireError as error:
            if exchange.answer is None:
                self._refuse(error.reason, response(HTTPStatus.BAD_REQUEST, error.reason))
            else:
                self._break(EndReason.TORPROTOCOL)
            return b""
        if isinstance(body, Chunked):
            for chunk in chunks(payload):
                stream.receive(chunk, self._now)
            if body.done:
                stream.receive(LAST_CHUNK, self._now)
        elif payload:
            stream.receive(payload, self._now)
        return rest

    # From the node

    def lost(self) -> None:
        if self._idle_for is not None:
            self._release_stream()
        super().lost()

    def _connected(self) -> None:
        if self.state is State.ANSWER:
            self._set_wait(None)

    def _ended(self, stream: Stream, reason: int) -> None:
        if self._exchange is not None:
            self._exchange.ended = reason  # what came before is passed on first
        elif self._idle_for is not None:
            self._release_stream()
        else:
            super()._ended(stream, reason)

    def _release_stream(self) -> None:
        """Give up a stream on which all has been said."""
        stream, self._stream = self._stream, None
        self._idle_for = None
        if stream is not None:
            stream.on_dirty = None
            self._let_go(stream)

    # To the application

    def events(self) -> list[Event]:
        if self._look_ahead and self.state is State.REQUEST:
            self._look_ahead = False
            self._next_request()
        if self._stream is None:
            self._pause(False)
        return super().events()

    def _has_to_wait(self, stream: Stream) -> bool:
        exchange = self._exchange
        if exchange is None:
            return super()._has_to_wait(stream)
        return stream.paused if not exchange.plain.body.done else len(self._buffer) >= MAX_HEAD

    def output(self) -> bytes:
        while not self._replies and self.state is State.ANSWER:
            exchange = self._exchange
            if exchange is None or self._stream is None:
                break
            data, exchange.rest = exchange.rest or self._stream.output(), b""
            if data:
                out = self._pass_on(exchange, data)
            elif exchange.ended is not None:
                out = self._server_ended(exchange, exchange.ended)
            else:
                return b""
            if out:
                return out
        return super().output()

    def _pass_on(self, exchange: Exchange, data: bytes) -> bytes:
        exchange.heard = True
        answer = exchange.answer
        if answer is None or answer.body is None:
            return self._read_head(exchange, data)
        try:
            payload, rest = answer.body.take(data)
        except WireError:
            self._break(EndReason.TORPROTOCOL)
            return b""
        if answer.in_chunks:
            pieces = [*chunks(payload), *([LAST_CHUNK] if answer.body.done else [])]
            payload, self._replies = b"".join(pieces[:1]), b"".join(pieces[1:])
        if answer.body.done:
            self._finish(exchange, answer, rest)
        return payload

    def _read_head(self, exchange: Exchange, data: bytes) -> bytes:
        heads = b""
        while True:
            try:
                answer = read_answer(exchange.plain, data, self._read_eof or not exchange.plain.body.done)
            except WireError as error:
                self._refuse(error.reason, response(HTTPStatus.BAD_GATEWAY, error.reason))
                return heads
            if answer is None:
                return heads
            heads += answer.head
            data = b""
            if answer.switched:
                self._switch(answer)
                return heads
            if answer.body is not None:
                break
        exchange.answer = answer
        exchange.rest = answer.rest
        if answer.body.done:
            self._finish(exchange, answer, answer.rest)
        return heads

    def _switch(self, answer: Answer) -> None:
        """Both sides have agreed on another protocol: from here on it is a tunnel."""
        self._exchange = None
        self.state = State.TUNNEL
        self._replies = answer.rest
        if self._buffer and self._stream is not None:
            self._stream.receive(bytes(self._buffer), self._now)
            self._buffer.clear()

    def _server_ended(self, exchange: Exchange, reason: int) -> bytes:
        """The stream has ended, and all that came of it has been taken."""
        answer = exchange.answer
        if answer is None:
            if exchange.reused and not exchange.heard:
                # The server closed it while the request was on its way, as it may.
                exchange.reused, exchange.ended = False, None
                self._drop_stream(abort=False)
                self._open_for(exchange)
            else:
                self.failed(reason)
            return b""
        if isinstance(answer.body, Endless) and reason == EndReason.DONE:
            self._finish(exchange, answer, b"")
            return LAST_CHUNK if answer.in_chunks else b""
        self._break(reason)
        return b""

    def _finish(self, exchange: Exchange, answer: Answer, rest: bytes) -> None:
        """The answer is whole."""
        self._exchange = None
        if not exchange.plain.body.done:
            self._drop_stream()
        elif answer.reusable and not rest and exchange.ended is None:
            self._idle_for = exchange.planned
        else:
            self._release_stream()
        if answer.close or self._read_eof:
            self._linger()
            return
        self.state = State.REQUEST
        self._look_ahead = True
        self._set_wait(self._limits.idle)
        self._dirty()

    def _break(self, reason: int) -> None:
        """The answer will not be whole: nothing but a reset tells the application, too."""
        self._exchange = None
        self._broken = reason
        self._abort()

    def _linger(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            self._release_stream()
        else:
            self._drop_stream()
        super()._linger()

    def _late(self) -> None:
        if self._served and not self._buffer:
            self._release_stream()
            self._close()
        else:
            super()._late()

    # What is said

    def _failure(self, reason: int) -> bytes:
        return failure(reason)

    def _refusal(self, text: str) -> bytes:
        return response(HTTPStatus.BAD_REQUEST, text)

    def _lateness(self) -> bytes:
        return response(HTTPStatus.REQUEST_TIMEOUT, "the request did not come in time")
