"""The list of relays on disk: loaded as it was, not in memory, whole whenever the process dies, rebuilt if damaged."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backrooms.keystore import disk
from backrooms.netdir.certificate import ShelfError
from backrooms.netdir.descriptor import RECORD_LIFE, Descriptor, make_revocation
from backrooms.netdir.directory import Directory
from backrooms.node import savedlist
from backrooms.node.savedlist import SAVE_PAUSE, SAVE_SOON, SavedList
from backrooms.node.timers import Timers
from backrooms.wire.codec import Writer
from backrooms.wire.documents import DirFetch
from tests import keys
from tests.keystore.test_crash import each_kill
from tests.simnet.network import SimNet

NOW = keys.NOW
RELAYS = [keys.descriptor(number) for number in range(3)]
MakeList = Callable[..., "Saved"]


class Saved:
    """A directory and its saved list."""

    def __init__(self, folder: Path, net: SimNet, host: str, charter: tuple[bytes, ...] = (), fill: int = 0) -> None:
        self.net = net
        reactor = net.host(host).reactor
        self.timers = Timers(reactor)
        self.directory = Directory(keys.NETWORK_ID, self.timers.wall(), charter=charter)
        self.list = SavedList(reactor, self.timers, self.directory, folder)
        self.list.load()
        for number in range(fill):
            self.add(keys.descriptor(number))

    def add(self, relay: Descriptor) -> Descriptor:
        return self.directory.add(relay.certificate.raw, relay.record_raw, self.timers.wall())

    def stop(self) -> None:
        self.list.stop()
        self.timers.close()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeList:
    net = SimNet(start=NOW)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def make_one(**options: object) -> Saved:
        return Saved(tmp_path, net, f"host{len(net.hosts)}", **options)  # type: ignore[arg-type]

    return make_one


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_saved_is_loaded(make: MakeList, tmp_path: Path) -> None:
    first = make(fill=3)
    first.net.run(100)
    first.stop()
    assert names(tmp_path) == {"relays", "certificates-1"}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    again = make()
    assert list(again.directory.relays()) == list(first.directory.relays())
    assert again.directory.seen == first.directory.seen == {relay.id: int(NOW) for relay in RELAYS}
    before = (tmp_path / "relays").stat().st_mtime_ns
    again.net.run(SAVE_SOON + SAVE_PAUSE)
    again.stop()
    assert (tmp_path / "relays").stat().st_mtime_ns == before, "nothing was new"


def test_certificates_lie_on_disk_and_are_read_when_asked_for(make: MakeList) -> None:
    saved = make()
    relay = saved.add(RELAYS[0])
    kept = relay.certificate
    assert (kept._raw, kept._body, kept._identity) == (None, None, None)
    answer = saved.directory.answer_fetch(DirFetch((relay.id,)))
    assert answer.documents[0].certificate == RELAYS[0].certificate.raw
    assert relay.identity == RELAYS[0].identity
    saved.stop()


def test_it_saves_soon_and_not_all_the_time(make: MakeList, tmp_path: Path) -> None:
    saved = make(fill=1)
    saved.net.run(SAVE_SOON + 1)
    first = (tmp_path / "relays").read_bytes()
    saved.add(keys.descriptor(1))
    saved.net.run(SAVE_SOON + 1)
    assert (tmp_path / "relays").read_bytes() == first
    saved.net.run(SAVE_PAUSE)
    assert len((tmp_path / "relays").read_bytes()) > len(first)
    saved.stop()


def test_what_expired_meanwhile_is_left_out(make: MakeList) -> None:
    saved = make(fill=2)
    saved.net.run(RECORD_LIFE / 2)
    late = keys.descriptor(0, now=NOW + RECORD_LIFE / 2, certificate=RELAYS[0].certificate)
    saved.add(late)
    saved.stop()
    saved.net.run(RECORD_LIFE)
    again = make()
    assert [relay.id for relay in again.directory.relays()] == [late.id]
    again.stop()


def test_revocations_are_kept(make: MakeList) -> None:
    saved = make(fill=2)
    pair = keys.identity(0)
    saved.add(make_revocation(pair.sign, pair.public, keys.NETWORK_ID, NOW))
    saved.stop()
    saved.net.run(30 * 86400)
    again = make()
    assert again.directory.is_revoked(pair.public.id)
    assert len(again.directory) == 0
    again.stop()


@pytest.mark.parametrize("harm", ["cut", "flip", "missing", "garbage", "empty"])
def test_a_damaged_list_is_put_aside_and_made_anew(make: MakeList, tmp_path: Path, said: list[str], harm: str) -> None:
    saved = make(fill=3)
    saved.stop()
    file = tmp_path / "relays"
    data = file.read_bytes()
    if harm == "missing":
        (tmp_path / "certificates-1").unlink()
    else:
        flipped = data[:500] + bytes([data[500] ^ 1]) + data[501:]
        file.write_bytes({"cut": data[:-3], "flip": flipped, "garbage": b"x" * 999, "empty": b""}[harm])
    harmed = file.read_bytes()
    again = make()
    assert len(again.directory) == 0
    if harm != "empty":
        assert [line for line in said if "is damaged" in line and "relays.damaged" in line]
        assert (tmp_path / "relays.damaged").read_bytes() == harmed
    for number in range(3):
        again.add(keys.descriptor(number))
    again.stop()
    assert len(make().directory) == 3


def test_a_damaged_certificate_costs_its_relay_only(make: MakeList, tmp_path: Path, said: list[str]) -> None:
    saved = make(fill=3)
    saved.stop()
    file = tmp_path / "certificates-1"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    again = make()
    harmed = next(one for one in again.directory.relays() if one.certificate.place[1] == 0)
    documents = again.directory.answer_fetch(DirFetch((harmed.id,))).documents
    assert (documents[0].certificate, documents[0].record) == (b"", b"")
    assert harmed.id not in again.directory
    assert len(again.directory) == 2
    assert [line for line in said if "cannot be read (its checksum is wrong)" in line]
    number = next(n for n in range(3) if keys.identity(n).public.id == harmed.id)
    again.add(RELAYS[number])
    again.stop()
    final = make()
    assert final.directory.get(harmed.id) == RELAYS[number]


def test_another_network_and_another_charter(make: MakeList, tmp_path: Path) -> None:
    saved = make(fill=2)
    saved.stop()
    stricter = make(charter=(bytes(32),))
    assert len(stricter.directory) == 0
    assert {one.id for one in stricter.list.unverified} == {relay.id for relay in RELAYS[:2]}
    assert stricter.list.unverified[0].certificate
    other = Directory(bytes(32), NOW)
    SavedList(stricter.net.host("other").reactor, stricter.timers, other, tmp_path).load()
    assert len(other) == 0


def test_the_first_form_is_read(make: MakeList, tmp_path: Path) -> None:
    writer = Writer().bytes(b"backrooms-directory-1\n").u32(2)
    for relay in RELAYS[:2]:
        writer.bytes16(keys.descriptor(0).certificate.raw if relay is RELAYS[0] else relay.certificate.raw)
        writer.bytes16(relay.record_raw)
    (tmp_path / "relays").write_bytes(writer.done())
    saved = make()
    assert [one.id for one in saved.list.unverified] == [relay.id for relay in RELAYS[:2]]


def test_files_of_no_use_go_and_what_is_of_use_moves(
    make: MakeList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(savedlist, "WASTE", 0)
    (tmp_path / "certificates-99").write_bytes(b"left by somebody")
    saved = make(fill=2)
    assert names(tmp_path) == {"certificates-1"}
    saved.net.run(100)
    saved.add(keys.descriptor(0, now=NOW + 50))
    for later in range(1, 5):
        saved.add(keys.descriptor(1, now=NOW + 50 + later))
    before = list(saved.directory.relays())
    saved.net.run(100)
    assert names(tmp_path) == {"relays", "certificates-2"}
    assert (tmp_path / "certificates-2").stat().st_size == sum(len(one.certificate.raw) for one in before)
    saved.add(keys.descriptor(2, now=NOW + 60))
    saved.stop()
    again = make()
    assert set(again.directory.relays()) == set(saved.directory.relays())
    assert {one.certificate.place[0] for one in again.directory.relays()} == {again.list._shelf}


def test_no_room_for_certificates(
    make: MakeList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        saved = make(fill=3)
        saved.net.run(SAVE_SOON + 1)
    assert len(saved.directory.answer_fetch(DirFetch((RELAYS[0].id,))).documents[0].certificate) > 5000
    assert "the list of relays cannot be saved: No space left on device" in said
    saved.net.run(2 * SAVE_PAUSE)
    assert not saved.list._homeless
    saved.stop()
    assert len(make().directory) == 3


def test_a_thread_that_comes_late_changes_nothing(make: MakeList, tmp_path: Path) -> None:
    saved = make(fill=2)
    late = saved.list._work()
    saved.add(keys.descriptor(2))
    saved.stop()
    written = late()
    saved.list._done(written)
    assert len(make().directory) == 3


def test_closed_files_are_not_read(make: MakeList) -> None:
    saved = make(fill=1)
    certificate = saved.directory.relays()[0].certificate
    place = certificate.place
    assert place[0] is not None
    saved.list._shelf.remove()  # type: ignore[union-attr]
    with pytest.raises(ShelfError, match="closed"):
        place[0].read(*place[1:])
    saved.timers.close()


def test_a_kill_at_any_moment_leaves_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every system call of saving: the list before or after it is there, and each certificate can be read."""
    monkeypatch.setattr(savedlist, "WASTE", 0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    relays = [
        keys.descriptor(0),
        keys.descriptor(1),
        *(keys.descriptor(1, now=NOW + later) for later in range(1, 6)),  # so much waste that all moves
    ]
    raws = [(relay.certificate.raw, relay.record_raw) for relay in relays]

    def opened() -> Saved:
        disk.remove_leftovers(tmp_path)
        return Saved(tmp_path, SimNet(start=NOW + 10), "host")

    def fresh() -> None:
        for path in tmp_path.iterdir():
            path.unlink()
        saved = opened()
        saved.directory.add(*raws[0], NOW + 10)
        saved.stop()

    def add_all() -> None:
        saved = opened()
        for documents in raws[1:]:
            saved.directory.add(*documents, NOW + 10)
        saved.stop()

    fresh()
    counts = []
    for _ in each_kill(add_all, 10):
        found = opened()
        assert not (tmp_path / "relays.damaged").exists()
        counts.append(len(found.directory))
        for relay in found.directory.relays():
            assert relay.certificate.raw in [certificate for certificate, _ in raws]
        found.stop()
        fresh()
    assert counts == sorted(counts)
    assert set(counts) == {1, 2}
