"""TLS transports on 127.0.0.1, protocols that write down what they see, and peers of another make (stdlib ssl)."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from backrooms.transport.tls import TlsTransport
from tests.keys import CACHE, NETWORK_ID, _kept, tls_pair

SECONDS = 20.0
"""Longer than any wait here takes, even on a busy machine."""


@cache
def files() -> tuple[Path, Path]:
    """Key and certificate files of an RSA-4096 pair."""
    key, certificate = tls_pair(0)
    return _kept("transport-key.pem", lambda: key), _kept("transport-cert.pem", lambda: certificate)


def _weak(name: str, make_key: Callable[[], Any]) -> tuple[Path, Path]:
    """Files of a self-signed pair that a relay may not have."""
    key_path, certificate_path = CACHE / f"{name}-key.pem", CACHE / f"{name}-cert.pem"
    if not certificate_path.exists():
        key = make_key()
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        start = x509.load_pem_x509_certificate(tls_pair(0)[1])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(start.not_valid_before_utc)
            .not_valid_after(start.not_valid_after_utc)
            .sign(key, hashes.SHA256())
        )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _kept(key_path.name, lambda: pem)
        _kept(certificate_path.name, lambda: certificate.public_bytes(Encoding.PEM))
    return key_path, certificate_path


def rsa_2048() -> tuple[Path, Path]:
    return _weak("rsa2048", lambda: rsa.generate_private_key(65537, 2048))


def p256() -> tuple[Path, Path]:
    return _weak("p256", lambda: ec.generate_private_key(ec.SECP256R1()))


class Recorder(Protocol):
    """Writes down what happens to it."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.reason: Any = None
        self.made = 0
        self.lost: Deferred[Any] = Deferred()

    @property
    def pipe(self) -> Any:
        return self.transport

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    def connectionMade(self) -> None:
        self.made += 1

    def dataReceived(self, data: bytes) -> None:
        assert self.reason is None, "data after the end"
        self.pieces.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        assert self.reason is None, "lost twice"
        self.reason = reason.value
        self.lost.callback(reason.value)


@implementer(IPullProducer)
class Source:
    """Writes numbered pieces when it is asked to; unregisters after `count` pieces."""

    def __init__(self, pipe: Any, count: int, size: int = 65_536) -> None:
        self.pipe = pipe
        self.count = count
        self.size = size
        self.sent = 0
        self.stopped = 0
        self.done: Deferred[None] = Deferred()

    def start(self) -> Source:
        self.pipe.registerProducer(self, False)
        return self

    def piece(self, number: int) -> bytes:
        return number.to_bytes(8, "big") * (self.size // 8)

    def resumeProducing(self) -> None:
        if self.sent < self.count:
            self.sent += 1
            self.pipe.write(self.piece(self.sent - 1))
        elif not self.done.called:
            self.pipe.unregisterProducer()
            self.done.callback(None)

    def stopProducing(self) -> None:
        self.stopped += 1


class PlainFactory(Factory):
    """Calls `build` for each connection."""

    noisy = False

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build

    def buildProtocol(self, addr: Any) -> Any:
        return self._build()


class Loopback:
    """A server of ours and the connections to it."""

    def __init__(self, make: Callable[[], Any] = Recorder, **options: Any) -> None:
        self.refused: list[str] = []
        self.accepted: list[Any] = []
        self.transport = TlsTransport(NETWORK_ID, *files(), **options)
        self.transport.on_refused = self.refused.append
        self._make = make
        self._port: Any = None

    def _build(self) -> Any:
        protocol = self._make()
        self.accepted.append(protocol)
        return protocol

    async def start(self, address: str = "127.0.0.1:0") -> Self:
        factory = PlainFactory(self._build)
        self._port = await self.transport.server_endpoint(reactor, address).listen(factory)
        return self

    @property
    def port(self) -> int:
        number: int = self._port.getHost().port
        return number

    @property
    def address(self) -> str:
        host = self._port.getHost().host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    async def connect(self, transport: TlsTransport | None = None, address: str = "") -> Any:
        """A client's protocol, once TLS is up."""
        return await dial(address or self.address, transport or TlsTransport(NETWORK_ID))

    async def pair(self) -> tuple[Any, Any]:
        """The client's and the server's protocol of one connection."""
        before = len(self.accepted)
        client = await self.connect()
        await until(lambda: len(self.accepted) > before and self.accepted[-1].made)
        return client, self.accepted[-1]

    async def stop(self, *protocols: Any) -> None:
        """Stop listening and close what is open."""
        await self._port.stopListening()
        for protocol in [*protocols, *self.accepted]:
            if protocol.made and protocol.reason is None:
                protocol.pipe.abortConnection()
                await protocol.lost


def dial(address: str, transport: TlsTransport | None = None) -> Deferred[Any]:
    """Connect a `Recorder`."""
    transport = transport or TlsTransport(NETWORK_ID)
    connecting: Deferred[Any] = transport.client_endpoint(reactor, address).connect(PlainFactory(Recorder))
    return connecting


def client_hello() -> bytes:
    """The first bytes of a client of ours."""
    client = SSL.Connection(TlsTransport(NETWORK_ID).client_context(), None)
    client.set_connect_state()
    with suppress(SSL.WantReadError):
        client.do_handshake()
    return bytes(client.bio_read(65_536))


async def until(condition: Callable[[], Any], seconds: float = SECONDS) -> None:
    """Wait for `condition`; fails after `seconds`."""
    end = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < end, "waited too long"
        await deferLater(reactor, 0.002)


def pause(seconds: float) -> Deferred[None]:
    return deferLater(reactor, seconds)


@asynccontextmanager
async def foreign_server(
    key: Path, certificate: Path, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> AsyncIterator[str]:
    """An echo server by the standard library, whose OpenSSL has no ML-KEM; one connection. Gives its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(certificate, key)

    def serve(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as tls:
                while data := tls.recv(65536):
                    tls.sendall(data)
        except OSError:  # the client's refusal
            pass

    async with raw_server(serve) as address:
        yield address


@asynccontextmanager
async def raw_server(serve: Callable[[socket.socket], None]) -> AsyncIterator[str]:
    """A TCP server that hands its one connection to `serve`, in a thread. Gives its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.settimeout(SECONDS)
        with connection:
            serve(connection)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
        await until(lambda: not thread.is_alive())


def foreign_client(port: int, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, say: bytes = b"") -> str:
    """What a TLS client of the standard library hears, or its error. Blocks: call it in a thread."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection,
            context.wrap_socket(connection) as tls,
        ):
            tls.sendall(say)
            return repr(tls.recv(65536))
    except OSError as error:
        return str(error)
