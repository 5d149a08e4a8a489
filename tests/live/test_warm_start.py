"""A node that knows the network from before: kill -9, then a circuit at once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backrooms.cli.client import ControlAddress, ControlClient
from backrooms.errors import BackroomsError
from backrooms.netdir.network import Contact, NetworkFile
from tests.live.network import Network, wait_until
from tests.live.node import NodeProcess

pytestmark = pytest.mark.live

CLIENT = """
http = []
[client]
allow_private = true
[path]
distinct_subnets = false
[control]
listen = ["unix:control.sock:mode=600"]
[[socks]]
listen = "tcp:0:interface=127.0.0.1"
"""
LIMIT = 30.0
"""Seconds from the start of the process, on a machine that may be busy; how long it took is printed."""


def progress(node: NodeProcess) -> bool:
    """Whether a circuit has been built."""
    try:
        with ControlClient(ControlAddress(path=str(node.folder / "control.sock")), 5.0) as control:
            return "PROGRESS=100" in control.info("status/bootstrap-phase")
    except (BackroomsError, OSError):
        return False


@pytest.fixture
def node(network: Network, tmp_path: Path) -> Iterator[NodeProcess]:
    """A client of the network, not started."""
    made = NodeProcess(tmp_path / "warm", CLIENT, number=None)
    shutil.copy(network.folder / "network.toml", made.folder / "network.toml")
    yield made
    made.close()


def test_a_killed_client_has_a_circuit_at_once(node: NodeProcess) -> None:
    node.start()
    assert wait_until(lambda: progress(node), 60), node.log()
    assert wait_until((node.state / "relays").exists, 60)
    node.kill()
    node.wait()
    # Nobody can be asked for relays but those of the saved list.
    file = node.folder / "network.toml"
    nobody = Contact(bytes(32), "tls:127.0.0.1:9")
    file.write_text(replace(NetworkFile.parse(file.read_text()), contacts=(nobody,)).to_toml())
    began = time.monotonic()
    node.start()
    assert wait_until(lambda: progress(node), LIMIT, 0.02), node.log()
    print(f"{time.monotonic() - began:.2f} s from the start of the process to a circuit")
    assert "relays from the saved list, 0 expired" in node.log()
    assert "damaged" not in node.log()
