"""One TLS connection as a Twisted protocol below and a transport above (see `transport.tls`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from enum import Enum, auto
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IPushProducer, ITransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from backrooms.crypto.certs import check_tls_certificate
from backrooms.errors import BackroomsError, RemoteProtocolError
from backrooms.interfaces import Binding
from backrooms.transport.direct import write_now
from backrooms.transport.reasons import TransportError, explain, reasons
from backrooms.transport.tuning import READ_SIZE, tune_tcp

BINDING_KIND = b"tls-exporter"
BINDING_LABEL = b"EXPORTER-backrooms-link-1"
PQ_GROUP = "X25519MLKEM768"
HANDSHAKE_SECONDS = 10.0
CLOSE_SECONDS = 5.0
"""How long the peer may take to close after we did."""
WRITE_SIZE = 65_536
RECORD_SIZE = 16_384
"""Plain bytes of a full TLS record (RFC 8446, section 5.1); with partial writes OpenSSL takes no more at once."""
RECORD_OVERHEAD = 4_096
"""More than the headers and tags of `WRITE_SIZE` bytes, and room for a key update."""


class _State(Enum):
    HANDSHAKE = auto()
    OPEN = auto()
    CLOSING = auto()
    """Nothing goes in or out any more; waiting for the peer to close, or for TCP to get rid of the rest."""
    LOST = auto()


@implementer(ITransport, IConsumer, IPushProducer)
class TlsPipe(Protocol):
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
    ) -> None:
        """`server_certificate` is our own, in DER, at the server and None at the client."""
        self.ready: Deferred[Any] = Deferred(lambda _: self._refuse("the attempt was cancelled"))
        self.disconnecting = False
        self._reactor = reactor
        self._tcp: Any = None
        self._tls = SSL.Connection(context, None)
        self._certificate = server_certificate
        self._network_id = network_id
        self._require_pq = require_pq
        self._make_inner = make_inner
        self._inner: Any = None
        self._turn: Any = nullcontext()
        self._state = _State.HANDSHAKE
        self._producer: Any = None
        self._paused = False
        self._delivering = False
        self._held = False
        self._orderly = False
        self._error: Exception | None = None
        self._timer: Any = None
        self._resume_call: Any = None
        self._binding: Binding | None = None
        self._group = ""

    # The handshake

    def connectionMade(self) -> None:
        self._tcp = self.transport
        tune_tcp(self._tcp)
        if self._certificate is None:
            self._tls.set_connect_state()
        else:
            self._tls.set_accept_state()
        self._timer = self._reactor.callLater(HANDSHAKE_SECONDS, self._handshake_timeout)
        self._shake()

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return
        except SSL.Error as error:
            self._flush()  # the alert
            self._refuse(explain(error))
            return
        try:
            self._check()
        except BackroomsError as error:
            self._refuse(error.reason if isinstance(error, RemoteProtocolError) else str(error))
            return
        self._flush()
        self._open()

    def _check(self) -> None:
        """Refuse what the link proof could not mend, and take the binding."""
        tls = self._tls
        self._group = tls.get_group_name() or "none"
        if self._require_pq and self._group.lower() != PQ_GROUP.lower():
            raise TransportError(f"the key exchange group is {self._group}, {PQ_GROUP} is required")
        if self._certificate is None:
            certificate = tls.get_peer_certificate(as_cryptography=True)
            if certificate is None:
                raise TransportError("the peer showed no certificate")
            self._certificate = certificate.public_bytes(Encoding.DER)
            check_tls_certificate(self._certificate)
        value = tls.export_keying_material(BINDING_LABEL, 32, self._network_id)
        self._binding = Binding(BINDING_KIND, value, hashlib.sha256(self._certificate).digest())

    def _open(self) -> None:
        """The handshake is complete and checked."""
        self._stop_timer()
        inner = self._make_inner()
        if inner is None:
            self._refuse("the connection is not wanted")
            return
        # An attribute of this one transport: what it reads at most at once. As a write limit it has no effect here,
        # since pull producers do not use it.
        self._tcp.bufferSize = READ_SIZE
        self._state = _State.OPEN
        self._inner = inner
        self._turn = getattr(inner, "turn", self._turn)
        inner.makeConnection(self)
        self.ready.callback(inner)

    def _handshake_timeout(self) -> None:
        self._timer = None
        self._refuse(f"the TLS handshake took over {HANDSHAKE_SECONDS:.0f} s")
        self._tcp.abortConnection()

    def _refuse(self, reason: str) -> None:
        """End a connection whose inner protocol has never heard of it."""
        if self._state is not _State.HANDSHAKE:
            return
        self._state = _State.CLOSING
        self._stop_timer()
        if self._tcp is not None:
            self._timer = self._reactor.callLater(CLOSE_SECONDS, self._close_timeout)
            self._tcp.loseConnection()
        if not self.ready.called:
            self.ready.errback(TransportError(reason))

    # From the network

    def dataReceived(self, data: bytes) -> None:
        if self._state is _State.HANDSHAKE:
            self._tls.bio_write(data)
            self._shake()
        elif self._state is _State.OPEN:
            self._tls.bio_write(data)
        else:
            return
        if self._state is _State.OPEN:
            with self._turn:
                self._deliver()

    def _deliver(self) -> None:
        """Hand on whole TLS records as long as there are any and the inner protocol wants them."""
        if self._delivering:
            return
        self._delivering = True
        receive = self._tls.recv
        deliver = self._inner.dataReceived
        try:
            while self._state is _State.OPEN and not self._paused:
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
        if self._state is _State.LOST:
            return
        before, self._state = self._state, _State.LOST
        self._producer = None
        self._stop_timer()
        if self._resume_call is not None:
            self._resume_call.cancel()
            self._resume_call = None
        if self._inner is None:
            if not self.ready.called:
                why = "closed" if isinstance(reason.value, ConnectionDone) else f"broke: {reason.getErrorMessage()}"
                self.ready.errback(TransportError(f"the connection {why} during the TLS handshake"))
            return
        if self._error is not None:
            reason = Failure(self._error)  # type: ignore[no-untyped-call]
        elif self._orderly:
            reason = Failure(ConnectionDone())  # type: ignore[no-untyped-call]
        elif before is _State.OPEN and isinstance(reason.value, ConnectionDone):
            reason = Failure(ConnectionLost("closed without a TLS close_notify"))  # type: ignore[no-untyped-call]
        if not self.ready.called:  # the inner protocol failed while it was being connected
            self.ready.errback(reason)
        self._inner.connectionLost(reason)

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
        if self._state is _State.OPEN and self._tcp.connected:
            self._tcp.startWriting()

    def _encrypt(self, data: bytes) -> bytes:
        if self._state is not _State.OPEN or not data:
            return b""
        send = self._tls.send
        size = len(data)
        view = memoryview(data)
        offset = 0
        try:
            while offset < size:
                offset += send(view[offset : offset + RECORD_SIZE])
            return self._tls.bio_read(size + RECORD_OVERHEAD)
        except SSL.Error as error:
            self._fail(TransportError(f"TLS: {reasons(error)}"))
            return b""

    def _flush(self) -> None:
        """Send what OpenSSL has to say of its own."""
        try:
            while True:
                self._tcp.write(self._tls.bio_read(WRITE_SIZE))
        except SSL.WantReadError:
            pass

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """A pull producer is asked for more whenever TCP has nothing left to send; see twisted's IConsumer."""
        if self._producer is not None:
            raise RuntimeError("a producer is registered already")
        if self._state is not _State.OPEN:
            producer.stopProducing()
            return
        self._producer = producer
        self._tcp.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        if self._producer is None:
            return
        self._producer = None
        self._tcp.unregisterProducer()
        if self.disconnecting and self._state is _State.OPEN:
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
        if self.disconnecting or self._state is not _State.OPEN:
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
        self._state = _State.CLOSING
        try:
            self._tls.shutdown()
        except SSL.Error:
            pass  # the peer is gone or broke TLS: nothing to say
        self._flush()
        self._timer = self._reactor.callLater(CLOSE_SECONDS, self._close_timeout)

    def _close_timeout(self) -> None:
        self._timer = None
        self._tcp.abortConnection()

    def abortConnection(self) -> None:
        """Close at once, without a word."""
        if self._state in (_State.HANDSHAKE, _State.LOST):
            return
        self.disconnecting = True
        self._state = _State.CLOSING
        self._tcp.abortConnection()

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._drop_producer()
        self._say_goodbye()
        self._tcp.loseConnection()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # What else the inner protocol asks

    def pauseProducing(self) -> None:
        """Stop reading: at most one read of the socket waits here, undelivered."""
        if self._state is _State.OPEN:
            self._paused = self._held = True
            self._tcp.pauseProducing()

    def resumeProducing(self) -> None:
        """Read again; TCP only when what waits here is delivered, or its end would overtake that."""
        self._paused = False
        if self._held and not self._delivering and self._resume_call is None and self._state is _State.OPEN:
            # Not from here: the caller is in the middle of something.
            self._resume_call = self._reactor.callLater(0, self._resumed)

    def _resumed(self) -> None:
        self._resume_call = None
        if self._state is _State.OPEN:
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
