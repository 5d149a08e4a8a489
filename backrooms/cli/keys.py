"""`backrooms keys` and `backrooms network`: what is made once, before a node runs."""

from __future__ import annotations

import json
import os
import time
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
from backrooms.netdir.certificate import make_certificate
from backrooms.netdir.descriptor import make_revocation
from backrooms.netdir.network import Contact, NetworkFile
from backrooms.node.membership import read_admission
from backrooms.node.revocations import ENDING
from backrooms.node.revocations import FOLDER as FOLDER_OF_REVOCATIONS
from backrooms.wire.documents import DirPublish

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextmanager
def failing_plainly() -> Iterator[None]:
    """Turn our errors and the system's into one line and exit status 1."""
    try:
        yield
    except BackroomsError as error:
        raise Failure(str(error)) from None
    except BrokenPipeError:
        raise  # whoever read our output is gone; click ends quietly
    except OSError as error:
        raise Failure(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None


@click.group()
def keys() -> None:
    """Make, show and revoke the keys of a node.

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
@_json
def show_keys(folder: Path, as_json: bool) -> None:
    """Show the id of the node whose keys are in DIR. Private keys are never shown."""
    with failing_plainly():
        identity = FileKeyStore.read_identity(folder)
        if as_json:
            click.echo(json.dumps({"id": text_id(identity.id), "fingerprint": fingerprint(identity.id)}, indent=2))
        else:
            _show(identity)


@keys.command("revoke", short_help="Revoke a relay, for ever.")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("network_file", metavar="NETWORK_FILE", type=FILE)
@click.option("--admission", default="", help="The relay's admission, in a network with a charter.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def revoke_keys(folder: Path, network_file: Path, admission: str, yes: bool) -> None:
    """Revoke the relay whose keys are in DIR, for ever: for keys that are stolen or may be.

    This writes its last record into the folder `revocations` beside DIR, which is where a relay's state is: when it
    starts or reads its configuration again, it tells the others. Any other relay of the network can do that as
    well: copy the file into its STATE/revocations.

    \b
    Example:
      backrooms keys revoke /var/lib/backrooms/keys /etc/backrooms/network.toml
    """
    with failing_plainly():
        found = read_network(network_file)
        identity = FileKeyStore.read_private(folder)
        name = text_id(identity.public.id)
        if not yes:
            click.confirm(f"Nobody will ever use the relay {name} again. Go on?", abort=True)
        now = time.time()
        certificate = make_certificate(
            identity.sign, identity.public, found.id, now, admission=read_admission(admission)
        )
        last = make_revocation(identity.sign, identity.public, found.id, now, certificate=certificate)
        path = folder.resolve().parent / FOLDER_OF_REVOCATIONS / f"{name}{ENDING}"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomic(path, DirPublish(certificate.raw, last.record_raw).encode(), 0o644)
    click.echo(f"{path}: start the relay, or have it read its configuration again, to tell the others")


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


@network.command("add", short_help="Add a relay as a first contact.")
@click.argument("file", type=FILE)
@click.argument("relay", metavar="DIR|ID")
@click.argument("address")
def add_contact(file: Path, relay: str, address: str) -> None:
    """Add a relay as a first contact, by the folder of its keys or by its id.

    ADDRESS is where others reach it, such as tls:203.0.113.5:9001. A relay that is there already gets the new
    address.
    """
    with failing_plainly():
        found = read_network(file)
        node_id = relay_id(relay)
        others = tuple(contact for contact in found.contacts if contact.id != node_id)
        _write(file, replace(found, contacts=(*others, Contact(node_id, address))))
    click.echo(f"{file}: contacts: {len(others) + 1}")


@network.command("show")
@click.argument("file", type=FILE)
@_json
def show_network(file: Path, as_json: bool) -> None:
    """Show a network's name, id, charter keys and first contacts."""
    with failing_plainly():
        found = read_network(file)
    if as_json:
        told = {
            "name": found.name,
            "id": text_id(found.id),
            "charter": [text_id(key) for key in found.charter],
            "required": found.required,
            "recommended": found.recommended,
            "contacts": [{"id": text_id(one.id), "address": one.address} for one in found.contacts],
        }
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"name     {found.name}")
    click.echo(f"id       {text_id(found.id)}")
    for key in found.charter:
        click.echo(f"charter  {text_id(key)}")
    if found.recommended:
        click.echo(f"versions required {found.required}, recommended {found.recommended}")
    for contact in found.contacts:
        click.echo(f"contact  {text_id(contact.id)}  {contact.address}")


def relay_id(relay: str) -> bytes:
    """The id of a relay, by the folder of its keys or as text."""
    if Path(relay).is_dir():
        return FileKeyStore.read_identity(relay).id
    try:
        return parse_id(relay)
    except ValueError as error:
        raise ConfigError(f"{relay}: no folder, and not an id: {error}") from None


def read_network(file: Path) -> NetworkFile:
    """What is in a network file."""
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
