"""The links of a node: how many there are, when they end, and what is said of those that do not come about."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import Factory, Protocol

from backrooms.errors import CircuitError
from backrooms.netdir.network import Contact, NetworkFile
from backrooms.node.channels import BACKOFF_MAX, IDLE_CLOSE
from backrooms.node.clocks import Clocks
from backrooms.node.link import Link
from backrooms.wire.cell import DestroyReason
from tests import keys
from tests.node.conftest import MakeNetwork
from tests.node.crafted import Crafted, hop
from tests.simnet.node import RELAY_PORT, SimNetwork, SimNode


def between(one: SimNode, other: SimNode) -> list[Link]:
    """The links of `one` to `other`."""
    return [link for link in one.node.channels.links if link.peer_id == other.id]


def refused(network: SimNetwork, node: SimNode, relay_id: bytes, limit: float = 30) -> str:
    """Why a node gets no link to a relay."""
    with pytest.raises(CircuitError) as caught:
        network.net.run_until(node.node.channels.link(relay_id), limit)
    return str(caught.value)


# how many


def test_one_link_serves_all_who_ask(relays: SimNetwork) -> None:
    channels, relay = relays.relays[4].node.channels, relays.relays[5]
    asked = [channels.link(relay.id) for _ in range(5)]
    links = {id(relays.net.run_until(one)) for one in asked}
    assert len(links) == 1
    assert relays.net.run_until(channels.link(relay.id)).open


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_links_the_one_opened_by_the_lower_id_stays(relays: SimNetwork, first: int) -> None:
    low, high = sorted((relays.relays[4], relays.relays[5]), key=lambda node: node.id)
    order = [(low, high), (high, low)]
    for node, other in (order[first], order[1 - first]):
        assert not between(node, other)
    waiting = [node.node.channels.link(other.id) for node, other in (order[first], order[1 - first])]
    for one in waiting:
        assert relays.net.run_until(one).open
    relays.net.run(20)
    (mine,), (theirs,) = between(low, high), between(high, low)
    assert mine.channel.initiator
    assert not theirs.channel.initiator
    assert relays.net.run_until(high.node.channels.link(low.id)) is theirs


def test_a_superseded_link_keeps_its_circuits_until_they_end(relays: SimNetwork) -> None:
    relays.hush(gossip=True)
    low, high = sorted((relays.relays[4], relays.relays[5]), key=lambda node: node.id)
    both = [high.node.channels.link(low.id), low.node.channels.link(high.id)]
    old: Link = relays.net.run_until(both[0])
    circuit = Crafted(relays, [hop(low)], old)  # both ends know of it
    circuit.settle()
    assert circuit.built
    relays.net.run_until(both[1])
    relays.net.run(60)
    if old.channel.initiator:
        assert old.superseded_at is not None
    assert old.open
    circuit.close()
    relays.net.run(20)
    assert len(between(high, low)) == 1


class Owner:
    def __init__(self) -> None:
        self.reasons: list[int] = []

    def created(self, handshake: bytes) -> None:
        raise AssertionError("nobody was asked")

    def destroyed(self, reason: int) -> None:
        self.reasons.append(reason)


def test_an_idle_link_is_closed_by_who_opened_it_and_a_used_one_is_not(relays: SimNetwork) -> None:
    relays.hush(gossip=True)
    one, other, third = relays.relays[3:]
    idle = relays.net.run_until(one.node.channels.link(other.id))
    used = relays.net.run_until(one.node.channels.link(third.id))
    used.open_circuit(Owner(), one.host.rng)
    relays.net.run(IDLE_CLOSE - 20)
    assert idle.open
    relays.net.run(60)
    assert not idle.open
    assert used.open
    assert between(other, one) == []


def test_a_lost_link_ends_its_circuits_and_is_dialled_anew(relays: SimNetwork) -> None:
    one, other = relays.relays[3:5]
    link = relays.net.run_until(one.node.channels.link(other.id))
    owner = Owner()
    link.open_circuit(owner, one.host.rng)
    other.host.kill("reset")
    relays.net.run_until(lambda: not link.open)
    assert owner.reasons == [DestroyReason.CHANNEL_CLOSED]
    assert not link.owners
    other.start()
    assert relays.net.run_until(one.node.channels.link(other.id)) is not link


# relays that are not there


def test_a_dead_relay_is_tried_again_with_growing_pauses(relays: SimNetwork) -> None:
    one, dead = relays.relays[3:5]
    dead.host.kill()
    relays.net.run(1)
    attempts: list[float] = []
    endpoint = one.node.channels._transports["tls"].client_endpoint

    def counting(reactor: Any, address: str) -> Any:
        if dead.host.address in address:
            attempts.append(relays.net.now)
        return endpoint(reactor, address)

    one.node.channels._transports["tls"].client_endpoint = counting
    end = relays.net.now + 400
    while relays.net.now < end:  # somebody always wants it
        reason = refused(relays, one, dead.id)
        assert reason.startswith("the connection was refused")
        relays.net.run(0.25)
    pauses = [later - earlier for earlier, later in itertools.pairwise(attempts)]
    assert 6 <= len(pauses) <= 14
    for number, pause in enumerate(pauses):
        least = min(2.0**number, BACKOFF_MAX)
        assert least <= pause <= 1.5 * least + 0.5, pauses
    dead.start()
    relays.net.run(BACKOFF_MAX * 1.5)
    assert relays.net.run_until(one.node.channels.link(dead.id)).open
    assert dead.id not in one.node.channels.resting()


def test_a_relay_that_comes_to_us_ends_the_wait(relays: SimNetwork) -> None:
    one, dead = relays.relays[3:5]
    dead.host.kill()
    for _ in range(6):
        relays.net.run(20)
        refused(relays, one, dead.id)
    assert dead.id in one.node.channels.resting()
    dead.start()
    relays.net.run_until(lambda: one.id in dead.node.directory)
    relays.net.run_until(dead.node.channels.link(one.id))
    assert dead.id not in one.node.channels.resting()
    assert relays.net.run_until(one.node.channels.link(dead.id)).open


def test_an_unknown_relay(relays: SimNetwork) -> None:
    assert "not in the directory" in refused(relays, relays.relays[0], bytes(range(32)))


def test_the_log_says_it_once(relays: SimNetwork, said: list[str]) -> None:
    relays.hush(gossip=True)
    one, dead = relays.relays[3:5]
    dead.host.kill()
    relays.net.run(1)
    said.clear()
    for _ in range(30):
        refused(relays, one, dead.id)
        relays.net.run(2)
    assert len([line for line in said if "no link to relay" in line]) == 1


# peers that are not what they should be


def stranger(network: SimNetwork, folder: Path, network_id: bytes, relay_id: bytes, port: int = RELAY_PORT) -> SimNode:
    """A client on a new host that takes relay 0's address for that of `relay_id`, in another network perhaps."""
    own = folder / "stranger"
    own.mkdir(mode=0o700)
    contact = Contact(relay_id, f"tls:{network.relays[0].host.address}:{port}")
    (own / "network.toml").write_text(NetworkFile("other", network_id, (contact,)).to_toml())
    config = 'socks = []\nhttp = []\n[node]\nnetwork = "network.toml"\n[control]\nlisten = []\n'
    return SimNode(network.net.host("stranger"), own, config, None)


@pytest.mark.parametrize("what", ["network", "identity"])
def test_b5_a_wrong_network_and_a_wrong_identity_are_refused_with_a_reason(
    relays: SimNetwork, tmp_path: Path, said: list[str], what: str
) -> None:
    """The relay proves nothing to who does not know it; both sides say why, once, and nobody hangs."""
    network_id = bytes(32) if what == "network" else keys.NETWORK_ID
    relay_id = relays.relays[0].id if what == "network" else relays.relays[1].id
    node = stranger(relays, tmp_path, network_id, relay_id)
    node.start()
    began = relays.net.now
    said.clear()
    reason = refused(relays, node, relay_id)
    assert relays.net.now - began < 5
    assert "wrong network, id or version?" in reason
    relays.net.run(30)
    assert node.node.channels.links == []
    assert len(node.node.directory) == 0
    assert len([line for line in said if line.startswith("no link to relay")]) == 1
    (line,) = [line for line in said if line.startswith("an incoming link was refused")]
    assert "wrong knock: another network, another relay, or not one of us" in line
    assert relays.relays[0].node.channels.refused.total() > 1, "all are counted"
    relays.net.run_until(node.stop(), 30)


class Plain(Protocol):
    """Accepts, and does one thing with what it is sent."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer

    def dataReceived(self, data: bytes) -> None:
        tcp: Any = self.transport
        if self.answer is None:
            tcp.loseConnection()
        elif self.answer:
            tcp.write(self.answer)


@pytest.mark.parametrize(
    ("answer", "reason", "seconds"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "TLS", 2),
        (None, "during the TLS handshake", 2),
        (b"", "the TLS handshake took over 10 s", 11),
    ],
    ids=["no TLS", "closes", "silent"],
)
def test_something_else_at_the_relays_address(
    relays: SimNetwork, tmp_path: Path, answer: bytes | None, reason: str, seconds: float
) -> None:
    relays.relays[0].host.reactor.listenTCP(443, Factory.forProtocol(lambda: Plain(answer)))
    relay_id = relays.relays[0].id
    node = stranger(relays, tmp_path, keys.NETWORK_ID, relay_id, 443)
    node.start()
    began = relays.net.now
    assert reason in refused(relays, node, relay_id)
    assert relays.net.now - began <= seconds
    relays.net.run_until(node.stop(), 30)


def test_a_relay_that_freezes_during_the_handshake(relays: SimNetwork) -> None:
    one, frozen = relays.relays[3:5]
    frozen.host.freeze()
    began = relays.net.now
    assert "10 s" in refused(relays, one, frozen.id)
    assert relays.net.now - began < 21
    frozen.host.thaw()
    relays.net.run(15)


@pytest.mark.parametrize("after", [0.0, 0.05, 2.0])
def test_a_node_that_stops_gives_up_what_it_dials(relays: SimNetwork, after: float) -> None:
    one, dead = relays.relays[3:5]
    dead.host.kill("silent")
    waiter = one.node.channels.link(dead.id)
    failures: list[Any] = []
    waiter.addErrback(failures.append)
    relays.net.run(after)
    relays.net.run_until(one.node.channels.stop(), 1)
    relays.net.run(0.5)
    assert failures
    calls = [str(call) for call in one.host.reactor.getDelayedCalls()]
    assert not any("failIfNotConnected" in call for call in calls), calls


# clocks


def test_clocks_are_judged_by_most_relays(said: list[str]) -> None:
    clocks = Clocks()
    clocks.note(b"1", 0.0, 0.0)
    clocks.note(b"2", 7200.0, 1.0)
    clocks.note(b"3", 60.0, 2.0)
    assert clocks.skew is None
    (line,) = said
    assert line.startswith("the clock of relay")
    assert line.endswith("+120 minutes off")
    for number in range(8):
        clocks.note(b"behind%d" % number, -86400.0, 3.0 + number)
    assert clocks.skew == -86400.0
    (line,) = [line for line in said if line.startswith("this machine's clock")]
    assert "1440 minutes ahead of those of relays" in line
    clocks.note(b"behind0", -86400.0, 20.0)
    assert len([line for line in said if line.startswith("this machine's clock")]) == 1, "said once"


def test_a_node_with_a_wrong_clock_is_told(make: MakeNetwork, said: list[str]) -> None:
    network = make()
    client = network.client.node
    right = client.timers.wall
    client.timers.wall = lambda: right() - 3 * 3600
    for node in network.relays:
        node.start()
    network.net.run(20)
    network.client.start()
    network.net.run(20)
    assert client.channels.clocks.skew == pytest.approx(3 * 3600, abs=60)
    assert [line for line in said if "180 minutes behind those of relays" in line]
