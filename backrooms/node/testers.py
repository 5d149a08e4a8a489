"""The relays that may be asked to test ours: which of them, over which link, and what they answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from backrooms.errors import BackroomsError, RemoteProtocolError
from backrooms.interfaces import Rng
from backrooms.netdir.directory import Directory
from backrooms.netdir.network import NetworkFile
from backrooms.netdir.ownaddress import family, plain_ip, subnet
from backrooms.netdir.policy import is_private
from backrooms.node.channels import Channels
from backrooms.node.dialback import DIAL_TIME
from backrooms.node.link import Link
from backrooms.node.timers import Timers
from backrooms.wire.reach import ReachResult, ReachStatus, ReachTest
from backrooms.wire.records import Address

log = Logger()

TEST_TIME = DIAL_TIME + 5.0
"""Seconds for the answer to a test."""
LOOK_TIME = 5.0
"""Seconds for the answer to the question where one is seen."""


@dataclass(frozen=True, slots=True)
class Tester:
    """A relay that may be asked."""

    id: bytes
    address: Address
    """Where it can be dialled, in the IP family that it is asked about."""

    @property
    def subnet(self) -> str:
        """The /16 (IPv6: /32) that it is in."""
        assert self.address.host is not None
        return subnet(self.address.host)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one of them said; the result is None when it said nothing that counts."""

    tester: Tester
    result: ReachResult | None

    @property
    def status(self) -> int | None:
        return self.result.status if self.result is not None else None

    @property
    def text(self) -> str:
        return self.result.text if self.result is not None else ""

    @property
    def seen(self) -> str:
        """Our IP address as it sees it; empty if it does not tell."""
        return self.result.seen if self.result is not None else ""


@dataclass(slots=True)
class _Question:
    link: Link
    before: list[Link]
    """The links there were when it was asked."""
    answer: Deferred[ReachResult]


class Testers:
    """Asks other relays of the network."""

    def __init__(
        self, timers: Timers, channels: Channels, directory: Directory, network: NetworkFile, rng: Rng
    ) -> None:
        self._timers = timers
        self._channels = channels
        self._directory = directory
        self._rng = rng
        self._is_local = network.is_local
        self._contacts = {
            contact.id: Address.parse(contact.address) for contact in network.contacts if contact.id != channels.my_id
        }
        self._questions: dict[int, _Question] = {}
        self._stopped = False
        channels.handlers[ReachResult.TYPE] = self._answered
        channels.on_gone.append(self._gone)

    def stop(self) -> None:
        """Wait for no answer any more."""
        self._stopped = True
        for nonce in list(self._questions):
            self._fail(nonce, "this node is stopping")

    def known(self, kind: int) -> bool:
        """Whether any other relay has an address of an IP family, as far as we know."""
        listed = (relay.id for relay in self._directory.relays())
        return any(self._address(relay_id, kind) is not None for relay_id in chain(self._contacts, listed))

    def choose(self, kind: int, subnets: Iterable[str]) -> Iterator[Tester]:
        """Relays with an address of an IP family, at random; those of `subnets`, and all but one of each other, last.

        A link with us gives nobody a better chance: who wants to be asked could make one.
        """
        ids = list(dict.fromkeys([*self._contacts, *(relay.id for relay in self._directory.relays())]))
        used = set(subnets)
        later: list[Tester] = []
        while ids:
            place = self._rng.randrange(0, len(ids))
            ids[place], ids[-1] = ids[-1], ids[place]
            relay_id = ids.pop()
            address = self._address(relay_id, kind)
            if address is None:
                continue
            tester = Tester(relay_id, address)
            if tester.subnet in used:
                later.append(tester)
            else:
                used.add(tester.subnet)
                yield tester
        yield from later

    def _address(self, relay_id: bytes, kind: int) -> Address | None:
        """Where another relay can be dialled in an IP family."""
        if relay_id == self._channels.my_id:
            return None
        relay = self._directory.get(relay_id)
        for address in relay.addresses if relay is not None else (self._contacts[relay_id],):
            if address.host is not None and (":" in address.host) == (kind == 6):
                return address if self._is_local or not is_private(address.host) else None
        return None

    async def ask(self, testers: Iterator[Tester], count: int, test: Address | None) -> list[Answer]:
        """Ask the next `count` of these at once; what each answered. Empty when there is nobody left."""
        asked = [Deferred.fromCoroutine(self._ask(one, test)) for one in islice(testers, count)]
        answers: list[Answer] = await gatherResults(asked, consumeErrors=True)
        return answers

    async def _ask(self, tester: Tester, test: Address | None) -> Answer:
        nonce = int.from_bytes(self._rng.randbytes(8), "big")
        try:
            link = await self._link(tester)
            if self._stopped or not link.open:
                raise BackroomsError("the link is closed")
            question = self._questions[nonce] = _Question(link, list(self._channels.links), Deferred())
            end = self._timers.now() + (LOOK_TIME if test is None else TEST_TIME)
            link.held_until = max(link.held_until, end)
            link.channel.send_message(ReachTest.TYPE, ReachTest(nonce, test).encode())
            timeout = self._timers.at(end, partial(self._fail, nonce, "no answer in time"))
            try:
                result = await question.answer
            finally:
                timeout.cancel()
                del self._questions[nonce]
        except BackroomsError as error:
            log.debug("a relay did not test our address: {error}", error=str(error))
            return Answer(tester, None)
        return Answer(tester, result)

    async def _link(self, tester: Tester) -> Link:
        """A link to a relay in the IP family that it is asked about."""
        links = [link for link in self._channels.links if link.open and link.peer_id == tester.id]
        if not links:
            links = [await self._channels.link(tester.id)]
        for link in links:
            if family(plain_ip(link.peer_host)) == family(tester.address.host):
                return link
        return await self._channels.connect(str(tester.address), tester.id)

    def _answered(self, link: Link, payload: bytes) -> None:
        try:
            result = ReachResult.decode(payload)
        except RemoteProtocolError as error:
            link.driver.fail(error)
            return
        question = self._questions.get(result.nonce)
        if question is None or question.link is not link or question.answer.called:
            return  # it comes too late
        if result.status == ReachStatus.REACHED and not self._has_come(question):
            self._fail(result.nonce, "it says that it reached us, but no link of it came")
        else:
            question.answer.callback(result)

    def _has_come(self, question: _Question) -> bool:
        """Whether the relay has made a link to us since it was asked."""
        return any(
            link.open
            and link.peer_id == question.link.peer_id
            and not link.channel.initiator
            and link not in question.before
            for link in self._channels.links
        )

    def _gone(self, link: Link) -> None:
        for nonce in [nonce for nonce, question in self._questions.items() if question.link is link]:
            self._fail(nonce, "the link was lost")

    def _fail(self, nonce: int, why: str) -> None:
        question = self._questions.get(nonce)
        if question is not None and not question.answer.called:
            question.answer.errback(BackroomsError(why))
