"""The circuit ids of one link: who may use which, and when one is free again (docs/protocol.md, "Circuit ids").

An id is random and not zero; its top bit is 1 if the link's initiator chose it and 0 if the responder did. It is free
again once DESTROY has been sent and received. A breach of these rules ends the circuit it happened on, with one DESTROY
and never a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from backrooms.channel.events import Create, Created, Destroyed
from backrooms.channel.mux import Mux
from backrooms.errors import CircuitError, LocalProtocolError, WireError
from backrooms.interfaces import Rng
from backrooms.wire.cell import CellCommand, DestroyReason, pack_cell, pack_handshake, unpack_handshake

MAX_REFUSED = 256
"""Ids of refused circuits that are remembered, so that each is answered once."""
TOP_BIT = 0x80000000

Handler = Callable[[int, bytes, int], None]
"""Called for a RELAY or RELAY_EARLY cell: command, buffer, offset of the cell's header in the buffer."""


class _Use(Enum):
    """What a circuit id is used for."""

    OPENING = auto()
    """We sent CREATE."""
    OFFERED = auto()
    """The peer sent CREATE."""
    OPEN = auto()
    CLOSING = auto()
    """We sent DESTROY; free when the peer's has come."""


class CircuitTable:
    """The ids in use on one link and the handlers of their RELAY cells.

    `send(cell)` and `reply(cell)` queue control cells, `reply` those that the peer caused; `tell(event)` is for the
    owner. A `silent` end, a client, never tells why it ends a circuit. Handlers and queues are taken away when their
    circuit ends, whoever ends it.
    """

    def __init__(
        self,
        initiator: bool,
        limit: int,
        mux: Mux,
        send: Callable[[bytes], None],
        reply: Callable[[bytes], None],
        tell: Callable[[Any], None],
        counts: Counter[str],
        silent: bool = False,
    ) -> None:
        self.handlers: dict[int, Handler] = {}
        self._half = TOP_BIT if initiator else 0
        self._limit = limit
        self._mux = mux
        self._send = send
        self._reply = reply
        self._tell = tell
        self._counts = counts
        self._silent = silent
        self._uses: dict[int, _Use] = {}
        self._refused: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._uses)

    # What the owner does

    def new_id(self, rng: Rng) -> int:
        """A random id of our half that is free."""
        while True:
            circuit_id = self._half | rng.randrange(1, TOP_BIT)
            if circuit_id not in self._uses and circuit_id not in self._refused:
                return circuit_id

    def create(self, circuit_id: int, handshake: bytes) -> None:
        """Ask the peer for a circuit. `CircuitError` when the link is full."""
        if not circuit_id or circuit_id & TOP_BIT != self._half or circuit_id in self._uses:
            raise LocalProtocolError(f"circuit id {circuit_id:#x} is not ours or in use")
        if len(self._uses) >= self._limit:
            raise CircuitError(f"the link is full: {len(self._uses)} circuits")
        cell = pack_cell(circuit_id, CellCommand.CREATE, pack_handshake(handshake))
        self._uses[circuit_id] = _Use.OPENING
        self._send(cell)

    def created(self, circuit_id: int, handshake: bytes) -> bool:
        """Accept the peer's circuit. False, and nothing is sent, when it has ended meanwhile."""
        use = self._uses.get(circuit_id)
        if use is None or use is _Use.CLOSING:
            return False
        if use is not _Use.OFFERED:
            raise LocalProtocolError(f"circuit {circuit_id:#x} waits for no CREATED of ours")
        cell = pack_cell(circuit_id, CellCommand.CREATED, pack_handshake(handshake))
        self._uses[circuit_id] = _Use.OPEN
        self._reply(cell)
        return True

    def destroy(self, circuit_id: int, reason: int) -> bool:
        """End a circuit. False, and nothing is sent, when it has ended already."""
        return self._destroy(circuit_id, reason, self._send)

    def clear(self) -> None:
        """The link is gone."""
        self.handlers.clear()
        for circuit_id in self._uses:
            self._mux.close(circuit_id)
        self._uses.clear()
        self._refused.clear()

    # What the peer does

    def relay(self, circuit_id: int) -> None:
        """A RELAY cell came for a circuit without a handler."""
        use = self._uses.get(circuit_id)
        if use is None:
            self._counts["unknown_circuit"] += 1
            self._refuse(circuit_id, DestroyReason.PROTOCOL)
        elif use is _Use.CLOSING:
            self._counts["late_cell"] += 1
        else:
            self._counts["early_cell"] += 1
            self.fail(circuit_id)

    def peer_handshake(self, circuit_id: int, command: int, payload: bytes) -> None:
        """CREATE or CREATED came."""
        use = self._uses.get(circuit_id)
        if use is _Use.CLOSING:
            self._counts["late_cell"] += 1
            return
        try:
            handshake = unpack_handshake(payload)
        except WireError:
            self._counts["bad_handshake"] += 1
            self._break(circuit_id, use)
            return
        if command == CellCommand.CREATED:
            if use is _Use.OPENING:
                self._uses[circuit_id] = _Use.OPEN
                self._tell(Created(circuit_id, handshake))
            else:
                self._counts["unexpected_created"] += 1
                self._break(circuit_id, use)
        elif use is not None or circuit_id & TOP_BIT == self._half:
            self._counts["bad_circuit_id"] += 1
            self._break(circuit_id, use)
        elif circuit_id in self._refused:
            self._counts["late_cell"] += 1
        elif len(self._uses) >= self._limit:
            self._counts["too_many_circuits"] += 1
            self._refuse(circuit_id, DestroyReason.RESOURCE_LIMIT)
        else:
            self._uses[circuit_id] = _Use.OFFERED
            self._tell(Create(circuit_id, handshake))

    def peer_destroy(self, circuit_id: int, reason: int) -> None:
        """DESTROY came."""
        use = self._uses.pop(circuit_id, None)
        if use is None:
            # Never answered: two nodes that both know nothing of it would go on for ever.
            if circuit_id in self._refused:
                del self._refused[circuit_id]
            else:
                self._counts["unknown_destroy"] += 1
        elif use is not _Use.CLOSING:
            self._drop(circuit_id)
            self._reply(self._destroy_cell(circuit_id, DestroyReason.NONE))
            self._tell(Destroyed(circuit_id, reason))

    def fail(self, circuit_id: int) -> None:
        """End a circuit because of what the peer did on it."""
        if self._destroy(circuit_id, DestroyReason.PROTOCOL, self._reply):
            self._tell(Destroyed(circuit_id, DestroyReason.PROTOCOL))

    def _break(self, circuit_id: int, use: _Use | None) -> None:
        """The peer broke the rules with this id: end what it names, or say once that there is nothing."""
        if use is None:
            self._refuse(circuit_id, DestroyReason.PROTOCOL)
        else:
            self.fail(circuit_id)

    def _refuse(self, circuit_id: int, reason: int) -> None:
        """Answer DESTROY for an id that is not in use; once, as far as memory goes."""
        if circuit_id in self._refused:
            return
        if len(self._refused) >= MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        self._refused[circuit_id] = None
        self._reply(self._destroy_cell(circuit_id, reason))

    def _destroy(self, circuit_id: int, reason: int, send: Callable[[bytes], None]) -> bool:
        use = self._uses.get(circuit_id)
        if use is None or use is _Use.CLOSING:
            return False
        self._drop(circuit_id)
        self._uses[circuit_id] = _Use.CLOSING
        send(self._destroy_cell(circuit_id, reason))
        return True

    def _drop(self, circuit_id: int) -> None:
        self.handlers.pop(circuit_id, None)
        # What waits in the queue must not go out behind the DESTROY.
        self._mux.close(circuit_id)

    def _destroy_cell(self, circuit_id: int, reason: int) -> bytes:
        """A client gives no reason: that would tell relays about it."""
        return pack_cell(circuit_id, CellCommand.DESTROY, bytes((DestroyReason.NONE if self._silent else reason,)))
