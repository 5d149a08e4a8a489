"""The links of a node: one per pair of relays, dialled when needed, shared by all circuits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from backrooms.channel.events import Create, Created, Destroyed, LinkClosed, LinkMessage, LinkOpen, SignRequest
from backrooms.channel.machine import Channel
from backrooms.config.options import LimitOptions
from backrooms.crypto.keys import fingerprint
from backrooms.errors import BackroomsError, CircuitError, RemoteProtocolError
from backrooms.interfaces import Rng
from backrooms.node.admission import EXPLAINED, Admission
from backrooms.node.bandwidth import Bandwidth
from backrooms.node.clocks import Clocks
from backrooms.node.driver import Driver, Turn
from backrooms.node.link import Dial, Link, peer_text, reason_text
from backrooms.node.logs import Seldom, without_numbers
from backrooms.node.signing import Signer
from backrooms.node.timers import Timers
from backrooms.wire.cell import DestroyReason
from backrooms.wire.link import VERSIONS

log = Logger()

BACKOFF_FIRST = 1.0
BACKOFF_MAX = 60.0
"""Seconds between attempts at a relay that does not answer: doubled each time, with up to half of it at random."""
IDLE_CLOSE = 180.0
"""Seconds after which a link that carries no circuit is closed."""
SUPERSEDED_CLOSE = 5.0
"""The same for a link that is not the best any more: the other end may just be opening a circuit on it."""
SWEEP = 2.0
"""Seconds between looks at idle links."""

__all__ = ["Channels", "Link"]


class Channels:
    """Opens, accepts and keeps links.

    `find_addresses(relay_id)` gives the addresses a relay publishes (`tls:HOST:PORT`). `on_create(link, circuit_id,
    handshake)` takes new circuits, `on_message(link, type, payload)` link messages of types that have nobody in
    `handlers`. Who is in `on_opened` hears of links that are open, who is in `on_gone` that they are lost. `admission`
    decides who may come in, within `limits`; `is_known(host)` tells it which IP addresses are those of relays.
    """

    def __init__(
        self,
        reactor: Any,
        timers: Timers,
        turn: Turn,
        rng: Rng,
        network_id: bytes,
        transports: dict[str, Any],
        find_addresses: Callable[[bytes], Sequence[str]],
        keystore: Any = None,
        limits: LimitOptions | None = None,
        is_known: Callable[[str], bool] = lambda host: False,
    ) -> None:
        self.links: list[Link] = []
        self.on_create: Callable[[Link, int, bytes], None] | None = None
        self.on_message: Callable[[Link, int, bytes], None] | None = None
        self.handlers: dict[int, Callable[[Link, bytes], None]] = {}
        """Take a link and a link message's payload."""
        self.on_opened: list[Callable[[Link], None]] = []
        self.on_gone: list[Callable[[Link], None]] = []
        self.refused: Counter[str] = Counter()
        """Links that did not come up because of what the peer is or did, by reason."""
        self.clocks = Clocks()
        self.bandwidth = Bandwidth(timers, turn)
        self._reactor = reactor
        self._timers = timers
        self._turn = turn
        self._rng = rng
        self._network_id = network_id
        self._transports = transports
        self._find_addresses = find_addresses
        self.admission = Admission(timers, limits or LimitOptions(), is_known, self._refused)
        self._signer = Signer(reactor, self.admission, keystore) if keystore is not None else None
        self._identity = keystore.identity() if keystore is not None else None
        self._by_peer: dict[bytes, Link] = {}
        self._dials: dict[bytes, Dial] = {}
        self._connecting: list[Deferred[Driver]] = []
        self._ports: list[Any] = []
        self._past_traffic = (0, 0)
        self._seldom = Seldom()
        self._sweeper: Any = None
        self._stopped = False
        for transport in transports.values():
            transport.on_refused = self._refused
            transport.gate = self.admission

    @property
    def my_id(self) -> bytes | None:
        """This relay's id; None for a client."""
        return self._identity.id if self._identity is not None else None

    # opening

    def link(self, relay_id: bytes) -> Deferred[Link]:
        """An open link to a relay, dialled if there is none; fails with `CircuitError`."""
        link = self._by_peer.get(relay_id)
        if link is not None and link.open:
            link.last_used = self._timers.now()
            return succeed(link)
        if self._stopped:
            return fail(CircuitError("this node is stopping"))
        dial = self._dials.setdefault(relay_id, Dial())
        if not dial.running and self._timers.now() < dial.retry_at:
            return fail(CircuitError(f"{dial.error}; waiting before the next attempt"))
        waiter: Deferred[Link] = Deferred(dial.give_up)
        dial.waiting.append(waiter)
        if not dial.running:
            dial.running = True
            dialling = Deferred.fromCoroutine(self._dial(relay_id, dial))
            dialling.addErrback(lambda failure: log.failure("bug while dialling", failure))
        return waiter

    def resting(self) -> dict[bytes, float]:
        """Relays that could not be reached, and when (monotonic) they will be tried again if asked for."""
        now = self._timers.now()
        return {one: dial.retry_at for one, dial in self._dials.items() if not dial.running and now < dial.retry_at}

    def _answer(self, dial: Dial, result: Link | str) -> None:
        waiting, dial.waiting = dial.waiting, []
        for waiter in waiting:
            if waiter.called:  # what an answer before this one caused has cancelled it
                continue
            if isinstance(result, Link):
                waiter.callback(result)
            else:
                waiter.errback(CircuitError(result))

    async def _dial(self, relay_id: bytes, dial: Dial) -> None:
        error = "it is not in the directory, or has no address that we can use"
        for address in self._find_addresses(relay_id):
            try:
                link = await self.connect(address, relay_id)
            except CircuitError as caught:
                error = str(caught)
                continue
            self._dials.pop(relay_id, None)
            self._answer(dial, link)
            return
        dial.running = False
        dial.failures += 1
        pause = min(BACKOFF_FIRST * 2 ** (dial.failures - 1), BACKOFF_MAX)
        dial.retry_at = self._timers.now() + pause * (1 + self._rng.random() / 2)
        if error != dial.error and not self._stopped:
            log.info("no link to relay {relay}: {error}", relay=fingerprint(relay_id)[:8], error=error)
        dial.error = error
        self._answer(dial, error)

    async def connect(self, address: str, relay_id: bytes) -> Link:
        """A new link to a relay at one address, whatever others there are; `CircuitError` says why there is none."""
        scheme, _, rest = address.partition(":")
        transport = self._transports.get(scheme)
        if transport is None or self._stopped:
            raise CircuitError("this node is stopping" if self._stopped else "there is no transport for its address")
        opened: Deferred[Link] = Deferred()
        driver: Driver | None = None
        try:
            endpoint = transport.client_endpoint(self._reactor, rest)
            connecting: Deferred[Driver] = endpoint.connect(self._factory(address, relay_id, opened))
            self._connecting.append(connecting)
            try:
                driver = await connecting
            finally:
                self._connecting.remove(connecting)
            return await opened
        except Exception as caught:  # every way a peer or a socket can fail
            opened.addErrback(lambda _: None)  # it may have failed unseen, when `connect` did
            if driver is not None:
                driver.fail(caught)
            raise CircuitError(reason_text(caught)) from None

    # accepting

    async def listen(self, addresses: Sequence[str]) -> None:
        """Accept links on every `SCHEME:HOST:PORT`."""
        for address in addresses:
            scheme, _, rest = address.partition(":")
            transport = self._transports[scheme]
            factory = self._factory("", None, None)
            self._ports.append(await transport.server_endpoint(self._reactor, rest).listen(factory))

    def listening(self) -> list[str]:
        """The addresses links are accepted on, as host:port."""
        hosts = [port.getHost() for port in self._ports]
        return [f"[{h.host}]:{h.port}" if ":" in h.host else f"{h.host}:{h.port}" for h in hosts]

    def _factory(self, address: str, expected: bytes | None, opened: Deferred[Link] | None) -> Any:
        factory = Factory.forProtocol(lambda: self._make_driver(address, expected, opened))
        factory.noisy = False
        return factory

    def _make_driver(self, address: str, expected: bytes | None, opened: Deferred[Link] | None) -> Driver:
        link: Link | None = None

        def made(driver: Driver) -> None:
            nonlocal link
            binding = driver.tcp.binding()
            now, wall = self._timers.now(), self._timers.wall()
            if expected is not None:
                channel = Channel.initiate(
                    binding, self._network_id, expected, self.my_id, VERSIONS, self._rng, now, wall
                )
            else:
                assert self.my_id is not None  # only relays listen
                channel = Channel.respond(binding, self._network_id, self.my_id, VERSIONS, self._rng, now, wall)
            channel.on_dirty = driver.dirty
            driver.machine = channel
            link = Link(channel, driver, address or peer_text(driver), now)
            self.links.append(link)
            self.bandwidth.add(driver, channel)
            self._sweep_later()

        def event(what: Any) -> None:
            assert link is not None
            self._event(link, what, opened)

        def lost(reason: BaseException | None) -> None:
            if link is None:
                text = reason_text(reason)
            else:
                text = self._lost(link, reason)
            if opened is not None and not opened.called:
                opened.errback(CircuitError(text))

        return Driver(None, self._timers, self._turn, event, lost, made)

    def _refused(self, reason: str) -> None:
        """A connection that somebody made to us did not become a link. Who it was stays out of the log."""
        kind = reason if reason in EXPLAINED else without_numbers(reason)
        self.refused[kind] += 1
        if self._seldom.is_due(kind, self._timers.now()):
            log.info("an incoming link was refused: {reason}", reason=EXPLAINED.get(kind, reason))

    # events

    def _event(self, link: Link, event: Any, opened: Deferred[Link] | None) -> None:
        if isinstance(event, Create):
            if self.on_create is None:
                link.channel.destroy(event.circuit_id, DestroyReason.PROTOCOL)
            else:
                self.on_create(link, event.circuit_id, event.handshake)
        elif isinstance(event, Created):
            link.created(event.circuit_id, event.handshake)
        elif isinstance(event, Destroyed):
            link.destroyed(event.circuit_id, event.reason, self._timers.now())
        elif isinstance(event, LinkMessage):
            handler = self.handlers.get(event.type)
            if handler is not None:
                handler(link, event.payload)
            elif self.on_message is not None:
                self.on_message(link, event.type, event.payload)
        elif isinstance(event, SignRequest):
            assert self._signer is not None  # a client is never asked to prove who it is
            self._signer.sign(link, event)
        elif isinstance(event, LinkOpen):
            self._opened(link, event, opened)
        elif isinstance(event, LinkClosed):
            link.driver.fail(RemoteProtocolError(event.reason))

    def _opened(self, link: Link, event: LinkOpen, opened: Deferred[Link] | None) -> None:
        link.opened = True
        link.driver.tcp.proven()
        link.last_used = self._timers.now()
        if event.peer_id is not None:
            if event.skew_seconds is not None and link.channel.initiator:
                self._look_at_clock()
                self.clocks.note(event.peer_id, event.skew_seconds, self._timers.now())
            self._choose(event.peer_id, link)
            dial = self._dials.get(event.peer_id)
            if dial is not None:  # it came to us while we tried, or waited to try, to reach it
                if not dial.running:
                    del self._dials[event.peer_id]
                self._answer(dial, link)
        if opened is not None and not opened.called:
            opened.callback(link)
        for call in self.on_opened:
            call(link)

    def _choose(self, peer_id: bytes, link: Link) -> None:
        """Of two links between two relays, the one opened by the lower id stays."""
        old = self._by_peer.get(peer_id)
        if old is None or not old.open or self.my_id is None:
            self._by_peer[peer_id] = link
            return
        keep_ours = self.my_id < peer_id
        if link.channel.initiator == keep_ours or old.channel.initiator != keep_ours:
            link, old = old, link
            self._by_peer[peer_id] = old
        link.superseded_at = self._timers.now()

    def _lost(self, link: Link, reason: BaseException | None) -> str:
        """Forget a link; why it was lost, in words."""
        channel, was_open = link.channel, link.opened
        text = reason_text(reason)
        if isinstance(reason, ConnectionDone | ConnectionLost) and not channel.closed:
            # Only the channel knows what the peer would not do next.
            channel.receive_eof(self._timers.now())
            text = next((one.reason for one in channel.events() if isinstance(one, LinkClosed)), text)
        channel.close(text)
        if link in self.links:
            read, written = self._past_traffic
            self._past_traffic = (read + link.driver.bytes_in, written + link.driver.bytes_out)
            self.links.remove(link)
            self.bandwidth.remove(link.driver)
        peer_id = link.peer_id
        if peer_id is not None and self._by_peer.get(peer_id) is link:
            del self._by_peer[peer_id]
            for other in self.links:
                if other.peer_id == peer_id and other.open:
                    other.superseded_at = None
                    self._by_peer[peer_id] = other
        link.lost()
        if was_open:
            for call in self.on_gone:
                call(link)
        if not self._stopped:
            if not was_open and not channel.initiator:
                self._refused(text)
            elif was_open and isinstance(reason, RemoteProtocolError):
                self.refused[without_numbers(text)] += 1
                if self._seldom.is_due(without_numbers(text), self._timers.now()):
                    log.warn("a link was closed: {reason}", reason=text)
        return text

    def traffic(self) -> tuple[int, int]:
        """Bytes of cells read and written since the start."""
        read, written = self._past_traffic
        for link in self.links:
            read += link.driver.bytes_in
            written += link.driver.bytes_out
        return read, written

    # keeping house

    def _sweep_later(self) -> None:
        if self._sweeper is None and self.links and not self._stopped:
            self._sweeper = self._timers.at(self._timers.now() + SWEEP, self._sweep)

    def _sweep(self) -> None:
        """Close links that carry nothing: superseded ones soon, others after `IDLE_CLOSE`."""
        self._sweeper = None
        now = self._timers.now()
        self._look_at_clock()
        for link in list(self.links):
            if not link.open or link.owners or now < link.held_until:
                continue
            if link.superseded_at is not None:
                idle = now - max(link.superseded_at, link.last_used) > SUPERSEDED_CLOSE
            else:
                idle = link.channel.initiator and now - link.last_used > IDLE_CLOSE
            if idle:
                link.driver.close()
        self._sweep_later()

    def set_aside(self, link: Link) -> None:
        """It seems not to work: whoever wants a link to that relay gets a new one."""
        if self._by_peer.get(link.peer_id or b"") is link:
            link.superseded_at = self._timers.now()
            del self._by_peer[link.peer_id or b""]

    def _look_at_clock(self) -> None:
        """If it was set, new circuits go over new links: only those tell what the relays' clocks say."""
        now = self._timers.now()
        if self.clocks.look(now, self._timers.wall()):
            for link in self._by_peer.values():
                link.superseded_at = now
            self._by_peer.clear()

    async def stop(self) -> None:
        """Stop accepting, then close every link."""
        self._stopped = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for port in self._ports:
            await port.stopListening()
        self._ports.clear()
        self.admission.stop()
        for connecting in list(self._connecting):
            connecting.cancel()
        for link in list(self.links):
            link.driver.close()

    def abort(self) -> None:
        """Close every link at once."""
        for link in list(self.links):
            link.driver.fail(BackroomsError("shutting down"))
