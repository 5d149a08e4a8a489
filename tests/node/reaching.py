"""Simulated relays that test their addresses before they publish them."""

from __future__ import annotations

from collections.abc import Sequence

from backrooms.node.reachability import AddressState, Reachability
from tests.simnet.node import RELAY_PORT, SimNetwork, SimNode


def public(number: int) -> tuple[str, ...]:
    """Addresses on the Internet for the relays' hosts, IPv4 and IPv6: each has subnets of its own."""
    return (f"45.{number + 1}.0.1", f"2a00:{number + 1:x}::1")


class Reaching:
    """The relays of a network, which publish what was tested, and what each of them knows of its addresses."""

    def __init__(self, network: SimNetwork) -> None:
        self.network = network
        self.net = network.net
        self.tests: dict[SimNode, Reachability] = {}

    def start(self, number: int, *addresses: str, assume: bool = False, listen: Sequence[str] = ()) -> Reachability:
        """Start a relay, with other addresses than its host's IPv4 one if they are given.

        It listens at that one and at `listen`.
        """
        sim = self.network.relays[number]
        default = f"tls:{sim.host.address}:{RELAY_PORT}"
        sim.configure(
            "relay",
            addresses=list(addresses) or [default],
            listen=[default, *listen],
            assume_reachable=assume,
        )
        sim.start()
        reach = sim.node.reachability
        assert reach is not None
        self.tests[sim] = reach
        return reach

    def start_all(self, *but: int) -> None:
        """Start all relays with their hosts' IPv4 addresses."""
        for number in range(len(self.network.relays)):
            if number not in but:
                self.start(number)

    def published(self, number: int, at: int = 0) -> tuple[str, ...]:
        """The addresses of a relay that another one's list has."""
        relay = self.network.relays[at].node.directory.get(self.network.relays[number].id)
        return tuple(map(str, relay.addresses)) if relay is not None else ()

    def state(self, number: int, index: int = 0) -> AddressState:
        """What a relay knows of one of its addresses."""
        return self.tests[self.network.relays[number]].reachability()[index]

    def until_published(self, number: int, *addresses: str, limit: float = 60) -> None:
        """Let time pass until the list of the first contact has these addresses of a relay."""
        self.net.run_until(lambda: self.published(number) == addresses, limit)
