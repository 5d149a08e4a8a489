"""The client half of a node: its circuits, and the listeners that local programs meet."""

from __future__ import annotations

from typing import Any

from backrooms import assembly
from backrooms.config import Config
from backrooms.gossip.view import Views
from backrooms.interfaces import Rng
from backrooms.netdir.directory import Directory
from backrooms.node.channels import Channels
from backrooms.node.circuits import Circuits, Options
from backrooms.node.dirclient import DirectoryClient
from backrooms.node.directory import DirectoryKeeper
from backrooms.node.dirstreams import DirStreams
from backrooms.node.driver import Turn
from backrooms.node.evidence import Evidence
from backrooms.node.guards import Guards
from backrooms.node.hearsay import Hearsay
from backrooms.node.investigator import Investigator
from backrooms.node.limits import Caps
from backrooms.node.paths import Paths
from backrooms.node.timers import Timers
from backrooms.node.upkeep import Upkeep
from backrooms.node.viewcheck import ViewChecker
from backrooms.path.route import Route
from backrooms.path.selectors import Selectors
from backrooms.proxy.isolation import RouteRule
from backrooms.sides.pathreport import PathReport


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
        views: Views,
        evidence: Evidence,
    ) -> None:
        options = assembly.client_options(config, channels.my_id)
        selectors = Selectors(directory, options.constraints, options.entities, seen=directory.seen, wall=timers.wall)
        self.guards = Guards(timers, directory, config.node.state, rng, lambda: keeper.settled)
        paths = Paths(timers, channels, selectors, self.guards, rng)
        self.circuits = Circuits(
            timers, channels, directory, paths, directory.network_id, rng, options, lambda: keeper.settled
        )
        keeper.on_change = self.circuits.directory_changed
        directory.on_change.append(self.circuits.relay_changed)
        self.upkeep = Upkeep(timers, selectors, self.circuits.directory_changed)
        selectors.keep(Route(options.level))
        self.dirstreams = DirStreams(self.circuits, directory, rng)
        self.dirclient = DirectoryClient(timers, directory, self.dirstreams, keeper.verifier, rng)
        self.dirclient.on_change = lambda: keeper.on_change()
        keeper.over_circuits = self.dirclient.update
        self.viewcheck = ViewChecker(
            timers, directory, self.circuits, self.dirstreams, self.dirclient, views, evidence, rng
        )
        self.circuits.refuses = self.viewcheck.refuses
        self.circuits.shun.append(evidence.ids)
        evidence.on_proof = lambda relay_id: self.guards.distrust(relay_id, "it signed two records of one revision")
        self.hearsay = Hearsay(directory, self.circuits, self.dirstreams, rng, lambda: keeper.settled)
        self.circuits.shun.append(self.hearsay.doubted)
        self.investigator = Investigator(
            self.circuits, paths, directory, config.node.state, rng, config.investigate.rate, config.investigate.avoid
        )
        self._keeper = keeper
        self.circuits.on_dormant = self._dormant
        rules = assembly.route_rules(config, options.entities)
        self.front = assembly.make_front(config, self.circuits.streams, reactor, timers, turn, rng, caps)
        self.front.routes.rules = rules
        self.path_report = PathReport(self.circuits, directory, self.front.routes)
        self.ports: dict[str, list[Any]] = {"socks": [], "http": []}

    def _dormant(self, asleep: bool) -> None:
        """A sleeping client asks nobody for anything."""
        for part in (self._keeper, self.dirstreams, self.dirclient, self.viewcheck, self.hearsay, self.investigator):
            if asleep:
                part.rest()
            else:
                part.resume()

    async def start(self) -> None:
        """Build circuits and listen."""
        self.circuits.start()
        self.dirclient.start()
        self.viewcheck.start()
        self.hearsay.start()
        self.investigator.start()
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
        self.investigator.stop()
        self.dirclient.stop()
        self.viewcheck.stop()
        self.hearsay.stop()
        self.dirstreams.rest()
        self.circuits.stop()
        self.upkeep.stop()

    def configure(self, options: Options, rules: tuple[RouteRule, ...]) -> None:
        """Take the options of a new configuration."""
        of_routes = any(rule.avoid or rule.exit for rule in (*self.front.routes.rules, *rules))
        others = self.circuits.options.constraints != options.constraints
        if others or of_routes or self.circuits.options.entities.avoids or options.entities.avoids:
            for circuit in self.circuits.circuits.values():
                circuit.retired = True  # it may pass relays that are avoided from now on; its streams may end
        self.front.routes.rules = rules
        self.circuits.options = options
        self.circuits.paths.selectors.configure(options.constraints, options.entities)
        self.circuits.wake()
