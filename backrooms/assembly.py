"""The parts of a node made out of its options, each by one function. `service` puts them together."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from twisted.plugin import getPlugins

import backrooms.plugins
from backrooms.config import Config, ProxyOptions
from backrooms.config.options import LimitOptions
from backrooms.crypto.keys import parse_id
from backrooms.errors import ConfigError
from backrooms.interfaces import IKeyStore, ITransport, Rng
from backrooms.keystore.file import FileKeyStore
from backrooms.levels import LEVELS, parse_level
from backrooms.netdir.certificate import ShelfError
from backrooms.netdir.descriptor import Descriptor, make_descriptor
from backrooms.netdir.geo import Places
from backrooms.netdir.network import NetworkFile
from backrooms.netdir.ownaddress import OwnAddress
from backrooms.netdir.policy import ExitPolicy
from backrooms.node.circuits import Options
from backrooms.node.driver import Turn
from backrooms.node.exit import Exit
from backrooms.node.exitnotice import ExitNotice
from backrooms.node.geofile import find_table, open_table, read_rules_file
from backrooms.node.limits import Caps, caps, machine_memory
from backrooms.node.membership import check_version, read_admission
from backrooms.node.process import MAX_FILES
from backrooms.node.streams import Streams
from backrooms.node.timers import Timers
from backrooms.path.blocs import builtin_blocs, parse_blocs
from backrooms.path.constraints import Constraints
from backrooms.path.entities import Knowledge, KnownEntities, Rules, parse_rules
from backrooms.proxy.addressmap import AddressMap
from backrooms.proxy.dnsport import DnsPort
from backrooms.proxy.isolation import Isolation, RouteRule, RouteRules
from backrooms.proxy.listeners import Kind, ProxyListener
from backrooms.wire.link import VERSIONS
from backrooms.wire.names import ip_literal

CERTIFICATE_LEAST = 7 * 86400
"""Seconds before its end from which on an identity certificate is made anew."""


def network_file(config: Config) -> NetworkFile:
    """The network that the node belongs to."""
    path = config.node.network
    try:
        network = NetworkFile.parse(path.read_text("utf-8"))
        check_version(network)
        return network
    except OSError as error:
        raise ConfigError(f"node.network: {path} cannot be read: {error.strerror}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def transports(config: Config, network_id: bytes, keystore: FileKeyStore | None) -> dict[str, Any]:
    """Transports by name; their makers are plugins. The addresses in the configuration are checked by them."""
    key, certificate = keystore.tls_files() if keystore is not None else (None, None)
    found: dict[str, Any] = {}
    for make in getPlugins(ITransport, backrooms.plugins):
        transport = make.configured(network_id, key, certificate, config.link.require_pq)
        if transport.name in found:
            raise ConfigError(f"two plugins offer the transport {transport.name!r}")
        found[transport.name] = transport
    for index, address in enumerate(config.relay.addresses):
        _check_address(found, address, f"relay.addresses[{index}]", or_auto=True)
    for index, address in enumerate(config.relay.listen):
        _check_address(found, address, f"relay.listen[{index}]")
    return found


def _check_address(found: dict[str, Any], address: str, key: str, or_auto: bool = False) -> None:
    name, _, rest = address.partition(":")
    if name not in found:
        raise ConfigError(f"{key}: no transport {name!r}; there are {', '.join(sorted(found))}")
    try:
        if or_auto and rest.startswith("auto"):
            OwnAddress.parse(address)
        else:
            found[name].parse(rest)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None


def node_caps(config: Config) -> Caps:
    """How much of everything the node may have, by the options, the open files and the memory this process may have."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        files = MAX_FILES
    return caps(config.limits, files, machine_memory(), config.exit.enabled, config.client.enabled)


def link_limits(config: Config, caps: Caps) -> LimitOptions:
    """The options for new links, with no more of them unproven than there are open files for."""
    return dataclasses.replace(config.limits, pending_links=caps.pending_links)


def exit_policy(config: Config) -> ExitPolicy | None:
    """What an exit allows, its own addresses left out; None where the node is none."""
    options = config.exit
    if not options.enabled:
        return None
    if options.policy:
        policy = ExitPolicy.parse(options.policy, allow_private=options.allow_private)
    else:
        policy = ExitPolicy.reduced()
    return policy.refusing(own_hosts(config.relay.addresses))


def own_hosts(addresses: Sequence[str]) -> tuple[str, ...]:
    """The IP addresses in a relay's addresses, which may have `auto` instead."""
    hosts = (address.partition(":")[2].rpartition(":")[0].strip("[]") for address in addresses)
    return tuple(sorted({host for host in hosts if ip_literal(host) is not None}))


def make_exit(config: Config, reactor: Any, timers: Timers, turn: Turn, caps: Caps) -> Exit:
    """A relay's end of circuits; without a policy it refuses every stream."""
    options = config.exit
    return Exit(
        reactor,
        timers,
        turn,
        exit_policy(config),
        options.single_hop,
        own_addresses=own_hosts(config.relay.addresses),
        nameservers=options.nameservers,
        connect_rate=options.connect_rate,
        connect_burst=options.connect_burst,
        max_connections=caps.streams,
    )


def exit_notice(config: Config, reactor: Any, timers: Timers, turn: Turn) -> ExitNotice:
    """The page that says what this machine is."""
    return ExitNotice(reactor, timers, turn, config.exit.notice, config.relay.contact, notice_file(config))


def notice_file(config: Config) -> Path | str:
    """The page of the operator's own; an empty string when there is none."""
    name = config.exit.notice_file
    return config.file.parent / name if name and config.file is not None else name


def client_options(config: Config, my_id: bytes | None) -> Options:
    """How this node's own circuits are built; a relay is never on its own paths."""
    client, path = config.client, config.path
    exclude = frozenset([my_id] if my_id is not None else [])
    spares = {one: getattr(client.spares, one.name) for one in LEVELS.values()}
    return Options(
        level=parse_level(client.level),
        spares={one: count for one, count in spares.items() if count},
        max_dirtiness=client.max_dirtiness,
        build_timeout=client.build_timeout,
        retries=client.retries,
        dormant_after=0.0 if config.relay.enabled else client.dormant_after,
        constraints=Constraints(path.distinct_subnets, path.distinct_families, exclude),
        entities=known_entities(config),
    )


def known_entities(config: Config) -> KnownEntities:
    """What the configuration says to avoid, with the table that knows where relays are. Files are read again."""
    path = config.path
    table = open_table(find_table(config.geo_file(), config.node.state))
    blocs = dict(builtin_blocs())
    for index, line in enumerate(path.blocs):
        try:
            blocs = parse_blocs([line], blocs)
        except ConfigError as error:
            raise ConfigError(f"path.blocs[{index}]: {error}") from None
    folder = config.file.parent if config.file is not None else Path()
    known = Knowledge(table, blocs, lambda name: read_rules_file(folder / name))
    rules = Rules(
        any=parse_rules(path.avoid, "path.avoid", known),
        entry=parse_rules(path.avoid_entry, "path.avoid_entry", known),
        middle=parse_rules(path.avoid_middle, "path.avoid_middle", known),
        exit=parse_rules(path.avoid_exit, "path.avoid_exit", known),
    )
    by_level = {
        one.name: Rules(any=parse_rules(getattr(path.levels, one.name), f"path.levels.{one.name}", known))
        for one in dataclasses.fields(path.levels)
    }
    return KnownEntities(rules, by_level, known, Places(table))


def route_rules(config: Config, entities: KnownEntities) -> tuple[RouteRule, ...]:
    """What the configuration says about destinations; `ConfigError` for rules that cannot be read or answered."""
    rules = []
    for index, one in enumerate(config.routes):
        name = f"routes[{index}]"
        parse_rules(one.avoid, f"{name}.avoid", entities.knowledge)
        parse_rules(one.exit, f"{name}.exit", entities.knowledge)
        level = None if one.level == "default" else parse_level(one.level)
        rules.append(RouteRule(name, one.patterns(), level, one.avoid, one.exit, frozenset(one.isolate)))
    return tuple(rules)


def isolation(kind: str, options: ProxyOptions, routes: RouteRules) -> Isolation:
    """Which streams of a listener may share circuits, and which routes they take."""
    return Isolation(
        f"{kind} {options.listen}",
        parse_level(options.level),
        credentials="auth" in options.isolate,
        client_address="client" in options.isolate,
        client_protocol="protocol" in options.isolate,
        destination_host="host" in options.isolate,
        destination_port="port" in options.isolate,
        routes=routes,
    )


class Front(NamedTuple):
    """What local programs meet: proxies, DNS servers, and the names and addresses that these have in common."""

    proxies: list[ProxyListener]
    dns: list[DnsPort]
    addresses: AddressMap
    routes: RouteRules


def make_front(
    config: Config, streams: Streams, reactor: Any, timers: Timers, turn: Turn, rng: Rng, caps: Caps
) -> Front:
    """The local listeners of a client, not started."""
    mapped, private = config.map, config.client.allow_private
    routes = RouteRules()
    addresses = AddressMap(
        rng,
        mapped.addresses,
        automap=mapped.automap,
        suffixes=mapped.automap_suffixes,
        ipv4=mapped.ipv4,
        ipv6=mapped.ipv6,
    )
    most = max(1, caps.proxies // max(1, len(config.socks) + len(config.http)))

    def proxy(kind: Kind, options: ProxyOptions, **more: Any) -> ProxyListener:
        return ProxyListener(
            kind,
            options.listen,
            streams,
            timers,
            turn,
            reactor,
            isolation=isolation(kind, options, routes),
            addresses=addresses,
            password=options.password,
            allow_private=private,
            allow_remote=options.allow_remote,
            max_connections=most,
            **more,
        )

    proxies = [
        proxy("socks", one, literal_addresses=one.literal_addresses, extended_errors=one.extended_errors)
        for one in config.socks
    ]
    proxies += [proxy("http", one) for one in config.http]
    dns = [
        DnsPort(
            listen,
            streams,
            timers,
            reactor,
            isolation=Isolation(f"DNS port {listen}", parse_level(config.dns.level), routes=routes),
            addresses=addresses,
            allow_private=private,
            allow_remote=config.dns.allow_remote,
        )
        for listen in config.dns.listen
    ]
    return Front(proxies, dns, addresses, routes)


def describe(
    config: Config,
    network_id: bytes,
    keystore: IKeyStore,
    wall: float,
    last: Descriptor | None,
    addresses: Sequence[str],
    policy: ExitPolicy | None,
) -> Descriptor:
    """This relay's own descriptor, fresh; the certificate stays while what it says stays."""
    relay = config.relay
    family = tuple(sorted(parse_id(text) for text in relay.family))
    admission = read_admission(relay.admission)
    certificate = last.certificate if last is not None else None
    if certificate is not None:
        try:
            body = certificate.body
        except ShelfError:
            certificate = None
        else:
            said = (body.family, body.operator, body.contact, body.admission)
            now = (family, relay.operator, relay.contact, admission)
            if said != now or body.expires - wall < CERTIFICATE_LEAST:
                certificate = None
    return make_descriptor(
        keystore.sign,
        keystore.identity(),
        network_id,
        wall,
        nickname=config.node.nickname,
        onion_key=keystore.onion_keys()[0],
        addresses=addresses,
        exit_policy=policy,
        allow_single_hop=config.exit.single_hop,
        capacity=relay.capacity,
        link_versions=VERSIONS,
        family=family,
        operator=relay.operator,
        contact=relay.contact,
        admission=admission,
        certificate=certificate,
        after=last.record.revision if last is not None else 0,
    )
