"""How relays keep their lists equal: a pure machine beside one directory (docs/protocol.md, "Gossip").

News is pushed on at once, to a few partners and a few times. Every ten seconds a summary goes to three of them; where
it differs from theirs, the two find out in what, and fetch it from each other. What to do comes out of `out`: messages
to send, documents to fetch or to verify, peers to drop. Nothing that a peer says is believed: only documents that
verify get into the list, and each costs its sender of an allowance.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from backrooms.errors import CryptoError, RemoteProtocolError, WireError
from backrooms.gossip.bounds import CHANGES, EMPTY_WORDS, MUTED, Allowances, Peer
from backrooms.gossip.digests import Digests
from backrooms.gossip.news import ROOM_BESIDE_DIGESTS, Rumours
from backrooms.gossip.partners import Partners, sample
from backrooms.interfaces import Rng
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory
from backrooms.wire.documents import MAX_FETCH_IDS, MAX_LIST_ENTRIES, DirDocs, DirFetch, Documents, ListEntry, Parts
from backrooms.wire.gossip import AnyGossipMessage, Buckets, News, Offer, Summary, revision_of
from backrooms.wire.records import REVOKED, SCHEMA

FANOUT = 3
"""Partners told in each round."""
ROUND = 10.0
"""Seconds between rounds, give or take a quarter."""
ANSWER_TIME = 8.0
"""Seconds after which a summary counts as unanswered."""
EXCHANGE_TIME = 60.0
"""Seconds for which what belongs to an exchange is waited for."""
FETCH_TIME = 3.0
"""Seconds for which nobody else is asked for what one peer was asked for."""
MAX_PEERS = 1024
"""Peers of which we remember what they took."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message. `reply` goes over the link there is; for others a link may be made."""

    peer: bytes
    message: AnyGossipMessage
    reply: bool


@dataclass(frozen=True, slots=True)
class Ask:
    """Fetch documents, and give the answer to `fetched`, or None where there was none."""

    peer: bytes
    request: DirFetch


@dataclass(frozen=True, slots=True)
class Check:
    """Verify documents, take them in, and tell `took`."""

    peer: bytes
    documents: tuple[Documents, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the link to a peer that broke the protocol."""

    peer: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Silent:
    """A peer answers no more. Its link, if there is one, is not to be trusted to work."""

    peer: bytes


Result: TypeAlias = Descriptor | RemoteProtocolError
Output: TypeAlias = Send | Ask | Check | Drop | Silent


@dataclass(slots=True)
class Gossip:
    """The gossip of one relay. `now` is monotonic seconds everywhere."""

    directory: Directory
    my_id: bytes
    rng: Rng
    now: float
    may_use: Callable[[bytes], bool] = lambda relay_id: True
    """Says of a relay whether it may become a partner."""
    out: list[Output] = field(default_factory=list)
    """What is to be done; whoever does it empties it."""
    counts: Counter[str] = field(default_factory=Counter)
    """What was left undone, by reason."""
    heard_at: float = float("-inf")
    """When a partner last answered."""
    digests: Digests = field(init=False)
    partners: Partners = field(init=False)
    rumours: Rumours = field(init=False)
    _changes: Allowances = field(init=False, default_factory=lambda: Allowances(CHANGES))
    _peers: OrderedDict[bytes, Peer] = field(init=False, default_factory=OrderedDict)
    _waiting: dict[bytes, float] = field(init=False, default_factory=dict)
    _fetching: dict[bytes, float] = field(init=False, default_factory=dict)
    _before: dict[bytes, Descriptor | None] = field(init=False, default_factory=dict)
    """What was held of the relays whose documents are being verified: only what differs from that is news."""
    _round_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.digests = Digests(self.directory)
        self.partners = Partners(self.directory, self.my_id, self.rng, self.may_use)
        self.rumours = Rumours(self.directory, self.rng)
        self._round_at = self.now + ROUND * self.rng.random()

    # time

    def deadline(self) -> float:
        """When `tick` wants to be called."""
        return min(self._round_at, self.rumours.due)

    def tick(self, now: float) -> None:
        """Push news, and begin a round, if it is time. Much that is new is digested first, in several calls."""
        if now < self.deadline() or not self.digests.catch_up():
            return
        if now >= self._round_at:
            self._round_at = now + ROUND * self.rng.uniform(0.75, 1.25)
            self._round(now)
        if now >= self.rumours.due:
            chosen = self.partners.choose(FANOUT, now)
            news = self.rumours.push(now) if chosen else ()
            for peer in chosen if news else ():
                self.out.append(Send(peer, Summary(self.digests.root, b"", news), reply=False))
            if not chosen:
                self.rumours.wait()

    def hurry(self, now: float) -> None:
        """Have the next round soon: something is new that partners should know of, or the network is back."""
        self._round_at = min(self._round_at, now + self.rng.random())

    def _round(self, now: float) -> None:
        for peer, asked_at in list(self._waiting.items()):
            if now - asked_at >= ANSWER_TIME:
                del self._waiting[peer]
                if self.partners.unanswered(peer, now):
                    self.out.append(Silent(peer))
        self._fetching = {relay_id: until for relay_id, until in self._fetching.items() if until > now}
        chosen = self.partners.choose(FANOUT, now)
        news = self.rumours.some(ROOM_BESIDE_DIGESTS, now) if chosen else ()
        for peer in chosen:
            self._peer(peer).asked_until = now + EXCHANGE_TIME
            self._waiting[peer] = now
            self.out.append(Send(peer, Summary(self.digests.root, self.digests.short, news), reply=False))

    def unreachable(self, peer: bytes, now: float) -> None:
        """A message could not be sent."""
        self._waiting.pop(peer, None)
        self.partners.lost(peer, now)

    def news(self, relay_id: bytes, now: float) -> None:
        """A relay published something to us, or we did: tell others."""
        self._changes.take(relay_id, now)
        self.rumours.add(relay_id, now)

    def may_change(self, relay_id: bytes, now: float) -> bool:
        """Whether a relay may publish once more now."""
        return self._changes.has(relay_id, now)

    def may_verify(self, peer: bytes, now: float) -> bool:
        """Whether one more document of this peer may be verified now; if so, it counts."""
        return self._peer(peer).documents.take(now)

    # messages

    def _peer(self, peer: bytes) -> Peer:
        state = self._peers.get(peer)
        if state is None:
            state = self._peers[peer] = Peer()
            if len(self._peers) > MAX_PEERS:
                self._peers.popitem(last=False)
        else:
            self._peers.move_to_end(peer)
        return state

    def receive(self, peer: bytes, message: AnyGossipMessage, now: float) -> None:
        """Take a message that a relay sent."""
        state = self._peer(peer)
        if now < state.muted_until:
            self.counts["from a peer that is not listened to"] += 1
            return
        if not state.messages.take(now):
            self.counts["too many messages"] += 1
            return
        if self._waiting.pop(peer, None) is not None:
            self.heard_at = now
        self.partners.heard(peer)
        if isinstance(message, Summary):
            self._summary(peer, state, message, now)
        elif isinstance(message, Buckets):
            self._buckets(peer, state, message, now)
        elif now < state.told_until:
            state.told_until = now
            self._fetch(peer, state, message.entries, now)
        else:
            self.counts["unasked"] += 1

    def _summary(self, peer: bytes, state: Peer, message: Summary, now: float) -> None:
        self._take_news(peer, state, message.news, now)
        if not message.digests:
            return
        if not self.digests.catch_up():
            self.counts["summaries that came too early"] += 1
            return
        differing = self.digests.differing(message.digests) if message.root != self.digests.root else []
        if not differing:
            self.out.append(Send(peer, Summary(self.digests.root), reply=True))
        elif state.answers.take(now):
            state.told_until = now + EXCHANGE_TIME
            told: list[int] = []
            size = 0
            for bucket in sample(differing, len(differing), self.rng):
                size += self.digests.count(bucket)
                if told and size > MAX_LIST_ENTRIES:
                    break
                told.append(bucket)
            entries = self.digests.entries(sorted(told))[:MAX_LIST_ENTRIES]
            self.out.append(Send(peer, Buckets.of(told, tuple(entries)), reply=True))
        else:
            self.counts["too many summaries"] += 1

    def _buckets(self, peer: bytes, state: Peer, message: Buckets, now: float) -> None:
        if now >= state.asked_until:
            self.counts["unasked"] += 1
            return
        state.asked_until = now
        theirs = {entry.id: entry for entry in message.entries}
        offered = []
        for mine in self.digests.entries(message.buckets()):
            other = theirs.get(mine.id)
            if other is None or mine.revision > other.revision or self._other_certificate(state, mine, other, now):
                offered.append(mine)
        if offered:
            self.out.append(Send(peer, Offer(tuple(offered[:MAX_LIST_ENTRIES])), reply=True))
        self._fetch(peer, state, message.entries, now)

    @staticmethod
    def _other_certificate(state: Peer, mine: ListEntry, other: ListEntry, now: float) -> bool:
        return (
            mine.revision == other.revision
            and mine.certificate != other.certificate
            and not state.refused.has(mine.id, mine.revision, now)
        )

    # documents

    def _wanted(self, state: Peer, entry: ListEntry, now: float) -> Parts | None:
        """What to fetch of what a peer has; None for nothing."""
        known = self.directory.held(entry.id)
        if state.refused.has(entry.id, entry.revision, now) or self._fetching.get(entry.id, now) > now:
            return None
        if known is None:
            return Parts.BOTH
        same = entry.certificate == known.certificate.digest
        if entry.revision < known.record.revision or (same and entry.revision == known.record.revision):
            return None
        if not self.may_change(entry.id, now) and (entry.revision != REVOKED or known.revoked):
            self.counts["too many records of one relay"] += 1
            return None
        return Parts.RECORD if same else Parts.BOTH

    def _fetch(self, peer: bytes, state: Peer, entries: Sequence[ListEntry], now: float) -> None:
        wanted: dict[Parts, list[bytes]] = {Parts.BOTH: [], Parts.RECORD: []}
        for entry in entries:
            what = self._wanted(state, entry, now)
            if what is not None:
                if not state.documents.take(now):
                    self.counts["too many documents"] += 1
                    break
                wanted[what].append(entry.id)
                self._fetching[entry.id] = now + FETCH_TIME
        for what, ids in wanted.items():
            ids.sort()
            for start in range(0, len(ids), MAX_FETCH_IDS):
                state.queue.append(DirFetch(tuple(ids[start : start + MAX_FETCH_IDS]), what))
        self._next(peer, state)

    def _next(self, peer: bytes, state: Peer) -> None:
        if state.request is None and state.queue:
            state.request = state.queue.popleft()
            self.out.append(Ask(peer, state.request))

    def fetched(self, peer: bytes, docs: DirDocs | None, now: float) -> None:
        """Take the answer to `Ask`; None when there is none."""
        state = self._peer(peer)
        request, state.request = state.request, None
        if request is None:  # the peer was forgotten meanwhile
            return
        if docs is None:
            for one in (request, *state.queue):
                self._release(one.ids)
            state.queue.clear()
            self.hurry(now)  # others have it, too
            return
        got = {one.id for one in docs.documents}
        if not got.issubset(request.ids):
            self._release(request.ids)
            self._bad(peer, state, "documents nobody asked for", now)
            return
        rest = tuple(relay_id for relay_id in request.ids if relay_id not in got)
        if rest:
            state.queue.appendleft(DirFetch(rest, request.what))
        held = tuple(one for one in docs.documents if one.record)
        self._release([one.id for one in docs.documents if not one.record])
        if held:
            state.empty_words = 0
            self._check(peer, held)
        else:
            state.empty_words += 1
            self.counts["told of what it does not have"] += 1
            if state.empty_words >= EMPTY_WORDS:
                state.muted_until = now + MUTED
                state.queue.clear()
        self._next(peer, state)

    def _check(self, peer: bytes, documents: tuple[Documents, ...]) -> None:
        self._before.update((one.id, self.directory.held(one.id)) for one in documents)
        self.out.append(Check(peer, documents))

    def _release(self, ids: Sequence[bytes]) -> None:
        for relay_id in ids:
            self._fetching.pop(relay_id, None)

    def _take_news(self, peer: bytes, state: Peer, news: Sequence[News], now: float) -> None:
        checked: list[Documents] = []
        fetched: list[ListEntry] = []
        for one in news:
            known = self.directory.held(one.id)
            if known is not None and one.revision <= known.record.revision:
                self.rumours.heard_again(one.id, one.revision)
                if one.revision < known.record.revision or one.record == known.record_raw or known.revoked:
                    continue
            if self._fetching.get(one.id, now) > now or state.refused.has(one.id, one.revision, now):
                continue
            if known is not None and not self.may_change(one.id, now) and one.revision != REVOKED:
                self.counts["too many records of one relay"] += 1
            elif not one.certificate and (known is None or one.digest != known.certificate.digest):
                fetched.append(ListEntry(one.id, one.digest, one.revision))
            elif not state.documents.take(now):
                self.counts["too many documents"] += 1
            else:
                self._fetching[one.id] = now + FETCH_TIME
                checked.append(Documents(one.id, one.certificate, one.record))
        if checked:
            self._check(peer, tuple(checked))
        if fetched:
            self._fetch(peer, state, sorted({one.id: one for one in fetched}.values(), key=lambda one: one.id), now)

    def took(
        self,
        peer: bytes,
        documents: Sequence[Documents],
        results: Sequence[Descriptor | RemoteProtocolError],
        now: float,
    ) -> None:
        """What became of the documents of `Check`: for each what is in the list now, or why it was refused."""
        state = self._peer(peer)
        before = [self._before.pop(one.id, result) for one, result in zip(documents, results, strict=True)]
        for one, result, known in zip(documents, results, before, strict=True):
            self._fetching.pop(one.id, None)
            if isinstance(result, Descriptor):
                if result is not known:  # else the peer gave us what we had, and the relay has changed nothing
                    self._changes.take(one.id, now)
                    self.rumours.add(one.id, now)
                continue
            state.refused.note(one.id, revision_of(one.record), now)
            self.counts["refused"] += 1
            if isinstance(result, CryptoError) or (
                isinstance(result, WireError) and one.record[2:3] == bytes([SCHEMA])
            ):
                self._bad(peer, state, result.reason, now)
                return

    def _bad(self, peer: bytes, state: Peer, reason: str, now: float) -> None:
        """What no honest relay does."""
        state.muted_until = now + MUTED
        for one in state.queue:
            self._release(one.ids)
        state.queue.clear()
        self.partners.lost(peer, now)
        self.out.append(Drop(peer, reason))
