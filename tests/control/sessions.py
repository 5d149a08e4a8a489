"""Sessions without a network, in every state."""

from __future__ import annotations

from pathlib import Path

from backrooms.control.auth import Authenticator
from backrooms.control.commands import Answer, Session
from backrooms.control.grammar import ReplyReader, parse_command
from backrooms.control.information import Information
from tests.control.fakes import FakeView

COOKIE = b"c" * 32


class Controller:
    """A session and the view it belongs to."""

    def __init__(self, cookie: bytes | None = COOKIE) -> None:
        self.view = FakeView()
        information = Information(self.view, lambda: ["unix:/run/backrooms/control.sock"])
        self.session = Session(self.view, information, Authenticator(cookie, Path("/c")))

    def answer(self, line: str) -> Answer:
        return self.session.handle(parse_command(line.encode()))

    def say(self, line: str) -> str:
        """The reply's bytes as text with LF ends, without the last one."""
        return self.answer(line).reply.encode().decode("ascii").replace("\r\n", "\n").rstrip("\n")

    def value(self, key: str) -> str | list[str]:
        """The value of a GETINFO key; the lines of a block."""
        line, end = ReplyReader().feed(self.answer(f"GETINFO {key}").reply.encode())[0].lines
        assert end.text == "OK"
        assert line.text.startswith(f"{key}=")
        return line.text[len(key) + 1 :] if line.data is None else list(line.data)


def fresh() -> Controller:
    return Controller()


def challenged() -> Controller:
    controller = Controller()
    assert controller.say("AUTHCHALLENGE SAFECOOKIE 00").startswith("250 ")
    return controller


def entered() -> Controller:
    controller = Controller()
    assert controller.say(f"AUTHENTICATE {COOKIE.hex()}") == "250 OK"
    return controller
