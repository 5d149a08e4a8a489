"""Keys at rest in a directory that only its owner can read.

    identity.pem                Ed25519, ML-DSA-65 and RSA-4096 private keys, PKCS8, in this order
    onion-NNNNNN-TIME.pem       X25519 private keys of circuit handshakes; the highest NNNNNN is the
                                current one, TIME is when it was made (unix seconds)
    tls_key.pem, tls_cert.pem   the TLS key and its self-signed certificate
    schema, lock                see `backrooms.keystore.state`

The identity is one file, so that there is never half of one. Every file is written beside its place, flushed
to disk and renamed. A file or directory that others can read, or that belongs to somebody else, is refused.
The onion keys and the TLS pair can be replaced: where they are missing altogether, `open` makes new ones.
Whoever changes the folder holds its `FolderLock`.
"""

from __future__ import annotations

import errno
import hmac
import os
import re
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from zope.interface import implementer

from backrooms.crypto.certs import check_tls_files, make_tls_certificate
from backrooms.crypto.keys import OnionKey, PrivateIdentity, PublicIdentity, text_id
from backrooms.errors import CryptoError, KeyStoreError
from backrooms.interfaces import IKeyStore
from backrooms.keystore.disk import check_private, stage, sync_directory, write_atomic
from backrooms.keystore.state import check_schema, write_schema

__all__ = ["FileKeyStore", "write_atomic"]

ONION_KEY_LIFE = 7 * 86400
"""Seconds after which the onion key is due for rotation."""
PREDECESSOR_LIFE = 4 * 86400
"""Seconds for which the last onion key is still answered; a contact record lives for at most 3 days."""

_IDENTITY = "identity.pem"
_TLS_KEY = "tls_key.pem"
_TLS_CERT = "tls_cert.pem"
_ONION = re.compile(r"onion-(\d{6,12})-(\d{1,15})\.pem", re.ASCII)
_MAX_FILE = 64 * 1024
_CLOCK_JUMP = 86400


def _read_private(path: Path) -> bytes:
    """The bytes of a key file, checked on the open file so that it cannot be swapped in between."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise KeyStoreError(f"{path} is missing") from None
    except OSError as error:
        why = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise KeyStoreError(f"{path} cannot be opened: {why}") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyStoreError(f"{path} is not a regular file")
        check_private(path, status, 0o600)
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise KeyStoreError(f"{path} is damaged: too long for a key file")
    return data


@implementer(IKeyStore)
class FileKeyStore:
    """The keys of one node. `open` and `create` make it."""

    def __init__(self, directory: Path, identity: PrivateIdentity, onion: list[tuple[int, int, OnionKey]]) -> None:
        self.directory = directory
        self._identity = identity
        self._onion = onion
        """(number, time made, key), the current one first; at most two."""

    def __repr__(self) -> str:
        return f"FileKeyStore({str(self.directory)!r}, {text_id(self._identity.public.id)})"

    @classmethod
    def create(cls, directory: Path | str, now: float | None = None) -> FileKeyStore:
        """New keys in `directory`, which is made if it is not there. Takes one to three seconds.

        `KeyStoreError` if there is an identity already: it is never overwritten.
        """
        directory = Path(directory)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise KeyStoreError(f"{directory} cannot be made: {error.strerror}") from None
        cls._check_directory(directory)
        path = directory / _IDENTITY
        if path.exists() or path.is_symlink():
            raise KeyStoreError(f"{path} is there already; an identity is never overwritten")
        try:
            write_schema(directory)
            write_atomic(path, PrivateIdentity.generate().to_pem())
        except OSError as error:
            raise KeyStoreError(f"{path} cannot be written: {error.strerror}") from None
        return cls.open(directory, now)

    @classmethod
    def open(cls, directory: Path | str, now: float | None = None) -> FileKeyStore:
        """The keys in `directory`. `KeyStoreError` names the file that is missing, damaged or open to others.

        `now` is unix time (the system's clock if not given); it dates onion keys and certificates made here.
        """
        directory = Path(directory)
        wall = time.time() if now is None else now
        store = cls(directory, cls._read_identity(directory), _load_onion_keys(directory))
        if store._onion:
            store._forget_onion_files()  # the last rotation may have been broken off
        else:
            store.rotate_onion_key(wall)
        store._check_tls(wall)
        return store

    @classmethod
    def open_or_create(cls, directory: Path | str, now: float | None = None) -> FileKeyStore:
        """`open` where there is an identity, `create` where there is none."""
        path = Path(directory) / _IDENTITY
        return cls.open(directory, now) if path.exists() or path.is_symlink() else cls.create(directory, now)

    @classmethod
    def read_identity(cls, directory: Path | str) -> PublicIdentity:
        """Who the keys in `directory` are. Unlike `open` it writes nothing, so a node may be running there."""
        return cls._read_identity(Path(directory)).public

    @classmethod
    def read_private(cls, directory: Path | str) -> PrivateIdentity:
        """The identity's private keys, to sign a last record with; writes nothing either."""
        return cls._read_identity(Path(directory))

    @classmethod
    def _read_identity(cls, directory: Path) -> PrivateIdentity:
        cls._check_directory(directory)
        check_schema(directory)
        path = directory / _IDENTITY
        pem = _read_private(path)
        try:
            return PrivateIdentity.from_pem(pem)
        except ValueError as error:
            raise KeyStoreError(f"{path} is damaged: {error}") from None

    @staticmethod
    def _check_directory(directory: Path) -> None:
        try:
            status = directory.stat()
        except OSError as error:
            raise KeyStoreError(f"{directory} cannot be used: {error.strerror}") from None
        if not stat.S_ISDIR(status.st_mode):
            raise KeyStoreError(f"{directory} is not a directory")
        check_private(directory, status, 0o700)

    # --- IKeyStore

    def identity(self) -> PublicIdentity:
        return self._identity.public

    def sign(self, message: bytes, algorithms: Sequence[str]) -> dict[str, bytes]:
        """Signatures by name over a labelled message. Blocks up to 2.5 ms; may run in a thread."""
        return self._identity.sign(message, algorithms)

    def agree(self, onion_key: bytes, peer: bytes) -> bytes:
        """X25519 of our private half of `onion_key` with `peer`; `CryptoError` if it is not ours now."""
        found = None
        for _, _, key in self._onion:
            if hmac.compare_digest(key.public, onion_key):
                found = key
        if found is None:
            raise CryptoError("onion key is not ours")
        return found.agree(peer)

    def onion_keys(self) -> Sequence[bytes]:
        return [key.public for _, _, key in self._onion]

    # --- what is replaced from time to time

    def rotate_onion_key(self, now: float, *, force: bool = False) -> bool:
        """Make a new onion key if the current one is a week old, and forget a predecessor past its time.

        Call it now and then, at least daily. Returns whether `onion_keys` changed: then a new contact record
        is due. `now` is unix time. A clock that jumped back by more than a day makes a new key too. `KeyStoreError`
        when the new key cannot be written: the old ones go on being used.
        """
        kept = self._onion[:2]
        age = now - kept[0][1] if kept else 0.0
        if force or not kept or age >= ONION_KEY_LIFE or age < -_CLOCK_JUMP:
            number = kept[0][0] + 1 if kept else 1
            key = OnionKey.generate()
            made = max(0, int(now))
            path = self.directory / f"onion-{number:06d}-{made}.pem"
            try:
                write_atomic(path, key.to_pem())
            except OSError as error:
                raise KeyStoreError(f"{path} cannot be written: {error.strerror}") from None
            kept = [(number, made, key), *kept[:1]]
        elif len(kept) == 2 and age >= PREDECESSOR_LIFE:
            kept = kept[:1]
        changed = [key for _, _, key in kept] != [key for _, _, key in self._onion]
        self._onion = kept
        if changed:
            self._forget_onion_files()
        return changed

    def _forget_onion_files(self) -> None:
        """Delete files of onion keys no longer kept: a key that is gone opens no recorded handshake."""
        kept = {number for number, _, _ in self._onion}
        gone = [path for number, _, path in _onion_files(self.directory) if number not in kept]
        try:
            for path in gone:
                path.unlink(missing_ok=True)
            if gone:
                sync_directory(self.directory)
        except OSError as error:
            raise KeyStoreError(f"{path} cannot be removed: {error.strerror}") from None

    def tls_files(self) -> tuple[Path, Path]:
        """Where the TLS key and its certificate stand, PEM both."""
        return self.directory / _TLS_KEY, self.directory / _TLS_CERT

    def renew_tls(self, now: float) -> None:
        """A new TLS key and certificate. Takes about a second. `KeyStoreError` where there is no room for them."""
        files = dict(zip(self.tls_files(), make_tls_certificate(now), strict=True))
        staged: dict[Path, Path] = {}
        try:
            for path, data in files.items():
                staged[path] = stage(path, data)
        except OSError as error:
            for temporary in staged.values():
                temporary.unlink(missing_ok=True)
            raise KeyStoreError(f"{path} cannot be written: {error.strerror}") from None
        # Without the certificate the pair counts as missing, so a crash in between leaves nothing that does
        # not fit.
        self.tls_files()[1].unlink(missing_ok=True)
        for path, temporary in staged.items():
            os.replace(temporary, path)
        sync_directory(self.directory)

    def _check_tls(self, now: float) -> None:
        key, certificate = self.tls_files()
        if not os.path.lexists(certificate):
            self.renew_tls(now)
            return
        try:
            check_tls_files(_read_private(key), _read_private(certificate))
        except ValueError as error:
            raise KeyStoreError(
                f"{key} or {certificate} is damaged: {error}; remove both, new ones will be made"
            ) from None


def _onion_files(directory: Path) -> list[tuple[int, int, Path]]:
    """(number, time made, path) of every onion key file, the newest first."""
    matches = ((_ONION.fullmatch(path.name), path) for path in directory.iterdir())
    return sorted(((int(m[1]), int(m[2]), path) for m, path in matches if m is not None), reverse=True)


def _load_onion_keys(directory: Path) -> list[tuple[int, int, OnionKey]]:
    """The current onion key and its predecessor, as far as there are any."""
    keys = []
    for number, made, path in _onion_files(directory)[:2]:
        try:
            keys.append((number, made, OnionKey.from_pem(_read_private(path))))
        except ValueError as error:
            raise KeyStoreError(f"{path} is damaged: {error}; remove it, a new one will be made") from None
    return keys
