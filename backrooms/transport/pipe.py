"""One TLS connection as a Twisted protocol below and a transport above (see `transport.tls`)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IPushProducer, ITransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from backrooms.interfaces import Binding
from backrooms.transport.direct import write_now
from backrooms.transport.gate import Ticket
from backrooms.transport.handshake import WRITE_SIZE, State, TlsHandshake
from backrooms.transport.reasons import TransportError, reasons
from backrooms.transport.tuning import READ_SIZE

RECORD_SIZE = 16_384
"""Plain bytes of a full TLS record (RFC 8446, section 5.1); with partial writes OpenSSL takes no more at once."""
RECORD_OVERHEAD = 4_096
"""More than the headers and tags of `WRITE_SIZE` bytes, and room for a key update."""


@implementer(ITransport, IConsumer, IPushProducer)
class TlsPipe(TlsHandshake):
    """TLS between a TCP transport and an inner protocol.

    The inner protocol is made by `make_inner` and connected only when the TLS handshake is complete and checked;
    `ready` then fires with it, or fails with a `TransportError`. As Twisted's transports do, `loseConnection` waits
    for a registered producer to be unregistered.
    """

    def __init__(
        self,
        reactor: Any,
        context: SSL.Context,
        server_certificate: bytes | None,
        network_id: bytes,
        require_pq: bool,
        make_inner: Callable[[], Any],
        ticket: Ticket | None = None,
    ) -> None:
        """`server_certificate` is our own, in DER, at the server and None at the client."""
        super().__init__(reactor, context, server_certificate, network_id, require_pq, ticket)
        self.disconnecting = False
        self._make_inner = make_inner
        self._inner: Any = None
        self._turn = nullcontext()
        self._producer: Any = None
        self._paused = False
        self._delivering = False
        self._held = False
        self._orderly = False
        self._resume_call: Any = None

    def _connect_inner(self) -> bool:
        inner = self._make_inner()
        if inner is None:
            return False
        # An attribute of this one transport: what it reads at most at once. As a write limit it has no effect here,
        # since pull producers do not use it.
        self._tcp.bufferSize = READ_SIZE
        self._state = State.OPEN
        self._inner = inner
        self._turn = getattr(inner, "turn", self._turn)
        inner.makeConnection(self)
        self.ready.callback(inner)
        return True

    # From the network

    def _deliver(self) -> None:
        """Hand on whole TLS records as long as there are any and the inner protocol wants them."""
        if self._delivering:
            return
        self._delivering = True
        receive = self._tls.recv
        deliver = self._inner.dataReceived
        try:
            while self._state is State.OPEN and not self._paused:
                try:
                    data = receive(RECORD_SIZE)
                except SSL.WantReadError:
                    if self._held:
                        self._held = False
                        self._tcp.resumeProducing()
                    return
                except SSL.ZeroReturnError:
                    self._peer_closed()
                    return
                except SSL.Error as error:
                    self._flush()  # the alert
                    self._fail(TransportError(f"TLS: {reasons(error)}"))
                    return
                deliver(data)
        finally:
            self._delivering = False

    def _peer_closed(self) -> None:
        """The peer sent close_notify: it reads nothing more."""
        self._orderly = True
        self._drop_producer()
        self._say_goodbye()
        self._tcp.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._state is State.LOST:
            return
        before, self._state = self._state, State.LOST
        inner, self._inner, self._tls = self._inner, None, None
        self.proven()
        self._producer = None
        self._stop_timer()
        if self._resume_call is not None:
            self._resume_call.cancel()
            self._resume_call = None
        if inner is None:
            if not self.ready.called:
                why = "closed" if isinstance(reason.value, ConnectionDone) else f"broke: {reason.getErrorMessage()}"
                self.ready.errback(TransportError(f"the connection {why} during the TLS handshake"))
            return
        if self._error is not None:
            reason = Failure(self._error)  # type: ignore[no-untyped-call]
        elif self._orderly:
            reason = Failure(ConnectionDone())  # type: ignore[no-untyped-call]
        elif before is State.OPEN and isinstance(reason.value, ConnectionDone):
            reason = Failure(ConnectionLost("closed without a TLS close_notify"))  # type: ignore[no-untyped-call]
        if not self.ready.called:  # the inner protocol failed while it was being connected
            self.ready.errback(reason)
        inner.connectionLost(reason)

    # To the network

    def write(self, data: bytes) -> None:
        """Encrypt and hand to TCP. A pull producer writes at most 64 KiB at a time; more is taken but not useful."""
        for start in range(0, len(data), WRITE_SIZE):
            out = self._encrypt(data[start : start + WRITE_SIZE])
            if out:
                self._tcp.write(out)

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def write_now(self, data: bytes) -> bool:
        """Encrypt at most 64 KiB and send it at once, if nothing written before waits; see `direct.write_now`."""
        out = self._encrypt(data)
        return not out or write_now(self._tcp, out)

    def startWriting(self) -> None:
        """Have the producer asked again as soon as the socket has room."""
        if self._state is State.OPEN and self._tcp.connected:
            self._tcp.startWriting()

    def _encrypt(self, data: bytes) -> bytes:
        if self._state is not State.OPEN or not data:
            return b""
        send = self._tls.send
        size = len(data)
        view = memoryview(data)
        offset = 0
        try:
            while offset < size:
                offset += send(view[offset : offset + RECORD_SIZE])
            sealed: bytes = self._tls.bio_read(size + RECORD_OVERHEAD)
            return sealed
        except SSL.Error as error:
            self._fail(TransportError(f"TLS: {reasons(error)}"))
            return b""

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """A pull producer is asked for more whenever TCP has nothing left to send; see twisted's IConsumer."""
        if self._producer is not None:
            raise RuntimeError("a producer is registered already")
        if self._state is not State.OPEN:
            producer.stopProducing()
            return
        self._producer = producer
        self._tcp.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        if self._producer is None:
            return
        self._producer = None
        self._tcp.unregisterProducer()
        if self.disconnecting and self._state is State.OPEN:
            self._shutdown()

    def _drop_producer(self) -> None:
        """TCP closes only without a producer, so it is taken away and told."""
        producer, self._producer = self._producer, None
        if producer is not None:
            self._tcp.unregisterProducer()
            producer.stopProducing()

    # Closing

    def loseConnection(self) -> None:
        """Send what has been written and close_notify, then wait a little for the peer to close.

        Closing TCP while bytes of the peer are unread would reset the connection, and it might lose our last ones.
        """
        if self.disconnecting or self._state is not State.OPEN:
            return
        self.disconnecting = True
        if self._producer is None:
            self._shutdown()

    def _shutdown(self) -> None:
        self._orderly = True
        self._say_goodbye()
        self._tcp.loseWriteConnection()
        self._tcp.resumeProducing()  # to see the peer's end

    def _say_goodbye(self) -> None:
        self.disconnecting = True
        self._state = State.CLOSING
        try:
            self._tls.shutdown()
        except SSL.Error:
            pass  # the peer is gone or broke TLS: nothing to say
        self._flush()
        self._close_later()

    def abortConnection(self) -> None:
        """Close at once, without a word."""
        if self._state in (State.WAITING, State.HANDSHAKE, State.LOST):
            return
        self.disconnecting = True
        self._state = State.CLOSING
        self._tcp.abortConnection()

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._drop_producer()
        self._say_goodbye()
        self._tcp.loseConnection()

    # What else the inner protocol asks

    @property
    def held(self) -> int:
        """Bytes, at most, that wait here undelivered."""
        return self._last_read if self._held else 0

    def pauseProducing(self) -> None:
        """Stop reading: at most one read of the socket waits here, undelivered."""
        if self._state is State.OPEN:
            self._paused = self._held = True
            self._tcp.pauseProducing()

    def resumeProducing(self) -> None:
        """Read again; TCP only when what waits here is delivered, or its end would overtake that."""
        self._paused = False
        if self._held and not self._delivering and self._resume_call is None and self._state is State.OPEN:
            # Not from here: the caller is in the middle of something.
            self._resume_call = self._reactor.callLater(0, self._resumed)

    def _resumed(self) -> None:
        self._resume_call = None
        if self._state is State.OPEN:
            with self._turn:
                self._deliver()

    def stopProducing(self) -> None:
        self.loseConnection()

    def getPeer(self) -> Any:
        return self._tcp.getPeer()

    def getHost(self) -> Any:
        return self._tcp.getHost()

    def binding(self) -> Binding:
        """What ties a link proof to this connection."""
        assert self._binding is not None, "asked before the handshake was done"
        return self._binding

    def group(self) -> str:
        """The key exchange group, such as "X25519MLKEM768"."""
        return self._group
