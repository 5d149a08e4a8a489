"""The attacker: one process that floods one relay in one way, from several addresses of 127/8.

`python -m bench.flood.attacks KIND ...` is started by `bench.flood`, and prints one line of JSON at its end: how many
attempts it made, and what became of them.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import resource
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from OpenSSL import SSL

GARBAGE = random.Random(1).randbytes(4096)


def sources(subnets: int, hosts: int) -> Iterator[str]:
    """Addresses of 127/8 to connect from, over and over: `hosts` in each of `subnets` /24s."""
    while True:
        for host in range(hosts):
            for subnet in range(subnets):
                yield f"127.{100 + subnet // 250}.{subnet % 250}.{host + 1}"


def client_hello() -> bytes:
    """The first flight of a TLS client as our links make it. Sent again and again it costs the attacker nothing."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        pass
    return connection.bio_read(65536)


class Flood:
    """Opens connections at a rate, sends on each what `script` yields, and keeps at most `hold` of them open.

    `script()` gives pieces to send, each with the seconds to wait before it; at its end the connection is kept until
    `keep` seconds after its start, or until the relay closes it.
    """

    def __init__(
        self,
        targets: list[tuple[str, int]],
        addresses: Iterator[str],
        script: Callable[[], Iterator[tuple[float, bytes]]],
        *,
        rate: float,
        hold: int,
        keep: float,
    ) -> None:
        self.attempts = self.answered = self.closed = self.most = 0
        self._targets = targets
        self._addresses = addresses
        self._script = script
        self._rate = rate
        self._hold = hold
        self._keep = keep
        self._selector = selectors.DefaultSelector()
        self._open: dict[socket.socket, list[Any]] = {}

    def run(self, seconds: float) -> dict[str, int]:
        """Attack for so long; what was done."""
        began = now = time.monotonic()
        looked = now
        while now < began + seconds:
            due = int((now - began) * self._rate) - self.attempts
            for _ in range(min(due, 200)):
                if len(self._open) < self._hold:
                    self._connect(now)
                self.attempts += 1
            for key, _ in self._selector.select(0.005):
                self._readable(key.fileobj)
            if now - looked > 0.05:
                looked = now
                self._act(now)
            self.most = max(self.most, len(self._open))
            now = time.monotonic()
        return {"attempts": self.attempts, "answered": self.answered, "closed": self.closed, "most": self.most}

    def _connect(self, now: float) -> None:
        one = socket.socket()
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # no TIME_WAIT of our own
        try:
            one.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: the kernel finds a port at connect
            one.bind((next(self._addresses), 0))
            error = one.connect_ex(self._targets[self.attempts % len(self._targets)])
        except OSError:
            one.close()
            return
        if error not in (0, errno.EINPROGRESS):
            one.close()
            return
        script = self._script()
        delay, piece = next(script, (self._keep, b""))
        self._open[one] = [now + delay, piece, script, now + self._keep]
        self._selector.register(one, selectors.EVENT_READ)

    def _act(self, now: float) -> None:
        """Send what is due, close what is over."""
        for one, state in list(self._open.items()):
            if now >= state[3]:
                self._close(one)
            elif now >= state[0] and state[1]:
                try:
                    one.send(state[1])
                except BlockingIOError:
                    continue
                except OSError:
                    self._lost(one)
                    continue
                delay, state[1] = next(state[2], (self._keep, b""))
                state[0] = now + delay

    def _readable(self, one: Any) -> None:
        try:
            data = one.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.answered += 1
        else:
            self._lost(one)

    def _lost(self, one: socket.socket) -> None:
        self.closed += 1
        self._close(one)

    def _close(self, one: socket.socket) -> None:
        if self._open.pop(one, None) is not None:
            self._selector.unregister(one)
            one.close()


def raw(options: argparse.Namespace) -> dict[str, int]:
    """The floods that need no protocol of ours."""
    addresses = sources(options.subnets, options.hosts)
    targets = [(options.host, int(port)) for port in options.ports.split(",")]
    hello = client_hello()

    def silent() -> Iterator[tuple[float, bytes]]:
        return iter(())

    def slowly() -> Iterator[tuple[float, bytes]]:
        for byte in hello:
            yield 1.0, bytes([byte])

    def garbage() -> Iterator[tuple[float, bytes]]:
        yield 0.0, GARBAGE

    def shake() -> Iterator[tuple[float, bytes]]:
        yield 0.0, hello

    script, hold, keep = {
        "half-open": (silent, options.hold, options.seconds),
        "slow-loris": (slowly, options.hold, options.seconds),
        "garbage": (garbage, 2000, 2.0),
        "handshakes": (shake, 2000, 2.0),
    }[options.kind]
    return Flood(targets, addresses, script, rate=options.rate, hold=hold, keep=keep).run(options.seconds)


RAW = ("half-open", "slow-loris", "garbage", "handshakes")
CRAFTED = ("links", "creates", "extends", "begins")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=RAW + CRAFTED)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--ports", required=True, help="comma-separated; the relay's first")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=1000.0, help="attempts per second")
    parser.add_argument("--hold", type=int, default=10_000, help="connections held open at most")
    parser.add_argument("--subnets", type=int, default=5)
    parser.add_argument("--hosts", type=int, default=50)
    parser.add_argument("--network", help="the network file")
    parser.add_argument("--relays", help="the relays' descriptions, JSON")
    parser.add_argument("--core", type=int)
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.kind in RAW:
        done = raw(options)
    else:
        from bench.flood.crafted import attack

        done = attack(options)
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
