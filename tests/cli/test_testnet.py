"""The parts of `backrooms testnet` that need no network; tests/live runs the whole."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backrooms.cli.localnet import (
    CLIENT,
    HOST,
    Folder,
    Layout,
    TestnetError,
    busy_ports,
    free_ports,
)
from backrooms.cli.testnet import Interrupted, choose_layout, command, signals
from backrooms.config import Config
from backrooms.crypto.keys import text_id
from backrooms.netdir.network import NetworkFile


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "net")
    made.open()
    yield made
    made.close()


def with_ids(layout: Layout) -> Layout:
    ids = {relay.nickname: text_id(os.urandom(32)) for relay in layout.relays}
    return Layout(
        tuple(type(relay)(relay.nickname, relay.port, relay.exit, ids[relay.nickname]) for relay in layout.relays),
        layout.socks,
        layout.http,
        layout.control,
    )


def test_a_layout_is_planned_saved_and_loaded(tmp_path: Path) -> None:
    layout = Layout.plan(5, 2, list(range(9000, 9008)))
    assert [relay.nickname for relay in layout.relays] == ["relay1", "relay2", "relay3", "exit1", "exit2"]
    assert [relay.exit for relay in layout.relays] == [False] * 3 + [True] * 2
    assert layout.ports() == list(range(9000, 9008))
    layout.save(tmp_path / "layout.json")
    assert Layout.load(tmp_path / "layout.json") == layout


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"relays": [1]}', '{"relays": [{"nickname": "a"}]}', "\xff"])
def test_a_damaged_layout_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "l").write_text(text, encoding="latin-1")
    assert Layout.load(tmp_path / "l") is None
    assert Layout.load(tmp_path / "none") is None


def test_busy_ports_are_seen() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert busy_ports(ports) == []
    with socket.create_server((HOST, ports[2])):
        assert busy_ports(ports) == [ports[2]]
    assert busy_ports([70000]) == [70000]


def test_one_network_at_a_time(folder: Folder) -> None:
    folder.testnet_file.write_text("{}")
    other = Folder(folder.path)
    with pytest.raises(TestnetError, match="a network is running in"):
        other.open()
    other.close()
    assert folder.testnet_file.exists()
    folder.close()
    assert not folder.testnet_file.exists()
    other.open()
    other.close()


def test_what_is_not_asked_for_is_as_before(folder: Folder) -> None:
    first = choose_layout(folder, None, None, None)
    assert (len(first.relays), first.exits()) == (6, 2)
    first = with_ids(choose_layout(folder, 4, 1, None))
    first.save(folder.layout_file)
    assert choose_layout(folder, None, None, None) == first
    assert choose_layout(folder, 4, 1, None) == first
    more = choose_layout(folder, 7, None, None)
    assert (len(more.relays), more.exits()) == (7, 2)
    assert [relay.id for relay in more.relays if relay.nickname == "relay3"] == [first.relays[2].id]
    assert more.relays[4].id == ""


def test_ports_that_are_taken_are_replaced_or_refused(folder: Folder) -> None:
    first = with_ids(choose_layout(folder, 3, 1, None))
    first.save(folder.layout_file)
    with socket.create_server((HOST, first.socks)):
        second = choose_layout(folder, None, None, None)
        assert first.socks not in second.ports()
        assert [relay.id for relay in second.relays] == [relay.id for relay in first.relays]
        with pytest.raises(TestnetError, match=f"not free: port {first.socks} "):
            choose_layout(folder, 3, 1, first.socks - 2)
    with pytest.raises(TestnetError, match="4 exits, but only 3 relays"):
        choose_layout(folder, 3, 4, None)


def test_the_configuration_files_are_valid(folder: Folder) -> None:
    layout = with_ids(Layout.plan(4, 1, list(range(9000, 9007))))
    for name in (*(relay.nickname for relay in layout.relays), CLIENT):
        folder.node(name).mkdir()
    folder.write_configs(layout)
    network = NetworkFile.parse(folder.network_file.read_text())
    assert [text_id(contact.id) for contact in network.contacts] == [relay.id for relay in layout.relays[:3]]
    for relay in layout.relays:
        config = Config.load(folder.config(relay.nickname))
        assert config.relay.addresses == (relay.address,)
        assert (config.relay.enabled, config.client.enabled) == (True, False)
        assert (config.exit.enabled, config.exit.allow_private) == (relay.exit, relay.exit)
        assert config.node.network.resolve() == folder.network_file
    client = Config.load(folder.config(CLIENT))
    assert (client.relay.enabled, client.client.enabled, client.client.level) == (False, True, "medium")
    assert client.socks[0].listen == f"tcp:{layout.socks}:interface={HOST}"
    assert client.control.listen[0] == f"tcp:{layout.control}:interface={HOST}"
    assert not client.path.distinct_subnets
    folder.write_configs(layout)
    assert NetworkFile.parse(folder.network_file.read_text()).id == network.id


def interrupt(number: int) -> None:
    """Send ourselves a signal and wait for what it does."""
    os.kill(os.getpid(), number)
    time.sleep(5)


def interrupt_twice(number: int) -> None:
    """A second Ctrl-C comes while everything is being stopped."""
    try:
        interrupt(number)
    finally:
        os.kill(os.getpid(), number)


def test_signals_interrupt_once_and_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), signals():
        interrupt(signal.SIGTERM)
    with pytest.raises(Interrupted), signals():
        interrupt_twice(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


PARENT = """
import time
from backrooms.cli.localnet import spawn
print(spawn(["sleep", "60"]).pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_children_end_with_a_killed_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=tmp_path)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 5
    while time.monotonic() < end and is_alive(child):
        time.sleep(0.01)
    assert not is_alive(child)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits for its new parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_command_that_is_shown_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "backrooms"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command() == str(program)
    monkeypatch.setenv("PATH", str(program.parent))
    assert command() == "backrooms"
