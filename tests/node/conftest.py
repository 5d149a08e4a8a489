"""Simulated networks for tests of the managers, and what was logged meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from tests.simnet.node import SimNetwork

MakeNetwork = Callable[..., SimNetwork]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeNetwork]:
    """`make(relays=6, exits=2, ...)` is a network that is not started yet; it is stopped in the end."""
    made: list[SimNetwork] = []

    def make_network(**options: Any) -> SimNetwork:
        made.append(SimNetwork(tmp_path, **options))
        return made[-1]

    yield make_network
    for network in made:
        network.stop()
        for node in network.nodes:
            assert node.host.reactor.getDelayedCalls() == [], f"{node} left delayed calls behind"


@pytest.fixture
def network(make: MakeNetwork) -> SimNetwork:
    """Six relays, two of them exits, and a client, all ready."""
    network = make()
    network.start()
    network.ready()
    return network


@pytest.fixture
def quiet(network: SimNetwork) -> SimNetwork:
    """The same without circuits, but for those that a test makes itself."""
    circuits = network.client.node.circuits
    assert circuits is not None
    circuits.stop()
    network.hush()
    network.net.run(2)
    return network


@pytest.fixture
def relays(make: MakeNetwork) -> SimNetwork:
    """Six relays that know each other. The client is not started, so there are no circuits."""
    network = make()
    for node in network.relays:
        node.start()
    network.net.run_until(lambda: all(len(node.node.directory) == 6 for node in network.relays), 60)
    network.hush()
    return network


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What our modules have logged."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if str(event.get("log_namespace", "")).startswith("backrooms."):
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)
