"""A listener of a process that has no file descriptors left, and how many connections it takes in one turn."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from backrooms.transport.accepting import ACCEPT_FAILED, MAX_ACCEPTS, REST
from tests.keys import NETWORK_ID
from tests.transport.loopback import SECONDS, client_hello, files

FILES = 64
"""Descriptors of the process."""

_SERVER = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))
from twisted.internet import reactor, stdio, tcp
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.basic import LineReceiver
from twisted.python import log
from backrooms.transport.tls import TlsTransport

lines, refused, batches = [], [], []
log.addObserver(lambda event: lines.append(1))

class Commands(LineReceiver):
    delimiter = b"\\n"
    def lineReceived(self, line):
        if line == b"steal":  # what a thread does that opens a file while Twisted gives up its reserve
            tcp._reservedFD._fileDescriptor.close()
            tcp._reservedFD._fileDescriptor = None
        self.sendLine(json.dumps({{"cpu": time.process_time(), "lines": len(lines), "refused": refused,
                                  "most": max(batches, default=0), "accepted": sum(batches)}}).encode())

transport = TlsTransport(bytes.fromhex("{network}"), "{key}", "{certificate}")
transport.on_refused = lambda reason: refused.append(reason) if len(refused) < 1000 else None
def up(port):
    read = port.doRead
    def counted():
        before = port.factory.accepted
        read()
        batches.append(port.factory.accepted - before)
    port.doRead = counted
    print(port.getHost().port, flush=True)
transport.server_endpoint(reactor, "127.0.0.1:0").listen(Factory.forProtocol(Protocol)).addCallback(up)
stdio.StandardIO(Commands())
reactor.run()
"""


class Server:
    """The process."""

    def __init__(self, descriptors: int = FILES) -> None:
        key, certificate = files()
        text = _SERVER.format(files=descriptors, network=NETWORK_ID.hex(), key=key, certificate=certificate)
        self.process = subprocess.Popen(
            [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port = int(self.process.stdout.readline())  # type: ignore[union-attr]

    def ask(self, command: str = "tell") -> dict[str, Any]:
        self.process.stdin.write(command + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        found: dict[str, Any] = json.loads(self.process.stdout.readline())  # type: ignore[union-attr]
        return found

    def connect(self, count: int) -> list[socket.socket]:
        connections = []
        for _ in range(count):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", self.port))
            connections.append(one)
        return connections

    def greet(self) -> bytes:
        """The first bytes that a TLS client hears, as soon as there is room for it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS) as connection:
            connection.sendall(client_hello())
            return connection.recv(3)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


@pytest.mark.live
@pytest.mark.parametrize("stolen", [False, True], ids=["with a reserve", "without"])
def test_a_process_without_descriptors_neither_spins_nor_stops_listening(server: Server, stolen: bool) -> None:
    assert server.greet() == b"\x16\x03\x03"
    if stolen:
        server.ask("steal")
    connections = server.connect(4 * FILES)
    time.sleep(1.0)
    before = server.ask()
    time.sleep(2.0)
    after = server.ask()
    assert FILES // 2 < after["accepted"] < FILES
    assert after["cpu"] - before["cpu"] < 0.5, "without rest it would be 2"
    if stolen:
        failed = after["refused"].count(ACCEPT_FAILED) - before["refused"].count(ACCEPT_FAILED)
        assert 1 <= failed <= 2.0 / REST + 5
        assert after["lines"] - before["lines"] <= 2.0 / REST + 5
    for one in connections:
        one.close()
    assert server.greet() == b"\x16\x03\x03"


@pytest.mark.live
def test_a_flood_leaves_time_for_others() -> None:
    server = Server(1_000)
    try:
        os.kill(server.process.pid, signal.SIGSTOP)
        connections = server.connect(300)
        os.kill(server.process.pid, signal.SIGCONT)
        assert server.greet() == b"\x16\x03\x03"
        assert server.ask()["most"] == MAX_ACCEPTS
        for one in connections:
            one.close()
    finally:
        server.stop()
