"""TLS 1.3 over TCP (docs/protocol.md, "Links"; RFC 8446).

The TLS key is not the node's identity: the link proof, bound to this connection by its exporter (RFC 5705, RFC 8446
section 7.5), says who the peer is. Checked here is what the proof cannot mend: version, key exchange group,
certificate.

OpenSSL is fed through memory BIOs by `TlsPipe` instead of Twisted's TLS transport, which would take everything at once
and keep it: here a pull producer is asked for more only when the kernel has taken the last bytes, so that cells stay
in the mux, where they can still be overtaken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    TCP6ClientEndpoint,
    TCP6ServerEndpoint,
)
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from twisted.internet.protocol import ClientFactory
from twisted.plugin import IPlugin
from zope.interface import implementer

from backrooms.crypto.certs import check_tls_certificate
from backrooms.errors import LocalProtocolError, RemoteProtocolError
from backrooms.interfaces import ITransport
from backrooms.transport.accepting import ACCEPT_FAILED, accept_patiently
from backrooms.transport.gate import Gate, Ticket
from backrooms.transport.pipe import TlsPipe
from backrooms.transport.reasons import TransportError

__all__ = ["HostPort", "TlsPipe", "TlsTransport", "TransportError"]

CONNECT_SECONDS = 10
BACKLOG = 1024
"""Connections that the kernel holds until they are accepted."""


class HostPort(NamedTuple):
    """Where a `tls` address points."""

    host: str
    """An IP address, without brackets."""
    port: int


@implementer(ITransport, IPlugin)
class TlsTransport:
    """Makes TLS connections for one network.

    `gate` is asked about every accepted connection before anything is spent on it; without one all may come in.
    `on_refused(reason)` hears of every accepted connection whose TLS handshake failed, or that the gate turned away.
    """

    name = "tls"

    def __init__(
        self,
        network_id: bytes | None = None,
        key_file: Path | str | None = None,
        cert_file: Path | str | None = None,
        require_pq: bool = True,
    ) -> None:
        """Key and certificate (PEM) are needed to accept connections; without `network_id` it can only `parse`."""
        self.gate: Gate | None = None
        self.on_refused: Callable[[str], None] = lambda reason: None
        self._network_id = network_id
        self._key_file = key_file
        self._cert_file = cert_file
        self._require_pq = require_pq

    def configured(
        self,
        network_id: bytes,
        key_file: Path | str | None = None,
        cert_file: Path | str | None = None,
        require_pq: bool = True,
    ) -> TlsTransport:
        """One for a network: what a plugin's instance, which knows of none, is asked for."""
        return type(self)(network_id, key_file, cert_file, require_pq)

    def parse(self, address: str) -> HostPort:
        """Read "192.0.2.1:443" or "[2001:db8::1]:443"; host names are refused. Port 0 is good for listening only."""
        host, _, port = address.rpartition(":")
        try:
            if host.startswith("[") and host.endswith("]"):
                host = host[1:-1]
                canonical = "" if "%" in host else str(IPv6Address(host))
            else:
                canonical = str(IPv4Address(host))
        except AddressValueError:
            canonical = ""
        if not host or not canonical:
            raise ValueError(f"{address!r} is not IPV4:PORT or [IPV6]:PORT")
        if not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
            raise ValueError(f"{address!r}: the port must be a number up to 65535")
        return HostPort(canonical, int(port))

    def client_endpoint(self, reactor: Any, address: str) -> IStreamClientEndpoint:
        """Its `connect` gives the inner protocol once TLS is up and checked; `TransportError` says why it is not."""
        where = self.parse(address)
        if not where.port:
            raise ValueError(f"{address!r}: nobody listens on port 0")
        kind = TCP6ClientEndpoint if ":" in where.host else TCP4ClientEndpoint
        tcp = kind(reactor, where.host, where.port, timeout=CONNECT_SECONDS)
        return _ClientEndpoint(self, reactor, tcp)

    def server_endpoint(self, reactor: Any, address: str) -> IStreamServerEndpoint:
        """Raises `TransportError` when key or certificate are unfit."""
        where = self.parse(address)
        kind = TCP6ServerEndpoint if ":" in where.host else TCP4ServerEndpoint
        tcp = kind(reactor, where.port, BACKLOG, where.host)
        return _ServerEndpoint(self, reactor, tcp, *self._server_context())

    def make_pipe(
        self,
        reactor: Any,
        context: SSL.Context,
        certificate: bytes | None,
        make_inner: Callable[[], Any],
        ticket: Ticket | None = None,
    ) -> TlsPipe:
        """A pipe for one TCP connection."""
        if self._network_id is None:
            raise LocalProtocolError("this transport is configured for no network")
        return TlsPipe(reactor, context, certificate, self._network_id, self._require_pq, make_inner, ticket)

    def client_context(self) -> SSL.Context:
        """The peer's certificate is not verified: anybody's is as good, the link proof says who it is."""
        return _context()

    def _server_context(self) -> tuple[SSL.Context, bytes]:
        """With our certificate in DER."""
        if self._key_file is None or self._cert_file is None:
            raise TransportError("to accept links a TLS key and a certificate are needed")
        try:
            pem = Path(self._cert_file).read_bytes()
            certificate = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
            check_tls_certificate(certificate)
        except OSError as error:
            raise TransportError(f"{self._cert_file}: {error.strerror}") from None
        except ValueError:
            raise TransportError(f"{self._cert_file}: not a certificate in PEM") from None
        except RemoteProtocolError as error:
            raise TransportError(f"{self._cert_file}: {error.reason}") from None
        context = _context()
        try:
            context.use_certificate_file(str(self._cert_file))
            context.use_privatekey_file(str(self._key_file))
            context.check_privatekey()
        except SSL.Error:
            raise TransportError(f"{self._key_file}: no key in PEM that fits {self._cert_file}") from None
        return context, certificate


def _context() -> SSL.Context:
    """TLS 1.3 and nothing that would carry state from one connection into another.

    OpenSSL offers X25519MLKEM768 first, with a key share, and never sends early data unless told to.
    """
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_verify(SSL.VERIFY_NONE)
    return context


class _Factory(ClientFactory):
    """Makes a pipe for each TCP connection; `factory` makes the inner protocol when TLS is up."""

    noisy = False

    def __init__(
        self, transport: TlsTransport, reactor: Any, factory: Any, context: SSL.Context, certificate: bytes | None
    ) -> None:
        self._transport = transport
        self._reactor = reactor
        self._factory = factory
        self._context = context
        self._certificate = certificate

    def doStart(self) -> None:
        self._factory.doStart()

    def doStop(self) -> None:
        self._factory.doStop()

    def _pipe(self, address: Any, ticket: Ticket | None = None) -> TlsPipe:
        return self._transport.make_pipe(
            self._reactor, self._context, self._certificate, lambda: self._factory.buildProtocol(address), ticket
        )

    def buildProtocol(self, addr: Any) -> TlsPipe | None:
        return self._pipe(addr)


class _ServerFactory(_Factory):
    """Asks the gate, and counts."""

    accepted = 0

    def buildProtocol(self, addr: Any) -> TlsPipe | None:
        self.accepted += 1
        transport = self._transport
        ticket = None
        if transport.gate is not None:
            ticket = transport.gate.arrive(addr)
            if ticket is None:
                return None
        pipe = self._pipe(addr, ticket)
        pipe.ready.addErrback(lambda failure: transport.on_refused(failure.getErrorMessage()))
        return pipe


@implementer(IStreamClientEndpoint)
class _ClientEndpoint:
    def __init__(self, transport: TlsTransport, reactor: Any, tcp: Any) -> None:
        self._transport = transport
        self._reactor = reactor
        self._tcp = tcp

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        context = self._transport.client_context()
        connecting: Deferred[Any] = self._tcp.connect(
            _Factory(self._transport, self._reactor, protocolFactory, context, None)
        )
        return connecting.addCallback(lambda pipe: pipe.ready)


@implementer(IStreamServerEndpoint)
class _ServerEndpoint:
    def __init__(
        self, transport: TlsTransport, reactor: Any, tcp: Any, context: SSL.Context, certificate: bytes
    ) -> None:
        self._transport = transport
        self._reactor = reactor
        self._tcp = tcp
        self._context = context
        self._certificate = certificate

    def listen(self, protocolFactory: Any) -> Deferred[Any]:
        factory = _ServerFactory(self._transport, self._reactor, protocolFactory, self._context, self._certificate)
        listening: Deferred[Any] = self._tcp.listen(factory)

        def accept(port: Any) -> Any:
            failed = partial(self._transport.on_refused, ACCEPT_FAILED)
            return accept_patiently(port, self._reactor, lambda: factory.accepted, failed)

        return listening.addCallback(accept)
