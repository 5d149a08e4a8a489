"""The DNS port on a loopback socket, asked by Twisted's DNS client and by dig."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.utils import getProcessOutputAndValue
from twisted.names import dns
from twisted.names.client import Resolver
from twisted.names.error import DNSNameError, DNSNotImplementedError, DNSServerError

from backrooms.errors import ConfigError, StreamError
from backrooms.levels import LOW
from backrooms.node.requests import StreamRequest, TryAgain
from backrooms.node.timers import Timers
from backrooms.proxy.addressmap import AddressMap
from backrooms.proxy.dnsport import DnsPort, parse_listen
from backrooms.wire.relay import EndReason
from tests.proxy.fakes import FakeOpener
from tests.proxy.loopback import until
from tests.proxy.test_dns import question, read


class Node(FakeOpener):
    """Fails as it is told to."""

    failure: Exception | None = None

    def resolve(self, request: StreamRequest) -> Deferred[Any]:
        if self.failure is not None:
            raise self.failure
        return super().resolve(request)


class Ports:
    """DNS ports of one test."""

    def __init__(self) -> None:
        self.opener = Node()
        self.opener.addresses["web.example"] = ["9.8.7.6", "2600::1"]
        self.opener.names["9.8.7.6"] = ["web.example"]
        self.timers = Timers(reactor)
        self.started: list[DnsPort] = []

    async def start(self, listen: str = "udp:0:interface=127.0.0.1", **options: Any) -> int:
        port = DnsPort(listen, self.opener, self.timers, reactor, **options)
        self.started.append(port)
        return int((await port.start()).getHost().port)

    @property
    def waiting(self) -> int:
        return len(self.started[-1])

    async def stop(self) -> None:
        for port in self.started:
            await port.stop()
        self.timers.close()


@pytest.fixture
def ports() -> Iterator[Ports]:
    made = Ports()
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.stop()))


def client(port: int) -> Any:
    return Resolver(servers=[("127.0.0.1", port)], timeout=(5,))  # type: ignore[no-untyped-call]


async def test_twisted_as_the_client(ports: Ports) -> None:
    asks = client(await ports.start(level=LOW))
    (answer,), _, _ = await asks.lookupAddress("Web.Example")
    assert (answer.payload.dottedQuad(), answer.ttl) == ("9.8.7.6", 60)
    (answer,), _, _ = await asks.lookupIPV6Address("web.example")
    assert answer.payload._address == "2600::1"
    (answer,), _, _ = await asks.lookupPointer("6.7.8.9.in-addr.arpa")
    assert (answer.payload.name.name, answer.ttl) == (b"web.example", 90)
    request = ports.opener.requests[0]
    assert (request.host, request.protocol, request.level) == ("web.example", "DNS", LOW)
    assert request.source.startswith("127.0.0.1:")
    assert len({request.isolation for request in ports.opener.requests}) == 1


async def test_failures(ports: Ports) -> None:
    asks = client(await ports.start())
    with pytest.raises(DNSNameError):
        await asks.lookupAddress("none.example")
    with pytest.raises(DNSNotImplementedError):
        await asks.lookupMailExchange("web.example")
    for failure in (StreamError(EndReason.TIMEOUT), TryAgain(EndReason.RESOLVEFAILED), StreamError(EndReason.NOROUTE)):
        ports.opener.failure = failure
        with pytest.raises(DNSServerError):
            await asks.lookupAddress("web.example")
    assert ports.waiting == 0


async def test_a_bug_is_logged_and_answered(ports: Ports, clean: Any) -> None:
    asks = client(await ports.start())
    ports.opener.failure = ZeroDivisionError()
    with pytest.raises(DNSServerError):
        await asks.lookupAddress("web.example")
    assert len(clean.flush(ZeroDivisionError)) == 1


async def test_private_answers_are_not_believed(ports: Ports) -> None:
    ports.opener.addresses["rebound.example"] = ["127.0.0.1", "192.168.0.1"]
    ports.opener.addresses["mixed.example"] = ["10.0.0.1", "9.8.7.6"]
    asks = client(await ports.start(allow_private=False))
    with pytest.raises(DNSNameError):
        await asks.lookupAddress("rebound.example")
    (answer,), _, _ = await asks.lookupAddress("mixed.example")
    assert answer.payload.dottedQuad() == "9.8.7.6"
    before = len(ports.opener.requests)
    with pytest.raises(DNSNameError):  # nobody outside needs to know which networks there are here
        await asks.lookupPointer("1.0.0.10.in-addr.arpa")
    assert len(ports.opener.requests) == before


async def test_mapped_names(ports: Ports) -> None:
    mapped = AddressMap(random.Random(1), ["other.example=web.example", "fixed.example=192.0.2.7"], automap=True)
    asks = client(await ports.start(addresses=mapped))
    (answer,), _, _ = await asks.lookupAddress("other.example")
    assert answer.payload.dottedQuad() == "9.8.7.6"
    asked = len(ports.opener.requests)
    (answer,), _, _ = await asks.lookupAddress("fixed.example")
    assert (answer.payload.dottedQuad(), answer.ttl) == ("192.0.2.7", 60)
    (answer,), _, _ = await asks.lookupAddress("some.backrooms")
    address = answer.payload.dottedQuad()
    assert mapped.apply("connect", address) == "some.backrooms"
    (answer,), _, _ = await asks.lookupIPV6Address("some.backrooms")
    assert mapped.apply("connect", answer.payload._address) == "some.backrooms"
    (answer,), _, _ = await asks.lookupPointer(".".join(reversed(address.split("."))) + ".in-addr.arpa")
    assert answer.payload.name.name == b"some.backrooms"
    with pytest.raises(DNSNameError):
        await asks.lookupPointer("1.0.192.127.in-addr.arpa")
    assert len(ports.opener.requests) == asked


class Asker:
    """A bare socket."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.answers: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.socket.send(data)

    def poll(self) -> int:
        """How many answers have come; they are in `answers`."""
        try:
            while True:
                self.answers.append(self.socket.recv(2000))
        except BlockingIOError:
            return len(self.answers)


async def test_questions_are_bounded_and_asked_once(ports: Ports) -> None:
    asker = Asker(await ports.start(max_questions=2))
    hang = question(b"hang.example")
    for _ in range(3):
        asker.send(hang)
    asker.send(question(b"HANG.example"))
    await until(lambda: ports.waiting == 2)
    asker.send(question(b"web.example"))
    await until(lambda: asker.poll() == 1)
    assert read(asker.answers[0]).rCode == dns.ESERVER
    assert len(ports.opener.hanging) == 2
    ports.opener.hanging[0].callback([])
    await until(lambda: ports.waiting == 1)
    await until(lambda: asker.poll() == 2)
    assert read(asker.answers[1]).rCode == dns.ENAME
    asker.socket.close()


async def test_noise_has_no_answer(ports: Ports) -> None:
    asker = Asker(await ports.start())
    for noise in (b"", b"\0" * 12, b"\xff" * 600, question(b"web.example")[:-1], question(b"web.example", answer=1)):
        asker.send(noise)
    asker.send(question(b"web.example"))
    await until(lambda: asker.poll() == 1)
    assert len(ports.opener.requests) == 1
    asker.socket.close()


async def test_other_machines_are_not_answered(ports: Ports) -> None:
    class Wire:
        sent: list[Any]

        def __init__(self) -> None:
            self.sent = []

        def write(self, data: bytes, addr: Any) -> None:
            self.sent.append(addr[0])

    for allow_remote, answered in (
        (False, ["127.0.0.1", "::1"]),
        (True, ["127.0.0.1", "::1", "192.168.0.9", "fe80::1"]),
    ):
        port = DnsPort("udp:0:interface=127.0.0.1", ports.opener, ports.timers, reactor, allow_remote=allow_remote)
        wire: Any = Wire()
        port.transport = wire
        for host in ("127.0.0.1", "::1", "192.168.0.9", "fe80::1", "8.8.8.8", "2600::1"):
            port.datagramReceived(question(b"web.example"), (host, 5))
        assert wire.sent == answered


async def test_stopping_cancels_what_is_asked(ports: Ports) -> None:
    asker = Asker(await ports.start())
    asker.send(question(b"hang.example"))
    await until(lambda: ports.waiting == 1)
    await ports.started[0].stop()
    assert ports.waiting == 0
    assert ports.opener.hanging[0].called
    asker.socket.close()


@pytest.mark.parametrize("listen", ["udp:0", "udp:0:interface=0.0.0.0", r"udp:0:interface=\:\:"])
async def test_listening_for_others_must_be_meant(ports: Ports, listen: str) -> None:
    with pytest.raises(ConfigError, match="other machines could use it"):
        await ports.start(listen)


def test_where_to_listen() -> None:
    assert parse_listen("udp:53") == ("0.0.0.0", 53)
    assert parse_listen("udp:5353:interface=127.0.0.1") == ("127.0.0.1", 5353)
    assert parse_listen(r"udp:5353:interface=\:\:1") == ("::1", 5353)
    for bad in ("tcp:53", "udp:x", "udp:70000", "udp:53:interface=", "udp:53:interface=localhost", "udp:53:x=y", "53"):
        with pytest.raises(ConfigError, match="DNS port"):
            parse_listen(bad)


async def test_dig(ports: Ports, require: Callable[[str], str]) -> None:
    program, port = require("dig"), str(await ports.start())

    async def dig(*arguments: str) -> str:
        command = ["@127.0.0.1", "-p", port, "+tries=1", "+time=10", *arguments]
        done: Deferred[Any] = getProcessOutputAndValue(program, command, env={}, reactor=reactor)  # type: ignore[no-untyped-call]
        out, err, code = await done
        assert code == 0, err
        return str(out.decode())

    assert await dig("+short", "web.example") == "9.8.7.6\n"
    assert await dig("+short", "web.example", "AAAA") == "2600::1\n"
    assert await dig("+short", "-x", "9.8.7.6") == "web.example.\n"
    assert "status: NXDOMAIN" in await dig("none.example")
    assert "status: NOTIMP" in await dig("web.example", "TXT")
    whole = await dig("web.example")
    assert "status: NOERROR" in whole
    assert "WARNING" not in whole
    assert "flags: qr rd ra;" in whole
