"""Whether this machine's clock is right, judged by the relays that it dials."""

from __future__ import annotations

from collections.abc import Callable, Collection

from twisted.logger import Logger

from backrooms.crypto.keys import fingerprint
from backrooms.netdir.descriptor import CLOCK_TOLERANCE
from backrooms.node.logs import Seldom

log = Logger()

NOTICE = 3600.0
"""Seconds that clocks may differ before people are told."""
WRONG = float(CLOCK_TOLERANCE)
"""Seconds from which on neither documents nor handshakes of ours are accepted by others, nor theirs by us."""
JUDGES = 2
"""Relays that must have told their time before ours can be called wrong."""
MAX_RELAYS = 64
"""Relays whose clocks are remembered."""
STEP = 60.0
"""Seconds by which the system's clock must be set at once for all that was learned to be void."""


class Clocks:
    """How far relays' clocks are ahead of ours, in seconds. They tell it, to the minute, in their link proofs.

    Only relays that we chose to dial may be noted: anybody can dial us, under as many identities as he likes.
    `contacts` has the ids of the network file's relays. If any of them is noted, most of them must find our clock
    wrong, too, for a relay can be made to dial those that somebody else wants.
    """

    def __init__(self) -> None:
        self.contacts: Collection[bytes] = ()
        self.on_change: Callable[[], None] = lambda: None
        """Called when `wrong` has changed, and when the system's clock was set."""
        self.wrong = False
        """Whether our clock is so wrong that it is no use building circuits or publishing ourselves."""
        self._skews: dict[bytes, float] = {}
        self._offset: float | None = None
        self._seldom = Seldom()

    @property
    def skew(self) -> float | None:
        """The median of all relays, if it is more than an hour: one of them alone cannot make us doubt ourselves."""
        middle = _middle(self._skews.values())
        return middle if abs(middle) > NOTICE else None

    def describe(self) -> str:
        """`skew` in words."""
        skew = self.skew or 0.0
        way = "behind" if skew > 0 else "ahead of"
        count = len(self._skews)
        return f"this machine's clock is {abs(skew) / 60:.0f} minutes {way} those of relays ({count} asked)"

    def note(self, relay_id: bytes, seconds: float, now: float) -> None:
        """A relay that we dialled told its time. Says so in the log, now and then, when clocks differ."""
        self._skews.pop(relay_id, None)
        self._skews[relay_id] = seconds
        if len(self._skews) > MAX_RELAYS:
            del self._skews[next(iter(self._skews))]
        self._judge(now)
        if self.skew is None and abs(seconds) > NOTICE:
            relay = fingerprint(relay_id)[:8]
            if self._seldom.is_due(relay, now):
                log.info("the clock of relay {relay} is {minutes:+.0f} minutes off", relay=relay, minutes=seconds / 60)

    def look(self, now: float, wall: float) -> bool:
        """Whether the system's clock was set since the last look. Then all starts afresh: links must be made anew."""
        before, self._offset = self._offset, wall - now
        if before is None or abs(self._offset - before) <= STEP:
            return False
        minutes = (self._offset - before) / 60
        log.info("the clock was set by {minutes:+.0f} minutes, or the machine slept", minutes=minutes)
        self._skews.clear()
        self._seldom = Seldom()
        self.wrong = False
        self.on_change()
        return True

    def _judge(self, now: float) -> None:
        before = self.wrong
        judges = [self._skews[one] for one in self.contacts if one in self._skews]
        all_say = len(self._skews) >= JUDGES and abs(_middle(self._skews.values())) > WRONG
        self.wrong = all_say and (not judges or abs(_middle(judges)) > WRONG)
        if self.wrong:
            if self._seldom.is_due("wrong", now):
                log.critical(
                    "{text}: no circuits are built and this node is not published until it is set right",
                    text=self.describe(),
                )
        elif before:
            log.info("this machine's clock agrees with those of relays again")
        elif self.skew is not None and self._seldom.is_due("ours", now):
            log.warn("{text}; check it, the time zone and NTP", text=self.describe())
        if self.wrong != before:
            self.on_change()


def _middle(skews: Collection[float]) -> float:
    """The median; of two in the middle the one nearer to zero, so that it takes more than half to say otherwise."""
    ordered = sorted(skews)
    return min(ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2], key=abs) if ordered else 0.0
