"""The composition root: builds a node out of its configuration. The only file that sees everything."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.plugin import getPlugins

import backrooms.plugins
from backrooms.config import Config, ProxyOptions
from backrooms.control.nodeview import View
from backrooms.control.server import ControlServer
from backrooms.crypto.keys import parse_id
from backrooms.errors import BackroomsError, ConfigError
from backrooms.interfaces import ITransport, Rng
from backrooms.keystore.file import FileKeyStore
from backrooms.levels import LEVELS, parse_level
from backrooms.netdir.descriptor import Descriptor, make_descriptor
from backrooms.netdir.directory import Directory
from backrooms.netdir.network import NetworkFile
from backrooms.netdir.policy import ExitPolicy
from backrooms.node.channels import Channels
from backrooms.node.circuits import Circuits, Options
from backrooms.node.directory import DirectoryKeeper
from backrooms.node.driver import Turn
from backrooms.node.exit import Exit
from backrooms.node.logs import LogFilter
from backrooms.node.relay import Relay
from backrooms.node.timers import Timers
from backrooms.path.constraints import Constraints
from backrooms.proxy.isolation import Isolation
from backrooms.proxy.listeners import ProxyListener
from backrooms.wire.link import VERSIONS

log = Logger()

KEYSTORES = {"file": FileKeyStore.open_or_create}
"""What makes the keystore `keys.store`, given the folder of the keys."""
DRAIN_TIME = 5.0
"""Seconds a relay gives the circuits of others when it is told to stop."""
DRAIN_QUIET = 1.5
"""Seconds without traffic after which nobody is thought to be in the middle of something."""
DRAIN_STEP = 0.1
ONION_KEY_CHECK = 3600.0


class Node(Service):
    """One node: client, relay, exit, by its configuration.

    `owns_process` is for a node that has the process to itself: then it filters the log and answers SIGHUP.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        rng: Rng,
        keystore: FileKeyStore | None = None,
        *,
        owns_process: bool = False,
    ) -> None:
        self.config = config
        self._reactor = reactor
        state = config.node.state
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.network = _network(config)
        self.timers = Timers(reactor)
        self.turn = Turn(reactor)
        if config.keys.store not in KEYSTORES:
            raise ConfigError(f"keys.store: no keystore {config.keys.store!r}; there are {', '.join(KEYSTORES)}")
        if config.relay.enabled and keystore is None:
            keystore = KEYSTORES[config.keys.store](state / "keys")
        self._keystore = keystore
        self.directory = Directory(self.network.id, self.timers.wall())
        self.keeper: DirectoryKeeper
        self.channels = Channels(
            reactor,
            self.timers,
            self.turn,
            rng,
            self.network.id,
            self._transports(),
            lambda relay_id: self.keeper.addresses(relay_id),
            keystore,
        )
        self.keeper = DirectoryKeeper(
            reactor,
            self.timers,
            self.channels,
            self.directory,
            self.network,
            rng,
            state,
            self._describe if config.relay.enabled else None,
        )
        self.relay: Relay | None = None
        if config.relay.enabled:
            assert keystore is not None
            exit_ = Exit(reactor, self.timers, self.turn, self._policy(), config.exit.single_hop)
            learn = self.keeper.learn
            self.relay = Relay(reactor, self.timers, self.channels, exit_, keystore, self.network.id, rng, learn)
        self.circuits: Circuits | None = None
        self._proxies: list[ProxyListener] = []
        if config.client.enabled:
            self.circuits = Circuits(
                self.timers,
                self.channels,
                self.directory,
                self.network.id,
                rng,
                self._client_options(),
                lambda: self.keeper.settled,
            )
            self.keeper.on_change = self.circuits.directory_changed
            for kind, options in (("socks", config.socks), ("http", config.http)):
                self._proxies += [self._proxy(kind, one) for one in options]
        self.view = View(self, rng.randbytes(16))
        self._log_filter: LogFilter | None = None
        if owns_process:
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
        self._ports: dict[str, list[Any]] = {"socks": [], "http": []}
        self._key_check: Any = None
        self._ending = False

    # parts

    def _transports(self) -> dict[str, Any]:
        """Transports by name; their makers are plugins."""
        key, certificate = self._keystore.tls_files() if self._keystore is not None else (None, None)
        found: dict[str, Any] = {}
        for make in getPlugins(ITransport, backrooms.plugins):
            transport = make.configured(self.network.id, key, certificate, self.config.link.require_pq)
            if transport.name in found:
                raise ConfigError(f"two plugins offer the transport {transport.name!r}")
            found[transport.name] = transport
        for option, addresses in (
            ("addresses", self.config.relay.addresses),
            ("listen", self.config.relay.listen),
        ):
            for index, address in enumerate(addresses):
                _check_address(found, address, f"relay.{option}[{index}]")
        return found

    def _policy(self) -> ExitPolicy | None:
        options = self.config.exit
        if not options.enabled:
            return None
        if not options.policy:
            return ExitPolicy.reduced()
        return ExitPolicy.parse(options.policy, allow_private=options.allow_private)

    def _client_options(self) -> Options:
        client, path = self.config.client, self.config.path
        exclude = {_excluded(text) for text in path.exclude}
        if self.channels.my_id is not None:
            exclude.add(self.channels.my_id)
        level = parse_level(client.level)
        spares = {one: getattr(client.spares, one.name) for one in LEVELS.values()}
        return Options(
            level=level,
            spares={one: count for one, count in spares.items() if count},
            max_dirtiness=client.max_dirtiness,
            build_timeout=client.build_timeout,
            retries=client.retries,
            constraints=Constraints(path.distinct_subnets, path.distinct_families, frozenset(exclude)),
        )

    def _proxy(self, kind: Any, options: ProxyOptions) -> ProxyListener:
        assert self.circuits is not None
        isolation = Isolation(
            f"{kind} {options.listen}",
            parse_level(options.level),
            credentials="auth" in options.isolate,
            client_address="client" in options.isolate,
            client_protocol="protocol" in options.isolate,
            destination_host="host" in options.isolate,
            destination_port="port" in options.isolate,
        )
        return ProxyListener(
            kind,
            options.listen,
            self.circuits.streams,
            self.timers,
            self.turn,
            self._reactor,
            isolation=isolation,
            allow_remote=options.allow_remote,
        )

    def _describe(self, last: Descriptor | None) -> Descriptor:
        """Our own descriptor, fresh; the certificate stays while what it says stays."""
        assert self._keystore is not None
        relay, exit_ = self.config.relay, self.config.exit
        family = tuple(sorted(parse_id(text) for text in relay.family))
        certificate = last.certificate if last is not None else None
        wall = self.timers.wall()
        if certificate is not None:
            body = certificate.body
            said = (body.family, body.operator, body.contact)
            if said != (family, relay.operator, relay.contact) or body.expires - wall < 7 * 86400:
                certificate = None
        return make_descriptor(
            self._keystore.sign,
            self._keystore.identity(),
            self.network.id,
            wall,
            nickname=self.config.node.nickname,
            onion_key=self._keystore.onion_keys()[0],
            addresses=relay.addresses,
            exit_policy=self._policy(),
            allow_single_hop=exit_.single_hop,
            capacity=relay.capacity,
            link_versions=VERSIONS,
            family=family,
            operator=relay.operator,
            contact=relay.contact,
            certificate=certificate,
            after=last.record.revision if last is not None else 0,
        )

    # life

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        if self._log_filter is not None:
            self._log_filter.install()
            # The default would end the process; twistd leaves it at that.
            signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._hang_up))
        Deferred.fromCoroutine(self._start()).addErrback(self._start_failed)

    async def _start(self) -> None:
        if self.relay is not None:
            await self.channels.listen(self.config.relay.listen or self.config.relay.addresses)
        await self._control.start()
        self.view.start()
        self.keeper.start()
        if self.circuits is not None:
            self.circuits.start()
        for proxy in self._proxies:
            self._ports[proxy.kind].append(await proxy.start())
        if self.relay is not None:
            self._check_keys()
        log.info("node is up: {what}", what=self._roles())

    def _roles(self) -> str:
        config = self.config
        parts = (("client", config.client), ("relay", config.relay), ("exit", config.exit))
        return ", ".join(name for name, part in parts if part.enabled)

    def _start_failed(self, failure: Any) -> None:
        if failure.check(BackroomsError, OSError) or failure.type.__module__ == "twisted.internet.error":
            log.critical("cannot start: {error}", error=failure.getErrorMessage())
        else:
            log.failure("cannot start", failure)
        self._reactor.stop()

    def _check_keys(self) -> None:
        assert self._keystore is not None
        if self._keystore.rotate_onion_key(self.timers.wall()):
            self.keeper.republish()
        self._key_check = self.timers.at(self.timers.now() + ONION_KEY_CHECK, self._check_keys)

    def stopService(self) -> Deferred[None]:
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """Take nothing new, give circuits of others a moment, then close everything."""
        if self._key_check is not None:
            self._key_check.cancel()
        for proxy in self._proxies:
            await proxy.stop()
        await self._control.stop()
        self.view.stop()
        self.keeper.stop()
        if self.circuits is not None:
            self.circuits.stop()
        if self.relay is not None:
            await self._drain(self.relay)
            self.relay.stop()
            self.relay.exit.stop()
        await self.channels.stop()
        await self.timers.sleep(0.05)
        self.channels.abort()
        self.timers.close()

    async def _drain(self, relay: Relay) -> None:
        """Let streams end and cells pass, as long as any do and there is time."""
        relay.closing = True
        now = self.timers.now()
        end, quiet_at, before = now + DRAIN_TIME, now + DRAIN_QUIET, self.channels.traffic()
        while relay.circuits and self.timers.now() < end and not self._ending:
            traffic = self.channels.traffic()
            if traffic != before or any(circuit.busy for circuit in relay.circuits):
                quiet_at, before = self.timers.now() + DRAIN_QUIET, traffic
            elif self.timers.now() >= quiet_at:
                return
            await self.timers.sleep(DRAIN_STEP)

    # what the control port asks

    def listening(self, kind: str) -> Sequence[str]:
        """Where this node listens, as host:port or unix:path."""
        if kind == "or":
            return self.channels.listening()
        hosts = [port.getHost() for port in self._ports.get(kind, [])]
        return [f"{h.host}:{h.port}" if hasattr(h, "host") else f"unix:{h.name.decode()}" for h in hosts]

    def reload(self) -> None:
        """Read the configuration again: `log`, `path`, `client` but its `enabled`, and `exit` take effect at once.

        `ConfigError` when it is wrong; nothing has changed then. The rest takes effect at the next start.
        """
        if self.config.file is None:
            raise ConfigError("this node has no configuration file to read again")
        old, self.config = self.config, Config.load(self.config.file)
        try:
            policy, options = self._policy(), self._client_options()
        except BackroomsError:
            self.config = old
            raise
        if self._log_filter is not None:
            self._log_filter.configure(self.config.log.level, self.config.log.safe)
        if self.circuits is not None:
            self.circuits.options = options
            self.circuits.wake()
        if self.relay is not None:
            self.relay.exit.policy = policy
            self.relay.exit.single_hop = self.config.exit.single_hop
            self.keeper.republish()
        log.info("the configuration was read again")

    def _hang_up(self) -> None:
        """SIGHUP came."""
        try:
            self.view.reload()
        except BackroomsError as error:
            log.error("the configuration stays as it was: {error}", error=str(error))

    def shutdown(self, now: bool) -> None:
        """Stop the process; `now` without waiting for circuits of others."""
        self._ending = now
        self._reactor.callLater(0, self._reactor.stop)


def _network(config: Config) -> NetworkFile:
    path = config.node.network
    try:
        return NetworkFile.parse(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"node.network: {path} cannot be read: {error.strerror}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _excluded(text: str) -> bytes:
    try:
        return parse_id(text)
    except ValueError as error:
        raise ConfigError(f"path.exclude: {text!r}: {error}") from None


def _check_address(transports: dict[str, Any], address: str, key: str) -> None:
    name, _, rest = address.partition(":")
    if name not in transports:
        raise ConfigError(f"{key}: no transport {name!r}; there are {', '.join(sorted(transports))}")
    try:
        transports[name].parse(rest)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None


def make_service(config: Config) -> IService:
    """A node as a Twisted service, on the global reactor."""
    from twisted.internet import reactor

    service: IService = Node(config, reactor, random.SystemRandom(), owns_process=True)
    return service
