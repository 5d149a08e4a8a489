"""A network that answers probes and nothing else, fast enough for many investigations: delays, noise, relays that harm.

`ModelCircuits` stands for `node.circuits.Circuits` as far as probes use it; the investigation itself is the real one.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

from twisted.internet.defer import Deferred

from backrooms.circuit.stream import Stream
from backrooms.levels import MEDIUM, Level
from backrooms.netdir.descriptor import Descriptor
from backrooms.node.circuits import Circuits
from backrooms.node.clientcircuit import BuildError
from backrooms.node.inquiry import Ground, Inquiry, Order
from backrooms.node.probes import Lag
from backrooms.node.timers import Timers
from backrooms.path.constraints import Constraints
from backrooms.path.selector import PathSelector
from backrooms.path.verdicts import Judgement
from backrooms.wire.cell import DestroyReason
from tests import keys
from tests.simnet.network import SimNet

DELAY = 0.2
LIFE = 4.0


class ModelCircuit:
    """A circuit that is built."""

    def __init__(self, model: ModelCircuits, path: list[Descriptor]) -> None:
        self.path = path
        self.status = "BUILT"
        self.reason = 0
        self.machine = self
        self.stream: Stream | None = None
        self._model = model

    def begin_directory(self, stream: Stream) -> None:
        """A round trip."""
        self.stream = stream
        model = self._model
        model.later(model.round_trip(self.path), self._answer)

    def _answer(self) -> None:
        if self.status == "BUILT" and self.stream is not None:
            self.stream.connect(None)

    def end(self, reason: int) -> None:
        if self.status == "BUILT":
            self.status, self.reason = "CLOSED", reason
            if self.stream is not None:
                self.stream.lost(5)


class ModelCircuits:
    """Builds circuits in a network where `bad` (by nickname) does harm of a kind to a fifth of what it gets."""

    def __init__(self, seed: int, bad: dict[str, str], jitter: float, noise: float, slow: dict[str, float]) -> None:
        net = SimNet(seed)
        self.net = net
        self.rng = random.Random(seed)
        self.timers = Timers(net.host("client").reactor)
        self.options = SimpleNamespace(level=MEDIUM)
        self.bad = bad
        self.jitter = jitter
        self.noise = noise
        self.slow = slow

    def later(self, seconds: float, call: Any) -> None:
        self.timers.at(self.timers.now() + seconds, call)

    def harms(self, relay: Descriptor, kind: str) -> bool:
        return self.bad.get(relay.nickname) == kind and self.rng.random() < 0.2

    def round_trip(self, path: list[Descriptor]) -> float:
        seconds = 0.0
        for relay in (*path, *path):
            seconds += 0.01 + self.rng.uniform(0, self.jitter) + self.slow.get(relay.nickname, 0.0)
            seconds += DELAY * self.harms(relay, "delays")
        return seconds + 0.3 * (self.rng.random() < self.noise)

    def build(self, level: Level, path: list[Descriptor]) -> Deferred[ModelCircuit]:
        found: Deferred[ModelCircuit] = Deferred()
        seconds = 0.0
        for hops in range(len(path)):
            seconds += self.round_trip(path[: hops + 1])
            refused = hops > 0 and self.harms(path[hops - 1], "refuses")
            if refused or self.rng.random() < self.noise / 3:
                self.later(seconds, lambda hops=hops: found.errback(BuildError(hops, int(DestroyReason.DESTROYED))))
                return found
        circuit = ModelCircuit(self, path)
        self.later(seconds, lambda: found.callback(circuit))
        if self.rng.random() < self.noise or any(self.harms(relay, "destroys") for relay in path):
            end = seconds + self.rng.uniform(0.2, LIFE)
            self.later(end, lambda: circuit.end(DestroyReason.DESTROYED))
        return found


class ProbeNet:
    """One investigation of everybody in a model network."""

    def __init__(
        self,
        seed: int,
        relays: int = 6,
        bad: dict[str, str] | None = None,
        *,
        jitter: float = 0.002,
        noise: float = 0.005,
        slow: dict[str, float] | None = None,
    ) -> None:
        self.circuits = ModelCircuits(seed, bad or {}, jitter, noise, slow or {})
        self.named: dict[str, float] = {}
        """Who was found bad at some look, and after how many seconds."""
        known = [keys.fake_relay(number, nickname=f"relay{number}") for number in range(relays)]
        self.names = {relay.id: relay.nickname for relay in known}
        selector = PathSelector.over(known, Constraints())
        ground = Ground(selector.rows, set(self.names), selector)
        circuits = cast(Circuits, self.circuits)
        order = Order("all", (), 156.0)
        self.inquiry = Inquiry(order, ground, circuits, self.circuits.rng, Lag(self.circuits.timers), self._looked)

    def _looked(self, judged: dict[bytes, Judgement], last: bool) -> None:
        for relay, one in judged.items():
            if one.verdict.is_bad:
                self.named.setdefault(self.names[relay], self.inquiry.elapsed)

    def run(self, *, until_named: bool = False) -> ProbeNet:
        """To its end, or until somebody is named."""
        done = self.inquiry.start()
        net = self.circuits.net
        net.run_until(lambda: done.called or (until_named and bool(self.named)), 240)
        self.inquiry.stop()
        net.run(10)
        return self
