"""One direction of a simulated TCP connection, and the way between two hosts that it shares with others."""

from __future__ import annotations

import enum
import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simnet.clock import SimCall
    from tests.simnet.network import Host, SimNet
    from tests.simnet.sockets import SimSocket

BURST = 65_536
"""Largest piece on a way without rate and loss, where cutting it up would change nothing but the cost."""

MIN_RTO = 0.2
"""Least retransmission timeout in seconds (RFC 6298 says 1 s, Linux takes 0.2 s)."""

SYN_RTO = 1.0
"""First retransmission timeout of a connection attempt (RFC 6298)."""

MAX_RTO = 60.0


class Kind(enum.Enum):
    """What arrives at the other end."""

    ACK = "ack"  # the end of the handshake: the listener may accept
    DATA = "data"
    FIN = "fin"
    RST = "rst"


@dataclass(frozen=True, slots=True)
class Link:
    """What one direction between two hosts is like.

    * `delay` and `jitter`: seconds; a segment takes delay + uniform(0, jitter), and none overtakes another.
    * `loss`: the chance that a segment has to be sent again, after a retransmission timeout.
    * `rate`: bytes per second, shared by all connections of this direction; None is unlimited.
    * `queue`: bytes that wait in front of a link with a rate before senders are held back.
    * `mss`: most bytes of a segment, where there is a rate or loss.
    * `window`: bytes of one connection that may be under way or unread.
    """

    delay: float = 0.010
    jitter: float = 0.0
    loss: float = 0.0
    rate: float | None = None
    queue: int = 65_536
    mss: int = 1_460
    window: int = 262_144

    def __post_init__(self) -> None:
        if self.delay < 0 or self.jitter < 0:
            raise ValueError("delay and jitter are seconds, zero or more")
        if not 0 <= self.loss < 1:
            raise ValueError("loss is a chance from 0 up to, but without, 1")
        if self.rate is not None and self.rate <= 0:
            raise ValueError("rate is bytes per second, above zero, or None")
        if min(self.queue, self.mss, self.window) < 1:
            raise ValueError("queue, mss and window are bytes, at least 1")


LOOPBACK = Link(delay=0.000_020)


class Path:
    """The state of one direction between two hosts: its queue, and whether it is cut."""

    def __init__(self, net: SimNet, source: Host, target: Host, link: Link) -> None:
        self.net = net
        self.source = source
        self.target = target
        self.link = link
        self.cut = False
        self.stalled: dict[Pipe, None] = {}
        # Each way draws its own luck, so that traffic elsewhere does not change it.
        self._rng = random.Random(f"{net.seed}/{source.name}>{target.name}")
        self._free_at = 0.0
        self._waiting: deque[Pipe] = deque()
        self._wake: SimCall | None = None

    @property
    def blocked(self) -> bool:
        """Nothing arrives at present."""
        return self.cut or self.target.off

    def rto(self) -> float:
        """A retransmission timeout for this way, in seconds."""
        back = self.net.path(self.target, self.source).link
        return max(MIN_RTO, 2 * (self.link.delay + back.delay + self.link.jitter + back.jitter))

    def trip(self, first_rto: float) -> float:
        """Draw how long one segment takes once it has left the queue, losses included."""
        link = self.link
        seconds = link.delay
        if link.jitter:
            seconds += self._rng.uniform(0.0, link.jitter)
        if link.loss:
            again = first_rto
            while self._rng.random() < link.loss:
                seconds += again
                again = min(2 * again, MAX_RTO)
        return seconds

    def arrival(self, size: int) -> float:
        """Put a segment of `size` bytes into the queue; when it arrives."""
        now = self.net.clock.now
        if self.link.rate is None:
            return now + self.trip(self.rto())
        self._free_at = max(self._free_at, now) + size / self.link.rate
        return self._free_at + self.trip(self.rto())

    def backlog(self) -> float:
        """Bytes in the queue."""
        if self.link.rate is None:
            return 0.0
        return max(0.0, self._free_at - self.net.clock.now) * self.link.rate

    def serve(self, pipe: Pipe) -> None:
        """Let `pipe` send, in turn with the others that wait for room in the queue."""
        if self.link.rate is None:
            while pipe.wants:
                pipe.send_one()
            return
        if not pipe.waiting:
            pipe.waiting = True
            self._waiting.append(pipe)
        if self._wake is None:
            self._round()

    def _round(self) -> None:
        self._wake = None
        while self._waiting:
            if (excess := self.backlog() - self.link.queue) >= 0 and self.link.rate is not None:
                # Room for one segment at least, so that this is not called for every byte.
                wait = (excess + min(self.link.mss, self.link.queue)) / self.link.rate
                self._wake = self.net.clock.call_later(wait, None, self._round)
                return
            pipe = self._waiting.popleft()
            pipe.waiting = False
            if pipe.wants:
                pipe.send_one()
                if pipe.wants and not pipe.waiting:
                    pipe.waiting = True
                    self._waiting.append(pipe)

    def resume(self) -> None:
        """The way may be open again: what was under way arrives when TCP next tries."""
        if self.blocked:
            return
        stalled, self.stalled = self.stalled, {}
        for pipe in stalled:
            pipe.resume()


class Pipe:
    """One direction of a connection: unsent bytes, what is under way, and how much more the receiver takes.

    The window is fixed (no slow start); a lost segment delays itself and all that is behind it by a
    retransmission timeout. Delivery is in order and exactly once.
    """

    def __init__(self, path: Path, source: SimSocket, sink: SimSocket, number: int, outward: bool) -> None:
        self.path = path
        self.source = source
        self.sink = sink
        self.number = number
        self.outward = outward
        self.unsent = bytearray()
        self.credit = sink.receive_buffer or path.link.window
        self.fin = False
        self.ended = False
        self.waiting = False
        self._was_reset = False
        self._flight: deque[tuple[float, Kind, bytes]] = deque()
        self._event: SimCall | None = None
        self._last = 0.0
        self._stalled_at: float | None = None
        self._give_up: SimCall | None = None

    @property
    def wants(self) -> bool:
        """There is something to send that the receiver takes."""
        if self.ended:
            return False
        if self.unsent:
            # A sliver of window is not worth a segment (RFC 9293, silly window avoidance).
            return self.credit >= min(self.path.link.mss, len(self.unsent))
        return self.fin

    def write(self, data: bytes) -> None:
        """Take bytes into the send buffer."""
        self.unsent += data
        self.path.serve(self)

    def finish(self) -> None:
        """Send FIN once everything is sent."""
        if not self.fin and not self.ended:
            self.fin = True
            self.path.serve(self)

    def reset(self) -> None:
        """Drop what is unsent and send RST."""
        if not self._was_reset:
            self._was_reset = True
            self.drop()
            self.launch(Kind.RST)

    def drop(self) -> None:
        """The sender is gone, without a word."""
        self.unsent.clear()
        self.fin = False
        self.ended = True

    def send_one(self) -> None:
        """Put one segment on its way."""
        link = self.path.link
        if not self.unsent:
            self.ended = True
            self.launch(Kind.FIN)
            return
        most = link.mss if link.rate is not None or link.loss else BURST
        size = min(most, self.credit, len(self.unsent))
        data = bytes(self.unsent[:size])
        del self.unsent[:size]
        self.credit -= size
        self.launch(Kind.DATA, data)
        self.source.poke()

    def launch(self, kind: Kind, data: bytes = b"") -> None:
        """Put a segment on its way, behind those that are under way already."""
        net = self.path.net
        self._last = max(self._last, self.path.arrival(len(data)))
        self._flight.append((self._last, kind, data))
        if data and net.observers:
            for observer in net.observers:
                observer.saw(self, self._last, data)
        if self._event is None and self._stalled_at is None:
            self._schedule()

    def acked(self, size: int) -> None:
        """The receiver has read `size` bytes, and the sender has heard of it."""
        self.credit += size
        if self.wants:
            self.path.serve(self)

    def under_way(self) -> int:
        """Bytes sent and not arrived."""
        return sum(len(data) for _, _, data in self._flight)

    def _schedule(self) -> None:
        clock = self.path.net.clock
        self._event = clock.call_later(max(0.0, self._flight[0][0] - clock.now), None, self._arrive)

    def _arrive(self) -> None:
        self._event = None
        clock = self.path.net.clock
        if self.path.blocked:
            self._stalled_at = clock.now
            self.path.stalled[self] = None
            self._give_up = clock.call_later(self.path.net.tcp_timeout, None, self._timed_out)
            return
        while self._flight and self._flight[0][0] <= clock.now:
            _, kind, data = self._flight.popleft()
            self.sink.arrived(kind, data)
        if self._flight and self._event is None and self._stalled_at is None:
            self._schedule()

    def resume(self) -> None:
        """The way is open again after an outage; the sender's next retransmission gets through."""
        if self._stalled_at is None:
            return
        now = self.path.net.clock.now
        again, step = self._stalled_at, self.path.rto()
        while again < now:
            again += step
            step = min(2 * step, MAX_RTO)
        self._clear_stall()
        again += self.path.link.delay
        self._flight = deque((max(when, again), kind, data) for when, kind, data in self._flight)
        self._last = max(self._last, again)
        self._schedule()

    def _timed_out(self) -> None:
        self.path.stalled.pop(self, None)
        self._give_up = None
        self._clear_stall()
        self._flight.clear()
        self.drop()
        self.source.timed_out()

    def _clear_stall(self) -> None:
        self._stalled_at = None
        if self._give_up is not None:
            self._give_up.cancel()
            self._give_up = None
