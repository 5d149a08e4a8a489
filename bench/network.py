"""What the benchmark needs to know of a running network, whoever made it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from random import SystemRandom
from typing import Protocol

from bench.control import Circuit, Control, ControlError, circuits_of_streams


class NetworkError(Exception):
    """A network did not start, or fell over; the message says where and shows the end of its log."""


@dataclass(frozen=True, slots=True)
class Relay:
    """A relay process; `identity` is what circuit paths call it."""

    nickname: str
    identity: str
    pid: int


@dataclass(frozen=True, slots=True)
class Network:
    """A running network: where its client listens and which processes it is made of."""

    name: str
    socks: str
    control: str
    client_pid: int
    relays: tuple[Relay, ...]

    @property
    def pids(self) -> list[int]:
        """All processes, the client first."""
        return [self.client_pid, *(relay.pid for relay in self.relays)]

    def hops(self, circuits: Iterable[Circuit]) -> list[list[Relay]]:
        """The relays of each circuit, in order; a NetworkError when one is not of this network."""
        known = {relay.identity.lower(): relay for relay in self.relays}
        try:
            return [[known[identity.lower()] for identity in circuit.path] for circuit in circuits]
        except KeyError as error:
            raise NetworkError(f"{self.name}: a circuit uses the unknown relay {error.args[0]}") from None


class Testbed(Protocol):
    """Starts and stops one network. `launch` returns at once, `wait` when the network carries traffic."""

    name: str

    def launch(self) -> None:
        """Start all processes."""

    def wait(self, timeout: float) -> Network:
        """The running network, or NetworkError."""

    def stop(self) -> None:
        """End all processes; harmless when there are none."""


def used_circuits(control: Control, port: int) -> list[Circuit]:
    """Circuits that carry open streams to `port` now."""
    streams = control.streams()
    return circuits_of_streams(control.circuits(), streams, port)


def open_control(address: str, timeout: float) -> Control:
    """A control connection; keeps trying while the node still starts."""
    end = time.monotonic() + timeout
    while True:
        try:
            return Control(address)
        except (OSError, ControlError) as error:
            if time.monotonic() > end:
                raise NetworkError(f"control port {address}: {error}") from error
            time.sleep(0.2)


def free_ports(count: int, low: int = 12000, high: int = 32000) -> list[int]:
    """Loopback ports nobody listens on, below the range the kernel gives to outgoing connections."""
    rng = SystemRandom()
    held: list[socket.socket] = []
    try:
        for _ in range(100 * count):
            if len(held) == count:
                break
            sock = socket.socket()
            try:
                sock.bind(("127.0.0.1", rng.randrange(low, high)))
            except OSError:
                sock.close()
                continue
            held.append(sock)
        if len(held) < count:
            raise NetworkError(f"no {count} free ports between {low} and {high}")
        return [sock.getsockname()[1] for sock in held]
    finally:
        for sock in held:
            sock.close()
