"""Nameservers asked by an exit itself, over loopback; and what the system's resolver says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import Clock

from backrooms.errors import ConfigError, StreamError
from backrooms.node import resolvers
from backrooms.node.resolvers import NEGATIVE_TTL, Found, Nameservers, SystemResolver, Unanswered, parse_nameserver
from backrooms.wire.relay import EndReason
from tests.node.nameserver import Nameserver, a, aaaa, cname, dns, has_ipv6, ptr

MakeServer = Callable[..., Nameserver]

WEB = (a("web.example", "198.51.100.1"), a("web.example", "198.51.100.2", 90), aaaa("web.example", "2001:db8::1", 77))


@pytest.fixture
def serve() -> Iterator[MakeServer]:
    made: list[Nameserver] = []

    def make(*records: Any, address: str = "127.0.0.1") -> Nameserver:
        made.append(Nameserver(records, address).start())
        return made[-1]

    yield make
    for one in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(one.stop()))


Patience = Callable[[float, float], None]


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Patience:
    """`patience(first, second)`: seconds for a server in each round. One that must answer is given many."""
    return lambda first, second: monkeypatch.setattr(resolvers, "QUERY_TIMEOUTS", (first, second))


async def addresses(*servers: Nameserver, name: str = "web.example") -> Found:
    return await Nameservers(reactor, [server.where for server in servers]).addresses(name)


async def test_addresses_of_both_kinds(serve: MakeServer) -> None:
    server = serve(*WEB)
    assert await addresses(server) == Found(("198.51.100.1", "198.51.100.2", "2001:db8::1"), 77)
    assert await addresses(server, name="WEB.example.") == Found(("198.51.100.1", "198.51.100.2", "2001:db8::1"), 77)
    assert {kind for _, kind, _ in server.asked} == {dns.A, dns.AAAA}


async def test_one_kind_is_enough(serve: MakeServer) -> None:
    server = serve(a("four.example", "198.51.100.4", 120), aaaa("six.example", "2001:db8::6", 130))
    assert await addresses(server, name="four.example") == Found(("198.51.100.4",), 120)
    assert await addresses(server, name="six.example") == Found(("2001:db8::6",), 130)


async def test_what_does_not_exist_is_no_failure(serve: MakeServer) -> None:
    assert await addresses(serve(*WEB), name="other.example") == Found((), NEGATIVE_TTL)
    assert await addresses(serve(ptr("198.51.100.1", b"x.example")), name="x.example") == Found((), NEGATIVE_TTL)


async def test_each_question_has_a_port_and_an_id_of_its_own(serve: MakeServer) -> None:
    server = serve(*WEB)
    one = Nameservers(reactor, [server.where])
    for _ in range(10):
        await one.addresses("web.example")
    assert len(server.asked) == 20
    assert len(server.sources) > 15
    assert len(server.ids) > 15


async def test_aliases_are_followed(serve: MakeServer) -> None:
    chain = [cname("a.example", "b.example", 50), cname("b.example", "c.example", 40), a("c.example", "198.51.100.3")]
    server = serve(*chain)
    assert await addresses(server, name="a.example") == Found(("198.51.100.3",), 40)


async def test_aliases_that_the_server_does_not_follow_are_asked_about(
    serve: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(cname("a.example", "b.example", 50), a("b.example", "198.51.100.3", 60))
    complete = server._answers
    monkeypatch.setattr(server, "_answers", lambda query: complete(query)[:1])
    assert await addresses(server, name="a.example") == Found(("198.51.100.3",), 50)
    assert server.count("b.example", dns.A) == 1


async def test_aliases_in_a_circle_lead_nowhere(serve: MakeServer) -> None:
    server = serve(cname("a.example", "b.example"), cname("b.example", "a.example"))
    assert await addresses(server, name="a.example") == Found((), NEGATIVE_TTL)
    assert len(server.asked) <= 2 * resolvers.CNAME_LIMIT


async def test_records_that_nobody_asked_about_count_for_nothing(
    serve: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(*WEB)
    monkeypatch.setattr(server, "_answers", lambda query: [a("bank.example", "198.51.100.66")])
    assert await addresses(server) == Found((), NEGATIVE_TTL)


async def test_an_answer_that_does_not_fit_is_asked_for_over_tcp(serve: MakeServer) -> None:
    many = [a("many.example", f"198.51.100.{number}") for number in range(60)]
    server = serve(*many)
    found = await addresses(server, name="many.example")
    assert len(found.values) == 60
    assert {way for _, kind, way in server.asked if kind == dns.A} == {"UDP", "TCP"}


async def test_the_next_server_is_asked_when_one_cannot_tell_or_is_silent(
    serve: MakeServer, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience(0.5, 20)
    monkeypatch.setattr(resolvers, "LOOK_UP_TIME", 60)
    broken, silent, good = serve(), serve(), serve(*WEB)
    broken.broken = silent.silent = {dns.A, dns.AAAA}
    assert len((await addresses(broken, silent, good)).values) == 3
    assert broken.asked
    assert silent.asked


@pytest.mark.parametrize("fault", ["broken", "silent", "confused"])
async def test_a_failure_may_be_over_later(serve: MakeServer, fault: str, patience: Patience) -> None:
    """SERVFAIL, silence, and answers to other questions, as somebody would send who guesses ids."""
    patience(0.2, 0.3)
    server = serve(*WEB)
    setattr(server, fault, {dns.A, dns.AAAA})
    with pytest.raises(Unanswered):
        await addresses(server)
    assert server.count("web.example", dns.A) == 2
    setattr(server, fault, set())
    patience(3, 5)
    assert len((await addresses(server)).values) == 3


@pytest.mark.parametrize("fault", ["broken", "silent"])
async def test_one_kind_that_is_not_answered_does_not_spoil_the_other(
    serve: MakeServer, fault: str, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers cannot cope with AAAA. The addresses that are known wait for the rest only a moment."""
    monkeypatch.setattr(resolvers, "LAGGARD_TIME", 0.05)
    monkeypatch.setattr(resolvers, "LOOK_UP_TIME", 60)
    patience(0.1, 60)
    server = serve(*WEB)
    setattr(server, fault, {dns.AAAA})
    assert (await addresses(server)).values == ("198.51.100.1", "198.51.100.2")


async def test_a_look_up_has_an_end(serve: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolvers, "LOOK_UP_TIME", 0.2)
    server = serve()
    server.silent = {dns.A, dns.AAAA, dns.PTR}
    with pytest.raises(Unanswered):
        await addresses(server)
    with pytest.raises(Unanswered):
        await Nameservers(reactor, [server.where]).names("198.51.100.1")


async def test_nobody_listens(patience: Patience) -> None:
    patience(0.2, 0.3)
    server = Nameserver().start()
    where = server.where
    await server.stop()
    with pytest.raises(Unanswered):
        await Nameservers(reactor, [where]).addresses("web.example")


async def test_names_of_addresses(serve: MakeServer) -> None:
    server = serve(ptr("198.51.100.1", b"web.example", 99), ptr("2001:db8::1", b"six.example"))
    one = Nameservers(reactor, [server.where])
    assert await one.names("198.51.100.1") == Found(("web.example",), 99)
    assert (await one.names("2001:db8::1")).values == ("six.example",)
    assert await one.names("198.51.100.9") == Found((), NEGATIVE_TTL)


async def test_names_of_delegated_addresses(serve: MakeServer) -> None:
    """RFC 2317: the pointer of an address in a small network is an alias."""
    alias = cname("1.100.51.198.in-addr.arpa", "1.0-26.100.51.198.in-addr.arpa")
    target = dns.RRHeader(
        b"1.0-26.100.51.198.in-addr.arpa", dns.PTR, ttl=600, payload=dns.Record_PTR(b"web.example", 600)
    )
    assert (await Nameservers(reactor, [serve(alias, target).where]).names("198.51.100.1")).values == ("web.example",)


async def test_servers_over_ipv6(serve: MakeServer) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no ::1")
    many = [aaaa("many.example", f"2001:db8::{number}") for number in range(60)]
    assert len((await addresses(serve(*many, address="::1"), name="many.example")).values) == 60


async def test_many_questions_at_once(serve: MakeServer) -> None:
    server = serve(*(a(f"name{number}.example", f"198.51.100.{number}") for number in range(100)))
    one = Nameservers(reactor, [server.where])
    asked = [Deferred.fromCoroutine(one.addresses(f"name{number}.example")) for number in range(100)]
    found: Any = await DeferredList(asked, fireOnOneErrback=True)
    assert [answer.values for _, answer in found] == [(f"198.51.100.{number}",) for number in range(100)]


async def test_no_descriptors_left_is_said_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def socket(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("twisted.internet.udp.Port.createInternetSocket", socket)
    with pytest.raises(StreamError) as raised:
        await Nameservers(reactor, ["127.0.0.1:9"]).addresses("web.example")
    assert raised.value.reason == EndReason.RESOURCELIMIT


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:DB8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]:54", ("2001:db8::1", 54)),
    ],
)
def test_how_servers_are_written(text: str, parsed: tuple[str, int]) -> None:
    assert parse_nameserver(text) == parsed


@pytest.mark.parametrize("text", ["", "dns.example", "192.0.2.1:x", "[::1", "192.0.2.1:"])
def test_how_servers_are_not_written(text: str) -> None:
    with pytest.raises(ConfigError, match="nameserver"):
        Nameservers(Clock(), [text])


async def test_the_system_resolver_knows_this_machine() -> None:
    found = await SystemResolver(reactor).addresses("localhost")
    assert set(found.values) <= {"127.0.0.1", "::1"}
    assert found.values
