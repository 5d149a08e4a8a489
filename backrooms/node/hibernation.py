"""What a node does when it has carried enough for this period (`node.accounting`): it hibernates, as tor does."""

from __future__ import annotations

from typing import Any

from backrooms.node.accounting import Hibernating
from backrooms.node.channels import Channels
from backrooms.node.circuits import Circuits
from backrooms.node.directory import DirectoryKeeper
from backrooms.node.heartbeats import Heartbeats
from backrooms.node.relay import Relay
from backrooms.node.timers import Timers

GRACE = 5.0
"""Seconds that circuits of others have when the last byte is used: they were told nothing new for a while already."""


class Hibernation:
    """Puts the parts of a node to sleep and wakes them up; give `enter` to `Accounting.on_change`.

    *Soft*: no new links and circuits are taken, and we publish ourselves no more. *Hard*: our own streams and circuits
    end, the list is not fetched, and after `GRACE` the circuits of others and all links end, too.
    """

    def __init__(
        self,
        timers: Timers,
        channels: Channels,
        keeper: DirectoryKeeper,
        relay: Relay | None,
        circuits: Circuits | None,
        heartbeats: Heartbeats | None = None,
    ) -> None:
        """Make it when `keeper.may_publish` has been set: it adds its own condition."""
        self.state: Hibernating = "awake"
        self._timers = timers
        self._channels = channels
        self._keeper = keeper
        self._relay = relay
        self._circuits = circuits
        self._heartbeats = heartbeats
        self._grace: Any = None
        may_publish = keeper.may_publish
        keeper.may_publish = lambda: self.state == "awake" and may_publish()

    def enter(self, state: Hibernating) -> None:
        """Change from one state into another."""
        before, self.state = self.state, state
        if self._grace is not None:
            self._grace.cancel()
        self._channels.admission.closed = state != "awake"
        if self._relay is not None:
            self._relay.closing = state != "awake"
        if state == "hard":
            if self._circuits is not None:
                self._circuits.stop()
            self._keeper.rest()
            if self._heartbeats is not None:
                self._heartbeats.rest()
            self._grace = self._timers.at(self._timers.now() + GRACE, self._end)
        elif before == "hard":
            self._keeper.resume()
            if self._heartbeats is not None:
                self._heartbeats.resume()
            if self._circuits is not None:
                self._circuits.start()
        if state == "awake":
            self._keeper.republish()

    def _end(self) -> None:
        if self._relay is not None:
            self._relay.stop()
            self._relay.exit.stop()
        for link in list(self._channels.links):
            link.driver.close()

    def stop(self) -> None:
        """The node is stopping."""
        if self._grace is not None:
            self._grace.cancel()
