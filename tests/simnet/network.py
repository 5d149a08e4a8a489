"""Hosts and the ways between them."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import random
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal

from twisted.internet.defer import Deferred

from tests.simnet.clock import SimClock
from tests.simnet.pipe import LOOPBACK, Link, Path
from tests.simnet.reactor import SimReactor
from tests.simnet.sockets import Address, SimSocket, oserror

if TYPE_CHECKING:
    from tests.simnet.observer import Observer

EPOCH = 1_800_000_000.0
"""The unix time at which simulations begin, as in tests/keys.py: January 2027."""

FIRST_EPHEMERAL_PORT = 32_768

WILDCARDS = ("", "0.0.0.0", "::")


def is_loopback(ip: str) -> bool:
    """Whether the address means the host itself."""
    return ip == "::1" or ip.startswith("127.")


class Host:
    """A machine with one process on it, whose reactor is `reactor`.

    `off` is a machine without power: nothing answers. `rng` is the host's own source of randomness. `public` is where
    others see its IPv4 connections come from, `forwarded` the ports that lead to it there (see `SimNet.nat`).
    """

    def __init__(self, net: SimNet, name: str, addresses: tuple[str, ...]) -> None:
        self.net = net
        self.name = name
        self.addresses = addresses
        self.off = False
        self.public: str | None = None
        self.forwarded: dict[int, int] = {}
        self.rng = random.Random(f"{net.seed}/{name}")
        self.sockets: dict[int, SimSocket] = {}
        self.listeners: dict[tuple[str, int], SimSocket] = {}
        self._ports = itertools.count(FIRST_EPHEMERAL_PORT)
        self.reactor = SimReactor(self)

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address}>"

    @property
    def address(self) -> str:
        """The first address."""
        return self.addresses[0]

    def freeze(self) -> None:
        """Stop the process as SIGSTOP does: the kernel still takes bytes while there is room."""
        self.reactor.frozen = True

    def thaw(self) -> None:
        """Let the process go on; what was due meanwhile happens now."""
        self.reactor.thaw()

    def kill(self, how: Literal["close", "reset", "silent"] = "close") -> None:
        """End the process, without a word to its code.

        `close` is SIGKILL on a machine that lives on (its kernel sends FIN, or RST where bytes were unread),
        `reset` sends RST on every connection, `silent` switches the whole machine off.
        """
        self.reactor.dead = True
        sockets, self.sockets = self.sockets, {}
        for sock in sockets.values():
            if how == "silent":
                sock.vanish()
            else:
                if how == "reset":
                    sock.reset()
                sock.close()
        self.listeners.clear()
        self.off = how == "silent"

    def boot(self) -> SimReactor:
        """Start a new process (after `kill`); its reactor."""
        if not self.reactor.dead:
            raise ValueError(f"{self.name} is running: kill it first")
        self.reactor = SimReactor(self)
        self.off = False
        self.net.recheck()
        return self.reactor

    # what sockets ask of their kernel

    def socket(self, process: SimReactor, family: int) -> SimSocket:
        """A new socket."""
        sock = SimSocket(self, process, family, next(self.net.descriptors))
        self.sockets[sock.number] = sock
        return sock

    def forget(self, sock: SimSocket) -> None:
        """The socket was closed."""
        self.sockets.pop(sock.number, None)
        if self.listeners.get((sock.local[0], sock.local[1])) is sock:
            del self.listeners[sock.local[0], sock.local[1]]

    def bind(self, sock: SimSocket, address: Address) -> Address:
        """Check and complete an address to bind to."""
        ip, port = address[0], address[1]
        if ip not in WILDCARDS and not is_loopback(ip) and ip not in self.addresses:
            raise oserror(errno.EADDRNOTAVAIL)
        if not port:
            return self.ephemeral(ip)
        for other_ip, other_port in self.listeners:
            if other_port == port and (other_ip == ip or other_ip in WILDCARDS or ip in WILDCARDS):
                raise oserror(errno.EADDRINUSE)
        return (ip, port, *address[2:])

    def ephemeral(self, ip: str) -> Address:
        """An address of ours with a fresh port, for a socket that goes to (or is bound to) `ip`."""
        port = next(self._ports)
        if ip in WILDCARDS or is_loopback(ip) or ip in self.addresses:
            own = ip
        else:
            own = next((mine for mine in self.addresses if (":" in mine) == (":" in ip)), self.address)
        return (own, port, 0, 0) if ":" in own else (own, port)

    def has_family(self, ip: str) -> bool:
        """Whether the host has an address of the family of `ip`."""
        return is_loopback(ip) or any((":" in mine) == (":" in ip) for mine in self.addresses)

    def outside(self, address: Address) -> Address:
        """An address of ours as others see it."""
        translated = self.public is not None and ":" not in address[0] and not is_loopback(address[0])
        return (self.public, *address[1:]) if translated else address

    def inside(self, address: Address) -> Address | None:
        """What an address that others connect to is for us; None where the NAT lets nothing through."""
        if self.public is None or address[0] != self.public:
            return address
        port = self.forwarded.get(address[1])
        return (self.address, port) if port is not None else None

    def listener(self, address: Address) -> SimSocket | None:
        """Who listens there."""
        ip, port = address[0], address[1]
        for candidate in (ip, *WILDCARDS):
            found = self.listeners.get((candidate, port))
            if found is not None:
                return found
        return None


class SimNet:
    """A network of hosts under one clock. Equal seeds and equal programs give equal bytes at equal times.

    `default` is what the way between two hosts is like unless `link` says otherwise; `names` is the DNS (name
    to addresses), which answers after `dns_delay` seconds; `lookups` lists when who asked for which name.
    `start` is the monotonic time at the beginning, which has nothing to do with the unix time, `wall()`.
    """

    def __init__(self, seed: int = 0, default: Link | None = None, start: float = 1_000.0) -> None:
        self.seed = seed
        self.default = default or Link()
        self.clock = SimClock(start)
        self.rng = random.Random(f"{seed}")
        self.hosts: dict[str, Host] = {}
        self.names: dict[str, list[str]] = {"localhost": ["127.0.0.1"]}
        self.dns_delay = 0.005
        self.lookups: list[tuple[float, str, str]] = []
        self.tcp_timeout = 924.6  # Linux: 15 retransmissions
        self.observers: list[Observer] = []
        self.connections = 0
        # Far above what a process has, so that no system call takes one for a real file.
        self.descriptors = itertools.count(1 << 24)
        self._paths: dict[tuple[str, str], Path] = {}
        self._addresses: dict[str, Host] = {}
        self._start = self.clock.now

    @property
    def now(self) -> float:
        """The monotonic time in seconds."""
        return self.clock.now

    def wall(self) -> float:
        """The unix time."""
        return EPOCH + self.clock.now - self._start

    def host(self, name: str, *addresses: str) -> Host:
        """Add a host. Without addresses it gets one in a 10.x/16 of its own (while there are some)."""
        if name in self.hosts:
            raise ValueError(f"there is a host {name} already")
        if not addresses:
            number = len(self.hosts)
            addresses = (f"10.{number % 250 + 1}.{number // 250}.1",)
        for address in addresses:
            if address in self._addresses:
                raise ValueError(f"{address} belongs to {self._addresses[address].name} already")
        host = self.hosts[name] = Host(self, name, addresses)
        for address in addresses:
            self._addresses[address] = host
        return host

    def find(self, source: Host, ip: str) -> Host | None:
        """The host that `ip` leads to from `source`."""
        found = source if is_loopback(ip) else self._addresses.get(ip)
        if found is None or found is source or found.outside((ip,))[0] == ip:
            return found
        return None  # an address behind a NAT

    def nat(self, host: Host, public: str, forward: dict[int, int] | None = None) -> None:
        """Put a host's IPv4 behind a NAT: others see it at `public`, and reach the ports (outer to inner) in `forward`.

        Its connections end with a reset: do it again, and its address changes.
        """
        if self._addresses.get(public, host) is not host:
            raise ValueError(f"{public} belongs to {self._addresses[public].name} already")
        if host.public is not None:
            del self._addresses[host.public]
        self._addresses[public] = host
        host.public, host.forwarded = public, dict(forward or {})
        for sock in list(host.sockets.values()):
            sock.cut_off()

    def path(self, source: Host, target: Host) -> Path:
        """The way from one host to another."""
        key = (source.name, target.name)
        found = self._paths.get(key)
        if found is None:
            link = LOOPBACK if source is target else self.default
            found = self._paths[key] = Path(self, source, target, link)
        return found

    def link(self, a: Host, b: Host, *, one_way: bool = False, **properties: Any) -> None:
        """Change properties (see `Link`) of the way between `a` and `b`, in both directions unless `one_way`.

        Bytes that are under way keep their times; the window of an existing connection stays.
        """
        for path in [self.path(a, b)] if one_way else [self.path(a, b), self.path(b, a)]:
            path.link = dataclasses.replace(path.link, **properties)

    def cut(self, a: Host, b: Host) -> None:
        """Let nothing pass between `a` and `b`."""
        self.path(a, b).cut = self.path(b, a).cut = True

    def heal(self, a: Host, b: Host) -> None:
        """Undo `cut`; TCP's next retransmissions get through."""
        for path in (self.path(a, b), self.path(b, a)):
            path.cut = False
            path.resume()

    def partition(self, *hosts: Host) -> Callable[[], None]:
        """Cut these hosts off from all others; call the result to heal it."""
        inside = {host.name for host in hosts}
        pairs = [(a, b) for a in hosts for b in self.hosts.values() if b.name not in inside]
        for a, b in pairs:
            self.cut(a, b)

        def heal() -> None:
            for a, b in pairs:
                self.heal(a, b)

        return heal

    def recheck(self) -> None:
        """A host came back: what was stalled may go on."""
        for path in list(self._paths.values()):
            path.resume()

    def run(self, seconds: float = 0.0) -> None:
        """Let `seconds` pass."""
        self.clock.run(seconds)

    def run_until(
        self, target: Callable[[], Any] | Deferred[Any] | Coroutine[Any, Any, Any], limit: float = 60.0
    ) -> Any:
        """Let time pass until `target` comes true or fires; see `SimClock.run_until`."""
        return self.clock.run_until(target, limit)
