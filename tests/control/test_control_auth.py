"""The cookie, and who gets in with it."""

from __future__ import annotations

import hashlib
import hmac
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.control.auth import (
    CONTROLLER_KEY,
    COOKIE_SIZE,
    SERVER_KEY,
    Authenticator,
    Challenge,
    Refusal,
    safe_cookie_hash,
    write_cookie,
)
from backrooms.control.grammar import split_words

COOKIE = bytes(range(32))
OTHER = bytes(reversed(COOKIE))
WITH_COOKIE = Authenticator(COOKIE, Path("/var/lib/backrooms/control_auth_cookie"))
OPEN = Authenticator(None, Path("/nowhere"))


def refusal(authenticator: Authenticator, args: str, challenge: Challenge | None = None) -> str:
    with pytest.raises(Refusal) as caught:
        authenticator.check(args, challenge)
    assert caught.value.close
    return f"{caught.value.reply.code} {caught.value.reply.text}"


def test_the_cookie_file(tmp_path: Path) -> None:
    path = tmp_path / "control_auth_cookie"
    first = write_cookie(path)
    assert path.read_bytes() == first
    assert len(first) == COOKIE_SIZE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    second = write_cookie(path)
    assert second != first
    assert path.read_bytes() == second
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_cookie_replaces_a_link_and_does_not_follow_it(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path = tmp_path / "control_auth_cookie"
    path.symlink_to(victim)
    write_cookie(path)
    assert victim.read_text() == "mine"
    assert not path.is_symlink()


def test_no_cookie_is_left_behind_when_it_cannot_be_put_in_place(tmp_path: Path) -> None:
    path = tmp_path / "control_auth_cookie"
    path.mkdir()
    with pytest.raises(OSError):
        write_cookie(path)
    assert list(tmp_path.iterdir()) == [path]


def test_methods() -> None:
    words = split_words(WITH_COOKIE.methods())
    assert words == ["AUTH", "METHODS=COOKIE,SAFECOOKIE", "COOKIEFILE=/var/lib/backrooms/control_auth_cookie"]
    assert OPEN.methods() == "AUTH METHODS=NULL"


def test_the_hash_is_that_of_the_specification() -> None:
    expected = hmac.new(
        b"Tor safe cookie authentication server-to-controller hash",
        COOKIE + b"client" + b"server",
        hashlib.sha256,
    ).digest()
    assert safe_cookie_hash(SERVER_KEY, COOKIE, b"client", b"server") == expected
    assert CONTROLLER_KEY == b"Tor safe cookie authentication controller-to-server hash"


def test_cookie() -> None:
    WITH_COOKIE.check(COOKIE.hex(), None)
    WITH_COOKIE.check(COOKIE.hex().upper(), None)
    octal = "".join(f"\\{byte:03o}" for byte in COOKIE)
    WITH_COOKIE.check(f'"{octal}"', None)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("", "515 Authentication failed: Wrong length on authentication cookie."),
        (COOKIE.hex()[2:], "515 Authentication failed: Wrong length on authentication cookie."),
        (COOKIE.hex() + "00", "515 Authentication failed: Wrong length on authentication cookie."),
        (OTHER.hex(), "515 Authentication failed: Authentication cookie did not match expected value."),
        ('"password"', "515 Authentication failed: Wrong length on authentication cookie."),
        ('"password', "551 Invalid quoted string.  You need to put the password in double quotes."),
        ('"a" b', "551 Invalid quoted string.  You need to put the password in double quotes."),
    ],
)
def test_wrong_cookies(args: str, expected: str) -> None:
    assert refusal(WITH_COOKIE, args) == expected


@pytest.mark.parametrize("args", ["password", "abc", COOKIE.hex(" "), COOKIE.hex() + " x", "zz" * 32])
def test_what_is_not_hexadecimal(args: str) -> None:
    assert refusal(WITH_COOKIE, args).startswith("551 Invalid hexadecimal encoding.")


@pytest.mark.parametrize("at", range(COOKIE_SIZE))
def test_every_byte_of_the_cookie_counts(at: int) -> None:
    wrong = bytearray(COOKIE)
    wrong[at] ^= 1
    assert "did not match" in refusal(WITH_COOKIE, wrong.hex())


@pytest.mark.parametrize(("args", "nonce"), [("safecookie 00FFab", b"\0\xff\xab"), ('SAFECOOKIE "a b"', b"a b")])
def test_safe_cookie(args: str, nonce: bytes) -> None:
    challenge, line = WITH_COOKIE.challenge(args)
    match = re.fullmatch(r"AUTHCHALLENGE SERVERHASH=([0-9A-F]{64}) SERVERNONCE=([0-9A-F]{64})", line)
    assert match is not None
    server_nonce = bytes.fromhex(match[2])
    assert bytes.fromhex(match[1]) == safe_cookie_hash(SERVER_KEY, COOKIE, nonce, server_nonce)
    assert challenge == Challenge(nonce, server_nonce)
    proof = safe_cookie_hash(CONTROLLER_KEY, COOKIE, nonce, server_nonce)
    WITH_COOKIE.check(proof.hex(), challenge)
    # neither the cookie itself nor the node's own proof will do
    mismatch = "515 Authentication failed: Safe cookie response did not match expected value."
    assert refusal(WITH_COOKIE, COOKIE.hex(), challenge) == mismatch
    assert refusal(WITH_COOKIE, match[1], challenge) == mismatch
    assert "Wrong length for safe cookie response." in refusal(WITH_COOKIE, proof.hex()[2:], challenge)
    # nor an old proof for a new challenge
    again, _ = WITH_COOKIE.challenge(args)
    assert refusal(WITH_COOKIE, proof.hex(), again) == mismatch


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("", "512 Wrong number of arguments for AUTHCHALLENGE command"),
        ("SAFECOOKIE", "512 Wrong number of arguments for AUTHCHALLENGE command"),
        ("SAFECOOKIE 00 00", "512 Wrong number of arguments for AUTHCHALLENGE command"),
        ("COOKIE 00", "513 AUTHCHALLENGE only supports SAFECOOKIE authentication"),
        ("SAFECOOKIE 0", "513 Invalid base16 client nonce"),
        ("SAFECOOKIE xx", "513 Invalid base16 client nonce"),
        ('SAFECOOKIE "x', "512 Bad arguments to AUTHCHALLENGE: a quoted string has no end"),
    ],
)
def test_wrong_challenges(args: str, expected: str) -> None:
    with pytest.raises(Refusal) as caught:
        WITH_COOKIE.challenge(args)
    assert caught.value.close
    assert f"{caught.value.reply.code} {caught.value.reply.text}" == expected


def test_without_a_cookie_everybody_comes_in_and_there_is_no_challenge() -> None:
    OPEN.check("", None)
    OPEN.check(COOKIE.hex(), None)
    with pytest.raises(Refusal, match="disabled"):
        OPEN.challenge("SAFECOOKIE 00")


@given(st.text(st.characters(max_codepoint=0x7F)))
def test_any_argument_is_refused_and_nothing_else(args: str) -> None:
    with pytest.raises(Refusal):
        WITH_COOKIE.check(args, None)


def test_secrets_are_not_shown() -> None:
    challenge, _ = WITH_COOKIE.challenge("SAFECOOKIE 00ff")
    shown = repr(WITH_COOKIE) + repr(challenge)
    assert repr(COOKIE) not in shown
    assert "nonce" not in shown
