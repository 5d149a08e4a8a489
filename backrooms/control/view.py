"""What the control port asks of a node, and what a node tells it.

A fingerprint is a node id as controllers know it (`crypto.keys.fingerprint`): 40 upper-case hexadecimal digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from backrooms.node.accounting import AccountingState
from backrooms.node.guards import GuardStatus

CircuitStatus = Literal["LAUNCHED", "EXTENDED", "BUILT", "FAILED", "CLOSED"]
StreamStatus = Literal["NEW", "NEWRESOLVE", "SENTCONNECT", "SENTRESOLVE", "SUCCEEDED", "FAILED", "CLOSED"]
Severity = Literal["NOTICE", "WARN", "ERR"]
ListenerKind = Literal["socks", "http", "or"]

MAX_NICKNAME = 19


def clean_nickname(text: str) -> str:
    """`text` as a nickname that every controller accepts, `[A-Za-z0-9]{1,19}`: the rest is dropped."""
    kept = "".join(c for c in text if c.isascii() and c.isalnum())
    return kept[:MAX_NICKNAME] or "Unnamed"


@dataclass(frozen=True, slots=True)
class CircuitInfo:
    """A circuit of ours.

    `path` is `(fingerprint, nickname)` of the hops reached so far, `created` is seconds since 1970,
    `build_ms` is None until the circuit is built, `isolation` describes who may share it, `reason` says why
    it ended (one of Tor's words, such as `FINISHED` or `TIMEOUT`).
    """

    id: int
    status: CircuitStatus
    path: tuple[tuple[str, str], ...]
    level: str
    created: float
    purpose: str = "GENERAL"
    build_ms: float | None = None
    isolation: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream of ours.

    `circuit_id` is 0 while it has no circuit, `target` is `HOST:PORT`, `source` the application's `IP:PORT`
    (empty when it came over a unix socket), `protocol` what it spoke (`SOCKS4`, `SOCKS5`, `HTTPCONNECT`).
    """

    id: int
    status: StreamStatus
    circuit_id: int
    target: str
    source: str = ""
    protocol: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RelayInfo:
    """A relay in our verified list.

    `id` is the node id as people write it, `addresses` are those it published (`tls:HOST:PORT`), `capacity`
    is in bytes per second, `revision` is the time of its descriptor in seconds since 1970.
    """

    id: str
    fingerprint: str
    nickname: str
    addresses: tuple[str, ...]
    exit: bool
    capacity: int
    revision: float
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """A link to another node. `peer` is its fingerprint (empty for a client), `initiator` is true when we
    dialled, `rtt` is in seconds or None when not measured, the counters are bytes since the link was made."""

    peer: str
    address: str
    initiator: bool
    rtt: float | None
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True, slots=True)
class AddressInfo:
    """An address of this relay. `configured` is as in `relay.addresses`, `address` empty while it is not found out.

    `verdict` is "untested", "reachable" or "unreachable", `error` says why another relay did not reach it.
    """

    configured: str
    address: str
    verdict: str
    published: bool
    error: str


@dataclass(frozen=True, slots=True)
class CircuitChanged:
    """A circuit is new or has a new status or hop. Published for every change, the last one included."""

    info: CircuitInfo


@dataclass(frozen=True, slots=True)
class StreamChanged:
    """A stream is new or has a new status."""

    info: StreamInfo


@dataclass(frozen=True, slots=True)
class LogLine:
    """Something people should read. The text must be scrubbed already; it may hold any character."""

    severity: Severity
    text: str


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes of applications and relayed circuits in the last second. Published once a second, zeros too."""

    read: int
    written: int


@dataclass(frozen=True, slots=True)
class SignalReceived:
    """A signal has been obeyed, whoever sent it: `NEWNYM`, `RELOAD`, `SHUTDOWN` or `HALT`."""

    name: str


@dataclass(frozen=True, slots=True)
class InvestigationProgress:
    """An investigation went on, or is over (`state` is "running", "done" or "stopped"); `bad` relays so far."""

    state: str
    progress: float
    probes: int
    bad: int


NodeEvent: TypeAlias = CircuitChanged | StreamChanged | LogLine | Bandwidth | SignalReceived | InvestigationProgress


class NodeView(Protocol):
    """A node, seen from its control port. Nothing here blocks; every list is a snapshot."""

    @property
    def version(self) -> str:
        """The version of Backrooms, such as `0.1.0`."""

    @property
    def nickname(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """The 40 digits other nodes know this relay by; empty for a client."""

    @property
    def level(self) -> str:
        """The security level of circuits for which nothing else was asked."""

    @property
    def config_file(self) -> str:
        """The absolute path of the configuration file, or an empty string."""

    @property
    def started(self) -> float:
        """When the node started, in seconds since 1970."""

    def circuits(self) -> Iterable[CircuitInfo]:
        """Circuits that are open or being built, oldest first."""

    def streams(self) -> Iterable[StreamInfo]:
        """Open streams, oldest first."""

    def relays(self) -> Iterable[RelayInfo]:
        """The verified list of relays."""

    def revoked(self) -> Iterable[RelayInfo]:
        """Relays that there were, and that never will be again."""

    def guards(self) -> Iterable[GuardStatus]:
        """The guards of our circuits, in the order in which they are used."""

    def links(self) -> Iterable[LinkInfo]: ...

    def listeners(self, kind: ListenerKind) -> Iterable[str]:
        """Addresses that are listened to now: `IP:PORT`, `[IPv6]:PORT` or `unix:/path`."""

    def traffic(self) -> tuple[int, int]:
        """Bytes read and written since the start: the sums of what `Bandwidth` tells."""

    def accounting(self) -> AccountingState | None:
        """What has been carried in this accounting period, and what may be; None without a limit."""

    def refused(self) -> Mapping[str, int]:
        """What was refused or ended because somebody wanted too much or broke a rule, by kind."""

    def waiting(self) -> tuple[int, int]:
        """Bytes that wait in queues now, about, and how many may."""

    def network_view(self) -> Mapping[str, object]:
        """Epoch and root of the node's view of the network, and what comparing it came to (`node.viewcheck`)."""

    def explain_path(self, options: Mapping[str, str]) -> Mapping[str, object]:
        """Why a path is chosen (`sides.pathreport`). `BackroomsError` says why that cannot be told."""

    def inspect_path(self, circuit: int) -> Mapping[str, object]:
        """What is known of the relays of a circuit. `BackroomsError` if there is no such circuit."""

    def levels(self) -> Iterable[Mapping[str, object]]:
        """What each level gives and does not give."""

    def path_status(self) -> Mapping[str, object] | None:
        """What the default level does not give, and what rules leave too little; None for no client."""

    def country(self, address: str) -> str | None:
        """The country of an IP address, two upper-case letters, empty if unknown; None without a table of countries.

        `ValueError` if it is no address.
        """

    def bootstrap(self) -> tuple[int, str, str]:
        """Progress in percent, its tag and its summary.

        Tor's own: from 75 (`enough_dirinfo`) on there are enough relays for a path; 100 (`done`) means that a
        circuit has been built. With a wrong clock the summary says that.
        """

    def own_addresses(self) -> Iterable[AddressInfo]:
        """Where others are to reach this relay, and whether they do; nothing for a client."""

    def timers(self) -> int:
        """How many things wait for a time to come."""

    def dormant(self) -> bool:
        """Whether the node sleeps because nobody used it for long."""

    def newnym(self) -> None:
        """New streams get circuits that no stream has used before."""

    def reload(self) -> None:
        """Read the configuration again. `ConfigError` when it is wrong; nothing has changed then."""

    def shutdown(self, now: bool) -> None:
        """End the node: `now` at once, otherwise after relayed circuits were given time to end."""

    def close_circuit(self, circuit_id: int, if_unused: bool) -> bool:
        """Close a circuit, `if_unused` only if it carries no stream. False when there is no such circuit."""

    def investigate(self, target: str, minutes: float, url: str, guarded: bool) -> None:
        """Start an investigation (`node.investigator`). `BackroomsError` says why it cannot be."""

    def stop_investigation(self) -> bool:
        """Stop it; False when none is running."""

    def forget_scores(self, target: str) -> int:
        """Forget what was found of a relay, or of `all`; how many scores there were. `BackroomsError` if none is so."""

    def investigation(self) -> Mapping[str, object] | None:
        """The investigation that runs, or the last one; None when there was none."""

    def scores(self) -> Iterable[Mapping[str, object]]:
        """Relays of which something bad is remembered."""

    def subscribe(self, callback: Callable[[NodeEvent], None]) -> None:
        """Call `callback(event)` for every event from now on."""

    def unsubscribe(self, callback: Callable[[NodeEvent], None]) -> None:
        """Stop calling `callback`."""
