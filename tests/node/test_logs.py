"""What of a log is written, and what is left out of it."""

from __future__ import annotations

import ast
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import DNSLookupError
from twisted.logger import Logger, LogLevel, globalLogPublisher, textFileLogObserver
from twisted.python import log as legacy
from twisted.python.failure import Failure

from backrooms.errors import CircuitError
from backrooms.node.logs import SCRUBBED, LogFilter, Seldom, scrub

OURS = Logger("backrooms.node.example")
THEIRS = Logger("twisted.internet.example")

Written = Callable[[], str]


@pytest.fixture
def install() -> Iterator[Callable[..., Written]]:
    """`install(level, safe)` puts a filter before an observer like twistd's; what it returns gives what was written."""
    undo: list[Callable[[], None]] = []
    before = list(globalLogPublisher._observers)

    def put(level: str = "debug", safe: bool = True, lines: list[Any] | None = None) -> Written:
        out = io.StringIO()
        observer = textFileLogObserver(out)
        globalLogPublisher.addObserver(observer)
        made = LogFilter(level, safe)
        if lines is not None:
            made.on_line = lambda level, text: lines.append((level, text))
        made.install()
        undo.extend((lambda: globalLogPublisher.removeObserver(observer), made.remove))
        return out.getvalue

    yield put
    while undo:
        undo.pop()()
    assert list(globalLogPublisher._observers) == before


@pytest.mark.parametrize("level", ["debug", "info", "warn", "error", "critical"])
@pytest.mark.parametrize("safe", [True, False])
def test_the_level_is_the_least_that_is_written(install: Any, level: str, safe: bool) -> None:
    written = install(level, safe)
    names = ["debug", "info", "warn", "error", "critical"]
    for name in names:
        OURS.emit(LogLevel.levelWithName(name), f"said at {name}")
    expected = names[names.index(level) :]
    assert [name for name in names if f"said at {name}" in written()] == expected


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("from 192.0.2.7:4711 to us", f"from {SCRUBBED} to us"),
        ("from 192.0.2.7.", f"from {SCRUBBED}."),
        ("(127.0.0.1)", f"({SCRUBBED})"),
        ("tls:203.0.113.5:9001", f"tls:{SCRUBBED}"),
        ("to [2001:db8::1]:443 now", f"to {SCRUBBED} now"),
        ("to 2001:db8::1 now", f"to {SCRUBBED} now"),
        ("to ::1, then", f"to {SCRUBBED}, then"),
        ("::ffff:192.0.2.7", SCRUBBED),
        ("version 26.10.0 of tls, 3.5 s: 10 %", "version 26.10.0 of tls, 3.5 s: 10 %"),
        ("a link: closed: by us", "a link: closed: by us"),
    ],
)
def test_addresses_are_taken_out(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed


@given(st.ip_addresses(), st.integers(1, 65535), st.sampled_from([" ", ", ", "(", "=", "tls:"]))
def test_every_address_is_taken_out(address: Any, port: int, before: str) -> None:
    for text in (str(address), f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"):
        if before == "tls:" and ":" in text and address.version == 6 and "[" not in text:
            continue  # an IPv6 address in a URL has brackets
        assert scrub(f"went{before}{text} and back") == f"went{before}{SCRUBBED} and back"


def test_what_others_say_in_passing_is_not_written(install: Any) -> None:
    written = install()
    THEIRS.info("Starting factory of 192.0.2.7")
    legacy.msg("(TCP Port 4711 Starting on 192.0.2.7)")
    print("to standard output")
    assert written() == ""
    THEIRS.warn("odd: 192.0.2.7:99")
    assert f"odd: {SCRUBBED}" in written()


def test_a_failure_is_told_without_its_message(install: Any) -> None:
    written = install()
    message = "no results for secret" + ".example"  # in pieces, since a traceback has lines of the source
    for tell in (
        lambda: OURS.failure("a bug"),
        lambda: THEIRS.failure("Unhandled error"),
        lambda: legacy.err(Failure()),  # type: ignore[no-untyped-call]
    ):
        try:
            raise DNSLookupError(message)
        except DNSLookupError:
            tell()
    assert "secret.example" not in written()
    assert written().count("\tDNSLookupError") == 3
    assert written().count("test_logs.py") == 3, "it says where it happened"
    assert "a bug" in written()


def test_our_own_errors_say_why(install: Any) -> None:
    written = install()
    address = "192.0." + "2.1"
    try:
        raise CircuitError(f"the link is full, see {address}")
    except CircuitError:
        OURS.failure("a bug")
    assert f"CircuitError: the link is full, see {SCRUBBED}" in written()
    assert address not in written()


def test_why_a_node_cannot_start_is_written_as_it_is(install: Any) -> None:
    written = install()
    OURS.critical("cannot start: {error}", error="Couldn't listen on 127.0.0.1:9050")
    assert "127.0.0.1:9050" in written()


def test_unsafe_is_as_twisted_has_it(install: Any) -> None:
    written = install("info", False)
    THEIRS.info("Starting factory of 192.0.2.7")
    OURS.info("from 192.0.2.7")
    assert written().count("192.0.2.7") == 2


def test_controllers_get_our_lines_scrubbed(install: Any) -> None:
    lines: list[Any] = []
    install("info", True, lines)
    OURS.debug("a detail")
    OURS.info("came from {who}", who="192.0.2.7")
    OURS.warn("odd")
    THEIRS.warn("not ours")
    assert lines == [(LogLevel.info, f"came from {SCRUBBED}"), (LogLevel.warn, "odd")]


def test_seldom() -> None:
    seldom = Seldom(10.0, limit=3)
    assert [seldom.is_due("a", now) for now in (0.0, 1.0, 9.9, 10.0, 11.0)] == [True, False, False, True, False]
    assert all(seldom.is_due(text, 11.0) for text in "bcd")
    assert seldom.is_due("a", 12.0), "it was forgotten for the others"


# what is logged at all

SOURCES = sorted((Path(__file__).parents[2] / "backrooms").rglob("*.py"))
TELLTALE = {"host", "peer", "getPeer", "getHost", "addr", "source", "target", "destination", "request", "url", "user"}
"""Names of what must not be logged, scrubbed or not: who talks, and to whom."""
EMITTERS = {"debug", "info", "warn", "error", "critical", "failure", "emit"}


def told(source: str) -> Iterator[tuple[int, set[str]]]:
    """Of each call of a logger: its line and every name in what it logs."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in EMITTERS):
            continue
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id in ("log", "_log")):
            continue
        inner = [one for value in (*node.args, *node.keywords) for one in ast.walk(value)]
        names = {one.id for one in inner if isinstance(one, ast.Name)}
        yield node.lineno, names | {one.attr for one in inner if isinstance(one, ast.Attribute)}


def test_no_line_of_ours_is_made_of_hosts_or_users() -> None:
    """Host names cannot be taken out of a line later, so they must not get into one."""
    lines = [(path.name, line, names) for path in SOURCES for line, names in told(path.read_text())]
    assert len(lines) > 40
    assert [one for one in lines if one[2] & TELLTALE] == []
    assert list(told('log.info("to {host}", host=request.host)')) == [(1, {"request", "host"})], "it would be seen"
