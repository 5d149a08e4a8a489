"""A relay under attack, in simulated time: floods, silence, slowness and garbage, and an honest peer meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Protocol

from backrooms.errors import CircuitError
from backrooms.node.admission import (
    ADDRESS_RATE,
    HANDSHAKE_SECONDS,
    MAX_SIGNING,
    PENDING_FULL,
    SUBNET_RATE,
    TIMEOUT,
)
from backrooms.node.channels import Channels
from backrooms.node.link import Link
from tests.node.crafted import Crafted, hop
from tests.simnet.node import RELAY_PORT, SimNetwork, SimNode
from tests.transport.loopback import client_hello

SUBNETS = 8


class Processor:
    """CPU time in a simulation: between two looks at the clock `step` seconds of it are gone."""

    def __init__(self, step: float) -> None:
        self.used = 0.0
        self.step = step

    def __call__(self) -> float:
        self.used += self.step
        return self.used


class Hostile(Protocol):
    """Says `words`, then a byte of `more` each second."""

    def __init__(self, attack: Attack, words: bytes, more: bytes) -> None:
        self._attack = attack
        self._words = words
        self._more = more
        self.lost_after: float | None = None
        self._began = attack.network.net.now

    def connectionMade(self) -> None:
        tcp: Any = self.transport
        tcp.write(self._words)
        self._drip()

    def _drip(self) -> None:
        tcp: Any = self.transport
        if self._more and self.lost_after is None:
            tcp.write(self._more[:1])
            self._more = self._more[1:]
            self._attack.reactor.callLater(1.0, self._drip)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost_after = self._attack.network.net.now - self._began


class Attack:
    """A machine with many addresses that is against relay 0."""

    def __init__(self, network: SimNetwork) -> None:
        self.network = network
        self.target = network.relays[0]
        self.addresses = [f"172.16.{subnet}.{1 + number}" for number in range(5) for subnet in range(SUBNETS)]
        self.reactor = network.net.host("evil", *self.addresses).reactor
        self.made: list[Hostile] = []

    @property
    def channels(self) -> Channels:
        return self.target.node.channels

    def connect(self, words: bytes = b"", more: bytes = b"", number: int = 0) -> Hostile:
        hostile = Hostile(self, words, more)
        self.made.append(hostile)
        factory = ClientFactory.forProtocol(lambda: hostile)
        factory.noisy = False
        source = (self.addresses[number % len(self.addresses)], 0)
        self.reactor.connectTCP(self.target.host.address, RELAY_PORT, factory, 10, source)
        return hostile

    def flood(self, words: bytes, rate: float, seconds: float) -> None:
        """So many connections per second from all addresses in turn, in the background."""
        end = self.network.net.now + seconds

        def go_on() -> None:
            for _ in range(round(rate / 50)):
                self.connect(words, number=len(self.made))
            if self.network.net.now < end:
                self.reactor.callLater(1 / 50, go_on)

        go_on()


@pytest.fixture
def attack(relays: SimNetwork) -> Attack:
    made = Attack(relays)
    made.target.node.timers.cpu = Processor(0.00125)
    return made


def seconds_to_link(network: SimNetwork, node: SimNode, limit: float = 12.0) -> float:
    """How long a new link of `node` to relay 0 takes."""
    began = network.net.now
    address = f"tls:{network.relays[0].host.address}:{RELAY_PORT}"
    opening = Deferred.fromCoroutine(node.node.channels.connect(address, network.relays[0].id))
    link: Link = network.net.run_until(opening, limit)
    assert link.open
    return network.net.now - began


@pytest.mark.parametrize("words", [b"", b"hello"], ids=["silent", "TLS"])
def test_an_honest_peer_links_while_others_flood(relays: SimNetwork, attack: Attack, words: bytes) -> None:
    """At ten times what each subnet may do; all handshakes that get their turn are real ones."""
    processor = attack.target.node.timers.cpu = Processor(0.006)
    attack.flood(words and client_hello(), 10 * 20.0 * SUBNETS, 2.5)
    relays.net.run(1.5)
    node = relays.relays[3]
    times = [seconds_to_link(relays, node) for _ in range(3)]
    assert max(times) < 2.0
    assert len(attack.channels.admission) <= 512
    refused = attack.channels.refused
    assert refused[SUBNET_RATE] > 1_000
    assert refused[PENDING_FULL] > 100
    assert processor.used < 2 * (0.5 + 0.25 * 6), "every second look at the clock is charged"
    relays.net.run(HANDSHAKE_SECONDS + 5)
    assert len(attack.channels.admission) == 0
    assert seconds_to_link(relays, node) < 1.0


def test_who_floods_from_one_address_harms_itself(relays: SimNetwork, attack: Attack) -> None:
    for _ in range(500):
        attack.connect(client_hello())
    relays.net.run(0.2)
    assert attack.channels.refused[ADDRESS_RATE] == 470
    assert seconds_to_link(relays, relays.relays[3]) < 1.0
    assert sum(one.lost_after is not None for one in attack.made) >= 470
    relays.net.run(20)


TLS_START = b"\x16\x03\x01\x05\xa2"


@pytest.mark.parametrize(
    ("words", "more", "least", "most"),
    [
        (b"", b"", HANDSHAKE_SECONDS, HANDSHAKE_SECONDS),
        (TLS_START, bytes(100), HANDSHAKE_SECONDS, HANDSHAKE_SECONDS),
        (b"SSH-2.0-", b"OpenSSH" * 10, 0, 0),
        (TLS_START + bytes(2_000), b"", 0, 0),
        (bytes(4_096), b"", 0, 0),
    ],
    ids=["silence", "a byte a second", "another protocol", "garbage in a record", "a cell"],
)
def test_a_hostile_connection_is_gone_in_time(
    relays: SimNetwork, attack: Attack, words: bytes, more: bytes, least: float, most: float
) -> None:
    hostile = attack.connect(words, more)
    relays.net.run(HANDSHAKE_SECONDS + 2)
    assert hostile.lost_after is not None
    assert least - 0.1 <= hostile.lost_after <= most + 1.0
    assert len(attack.channels.admission) == 0
    assert attack.channels.refused.total() == 1


class Plain(Protocol):
    """The inside of a TLS connection of somebody who does not speak our protocol."""

    def __init__(self, begin: Callable[[Plain], None]) -> None:
        self._begin = begin
        self.lost = False

    def connectionMade(self) -> None:
        self._begin(self)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True


@pytest.mark.parametrize("behaviour", ["silent", "slow", "zeros"])
def test_who_shows_nothing_behind_tls_is_sent_away(
    relays: SimNetwork, attack: Attack, behaviour: str, said: list[str]
) -> None:
    """One deadline for TLS and the link handshake: ten seconds from accept."""
    transport = attack.channels._transports["tls"]
    endpoint = transport.client_endpoint(attack.reactor, f"{attack.target.host.address}:{RELAY_PORT}")

    def begin(plain: Plain) -> None:
        tls: Any = plain.transport
        if behaviour == "zeros":
            tls.write(bytes(4_096))
        elif behaviour == "slow":
            tls.write(b"\0")
            if not plain.lost:
                attack.reactor.callLater(1.0, begin, plain)

    factory = ClientFactory.forProtocol(lambda: Plain(begin))
    began = relays.net.now
    plain = relays.net.run_until(endpoint.connect(factory), 5)
    relays.net.run_until(lambda: plain.lost, 15)
    lasted = relays.net.now - began
    refused = attack.channels.refused
    if behaviour == "zeros":
        assert lasted < 1
        assert refused.total() == 1
    else:
        assert lasted == pytest.approx(HANDSHAKE_SECONDS, abs=1)
        assert dict(refused) == {TIMEOUT: 1}
        assert len([line for line in said if line.endswith("not open within 10 s")]) == 1
    relays.net.run(2)


def test_refusals_are_counted_and_seldom_told(relays: SimNetwork, attack: Attack, said: list[str]) -> None:
    said.clear()
    for number in range(300):
        attack.connect(number=number % 3)
    relays.net.run(15)
    assert attack.channels.refused[ADDRESS_RATE] > 200
    lines = [line for line in said if "refused" in line]
    assert len(lines) == len(set(lines)) <= 3
    assert not [line for line in lines if "172.16" in line]


def test_signatures_of_accepted_links_are_counted(relays: SimNetwork, attack: Attack, clean: Any) -> None:
    """And a key store that fails costs the link, not a place among those who sign."""

    def fail(message: bytes, algorithms: Any) -> Any:
        raise ZeroDivisionError("a broken key store")

    signer: Any = attack.channels._signer
    whole, broken = signer._keystore, type("Broken", (), {"sign": staticmethod(fail)})
    signer._keystore = broken
    for _ in range(2 * MAX_SIGNING):
        with pytest.raises(CircuitError):
            seconds_to_link(relays, relays.relays[3])
    assert len(clean.flush(ZeroDivisionError)) == 2 * MAX_SIGNING
    assert attack.channels.admission.signing == 0
    signer._keystore = whole
    assert seconds_to_link(relays, relays.relays[3]) < 1.0


def test_circuits_wait_for_their_share_of_the_cpu(relays: SimNetwork, attack: Attack) -> None:
    """A crowd of CREATEs is served at the rate of its share; links have their own."""
    target, client = attack.target, relays.client
    client.start()
    relays.net.run_until(lambda: len(client.node.directory) == 6, 60)
    relay = target.node.relay
    assert relay is not None
    began, done = relays.net.now, relay.handshakes
    crafted = [Crafted(relays, [hop(target)]) for _ in range(255)]
    relays.net.run(0.2)
    assert 190 <= relay.handshakes - done <= 255
    share = target.node.channels.admission.circuits
    share.charge(0.5, relays.net.now)
    waiting = Crafted(relays, [hop(target)])
    asked = relays.net.now
    assert seconds_to_link(relays, relays.relays[3]) < 0.5
    relays.net.run_until(lambda: waiting.built, 20)
    assert 1.0 < relays.net.now - asked < 5.0
    relays.net.run_until(lambda: all(one.built for one in crafted), 20)
    assert relays.net.now - began < 10
