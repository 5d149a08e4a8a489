"""A relay's part in finding out who is dead: carries the messages of `gossip.detector`, over links kept for that.

Clients that ask for it on a directory stream are told who is believed to be dead, now and whenever that changes.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure

from backrooms.crypto.keys import ED25519, fingerprint
from backrooms.errors import BackroomsError, RemoteProtocolError, WireError
from backrooms.gossip.bounds import Allowance, Allowances
from backrooms.gossip.detector import TICK, Detector
from backrooms.gossip.neighbours import Neighbours
from backrooms.gossip.partners import sample
from backrooms.gossip.suspicions import SuspicionTable
from backrooms.interfaces import IKeyStore, Rng
from backrooms.netdir.directory import Directory
from backrooms.node.channels import Channels
from backrooms.node.dirstreams import DirServer, ServedConnection
from backrooms.node.link import Link
from backrooms.node.logs import Seldom
from backrooms.node.timers import Timers
from backrooms.wire.heartbeat import (
    MAX_DEAD,
    AnyHeartbeatMessage,
    Heartbeat,
    HeartbeatType,
    Liveness,
    LivenessRequest,
    Probe,
    Refutation,
    Rumours,
    Suspicion,
    decode_message,
    list_root,
    pack_bits,
)

log = Logger()

FAN = 4
"""Neighbours, drawn at random, to whom news are passed on."""
HOLD = 90.0
"""Seconds for which a link is kept since a heartbeat went over it."""
CELLS_WAITING = 16
"""Control cells that wait on a link, at most, when one more message is put there: its other end does not read."""
MESSAGES = (8.0, 80)
"""Messages of one relay that are looked at: per second, and at once."""
REQUESTS = (1 / 60, 4)
"""Requests of one client that are answered: per second, and at once."""
KEEP_LISTS = 2.0
"""Seconds for which clients get the same list of the dead."""
PUSH = 2.0
"""Seconds between two messages that a client did not ask for."""
PUSH_SUSPICIONS, PUSH_REFUTATIONS = 15, 15
"""Of each in one of them, so that a client that counts bytes is content."""
MAX_UNPUSHED = 256
"""News that wait for that."""


class Heartbeats:
    """Runs the detector of this relay. `serve` once there is a `DirServer`."""

    def __init__(self, timers: Timers, channels: Channels, directory: Directory, keystore: IKeyStore, rng: Rng) -> None:
        assert channels.my_id is not None
        self.my_id = channels.my_id
        self.counts: Counter[str] = Counter()
        """Messages that were not looked at, by what was wrong."""
        self.neighbours = Neighbours(directory)
        self.detector: Detector | None = None
        """There is one from `start` on."""
        self._timers = timers
        self._channels = channels
        self._directory = directory
        self._keystore = keystore
        self._rng = rng
        self._links: dict[bytes, list[Link]] = {}
        self._dialling: dict[bytes, list[AnyHeartbeatMessage]] = {}
        self._allowances = Allowances(MESSAGES)
        self._clients: dict[ServedConnection, Allowance] = {}
        self._unpushed: list[Suspicion | Refutation] = []
        self._pushed = 0.0
        self._push_call: Any = None
        self._ticker: Any = None
        self._seldom = Seldom()
        self._started = self._resting = False
        self._lists: tuple[float, Liveness, Liveness] | None = None
        """The last list of the dead, when it was made and in both forms."""
        for kind in (HeartbeatType.HEARTBEAT, HeartbeatType.PROBE, HeartbeatType.PROBE_ANSWER, HeartbeatType.RUMOURS):
            channels.handlers[kind] = partial(self._message, kind)
        channels.on_opened.append(self._opened)
        channels.on_gone.append(self._gone)

    def serve(self, server: DirServer) -> None:
        """Answer clients."""
        server.handlers[HeartbeatType.LIVENESS_REQUEST] = self._asked

    # life

    def start(self) -> None:
        """Watch, and let ourselves be watched, unless it is time to `rest`."""
        self._started = True
        if self._resting or self.detector is not None:
            return
        now = self._timers.now()
        self.detector = Detector(
            self.my_id,
            self._directory,
            self.neighbours,
            SuspicionTable(self._directory, self.neighbours),
            lambda message: self._keystore.sign(message, (ED25519,))[ED25519],
            self.heard,
            self._rng,
            now,
            self._timers.wall(),
        )
        self._ticker = self._timers.at(now + TICK, self._tick)

    def rest(self) -> None:
        """Say and hear nothing until `resume`: others then believe that we are dead, and for them we are."""
        self._resting = True
        self._halt()

    def resume(self) -> None:
        """Go on as a relay that was just started."""
        self._resting = False
        if self._started:
            self.start()

    def stop(self) -> None:
        """Say and hear no more."""
        self._started = False
        self._halt()

    def _halt(self) -> None:
        self.detector = None
        self._clients.clear()
        for call in (self._ticker, self._push_call):
            if call is not None:
                call.cancel()
        self._push_call = None

    def _tick(self) -> None:
        assert self.detector is not None
        self._ticker = self._timers.at(self._timers.now() + TICK, self._tick)
        if self.my_id in self._directory:
            self.detector.tick(self._timers.now(), self._timers.wall())
            self._flush()

    def heard(self, relay_id: bytes) -> float:
        """When anything came from a relay, over whichever link."""
        return max((link.channel.heard for link in self._links.get(relay_id, ())), default=float("-inf"))

    def believed_dead(self) -> list[bytes]:
        """Relays that are believed to be dead."""
        return self.detector.dead() if self.detector is not None else []

    # links

    def _opened(self, link: Link) -> None:
        if link.peer_id is not None:
            self._links.setdefault(link.peer_id, []).append(link)

    def _gone(self, link: Link) -> None:
        peer = link.peer_id
        links = self._links.get(peer) if peer is not None else None
        if peer is None or links is None or link not in links:
            return
        links.remove(link)
        if not links:
            del self._links[peer]
            if self.detector is not None:
                self.detector.gone(peer)

    def _message(self, kind: int, link: Link, payload: bytes) -> None:
        peer = link.peer_id
        try:
            if peer is None:
                raise WireError("a client sends heartbeats")
            message = decode_message(kind, payload)
            if self.detector is None or not self._allowances.take(peer, self._timers.now()):
                self.counts["too many, or too soon"] += 1
                return
            self.detector.message(peer, message, self._timers.now(), self._timers.wall())
            if isinstance(message, Heartbeat) and peer in self.detector.watched:  # anybody can send heartbeats
                link.held_until = max(link.held_until, self._timers.now() + HOLD)
        except RemoteProtocolError as error:
            link.driver.fail(error)
            return
        self._flush()

    def _flush(self) -> None:
        """Send what the detector has to say."""
        detector = self.detector
        if detector is None:
            return
        outbox, detector.outbox = detector.outbox, []
        for out in outbox:
            if out.to is None:
                for peer in sample(sorted(self._links), FAN, self._rng):
                    self._send(peer, out.message, dial=False)
            else:
                self._send(out.to, out.message, dial=out.dial)
        news, detector.news = detector.news, []
        for rumours in news:
            self._tell(rumours)

    def _send(self, to: bytes, message: AnyHeartbeatMessage, *, dial: bool) -> None:
        link = next((one for one in self._links.get(to, ()) if one.open and one.superseded_at is None), None)
        if link is not None:
            self._put(link, message)
        elif not dial or self.detector is None:
            return
        elif to in self._dialling:
            if not isinstance(message, Heartbeat) and len(self._dialling[to]) < CELLS_WAITING:
                self._dialling[to].append(message)
        else:
            self._dialling[to] = [message]
            dialled = self._channels.link(to)
            dialled.addCallbacks(partial(self._dialled, to), partial(self._not_dialled, to))
            dialled.addErrback(lambda failure: log.failure("bug in heartbeats", failure))

    def _dialled(self, to: bytes, link: Link) -> None:
        for message in self._dialling.pop(to):
            if link.open and self.detector is not None:
                self._put(link, message)

    def _not_dialled(self, to: bytes, failure: Failure) -> None:
        del self._dialling[to]
        if not isinstance(failure.value, BackroomsError):
            log.failure("bug in heartbeats", failure)

    def _put(self, link: Link, message: AnyHeartbeatMessage) -> None:
        if link.channel.mux.control_waiting > CELLS_WAITING:
            return
        if isinstance(message, Heartbeat | Probe):
            link.held_until = max(link.held_until, self._timers.now() + HOLD)
        link.channel.send_message(message.TYPE, message.encode())

    # clients

    def _asked(self, connection: ServedConnection, payload: bytes) -> None:
        request = LivenessRequest.decode(payload)
        if self.detector is None:
            connection.close()
            return
        allowance = self._clients.get(connection)
        if allowance is None:
            allowance = self._clients[connection] = Allowance(REQUESTS)
            connection.on_closed.append(partial(self._left, connection))
        if not allowance.take(self._timers.now()):
            raise WireError("too many questions for who is dead")
        connection.send(self._liveness(request))

    def _left(self, connection: ServedConnection) -> None:
        self._clients.pop(connection, None)

    def _liveness(self, request: LivenessRequest) -> Liveness:
        now = self._timers.now()
        if self._lists is None or now >= self._lists[0] + KEEP_LISTS:
            ids, dead = [relay.id for relay in self._directory.relays()], self.believed_dead()
            root = list_root(ids)
            by_bit, by_id = Liveness(root, pack_bits(ids, frozenset(dead))), tuple(sorted(dead)[:MAX_DEAD])
            self._lists = now, by_bit, Liveness(root, b"", by_id)
        _, by_bit, plain = self._lists
        return by_bit if request.root == by_bit.root else plain

    def _tell(self, rumours: Rumours) -> None:
        """Have clients told, at once or when it is time again."""
        for suspicion in rumours.suspicions:
            name = fingerprint(suspicion.accused)[:8]
            if self._seldom.is_due(name, self._timers.now()):
                log.info("relay {relay} is believed to be dead by those who watch it", relay=name)
        if not self._clients:
            return
        self._unpushed += [*rumours.suspicions, *rumours.refutations]
        del self._unpushed[:-MAX_UNPUSHED]
        if self._push_call is None:
            self._push_call = self._timers.at(max(self._timers.now(), self._pushed + PUSH), self._push)

    def _push(self) -> None:
        """Statements of one kind after the other, in the order in which they came."""
        self._push_call = None
        self._pushed = self._timers.now()
        suspicions: list[Suspicion] = []
        refutations: list[Refutation] = []
        while self._unpushed and len(suspicions) < PUSH_SUSPICIONS and len(refutations) < PUSH_REFUTATIONS:
            one = self._unpushed.pop(0)
            if isinstance(one, Suspicion):
                suspicions.append(one)
            else:
                refutations.append(one)
        if not suspicions and not refutations:
            return
        message = Rumours(tuple(suspicions), tuple(refutations))
        for connection in list(self._clients):
            connection.send(message)  # who does not read hears nothing
        if self._unpushed:
            self._push_call = self._timers.at(self._pushed + PUSH, self._push)
