"""The page of an exit: what it says, to whom, and that nobody can make it do more."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread

from backrooms.errors import ConfigError, RemoteProtocolError
from backrooms.node.driver import Turn
from backrooms.node.exitnotice import MAX_CONNECTIONS, MAX_PAGE, TIME, ExitNotice, NoticeMachine, built_in_page
from backrooms.node.timers import Timers
from tests.simnet.network import Host, SimNet
from tests.simnet.pairs import Recorder

PAGE = built_in_page("abuse@example.org")
HEADERS = {
    "server",
    "connection",
    "content-type",
    "content-length",
    "content-security-policy",
    "x-content-type-options",
    "referrer-policy",
}


def ask(request: bytes, step: int = 1_000_000) -> bytes:
    """What a machine answers to these bytes."""
    machine = NoticeMachine(PAGE, 0.0)
    for start in range(0, len(request), step):
        machine.receive(request[start : start + step], 1.0)
    answer = machine.output()
    assert len(machine.events()) == (1 if answer else 0)
    if answer:
        machine.receive(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1.0)
        assert machine.output() == b"", "one answer is enough"
    return answer


def parts(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("ascii").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(status.split()[1]), headers, body


def get(target: str = "/", method: str = "GET", version: str = "1.1") -> bytes:
    return f"{method} {target} HTTP/{version}\r\nHost: exit.example\r\n\r\n".encode()


def test_the_page() -> None:
    status, headers, body = parts(ask(get()))
    assert status == 200
    assert body == PAGE
    assert set(headers) == HEADERS
    assert headers["server"] == "backrooms"
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "script" not in headers["content-security-policy"]


@pytest.mark.parametrize("request_", [get(version="1.0"), get("/?from=you"), b"GET / HTTP/1.0\r\n\r\n"])
def test_other_ways_to_ask_for_it(request_: bytes) -> None:
    assert parts(ask(request_))[2] == PAGE


def test_one_byte_at_a_time() -> None:
    assert ask(get(), 1) == ask(get())


def test_head_has_the_same_headers_and_no_body() -> None:
    assert parts(ask(get(method="HEAD"))) == (*parts(ask(get()))[:2], b"")
    assert parts(ask(get("/no", "HEAD")))[::2] == (404, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get"])
def test_other_methods(method: str) -> None:
    status, headers, _ = parts(ask(get(method=method)))
    assert status == 405
    assert headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("target", ["/x", "/index.html", "//", "*", "http://elsewhere.example/", "/../etc/passwd"])
def test_there_is_no_other_page(target: str) -> None:
    status, headers, body = parts(ask(get(target)))
    assert status == 404
    assert headers["content-type"].startswith("text/plain")
    assert target.encode() not in body or len(target) < 3


def test_a_connect_is_not_answered_with_a_tunnel() -> None:
    assert parts(ask(get("elsewhere.example:443", "CONNECT")))[0] == 405


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n", 400),
        (b"GET /" + b"x" * 10_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 3000, 431),
    ],
)
def test_what_is_no_request(request_: bytes, status: int) -> None:
    assert parts(ask(request_))[0] == status


@given(
    st.lists(st.binary(max_size=60) | st.sampled_from([b"GET ", b"/", b" HTTP/1.1", b"\r\n", b"Host: x"]), max_size=9)
)
def test_any_bytes_get_an_answer_or_none(pieces: list[bytes]) -> None:
    answer = ask(b"".join(pieces))
    assert answer == b"" or parts(answer)[1]["server"] == "backrooms"


def test_nothing_tells_what_serves_it() -> None:
    for request in (get(), get("/x"), get(method="POST"), b"rubbish\r\n\r\n"):
        head = ask(request).partition(b"\r\n\r\n")[0].lower()
        assert not any(word in head for word in (b"twisted", b"python", b"h11", b"0.1", b"date"))


def test_closing_without_a_request() -> None:
    machine = NoticeMachine(PAGE, 0.0)
    machine.receive(b"GET / HT", 1.0)
    with pytest.raises(RemoteProtocolError):
        machine.receive_eof(1.0)
    done = NoticeMachine(PAGE, 0.0)
    done.receive(get(), 1.0)
    done.receive_eof(1.0)  # the usual thing for "nc"
    assert done.output()


class Tags(HTMLParser):
    """Checks that tags are closed, and collects them with what they refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_what_the_page_says() -> None:
    text = built_in_page('Nobody <nobody@example.org> <script>alert("x")</script>').decode()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not tags.seen & {"script", "style", "img", "iframe", "form", "link"}
    assert not tags.attributes & {"src", "href", "style", "onload"}
    assert "Nobody &lt;nobody@example.org&gt;" in text
    assert "<script" not in text
    for word in ("exit", "Backrooms network", "no record", "backrooms relays", "Contact"):
        assert word in text


class Served:
    """The page on a simulated host, and clients on another."""

    def __init__(self, page: bytes | None = None) -> None:
        self.net = SimNet()
        self.host, self.client = self.net.host("exit"), self.net.host("client")
        self.timers = Timers(self.host.reactor)
        self.notice = ExitNotice(self.host.reactor, self.timers, Turn(self.host.reactor), ["tcp:80"], "a@example.org")
        if page is not None:
            self.notice._page = page
        self.net.run_until(self.notice.start())

    def connect(self, host: Host | None = None) -> Recorder:
        made = Recorder(self.net)
        endpoint = TCP4ClientEndpoint((host or self.client).reactor, self.host.address, 80)
        self.net.run_until(endpoint.connect(Factory.forProtocol(lambda: made)))
        return made

    def close(self) -> None:
        self.net.run_until(self.notice.stop())
        self.net.run(1)
        assert len(self.timers) == 0
        assert len(self.notice) == 0


def test_the_connection_is_closed_behind_the_answer() -> None:
    served = Served()
    one = served.connect()
    one.tcp.write(get())
    served.net.run_until(lambda: one.lost)
    assert parts(bytes(one.received))[2] == built_in_page("a@example.org")
    assert served.net.now - served.net._start < 2
    served.close()


def test_a_long_page_arrives_whole() -> None:
    served = Served(bytes(MAX_PAGE))
    one = served.connect()
    one.tcp.write(get())
    served.net.run_until(lambda: one.lost)
    assert parts(bytes(one.received))[2] == bytes(MAX_PAGE)
    served.close()


@pytest.mark.parametrize("every", [None, 1.0])
def test_who_is_slow_is_cut_off(every: float | None) -> None:
    """Also one who sends a byte now and then."""
    served = Served()
    one = served.connect()
    if every is not None:
        for number in range(100):
            served.client.reactor.callLater(number * every, lambda: one.lost or one.tcp.write(b"x"))
    served.net.run(TIME - 1)
    assert one.lost is None
    served.net.run(2)
    assert one.lost is not None
    assert len(served.notice) == 0
    served.net.run(100)
    served.close()


def test_who_does_not_read_is_cut_off() -> None:
    served = Served(b"x" * 4_000_000)
    one = served.connect()
    one.tcp.pauseProducing()
    one.tcp.write(get())
    served.net.run(TIME - 1)
    assert len(served.notice) == 1
    served.net.run(2)
    assert len(served.notice) == 0
    served.close()


def test_so_many_connections_and_no_more() -> None:
    served = Served()
    held = [served.connect() for _ in range(MAX_CONNECTIONS)]
    one_more = served.connect()
    served.net.run(1)
    assert one_more.lost is not None
    assert not any(one.lost for one in held)
    held[0].tcp.abortConnection()
    served.net.run(1)
    again = served.connect()
    again.tcp.write(get())
    served.net.run(1)
    assert parts(bytes(again.received))[0] == 200
    served.close()
    assert all(one.lost for one in held)


# real sockets

Make = Callable[..., ExitNotice]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[ExitNotice] = []
    timers = Timers(reactor)

    def build(*listen: str, contact: str = "a@example.org", file: str | Path = "") -> ExitNotice:
        made.append(ExitNotice(reactor, timers, Turn(reactor), listen, contact, file))
        return made[-1]

    yield build
    for one in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(one.stop()))
    timers.close()


async def test_a_browser_sees_it(make: Make) -> None:
    (port,) = await make("tcp:0:interface=127.0.0.1", contact="Ümläut & Co").start()
    url = f"http://127.0.0.1:{port.getHost().port}/"  # type: ignore[attr-defined]

    def fetch() -> tuple[str, str]:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.headers["Server"], answer.read().decode()

    server, text = await deferToThread(fetch)
    assert server == "backrooms"
    assert "Ümläut &amp; Co" in text


async def test_a_page_of_the_operators_own(make: Make, tmp_path: Path) -> None:
    own = tmp_path / "notice.html"
    own.write_text("<p>mine</p>")
    notice = make(file=own)
    assert notice._page == b"<p>mine</p>"
    notice.configure("b@example.org")
    assert b"b@example.org" in notice._page
    own.write_bytes(b"\xff")
    before = notice._page
    with pytest.raises(ConfigError, match="UTF-8"):
        notice.configure("", own)
    assert notice._page == before


async def test_mistakes_are_said_before_anything_runs(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"exit\.notice\[1\]: 'nonsense:80' is not an endpoint string"):
        make("tcp:80", "nonsense:80")
    with pytest.raises(ConfigError, match=r"exit\.notice_file: .*cannot be read: No such file"):
        make(file=tmp_path / "none.html")
    (tmp_path / "big.html").write_bytes(b"x" * (MAX_PAGE + 1))
    with pytest.raises(ConfigError, match="are allowed"):
        make(file=tmp_path / "big.html")


async def test_a_port_that_is_taken(make: Make) -> None:
    (port,) = await make("tcp:0:interface=127.0.0.1").start()
    number = port.getHost().port  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"exit\.notice\[1\]: .*: cannot listen: .*in use"):
        await make("tcp:0:interface=127.0.0.1", f"tcp:{number}:interface=127.0.0.1").start()
