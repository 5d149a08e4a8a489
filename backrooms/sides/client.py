"""The client half of a node: its circuits, and the listeners that local programs meet."""

from __future__ import annotations

from typing import Any

from backrooms import assembly
from backrooms.config import Config
from backrooms.interfaces import Rng
from backrooms.netdir.directory import Directory
from backrooms.node.channels import Channels
from backrooms.node.circuits import Circuits, Options
from backrooms.node.directory import DirectoryKeeper
from backrooms.node.driver import Turn
from backrooms.node.limits import Caps
from backrooms.node.timers import Timers


class ClientSide:
    """Puts the client's parts together, starts and stops them."""

    def __init__(
        self,
        config: Config,
        reactor: Any,
        timers: Timers,
        turn: Turn,
        channels: Channels,
        directory: Directory,
        keeper: DirectoryKeeper,
        rng: Rng,
        caps: Caps,
    ) -> None:
        options = assembly.client_options(config, channels.my_id)
        self.circuits = Circuits(
            timers, channels, directory, directory.network_id, rng, options, lambda: keeper.settled
        )
        keeper.on_change = self.circuits.directory_changed
        self.circuits.on_dormant = lambda asleep: (keeper.rest if asleep else keeper.resume)()
        self.front = assembly.make_front(config, self.circuits.streams, reactor, timers, turn, rng, caps)
        self.ports: dict[str, list[Any]] = {"socks": [], "http": []}

    async def start(self) -> None:
        """Build circuits and listen."""
        self.circuits.start()
        for proxy in self.front.proxies:
            self.ports[proxy.kind].append(await proxy.start())
        for dns in self.front.dns:
            await dns.start()

    async def stop_listening(self) -> None:
        """Take no new streams."""
        for proxy in self.front.proxies:
            await proxy.stop()
        for dns in self.front.dns:
            await dns.stop()

    def stop(self) -> None:
        """End every circuit."""
        self.circuits.stop()

    def configure(self, options: Options) -> None:
        """Take the options of a new configuration."""
        self.circuits.options = options
        self.circuits.wake()
