"""Keys at rest: what is on disk, who may read it, and what happens when it is damaged."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from zope.interface.verify import verifyObject

from backrooms.crypto.certs import check_tls_files
from backrooms.crypto.keys import ALGORITHMS, OnionKey, PrivateIdentity
from backrooms.errors import CryptoError, KeyStoreError
from backrooms.interfaces import IKeyStore
from backrooms.keystore import file as file_module
from backrooms.keystore.file import FileKeyStore, write_atomic
from tests.keys import NOW, identity, key_store, tls_pair

DAY = 86400


@pytest.fixture
def fast_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """`create` takes the keys of tests in place of new RSA keys."""
    monkeypatch.setattr(PrivateIdentity, "generate", lambda: identity(0))
    monkeypatch.setattr(file_module, "make_tls_certificate", lambda now: tls_pair(0))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("fast_keys")
def test_create_then_open(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "keys"
    old = os.umask(0)
    try:
        store = FileKeyStore.create(directory, NOW)
    finally:
        os.umask(old)
    verifyObject(IKeyStore, store)
    assert mode(directory) == 0o700
    names = sorted(path.name for path in directory.iterdir())
    assert names == ["identity.pem", f"onion-000001-{int(NOW)}.pem", "schema", "tls_cert.pem", "tls_key.pem"]
    assert {mode(path) for path in directory.iterdir()} == {0o600}
    again = FileKeyStore.open(str(directory), NOW)
    assert again.identity() == store.identity() == identity(0).public
    assert again.onion_keys() == store.onion_keys()
    check_tls_files(*(path.read_bytes() for path in again.tls_files()))


@pytest.mark.usefixtures("fast_keys")
def test_an_identity_is_never_overwritten(tmp_path: Path) -> None:
    FileKeyStore.create(tmp_path / "keys", NOW)
    with pytest.raises(KeyStoreError, match=r"identity\.pem is there already"):
        FileKeyStore.create(tmp_path / "keys", NOW)
    assert FileKeyStore.open_or_create(tmp_path / "keys", NOW).identity() == identity(0).public
    assert FileKeyStore.open_or_create(tmp_path / "other", NOW).onion_keys()


@pytest.mark.usefixtures("fast_keys")
def test_half_made_store_is_completed(tmp_path: Path) -> None:
    """Killed after the identity was written: the rest is made at the next start."""
    store = key_store(tmp_path / "keys")
    for path in (*store.tls_files(), *tmp_path.glob("keys/onion-*")):
        path.unlink()
    again = FileKeyStore.open(tmp_path / "keys", NOW)
    assert len(again.onion_keys()) == 1
    check_tls_files(*(path.read_bytes() for path in again.tls_files()))


def test_signs_and_agrees(tmp_path: Path) -> None:
    store = key_store(tmp_path / "keys")
    store.identity().verify(b"message", store.sign(b"message", ALGORITHMS), ALGORITHMS)
    peer = OnionKey.generate()
    ours = store.onion_keys()[0]
    assert store.agree(ours, peer.public) == peer.agree(ours)
    with pytest.raises(CryptoError, match="not ours"):
        store.agree(peer.public, ours)
    with pytest.raises(CryptoError):
        store.agree(ours, bytes(32))


@pytest.mark.parametrize("name", ["identity.pem", "tls_key.pem", "tls_cert.pem", "onion"])
@pytest.mark.parametrize("bits", [0o644, 0o640, 0o602, 0o610])
def test_loose_files_are_refused(tmp_path: Path, name: str, bits: int) -> None:
    key_store(tmp_path / "keys")
    path = next((tmp_path / "keys").glob(f"{name}*"))
    path.chmod(bits)
    with pytest.raises(KeyStoreError) as caught:
        FileKeyStore.open(tmp_path / "keys", NOW)
    assert str(path) in str(caught.value)
    assert f"chmod 600 {path}" in str(caught.value)
    path.chmod(0o400)
    FileKeyStore.open(tmp_path / "keys", NOW)


@pytest.mark.parametrize("bits", [0o755, 0o750, 0o701])
def test_loose_directory_is_refused(tmp_path: Path, bits: int) -> None:
    key_store(tmp_path / "keys")
    (tmp_path / "keys").chmod(bits)
    with pytest.raises(KeyStoreError, match=f"chmod 700 {tmp_path}/keys"):
        FileKeyStore.open(tmp_path / "keys", NOW)
    with pytest.raises(KeyStoreError, match="chmod 700"):
        FileKeyStore.create(tmp_path / "keys", NOW)


def test_foreign_owner_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key_store(tmp_path / "keys")
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    with pytest.raises(KeyStoreError, match=f"belongs to user {real}.*chown {real + 1}"):
        FileKeyStore.open(tmp_path / "keys", NOW)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def huge(path: Path) -> None:
    path.write_bytes(b"A" * 100_000)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[60] ^= 0x80
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["identity.pem", "tls_key.pem", "tls_cert.pem", "onion"])
@pytest.mark.parametrize("damage", [cut, empty, garbage, huge, flipped])
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    key_store(tmp_path / "keys")
    path = next((tmp_path / "keys").glob(f"{name}*"))
    damage(path)
    with pytest.raises(KeyStoreError) as caught:
        FileKeyStore.open(tmp_path / "keys", NOW)
    assert str(path) in str(caught.value)
    assert "damaged" in str(caught.value)


def test_missing_files_and_wrong_kinds(tmp_path: Path) -> None:
    with pytest.raises(KeyStoreError, match="cannot be used"):
        FileKeyStore.open(tmp_path / "nowhere", NOW)
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    with pytest.raises(KeyStoreError, match=r"identity\.pem is missing"):
        FileKeyStore.open(keys, NOW)
    (keys / "identity.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyStoreError, match="symbolic link"):
        FileKeyStore.open(keys, NOW)
    with pytest.raises(KeyStoreError, match="there already"):
        FileKeyStore.create(keys, NOW)
    (keys / "identity.pem").unlink()
    os.mkfifo(keys / "identity.pem", 0o600)
    with pytest.raises(KeyStoreError, match="not a regular file"):
        FileKeyStore.open(keys, NOW)
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    with pytest.raises(KeyStoreError, match="not a directory"):
        FileKeyStore.open(plain, NOW)
    with pytest.raises(KeyStoreError, match="cannot be made"):
        FileKeyStore.create(plain / "keys", NOW)


def test_tls_pair_that_does_not_fit(tmp_path: Path) -> None:
    store = key_store(tmp_path / "keys")
    write_atomic(store.tls_files()[0], tls_pair(1)[0])
    with pytest.raises(KeyStoreError, match="belong together"):
        FileKeyStore.open(tmp_path / "keys", NOW)


def test_onion_key_rotates_weekly_and_keeps_one_predecessor(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    store = key_store(directory)
    first = store.onion_keys()[0]
    assert not store.rotate_onion_key(NOW + 7 * DAY - 1)
    assert store.rotate_onion_key(NOW + 7 * DAY)
    second, kept = store.onion_keys()
    assert kept == first
    assert FileKeyStore.open(directory, NOW).onion_keys() == [second, first]
    assert not store.rotate_onion_key(NOW + 11 * DAY - 1)
    assert store.rotate_onion_key(NOW + 11 * DAY)
    assert store.onion_keys() == [second]
    with pytest.raises(CryptoError, match="not ours"):
        store.agree(first, OnionKey.generate().public)
    assert len(list(directory.glob("onion-*"))) == 1
    assert store.rotate_onion_key(NOW + 14 * DAY)
    assert store.rotate_onion_key(NOW + 14 * DAY, force=True)
    assert len(store.onion_keys()) == 2
    assert second not in store.onion_keys()
    assert len(list(directory.glob("onion-*"))) == 2


def test_a_clock_that_jumped_back_does_not_keep_a_key_for_ever(tmp_path: Path) -> None:
    store = key_store(tmp_path / "keys", now=NOW + 1000 * DAY)
    old = store.onion_keys()[0]
    assert store.rotate_onion_key(NOW)
    assert store.onion_keys()[1] == old
    assert FileKeyStore.open(tmp_path / "keys", NOW).onion_keys() == store.onion_keys()


def test_repr_shows_no_secret(tmp_path: Path) -> None:
    store = key_store(tmp_path / "keys")
    assert repr(store).startswith("FileKeyStore('")
    assert "PRIVATE" not in repr(vars(store))


def test_write_atomic_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyStoreError, match="cannot be written: No space"):
        key_store_rotation(tmp_path)


def key_store_rotation(tmp_path: Path) -> None:
    """Rotate on a full disk: the store must say so and keep its old key."""
    store = FileKeyStore(tmp_path, identity(0), [(1, int(NOW), OnionKey.generate())])
    before = store.onion_keys()
    try:
        store.rotate_onion_key(NOW, force=True)
    finally:
        assert store.onion_keys() == before
