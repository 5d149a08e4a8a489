"""The relay half of a node: circuits of others, exits, and what the relay publishes of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from backrooms import assembly
from backrooms.config import Config
from backrooms.errors import KeyStoreError
from backrooms.gossip.view import Views
from backrooms.interfaces import Rng
from backrooms.keystore.file import FileKeyStore
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory
from backrooms.netdir.network import NetworkFile
from backrooms.netdir.ownaddress import listen_addresses
from backrooms.netdir.policy import ExitPolicy
from backrooms.node.channels import Channels
from backrooms.node.directory import DirectoryKeeper
from backrooms.node.dirserving import DirServing
from backrooms.node.dirstreams import DirServer
from backrooms.node.drain import drain
from backrooms.node.driver import Turn
from backrooms.node.exitnotice import ExitNotice
from backrooms.node.heartbeats import Heartbeats
from backrooms.node.limits import Caps
from backrooms.node.membership import Membership, read_admission
from backrooms.node.reachability import Reachability
from backrooms.node.relay import Relay
from backrooms.node.timers import Timers

log = Logger()

ONION_KEY_CHECK = 3600.0


class RelaySide:
    """Puts the relay's parts together, starts and stops them. `keeper` is set by the node before `start`."""

    keeper: DirectoryKeeper

    def __init__(
        self,
        config: Config,
        reactor: Any,
        timers: Timers,
        turn: Turn,
        channels: Channels,
        directory: Directory,
        network: NetworkFile,
        rng: Rng,
        caps: Caps,
        keystore: FileKeyStore,
        views: Views,
        membership: Membership,
    ) -> None:
        self.config = config
        self._membership = membership
        membership.admission = read_admission(config.relay.admission)
        self._timers = timers
        self._channels = channels
        self._keystore = keystore
        self._network_id = network.id
        self.reachability = Reachability(
            timers,
            channels,
            directory,
            network,
            rng,
            config.relay.addresses,
            config.relay.assume_reachable,
        )
        self.reachability.on_change = self._addresses_changed
        exit_ = assembly.make_exit(config, reactor, timers, turn, caps)
        self.relay = Relay(
            reactor, timers, channels, exit_, keystore, network.id, rng, lambda one: self.keeper.learn(one), caps
        )
        self.dirserver = DirServer(self.relay, timers)
        self.dirserving = DirServing(directory, views, timers, rng, self.dirserver)
        self.heartbeats = Heartbeats(timers, channels, directory, keystore, rng)
        self.heartbeats.serve(self.dirserver)
        self._notice: ExitNotice | None = None
        if config.exit.enabled:
            self._notice = assembly.exit_notice(config, reactor, timers, turn)
        self._key_check: Any = None

    def may_publish(self) -> bool:
        """With no address that others reach, or a clock that most relays find wrong, a relay is of no use to them.

        Nor is one that the network does not let in.
        """
        if self._membership.kept_out() is not None:
            return False
        return not self._channels.clocks.wrong and bool(self.reachability.addresses())

    def describe(self, last: Descriptor | None) -> Descriptor:
        """Our own descriptor, fresh."""
        return assembly.describe(
            self.config,
            self._network_id,
            self._keystore,
            self._timers.wall(),
            last,
            self.reachability.addresses(),
            self.relay.exit.policy,
        )

    def _addresses_changed(self) -> None:
        found = self.reachability.addresses()
        self.relay.exit.own_addresses = assembly.own_hosts([*found, *self.config.relay.addresses])
        self.keeper.republish()

    async def listen(self) -> None:
        """Take links, and show the exit notice."""
        await self._channels.listen(self.config.relay.listen or listen_addresses(self.config.relay.addresses))
        if self._notice is not None:
            await self._notice.start()

    def start(self) -> None:
        """Look after addresses and keys."""
        self.reachability.start()
        self.heartbeats.start()
        self._check_keys()

    def _check_keys(self) -> None:
        self._membership.tell()
        before = self._keystore.onion_keys()
        try:
            self._keystore.rotate_onion_key(self._timers.wall())
        except KeyStoreError as error:  # a full disk, most likely
            log.error("the onion key stays as it is: {error}", error=str(error))
        if self._keystore.onion_keys() != before:
            self.keeper.republish()
        self._key_check = self._timers.at(self._timers.now() + ONION_KEY_CHECK, self._check_keys)

    async def stop_looking(self) -> None:
        """End what looks after the relay; circuits of others go on."""
        if self._key_check is not None:
            self._key_check.cancel()
        if self._notice is not None:
            await self._notice.stop()
        self.reachability.stop()
        self.heartbeats.stop()

    async def stop(self, at_once: Callable[[], bool]) -> None:
        """Give circuits of others a moment, unless `at_once` says not to, then end them."""
        self.dirserver.stop()
        await drain(self.relay, self._channels, self._timers, at_once)
        self.relay.stop()
        self.relay.exit.stop()

    def check(self, config: Config) -> ExitPolicy | None:
        """The exit policy of a new configuration; `BackroomsError` when something in it is wrong."""
        policy = assembly.exit_policy(config)
        read_admission(config.relay.admission)
        if self._notice is not None:
            self._notice.configure(config.relay.contact, assembly.notice_file(config))
        return policy

    def configure(self, config: Config, policy: ExitPolicy | None) -> None:
        """Take a new configuration that `check` found good."""
        self.config = config
        self._membership.admission = read_admission(config.relay.admission)
        exit_ = self.relay.exit
        exit_.connect_rate, exit_.connect_burst = config.exit.connect_rate, config.exit.connect_burst
        exit_.policy = policy
        exit_.single_hop = config.exit.single_hop
        self.keeper.republish()
