"""One connection of an application to a local proxy: its one request, then the tunnel. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backrooms.node.requests import StreamRequest
from backrooms.proxy.events import Limits, LookUp, State
from backrooms.proxy.opener import Stream
from backrooms.proxy.request import Dialect, Request, RequestRefused
from backrooms.proxy.tunnel import Tunnel
from backrooms.wire.names import ip_literal
from backrooms.wire.relay import EndReason

__all__ = ["ProxySession", "State"]


class ProxySession(Tunnel):
    """A Machine (`interfaces.Machine`) that speaks `dialect` to an application."""

    def __init__(
        self,
        dialect: Dialect,
        plan: Callable[[Request], StreamRequest],
        open_stream: Callable[[StreamRequest], Stream],
        now: float,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(plan, open_stream, now, limits)
        self._dialect = dialect

    # From the application

    def receive(self, data: bytes, now: float) -> None:
        self._now = now
        stream = self._stream
        if stream is not None and self.state in (State.ANSWER, State.TUNNEL):
            stream.receive(data, now)
            if self._write_closed:
                self._limit = now + self._limits.half_closed
        elif self.state is State.REQUEST:
            try:
                request = self._dialect.receive(data)
            except RequestRefused as refusal:
                self._refuse(refusal.reason, self._dialect.output() + refusal.reply)
            else:
                self._replies += self._dialect.output()
                if request is not None:
                    self._serve(request, now)
        self._start_wait(now)

    def _serve(self, request: Request, now: float) -> None:
        planned = self._planned(request)
        if planned is None:
            return
        self.state = State.ANSWER
        self._limit = now + self._limits.answer
        if request.kind == "connect":
            stream = self._opened(planned)
            if stream is not None and self._dialect.early:
                stream.receive(self._dialect.early, now)
                self._dialect.early = b""
            return
        # The plan may know the answer: an address for a name, or a name for an address.
        known = ip_literal(planned.host) is not None
        if request.kind == "resolve" and known:
            self.resolved([planned.host])
        elif request.kind == "resolve_ptr" and not known:
            self.resolved_ptr([planned.host])
        else:
            self._events.append(LookUp(request.kind, planned))

    # From the node

    def resolved(self, addresses: Sequence[str]) -> None:
        """The answer to a `LookUp` of kind "resolve"."""
        if self.state is State.ANSWER:
            reply = self._dialect.resolved(addresses)
            self._answer(reply if reply is not None else self._failure(EndReason.RESOLVEFAILED))

    def resolved_ptr(self, names: Sequence[str]) -> None:
        """The answer to a `LookUp` of kind "resolve_ptr"."""
        if self.state is State.ANSWER:
            reply = self._dialect.resolved_ptr(names)
            self._answer(reply if reply is not None else self._failure(EndReason.RESOLVEFAILED))

    # What the dialect says

    def _connected(self) -> None:
        if self.state is State.ANSWER:
            self.state = State.TUNNEL
            self._replies += self._dialect.granted()
            self._set_wait(None)

    def _failure(self, reason: int) -> bytes:
        return self._dialect.failed(reason)

    def _refusal(self, text: str) -> bytes:
        return self._dialect.refused(text)

    def _lateness(self) -> bytes:
        return self._dialect.timed_out()
