"""Accepted connections that somebody decides about: what they cost before their turn, and how they are sent away."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.error import ConnectionLost
from twisted.internet.threads import deferToThread

from backrooms.transport import handshake
from backrooms.transport.gate import Visitor
from backrooms.transport.tls import TransportError
from tests.transport.loopback import SECONDS, Loopback, client_hello, dial, pause, until


class Ticket:
    """What one connection does; its turn comes when `go` is called."""

    def __init__(self) -> None:
        self.visitor: Visitor | None = None
        self.turns: list[Callable[[], None]] = []
        self.worked = 0
        self.ended = 0

    def wait(self, work: Callable[[], None]) -> None:
        self.turns.append(work)

    def go(self) -> None:
        reactor.callLater(0, self.turns.pop(0))

    def done(self) -> None:
        self.ended += 1

    def __enter__(self) -> None:
        self.worked += 1

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def pipe(self) -> Any:
        return self.visitor


class Door:
    """A gate whose tickets are kept."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.hosts: list[str] = []
        self.shut = False

    def arrive(self, address: Any) -> Ticket | None:
        self.hosts.append(address.host)
        if self.shut:
            return None
        self.tickets.append(Ticket())
        return self.tickets[-1]


class Guarded(Loopback):
    """A server with a door."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.door = Door()
        self.transport.gate = self.door

    async def knock(self, data: bytes = b"") -> tuple[socket.socket, Ticket]:
        """A plain connection that sends some bytes, and its ticket."""
        before = len(self.door.tickets)
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)
        connection.sendall(data)
        await until(lambda: len(self.door.tickets) > before and self.door.tickets[-1].pipe.transport)
        return connection, self.door.tickets[-1]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The TLS objects of accepted connections that were made."""
    found: list[Any] = []

    class Counted(SSL.Connection):
        def set_accept_state(self) -> None:
            found.append(self)
            super().set_accept_state()

    monkeypatch.setattr(SSL, "Connection", Counted)
    return found


def is_reset(connection: socket.socket) -> bool:
    """Whether the server resets the connection instead of closing it. Blocks."""
    with connection:
        try:
            return connection.recv(1000) == b"never"
        except ConnectionResetError:
            return True


async def test_who_is_not_let_in_is_reset_and_costs_nothing(made: list[Any]) -> None:
    server = await Guarded().start()
    server.door.shut = True
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
    assert await deferToThread(is_reset, connection)
    assert server.door.hosts == ["127.0.0.1"]
    assert server.refused == made == []
    await server.stop()


async def test_a_connection_waits_for_its_turn(made: list[Any]) -> None:
    server = await Guarded().start()
    found: list[Any] = []
    dial(server.address).addCallback(found.append)
    await until(lambda: server.door.tickets and server.door.tickets[0].turns)
    (ticket,) = server.door.tickets
    await pause(0.05)
    assert found == made == []
    ticket.go()
    await until(lambda: found and server.accepted)
    (client,), (accepted,) = found, server.accepted
    worked = ticket.worked
    assert worked >= 2, "the handshake, and the rest of it"
    client.pipe.write(b"hello")
    await until(lambda: accepted.data == b"hello")
    assert ticket.worked > worked
    accepted.pipe.proven()
    assert ticket.ended == 1
    worked = ticket.worked
    client.pipe.write(b", you")
    await until(lambda: accepted.data == b"hello, you")
    assert ticket.worked == worked, "it is not a stranger any more"
    await server.stop(client)
    assert ticket.ended == 1
    assert server.refused == []


async def test_silence_costs_next_to_nothing(made: list[Any]) -> None:
    server = await Guarded().start()
    connection, ticket = await server.knock()
    await pause(0.05)
    assert made == ticket.turns == []
    assert ticket.pipe._tls is None
    connection.close()
    await until(lambda: ticket.ended)
    assert server.refused == ["the connection closed during the TLS handshake"]
    await server.stop()


async def test_a_hello_in_drops(made: list[Any]) -> None:
    server = await Guarded().start()
    connection, ticket = await server.knock()
    hello = client_hello()
    drops = [hello[start : start + 16] for start in range(0, len(hello), 16)]
    for drop in drops:
        assert ticket.turns == []
        before = ticket.pipe._reads
        connection.sendall(drop)
        await until(lambda before=before: ticket.pipe._reads > before)  # type: ignore[misc]
    assert made == []
    assert ticket.worked == 0
    ticket.go()
    answer = await deferToThread(connection.recv, 65_536)
    assert answer[:1] == b"\x16"
    assert len(made) == 1
    connection.close()
    await until(lambda: ticket.ended)
    await server.stop()


async def test_a_handshake_in_too_many_pieces(made: list[Any]) -> None:
    server = await Guarded().start()
    connection, ticket = await server.knock()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    hello = client_hello()
    while not ticket.ended:
        before = ticket.pipe._reads
        try:
            connection.sendall(hello[before : before + 1])
        except OSError:
            pass
        await until(lambda before=before: ticket.pipe._reads > before or ticket.ended)  # type: ignore[misc]
    assert ticket.pipe._reads == handshake.EARLY_READS + 1
    assert server.refused == ["a handshake in too many pieces"]
    assert await deferToThread(is_reset, connection)
    assert made == []
    await server.stop()


@pytest.mark.parametrize(
    "words", [b"\x16\x03\x01\xff\xff" + bytes(70_000), b"\x16\x03\x01\x00\x05" + bytes(70_000)], ids=["huge", "behind"]
)
async def test_more_than_a_client_hello(words: bytes, made: list[Any]) -> None:
    server = await Guarded().start()
    connection, ticket = await server.knock(words)
    await until(lambda: ticket.ended)
    assert server.refused == ["too much before the TLS handshake"]
    for turn in ticket.turns:
        turn()
    assert made == []
    connection.close()
    await server.stop()


async def test_what_is_no_tls_waits_for_its_turn_too(made: list[Any]) -> None:
    """It is OpenSSL that says what is wrong with it."""
    server = await Guarded().start()
    connection, ticket = await server.knock(b"G")
    await until(lambda: ticket.turns)
    connection.sendall(b"ET / HTTP/1.1\r\n\r\n")
    await pause(0.02)
    assert made == []
    ticket.go()
    await until(lambda: ticket.ended)
    assert len(server.refused) == 1
    assert "TLS" in server.refused[0]
    connection.close()
    await server.stop()


@pytest.mark.parametrize("state", ["silent", "waiting", "shaking"])
async def test_a_stranger_can_be_sent_away_at_any_time(state: str) -> None:
    server = await Guarded().start()
    connection, ticket = await server.knock(b"" if state == "silent" else client_hello())
    await until(lambda: state == "silent" or ticket.turns)
    if state == "shaking":
        ticket.go()
        assert await deferToThread(connection.recv, 65_536)
    ticket.pipe.turn_away("nobody likes you")
    ticket.pipe.turn_away("nobody at all")
    assert await deferToThread(is_reset, connection)
    await until(lambda: ticket.ended)
    assert server.refused == ["nobody likes you"]
    for turn in ticket.turns:
        turn()
    await server.stop()


async def test_a_connection_that_proves_nothing_can_be_sent_away() -> None:
    server = await Guarded().start()
    connecting = dial(server.address)
    await until(lambda: server.door.tickets and server.door.tickets[0].turns)
    server.door.tickets[0].go()
    client = await connecting
    await until(lambda: server.accepted and server.accepted[0].made)
    server.door.tickets[0].pipe.turn_away("time is up")
    reason = await server.accepted[0].lost
    assert isinstance(reason, TransportError)
    assert str(reason) == "time is up"
    assert isinstance(await client.lost, ConnectionLost)
    assert server.door.tickets[0].ended == 1
    assert server.refused == [], "the inner protocol knows"
    await server.stop()


async def test_a_turn_that_comes_too_late(made: list[Any]) -> None:
    server = await Guarded().start()
    connection, ticket = await server.knock(client_hello())
    await until(lambda: ticket.turns)
    connection.close()
    await until(lambda: ticket.ended)
    ticket.go()
    await pause(0.02)
    assert made == []
    await server.stop()
