"""A small blocking controller: what the `backrooms` command talks to a node with.

It needs no reactor, so a command starts fast. Every wait has a limit.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from backrooms.control.auth import (
    CONTROLLER_KEY,
    COOKIE_SIZE,
    NONCE_SIZE,
    SERVER_KEY,
    safe_cookie_hash,
)
from backrooms.control.grammar import Line, Reply, ReplyReader, split_words
from backrooms.errors import BackroomsError, ConfigError, WireError

RECEIVE_SIZE = 64 * 1024
_CHALLENGE = re.compile(r"AUTHCHALLENGE SERVERHASH=([0-9A-Fa-f]{64}) SERVERNONCE=((?:[0-9A-Fa-f]{2})+)")


class ControlError(BackroomsError):
    """The node did not do what was asked. The text says why."""


class NotRunning(ControlError):
    """Nobody answers at the control port."""


@dataclass(frozen=True, slots=True)
class ControlAddress:
    """Where a control port is: the path of a unix socket, or a host and a port."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> ControlAddress:
        """`/path`, `unix:/path`, `HOST:PORT` or a Twisted endpoint string; else `ConfigError`."""
        if "/" in text and not text.startswith(("unix:", "tcp:", "tcp6:")):
            return cls(path=text)
        kind, *parts = [part.replace("\\:", ":") for part in re.split(r"(?<!\\):", text)]
        options = dict(part.split("=", 1) for part in parts if re.match(r"[a-zA-Z]+=", part))
        plain = [part for part in parts if part.partition("=")[0] not in options]
        if kind == "unix":
            path = options.get("address") or (plain[0] if plain else "")
            if path:
                return cls(path=path)
        elif kind in ("tcp", "tcp6") and len(plain) <= 1:
            port = options.get("port") or (plain[0] if plain else "")
            default = "::1" if kind == "tcp6" else "127.0.0.1"
            interface = options.get("interface") or default
            host = default if interface in ("0.0.0.0", "::") else interface
            if _is_port(port):
                return cls(host=host, port=int(port))
        host, _, port = text.removeprefix("tcp:").rpartition(":")
        if host and _is_port(port) and kind != "unix":
            return cls(host=host.removeprefix("[").removesuffix("]"), port=int(port))
        raise ConfigError(f"{text!r} is no control address; use unix:/path/to/control.sock or 127.0.0.1:9051")


def _is_port(text: str) -> bool:
    return text.isdecimal() and len(text) <= 5 and 0 < int(text) < 65536


class ControlClient:
    """A connection to a node's control port. Use it in a `with` statement; that connects and authenticates.

    `timeout` is in seconds and holds for connecting and for each command. `NotRunning` when nobody listens,
    `ControlError` for everything else that goes wrong.
    """

    def __init__(
        self, address: ControlAddress, timeout: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.address = address
        self._timeout = timeout
        self._clock = clock
        self._deadline = 0.0
        self._reader = ReplyReader()
        self._replies: list[Reply] = []
        self._socket: socket.socket | None = None

    def __enter__(self) -> ControlClient:
        self._deadline = self._clock() + self._timeout
        self._socket = self._connect()
        try:
            self._authenticate()
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def command(self, text: str) -> Reply:
        """Send one command and wait for its reply; `ControlError` when that is an error."""
        assert self._socket is not None, "not connected"
        self._deadline = self._clock() + self._timeout
        self._wait()
        try:
            self._socket.sendall(text.encode("ascii") + b"\r\n")
        except ConnectionError:
            raise self._closed() from None
        except OSError as error:
            raise ControlError(f"lost the connection to {self.address}: {error.strerror or error}") from None
        answer = self._receive()
        if not 200 <= answer.code < 300:
            raise ControlError(f"the node says: {answer.code} {answer.text}")
        return answer

    def info(self, key: str) -> str:
        """The value of a GETINFO key; the lines of a block are joined by newlines."""
        line = self.command(f"GETINFO {key}").lines[0]
        return _value(line, key)

    def json(self, key: str) -> Any:
        """The value of a GETINFO key that is JSON."""
        try:
            return json.loads(self.info(key))
        except ValueError:
            raise ControlError(f"the node's answer to {key} is not JSON") from None

    def _connect(self) -> socket.socket:
        address = self.address
        family = socket.AF_UNIX if address.path else socket.AF_UNSPEC
        try:
            if family == socket.AF_UNIX:
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    connection.settimeout(self._timeout)
                    connection.connect(address.path)
                except BaseException:
                    connection.close()
                    raise
                return connection
            return socket.create_connection((address.host, address.port), self._timeout)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning(
                f"no node answers at {address}; start one with `twistd -n backrooms -c FILE` or `make run`"
            ) from None
        except PermissionError:
            raise ControlError(f"{address}: permission denied; run this as the user the node runs as") from None
        except TimeoutError:
            raise ControlError(f"{address}: no connection within {self._timeout:g} s") from None
        except OSError as error:
            raise ControlError(f"{address}: cannot connect: {error.strerror or error}") from None

    def _authenticate(self) -> None:
        """With the cookie if the node has one: the node proves that it knows it, then we do."""
        methods, cookie_file = _parse_protocol_info(self.command("PROTOCOLINFO 1"))
        if "NULL" in methods:
            self.command("AUTHENTICATE")
            return
        if "SAFECOOKIE" not in methods or not cookie_file:
            raise ControlError(f"the node offers only {', '.join(methods) or 'nothing'} for authentication")
        cookie = _read_cookie(Path(cookie_file))
        nonce = os.urandom(NONCE_SIZE)
        match = _CHALLENGE.fullmatch(self.command(f"AUTHCHALLENGE SAFECOOKIE {nonce.hex()}").text)
        if match is None:
            raise ControlError("the node's challenge makes no sense")
        shown, server_nonce = bytes.fromhex(match[1]), bytes.fromhex(match[2])
        if not hmac.compare_digest(shown, safe_cookie_hash(SERVER_KEY, cookie, nonce, server_nonce)):
            raise ControlError(
                f"whoever answers at {self.address} does not know the cookie in {cookie_file}: not the node"
            )
        proof = safe_cookie_hash(CONTROLLER_KEY, cookie, nonce, server_nonce)
        self.command(f"AUTHENTICATE {proof.hex()}")

    def _receive(self) -> Reply:
        """The next reply; events are skipped."""
        assert self._socket is not None, "not connected"
        while True:
            while self._replies:
                answer = self._replies.pop(0)
                if answer.code < 600:
                    return answer
            self._wait()
            try:
                data = self._socket.recv(RECEIVE_SIZE)
                self._replies = self._reader.feed(data)
            except TimeoutError:
                raise ControlError(f"no answer from {self.address} within {self._timeout:g} s") from None
            except ConnectionError:
                raise self._closed() from None
            except WireError as error:
                raise ControlError(f"{self.address} does not speak the control protocol: {error}") from None
            except OSError as error:
                raise ControlError(f"lost the connection to {self.address}: {error.strerror or error}") from None
            if not data:
                raise self._closed()

    def _closed(self) -> ControlError:
        return ControlError(f"{self.address} closed the connection without an answer")

    def _wait(self) -> None:
        """Let the next socket operation take until the deadline and no longer."""
        assert self._socket is not None, "not connected"
        left = self._deadline - self._clock()
        if left <= 0:
            raise ControlError(f"no answer from {self.address} within {self._timeout:g} s")
        self._socket.settimeout(left)


def _value(line: Line, key: str) -> str:
    name, equals, value = line.text.partition("=")
    if name != key or not equals:
        raise ControlError(f"the node answered {line.text[:80]!r} to {key}")
    return value if line.data is None else "\n".join(line.data)


def _parse_protocol_info(answer: Reply) -> tuple[list[str], str]:
    """The authentication methods, and the path of the cookie file or an empty string."""
    for line in answer.lines:
        if line.text.startswith("AUTH "):
            try:
                words = dict(word.partition("=")[::2] for word in split_words(line.text))
            except WireError:
                break
            return words.get("METHODS", "").split(","), words.get("COOKIEFILE", "")
    raise ControlError("the node does not say how to authenticate")


def _read_cookie(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            cookie = file.read(COOKIE_SIZE + 1)
    except PermissionError:
        raise ControlError(
            f"cannot read the cookie {path}: permission denied; run this as the user the node runs as"
        ) from None
    except OSError as error:
        raise ControlError(f"cannot read the cookie {path}: {error.strerror}") from None
    if len(cookie) != COOKIE_SIZE:  # the node might be somebody who wants our other files hashed
        raise ControlError(f"{path} is no cookie: it does not have {COOKIE_SIZE} bytes")
    return cookie
