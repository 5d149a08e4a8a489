"""Nodes that are killed while they write their state, and nodes without room for it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backrooms.keystore.file import FileKeyStore
from backrooms.netdir import store
from backrooms.node.shelf import CertificateFile
from tests import keys
from tests.live.network import wait_until
from tests.live.node import NodeProcess
from tests.live.test_operation import IMPATIENT

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
WRITER = """
import sys, time
from pathlib import Path
from backrooms.control.auth import write_cookie
from backrooms.keystore import file
from backrooms.keystore.disk import write_atomic
from backrooms.keystore.state import StateFolder, write_schema
from tests import keys
folder, lists = Path(sys.argv[1]), [path.read_bytes() for path in sorted(Path(sys.argv[2]).iterdir())]
file.make_tls_certificate = lambda now: keys.tls_pair(number % 2)
number = 0
StateFolder.open(folder, with_keys=True)
store = file.FileKeyStore.open(folder / "keys", time.time())
print("ready", flush=True)
while True:
    write_atomic(folder / "relays", lists[number % len(lists)])
    print(number, flush=True)
    store.rotate_onion_key(time.time(), force=True)
    write_cookie(folder / "control_auth_cookie")
    store.renew_tls(time.time())
    write_schema(folder)
    number += 1
"""
VERSIONS = 3


def lists(folder: Path) -> list[bytes]:
    """Some lists of relays, as files in `folder`, too."""
    folder.mkdir()
    found = []
    for number in range(VERSIONS):
        relay = keys.descriptor(1, now=time.time() + number, network_id=bytes(32))
        shelf = CertificateFile(folder.parent / "certificates", 1)
        relay.certificate.shelve(shelf, *shelf.append(relay.certificate.raw))
        row = store.encode_row((relay, int(time.time())))
        found.append(store.encode_index(store.Head(bytes(32), bytes(32), 1), [row]))
        (folder / str(number)).write_bytes(found[-1])
    return found


class Hardship:
    """One state folder that goes through a lot."""

    def __init__(self, node: NodeProcess, folder: Path, rng: random.Random) -> None:
        self.node = node
        self.rng = rng
        self._lists = lists(folder / "lists")
        self._folder = folder / "lists"

    def kill_a_writer(self) -> None:
        """A process that does nothing but write state is killed at some moment; what it said was written is there."""
        command = [sys.executable, "-c", WRITER, str(self.node.state), str(self._folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(self.rng.random() / 4)
            writer.kill()
            said = writer.stdout.read().split("\n")[:-1]
        last = int(said[-1]) if said else -1
        found = (self.node.state / "relays").read_bytes() if last >= 0 else b""
        if found:
            assert found in (self._lists[last % VERSIONS], self._lists[(last + 1) % VERSIONS]), "older than was said"

    def kill_a_start(self) -> None:
        """The node is killed while it starts."""
        self.node.start()
        time.sleep(self.rng.random() * 0.8)
        self.node.kill()
        self.node.wait()

    def comes_up(self) -> None:
        """The node starts as if nothing had been, and is killed."""
        left = list(self.node.state.rglob(".*.new"))
        self.node.start()
        self.node.ready()
        for path in left:
            assert len(self.node.lines(f"removed {path}, which a process that died left")) == 1
            assert not path.exists()
        store = FileKeyStore.open(self.node.state / "keys", time.time())
        assert store.identity() == keys.identity(0).public
        assert len(store.onion_keys()) == len(list(self.node.state.glob("keys/onion-*")))
        self.node.kill()
        self.node.wait()
        log = self.node.log()
        assert "damaged" not in log, log
        assert "Traceback" not in log, log
        (self.node.folder / "log").unlink()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    made = NodeProcess(tmp_path / "n")
    yield made
    made.close()


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])])
def test_kill_9_at_any_moment(node: NodeProcess, tmp_path: Path, kills: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown when it fails
    keys.tls_pair(1)
    hardship = Hardship(node, tmp_path, random.Random(seed))
    for number in range(kills):
        if number % 4 == 3:
            hardship.kill_a_start()
        else:
            hardship.kill_a_writer()
        if number % 4 == 3 or kills > 8:
            hardship.comes_up()


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=128k,mode=700 none "$1" && cp -a "$2/." "$1/" && {
    dd if=/dev/zero of="$1/filler" bs=1k 2>/dev/null
    shift 2
    exec "$@"
}
"""


@pytest.mark.soak
def test_a_disk_that_is_really_full(node: NodeProcess) -> None:
    """The state is on a file system of 128 KiB that nobody else sees."""
    unshare: tuple[str, ...] = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--mount", "-r")
    node.start()
    node.ready()
    node.kill(signal.SIGTERM)
    node.wait()
    key = next(node.state.glob("keys/onion-*"))
    key.rename(key.with_name(f"onion-000001-{int(time.time()) - 8 * 86400}.pem"))
    saved = node.folder / "saved"
    shutil.copytree(node.state, saved)
    small = ("sh", "-c", ON_A_SMALL_DISK, "sh", str(node.state), str(saved))
    node.start((*unshare, *small, sys.executable, "-c", IMPATIENT))
    node.ready()
    assert wait_until(lambda: node.lines("the onion key stays as it is: "), 10)
    assert node.lines("cannot write the cookie: No space left on device; no controller can come in")
    inside = Path(f"/proc/{node.process.pid}/root{node.state}")
    time.sleep(3)
    assert node.process.poll() is None
    before: dict[str, Any] = {path.name: path.read_bytes() for path in saved.glob("keys/*.pem")}
    assert {path.name: path.read_bytes() for path in inside.glob("keys/*.pem")} == before
    assert not list(inside.rglob(".*.new"))
    (inside / "filler").unlink()
    assert wait_until(lambda: node.lines("the cookie is written: controllers can come in"), 10)
    assert wait_until(lambda: len(list(inside.glob("keys/onion-*"))) == 2, 10)
    assert (inside / "control_auth_cookie").stat().st_size == 32
    assert "Traceback" not in node.log()
