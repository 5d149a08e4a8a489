"""The control port on real sockets."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater

from backrooms.control import server as server_module
from backrooms.errors import ConfigError
from tests.control.caller import LOOPBACK, Caller, tcp_address, threaded
from tests.control.fakes import Served, relay


async def test_unix_socket(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        assert stat.S_IMODE(served.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(served.cookie_path.stat().st_mode) == 0o600
        assert served.server.addresses() == [f"unix:{served.socket}"]

        def talk() -> None:
            with Caller(str(served.socket)) as caller:
                assert caller.ask("PROTOCOLINFO 1") == "250 OK"
                caller.enter(served)
                caller.send(b"GETINFO version net/listeners/control\r\n")
                answer = caller.reply()
                assert answer is not None
                assert answer.lines[1].text == f'net/listeners/control="unix:{served.socket}"'
                assert caller.ask("QUIT") == "250 closing connection"
                assert caller.reply() is None

        await threaded(talk)
    assert not served.socket.exists()


async def test_a_mode_of_your_own(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with Served(tmp_path, f"unix:{path}:mode=660"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


async def test_tcp_and_several_listeners(tmp_path: Path) -> None:
    async with Served(tmp_path, LOOPBACK, f"unix:{tmp_path}/s") as served:
        first, second = served.server.addresses()
        assert second == f"unix:{tmp_path}/s"
        host, port = first.rsplit(":", 1)

        def talk() -> None:
            with Caller((host, int(port))) as caller:
                caller.enter(served)
                assert caller.ask("GETCONF Nickname") == "250 Nickname=Tester"

        await threaded(talk)


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp:9051",
        "tcp:9051:interface=0.0.0.0",
        "tcp:9051:interface=192.0.2.1",
        "tcp6:9051",
        r"tcp6:9051:interface=\:\:",
        "tcp:port=9051",
        "tcp:9051:interface=",
    ],
)
async def test_other_machines_are_kept_out(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        async with Served(tmp_path, endpoint):
            pass
    assert not (tmp_path / "control_auth_cookie").exists()


async def test_other_machines_can_be_let_in(tmp_path: Path) -> None:
    async with Served(tmp_path, "tcp:0:interface=0.0.0.0", allow_remote=True) as served:
        assert served.server.addresses()[0].startswith("0.0.0.0:")


async def test_ipv6_loopback_is_local(tmp_path: Path) -> None:
    async with Served(tmp_path, r"tcp6:0:interface=\:\:1") as served:
        assert served.server.addresses()[0].startswith("[::1]:")


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        ("nosuch:1", "is not an endpoint"),
        ("tcp:x:interface=127.0.0.1", "is not an endpoint"),
        ("tcp:1:interface=127.0.0.1:nosuch=1", "is not an endpoint"),
        ("unix:/nonexistent/folder/s", "cannot listen"),
        ("unix:/" + "x" * 200, "cannot listen"),
    ],
)
async def test_an_endpoint_that_cannot_be(tmp_path: Path, endpoint: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        async with Served(tmp_path, f"unix:{tmp_path}/first", endpoint):
            pass
    assert not (tmp_path / "first").exists()


async def test_two_nodes_cannot_share_a_socket(tmp_path: Path) -> None:
    async with Served(tmp_path):
        with pytest.raises(ConfigError, match="cannot listen"):
            async with Served(tmp_path):
                pass


async def test_the_cookie_needs_a_folder(tmp_path: Path) -> None:
    served = Served(tmp_path / "missing", LOOPBACK)
    with pytest.raises(ConfigError, match="cannot write the cookie"):
        async with served:
            pass


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("GETINFO version", "514 Authentication required."),
        ("", "514 Authentication required."),
        ("POST / HTTP/1.1", "514 Authentication required."),
        ("GETINFO \0", "514 Authentication required."),
        (
            "AUTHENTICATE " + "00" * 32,
            "515 Authentication failed: Authentication cookie did not match expected value.",
        ),
        ("AUTHENTICATE", "515 Authentication failed: Wrong length on authentication cookie."),
    ],
)
async def test_who_does_not_authenticate_is_sent_away(tmp_path: Path, line: str, expected: str) -> None:
    async with Served(tmp_path) as served:

        def talk() -> list[str]:
            with Caller(str(served.socket)) as caller:
                return [caller.ask(line), caller.text()]

        assert await threaded(talk) == [expected, "closed"]


async def test_nothing_is_obeyed_after_a_refusal(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        secret = served.cookie_path.read_bytes().hex()

        def talk() -> list[str]:
            with Caller(str(served.socket)) as caller:
                caller.send(f"GETINFO version\r\nAUTHENTICATE {secret}\r\nSIGNAL NEWNYM\r\n".encode())
                return [caller.text(), caller.text()]

        assert await threaded(talk) == ["514 Authentication required.", "closed"]
        assert served.view.asked == []


async def test_without_a_cookie(tmp_path: Path) -> None:
    async with Served(tmp_path, cookie=False) as served:
        assert not served.cookie_path.exists()

        def talk() -> str:
            with Caller(str(served.socket)) as caller:
                assert caller.ask("AUTHENTICATE") == "250 OK"
                return caller.ask("GETINFO version")

        assert await threaded(talk) == "250 OK"


async def test_one_byte_at_a_time(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:

        def talk() -> str:
            with Caller(str(served.socket)) as caller:
                for byte in f"AUTHENTICATE {served.cookie_path.read_bytes().hex()}\r\nQUIT\r\n".encode():
                    caller.send(bytes([byte]))
                assert caller.text() == "250 OK"
                return caller.text()

        assert await threaded(talk) == "250 closing connection"


async def test_stopping_lets_the_last_words_out(tmp_path: Path) -> None:
    served = Served(tmp_path, LOOPBACK)
    async with served:
        with Caller(tcp_address(served)) as caller, Caller(tcp_address(served)) as idle:
            await threaded(lambda: caller.enter(served))
            assert await threaded(lambda: caller.ask("SIGNAL SHUTDOWN")) == "250 OK"
            assert served.view.asked == ["shutdown now=False"]
            await served.server.stop()
            assert await threaded(caller.text) == "closed"
            assert await threaded(idle.text) == "closed"
            assert served.server.addresses() == []


async def test_stopping_does_not_wait_for_those_who_do_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LINGER_TIME", 0.2)
    async with Served(tmp_path) as served:
        served.view.relay_list = [relay(0)] * 20_000
        with Caller(str(served.socket)) as deaf:
            await threaded(lambda: deaf.enter(served))
            deaf.send(b"GETINFO ns/all\r\n")
            await deferLater(reactor, 0.1)
            await served.server.stop()
