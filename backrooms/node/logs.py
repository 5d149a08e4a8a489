"""What of a log is written: nothing below a level and, unless told otherwise, nothing that says who talks to whom."""

from __future__ import annotations

import re
import traceback
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, cast

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from backrooms.errors import BackroomsError

SCRUBBED: Final = "[scrubbed]"

_ADDRESS = re.compile(
    r"\[[0-9A-Fa-f]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*\](?::\d{1,5})?"
    r"|(?<![\w.:])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:\.\d{1,3}){0,3}(?![\w:])"
    r"|(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?(?!\.?\w)"
)
_OURS = "backrooms."
_TWISTD = "twisted.scripts._twistd_unix"
_RANK = {
    level: rank
    for rank, level in enumerate((LogLevel.debug, LogLevel.info, LogLevel.warn, LogLevel.error, LogLevel.critical))
}


def scrub(text: str) -> str:
    """`text` without IP addresses and their ports. Host names cannot be told from words: they must not be logged."""
    return _ADDRESS.sub(SCRUBBED, text)


def describe(failure: Failure) -> str:
    """A failure as its kind and where it happened.

    The message is left out unless the error is one of ours, whose texts name no destination: those of Twisted and
    of the system do, "DNS lookup failed: ..." for one.
    """
    name = getattr(failure.type, "__qualname__", str(failure.type))
    text = f"{name}: {failure.value}" if isinstance(failure.value, BackroomsError) else name
    frames = traceback.format_tb(cast(Any, failure).getTracebackObject())
    return "".join([*frames, scrub(text)]) if frames else scrub(text)


@implementer(ILogObserver)
class LogFilter:
    """Stands before the log observers of the process.

    With `safe`, only warnings and worse are kept of what others log (Twisted's lesser events tell ports and objects),
    every IP address is taken out, and failures are told without their messages. A `critical` event of ours stays as it
    is: it says why the node cannot start, and what addresses it names are its own. `on_line(level, text)` is called for
    each event of ours that is kept.
    """

    def __init__(self, level: str, safe: bool) -> None:
        self.on_line: Callable[[Any, str], None] = lambda level, text: None
        """Takes a level (a constant of `twisted.logger.LogLevel`) and a line."""
        self._behind: list[ILogObserver] = []
        self.configure(level, safe)

    def configure(self, level: str, safe: bool) -> None:
        """Set the least important level that is kept, and whether identifying details are left out."""
        self._least = _RANK[LogLevel.levelWithName(level)]
        self._safe = safe

    def install(self) -> None:
        """Put the filter before what twistd has set up. Twisted has no public way to do that."""
        publisher = cast(Any, globalLogPublisher)
        self._behind = list(publisher._observers)
        for observer in self._behind:
            globalLogPublisher.removeObserver(observer)
        globalLogPublisher.addObserver(self)

    def remove(self) -> None:
        """Undo `install`."""
        globalLogPublisher.removeObserver(self)
        for observer in self._behind:
            globalLogPublisher.addObserver(observer)
        self._behind = []

    def __call__(self, event: LogEvent) -> None:
        kept = self.filter(event)
        if kept is None:
            return
        for observer in self._behind:
            observer(kept)
        if str(kept.get("log_namespace", "")).startswith(_OURS):
            text = formatEvent(kept)
            if text:
                self.on_line(kept.get("log_level", LogLevel.info), text)

    def filter(self, event: LogEvent) -> LogEvent | None:
        """The event as it may be written; None if it may not."""
        level = event.get("log_level", LogLevel.info)
        rank = _RANK.get(level, 1)
        if rank < self._least:
            return None
        if not self._safe:
            return event
        namespace = str(event.get("log_namespace", ""))
        ours = namespace.startswith(_OURS)
        if not ours and rank < _RANK[LogLevel.warn] and not namespace.startswith(_TWISTD):
            return None
        failure = event.get("log_failure") or event.get("failure")
        if ours and level is LogLevel.critical and failure is None:
            return event
        # A failure's own text and an unformatted event would still have what is to be left out.
        text = "" if failure is not None and not ours else scrub(formatEvent(event))
        if isinstance(failure, Failure):
            text = f"{text or 'unexpected error'}\n{describe(failure)}"
        kept: dict[str, Any] = {
            key: event[key] for key in ("log_level", "log_namespace", "log_time", "log_logger") if key in event
        }
        if "log_system" in event and not ours:
            kept["log_system"] = scrub(str(event["log_system"]))
        kept["log_format"] = "{log_text}"
        kept["log_text"] = text
        return kept


_NUMBERS = re.compile(r"[0-9][0-9, ]*")


def without_numbers(reason: str) -> str:
    """A reason as a kind: peers choose the numbers in it, and could fill a table or a log with them."""
    return _NUMBERS.sub("N", reason)


class Seldom:
    """Says whether a text is worth logging: the same one not again within `seconds`."""

    def __init__(self, seconds: float = 600.0, limit: int = 256) -> None:
        self._seconds = seconds
        self._limit = limit
        self._said: OrderedDict[str, float] = OrderedDict()

    def is_due(self, text: str, now: float) -> bool:
        """True the first time, and then once in `seconds`."""
        last = self._said.get(text)
        if last is not None and now - last < self._seconds:
            return False
        self._said[text] = now
        self._said.move_to_end(text)
        if len(self._said) > self._limit:
            self._said.popitem(last=False)
        return True
