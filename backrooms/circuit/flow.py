"""Congestion control of one circuit and direction: Vegas as in Tor's proposal 324, counted in cells with DATA.

The proposal's thresholds are multiples of the cells that fit a link's output buffer, 62 of 514 bytes in Tor. Ours holds
`OUTBUF` cells: a link is asked for 64 KiB at a time. The other constants are scaled to the same number of bytes, except
that a window is never less than two SENDMEs' worth, or acknowledgements could not keep it open. The proposal's rule for
the base line at the smallest window is left out: after slow start a window is never below `ALPHA`, so it would never
apply. A route that became longer carries `ALPHA` cells a round trip or more.
"""

from __future__ import annotations

from collections import deque
from hmac import compare_digest

from backrooms.errors import WireError
from backrooms.wire.cell import CELL_SIZE
from backrooms.wire.relay import SENDME_CELLS

_TOR_CELL = 514


def _scaled(tor_cells: int) -> int:
    return max(1, tor_cells * _TOR_CELL // CELL_SIZE)


OUTBUF = 65536 // CELL_SIZE
ALPHA = 3 * OUTBUF
BETA = 4 * OUTBUF
GAMMA = 3 * OUTBUF
DELTA = 5 * OUTBUF
SLOW_START_CAP = _scaled(600)
CWND_MIN = 2 * SENDME_CELLS
CWND_INIT = 2 * SENDME_CELLS
CWND_MAX = 8 * 1024 * 1024 // CELL_SIZE
"""8 MiB: 40 MB/s at a round trip of 200 ms."""
_EWMA_MAX = 10


class Vegas:
    """The sender's window. `sent` counts cells with DATA; every `SENDME_CELLS`-th must be acknowledged by its tag."""

    __slots__ = (
        "_awaited",
        "_bdp",
        "_full",
        "_min_rtt",
        "_next_update",
        "cwnd",
        "inflight",
        "rtt",
        "sent",
        "slow_start",
    )

    def __init__(self) -> None:
        self.cwnd = CWND_INIT
        self.inflight = 0
        self.sent = 0
        self.slow_start = True
        self.rtt = 0.0
        """Smoothed round trip in seconds; 0 until the first SENDME."""
        self._min_rtt = 0.0
        self._bdp = 0.0
        self._full = False
        self._next_update = 0
        self._awaited: deque[tuple[bytes, float]] = deque()

    def room(self) -> int:
        """Cells that may be sent now."""
        return self.cwnd - self.inflight

    def next_is_acknowledged(self) -> bool:
        """Whether a SENDME will name the next cell, so that it needs random padding."""
        return (self.sent + 1) % SENDME_CELLS == 0

    def count(self) -> None:
        """A cell with DATA was sealed; `expect` follows when a SENDME will name it."""
        self.sent += 1
        self.inflight += 1
        if self.inflight >= self.cwnd:
            self._full = True

    def expect(self, tag: bytes, now: float) -> None:
        """Remember the tag of a cell that a SENDME will name."""
        self._awaited.append((tag, now))

    def acknowledged(self, tag: bytes, now: float) -> None:
        """A SENDME came: check its tag and move the window."""
        if not self._awaited:
            raise WireError("SENDME that nothing was sent for")
        expected, sent_at = self._awaited.popleft()
        if not compare_digest(tag, expected):
            raise WireError("SENDME with a wrong tag")
        self.inflight -= SENDME_CELLS
        self._measure(now - sent_at)
        self._update()

    def _measure(self, sample: float) -> None:
        sample = max(sample, 1e-6)
        if self.rtt == 0.0:
            self.rtt = self._min_rtt = sample
            return
        window = 2 if self.slow_start else max(2, min(self.cwnd // (2 * SENDME_CELLS), _EWMA_MAX))
        self.rtt += (sample - self.rtt) * 2 / (window + 1)
        self._min_rtt = min(self._min_rtt, self.rtt)

    def _update(self) -> None:
        self._bdp = self.cwnd * self._min_rtt / self.rtt
        queue = self.cwnd - self._bdp
        if self.slow_start:
            if queue >= GAMMA:
                self._leave_slow_start(int(self._bdp) + GAMMA)
            elif self._full:
                # Limited slow start (RFC 3742): past the cap a window grows by at most half a SENDME per SENDME.
                step = SENDME_CELLS if self.cwnd <= SLOW_START_CAP else SENDME_CELLS // 2
                self.cwnd += step
                if self.cwnd >= CWND_MAX:
                    self._leave_slow_start(CWND_MAX)
        elif self._next_update <= 0:
            if queue > DELTA:
                self.cwnd = int(self._bdp) + DELTA - SENDME_CELLS
            elif queue > BETA:
                self.cwnd -= SENDME_CELLS
            elif queue < ALPHA and self._full:
                self.cwnd += SENDME_CELLS
            self._next_update = self.cwnd // SENDME_CELLS
        self._next_update -= 1
        self.cwnd = max(CWND_MIN, min(self.cwnd, CWND_MAX))
        self._full = self.inflight >= self.cwnd - SENDME_CELLS

    def _leave_slow_start(self, cwnd: int) -> None:
        self.slow_start = False
        self.cwnd = cwnd
        self._next_update = max(2, cwnd // SENDME_CELLS)
