"""Path choice is kept up to date in steps between other work."""

from __future__ import annotations

from backrooms.levels import MEDIUM
from backrooms.node.timers import Timers
from backrooms.node.upkeep import PAUSE, REST, Upkeep
from backrooms.path.constraints import Constraints
from backrooms.path.route import Route
from backrooms.path.selectors import SHORT, STEP_ROWS, Selectors
from tests.keys import fake_relay
from tests.path import networks
from tests.simnet.network import SimNet


class Counted(Selectors):
    """Selectors that note when they were made to work."""

    net: SimNet
    times: list[float]

    def work(self) -> bool:
        self.times.append(self.net.now)
        return super().work()


def test_a_long_list_is_ready_after_a_while_and_told_once() -> None:
    net = SimNet()
    timers = Timers(net.host("one").reactor)
    listed = networks.List([fake_relay(n) for n in range(SHORT + STEP_ROWS)])
    chooser = Counted(listed, Constraints())  # type: ignore[arg-type]
    chooser.net, chooser.times = net, []
    told: list[float] = []
    began = net.now
    upkeep = Upkeep(timers, chooser, lambda: told.append(net.now))
    chooser.keep(Route(MEDIUM))
    assert not chooser.ready
    net.run(0.5)
    assert chooser.ready
    assert len(told) == 1
    assert told[0] - began >= PAUSE * 0.9
    assert len(chooser.times) == len(set(chooser.times)), "each step has a moment of its own"
    count = len(chooser.times)
    net.run(60)
    assert len(chooser.times) == count, "nothing changes, nothing is done"

    # A list that changes all the time does not keep it busy.
    for number in range(40):
        listed.put(fake_relay(number, capacity=5))
        net.run(0.05)
    assert len(chooser.times) - count <= 2 * (2 / REST + 2)
    net.run(3)
    assert not chooser._dirty
    assert len(told) == 1
    upkeep.stop()
    listed.put(fake_relay(1, capacity=9))
    assert net.host("two").reactor.getDelayedCalls() == []
    timers.close()
