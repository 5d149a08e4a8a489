"""Finds out a relay's own addresses, and has other relays test them before they are published.

Where an address has `auto` for its IP address, most of the relays that are asked decide what it is. Then other relays
dial each address (docs/protocol.md, "Reachability"; docs/decisions/015-reachability.md says why it is like this).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from backrooms.interfaces import Rng
from backrooms.netdir.directory import Directory
from backrooms.netdir.network import NetworkFile
from backrooms.netdir.ownaddress import OwnAddress, family, subnet
from backrooms.netdir.policy import is_private
from backrooms.node.channels import Channels
from backrooms.node.dialback import DialBack
from backrooms.node.logs import Seldom
from backrooms.node.sightings import ENOUGH, Sightings
from backrooms.node.testers import Answer, Testers
from backrooms.node.timers import Timers
from backrooms.wire.reach import ReachStatus
from backrooms.wire.records import Address

log = Logger()

TESTERS = 2
"""Relays that must have reached an address, as long as there are that many that can tell."""
DENIALS = 3
"""Relays that did not reach an address, with none that did, after which no more are asked for now."""
MAX_ASKED = 8
"""Relays asked in one round, at most."""
DOUBTS = 6
"""Relays asked, as long as there are that many, before we believe that our IP address has changed."""
RETRY_FIRST = 1.0
RETRY_LAST = 300.0
"""Seconds until the next round while there is something open: doubled each time."""
RETEST = 1800.0
"""Seconds between tests of an address that was reached."""
LOOK = 300.0
"""Seconds between questions where we are seen, when an address depends on it."""
WARN_INTERVAL = 6 * 3600.0
"""Seconds between warnings about the same address."""


class Verdict(Enum):
    """What is known of an address."""

    UNTESTED = "untested"
    REACHABLE = "reachable"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class AddressState:
    """One of our addresses, for people."""

    configured: str
    """As in `relay.addresses`."""
    address: str
    """The address; empty while it is not found out."""
    verdict: Verdict
    published: bool
    reached_by: int
    """Relays that reached it, in the last test."""
    missed_by: int
    """Relays that did not."""
    error: str
    """Why one of them did not, or did not try, in its words."""
    seen: str
    """The IP address that most relays see us at, in this family; empty if not known."""


class _Own:
    """One of our addresses."""

    def __init__(self, wanted: OwnAddress) -> None:
        self.wanted = wanted
        self.address = wanted.fixed
        self.alone = False
        """There was no other relay that has an address of its family, and so could test it."""
        self.verdict = Verdict.UNTESTED
        self.reached_by = self.missed_by = 0
        self.error = ""
        self.test_at = 0.0
        """When the next test is due."""

    def move(self, address: Address) -> None:
        """It is another one now, of which nothing is known."""
        self.address = address
        self.alone = False
        self.verdict = Verdict.UNTESTED
        self.reached_by = self.missed_by = 0
        self.error = ""
        self.test_at = 0.0

    @property
    def is_testable(self) -> bool:
        """Whether it can be dialled; a transport without IP addresses cannot be tested in this way."""
        return self.wanted.family != 0 and self.address is not None


class Reachability:
    """The addresses of this relay. `assume`: take it for granted that others reach them."""

    def __init__(
        self,
        timers: Timers,
        channels: Channels,
        directory: Directory,
        network: NetworkFile,
        rng: Rng,
        addresses: Sequence[str],
        assume: bool = False,
    ) -> None:
        """`addresses` are those of the configuration; `ValueError` says which is wrong."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when `addresses()` has changed."""
        self._timers = timers
        self._rng = rng
        self._assume = assume
        self._is_local = network.is_local
        self._named = [Address.parse(one.address) for one in network.contacts if one.id == channels.my_id]
        """Where the network file says that we are: everybody dials that, published or not."""
        self._own = [_Own(OwnAddress.parse(text)) for text in addresses]
        for own in self._own:
            self._begin_with_name(own)
        self._families = sorted({own.wanted.family for own in self._own if own.wanted.fixed is None})
        """IP families in which our address is to be found out."""
        self._seen: dict[int, str] = {}
        self._last = self.addresses()
        self._pause = RETRY_FIRST
        self._call: Any = None
        self._warned = Seldom(WARN_INTERVAL)
        self._stopped = False
        self._testers = Testers(timers, channels, directory, network, rng)
        self._dialback = DialBack(timers, channels, self._is_local)

    def _begin_with_name(self, own: _Own) -> None:
        """Until others tell, the network file's word is good enough for `auto`."""
        wanted = own.wanted
        for place in self._named if own.address is None else ():
            if (place.transport, place.port, family(place.host)) == (wanted.transport, wanted.port, wanted.family):
                own.address = place

    def start(self) -> None:
        """Begin to ask and to test."""
        self._later(0.0)

    def stop(self) -> None:
        """Ask nothing more, answer nothing more."""
        self._stopped = True
        if self._call is not None:
            self._call.cancel()
        self._testers.stop()
        self._dialback.stop()

    def addresses(self) -> tuple[str, ...]:
        """What may be published now, each address once."""
        return tuple(dict.fromkeys(str(own.address) for own in self._own if self._is_good(own)))

    def _is_good(self, own: _Own) -> bool:
        if own.address is None:
            return False
        if self._assume or not own.is_testable or own.address in self._named:
            return True
        return own.verdict is Verdict.REACHABLE or (own.verdict is Verdict.UNTESTED and own.alone)

    def reachability(self) -> list[AddressState]:
        """All our addresses and what is known of them, in the order of the configuration."""
        return [
            AddressState(
                own.wanted.text,
                str(own.address or ""),
                own.verdict,
                self._is_good(own),
                own.reached_by,
                own.missed_by,
                own.error,
                self._seen.get(own.wanted.family, ""),
            )
            for own in self._own
        ]

    # rounds

    def _later(self, seconds: float) -> None:
        if not self._stopped:
            self._call = self._timers.at(self._timers.now() + seconds, self._begin)

    def _begin(self) -> None:
        def failed(failure: Failure) -> None:
            log.failure("bug while testing our addresses", failure)
            self._later(RETRY_LAST)

        Deferred.fromCoroutine(self._go_round()).addErrback(failed)

    async def _go_round(self) -> None:
        now = self._timers.now()
        for own in self._own:
            own.alone = own.alone or not self._testers.known(own.wanted.family)
        self._changed()
        for kind in self._families:
            await self._look(kind)
        if not self._assume and not self._stopped:
            due = [own for own in self._own if own.is_testable and own.test_at <= now]
            await gatherResults([Deferred.fromCoroutine(self._test(own)) for own in due], consumeErrors=True)
        self._changed()
        self._later(self._until_next())

    def _until_next(self) -> float:
        """Seconds until the next round."""
        waits = [own.test_at - self._timers.now() for own in self._own if own.is_testable and not self._assume]
        if any(own.address is None for own in self._own) or any(wait <= 0 for wait in waits):
            pause = self._pause
            self._pause = min(self._pause * 2, RETRY_LAST)
            return self._vary(pause)
        self._pause = RETRY_FIRST
        if self._families:
            waits.append(self._vary(LOOK))
        return min(waits, default=RETEST)

    def _vary(self, seconds: float) -> float:
        """Somewhat more or less, so that relays which started together do not stay together."""
        return seconds * self._rng.uniform(0.75, 1.25)

    def _changed(self) -> None:
        addresses = self.addresses()
        if addresses != self._last and not self._stopped:
            self._last = addresses
            self.on_change()

    # where we are seen

    async def _look(self, kind: int) -> None:
        """Find out our IP address of a family, and put it where it belongs."""
        mine = [own for own in self._own if own.wanted.fixed is None and own.wanted.family == kind]
        known = {own.address.host for own in mine if own.address is not None}
        testers = self._testers.choose(kind, self._subnets())
        sightings = Sightings()
        seen, asked, wanted, complete = None, 0, 0, False
        while not (complete or self._stopped) and asked < (wanted if seen is not None else MAX_ASKED):
            answers = await self._testers.ask(testers, ENOUGH, None)
            asked += len(answers)
            complete = len(answers) < ENOUGH
            self._note(sightings, answers)
            seen = sightings.elect(complete)
            wanted = DOUBTS if known and seen not in known else 0
        if seen is None or self._stopped:
            return
        self._seen[kind] = seen
        for own in mine:
            if own.address != own.wanted.at(seen):
                if own.address is not None:
                    log.info("this machine has a new address: {seen}", seen=seen)
                own.move(own.wanted.at(seen))
                self._pause = RETRY_FIRST

    def _note(self, sightings: Sightings, answers: Sequence[Answer]) -> None:
        """Count what relays say where they see us, if it can be true."""
        for answer in answers:
            if family(answer.seen) == family(answer.tester.address.host) and (
                self._is_local or not is_private(answer.seen)
            ):
                sightings.note(answer.tester.id, answer.tester.subnet, answer.seen)

    def _subnets(self) -> set[str]:
        """Those that we are in: who is there, too, sees us otherwise than the world does."""
        hosts = [own.address.host for own in self._own if own.address is not None]
        return {subnet(host) for host in hosts if host is not None}

    # testing

    async def _test(self, own: _Own) -> None:
        """Have an address dialled by others, until enough of them have reached it or have not."""
        assert own.address is not None
        testers = self._testers.choose(own.wanted.family, self._subnets())
        answers: list[Answer] = []
        reached = missed = 0
        while reached < TESTERS and (reached or missed < DENIALS) and len(answers) < MAX_ASKED and not self._stopped:
            more = await self._testers.ask(testers, TESTERS - reached, own.address)
            if not more:
                break
            answers += more
            statuses = [answer.status for answer in answers]
            reached, missed = statuses.count(ReachStatus.REACHED), statuses.count(ReachStatus.UNREACHED)
        if self._stopped:
            return
        sightings = Sightings()
        self._note(sightings, answers)
        self._seen[own.wanted.family] = sightings.elect(complete=True) or self._seen.get(own.wanted.family, "")
        self._judge(own, reached, missed, answers)
        self._changed()

    def _judge(self, own: _Own, reached: int, missed: int, answers: Sequence[Answer]) -> None:
        """Draw the conclusion; where nobody could tell, what was known stays.

        That an address was reached is proven by the link that came; that it was not is somebody's word. So half of
        those who tried are enough.
        """
        own.reached_by, own.missed_by = reached, missed
        own.error = next((answer.text for answer in answers if answer.text), "")
        if reached >= TESTERS or (reached and reached >= missed):
            if own.verdict is not Verdict.REACHABLE:
                log.info("{address} can be reached (tested by {count})", address=str(own.address), count=reached)
            own.verdict = Verdict.REACHABLE
        elif missed:
            own.verdict = Verdict.UNREACHABLE
            self._warn(own)
        elif any(answer.status == ReachStatus.REFUSED for answer in answers):
            self._warn(own)
        if reached >= TESTERS:
            own.test_at = self._timers.now() + self._vary(RETEST)

    def _warn(self, own: _Own) -> None:
        """Say what is wrong, and what to do."""
        if not self._warned.is_due(str(own.address), self._timers.now()):
            return
        seen = self._seen.get(own.wanted.family, "")
        assert own.address is not None
        if seen and subnet(seen, 32, 64) != subnet(own.address.host or seen, 32, 64):
            log.warn(
                "relays see this machine at {seen}, so they cannot test {address}: correct relay.addresses "
                "({auto} finds it out), or set relay.assume_reachable if the address is right",
                seen=seen,
                address=str(own.address),
                auto=f"{own.wanted.transport}:auto{'6' if own.wanted.family == 6 else ''}:{own.wanted.port}",
            )
        else:
            log.warn(
                "{who} can reach {address} from outside (tested by {count}: {error}): are you behind NAT? "
                "Forward TCP port {port} to this machine, or set relay.addresses",
                who="hardly anybody" if own.reached_by else "nobody",
                address=str(own.address),
                count=own.reached_by + own.missed_by,
                error=own.error or "no reason given",
                port=own.wanted.port,
            )
