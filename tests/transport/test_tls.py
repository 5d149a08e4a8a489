"""TLS connections that are made: binding, socket options, addresses, files."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.internet import tcp
from twisted.internet.error import ConnectionDone
from twisted.plugin import IPlugin
from zope.interface.verify import verifyObject

from backrooms.errors import BackroomsError, LocalProtocolError
from backrooms.interfaces import ITransport
from backrooms.plugins.transports import tls as plugin
from backrooms.transport import tuning
from backrooms.transport.tls import HostPort, TlsTransport, TransportError
from tests.keys import NETWORK_ID, tls_pair
from tests.transport.loopback import (
    Loopback,
    dial,
    files,
    until,
)


async def test_a_connection() -> None:
    server = await Loopback().start()
    client, accepted = await server.pair()
    client.pipe.write(b"ping")
    await until(lambda: accepted.data == b"ping")
    accepted.pipe.writeSequence([b"po", b"", b"ng"])
    await until(lambda: client.data == b"pong")
    for end in (client, accepted):
        assert end.pipe.group() == "X25519MLKEM768"
        assert end.made == 1
    assert client.pipe.getPeer().port == accepted.pipe.getHost().port == server.port
    assert server.refused == []
    await server.stop(client)


async def test_the_binding_is_of_one_connection() -> None:
    server = await Loopback().start()
    first, first_accepted = await server.pair()
    second, _ = await server.pair()
    binding = first.pipe.binding()
    assert binding == first_accepted.pipe.binding()
    assert binding.kind == b"tls-exporter"
    assert len(binding.value) == 32
    certificate = x509.load_pem_x509_certificate(tls_pair(0)[1]).public_bytes(Encoding.DER)
    assert binding.certificate == hashlib.sha256(certificate).digest()
    assert second.pipe.binding().value != binding.value
    other_network = await server.connect(TlsTransport(b"n" * 32))
    await until(lambda: len(server.accepted) == 3)
    assert other_network.pipe.binding().value != server.accepted[2].pipe.binding().value
    await server.stop(first, second, other_network)


async def test_the_binding_is_the_exporter_of_the_protocol() -> None:
    """Label, context and length as docs/protocol.md has them, asked of OpenSSL itself."""
    server = await Loopback().start()
    client, accepted = await server.pair()
    asked = accepted.pipe._tls.export_keying_material(b"EXPORTER-backrooms-link-1", 32, NETWORK_ID)
    assert client.pipe.binding().value == asked
    await server.stop(client)


async def test_ipv6() -> None:
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("this machine has no IPv6")
    server = await Loopback().start("[::1]:0")
    client, accepted = await server.pair()
    client.pipe.write(b"six")
    await until(lambda: accepted.data == b"six")
    await server.stop(client)


async def test_socket_options_are_set_on_the_one_connection() -> None:
    server = await Loopback().start()
    client, accepted = await server.pair()
    for end in (client, accepted):
        below = end.pipe._tcp
        assert below.getTcpNoDelay()
        assert below.getTcpKeepAlive()
        assert below.bufferSize == tuning.READ_SIZE
        if tuning.TCP_NOTSENT_LOWAT is not None:
            assert below.socket.getsockopt(socket.IPPROTO_TCP, tuning.TCP_NOTSENT_LOWAT) == tuning.NOTSENT_LOWAT
    assert "bufferSize" not in vars(tcp.Server) | vars(tcp.Client)
    assert tcp.Connection.bufferSize != tuning.READ_SIZE
    await server.stop(client)


# No state is carried over


def test_no_session_is_resumed() -> None:
    """By an OpenSSL 3.0 client that wants to; a server as it comes would let it."""
    key, certificate = files()
    ours = TlsTransport(NETWORK_ID, key, certificate)._server_context()[0]
    assert resumed(ours) == [False, False]
    plain = SSL.Context(SSL.TLS_METHOD)
    plain.use_certificate_file(str(certificate))
    plain.use_privatekey_file(str(key))
    assert resumed(plain) == [False, True]


def resumed(context: SSL.Context) -> list[bool]:
    """Whether each of two connections, the second with the first one's ticket, resumed a session."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    session = None
    found = []
    for _ in range(2):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        one = client.wrap_bio(incoming, outgoing, session=session)
        other = SSL.Connection(context, None)
        other.set_accept_state()
        for _ in range(4):
            try:
                one.do_handshake()
            except ssl.SSLWantReadError:
                pass
            if data := outgoing.read():
                other.bio_write(data)
            try:
                other.do_handshake()
            except SSL.WantReadError:
                pass
            try:
                incoming.write(other.bio_read(65536))
            except SSL.WantReadError:
                pass
        with pytest.raises(ssl.SSLWantReadError):
            one.read(1)
        session = one.session
        found.append(bool(one.session_reused))
    return found


# Addresses, files, the plugin


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:5001", "127.0.0.1", 5001),
        ("[::1]:5001", "::1", 5001),
        ("[2001:DB8:0::1]:65535", "2001:db8::1", 65535),
        ("0.0.0.0:0", "0.0.0.0", 0),
    ],
)
def test_addresses(address: str, host: str, port: int) -> None:
    assert TlsTransport().parse(address) == HostPort(host, port)


@pytest.mark.parametrize(
    "address",
    """
    |:|1.2.3.4|1.2.3.4:|1.2.3.4:x|1.2.3.4:65536|1.2.3.4:-1|1.2.3.4:+5|1.2.3.4:٣|1.2.3.4: 5| 1.2.3.4:5|1.2.3.4:000005|:5
    |localhost:1|tls:1.2.3.4:5|01.2.3.4:5|::1:5|[::1]|[::1:5|[]:5|[fe80::1%eth0]:5|[1.2.3.4]:5
    """.strip()
    .replace("\n    ", "")
    .split("|"),
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"IPV4:PORT|must be a number"):
        TlsTransport().parse(address)


def test_nobody_is_dialled_on_port_0() -> None:
    with pytest.raises(ValueError, match="port 0"):
        TlsTransport(NETWORK_ID).client_endpoint(None, "127.0.0.1:0")


def test_files_that_are_unfit(tmp_path: Path) -> None:
    key, certificate = files()
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    other_key = tmp_path / "other.pem"
    other_key.write_bytes(tls_pair(1)[0])
    for pair, words in (
        ((None, None), "a TLS key and a certificate are needed"),
        ((key, tmp_path / "none.pem"), "none.pem: No such file"),
        ((key, empty), "empty.pem: not a certificate"),
        ((empty, certificate), "empty.pem: no key"),
        ((other_key, certificate), "other.pem: no key in PEM that fits"),
    ):
        with pytest.raises(TransportError, match=words):
            TlsTransport(NETWORK_ID, *pair).server_endpoint(None, "127.0.0.1:0")
    assert issubclass(TransportError, BackroomsError)


async def test_the_plugin() -> None:
    assert verifyObject(ITransport, plugin)
    assert IPlugin.providedBy(plugin)
    assert plugin.name == "tls"
    ours = plugin.configured(NETWORK_ID, *files(), require_pq=True)
    assert verifyObject(ITransport, ours)
    assert ours is not plugin
    server = await Loopback().start()
    with pytest.raises(LocalProtocolError, match="configured for no network"):
        await dial(server.address, plugin)
    client = await dial(server.address, plugin.configured(NETWORK_ID, None, None, require_pq=True))
    client.pipe.loseConnection()
    assert isinstance(await client.lost, ConnectionDone)
    await server.stop()
