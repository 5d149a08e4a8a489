"""Whose connection an exit opens next, when circuits want more of them than it can open without keeping cells waiting.

Opening one costs about 0.5 ms of CPU time, and a client asks for it with a few bytes. So a whole exit opens `TURN_RATE`
a second: the neighbour that was served least lately goes first, and of its circuits one after the other. A flood that
comes over some links delays what comes over the same links, and hardly anybody else.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable

from twisted.internet.defer import Deferred, succeed

from backrooms.node.buckets import Key, Recent
from backrooms.node.pace import Tokens
from backrooms.node.timers import Call, Timers

TURN_RATE = 500.0
"""Connections per second that one exit opens."""
TURN_BURST = 250
"""How many it opens at once after a quiet time."""
HALF_LIFE = 10.0
"""Seconds after which what a neighbour has had counts half."""
MAX_PEERS = 4096
MAX_WAITING = 2000
"""Who would have to wait for four seconds or more is better refused, unless others of a longer line can be."""
_Line = OrderedDict[Hashable, dict[Deferred[None], None]]


class Turns:
    """Gives turns; who comes when there are none waits in a line of its circuit's."""

    def __init__(self, timers: Timers, rate: float = TURN_RATE, burst: int = TURN_BURST) -> None:
        self._timers = timers
        self._tokens = Tokens(timers, rate, burst)
        self._recent = Recent(HALF_LIFE, MAX_PEERS)
        self._levels: dict[Key, float] = {}
        self._lines: dict[Key, _Line] = {}
        self._waiting: Counter[Key] = Counter()
        self._count = 0
        self._call: Call | None = None

    def has_room(self, peer: Key) -> bool:
        """Whether one more may wait; the peer that has most in its line may not when there are too many."""
        return self._count < MAX_WAITING or self._waiting[peer] < max(self._waiting.values())

    def turn(self, peer: Key, circuit: Hashable) -> Deferred[None]:
        """Fires when it is the turn of a circuit that came over the link of `peer`; cancelling it leaves the line.

        When too many wait, the last of the longest line is cancelled; ask `has_room` first.
        """
        if not self._lines and self._tokens.take():
            self._note(peer)
            return succeed(None)
        if self._count >= MAX_WAITING:
            self._drop_one()
        place: Deferred[None] = Deferred(lambda place: self._leave(peer, circuit, place))
        self._waiting[peer] += 1
        self._count += 1
        self._lines.setdefault(peer, OrderedDict()).setdefault(circuit, {})[place] = None
        self._levels.setdefault(peer, self._recent.level(peer))
        self._arm()
        return place

    def _drop_one(self) -> None:
        longest = max(self._waiting, key=self._waiting.__getitem__)
        places = self._lines[longest][next(reversed(self._lines[longest]))]
        next(reversed(places)).cancel()

    def close(self) -> None:
        """Cancel all who wait."""
        for places in [places for line in self._lines.values() for places in line.values()]:
            for place in list(places):
                place.cancel()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _note(self, peer: Key) -> None:
        level = self._recent.note(peer, self._timers.now())
        if peer in self._levels:
            self._levels[peer] = level

    def _arm(self) -> None:
        if self._lines and self._call is None:
            self._call = self._timers.at(self._tokens.next_at(), self._serve)

    def _serve(self) -> None:
        """One in a turn of the reactor, so that cells go on flowing."""
        self._call = None
        if self._lines and self._tokens.take():
            peer = min(self._lines, key=self._levels.__getitem__)
            line = self._lines[peer]
            circuit, places = next(iter(line.items()))
            place = next(iter(places))
            line.move_to_end(circuit)
            self._leave(peer, circuit, place)
            self._note(peer)
            place.callback(None)
        self._arm()

    def _leave(self, peer: Key, circuit: Hashable, place: Deferred[None]) -> None:
        line = self._lines[peer]
        places = line[circuit]
        del places[place]
        self._count -= 1
        self._waiting[peer] -= 1
        if not places:
            del line[circuit]
        if not line:
            del self._lines[peer]
            del self._levels[peer]
            del self._waiting[peer]
