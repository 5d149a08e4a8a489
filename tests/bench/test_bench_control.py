"""The few lines of control protocol: replies, circuits, streams, authentication against a small server."""

from __future__ import annotations

import io
import socket
import threading
from pathlib import Path

import pytest

from bench.control import (
    Circuit,
    Control,
    ControlError,
    Stream,
    circuits_of_streams,
    parse_circuit,
    parse_stream,
    read_reply,
)

A, B, C = "A" * 40, "B" * 40, "C" * 40


def test_circuit_with_path_and_fields() -> None:
    line = f'7 BUILT ${A}~auth0,${B}=name,${C} PURPOSE=GENERAL SOCKS_USERNAME="a b" SOCKS_PASSWORD=""'
    circuit = parse_circuit(line)
    assert (circuit.id, circuit.state, circuit.path) == ("7", "BUILT", (A, B, C))
    assert circuit.fields == {"PURPOSE": "GENERAL", "SOCKS_USERNAME": "a b", "SOCKS_PASSWORD": ""}


def test_circuit_without_a_path_yet() -> None:
    assert parse_circuit("8 LAUNCHED PURPOSE=GENERAL") == Circuit("8", "LAUNCHED", (), {"PURPOSE": "GENERAL"})
    assert parse_circuit("8 LAUNCHED") == Circuit("8", "LAUNCHED", ())


@pytest.mark.parametrize("line", ["", "9", f"9 BUILT ${A}~a,,"])
def test_what_is_no_circuit_is_refused(line: str) -> None:
    with pytest.raises(ControlError):
        parse_circuit(line)


def test_stream() -> None:
    assert parse_stream("5 SUCCEEDED 7 127.0.0.1:80 PURPOSE=USER") == Stream("5", "SUCCEEDED", "7", "127.0.0.1:80")
    with pytest.raises(ControlError):
        parse_stream("5 NEW 0")


def test_circuits_of_streams_are_those_in_use_with_their_conflux_legs() -> None:
    circuits = [
        Circuit("1", "BUILT", (A, B, C), {"CONFLUX_ID": "X"}),
        Circuit("2", "BUILT", (B, A, C), {"CONFLUX_ID": "X"}),
        Circuit("3", "BUILT", (A, C, B), {"CONFLUX_ID": "Y"}),
        Circuit("4", "BUILT", (C, A, B)),
        Circuit("5", "BUILT", (C, B, A)),
    ]
    streams = [
        Stream("10", "SUCCEEDED", "1", "127.0.0.1:8000"),
        Stream("11", "SUCCEEDED", "4", "127.0.0.1:8000"),
        Stream("12", "SUCCEEDED", "5", "127.0.0.1:18000"),
        Stream("13", "SENTCONNECT", "3", "127.0.0.1:8000"),
    ]
    assert [c.id for c in circuits_of_streams(circuits, streams, 8000)] == ["1", "2", "4"]


def test_reply_of_one_line_of_many_and_with_data() -> None:
    assert read_reply(io.BytesIO(b"250 OK\r\n"), "X") == ["OK"]
    assert read_reply(io.BytesIO(b"250-a=1\r\n250 OK\r\n"), "X") == ["a=1", "OK"]
    data = b"650 BW 1 2\r\n250+a=\r\none\r\n..two\r\n.\r\n250 OK\r\n"
    assert read_reply(io.BytesIO(data), "X") == ["a=\none\n.two", "OK"]


@pytest.mark.parametrize("data", [b"", b"250-a=1\r\n", b"250+a=\r\none\r\n", b"552 no such key\r\n", b"nonsense\r\n"])
def test_broken_and_refusing_replies(data: bytes) -> None:
    with pytest.raises(ControlError, match="GETINFO"):
        read_reply(io.BytesIO(data), "GETINFO a")


class Server:
    """Answers each line it gets with the next of `replies`, and keeps what it was asked."""

    def __init__(self, replies: list[bytes]) -> None:
        self.asked: list[bytes] = []
        self._replies = replies
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        connection, _ = self._socket.accept()
        with connection, connection.makefile("rb") as lines:
            for line, reply in zip(lines, self._replies, strict=False):
                self.asked.append(line.rstrip(b"\r\n"))
                connection.sendall(reply)

    def close(self) -> None:
        """Wait for the last answer."""
        self._thread.join(5)
        self._socket.close()


def test_cookie_authentication_and_getinfo(tmp_path: Path) -> None:
    cookie = tmp_path / 'a "cookie"'
    cookie.write_bytes(bytes(range(32)))
    quoted = str(cookie).replace('"', '\\"').encode()
    info = b'250-PROTOCOLINFO 1\r\n250-AUTH METHODS=COOKIE,SAFECOOKIE COOKIEFILE="%b"\r\n250 OK\r\n' % quoted
    status = b"250+circuit-status=\r\n1 BUILT $%b~a\r\n.\r\n250 OK\r\n" % A.encode()
    server = Server([info, b"250 OK\r\n", status, b"250-stream-status=\r\n250 OK\r\n"])
    with Control(f"tcp:{server.address}") as control:
        assert control.circuits() == [Circuit("1", "BUILT", (A,))]
        assert control.streams() == []
    server.close()
    assert server.asked[1] == b"AUTHENTICATE " + bytes(range(32)).hex().encode()


def test_no_authentication_and_none_that_we_know() -> None:
    server = Server([b"250-AUTH METHODS=NULL\r\n250 OK\r\n", b"250 OK\r\n"])
    Control(server.address).close()
    server.close()
    assert server.asked == [b"PROTOCOLINFO 1", b"AUTHENTICATE"]
    server = Server([b"250-AUTH METHODS=HASHEDPASSWORD\r\n250 OK\r\n"])
    with pytest.raises(ControlError, match="neither NULL nor COOKIE"):
        Control(server.address)
    server.close()
