"""What every test gets: a check that it leaves nothing behind, and a way to ask for the system's programs."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from hypothesis import settings
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

# A busy machine must not fail a test by being slow; more examples by --hypothesis-profile=thorough.
settings.register_profile("backrooms", deadline=None, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=2_000)
settings.load_profile("backrooms")

# Debian puts daemons into sbin, which is not on every PATH.
TOOL_PATH = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"


@implementer(ILogObserver)
class Watch:
    """The failures that were logged during one test, and the delayed calls it found when it began."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self._before = set(reactor.getDelayedCalls())

    def __call__(self, event: LogEvent) -> None:
        """Collects `log.failure(...)`, "Unhandled error in Deferred", and what the reactor caught in a protocol.

        The latter is an event of the old kind: `log.err` has no `log_failure` but `isError` and `failure`.
        """
        failure = event.get("log_failure") or (event.get("failure") if event.get("isError") else None)
        if failure is not None:
            self.failures.append(failure)

    def flush(self, *kinds: type[BaseException]) -> list[Failure]:
        """Take out the logged failures of these kinds: the test expected them."""
        gc.collect(1)  # a failed Deferred that was dropped is logged when it is collected
        found = [failure for failure in self.failures if isinstance(failure.value, kinds)]
        self.failures = [failure for failure in self.failures if failure not in found]
        return found

    def delayed_calls(self) -> list[Any]:
        """Delayed calls that are new and still there after the turns that finish what is finishing."""
        for _ in range(5):
            calls = [call for call in reactor.getDelayedCalls() if call not in self._before]
            if not calls:
                return []
            pytest_twisted.blockon(deferLater(reactor, 0))
        return [str(call) for call in calls if call.active()]


@pytest.fixture(autouse=True)
def clean() -> Iterator[Watch]:
    """Fails a test that leaves a logged failure, a dropped failed Deferred or a delayed call behind.

    A test that means to log a failure asks for this fixture and calls `clean.flush(ItsError)`.
    """
    watch = Watch()
    globalLogPublisher.addObserver(watch)
    try:
        yield watch
        calls = watch.delayed_calls()
        gc.collect(1)
    finally:
        globalLogPublisher.removeObserver(watch)
    text = "\n".join(failure.getTraceback() for failure in watch.failures)
    assert not watch.failures, f"the test left logged failures behind:\n{text}"
    assert not calls, f"the test left delayed calls behind: {calls}"


@pytest.fixture(scope="session")
def require() -> Callable[[str], str]:
    """`require("tor")` is the program's path; without it the test is skipped, and fails where CI is set."""

    def require_tool(tool: str) -> str:
        path = shutil.which(tool, path=TOOL_PATH)
        if path is None:
            reason = f"{tool} is not installed; 'make test-deps' installs it"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        return path

    return require_tool
