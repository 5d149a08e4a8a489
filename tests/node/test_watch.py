"""The look-out of tests/conftest.py sees failures of every kind that Twisted logs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python import log as legacy

from tests.conftest import Watch
from tests.simnet.pairs import Pair, Recorder


def new_kind() -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        Logger("backrooms.example").failure("a bug")


def old_kind() -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        legacy.err()  # type: ignore[no-untyped-call]


def dropped() -> None:
    lost: Deferred[None] = fail(ZeroDivisionError())
    del lost


def in_a_protocol() -> None:
    class Broken(Recorder):
        def dataReceived(self, data: bytes) -> None:
            raise ZeroDivisionError

    assert issubclass(Broken, Protocol)
    pair = Pair(Broken)
    pair.client.tcp.write(b"x")
    pair.net.run(1)


@pytest.mark.parametrize("log", [new_kind, old_kind, dropped, in_a_protocol])
def test_every_kind_is_seen(clean: Watch, log: Callable[[], None]) -> None:
    log()
    assert len(clean.flush(ZeroDivisionError)) == 1
    assert clean.failures == []
