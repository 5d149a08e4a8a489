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
from backrooms.netdir.descriptor import Descriptor, make_descriptor
from backrooms.netdir.network import NetworkFile
from backrooms.netdir.ownaddress import OwnAddress
from backrooms.netdir.policy import ExitPolicy
from backrooms.node.circuits import Options
from backrooms.node.driver import Turn
from backrooms.node.exit import Exit
from backrooms.node.exitnotice import ExitNotice
from backrooms.node.limits import Caps, caps, machine_memory
from backrooms.node.process import MAX_FILES
from backrooms.node.streams import Streams
from backrooms.node.timers import Timers
from backrooms.path.constraints import Constraints
from backrooms.proxy.addressmap import AddressMap
from backrooms.proxy.dnsport import DnsPort
from backrooms.proxy.isolation import Isolation
from backrooms.proxy.listeners import Kind, ProxyListener
from backrooms.wire.link import VERSIONS
from backrooms.wire.names import ip_literal

CERTIFICATE_LEAST = 7 * 86400
"""Seconds before its end from which on an identity certificate is made anew."""


def network_file(config: Config) -> NetworkFile:
    """The network that the node belongs to."""
    path = config.node.network
    try:
        return NetworkFile.parse(path.read_text("utf-8"))
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
    exclude = {_excluded(text) for text in path.exclude}
    if my_id is not None:
        exclude.add(my_id)
    spares = {one: getattr(client.spares, one.name) for one in LEVELS.values()}
    return Options(
        level=parse_level(client.level),
        spares={one: count for one, count in spares.items() if count},
        max_dirtiness=client.max_dirtiness,
        build_timeout=client.build_timeout,
        retries=client.retries,
        dormant_after=0.0 if config.relay.enabled else client.dormant_after,
        constraints=Constraints(path.distinct_subnets, path.distinct_families, frozenset(exclude)),
    )


def _excluded(text: str) -> bytes:
    try:
        return parse_id(text)
    except ValueError as error:
        raise ConfigError(f"path.exclude: {text!r}: {error}") from None


def isolation(kind: str, options: ProxyOptions) -> Isolation:
    """Which streams of a listener may share circuits."""
    return Isolation(
        f"{kind} {options.listen}",
        parse_level(options.level),
        credentials="auth" in options.isolate,
        client_address="client" in options.isolate,
        client_protocol="protocol" in options.isolate,
        destination_host="host" in options.isolate,
        destination_port="port" in options.isolate,
    )


class Front(NamedTuple):
    """What local programs meet: proxies, DNS servers, and the names and addresses that these have in common."""

    proxies: list[ProxyListener]
    dns: list[DnsPort]
    addresses: AddressMap


def make_front(
    config: Config, streams: Streams, reactor: Any, timers: Timers, turn: Turn, rng: Rng, caps: Caps
) -> Front:
    """The local listeners of a client, not started."""
    mapped, private = config.map, config.client.allow_private
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
            isolation=isolation(kind, options),
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
            level=parse_level(config.dns.level),
            addresses=addresses,
            allow_private=private,
            allow_remote=config.dns.allow_remote,
        )
        for listen in config.dns.listen
    ]
    return Front(proxies, dns, addresses)


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
    certificate = last.certificate if last is not None else None
    if certificate is not None:
        body = certificate.body
        said = (body.family, body.operator, body.contact)
        if said != (family, relay.operator, relay.contact) or body.expires - wall < CERTIFICATE_LEAST:
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
        certificate=certificate,
        after=last.record.revision if last is not None else 0,
    )
