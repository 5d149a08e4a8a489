"""Whether this machine's clock is right, judged by the relays that it meets."""

from __future__ import annotations

from statistics import median_low

from twisted.logger import Logger

from backrooms.crypto.keys import fingerprint
from backrooms.node.logs import Seldom

log = Logger()

NOTICE = 3600.0
"""Seconds that clocks may differ before people are told."""
MAX_RELAYS = 64
"""Relays whose clocks are remembered."""


class Clocks:
    """How far relays' clocks are ahead of ours, in seconds. They tell it, to the minute, in their link proofs."""

    def __init__(self) -> None:
        self._skews: dict[bytes, float] = {}
        self._seldom = Seldom()

    @property
    def skew(self) -> float | None:
        """The median of all relays, if it is more than an hour: one of them alone cannot make us doubt ourselves."""
        if not self._skews:
            return None
        middle = median_low(self._skews.values())
        return middle if abs(middle) > NOTICE else None

    def note(self, relay_id: bytes, seconds: float, now: float) -> None:
        """A relay told its time. Says so in the log, now and then, when clocks differ."""
        self._skews.pop(relay_id, None)
        self._skews[relay_id] = seconds
        if len(self._skews) > MAX_RELAYS:
            del self._skews[next(iter(self._skews))]
        skew = self.skew
        if skew is not None:
            if self._seldom.is_due("ours", now):
                log.warn(
                    "this machine's clock is {minutes:.0f} minutes {way} those of relays ({count} asked); "
                    "check it, the time zone and NTP",
                    minutes=abs(skew) / 60,
                    way="behind" if skew > 0 else "ahead of",
                    count=len(self._skews),
                )
        elif abs(seconds) > NOTICE:
            relay = fingerprint(relay_id)[:8]
            if self._seldom.is_due(relay, now):
                log.info("the clock of relay {relay} is {minutes:+.0f} minutes off", relay=relay, minutes=seconds / 60)
