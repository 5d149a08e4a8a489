"""`backrooms keys` and `backrooms network`: what is made once, before a node runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from backrooms.cli.target import Failure
from backrooms.crypto.keys import PublicIdentity, fingerprint, parse_id, text_id
from backrooms.errors import BackroomsError, ConfigError
from backrooms.keystore.disk import write_atomic
from backrooms.keystore.file import FileKeyStore
from backrooms.keystore.state import FolderLock
from backrooms.netdir.network import Contact, NetworkFile

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


@contextmanager
def failing_plainly() -> Iterator[None]:
    """Turn our errors and the system's into one line and exit status 1."""
    try:
        yield
    except BackroomsError as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Failure(f"{error.filename}: {error.strerror}") from None


@click.group()
def keys() -> None:
    """Make and show the keys of a node.

    A relay makes its own in STATE/keys when it starts for the first time; this is for those who want to know
    its id before.
    """


@keys.command("new")
@click.argument("folder", metavar="DIR", type=FOLDER)
def new_keys(folder: Path) -> None:
    """Make the keys of a new node in DIR, readable by you alone. Takes a few seconds.

    \b
    Example:
      backrooms keys new /var/lib/backrooms/keys
    """
    with failing_plainly():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FolderLock(folder):
            _show(FileKeyStore.create(folder).identity())


@keys.command("show")
@click.argument("folder", metavar="DIR", type=FOLDER)
def show_keys(folder: Path) -> None:
    """Show the id of the node whose keys are in DIR. Private keys are never shown."""
    with failing_plainly():
        _show(FileKeyStore.read_identity(folder))


def _show(identity: PublicIdentity) -> None:
    click.echo(f"id           {text_id(identity.id)}")
    click.echo(f"fingerprint  {fingerprint(identity.id)}")


@click.group()
def network() -> None:
    """Make and show network files: what a node must be told to join a network.

    \b
    Example, for a network of your own:
      backrooms keys new state/keys
      backrooms network new network.toml --name mine
      backrooms network add network.toml state/keys tls:203.0.113.5:9001
    """


@network.command("new")
@click.argument("file", type=FILE)
@click.option("--name", required=True, help="What people call the network.")
def new_network(file: Path, name: str) -> None:
    """Make a network with a new random id and no contacts yet."""
    with failing_plainly():
        if file.exists():
            raise ConfigError(f"{file} is there already; it is not overwritten")
        _write(file, NetworkFile(name, os.urandom(32)))
    click.echo(f"{file}: network {name}; add its first relays with `backrooms network add`")


@network.command("add")
@click.argument("file", type=FILE)
@click.argument("relay", metavar="DIR|ID")
@click.argument("address")
def add_contact(file: Path, relay: str, address: str) -> None:
    """Add a relay as a first contact, by the folder of its keys or by its id.

    ADDRESS is where others reach it, such as tls:203.0.113.5:9001. A relay that is there already gets the new
    address.
    """
    with failing_plainly():
        found = _read(file)
        node_id = _node_id(relay)
        others = tuple(contact for contact in found.contacts if contact.id != node_id)
        _write(file, replace(found, contacts=(*others, Contact(node_id, address))))
    click.echo(f"{file}: contacts: {len(others) + 1}")


@network.command("show")
@click.argument("file", type=FILE)
def show_network(file: Path) -> None:
    """Show a network's name, id and first contacts."""
    with failing_plainly():
        found = _read(file)
    click.echo(f"name     {found.name}")
    click.echo(f"id       {text_id(found.id)}")
    for contact in found.contacts:
        click.echo(f"contact  {text_id(contact.id)}  {contact.address}")


def _node_id(relay: str) -> bytes:
    if Path(relay).is_dir():
        return FileKeyStore.read_identity(relay).id
    try:
        return parse_id(relay)
    except ValueError as error:
        raise ConfigError(f"{relay}: no folder, and not an id: {error}") from None


def _read(file: Path) -> NetworkFile:
    try:
        return NetworkFile.parse(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8 text") from None
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def _write(file: Path, content: NetworkFile) -> None:
    """Write what `_read` will take, and nothing else."""
    text = content.to_toml()
    NetworkFile.parse(text)
    write_atomic(file, text.encode(), 0o644)
