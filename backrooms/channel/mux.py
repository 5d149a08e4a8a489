"""Which cell leaves next on a link: control cells first, then the quietest circuit's.

The mux is pulled: `pop(n)` is called only while the link has room, so a cell that could still be overtaken by a quieter
circuit waits here and not in a socket. A circuit that ends on this node (a client's, or an exit's answers) does not
even make its cells before they are asked for: its queue has a `source` that fills it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Protocol

from backrooms.wire.cell import CELL_SIZE

QUANTUM = 4
"""Cells taken from one circuit before the others are looked at again."""
HALF_LIFE = 4 * 1024 * 1024 // CELL_SIZE
"""Cells sent on a link after which a circuit's past activity counts half."""
QUEUE_LIMIT = 10 * 1024 * 1024 // CELL_SIZE
"""Cells that may wait for one circuit: the largest congestion window and a quarter. More is an attack or a bug."""
CELL_MEMORY = CELL_SIZE + 48
"""Bytes of memory of a cell that waits."""

_GROWTH = 2.0 ** (1.0 / HALF_LIFE)
_RESCALE = 1e100


class CellSource(Protocol):
    """Makes cells when the link can take them."""

    def fill(self, limit: int) -> list[bytes]:
        """Up to `limit` cells, sealed in the order they will go out; fewer means there are no more now."""


class CircuitQueue:
    """The cells of one circuit that wait for one link."""

    __slots__ = ("activity", "cells", "circuit_id", "closed", "listed", "mux", "on_overflow", "source")

    def __init__(self, mux: Mux, circuit_id: int) -> None:
        self.mux = mux
        self.circuit_id = circuit_id
        self.cells: deque[bytes] = deque()
        self.source: CellSource | None = None
        self.on_overflow: Callable[[], None] | None = None
        self.activity = 0.0
        self.listed = False
        self.closed = False

    def __len__(self) -> int:
        return len(self.cells)

    def append(self, cell: bytes) -> None:
        """Queue one whole cell. Past `QUEUE_LIMIT` the cell is dropped and `on_overflow` told."""
        cells = self.cells
        cells.append(cell)
        if not self.listed:
            self.mux.list_queue(self)
        elif len(cells) > QUEUE_LIMIT:
            cells.pop()
            if self.on_overflow is not None:
                self.on_overflow()

    def wake(self) -> None:
        """The source has something to send."""
        if not self.listed:
            self.mux.list_queue(self)


class Mux:
    """All queues of one link."""

    def __init__(self) -> None:
        self.on_dirty: Callable[[], None] | None = None
        self._control: deque[bytes] = deque()
        self._queues: dict[int, CircuitQueue] = {}
        self._active: list[tuple[float, int, CircuitQueue]] = []
        self._order = 0
        self._unit = 1.0

    def open(self, circuit_id: int) -> CircuitQueue:
        """The queue of a new circuit."""
        queue = CircuitQueue(self, circuit_id)
        self._queues[circuit_id] = queue
        return queue

    def close(self, circuit_id: int) -> None:
        """Drop a circuit's queue and what waits in it."""
        queue = self._queues.pop(circuit_id, None)
        if queue is not None:
            queue.closed = True
            queue.cells.clear()
            # It may be listed until the link takes something, and must not keep its circuit alive until then.
            queue.source = queue.on_overflow = None

    def control(self, cell: bytes) -> None:
        """Queue a whole cell that overtakes all circuits: link messages, CREATE, DESTROY, keep-alives."""
        self._control.append(cell)
        if self.on_dirty is not None:
            self.on_dirty()

    def list_queue(self, queue: CircuitQueue) -> None:
        """A queue has something to send."""
        if queue.closed:
            queue.cells.clear()
            return
        queue.listed = True
        self._order += 1
        heappush(self._active, (queue.activity, self._order, queue))
        if self.on_dirty is not None:
            self.on_dirty()

    @property
    def pending(self) -> bool:
        """Whether `pop` may give something."""
        return bool(self._control or self._active)

    @property
    def control_waiting(self) -> int:
        """Control cells that wait."""
        return len(self._control)

    def queued(self) -> int:
        """Cells that wait, over all circuits."""
        return len(self._control) + sum(len(queue.cells) for _, _, queue in self._active if not queue.closed)

    def pop(self, limit: int) -> list[bytes]:
        """At most `limit` whole cells in the order they go out."""
        control = self._control
        out: list[bytes] = []
        while control and len(out) < limit:
            out.append(control.popleft())
        active = self._active
        while active and len(out) < limit:
            queue = heappop(active)[2]
            # A queue is unlisted while it is served, so that what its source wakes meanwhile is not lost.
            queue.listed = False
            if queue.closed:
                queue.cells.clear()  # appended behind the DESTROY
                continue
            room = limit - len(out)
            share = room if not active else min(QUANTUM, room)
            cells = queue.cells
            count = len(cells)
            if count > share:
                count = share
                out += [cells.popleft() for _ in range(share)]
            elif count:
                out += cells
                cells.clear()
            filled = 0
            if count < share and queue.source is not None:
                made = queue.source.fill(share - count)
                filled = len(made)
                out += made
            taken = count + filled
            self._count(queue, taken)
            if not queue.listed and not queue.closed and (cells or (queue.source and taken == share)):
                queue.listed = True
                self._order += 1
                heappush(active, (queue.activity, self._order, queue))
        return out

    def _count(self, queue: CircuitQueue, cells: int) -> None:
        """Activity decays with the link's cells, not with the clock: the old weigh less because the new weigh more."""
        queue.activity += cells * self._unit
        self._unit *= _GROWTH**cells
        if self._unit > _RESCALE:
            for other in self._queues.values():
                other.activity /= self._unit
            # In place: `pop` is at work on this very list.
            self._active[:] = sorted((q.activity, n, q) for _, n, q in self._active if not q.closed)
            self._unit = 1.0
