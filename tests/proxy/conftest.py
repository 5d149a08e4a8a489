"""Proxies on loopback, and curl."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.utils import getProcessOutputAndValue

from tests.proxy.loopback import Proxies


@pytest.fixture
def proxies() -> Iterator[Proxies]:
    started = Proxies()
    yield started
    pytest_twisted.blockon(Deferred.fromCoroutine(started.stop()))


Curl = Callable[..., Deferred[tuple[bytes, bytes, int]]]


@pytest.fixture
def curl(require: Callable[[str], str]) -> Curl:
    program = require("curl")

    def run(*arguments: str) -> Deferred[tuple[bytes, bytes, int]]:
        # No proxy of the tester's own environment, and no configuration file.
        command = ["-q", "-sS", "-m", "20", *arguments]
        done: Deferred[tuple[bytes, bytes, int]]
        done = getProcessOutputAndValue(program, command, env={}, reactor=reactor)  # type: ignore[no-untyped-call]
        return done

    return run
