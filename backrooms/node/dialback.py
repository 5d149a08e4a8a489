"""Dials relays that ask whether others reach them, and tells where we see them (docs/protocol.md, "Reachability").

Nobody can have a third party dialled: an address is dialled only if the relay that asks is seen at its IP address on a
link on which it has proven who it is.
"""

from __future__ import annotations

from ipaddress import ip_address

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from backrooms.errors import BackroomsError, RemoteProtocolError
from backrooms.netdir.ownaddress import family, plain_ip, subnet
from backrooms.netdir.policy import is_private
from backrooms.node.buckets import Buckets
from backrooms.node.channels import Channels
from backrooms.node.link import Link
from backrooms.node.timers import Timers
from backrooms.wire.documents import MAX_STATUS_TEXT
from backrooms.wire.reach import ReachResult, ReachStatus, ReachTest
from backrooms.wire.records import Address

log = Logger()

DIAL_TIME = 10.0
"""Seconds a link to the asker may take to come up."""
TESTS = 8
"""Tests that may be under way at one time."""
TESTS_PER_SUBNET = 2
"""The same for one IPv4 /24 or IPv6 /48. On a local network all relays may have one address."""
TEST_RATE = 0.1
"""Tests per second that one relay may ask for, once it has used up `TEST_BURST`."""
TEST_BURST = 8
ASKERS = 1024
"""Relays whose tests are counted."""
ANSWERS_WAITING = 64
"""Control cells that wait on a link, at most, when a further test is answered."""


class DialBack:
    """The tests that others ask us for. `is_local`: the network is one of private addresses."""

    def __init__(self, timers: Timers, channels: Channels, is_local: bool) -> None:
        self._timers = timers
        self._channels = channels
        self._is_local = is_local
        self._allowed = Buckets(TEST_RATE, TEST_BURST, ASKERS)
        self._running: dict[Deferred[Link], str] = {}
        """Attempts at askers, and the subnet that each goes to."""
        self._stopped = False
        channels.handlers[ReachTest.TYPE] = self._asked

    def stop(self) -> None:
        """Answer nothing more. The attempts end with the links."""
        self._stopped = True

    def _asked(self, link: Link, payload: bytes) -> None:
        if self._stopped or link.channel.mux.control_waiting > ANSWERS_WAITING:
            return  # it asks and does not read, or the link is busy: it may ask again
        try:
            test = ReachTest.decode(payload)
        except RemoteProtocolError as error:
            link.driver.fail(error)
            return
        relay_id, address = link.peer_id, test.address
        if relay_id is None:
            _answer(link, test, ReachStatus.REFUSED, "only relays are tested")
        elif address is None:
            _answer(link, test, ReachStatus.SEEN)
        elif refusal := self._refusal(relay_id, address):
            _answer(link, test, ReachStatus.REFUSED, refusal)
        elif not self._has_room(relay_id, address):
            _answer(link, test, ReachStatus.BUSY)
        else:
            self._allowed.take(relay_id, self._timers.now())
            dialling = Deferred.fromCoroutine(self._dial(link, relay_id, test, address))
            dialling.addErrback(lambda failure: log.failure("bug while dialling back", failure))

    def _refusal(self, relay_id: bytes, address: Address) -> str:
        """Why this relay may not have this address dialled; empty if it may."""
        if address.host is None:
            return "an address of an unknown kind"
        if not self._is_local and is_private(address.host):
            return "a private address"
        seen = [plain_ip(link.peer_host) for link in self._channels.links if link.open and link.peer_id == relay_id]
        if not any(ip and self._is_same_host(ip, address.host) for ip in seen):
            return "you are not seen at this address"
        return ""

    def _is_same_host(self, seen: str, wanted: str) -> bool:
        """Whether who comes from `seen` may be thought to own `wanted`: the same address, or one of its IPv6 /64."""
        if family(seen) != family(wanted):
            return False
        if self._is_local and ip_address(seen).is_loopback and ip_address(wanted).is_loopback:
            return True  # only this machine comes from there
        return subnet(seen, 32, 64) == subnet(wanted, 32, 64)

    def _has_room(self, relay_id: bytes, address: Address) -> bool:
        if len(self._running) >= TESTS or not self._allowed.has(relay_id, self._timers.now()):
            return False
        beside = list(self._running.values()).count(_crowd(address))
        return self._is_local or beside < TESTS_PER_SUBNET

    async def _dial(self, link: Link, relay_id: bytes, test: ReachTest, address: Address) -> None:
        end = self._timers.now() + DIAL_TIME
        attempt = Deferred.fromCoroutine(self._channels.connect(str(address), relay_id))
        self._running[attempt] = _crowd(address)
        link.held_until = max(link.held_until, end)
        timeout = self._timers.at(end, attempt.cancel)
        status, text = ReachStatus.REACHED, ""
        try:
            # The link stays as any other does: it may be the better one of two, and carry circuits by now.
            await attempt
        except BackroomsError as error:
            late = self._timers.now() >= end
            text = f"no link within {DIAL_TIME:.0f} s" if late else str(error)
            status = ReachStatus.UNREACHED
        finally:
            timeout.cancel()
            del self._running[attempt]
        if link.open and not self._stopped:
            _answer(link, test, status, text)


def _answer(link: Link, test: ReachTest, status: ReachStatus, text: str = "") -> None:
    printable = "".join(filter(str.isprintable, text)).encode("ascii", "replace")[:MAX_STATUS_TEXT].decode()
    result = ReachResult(test.nonce, status, plain_ip(link.peer_host), printable)
    link.channel.send_message(result.TYPE, result.encode())


def _crowd(address: Address) -> str:
    """Whom a test counts against besides the asker."""
    assert address.host is not None
    return subnet(address.host, 24, 48)
