"""Figures of single operations, in this process: a cell that passes a relay, and a circuit handshake."""

from __future__ import annotations

import os
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from random import SystemRandom
from statistics import median

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from backrooms.channel.mux import Mux
from backrooms.circuit.hop import RelayCircuit
from backrooms.crypto.ntor import KEY_MATERIAL, NtorClient, relay_respond
from backrooms.wire.cell import CELL_SIZE, CELLS_PER_RECORD, CellCommand

REPEATS = 9


@dataclass(frozen=True, slots=True)
class Micro:
    """CPU µs of a cell that passes a relay away from the client, and towards it; handshakes a relay answers per
    CPU second; CPU ms of a client's handshake with one hop."""

    cell_us: float
    cell_back_us: float
    handshakes_per_s: float
    client_handshake_ms: float


def seconds_each(operation: Callable[[], object], number: int) -> float:
    """CPU seconds of one `operation`: the median over REPEATS series of `number`."""
    operation()
    return median(timeit.repeat(operation, timer=time.process_time, number=number, repeat=REPEATS)) / number


def forwarding() -> tuple[Callable[[], object], Callable[[], object]]:
    """Two functions that let a relay pass a full TLS record of cells: away from the client, and towards it.

    Each cell is taken from the record, its layer added or taken off, and queued for the next link, which is
    emptied as a link does it.
    """
    towards_client, onwards = Mux(), Mux()
    events: list[object] = []
    circuit = RelayCircuit(
        os.urandom(KEY_MATERIAL), towards_client.open(7), time.monotonic, SystemRandom(), events.append
    )
    circuit.extend(onwards.open(9), bytes(32))
    towards_client.pop(64)
    record = os.urandom(CELL_SIZE * CELLS_PER_RECORD)
    offsets = range(0, len(record), CELL_SIZE)
    command = int(CellCommand.RELAY)

    def pass_on(handler: Callable[[int, bytes, int], None], mux: Mux) -> None:
        for offset in offsets:
            handler(command, record, offset)
        if len(mux.pop(64)) != CELLS_PER_RECORD or events:
            raise RuntimeError(f"the cells did not pass: {events}")

    return lambda: pass_on(circuit.forward, onwards), lambda: pass_on(circuit.backward, towards_client)


def handshaking() -> tuple[Callable[[], object], Callable[[], object]]:
    """Two functions: a relay answers a circuit handshake; a client makes one and reads a reply."""
    rng = SystemRandom()
    relay_id, network_id = os.urandom(32), os.urandom(32)
    private = X25519PrivateKey.generate()
    onion_key = private.public_key().public_bytes_raw()

    def agree(key: bytes, peer: bytes) -> bytes:
        return private.exchange(X25519PublicKey.from_public_bytes(peer))

    def start() -> tuple[NtorClient, bytes]:
        return NtorClient.start(relay_id, onion_key, network_id, bytes(8), rng)

    def respond(handshake: bytes) -> tuple[bytes, bytes]:
        return relay_respond(handshake, relay_id, agree, [onion_key], network_id, lambda message: message, rng)

    _, handshake = start()
    clients = []
    for _ in range(REPEATS * 100 + 1):
        client, message = start()
        clients.append((client, *respond(message)))

    def client_half() -> None:
        start()
        client, reply, keys = clients.pop()
        if client.finish(reply)[0] != keys:
            raise RuntimeError("the two ends of a handshake have different keys")

    return lambda: respond(handshake), client_half


def measure_micro() -> Micro:
    """All of them; about three seconds."""
    forward, backward = forwarding()
    relay, client = handshaking()
    per_record = 1e6 / CELLS_PER_RECORD
    return Micro(
        cell_us=per_record * seconds_each(forward, 2000),
        cell_back_us=per_record * seconds_each(backward, 2000),
        handshakes_per_s=1 / seconds_each(relay, 100),
        client_handshake_ms=1e3 * seconds_each(client, 100),
    )
