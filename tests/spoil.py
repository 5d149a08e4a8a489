"""Relays that do harm, for tests: a real relay with something put into it. Nothing of this is in the package.

As a program, `python -m tests.spoil KIND SHARE ...twistd's arguments...` runs a node whose relay does harm.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from backrooms.interfaces import Rng
from backrooms.node.relay import Relay
from backrooms.node.relayedcircuit import RelayedCircuit
from backrooms.wire.cell import CELL_SIZE, DestroyReason

DELAY = 0.2
LIFE = 0.2, 4.0
"""Seconds after which a circuit is destroyed."""
KINDS = ("destroys", "refuses", "delays", "busy")


def spoil(relay: Relay, kind: str, share: float, rng: Rng) -> None:
    """Make a relay do harm to this share of circuits, EXTENDs or cells."""
    timers = relay.timers
    created, extend = relay.limits.created, relay.extend

    def destroying(circuit: RelayedCircuit) -> None:
        created(circuit)
        if rng.random() < share:
            timers.at(timers.now() + rng.uniform(*LIFE), lambda: circuit.end(DestroyReason.DESTROYED))

    def delaying(circuit: RelayedCircuit) -> None:
        created(circuit)
        machine: Any = circuit.machine
        machine.forward = _late(machine.forward, timers, share, rng)
        machine.backward = _late(machine.backward, timers, share, rng)
        circuit.link.handle(circuit.circuit_id, machine.forward)

    def refusing(circuit: RelayedCircuit, relay_id: bytes, handshake: bytes) -> None:
        if rng.random() < share:
            circuit.end(DestroyReason.CONNECT_FAILED)
        else:
            extend(circuit, relay_id, handshake)

    def overloaded(circuit: RelayedCircuit) -> None:
        created(circuit)
        if rng.random() < share:
            timers.at(timers.now() + rng.uniform(*LIFE), lambda: circuit.end(DestroyReason.RESOURCE_LIMIT))

    spoilt: Any = relay
    if kind == "refuses":
        spoilt.extend = refusing
    else:
        spoilt.limits.created = {"destroys": destroying, "delays": delaying, "busy": overloaded}[kind]


def _late(
    handler: Callable[[int, bytes, int], None], timers: Any, share: float, rng: Rng
) -> Callable[[int, bytes, int], None]:
    """Handles some cells late, and those behind them after them."""
    waiting: deque[tuple[float, int, bytes]] = deque()

    def serve() -> None:
        while waiting and waiting[0][0] <= timers.now():
            _, command, cell = waiting.popleft()
            handler(command, cell, 0)
        if waiting:
            timers.at(waiting[0][0], serve)

    def take(command: int, buffer: bytes, offset: int) -> None:
        is_late = rng.random() < share
        if not is_late and not waiting:
            handler(command, buffer, offset)
            return
        waiting.append((timers.now() + is_late * DELAY, command, bytes(buffer[offset : offset + CELL_SIZE])))
        if len(waiting) == 1:
            timers.at(waiting[0][0], serve)

    return take


def main() -> None:
    kind, share = sys.argv[1], float(sys.argv[2])
    sys.argv = ["twistd", *sys.argv[3:]]
    make = Relay.__init__

    def made(self: Relay, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        spoil(self, kind, share, random.SystemRandom())

    Relay.__init__ = made  # type: ignore[method-assign]
    from twisted.scripts import twistd

    twistd.run()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
