"""A bound on what waits in a node: cells before links, bytes of streams, what sockets do not take.

Nothing is counted while cells pass. Every byte that waits has been read from some connection, so the node looks at its
queues only when it has read so much since the last look that there could be too much of it
(docs/decisions/017-limits-of-a-node.md).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, TypeAlias

from twisted.logger import Logger

from backrooms.channel.mux import CELL_MEMORY
from backrooms.node.buckets import Key
from backrooms.node.channels import Channels
from backrooms.node.circuits import Circuits, ClientCircuit
from backrooms.node.driver import Turn
from backrooms.node.limits import choose
from backrooms.node.link import Link
from backrooms.node.logs import Seldom
from backrooms.node.relay import Relay
from backrooms.node.relayedcircuit import RelayedCircuit
from backrooms.node.timers import Timers
from backrooms.wire.cell import DestroyReason

log = Logger()

LEFT = 0.9
"""Part of the bound that is left after something had to go."""
CLOSER = 4
"""A look is due when a part of the room that was left, one in so many, has been read."""
LEAST_STEP = 1 << 20
STEP_PER_SECOND = 1 << 31
"""Bytes between two looks, at least, and for each second of CPU time that a look takes."""
HANDSHAKE_MEMORY = 2048
"""Bytes of a CREATE that waits."""
SMALL = 65_536
"""Bytes of a client's biggest circuit below which its link is closed: each DESTROY would be a cell that waits."""
MUCH = 4 << 20
"""Bytes of link messages, CREATEs and DESTROYs that wait for a relay, with which its link is closed."""
OURSELVES = "ourselves"

_Item: TypeAlias = "Link | RelayedCircuit | ClientCircuit"
_Ranked: TypeAlias = "tuple[int, int, _Item]"
"""A rank, bytes that would be free, and what holds them. Higher ranks go first, then more bytes."""


class Memory:
    """Watches what waits in a node, and ends the biggest of the neighbour that has most when it is more than `limit`.

    Circuits count for the neighbour they came from, whichever way their cells go.
    """

    def __init__(
        self,
        timers: Timers,
        turn: Turn,
        limit: int,
        counts: Counter[str],
        channels: Channels,
        relay: Relay | None,
        circuits: Circuits | None,
    ) -> None:
        """`counts` takes how many circuits were ended and links were closed."""
        self.looks = 0
        self._timers = timers
        self._turn = turn
        self._limit = limit
        self._counts = counts
        self._channels = channels
        self._relay = relay
        self._circuits = circuits
        self._seldom = Seldom()
        turn.watch = self.look
        self._plan(0, 0.0)

    @property
    def limit(self) -> int:
        """Bytes that may wait."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self.look()

    def measure(self) -> dict[str, int]:
        """Bytes that wait, about, by where they do."""
        cells = control = sockets = messages = streams = handshakes = 0
        for link in self._channels.links:
            channel, driver = link.channel, link.driver
            if not channel.closed:
                mux = channel.mux
                cells += mux.queued()
                control += mux.control_waiting
                messages += channel.unfinished
                sockets += driver.unsent + driver.unread
        if self._relay is not None:
            handshakes = self._relay.waiting * HANDSHAKE_MEMORY
            streams = sum(circuit.edge.waiting for circuit in self._relay.exiting)
            sockets += sum(connection.unsent for connection in self._relay.exit.connections)
        if self._circuits is not None:
            streams += sum(one.stream.waiting for one in self._circuits.streams.streams.values() if one.stream)
        return {
            "cells": (cells - control) * CELL_MEMORY,
            "control cells": control * CELL_MEMORY,
            "link messages": messages,
            "handshakes": handshakes,
            "streams": streams,
            "sockets": sockets,
        }

    def total(self) -> int:
        """Bytes that wait, about."""
        return sum(self.measure().values())

    def look(self) -> None:
        """See whether too much waits, and do something about it; decide when to look again."""
        self.looks += 1
        total, took = self._limit, 0.0
        try:
            began = self._timers.cpu()
            total = self.total()
            took = self._timers.cpu() - began
            if total > self._limit:
                self._shed(total)
                total = self.total()
        except Exception:  # a bug of ours: it must not end the connection that was just read from
            log.failure("bug while looking at what waits")
        self._plan(total, took)

    def _plan(self, total: int, took: float) -> None:
        step = max((self._limit - total) / CLOSER, LEAST_STEP, took * STEP_PER_SECOND)
        self._turn.watch_at = self._turn.received + step

    def _shed(self, total: int) -> None:
        excess = total - int(LEFT * self._limit)
        for item in choose(self._holdings(), excess):
            if isinstance(item, Link):
                self._counts["memory: link closed"] += 1
                item.drop("too much waits for this neighbour")
            else:
                self._counts["memory: circuit ended"] += 1
                item.end(DestroyReason.RESOURCE_LIMIT)
        if self._seldom.is_due("shed", self._timers.now()):
            log.warn(
                "{total} MiB wait in queues, {limit} are allowed: the biggest were ended",
                total=total >> 20,
                limit=self._limit >> 20,
            )

    def _holdings(self) -> dict[Key, list[tuple[int, _Item]]]:
        """What could be ended, by whom it is there for and in the order in which it would be."""
        circuits = self._relayed() if self._relay is not None else {}
        found: dict[Key, list[_Ranked]] = defaultdict(list)
        for link in self._channels.links:
            if not link.channel.closed:
                found[link.peer] += _of_link(link, circuits.get(link, []))
        if self._circuits is not None:
            own = self._circuits.circuits.values()
            found[OURSELVES] = [(0, one.machine.edge.waiting, one) for one in own if one.machine is not None]
        return {
            holder: [(size, item) for _, size, item in sorted(items, key=lambda one: one[:2], reverse=True) if size]
            for holder, items in found.items()
        }

    def _relayed(self) -> dict[Link, list[_Ranked]]:
        """Circuits of others, by the link they came from."""
        assert self._relay is not None
        unsent: dict[Any, int] = {one.machine: one.unsent for one in self._relay.exit.connections}
        found: dict[Link, list[_Ranked]] = defaultdict(list)
        for circuit in self._relay.circuits:
            found[circuit.link].append((0, circuit.waiting(unsent), circuit))
        return found


def _of_link(link: Link, circuits: list[_Ranked]) -> list[_Ranked]:
    """The circuits that came over a link, and the link itself for what waits for none of them.

    A client whose circuits are all small loses its link instead of them. A relay, whose link others share, loses it
    when very much waits that cannot be dropped otherwise, or when all circuits that came from it are gone.
    """
    channel, driver = link.channel, link.driver
    own = channel.mux.control_waiting * CELL_MEMORY + channel.unfinished + driver.unsent + driver.unread
    if link.peer_id is not None:
        return [*circuits, (1 if own >= MUCH else -1, own, link)]
    if all(size < SMALL for _, size, _ in circuits):
        return [(0, own + sum(size for _, size, _ in circuits), link)]
    return [*circuits, (0, own, link)]
