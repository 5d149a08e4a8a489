"""A TCP connection until TLS is up (docs/protocol.md, "Links"; see `transport.tls`)."""

from __future__ import annotations

import hashlib
from enum import Enum, auto
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol

from backrooms.crypto.certs import check_tls_certificate
from backrooms.errors import BackroomsError, RemoteProtocolError
from backrooms.interfaces import Binding
from backrooms.transport.accepting import accepted_for_good
from backrooms.transport.gate import Ticket
from backrooms.transport.reasons import TransportError, explain
from backrooms.transport.tuning import tune_tcp

BINDING_KIND = b"tls-exporter"
BINDING_LABEL = b"EXPORTER-backrooms-link-1"
PQ_GROUP = "X25519MLKEM768"
HANDSHAKE_SECONDS = 10.0
"""For TLS. An accepted connection that has a ticket is given its time by who gave that."""
CLOSE_SECONDS = 5.0
"""How long the peer may take to close after we did."""
WRITE_SIZE = 65_536
EARLY_READ = 4_096
"""Bytes of one read until TLS is up."""
EARLY_LIMIT = 24_576
"""Bytes that an accepted connection may send before its TLS handshake begins: more than a record and a read."""
EARLY_READS = 128
"""Reads that the bearer of a ticket may cause, each of which costs us as much as many bytes do; a link needs ten."""


class State(Enum):
    """How far a connection is."""

    WAITING = auto()
    """There is no TLS object yet."""
    HANDSHAKE = auto()
    OPEN = auto()
    CLOSING = auto()
    """Nothing goes in or out any more; waiting for the peer to close, or for TCP to get rid of the rest."""
    LOST = auto()


class TlsHandshake(Protocol):
    """The part of a `TlsPipe` that makes the TLS connection.

    An accepted connection has a `ticket` as long as its peer has proven nothing. Whoever gave the ticket decides when
    TLS may begin, hears what the work cost, and may turn the connection away. There is no TLS object before the first
    record is here and its turn has come, so a connection that says nothing, or says it slowly, costs little.
    """

    def __init__(
        self,
        reactor: Any,
        context: SSL.Context,
        server_certificate: bytes | None,
        network_id: bytes,
        require_pq: bool,
        ticket: Ticket | None,
    ) -> None:
        # Only who dials can cancel. An accepted connection has no cycle, so it goes as soon as it is lost.
        given_up = None if server_certificate else lambda _: self._refuse("the attempt was cancelled")
        self.ready: Deferred[Any] = Deferred(given_up)
        self.ticket = ticket
        if ticket is not None:
            ticket.visitor = self
        self._reactor = reactor
        self._context = context
        self._certificate = server_certificate
        self._network_id = network_id
        self._require_pq = require_pq
        self._tcp: Any = None
        self._tls: Any = None
        self._state = State.WAITING
        self._early = b""
        self._reads = 0
        self._last_read = 0
        self._error: Exception | None = None
        self._timer: Any = None
        self._binding: Binding | None = None
        self._group = ""

    # what the pipe does

    def _connect_inner(self) -> bool:
        """TLS is up: make the inner protocol. False if nobody wants the connection."""
        raise NotImplementedError

    def _deliver(self) -> None:
        """There may be plain bytes for the inner protocol."""
        raise NotImplementedError

    _turn: Any

    # from TCP

    def connectionMade(self) -> None:
        self._tcp = self.transport
        if self.ticket is None:
            self._timer = self._reactor.callLater(HANDSHAKE_SECONDS, self._handshake_timeout)
        if self._certificate is None:
            self._begin()
        else:
            self._tcp.bufferSize = EARLY_READ

    def dataReceived(self, data: bytes) -> None:
        ticket = self.ticket
        if ticket is None:
            self._receive(data)
            return
        self._reads += 1
        if self._reads > EARLY_READS:
            self.turn_away("a handshake in too many pieces")
        elif self._state is State.WAITING:
            self._receive(data)  # it costs little, and who has had no turn must not use up the time of others
        else:
            with ticket:
                self._receive(data)

    def _receive(self, data: bytes) -> None:
        if self._state is State.OPEN:
            self._last_read = len(data)
            self._tls.bio_write(data)
        elif self._state is State.HANDSHAKE:
            self._tls.bio_write(data)
            self._shake()
        elif self._state is State.WAITING:
            self._greeted(data)
        if self._state is State.OPEN:
            with self._turn:
                self._deliver()

    # the handshake

    def _greeted(self, data: bytes) -> None:
        """Wait for the first record, then for our turn."""
        waiting = _has_record(self._early)
        self._early += data
        if len(self._early) > EARLY_LIMIT:
            self._refuse("too much before the TLS handshake")
        elif not waiting and _has_record(self._early):
            if self.ticket is None:
                self._begin()
            else:
                self.ticket.wait(self._my_turn)

    def _my_turn(self) -> None:
        if self.ticket is not None and self._state is State.WAITING:
            with self.ticket:
                self._begin()

    def _begin(self) -> None:
        self._state = State.HANDSHAKE
        tune_tcp(self._tcp)
        self._tls = SSL.Connection(self._context, None)
        if self._certificate is None:
            self._tls.set_connect_state()
        else:
            accepted_for_good(self._tcp)
            self._tls.set_accept_state()
            self._tls.bio_write(self._early)
            self._early = b""
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
        self._stop_timer()
        if not self._connect_inner():
            self._refuse("the connection is not wanted")

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

    def _flush(self) -> None:
        """Send what OpenSSL has to say of its own."""
        try:
            while True:
                self._tcp.write(self._tls.bio_read(WRITE_SIZE))
        except SSL.WantReadError:
            pass

    # refusals

    def turn_away(self, reason: str) -> None:
        """End the connection at once, without a word, in whatever state it is."""
        self._refuse(reason)
        if self._state is State.OPEN:
            self._error = TransportError(reason)
            self._state = State.CLOSING
        if self._tcp is not None and self._state is not State.LOST:
            self._tcp.abortConnection()

    def _handshake_timeout(self) -> None:
        self._timer = None
        self.turn_away(f"the TLS handshake took over {HANDSHAKE_SECONDS:.0f} s")

    def _refuse(self, reason: str) -> None:
        """End a connection whose inner protocol has never heard of it."""
        if self._state not in (State.WAITING, State.HANDSHAKE):
            return
        self._state = State.CLOSING
        self._stop_timer()
        if self._tcp is not None:
            self._close_later()
            self._tcp.loseConnection()
        if not self.ready.called:
            self.ready.errback(TransportError(reason))

    def _close_later(self) -> None:
        """Do not wait for the peer for ever."""
        self._timer = self._reactor.callLater(CLOSE_SECONDS, self._close_timeout)

    def _close_timeout(self) -> None:
        self._timer = None
        self._tcp.abortConnection()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def proven(self) -> None:
        """The peer has proven what it has to, or is gone: the ticket is given back."""
        ticket, self.ticket = self.ticket, None
        if ticket is not None:
            ticket.done()


def _has_record(start: bytes) -> bool:
    """Whether these first bytes are worth a TLS object: a whole record, or something that is no TLS handshake."""
    if start[:1] not in (b"", b"\x16"):
        return True
    return len(start) >= 5 and len(start) >= 5 + min(int.from_bytes(start[3:5], "big"), 16_640)
