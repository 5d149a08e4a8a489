"""The small blocking controller, against a node that answers as it should and against others."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from twisted.internet.threads import deferToThread

from backrooms.cli.client import ControlAddress, ControlClient, ControlError, NotRunning
from backrooms.errors import ConfigError
from tests.control.fakes import Served, relay


class Impostor:
    """Listens on a unix socket and answers one controller's lines with fixed bytes.

    After the last answer it closes the connection or, when `silent`, says nothing more.
    """

    def __init__(self, path: Path, *answers: bytes, silent: bool = False) -> None:
        self.address = ControlAddress(path=str(path))
        self.heard: list[bytes] = []
        self._answers = answers
        self._silent = silent
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        connection = self._listener.accept()[0]
        with connection, connection.makefile("rb") as lines:
            for answer in self._answers:
                self.heard.append(lines.readline())
                connection.sendall(answer)
            if self._silent:
                self._done.wait(10)

    def __enter__(self) -> Impostor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def cookie_file(tmp_path: Path) -> Path:
    path = tmp_path / "cookie"
    path.write_bytes(bytes(32))
    return path


def protocol_info(methods: str = "COOKIE,SAFECOOKIE", file: object = "/nowhere") -> bytes:
    return (
        f'250-PROTOCOLINFO 1\r\n250-AUTH METHODS={methods} COOKIEFILE="{file}"\r\n'
        '250-VERSION Tor="0.4.9.11"\r\n250 OK\r\n'
    ).encode()


def failure(impostor: Impostor, timeout: float = 5.0) -> str:
    with impostor, pytest.raises(ControlError) as caught, ControlClient(impostor.address, timeout) as client:
        client.info("version")
    assert not isinstance(caught.value, NotRunning)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/run/control.sock", ControlAddress(path="/run/control.sock")),
        ("./control.sock", ControlAddress(path="./control.sock")),
        ("unix:/run/control.sock", ControlAddress(path="/run/control.sock")),
        ("unix:control.sock", ControlAddress(path="control.sock")),
        ("unix:/run/control.sock:mode=600", ControlAddress(path="/run/control.sock")),
        ("unix:address=/run/control.sock:lockfile=0", ControlAddress(path="/run/control.sock")),
        (r"unix:/a\:b:mode=600", ControlAddress(path="/a:b")),
        ("127.0.0.1:9051", ControlAddress(host="127.0.0.1", port=9051)),
        ("localhost:9051", ControlAddress(host="localhost", port=9051)),
        ("[::1]:9051", ControlAddress(host="::1", port=9051)),
        ("tcp:9051", ControlAddress(host="127.0.0.1", port=9051)),
        ("tcp:port=9051", ControlAddress(host="127.0.0.1", port=9051)),
        ("tcp:9051:interface=127.0.0.2", ControlAddress(host="127.0.0.2", port=9051)),
        ("tcp:9051:interface=0.0.0.0", ControlAddress(host="127.0.0.1", port=9051)),
        (r"tcp6:9051:interface=\:\:1", ControlAddress(host="::1", port=9051)),
        ("tcp6:9051", ControlAddress(host="::1", port=9051)),
        ("tcp:127.0.0.1:9051", ControlAddress(host="127.0.0.1", port=9051)),
    ],
)
def test_addresses(text: str, address: ControlAddress) -> None:
    assert ControlAddress.parse(text) == address
    if address.port:
        assert ControlAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "unix:", "9051", "host", "host:", ":9051", "host:0", "host:65536", "tcp:", "tcp:x", "host:9x"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="no control address"):
        ControlAddress.parse(text)


@pytest.mark.parametrize("cookie", [True, False])
async def test_questions_and_orders(tmp_path: Path, cookie: bool) -> None:
    async with Served(tmp_path, "tcp:0:interface=127.0.0.1", cookie=cookie) as served:
        served.view.relay_list = [relay(0, id=f"relay {number}") for number in range(2000)]

        def talk() -> None:
            with ControlClient(ControlAddress.parse(served.server.addresses()[0])) as client:
                assert client.info("version") == "0.4.9.11 (backrooms-0.1.0)"
                assert client.info("stream-status").startswith("3 SUCCEEDED ")
                assert client.json("backrooms/status")["pid"] > 0
                assert [item["id"] for item in client.json("backrooms/relays")][-1] == "relay 1999"
                client.command("SETEVENTS SIGNAL BW")
                client.command("SIGNAL NEWNYM")
                assert client.info("dormant") == "0"  # the event came before this
                with pytest.raises(ControlError, match='552 Unrecognized key "nosuch"'):
                    client.info("nosuch")

        await deferToThread(talk)
        assert served.view.asked == ["newnym"]


def test_nobody_there(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with pytest.raises(NotRunning, match="no node answers at unix:"):
        ControlClient(ControlAddress(path=str(path))).__enter__()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with pytest.raises(NotRunning):
        ControlClient(ControlAddress(path=str(path))).__enter__()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        with pytest.raises(NotRunning):
            ControlClient(ControlAddress(host="127.0.0.1", port=free.getsockname()[1])).__enter__()


def test_a_path_that_cannot_be_a_socket(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="cannot connect"):
        ControlClient(ControlAddress(path="/" + "x" * 200)).__enter__()
    with pytest.raises(ControlError):
        ControlClient(ControlAddress(path=str(tmp_path))).__enter__()


def test_one_who_never_answers(tmp_path: Path) -> None:
    assert "no answer from unix:" in failure(Impostor(tmp_path / "s", silent=True), timeout=0.1)


def test_one_who_answers_in_drips_does_not_get_more_time(tmp_path: Path) -> None:
    ticks = iter(range(1000))
    events = b"650 BW 0 0\r\n" * 3
    with Impostor(tmp_path / "s", events, silent=True) as impostor, pytest.raises(ControlError, match="no answer"):
        ControlClient(impostor.address, 3.0, clock=lambda: float(next(ticks))).__enter__()


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ([], "closed the connection without an answer"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "does not speak the control protocol"),
        ([b"\xff\xfe\n"], "does not speak the control protocol"),
        ([b"514 Authentication required.\r\n"], "the node says: 514 Authentication required."),
        ([b"250 OK\r\n"], "does not say how to authenticate"),
        ([b'250-AUTH METHODS=COOKIE COOKIEFILE="\r\n250 OK\r\n'], "does not say how to authenticate"),
        ([protocol_info("HASHEDPASSWORD")], "offers only HASHEDPASSWORD"),
        ([protocol_info(file="/nowhere/cookie")], "cannot read the cookie /nowhere/cookie: No such file"),
        ([protocol_info(file="/etc/passwd")], "/etc/passwd is no cookie"),
    ],
)
def test_those_who_are_no_node(tmp_path: Path, answers: list[bytes], text: str) -> None:
    assert text in failure(Impostor(tmp_path / "s", *answers))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"250 OK\r\n", "challenge makes no sense"),
        (b"250 AUTHCHALLENGE SERVERHASH=00 SERVERNONCE=00\r\n", "challenge makes no sense"),
        (
            b"250 AUTHCHALLENGE SERVERHASH=" + b"00" * 32 + b" SERVERNONCE=" + b"00" * 32 + b"\r\n",
            "does not know the cookie",
        ),
    ],
)
def test_one_who_does_not_know_the_cookie_learns_nothing(
    tmp_path: Path, cookie_file: Path, answer: bytes, text: str
) -> None:
    impostor = Impostor(tmp_path / "s", protocol_info(file=cookie_file), answer)
    assert text in failure(impostor)
    assert [line.split()[0] for line in impostor.heard] == [b"PROTOCOLINFO", b"AUTHCHALLENGE"]


@pytest.mark.parametrize("answer", [b"250-other=1\r\n250 OK\r\n", b"250 OK\r\n"])
def test_an_answer_to_another_question(tmp_path: Path, answer: bytes) -> None:
    impostor = Impostor(tmp_path / "s", protocol_info("NULL"), b"250 OK\r\n", answer)
    assert "to version" in failure(impostor)


def test_json_that_is_none(tmp_path: Path) -> None:
    answers = (protocol_info("NULL"), b"250 OK\r\n", b"250-x={\r\n250 OK\r\n")
    with (
        Impostor(tmp_path / "s", *answers) as impostor,
        ControlClient(impostor.address) as client,
        pytest.raises(ControlError, match="is not JSON"),
    ):
        client.json("x")
