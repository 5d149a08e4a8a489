"""Who may link to this node, and who first: accepted connections until their peers have proven who they are.

Three bounds (docs/decisions/011-admission.md): new connections per address and per subnet; CPU time for handshakes,
for which connections wait in lines; and how many may not have proven themselves, with a deadline for each.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address
from operator import attrgetter
from types import TracebackType
from typing import Any, Final

from backrooms.config.options import LimitOptions
from backrooms.netdir.directory import Directory
from backrooms.node.buckets import Buckets, Budget, Key, Recent
from backrooms.node.timers import Call, Timers
from backrooms.transport.accepting import ACCEPT_FAILED
from backrooms.transport.gate import Visitor

HANDSHAKE_SECONDS = 10.0
"""From accept until the link is open, waiting included."""
CPU_BURST = 0.5
"""Seconds of CPU time that can be saved up for handshakes."""
LEAST_STAY = 1.0
"""Seconds that an unproven connection is left before it makes room for one whose subnet had as much lately."""
MAX_SIGNING = 4
"""Link proofs of accepted links that are signed at one time, in threads."""
HALF_LIFE = 60.0
"""Seconds after which what a subnet has had counts half when the next one in a line is chosen."""
MAX_ADDRESSES = 16_384
MAX_SUBNETS = 8_192
"""How many addresses and subnets are remembered."""
KNOWN_SECONDS = 30.0
"""The addresses of known relays are collected anew after that, if the list has changed."""

ADDRESS_RATE: Final = "address rate"
SUBNET_RATE: Final = "subnet rate"
PENDING_FULL: Final = "pending full"
TIMEOUT: Final = "handshake timeout"
STOPPING: Final = "shutting down"
EXPLAINED: Final = {
    ADDRESS_RATE: "more new links from one address than limits.address_rate allows",
    SUBNET_RATE: "more new links from one subnet than limits.subnet_rate allows",
    PENDING_FULL: "more unfinished handshakes than limits.pending_links allows",
    TIMEOUT: f"not open within {HANDSHAKE_SECONDS:.0f} s",
    STOPPING: "this node is stopping",
    ACCEPT_FAILED: "the system gave us no connection; too many open files?",
}
"""The words for each kind of refusal that is decided here."""

_level = attrgetter("group.level")


def prefixes(host: str) -> tuple[str, Key, Key]:
    """An IP address in canonical form, what is counted as one address, and as one subnet.

    IPv4 address and /24; IPv6 /64 and /48, since who has one address there has the 2^64 of its network. Transports
    without IP addresses give "", which is an address of its own.
    """
    if ":" not in host:
        return host, host, host.rpartition(".")[0]
    address = IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return prefixes(str(address.ipv4_mapped))
    return str(address), address.packed[:8], address.packed[:6]


class _Group:
    """The unproven connections of one subnet; `level` is how much it had lately, as in `Recent`."""

    __slots__ = ("known", "level", "subnet", "tickets")

    def __init__(self, known: bool, subnet: Key) -> None:
        self.known = known
        self.subnet = subnet
        self.level = 0.0
        self.tickets: dict[Ticket, None] = {}


class Ticket:
    """Stands for an accepted connection until it is a link, or gone. It is a `transport.gate.Ticket`."""

    __slots__ = ("_admission", "_began", "deadline", "group", "open", "visitor")

    def __init__(self, admission: Admission, group: _Group, deadline: float) -> None:
        self.visitor: Visitor | None = None
        self.group = group
        self.deadline = deadline
        self.open = True
        self._admission = admission
        self._began = 0.0

    def wait(self, work: Callable[[], None]) -> None:
        """Call `work()`, a TLS handshake, when it is this connection's turn."""
        self._admission.queue(self, work, False)

    def wait_to_sign(self, work: Callable[[], None]) -> None:
        """The same for a signature in a thread; `Admission.signing` counts those."""
        self._admission.queue(self, work, True)

    def done(self) -> None:
        """The link is open, or the connection is gone."""
        if self.open:
            self.open = False
            self.visitor = None
            self._admission.forget(self)

    def turn_away(self, reason: str) -> None:
        """Close the connection."""
        visitor = self.visitor
        self.done()
        if visitor is not None:
            visitor.turn_away(reason)

    def __enter__(self) -> None:
        self._began = self._admission.timers.cpu()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        timers = self._admission.timers
        self._admission.links.charge(timers.cpu() - self._began, timers.now())


class Admission:
    """Decides about accepted connections. It is a `transport.gate.Gate`.

    `is_known(host)` says whether a relay of our list has this IP address. `on_refused(kind)` hears of those that do not
    even get a ticket; what happens to a ticket is told to its visitor. `links` and `circuits` are the shares of the CPU
    time for handshakes.
    """

    def __init__(
        self,
        timers: Timers,
        limits: LimitOptions,
        is_known: Callable[[str], bool],
        on_refused: Callable[[str], None],
    ) -> None:
        self.timers = timers
        self.closed = False
        """Whether nobody is let in for the time being."""
        self.signing = 0
        """Link proofs that are being signed; whoever changes it calls `wake`."""
        budget = Budget(limits.handshake_cpu, CPU_BURST, timers.now())
        self.links, self.circuits = budget.first, budget.second
        self._limit = limits.pending_links
        self._is_known = is_known
        self._on_refused = on_refused
        self._addresses = Buckets(limits.address_rate, limits.address_burst, MAX_ADDRESSES)
        self._subnets = Buckets(limits.subnet_rate, limits.subnet_burst, MAX_SUBNETS)
        self._recent = Recent(HALF_LIFE, MAX_SUBNETS)
        self._tickets: dict[Ticket, None] = {}
        # Two classes, others and known relays: their groups by subnet, and how many tickets are out.
        self._groups: tuple[dict[Key, _Group], dict[Key, _Group]] = ({}, {})
        self._held = [0, 0]
        self._full = 0.0, 0.0
        # Who waits: for TLS and for a signature, others and known relays. The lines take turns.
        self._lines: tuple[dict[Ticket, Callable[[], None]], ...] = ({}, {}, {}, {})
        self._turn = 0
        self._call: Call | None = None
        self._deadline: Call | None = None
        self._stopped = False

    def __len__(self) -> int:
        """Accepted connections that have not proven themselves yet."""
        return len(self._tickets)

    def arrive(self, address: Any) -> Ticket | None:
        """A connection was accepted; None if it may not stay."""
        if self._stopped or self.closed:
            return None
        now = self.timers.now()
        host, one, subnet = prefixes(getattr(address, "host", ""))
        if not self._addresses.has(one, now):
            self._on_refused(ADDRESS_RATE)
            return None
        if not self._subnets.has(subnet, now):
            self._on_refused(SUBNET_RATE)
            return None
        self._addresses.take(one, now)
        self._subnets.take(subnet, now)
        known = self._is_known(host)
        group = self._groups[known].get(subnet) or _Group(known, subnet)
        group.level = self._recent.note(subnet, now)
        if len(self._tickets) >= self._limit and not self._make_room(group.level, now):
            self._on_refused(PENDING_FULL)
            return None
        self._groups[known][subnet] = group
        ticket = Ticket(self, group, now + HANDSHAKE_SECONDS)
        self._tickets[ticket] = group.tickets[ticket] = None
        self._held[known] += 1
        if self._deadline is None:
            self._deadline = self.timers.at(ticket.deadline, self._expire)
        return ticket

    def _make_room(self, level: float, now: float) -> bool:
        """Turn away the oldest connection of the subnets that have most and, of those, had most lately (half as much
        is the same). False if even that one came just now, and the newcomer's subnet, which has this `level`, is one of
        the same kind: nobody would ever finish. Known relays are spared unless they fill half of the places, since
        anybody can put addresses into the list.
        """
        full_until, full_level = self._full
        if now < full_until and level > full_level:
            return False
        others, known = self._groups
        groups = known if not others or self._held[True] > self._limit // 2 else others
        most = max(len(group.tickets) for group in groups.values())
        worst = [group for group in groups.values() if len(group.tickets) == most]
        full_level = max(group.level for group in worst) - 1
        oldest = min((next(iter(one.tickets)) for one in worst if one.level > full_level), key=attrgetter("deadline"))
        full_until = oldest.deadline - HANDSHAKE_SECONDS + LEAST_STAY
        if now < full_until and level > full_level:
            self._full = full_until, full_level  # it will be the same for the next ones
            return False
        oldest.turn_away(PENDING_FULL)
        return True

    def _expire(self) -> None:
        """Turn away those whose time is up. All have the same time, so the oldest comes first."""
        self._deadline = None
        now = self.timers.now()
        for ticket in list(self._tickets):
            if ticket.deadline > now:
                self._deadline = self.timers.at(ticket.deadline, self._expire)
                return
            ticket.turn_away(TIMEOUT)

    def forget(self, ticket: Ticket) -> None:
        """A ticket is done with."""
        group = ticket.group
        del self._tickets[ticket]
        del group.tickets[ticket]
        if not group.tickets:
            del self._groups[group.known][group.subnet]
        self._held[group.known] -= 1
        for line in self._lines:
            line.pop(ticket, None)

    # who is next

    def queue(self, ticket: Ticket, work: Callable[[], None], signing: bool) -> None:
        """Have `work()` called when it is the ticket's turn; a ticket waits for one thing at a time."""
        if ticket.open:
            self._lines[2 * signing + ticket.group.known][ticket] = work
            self.wake()

    def wake(self) -> None:
        """See to the lines as soon as there is CPU time."""
        if self._call is None and any(self._lines) and not self._stopped:
            now = self.timers.now()
            self._call = self.timers.at(now + self.links.wait(now), self._serve)

    def _serve(self) -> None:
        """One handshake for each turn of the reactor (about 2 ms), so that cells go on flowing."""
        self._call = None
        now = self.timers.now()
        if self.links.wait(now) > 0:  # a handshake that is under way has cost more meanwhile
            self.wake()
            return
        for _ in self._lines:
            self._turn = (self._turn + 1) % len(self._lines)
            line = self._lines[self._turn]
            if line and (self._turn < 2 or self.signing < MAX_SIGNING):
                break
        else:
            return  # `wake` comes with the end of a signature
        # Of those who had equally little, the first in the line.
        ticket = min(line, key=_level)
        ticket.group.level = self._recent.note(ticket.group.subnet, now)
        work = line.pop(ticket)
        self.wake()
        work()

    def stop(self) -> None:
        """Let nobody in any more; who has no link is turned away."""
        self._stopped = True
        for call in (self._call, self._deadline):
            if call is not None:
                call.cancel()
        for ticket in list(self._tickets):
            ticket.turn_away(STOPPING)


class KnownHosts:
    """The IP addresses of the relays in a list, as `Admission` asks for them."""

    def __init__(self, directory: Directory, now: Callable[[], float]) -> None:
        self._directory = directory
        self._now = now
        self._hosts: frozenset[str | None] = frozenset()
        self._revision = -1
        self._made_at = 0.0

    def __call__(self, host: str) -> bool:
        """Whether one of the relays has the address `host`."""
        if self._revision != self._directory.revision:
            now = self._now()
            if self._revision < 0 or now >= self._made_at + KNOWN_SECONDS:
                self._made_at, self._revision = now, self._directory.revision
                relays = self._directory.relays()
                self._hosts = frozenset(address.host for relay in relays for address in relay.addresses)
        return host in self._hosts
