"""A disk without room: the node serves on, says so, and writes later what it could not."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor

from backrooms.config import Config
from backrooms.control import server as control_server
from backrooms.errors import ConfigError
from backrooms.keystore import disk
from backrooms.netdir.network import NetworkFile
from backrooms.netdir.store import decode_rows
from backrooms.node.driver import Turn
from backrooms.node.savedlist import SAVE_PAUSE
from backrooms.node.timers import Timers
from backrooms.service import Node
from backrooms.sides.relay import ONION_KEY_CHECK
from tests import keys
from tests.control.fakes import FakeView
from tests.simnet.network import EPOCH, SimNet
from tests.simnet.node import SimNetwork

DAY = 86400

RELAY = """
socks = []
http = []
[control]
listen = []
[client]
enabled = false
[relay]
enabled = true
addresses = ["tls:10.1.0.1:9001"]
contact = "operator@example.org"
"""


class Disk:
    """Says "No space left on device" to everybody while `full`."""

    def __init__(self) -> None:
        self.full = False
        self.error = errno.ENOSPC
        self._stage = disk.stage

    def stage(self, path: Path, data: bytes, mode: int = 0o600) -> Path:
        if self.full:
            raise OSError(self.error, os.strerror(self.error))
        return self._stage(path, data, mode)


class NoShelf:
    """Certificates are not looked at here."""

    def read(self, place: int, size: int, check: bytes) -> bytes:
        raise AssertionError


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()
    monkeypatch.setattr(disk, "stage", made.stage)
    yield made
    made.full = False


def test_the_list_of_relays_is_saved_when_there_is_room_again(network: SimNetwork, room: Disk, said: list[str]) -> None:
    client = network.client.node
    file = client.config.node.state / "relays"
    network.net.run(SAVE_PAUSE + 1)
    before = file.read_bytes()
    room.full = True
    said.clear()
    for relay in network.relays:
        relay.node.keeper.republish()
    network.net.run(120)
    network.hush(gossip=True)
    network.net.run(1200)
    lines = [line for line in said if line == "the list of relays cannot be saved: No space left on device"]
    assert 1 <= len(lines) <= len(network.nodes) * 3, "each node says it once in ten minutes at most"
    assert len(client.directory) == 6
    assert file.read_bytes() == before
    room.full = False
    network.net.run(2 * SAVE_PAUSE)
    saved = {relay.record_raw for relay, _ in decode_rows(file.read_bytes(), NoShelf(), 1 << 30)}
    assert saved == {relay.record_raw for relay in client.directory.relays()}
    assert file.read_bytes() != before, "though nothing was new since"


def test_an_onion_key_that_cannot_be_replaced_is_used_on(tmp_path: Path, room: Disk, said: list[str]) -> None:
    (tmp_path / "network.toml").write_text(NetworkFile("test", keys.NETWORK_ID, ()).to_toml())
    net = SimNet(start=EPOCH)
    store = keys.key_store(tmp_path / "state" / "keys", 0, EPOCH - 8 * DAY)
    old = store.onion_keys()
    node = Node(Config.parse(RELAY, tmp_path), net.host("host").reactor, random.Random(1), store)
    room.full = True
    node.startService()
    net.run(ONION_KEY_CHECK * 2.5)
    told = [line for line in said if line.startswith("the onion key stays as it is: ")]
    assert len(told) == 3, "at the start and each hour"
    assert told[0].endswith("cannot be written: No space left on device")
    assert store.onion_keys() == old
    assert node.listening("or") == ["10.1.0.1:9001"]
    room.full = False
    net.run(ONION_KEY_CHECK)
    assert store.onion_keys()[1:] == old
    own = node.directory.get(store.identity().id)
    assert own is not None
    assert own.record.onion_key == store.onion_keys()[0], "it is published"
    net.run_until(node.stopService(), 10)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
async def test_controllers_wait_for_the_cookie(
    tmp_path: Path, room: Disk, said: list[str], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    monkeypatch.setattr(control_server, "COOKIE_RETRY", 0.01)
    timers = Timers(reactor)
    cookie = tmp_path / "control_auth_cookie"
    server = control_server.ControlServer(
        FakeView(), [f"unix:{tmp_path}/control.sock"], cookie, timers, Turn(reactor), reactor
    )
    room.full, room.error = True, error
    await server.start()
    await timers.sleep(0.1)
    assert server.addresses() == [f"unix:{tmp_path}/control.sock"]
    assert said == [f"{cookie}: cannot write the cookie: {os.strerror(error)}; no controller can come in"]
    assert not cookie.exists()
    room.full = False
    while not cookie.exists():
        await timers.sleep(0.01)
    authenticator: Any = server._authenticator
    assert cookie.read_bytes() == authenticator.cookie
    assert said[1:] == ["the cookie is written: controllers can come in"]
    await server.stop()
    timers.close()


async def test_a_cookie_that_will_never_be_written_is_an_error(tmp_path: Path, room: Disk) -> None:
    timers = Timers(reactor)
    server = control_server.ControlServer(FakeView(), [], tmp_path / "cookie", timers, Turn(reactor), reactor)
    room.full, room.error = True, errno.EACCES
    with pytest.raises(ConfigError, match="cannot write the cookie: Permission denied"):
        await server.start()
    timers.close()
