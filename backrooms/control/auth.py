"""Who may use the control port: whoever can read the cookie file (control-spec, AUTHENTICATE)."""

from __future__ import annotations

import hmac
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from backrooms.control.grammar import Reply, quote, reply, split_words, unquote
from backrooms.errors import WireError
from backrooms.keystore.disk import write_atomic

COOKIE_SIZE = 32
NONCE_SIZE = 32
COOKIE_NAME = "control_auth_cookie"
"""The cookie's file name in the node's state folder."""

SERVER_KEY = b"Tor safe cookie authentication server-to-controller hash"
CONTROLLER_KEY = b"Tor safe cookie authentication controller-to-server hash"

_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})*")


class Refusal(Exception):
    """A command is answered with an error; `close` ends the connection after that."""

    def __init__(self, code: int, *texts: str, close: bool = False) -> None:
        super().__init__(*texts)
        self.reply: Reply = reply(code, texts)
        self.close = close


def write_cookie(path: Path, cookie: bytes | None = None) -> bytes:
    """Put a cookie, a new random one if none is given, into `path` for our own user alone."""
    cookie = cookie or os.urandom(COOKIE_SIZE)
    write_atomic(path, cookie)
    return cookie


def safe_cookie_hash(key: bytes, cookie: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """What one side shows the other to prove that it knows the cookie: HMAC-SHA256, 32 bytes."""
    return hmac.digest(key, cookie + client_nonce + server_nonce, "sha256")


@dataclass(frozen=True, slots=True)
class Challenge:
    """An AUTHCHALLENGE that waits for its AUTHENTICATE."""

    client_nonce: bytes = field(repr=False)
    server_nonce: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Checks controllers against the cookie. Without one (None) everybody who can connect may come in."""

    cookie: bytes | None = field(repr=False)
    cookie_path: Path

    def methods(self) -> str:
        """The line of PROTOCOLINFO."""
        if self.cookie is None:
            return "AUTH METHODS=NULL"
        return f"AUTH METHODS=COOKIE,SAFECOOKIE COOKIEFILE={quote(str(self.cookie_path))}"

    def challenge(self, args: str) -> tuple[Challenge, str]:
        """AUTHCHALLENGE: what to remember, and the line to answer with."""
        try:
            words = split_words(args)
        except WireError as error:
            raise Refusal(512, f"Bad arguments to AUTHCHALLENGE: {error.reason}", close=True) from None
        if len(words) != 2:
            raise Refusal(512, "Wrong number of arguments for AUTHCHALLENGE command", close=True)
        if words[0].upper() != "SAFECOOKIE":
            raise Refusal(513, "AUTHCHALLENGE only supports SAFECOOKIE authentication", close=True)
        if self.cookie is None:
            raise Refusal(515, "Cookie authentication is disabled", close=True)
        if '"' in args:
            client_nonce = words[1].encode("utf-8", "surrogateescape")
        elif _HEX.fullmatch(words[1]):
            client_nonce = bytes.fromhex(words[1])
        else:
            raise Refusal(513, "Invalid base16 client nonce", close=True)
        server_nonce = os.urandom(NONCE_SIZE)
        proof = safe_cookie_hash(SERVER_KEY, self.cookie, client_nonce, server_nonce)
        line = f"AUTHCHALLENGE SERVERHASH={proof.hex().upper()} SERVERNONCE={server_nonce.hex().upper()}"
        return Challenge(client_nonce, server_nonce), line

    def check(self, args: str, challenge: Challenge | None) -> None:
        """AUTHENTICATE: return when it is right, else raise `Refusal`."""
        given = _secret(args)
        if self.cookie is None:
            return
        if challenge is None:
            expected, kind = self.cookie, "cookie"
        else:
            expected = safe_cookie_hash(CONTROLLER_KEY, self.cookie, challenge.client_nonce, challenge.server_nonce)
            kind = "response"
        if len(given) != len(expected):
            text = {
                "cookie": "Wrong length on authentication cookie.",
                "response": "Wrong length for safe cookie response.",
            }[kind]
        elif not hmac.compare_digest(given, expected):
            text = {
                "cookie": "Authentication cookie did not match expected value.",
                "response": "Safe cookie response did not match expected value.",
            }[kind]
        else:
            return
        raise Refusal(515, f"Authentication failed: {text}", close=True)


def _secret(args: str) -> bytes:
    """The argument of AUTHENTICATE: nothing, hexadecimal digits or a quoted string."""
    if args.startswith('"'):
        try:
            value, end = unquote(args)
        except WireError:
            end = -1
        if end != len(args):
            text = "Invalid quoted string.  You need to put the password in double quotes."
            raise Refusal(551, text, close=True)
        return value
    if not _HEX.fullmatch(args):
        text = (
            "Invalid hexadecimal encoding.  Maybe you tried a plain text password?  "
            "If so, the standard requires that you put it in double quotes."
        )
        raise Refusal(551, text, close=True)
    return bytes.fromhex(args)
