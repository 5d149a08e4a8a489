"""A descriptor's life: renewed in time, keys rotated with one predecessor, revoked for good, kept out by a charter."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from backrooms.config import Config
from backrooms.crypto.keys import CharterKey
from backrooms.errors import ConfigError
from backrooms.keystore.file import ONION_KEY_LIFE, PREDECESSOR_LIFE
from backrooms.levels import MEDIUM
from backrooms.netdir.certificate import admission_message, make_certificate
from backrooms.netdir.descriptor import CERTIFICATE_LIFE, CLOCK_TOLERANCE, make_descriptor, make_revocation
from backrooms.netdir.directory import Directory
from backrooms.netdir.network import NetworkFile
from backrooms.node.revocations import FOLDER
from backrooms.service import Node
from backrooms.wire.admission import Admission
from backrooms.wire.documents import DirPublish
from tests import keys
from tests.node.conftest import MakeNetwork
from tests.node.test_full_disk import RELAY
from tests.simnet.network import EPOCH, SimNet
from tests.simnet.node import SimNetwork, SimNode

HOUR = 3600
DAY = 86400


def lone_relay(folder: Path, net: SimNet, network: NetworkFile | None = None, **relay: str) -> Node:
    """A relay that nobody else knows, so that days of it take seconds."""
    found = network or NetworkFile("test", keys.NETWORK_ID, ())
    (folder / "network.toml").write_text(found.to_toml())
    lines = "".join(f'{key} = "{value}"\n' for key, value in relay.items())
    host = net.host(f"host{len(net.hosts)}")
    text = RELAY.replace("[relay]\n", f"[relay]\nassume_reachable = true\n{lines}").replace("10.1.0.1", host.address)
    store = keys.key_store(folder / "state" / "keys", 0, net.wall())
    return Node(Config.parse(text, folder), host.reactor, random.Random(1), store)


@pytest.fixture
def net() -> SimNet:
    return SimNet(start=EPOCH)


def started(node: Node) -> None:
    """Start a lone relay without what ticks every second."""
    node.startService()
    assert node._relay_side is not None
    node._relay_side.heartbeats.stop()


def test_twelve_days_of_a_relay(tmp_path: Path, net: SimNet) -> None:
    """Its record is always good for a day without network, and the last onion key is answered as long as it is used."""
    node = lone_relay(tmp_path, net)
    started(node)
    net.run(60)
    store = node._keystore
    assert store is not None
    my_id = store.identity().id
    revisions, onion_keys = [], []
    published: dict[bytes, float] = {}
    for _ in range(12 * 24 // 3):
        net.run(3 * HOUR)
        own = node.directory.get(my_id)
        assert own is not None
        now = net.wall()
        assert own.expires - now >= DAY, "a day without network costs nothing"
        assert own.record.revision <= now
        revisions.append(own.record.revision)
        onion_keys.append(own.onion_key)
        published[own.onion_key] = own.expires
        for key, end in published.items():
            assert key in store.onion_keys() or end + CLOCK_TOLERANCE < now, "a key is answered while records name it"
        assert len(store.onion_keys()) <= 2
    assert revisions == sorted(revisions)
    assert 14 <= len(set(revisions)) <= 20, "every 18 hours, and with new keys"
    assert len(set(onion_keys)) == 2
    assert ONION_KEY_LIFE == 7 * DAY
    assert PREDECESSOR_LIFE == 4 * DAY
    assert len({relay.certificate.digest for relay in node.directory.relays()}) == 1
    net.run_until(node.stopService(), 10)


def test_a_certificate_is_made_anew_before_it_ends(tmp_path: Path, net: SimNet) -> None:
    node = lone_relay(tmp_path, net)
    started(node)
    net.run(60)
    first = node.directory.relays()[0]
    net.run_until(node.stopService(), 10)
    net.run(CERTIFICATE_LIFE - 3 * DAY)
    again = lone_relay(tmp_path, net)
    started(again)
    net.run(60)
    own = again.directory.relays()[0]
    assert own.id == first.id
    assert own.certificate.facts.expires - net.wall() > CERTIFICATE_LIFE - HOUR
    assert len(again.directory) == 1
    net.run_until(again.stopService(), 10)


@pytest.mark.parametrize("off", [-2 * DAY, -HOUR, HOUR, 400 * DAY])
def test_a_clock_that_is_set_costs_no_relay_its_place(tmp_path: Path, net: SimNet, off: float) -> None:
    """Back or forward, by an hour or a year: the next record is one that others take, and the old ones go."""
    node = lone_relay(tmp_path, net)
    wall = node.timers.wall
    node.timers.wall = lambda: wall() + off
    started(node)
    net.run(60)
    node.timers.wall = wall
    node.keeper.republish()
    net.run(60)
    own = node.directory.relays()[0]
    now = net.wall()
    assert own.record.revision <= now + CLOCK_TOLERANCE
    assert own.expires > now + DAY
    assert Directory(keys.NETWORK_ID, now).add(own.certificate.raw, own.record_raw, now).record == own.record
    net.run_until(node.stopService(), 10)


def test_circuits_by_the_last_onion_key(network: SimNetwork) -> None:
    """Who has not heard of a relay's new onion key builds circuits with the old one, but not with one before that."""
    circuits = network.client.node.circuits
    assert circuits is not None
    directory = network.client.node.directory
    path = [directory.get(network.relays[number].id) for number in (2, 3, 5)]
    old = [relay for relay in path if relay is not None]

    def build() -> str:
        done = circuits.build(MEDIUM, old)
        ends: list[str] = []
        done.addCallbacks(lambda circuit: ends.append("built"), lambda failure: ends.append("refused"))
        network.net.run_until(lambda: ends, 60)
        return ends[0]

    def rotate() -> None:
        store = network.relays[3].node._keystore
        assert store is not None
        assert store.rotate_onion_key(network.net.wall(), force=True)
        network.relays[3].node.keeper.republish()

    assert build() == "built"
    rotate()
    assert build() == "built"
    network.net.run_until(lambda: directory.get(old[1].id) != old[1], 600)
    assert build() == "built", "also when others have heard"
    rotate()
    assert build() == "refused"


# revocation


def revoke(node: SimNode, number: int, into: SimNode) -> bytes:
    """Lay the revocation of a relay into a node's state folder, as `backrooms keys revoke` does; the relay's id."""
    pair = keys.identity(number)
    now = node.host.net.wall()
    certificate = make_certificate(pair.sign, pair.public, keys.NETWORK_ID, now)
    last = make_revocation(pair.sign, pair.public, keys.NETWORK_ID, now, certificate=certificate)
    folder = into.folder / "state" / FOLDER
    folder.mkdir()
    (folder / "it.revocation").write_bytes(DirPublish(certificate.raw, last.record_raw).encode())
    return pair.public.id


@pytest.mark.parametrize("own", [True, False])
def test_a_revoked_relay_is_gone_everywhere_and_stays_gone(make: MakeNetwork, said: list[str], own: bool) -> None:
    network = make(relays=5, exits=2)
    network.start()
    network.ready()
    victim = network.relays[2]
    herald = victim if own else network.relays[0]
    relay_id = revoke(victim, 2, herald)
    herald.host.kill()
    network.net.run(1)
    herald.start()
    network.net.run_until(lambda: all(one.node.directory.is_revoked(relay_id) for one in network.nodes), 600)
    assert [line for line in said if "is revoked by it.revocation" in line]
    for one in network.nodes:
        assert relay_id not in [relay.id for relay in one.node.directory.relays()]
    if own:
        assert [line for line in said if line.startswith("this relay's keys are revoked")]
        assert "keys are revoked" in victim.node.view.bootstrap()[2]
    # a thief with the keys tells of a newer record
    pair = keys.identity(2)
    thief = make_descriptor(
        pair.sign, pair.public, keys.NETWORK_ID, network.net.wall() + 60, nickname="back", onion_key=bytes(32),
        addresses=["tls:10.9.0.1:9001"],
    )  # fmt: skip
    server = network.relays[1].node
    assert server.directory.add(thief.certificate.raw, thief.record_raw, network.net.wall()).revoked
    network.net.run(300)
    for one in network.nodes:
        assert relay_id not in one.node.directory
    shown = {relay.nickname: relay.revoked for relay in network.client.node.view.revoked()}
    assert shown == {"revoked": True}
    circuits = network.client.node.circuits
    assert circuits is not None
    for circuit in circuits.circuits.values():
        if circuit.status == "BUILT" and not circuit.retired:
            assert relay_id not in [hop.id for hop in circuit.path]


# charter and versions


def test_a_charter_keeps_others_out_and_says_what_to_do(make: MakeNetwork, said: list[str]) -> None:
    network = make(relays=4, exits=1)
    key = CharterKey.generate()
    file = network.client.folder.parent / "network.toml"
    file.write_text(replace(NetworkFile.parse(file.read_text()), charter=(key.public,)).to_toml())
    stranger = network.relays[2]
    for node in network.nodes:
        if node is not stranger and node is not network.client:
            expires = int(EPOCH) + 30 * DAY
            signature = key.sign(admission_message(keys.NETWORK_ID, node.id, expires))
            node.configure("relay", admission=Admission(key.public, expires, signature).text)
        else:
            node._make()
    network.start()
    members = {node.id for node in network.relays if node is not stranger}
    network.net.run_until(
        lambda: all({relay.id for relay in node.node.directory.relays()} == members for node in network.nodes), 300
    )
    network.net.run(60)
    assert stranger.id not in network.relays[0].node.directory
    told = [line for line in said if line.startswith("the network simnet does not let this relay in")]
    assert len(told) == 1
    assert "without the admission" in told[0]
    assert "backrooms charter admit" in told[0]
    assert "does not let this relay in" in stranger.node.view.bootstrap()[2]
    assert "does not let" not in network.relays[0].node.view.bootstrap()[2]


@pytest.mark.parametrize(("text", "why"), [("nonsense", "relay.admission: an admission is what")])
def test_an_admission_that_is_none(tmp_path: Path, net: SimNet, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        lone_relay(tmp_path, net, admission=text)


def test_a_network_that_requires_more(tmp_path: Path, net: SimNet, said: list[str]) -> None:
    network = NetworkFile("new", keys.NETWORK_ID, (), (), 2, 2)
    with pytest.raises(ConfigError, match="requires protocol version 2, and this Backrooms speaks version 1"):
        lone_relay(tmp_path, net, network)
    node = lone_relay(tmp_path, net, replace(network, required=1))
    started(node)
    net.run(60)
    assert [line for line in said if "recommends protocol version 2" in line and "install a newer one" in line]
    assert len(node.directory) == 1
    net.run_until(node.stopService(), 10)


# from the saved list


def test_a_client_with_a_saved_list_has_a_circuit_at_once(network: SimNetwork) -> None:
    """Warm bootstrap, with links of 60 ms round trip or so: under two seconds, of which the disk takes some ms."""
    client = network.client
    network.net.run(120)
    client.host.kill()
    network.net.run(60)
    client.start()
    circuits = client.node.circuits
    assert circuits is not None
    began = network.net.now
    network.net.run_until(lambda: any(one.status == "BUILT" for one in circuits.circuits.values()), 30)
    assert network.net.now - began < 2


def test_a_relay_whose_own_certificate_was_lost_makes_a_new_one(relays: SimNetwork) -> None:
    node = relays.relays[3]
    own = node.node.directory.get(node.id)
    assert own is not None
    file = next((node.folder / "state").glob("certificates-*"))
    file.write_bytes(bytes(file.stat().st_size))
    relays.net.run(30)
    node.node.keeper.republish()
    relays.net.run(30)
    new = node.node.directory.get(node.id)
    assert new is not None
    assert new.certificate.digest != own.certificate.digest
    assert new.certificate.raw
    relays.net.run_until(lambda: all(one.node.directory.get(node.id) == new for one in relays.relays), 300)
