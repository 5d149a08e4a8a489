"""Every command in every state."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.control.auth import CONTROLLER_KEY, safe_cookie_hash
from backrooms.control.grammar import BadLine, Command, ReplyReader
from tests.control.sessions import COOKIE, Controller, challenged, entered, fresh

STATES: list[Callable[[], Controller]] = [fresh, challenged, entered]
COMMANDS = [
    "PROTOCOLINFO 1",
    "AUTHCHALLENGE SAFECOOKIE 00",
    f"AUTHENTICATE {COOKIE.hex()}",
    "AUTHENTICATE 00",
    "QUIT",
    "GETINFO version",
    "GETCONF Nickname",
    "SETEVENTS CIRC",
    "SIGNAL NEWNYM",
    "USEFEATURE VERBOSE_NAMES",
    "CLOSECIRCUIT 7",
    "NOSUCH",
    "POST / HTTP/1.1",
    "",
]
# (code, closes) in the three states
EXPECTED = {
    "PROTOCOLINFO 1": [(250, False), (514, True), (250, False)],
    "AUTHCHALLENGE SAFECOOKIE 00": [(250, False), (514, True), (250, False)],
    f"AUTHENTICATE {COOKIE.hex()}": [(250, False), (515, True), (250, False)],
    "AUTHENTICATE 00": [(515, True), (515, True), (515, True)],
    "QUIT": [(250, True), (250, True), (250, True)],
    "NOSUCH": [(514, True), (514, True), (510, False)],
    "POST / HTTP/1.1": [(514, True), (514, True), (510, False)],
    "": [(514, True), (514, True), (510, False)],
}


@pytest.mark.parametrize("line", COMMANDS)
@pytest.mark.parametrize("state", range(3))
def test_every_command_in_every_state(line: str, state: int) -> None:
    controller = STATES[state]()
    before = list(controller.view.asked)
    answer = controller.answer(line)
    expected = EXPECTED.get(line, [(514, True), (514, True), (250, False)])[state]
    assert (answer.reply.code, answer.close) == expected
    if answer.reply.code == 514:
        assert answer.reply.text == "Authentication required."
        assert controller.view.asked == before
        assert answer.then is None
        assert not controller.session.events
        assert not controller.session.authenticated


KEYWORDS = st.sampled_from([line.partition(" ")[0] for line in COMMANDS] + ["GETINFO ns/id/", "GETCONF "])
ARGUMENTS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)) | st.sampled_from(COMMANDS)


@given(st.sampled_from(STATES), KEYWORDS, ARGUMENTS)
def test_any_line_gets_an_answer(state: Callable[[], Controller], keyword: str, argument: str) -> None:
    answer = state().answer(f"{keyword} {argument}")
    assert answer.reply.code == 250 or 500 <= answer.reply.code < 600
    assert len(ReplyReader().feed(answer.reply.encode())) == 1


def test_bad_lines() -> None:
    assert fresh().session.handle(BadLine("x")).reply.code == 514
    answer = entered().session.handle(BadLine("x"))
    assert (answer.reply.code, answer.reply.text, answer.close) == (500, "Syntax error: x", False)
    assert entered().session.handle(BadLine("x", fatal=True)).close


def test_no_data_block_before_authentication() -> None:
    assert fresh().session.handle(Command("PROTOCOLINFO", "1", b"x")).reply.code == 514


def test_protocol_info() -> None:
    assert fresh().say("PROTOCOLINFO 1") == (
        "250-PROTOCOLINFO 1\n"
        '250-AUTH METHODS=COOKIE,SAFECOOKIE COOKIEFILE="/c"\n'
        '250-VERSION Tor="0.4.9.11 (backrooms-0.1.0)"\n'
        "250 OK"
    )
    assert "AUTH METHODS=NULL\n" in Controller(None).say("PROTOCOLINFO")
    controller = fresh()
    controller.say("PROTOCOLINFO 1")
    assert controller.say("PROTOCOLINFO 1") == "514 Authentication required."
    assert entered().say("PROTOCOLINFO 2") == "513 No such version 2"
    assert fresh().answer("PROTOCOLINFO 2").close


def test_safe_cookie_authentication() -> None:
    controller = fresh()
    controller.say("PROTOCOLINFO 1")
    match = re.fullmatch(r".*SERVERNONCE=(\S+)", controller.say("AUTHCHALLENGE SAFECOOKIE abcd"))
    assert match is not None
    proof = safe_cookie_hash(CONTROLLER_KEY, COOKIE, b"\xab\xcd", bytes.fromhex(match[1]))
    assert controller.say(f"AUTHENTICATE {proof.hex()}") == "250 OK"
    assert controller.session.authenticated


def test_a_challenge_is_good_for_one_try() -> None:
    controller = challenged()
    assert controller.say(f"AUTHENTICATE {'00' * 32}").startswith("515 ")
    assert not controller.session.authenticated


def test_without_a_cookie_authenticate_is_still_needed() -> None:
    controller = Controller(None)
    assert controller.say("GETINFO version").startswith("514 ")
    assert controller.say("AUTHENTICATE") == "250 OK"
    assert controller.say("GETINFO dormant") == "250-dormant=0\n250 OK"


# -- the other commands --


def test_get_conf() -> None:
    controller = entered()
    assert controller.say("GETCONF nickname") == "250 Nickname=Tester"
    assert controller.say("GETCONF SOCKSPORT ORPort") == (
        "250-SocksPort=127.0.0.1:9050\n250-SocksPort=unix:/run/socks\n250 ORPort=0"
    )
    assert controller.say("GETCONF ControlPort") == "250 ControlPort=unix:/run/backrooms/control.sock"
    assert controller.say("GETCONF HTTPTunnelPort") == "250 HTTPTunnelPort=[::1]:9080"
    assert controller.say("GETCONF") == "250 OK"
    assert controller.say("GETCONF Foo nickname bar") == (
        '552-Unrecognized configuration key "Foo"\n552 Unrecognized configuration key "bar"'
    )


def test_every_listed_option_can_be_asked_for() -> None:
    controller = entered()
    for line in controller.value("config/names"):
        name, kind = line.split(" ")
        assert kind in ("String", "LineList")
        assert controller.say(f"GETCONF {name.lower()}").startswith((f"250 {name}=", f"250-{name}="))


def test_set_events_replaces_the_whole_set_or_changes_nothing() -> None:
    controller = entered()
    assert controller.say("SETEVENTS circ Extended STREAM") == "250 OK"
    assert controller.session.events == {"CIRC", "STREAM"}
    assert controller.say("SETEVENTS BW FOO") == '552 Unrecognized event "FOO"'
    assert controller.session.events == {"CIRC", "STREAM"}
    assert controller.say("SETEVENTS ") == "250 OK"
    assert not controller.session.events
    names = controller.value("events/names")
    assert controller.say(f"SETEVENTS {names}") == "250 OK"


@pytest.mark.parametrize(
    ("signal", "asked"),
    [
        ("NEWNYM", "newnym"),
        ("newnym", "newnym"),
        ("RELOAD", "reload"),
        ("HUP", "reload"),
        ("SHUTDOWN", "shutdown now=False"),
        ("INT", "shutdown now=False"),
        ("HALT", "shutdown now=True"),
        ("TERM", "shutdown now=True"),
    ],
)
def test_signals(signal: str, asked: str) -> None:
    controller = entered()
    answer = controller.answer(f"SIGNAL {signal}")
    assert answer.reply.code == 250
    if answer.then is not None:  # after the reply
        assert controller.view.asked == []
        answer.then()
    assert controller.view.asked == [asked]


def test_wrong_signals() -> None:
    controller = entered()
    assert controller.say("SIGNAL FOO") == '552 Unrecognized signal code "FOO"'
    assert controller.say("SIGNAL") == "512 Bad arguments to SIGNAL: Need at least 1 argument(s)"
    assert controller.say("SIGNAL NEWNYM x") == "512 Bad arguments to SIGNAL: Cannot accept more than 1 argument(s)"
    assert controller.view.asked == []


def test_a_reload_that_fails_says_why() -> None:
    controller = entered()
    controller.view.reload_error = "socks.listen: must be a string"
    assert controller.say("SIGNAL RELOAD") == "551 Unable to reload: socks.listen: must be a string"


def test_close_circuit() -> None:
    controller = entered()
    assert controller.say("CLOSECIRCUIT 7 ") == "250 OK"
    assert controller.say("CLOSECIRCUIT 8 ifUnused") == "250 OK"
    assert controller.view.asked == ["close 7 if_unused=False", "close 8 if_unused=True"]
    for number in ("99", "-1", "x", "9" * 5000, "1_0"):
        assert controller.say(f"CLOSECIRCUIT {number}") == f'552 Unknown circuit "{number}"'
    assert controller.say("CLOSECIRCUIT 7 Now").startswith("512 ")
    assert controller.say("CLOSECIRCUIT").startswith("512 ")


def test_use_feature() -> None:
    controller = entered()
    assert controller.say("USEFEATURE verbose_names EXTENDED_EVENTS") == "250 OK"
    assert controller.say("USEFEATURE FOO") == '552 Unrecognized feature "FOO"'
