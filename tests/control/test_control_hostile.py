"""Controllers that misbehave, and what others notice of it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater

from backrooms.control import server as server_module
from backrooms.control.server import MAX_CONTROLLERS, MAX_PENDING
from backrooms.control.view import Bandwidth, CircuitChanged, LogLine, RelayInfo
from tests.conftest import Watch
from tests.control.caller import Caller, threaded, until
from tests.control.fakes import Served, circuit, relay


@pytest.mark.parametrize("filler", [b"x", b"\0", b"\xff", b'"'])
@pytest.mark.parametrize("entered", [False, True])
async def test_ten_megabytes_without_a_line_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filler: bytes, entered: bool
) -> None:
    monkeypatch.setattr(server_module, "LINGER_TIME", 0.2)
    async with Served(tmp_path) as served:

        def talk() -> list[str]:
            with Caller(str(served.socket)) as caller:
                if entered:
                    caller.enter(served)
                caller.send(filler * 10_000_000)
                return [caller.text(), caller.text()]

        expected = "500 Syntax error: line of more than 65536 bytes"
        assert await threaded(talk) == [expected if entered else "514 Authentication required.", "closed"]


async def test_bad_bytes_get_an_error_and_the_connection_lives(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:

        def talk() -> list[str]:
            with Caller(str(served.socket)) as caller:
                caller.enter(served)
                return [caller.ask("GETINFO \0"), caller.ask("GETINFO caf\xe9"), caller.ask("GETINFO version")]

        bad = "500 Syntax error: control characters or bytes outside ASCII"
        assert await threaded(talk) == [bad, bad, "250 OK"]


async def test_commands_before_the_end_of_input_are_answered(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        served.view.relay_list = [relay(0)] * 1000  # so that the answers do not fit at once
        secret = served.cookie_path.read_bytes().hex()

        def talk() -> list[str]:
            with Caller(str(served.socket)) as caller:
                caller.send(f"AUTHENTICATE {secret}\r\n".encode() + b"GETINFO ns/all\r\n" * 20)
                caller.socket.shutdown(socket.SHUT_WR)
                return [caller.text() for _ in range(22)]

        assert await threaded(talk) == ["250 OK"] * 21 + ["closed"]


async def test_a_controller_that_asks_and_does_not_read_is_kept_waiting(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        asked = 0

        class Counting(list[RelayInfo]):
            def __iter__(self):  # type: ignore[no-untyped-def]
                nonlocal asked
                asked += 1
                return super().__iter__()

        served.view.relay_list = Counting([relay(0)] * 1000)
        with Caller(str(served.socket)) as caller:
            await threaded(lambda: caller.enter(served))
            await threaded(lambda: caller.send(b"GETINFO ns/all\r\n" * 40))
            await until(lambda: asked > 0)
            await deferLater(reactor, 0.2)
            assert asked < 10
            for _ in range(40):
                assert await threaded(caller.text) == "250 OK"
            assert asked == 40


async def test_events_go_to_those_who_want_them(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        view = served.view
        with Caller(str(served.socket)) as one, Caller(str(served.socket)) as two, Caller(str(served.socket)) as none:
            for caller in (one, two, none):
                await threaded(lambda caller=caller: caller.enter(served))  # type: ignore[misc]
            assert view.subscribers == []
            assert await threaded(lambda: one.ask("SETEVENTS BW CIRC")) == "250 OK"
            assert await threaded(lambda: two.ask("SETEVENTS NOTICE SIGNAL")) == "250 OK"
            assert len(view.subscribers) == 1
            view.publish(Bandwidth(1, 2))
            view.publish(LogLine("NOTICE", "caf\xe9"))
            view.publish(LogLine("WARN", "nobody wants this"))
            view.publish(CircuitChanged(circuit(9, status="LAUNCHED", path=())))
            assert await threaded(one.text) == "650 BW 1 2"
            assert (await threaded(one.text)).startswith("650 CIRC 9 LAUNCHED ")
            assert await threaded(two.text) == "650 NOTICE caf\\xe9"
            # the reply first, then what comes of it
            assert await threaded(lambda: two.ask("SIGNAL NEWNYM")) == "250 OK"
            assert await threaded(two.text) == "650 SIGNAL NEWNYM"
            assert await threaded(lambda: none.ask("GETINFO version")) == "250 OK"
            assert await threaded(lambda: one.ask("SETEVENTS")) == "250 OK"
            assert len(view.subscribers) == 1
        await until(lambda: view.subscribers == [])


async def test_who_does_not_read_events_is_dropped_and_others_live(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        line = LogLine("NOTICE", "x" * 60_000)
        with Caller(str(served.socket)) as deaf, Caller(str(served.socket)) as other:
            for caller in (deaf, other):
                await threaded(lambda caller=caller: caller.enter(served))  # type: ignore[misc]
            assert await threaded(lambda: deaf.ask("SETEVENTS NOTICE")) == "250 OK"
            for _ in range(MAX_PENDING // 60_000 + 20):
                served.view.publish(line)
            await until(lambda: served.view.subscribers == [])
            assert await threaded(lambda: other.ask("GETINFO version")) == "250 OK"


async def test_there_is_a_limit_to_controllers(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        path = str(served.socket)
        callers = [await threaded(lambda: Caller(path)) for _ in range(MAX_CONTROLLERS)]
        try:
            for caller in (callers[0], callers[-1]):
                await threaded(lambda caller=caller: caller.enter(served))  # type: ignore[misc]
            with Caller(path) as late:
                assert await threaded(late.text) == "closed"
            callers.pop().socket.close()
            await deferLater(reactor, 0.05)
            with Caller(path) as later:
                await threaded(lambda: later.enter(served))
        finally:
            for caller in callers:
                caller.socket.close()


async def test_who_says_nothing_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "AUTHENTICATION_TIME", 0.2)
    async with Served(tmp_path) as served:
        with Caller(str(served.socket)) as silent, Caller(str(served.socket)) as known:
            await threaded(lambda: known.enter(served))
            assert await threaded(silent.text) == "closed"
            assert await threaded(lambda: known.ask("GETINFO version")) == "250 OK"


async def test_a_fault_of_ours_is_an_answer(tmp_path: Path, clean: Watch) -> None:
    async with Served(tmp_path) as served:
        served.view.circuit_list = None  # type: ignore[assignment]

        def talk() -> list[str]:
            with Caller(str(served.socket)) as caller:
                caller.enter(served)
                return [caller.ask("GETINFO circuit-status"), caller.ask("GETINFO version")]

        assert await threaded(talk) == ["551 Internal error", "250 OK"]
        assert len(clean.flush(TypeError)) == 1
