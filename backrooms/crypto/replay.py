"""A relay's memory of circuit handshakes (docs/protocol.md, "Circuit handshake")."""

from __future__ import annotations

from backrooms.crypto.kdf import DIGEST_SIZE
from backrooms.errors import LocalProtocolError
from backrooms.wire.extensions import ClientExtensions


class ReplayCache:
    """Remembers handshakes, so that a recorded one cannot make a relay work again and again.

    A handshake carries a timestamp in minutes that must be within 90 minutes of ours. It could be sent again
    for at most three hours, so its MAC (16 bytes of it) is kept in one of two sets that rotate every three
    hours and a bit: each MAC is remembered for one to two turns.

    Each set holds `capacity` MACs. A full one rotates early and `early` counts it: the oldest half of the
    memory is forgotten and new handshakes go on being served. To refuse them instead would let anyone who
    sends enough handshakes shut everybody out, while a replay that slips through gives no key to anybody
    and costs the relay less than the flood that made room for it. For the same reason the memory is not
    kept across restarts.
    """

    WINDOW = 90
    """Minutes that a client's clock may differ from ours. An hour must work, and clocks of relays differ, too."""
    _TURN = (2 * WINDOW + 2) * 60.0
    _KEPT = 16

    def __init__(self, capacity: int = 1 << 16) -> None:
        if capacity < 1:
            raise LocalProtocolError(f"a replay cache for {capacity} handshakes")
        self._capacity = capacity
        self._current: set[bytes] = set()
        self._previous: set[bytes] = set()
        self._turn_ends = float("-inf")
        self.early = 0
        """How often a full set was rotated before its time."""

    def __len__(self) -> int:
        return len(self._current) + len(self._previous)

    def admit(self, handshake: bytes, minute: int, now: float) -> bool:
        """Whether this handshake is timely and new; it is remembered if it is.

        Call it only once the handshake's MAC verified (inside `make_reply`), or strangers could fill it.
        `minute` is the client's clock in minutes since 1970, `now` ours in seconds since 1970.
        """
        if abs(int(now // 60) - minute) > self.WINDOW:
            return False
        if now >= self._turn_ends:
            self._rotate(now)
        mac = handshake[-DIGEST_SIZE:][: self._KEPT]
        if mac in self._current or mac in self._previous:
            return False
        if len(self._current) >= self._capacity:
            self._rotate(now)
            self.early += 1
        self._current.add(mac)
        return True

    def check(self, message: bytes, handshake: bytes, now: float) -> bytes | None:
        """What a relay answers to a client's message: nothing (an empty reply), or None to refuse.

        `message` holds extension fields with a timestamp, or it is a `WireError`; the rest is as in `admit`.
        """
        minute = ClientExtensions.decode(message).minute
        return b"" if self.admit(handshake, minute, now) else None

    def _rotate(self, now: float) -> None:
        self._previous, self._current = self._current, set()
        self._turn_ends = now + self._TURN
