"""The commands of the control port: one `Session` for each controller, one method for each command."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from backrooms.control.auth import Authenticator, Challenge, Refusal
from backrooms.control.formats import EVENT_NAMES, version_text
from backrooms.control.grammar import OK, BadLine, Command, Line, Reply, reply, split_words
from backrooms.control.information import FEATURES, SIGNALS, Information
from backrooms.control.view import NodeView
from backrooms.errors import BackroomsError, WireError


@dataclass(frozen=True, slots=True)
class Answer:
    """What to do about a command: send `reply`, then `close` the connection, then call `then`."""

    reply: Reply
    close: bool = False
    then: Callable[[], None] | None = None


class Session:
    """What one controller has done so far, and what it may do next."""

    def __init__(self, view: NodeView, information: Information, authenticator: Authenticator) -> None:
        self.authenticated = False
        self.events: frozenset[str] = frozenset()
        """Names of the events it wants."""
        self._view = view
        self._information = information
        self._authenticator = authenticator
        self._challenge: Challenge | None = None
        self._asked_protocol = False
        self._commands: dict[str, Callable[[str], Answer | Reply]] = {
            "PROTOCOLINFO": self._protocol_info,
            "AUTHCHALLENGE": self._auth_challenge,
            "AUTHENTICATE": self._authenticate,
            "QUIT": self._quit,
            "GETINFO": self._get_info,
            "GETCONF": self._get_conf,
            "SETEVENTS": self._set_events,
            "SIGNAL": self._signal,
            "USEFEATURE": self._use_feature,
            "CLOSECIRCUIT": self._close_circuit,
            "INVESTIGATE": self._investigate,
        }

    def handle(self, command: Command | BadLine) -> Answer:
        """The answer to one line. Errors are answers, too."""
        try:
            if not self._allowed(command):
                raise Refusal(514, "Authentication required.", close=True)
            if isinstance(command, BadLine):
                raise Refusal(500, f"Syntax error: {command.reason}", close=command.fatal)
            run = self._commands.get(command.name)
            if run is None:
                raise Refusal(510, f'Unrecognized command "{command.name}"')
            try:
                answer = run(command.args)
            except WireError as error:  # out of split_words
                raise Refusal(512, f"Bad arguments to {command.name}: {error.reason}") from None
        except Refusal as refusal:
            return Answer(refusal.reply, refusal.close)
        return answer if isinstance(answer, Answer) else Answer(answer)

    def _allowed(self, command: Command | BadLine) -> bool:
        """Before authentication a controller may ask once who we are and once for a challenge."""
        if self.authenticated:
            return True
        if isinstance(command, BadLine) or command.data is not None:
            return False
        match command.name:
            case "PROTOCOLINFO":
                return not self._asked_protocol and self._challenge is None
            case "AUTHCHALLENGE":
                return self._challenge is None
        return command.name in ("AUTHENTICATE", "QUIT")

    # -- before and after authentication --

    def _protocol_info(self, args: str) -> Reply:
        self._asked_protocol = True
        for word in args.split():
            if word != "1":
                raise Refusal(513, f"No such version {word}", close=not self.authenticated)
        version = version_text(self._view.version)
        lines = ["PROTOCOLINFO 1", self._authenticator.methods(), f'VERSION Tor="{version}"', "OK"]
        return reply(250, lines)

    def _auth_challenge(self, args: str) -> Reply:
        self._challenge, line = self._authenticator.challenge(args)
        return reply(250, [line])

    def _authenticate(self, args: str) -> Reply:
        challenge, self._challenge = self._challenge, None
        self._authenticator.check(args, challenge)
        self.authenticated = True
        return OK

    def _quit(self, args: str) -> Answer:
        return Answer(reply(250, ["closing connection"]), close=True)

    # -- questions --

    def _get_info(self, args: str) -> Reply:
        lines: list[Line] = []
        unknown: list[str] = []
        for key in dict.fromkeys(split_words(args)):  # each once: a line has room for 9,000 times "ns/all"
            value = self._information.get(key)
            if value is None:
                unknown.append(f'Unrecognized key "{key}"')
            elif isinstance(value, str):
                lines.append(Line(f"{key}={value}"))
            else:
                lines.append(Line(f"{key}=", value))
        if unknown:
            raise Refusal(552, *unknown)
        return Reply(250, (*lines, Line("OK")))

    def _get_conf(self, args: str) -> Reply:
        lines: list[str] = []
        unknown: list[str] = []
        for name in split_words(args):
            found = self._information.option(name)
            if found is None:
                unknown.append(f'Unrecognized configuration key "{name}"')
            else:
                canonical, values = found
                lines += [f"{canonical}={value}" for value in values] or [canonical]
        if unknown:
            raise Refusal(552, *unknown)
        return reply(250, lines) if lines else OK

    def _set_events(self, args: str) -> Reply:
        names = [name for name in args.split() if name.upper() != "EXTENDED"]  # it means nothing any more
        for name in names:
            if name.upper() not in EVENT_NAMES:
                raise Refusal(552, f'Unrecognized event "{name}"')
        self.events = frozenset(name.upper() for name in names)
        return OK

    # -- orders --

    def _signal(self, args: str) -> Answer:
        (name,) = self._words("SIGNAL", args, 1, 1)
        signal = SIGNALS.get(name.upper())
        view = self._view
        if signal is None:
            raise Refusal(552, f'Unrecognized signal code "{name}"')
        if signal == "NEWNYM":
            return Answer(OK, then=view.newnym)
        if signal == "RELOAD":
            try:
                view.reload()
            except BackroomsError as error:
                raise Refusal(551, f"Unable to reload: {error}") from None
            return Answer(OK)
        return Answer(OK, then=lambda: view.shutdown(now=signal == "HALT"))

    def _use_feature(self, args: str) -> Reply:
        for name in args.split():
            if name.upper() not in FEATURES:
                raise Refusal(552, f'Unrecognized feature "{name}"')
        return OK

    def _close_circuit(self, args: str) -> Reply:
        number, *flags = self._words("CLOSECIRCUIT", args, 1, 2)
        if flags and flags[0].lower() != "ifunused":
            raise Refusal(512, f'Bad arguments to CLOSECIRCUIT: Unrecognized flag "{flags[0]}"')
        known = number.isdecimal() and len(number) <= 20
        if not known or not self._view.close_circuit(int(number), bool(flags)):
            raise Refusal(552, f'Unknown circuit "{number}"')
        return OK

    def _investigate(self, args: str) -> Reply:
        """`TARGET [MINUTES=N] [URL=...] [GUARDED]`, `PATH N ...`, `STOP`, or `FORGET TARGET`."""
        words = self._words("INVESTIGATE", args, 1, 5)
        verb = words[0].upper()
        try:
            if verb == "STOP":
                if not self._view.stop_investigation():
                    raise Refusal(552, "No investigation is running")
            elif verb == "FORGET":
                count = self._view.forget_scores(words[1] if len(words) > 1 else "all")
                return reply(250, [f"FORGOTTEN={count}", "OK"])
            else:
                target = f"path {words.pop(1)}" if verb == "PATH" and len(words) > 1 else words[0]
                self._view.investigate(target, *self._how(words[1:]))
        except BackroomsError as error:
            raise Refusal(551, f"Cannot investigate: {error}") from None
        return OK

    @staticmethod
    def _how(words: list[str]) -> tuple[float, str, bool]:
        """How to investigate: minutes (0 for the default), a page to compare, and whether to keep to the guards."""
        minutes, url, guarded = 0.0, "", False
        for word in words:
            key, _, value = word.partition("=")
            match key.upper():
                case "MINUTES" if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value):
                    minutes = float(value)
                case "URL" if value:
                    url = value
                case "GUARDED" if not value:
                    guarded = True
                case _:
                    raise Refusal(512, f'Bad arguments to INVESTIGATE: "{word}"')
        return minutes, url, guarded

    @staticmethod
    def _words(name: str, args: str, least: int, most: int) -> list[str]:
        words = split_words(args)
        if len(words) < least:
            raise Refusal(512, f"Bad arguments to {name}: Need at least {least} argument(s)")
        if len(words) > most:
            raise Refusal(512, f"Bad arguments to {name}: Cannot accept more than {most} argument(s)")
        return words
