"""The composition root: builds a node out of its configuration. The only file that sees everything."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from backrooms import assembly
from backrooms.config import Config
from backrooms.control.nodeview import View
from backrooms.control.server import ControlServer
from backrooms.errors import BackroomsError, ConfigError
from backrooms.gossip.view import Views
from backrooms.interfaces import Rng
from backrooms.keystore.file import FileKeyStore
from backrooms.keystore.state import StateFolder
from backrooms.netdir.directory import Directory
from backrooms.node import viewcheck
from backrooms.node.accounting import Accounting
from backrooms.node.admission import KnownHosts
from backrooms.node.channels import Channels
from backrooms.node.circuits import Circuits
from backrooms.node.directory import DirectoryKeeper
from backrooms.node.driver import Turn
from backrooms.node.evidence import Evidence
from backrooms.node.heartbeats import Heartbeats
from backrooms.node.hibernation import Hibernation
from backrooms.node.investigator import Investigator
from backrooms.node.limits import LinkLimit
from backrooms.node.logs import LogFilter
from backrooms.node.membership import Membership
from backrooms.node.memory import Memory
from backrooms.node.process import OwnProcess
from backrooms.node.reachability import Reachability
from backrooms.node.relay import Relay
from backrooms.node.revocations import take_revocations
from backrooms.node.timers import Timers
from backrooms.sides.client import ClientSide
from backrooms.sides.pathreport import PathReport
from backrooms.sides.relay import RelaySide

log = Logger()

KEYSTORES = {"file": FileKeyStore.open_or_create}
"""What makes the keystore `keys.store`, given the folder of the keys."""


class Node(Service):
    """One node: client, relay, exit, by its configuration.

    `process` is for a node that has one to itself: then it filters the log and answers signals.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        rng: Rng,
        keystore: FileKeyStore | None = None,
        *,
        process: OwnProcess | None = None,
    ) -> None:
        self.config = config
        self._reactor = reactor
        self._process = process
        state = config.node.state
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.network = assembly.network_file(config)
        self.timers = Timers(reactor)
        self.turn = Turn(reactor)
        if config.keys.store not in KEYSTORES:
            raise ConfigError(f"keys.store: no keystore {config.keys.store!r}; there are {', '.join(KEYSTORES)}")
        if config.relay.enabled and keystore is None:
            keystore = KEYSTORES[config.keys.store](state / "keys")
        self._keystore = keystore
        self.directory = Directory(
            self.network.id, self.timers.wall(), charter=self.network.charter, required=self.network.required
        )
        self.views = Views(self.directory.seen, self.timers.wall())
        self.evidence = Evidence(state, self.directory, self.timers)
        self.keeper: DirectoryKeeper
        self.caps = assembly.node_caps(config)
        self.channels = Channels(
            reactor,
            self.timers,
            self.turn,
            rng,
            self.network.id,
            assembly.transports(config, self.network.id, keystore),
            lambda relay_id: self.keeper.addresses(relay_id),
            keystore,
            assembly.link_limits(config, self.caps),
            KnownHosts(self.directory, self.timers.now),
        )
        self.membership = Membership(self.timers, self.network, self.directory, self.channels.my_id)
        self._relay_side: RelaySide | None = None
        if config.relay.enabled:
            assert keystore is not None
            self._relay_side = RelaySide(
                config,
                reactor,
                self.timers,
                self.turn,
                self.channels,
                self.directory,
                self.network,
                rng,
                self.caps,
                keystore,
                self.views,
                self.membership,
            )
        self.keeper = DirectoryKeeper(
            reactor,
            self.timers,
            self.channels,
            self.directory,
            self.network,
            rng,
            state,
            self._relay_side.describe if self._relay_side is not None else None,
        )
        self.relay: Relay | None = None
        self.reachability: Reachability | None = None
        self.heartbeats: Heartbeats | None = None
        if self._relay_side is not None:
            self._relay_side.keeper = self.keeper
            self.keeper.may_publish = self._relay_side.may_publish
            self.relay, self.reachability = self._relay_side.relay, self._relay_side.reachability
            self.heartbeats = self._relay_side.heartbeats
        self._client_side: ClientSide | None = None
        self.circuits: Circuits | None = None
        self.investigator: Investigator | None = None
        self.front: assembly.Front | None = None
        if config.client.enabled:
            self._client_side = ClientSide(
                config,
                reactor,
                self.timers,
                self.turn,
                self.channels,
                self.directory,
                self.keeper,
                rng,
                self.caps,
                self.views,
                self.evidence,
            )
            self.circuits, self.front = self._client_side.circuits, self._client_side.front
            self.investigator = self._client_side.investigator
        self.accounting = Accounting(
            self.timers,
            self.channels.traffic,
            state,
            rng,
            config.accounting.max,
            config.accounting.period,
            config.accounting.rule,
        )
        self._hibernation = Hibernation(
            self.timers, self.channels, self.keeper, self.relay, self.circuits, self.heartbeats
        )
        self.accounting.on_change = self._hibernation.enter
        self._bound_bandwidth()
        self.sheds: Counter[str] = Counter()
        """Links and circuits that had to go because there was too much of them."""
        self.link_limit = LinkLimit(self.channels, self.timers, self.caps.links, self.sheds)
        self.memory = Memory(
            self.timers, self.turn, self.caps.memory, self.sheds, self.channels, self.relay, self.circuits
        )
        clocks = self.channels.clocks
        clocks.contacts = frozenset(contact.id for contact in self.network.contacts)
        clocks.on_change = self._clock_changed
        self.view = View(self, rng.randbytes(16))
        self._log_filter: LogFilter | None = None
        if process is not None:
            self._log_filter = LogFilter(config.log.level, config.log.safe)
            self._log_filter.on_line = self.view.log_line
        self._control = ControlServer(
            self.view,
            config.control.listen,
            state / "control_auth_cookie",
            self.timers,
            self.turn,
            reactor,
            cookie=config.control.cookie,
            allow_remote=config.control.allow_remote,
        )
        self._ending = False

    # parts

    def _bound_bandwidth(self) -> None:
        """A client that is no relay has nobody's traffic but its own."""
        relay = self.config.relay
        self.channels.bandwidth.configure(*((relay.rate, relay.burst) if relay.enabled else (0, 0)))

    def _clock_changed(self) -> None:
        self.keeper.republish()
        if self.circuits is not None:
            self.circuits.directory_changed()
        if self._process is not None:
            self._process.tell(self._up())

    # life

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        if self._log_filter is not None:
            self._log_filter.install()
        if self._process is not None:
            self._process.start(self.timers, self._hang_up, self._hurry)
        Deferred.fromCoroutine(self._start()).addErrback(self._start_failed)

    async def _start(self) -> None:
        if self._relay_side is not None:
            await self._relay_side.listen()
        await self._control.start()
        self.view.start()
        self.keeper.start()
        take_revocations(self.config.node.state, self.directory, self.timers)
        self.membership.tell()
        if self._relay_side is not None:
            self._relay_side.start()
        if self._client_side is not None:
            await self._client_side.start()
        self.accounting.start()
        log.info("{text}", text=self._up())
        if self._process is not None:
            self._process.ready(self._up())

    def _up(self) -> str:
        config = self.config
        parts = (("client", config.client), ("relay", config.relay), ("exit", config.exit))
        text = "node is up: " + ", ".join(name for name, part in parts if part.enabled)
        return f"{text}; {self.channels.clocks.describe()}" if self.channels.clocks.wrong else text

    def _start_failed(self, failure: Any) -> None:
        if failure.check(BackroomsError, OSError) or failure.type.__module__ == "twisted.internet.error":
            log.critical("cannot start: {error}", error=failure.getErrorMessage())
        else:
            log.failure("cannot start", failure)
        if self._process is not None:
            self._process.failed(failure.getErrorMessage())
        self._reactor.callLater(0, self._reactor.stop)  # it may not be running yet

    def stopService(self) -> Deferred[None]:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._process is not None:
            self._process.stopping()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """Take nothing new, give circuits of others a moment, then close everything."""
        self.accounting.stop()
        self._hibernation.stop()
        if self._client_side is not None:
            await self._client_side.stop_listening()
        await self._control.stop()
        self.view.stop()
        self.keeper.stop()
        if self._relay_side is not None:
            await self._relay_side.stop_looking()
        if self._client_side is not None:
            self._client_side.stop()
        if self._relay_side is not None:
            await self._relay_side.stop(lambda: self._ending)
        await self.channels.stop()
        await self.timers.sleep(0.05)
        self.channels.abort()
        self.timers.close()

    # what the control port asks

    def listening(self, kind: str) -> Sequence[str]:
        """Where this node listens, as host:port or unix:path."""
        if kind == "or":
            return self.channels.listening()
        ports = self._client_side.ports if self._client_side is not None else {}
        hosts = [port.getHost() for port in ports.get(kind, [])]
        return [f"{h.host}:{h.port}" if hasattr(h, "host") else f"unix:{h.name.decode()}" for h in hosts]

    def network_view(self) -> dict[str, object]:
        """Our view of the network, and what comparing it with others came to."""
        checker = self._client_side.viewcheck if self._client_side is not None else None
        return viewcheck.report(self.views, self.evidence, checker, self.timers.wall())

    @property
    def path_report(self) -> PathReport | None:
        """What is told about paths; None where the node is no client."""
        return self._client_side.path_report if self._client_side is not None else None

    def turned_away(self) -> int:
        """Connections of applications that were one too many."""
        return sum(proxy.refused for proxy in self.front.proxies) if self.front is not None else 0

    def reload(self) -> None:
        """Read the configuration again.

        `log`, `path`, `routes`, `client` but its `enabled`, `exit`, `accounting` and `relay.rate` take effect at once.

        `ConfigError` when it is wrong; nothing has changed then. The rest takes effect at the next start.
        """
        if self.config.file is None:
            raise ConfigError("this node has no configuration file to read again")
        old, self.config = self.config, Config.load(self.config.file)
        try:
            options = assembly.client_options(self.config, self.channels.my_id)
            rules = assembly.route_rules(self.config, options.entities)
            policy = self._relay_side.check(self.config) if self._relay_side is not None else None
        except BackroomsError:
            self.config = old
            raise
        if self._log_filter is not None:
            self._log_filter.configure(self.config.log.level, self.config.log.safe)
        self._bound_bandwidth()
        self.accounting.configure(
            self.config.accounting.max, self.config.accounting.period, self.config.accounting.rule
        )
        if self._client_side is not None:
            self._client_side.configure(options, rules)
            self._client_side.investigator.configure(self.config.investigate.rate, self.config.investigate.avoid)
        if self._relay_side is not None:
            self._relay_side.configure(self.config, policy)
        take_revocations(self.config.node.state, self.directory, self.timers)
        self.membership.tell()
        log.info("the configuration was read again")

    def _hang_up(self) -> None:
        """SIGHUP came."""
        assert self._process is not None
        self._process.reloading()
        try:
            self.view.reload()
        except BackroomsError as error:
            log.error("the configuration stays as it was: {error}", error=str(error))
        self._process.ready(self._up())

    def _hurry(self) -> None:
        """A second signal to stop came: nobody is waited for any longer."""
        log.info("stopping at once")
        self._ending = True

    def shutdown(self, now: bool) -> None:
        """Stop the process; `now` without waiting for circuits of others."""
        self._ending = now
        self._reactor.callLater(0, self._reactor.stop)


def make_service(config: Config) -> IService:
    """A node as a Twisted service, on the global reactor, with the process and its state folder to itself."""
    from twisted.internet import reactor

    state = StateFolder.open(config.node.state, with_keys=config.relay.enabled)
    process = OwnProcess(reactor, state)
    service: IService = Node(config, reactor, random.SystemRandom(), process=process)
    return service
