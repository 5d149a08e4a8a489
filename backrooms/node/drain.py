"""What a relay that is told to stop waits for."""

from __future__ import annotations

from collections.abc import Callable

from backrooms.node.channels import Channels
from backrooms.node.relay import Relay
from backrooms.node.timers import Timers

DRAIN_TIME = 5.0
"""Seconds a relay gives the circuits of others when it is told to stop."""
DRAIN_QUIET = 1.5
"""Seconds without traffic after which nobody is thought to be in the middle of something."""
DRAIN_STEP = 0.1


async def drain(relay: Relay, channels: Channels, timers: Timers, hurried: Callable[[], bool]) -> None:
    """Take nothing new; let streams end and cells pass, as long as any do and there is time."""
    relay.closing = True
    now = timers.now()
    end, quiet_at, before = now + DRAIN_TIME, now + DRAIN_QUIET, channels.traffic()
    while relay.circuits and timers.now() < end and not hurried():
        traffic = channels.traffic()
        if traffic != before or any(circuit.busy for circuit in relay.circuits):
            quiet_at, before = timers.now() + DRAIN_QUIET, traffic
        elif timers.now() >= quiet_at:
            return
        await timers.sleep(DRAIN_STEP)
