"""What the control port sees of a node (`control.view.NodeView`), taken from the managers as they are."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from twisted.logger import LogLevel

import backrooms
from backrooms.config import Config
from backrooms.control.view import (
    AddressInfo,
    Bandwidth,
    CircuitChanged,
    CircuitInfo,
    CircuitStatus,
    InvestigationProgress,
    LinkInfo,
    ListenerKind,
    LogLine,
    NodeEvent,
    RelayInfo,
    Severity,
    SignalReceived,
    StreamChanged,
    StreamInfo,
    StreamStatus,
    clean_nickname,
)
from backrooms.crypto.keys import fingerprint, text_id
from backrooms.errors import ConfigError
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory
from backrooms.node.accounting import Accounting, AccountingState
from backrooms.node.channels import Channels
from backrooms.node.circuits import Circuits, ClientCircuit
from backrooms.node.guards import GuardStatus
from backrooms.node.investigator import Investigator
from backrooms.node.membership import Membership
from backrooms.node.memory import Memory
from backrooms.node.reachability import Reachability
from backrooms.node.relay import Relay
from backrooms.node.streams import OpenStream
from backrooms.node.timers import Timers
from backrooms.wire.cell import DestroyReason
from backrooms.wire.relay import EndReason

_SEVERITY: dict[Any, Severity] = {
    LogLevel.info: "NOTICE",
    LogLevel.warn: "WARN",
    LogLevel.error: "ERR",
    LogLevel.critical: "ERR",
}
_REFUSED_BY_US = re.compile(r"\btoo many\b|\bdescriptors\b|\bpolicy\b|\bno exit\b")
"""What an exit counts that is no fault of destinations."""


class PathReport(Protocol):
    """What tells of paths (`sides.pathreport`)."""

    def explain(self, options: Mapping[str, str]) -> dict[str, object]: ...

    def inspect(self, number: int) -> dict[str, object]: ...

    def levels(self) -> list[dict[str, object]]: ...

    def status(self) -> dict[str, object]: ...


class Node(Protocol):
    """What a view needs of a node."""

    config: Config
    timers: Timers
    directory: Directory
    channels: Channels
    membership: Membership
    relay: Relay | None
    reachability: Reachability | None
    circuits: Circuits | None
    investigator: Investigator | None
    memory: Memory
    sheds: Counter[str]

    def listening(self, kind: str) -> Sequence[str]: ...

    def network_view(self) -> dict[str, object]: ...

    @property
    def path_report(self) -> PathReport | None: ...

    def turned_away(self) -> int: ...

    def reload(self) -> None: ...

    def shutdown(self, now: bool) -> None: ...


class View:
    """A `NodeView` of one `Node`. `secret` is a few random bytes that make isolation texts unguessable."""

    def __init__(self, node: Node, secret: bytes) -> None:
        self._node = node
        self._secret = secret
        self._subscribers: list[Callable[[NodeEvent], None]] = []
        self._last_traffic = (0, 0)
        self.started = node.timers.wall()
        if node.circuits is not None:
            node.circuits.on_circuit = lambda circuit: self.publish(CircuitChanged(self._circuit(circuit)))
            node.circuits.streams.on_stream = lambda item: self.publish(StreamChanged(self._stream(item)))
        if node.investigator is not None:
            node.investigator.on_progress = self._investigated
        self._meter: Any = None
        self._running = False

    def start(self) -> None:
        """Begin to tell the bandwidth each second, as long as anyone listens."""
        self._running = True
        self._measure()

    def stop(self) -> None:
        """Tell no more."""
        self._running = False
        if self._meter is not None:
            self._meter.cancel()

    def _tick(self) -> None:
        read, written = self.traffic()
        self.publish(Bandwidth(read - self._last_traffic[0], written - self._last_traffic[1]))
        self._measure()

    def _measure(self) -> None:
        """A node that nobody listens to has no call each second, so that it can come to rest."""
        timers = self._node.timers
        self._last_traffic = self.traffic()
        self._meter = timers.at(timers.now() + 1.0, self._tick) if self._subscribers and self._running else None

    @property
    def version(self) -> str:
        return backrooms.__version__

    @property
    def nickname(self) -> str:
        return clean_nickname(self._node.config.node.nickname)

    @property
    def fingerprint(self) -> str:
        my_id = self._node.channels.my_id
        return fingerprint(my_id) if my_id is not None else ""

    @property
    def level(self) -> str:
        return self._node.config.client.level

    @property
    def config_file(self) -> str:
        return str(self._node.config.file or "")

    def circuits(self) -> Iterable[CircuitInfo]:
        if self._node.circuits is None:
            return []
        return [self._circuit(circuit) for circuit in self._node.circuits.circuits.values()]

    def streams(self) -> Iterable[StreamInfo]:
        if self._node.circuits is None:
            return []
        return [self._stream(item) for item in self._node.circuits.streams.streams.values()]

    def relays(self) -> Iterable[RelayInfo]:
        return map(_relay, self._node.directory.relays())

    def revoked(self) -> Iterable[RelayInfo]:
        return [_relay(relay) for relay in self._node.directory.everything() if relay.revoked]

    def guards(self) -> Iterable[GuardStatus]:
        circuits = self._node.circuits
        return circuits.paths.guards.status() if circuits is not None else []

    def links(self) -> Iterable[LinkInfo]:
        return [
            LinkInfo(
                fingerprint(link.peer_id) if link.peer_id is not None else "",
                link.address,
                link.channel.initiator,
                link.channel.rtt,
                link.driver.bytes_in,
                link.driver.bytes_out,
            )
            for link in self._node.channels.links
            if link.open
        ]

    def listeners(self, kind: ListenerKind) -> Iterable[str]:
        return self._node.listening(kind)

    def traffic(self) -> tuple[int, int]:
        return self._node.channels.traffic()

    def accounting(self) -> AccountingState | None:
        accounting: Accounting | None = getattr(self._node, "accounting", None)
        return accounting.state() if accounting is not None else None

    def refused(self) -> dict[str, int]:
        node = self._node
        found = {f"link: {kind}": count for kind, count in node.channels.refused.items()}
        if node.relay is not None:
            found |= {f"circuit: {kind}": count for kind, count in node.relay.counts.items()}
            exits = node.relay.exit.counts.items()
            found |= {f"exit: {kind}": count for kind, count in exits if _REFUSED_BY_US.search(kind)}
        found["proxy: too many connections"] = node.turned_away()
        return {kind: count for kind, count in (found | node.sheds).items() if count}

    @property
    def _paths(self) -> PathReport:
        if self._node.path_report is None:
            raise ConfigError("this node is no client: it chooses no paths")
        return self._node.path_report

    def explain_path(self, options: Mapping[str, str]) -> dict[str, object]:
        return self._paths.explain(options)

    def inspect_path(self, circuit: int) -> dict[str, object]:
        return self._paths.inspect(circuit)

    def levels(self) -> list[dict[str, object]]:
        return self._paths.levels() if self._node.path_report is not None else []

    def path_status(self) -> dict[str, object] | None:
        return self._paths.status() if self._node.path_report is not None else None

    def country(self, address: str) -> str | None:
        circuits = self._node.circuits
        table = circuits.paths.selectors.entities.knowledge.table if circuits is not None else None
        return table.place(address).country if table is not None and table.has_countries else None

    def network_view(self) -> dict[str, object]:
        return self._node.network_view()

    def waiting(self) -> tuple[int, int]:
        memory = self._node.memory
        return memory.total(), memory.limit

    def bootstrap(self) -> tuple[int, str, str]:
        percent, tag, summary = self._phase()
        clocks = self._node.channels.clocks
        kept_out = self._node.membership.kept_out()
        return percent, tag, clocks.describe() if clocks.wrong else kept_out or summary

    def _phase(self) -> tuple[int, str, str]:
        node = self._node
        count = len(node.directory)
        if node.circuits is None:
            return (100, "done", "Done") if count else (50, "loading_descriptors", "Loading relay descriptors")
        if node.circuits.ever_built:
            return 100, "done", "Done"
        if count >= node.circuits.options.level.hops:
            return 75, "enough_dirinfo", "Loaded enough directory info to build circuits"
        if any(link.open for link in node.channels.links):
            return 50, "loading_descriptors", "Loading relay descriptors"
        return 5, "conn", "Connecting to a relay"

    def own_addresses(self) -> Iterable[AddressInfo]:
        reachability = self._node.reachability
        if reachability is None:
            return []
        return [
            AddressInfo(one.configured, one.address, one.verdict.value, one.published, one.error)
            for one in reachability.reachability()
        ]

    def timers(self) -> int:
        return len(self._node.timers)

    def dormant(self) -> bool:
        return self._node.circuits is not None and self._node.circuits.dormant

    def newnym(self) -> None:
        if self._node.circuits is not None:
            self._node.circuits.newnym()
        self.publish(SignalReceived("NEWNYM"))

    def reload(self) -> None:
        self._node.reload()
        self.publish(SignalReceived("RELOAD"))

    def shutdown(self, now: bool) -> None:
        self.publish(SignalReceived("HALT" if now else "SHUTDOWN"))
        self._node.shutdown(now)

    def close_circuit(self, circuit_id: int, if_unused: bool) -> bool:
        circuits = self._node.circuits
        circuit = circuits.circuits.get(circuit_id) if circuits is not None else None
        if circuit is None:
            return False
        if not (if_unused and circuit.machine is not None and circuit.machine.stream_count):
            circuit.end(DestroyReason.REQUESTED)
        return True

    @property
    def _investigator(self) -> Investigator:
        if self._node.investigator is None:
            raise ConfigError("this node is no client: it has no circuits to investigate with")
        return self._node.investigator

    def investigate(self, target: str, minutes: float, url: str, guarded: bool) -> None:
        self._investigator.begin(target, minutes, url, guarded=guarded)

    def stop_investigation(self) -> bool:
        return self._investigator.end()

    def forget_scores(self, target: str) -> int:
        return self._investigator.forget(target)

    def investigation(self) -> dict[str, object] | None:
        return self._node.investigator.report() if self._node.investigator is not None else None

    def scores(self) -> list[dict[str, object]]:
        return self._node.investigator.remembered() if self._node.investigator is not None else []

    def _investigated(self) -> None:
        inquiry = self._investigator.inquiry
        if inquiry is not None:
            bad = sum(one.verdict.is_bad for one in inquiry.judged.values())
            self.publish(InvestigationProgress(inquiry.state, inquiry.progress(), inquiry.counts["finished"], bad))

    def subscribe(self, callback: Callable[[NodeEvent], None]) -> None:
        self._subscribers.append(callback)
        if self._meter is None:
            self._measure()

    def unsubscribe(self, callback: Callable[[NodeEvent], None]) -> None:
        self._subscribers.remove(callback)

    def log_line(self, level: Any, text: str) -> None:
        """Something was logged, scrubbed already: tell controllers, but not the details that only debugging needs."""
        severity = _SEVERITY.get(level)
        if severity is not None and self._subscribers:
            self.publish(LogLine(severity, text))

    def publish(self, event: NodeEvent) -> None:
        """Tell everybody who subscribed."""
        for callback in list(self._subscribers):
            callback(event)

    def _circuit(self, circuit: ClientCircuit) -> CircuitInfo:
        hops = circuit.path[: circuit.hops]
        return CircuitInfo(
            circuit.number,
            cast(CircuitStatus, circuit.status),
            tuple((relay.fingerprint, clean_nickname(relay.nickname)) for relay in hops),
            circuit.level.name,
            circuit.created_at,
            build_ms=None if circuit.build_seconds is None else circuit.build_seconds * 1000,
            isolation="" if circuit.isolation is None else self._isolation(circuit.isolation),
            reason=_name(DestroyReason, circuit.reason) if circuit.reason else "",
        )

    def _isolation(self, isolation: tuple[Hashable, ...]) -> str:
        """The same short text for the same isolation as long as the node runs; it does not tell the password."""
        return hashlib.blake2b(repr(isolation).encode(), digest_size=4, key=self._secret).hexdigest()

    def _stream(self, item: OpenStream) -> StreamInfo:
        request = item.request
        host = f"[{request.host}]" if ":" in request.host else request.host
        source = "" if request.source.startswith("unix") else request.source
        return StreamInfo(
            item.number,
            cast(StreamStatus, item.status),
            item.circuit.number if item.circuit is not None else 0,
            f"{host}:{request.port}",
            source,
            request.protocol,
            _name(EndReason, item.reason) if item.reason else "",
        )


def _name(kind: type[DestroyReason] | type[EndReason], reason: int) -> str:
    try:
        return kind(reason).name
    except ValueError:
        return "MISC"


def _relay(relay: Descriptor) -> RelayInfo:
    return RelayInfo(
        text_id(relay.id),
        relay.fingerprint,
        clean_nickname(relay.nickname),
        tuple(str(address) for address in relay.addresses),
        relay.is_exit,
        relay.capacity,
        0 if relay.revoked else relay.record.revision,
        relay.revoked,
    )
