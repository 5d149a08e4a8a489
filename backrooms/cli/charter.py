"""`backrooms charter`: keys that let relays into a network."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from backrooms.cli.keys import FILE, failing_plainly, read_network, relay_id
from backrooms.crypto.keys import CharterKey, text_id
from backrooms.errors import ConfigError, KeyStoreError
from backrooms.keystore.disk import check_private, write_atomic
from backrooms.netdir.certificate import admission_message
from backrooms.wire.admission import Admission

DAYS = 365


@click.group()
def charter() -> None:
    """Keys that let relays into a private network.

    A network file with charter keys takes only relays that one of these keys has admitted. Keep the private key away
    from the relays; several people can have one each.

    \b
    Example:
      backrooms charter new charter.pem
      (put the line that it prints into network.toml, above [[contacts]])
      backrooms charter admit charter.pem network.toml RELAY_ID --days 90
      (the relay's operator puts what that prints into relay.admission)
    """


@charter.command("new", short_help="Make a charter key.")
@click.argument("file", type=FILE)
def new_charter(file: Path) -> None:
    """Make a charter key in FILE, readable by you alone, and print its line for the network file."""
    with failing_plainly():
        if os.path.lexists(file):
            raise ConfigError(f"{file} is there already; a key is never overwritten")
        key = CharterKey.generate()
        write_atomic(file, key.to_pem())
    click.echo(f'charter = ["{text_id(key.public)}"]')
    click.echo("put this line into the network file, above the first [[contacts]]", err=True)


@charter.command("show")
@click.argument("file", type=FILE)
def show_charter(file: Path) -> None:
    """Print the line for the network file again. The private key is never shown."""
    with failing_plainly():
        key = _read_key(file)
    click.echo(f'charter = ["{text_id(key.public)}"]')


@charter.command("admit", short_help="Let a relay into the network.")
@click.argument("key", type=FILE, metavar="KEY_FILE")
@click.argument("network", type=FILE, metavar="NETWORK_FILE")
@click.argument("relay", metavar="DIR|ID")
@click.option("--days", type=click.IntRange(1, 3660), default=DAYS, show_default=True, help="How long it holds.")
def admit(key: Path, network: Path, relay: str, days: int) -> None:
    """Let a relay into the network, and print what its operator puts into relay.admission."""
    with failing_plainly():
        signer, found, node_id = _read_key(key), read_network(network), relay_id(relay)
        if signer.public not in found.charter:
            line = f'charter = ["{text_id(signer.public)}"]'
            raise ConfigError(f"{network} does not have this key; add above its first [[contacts]]: {line}")
        expires = int(time.time()) + days * 86400
        signature = signer.sign(admission_message(found.id, node_id, expires))
    click.echo(f'admission = "{Admission(signer.public, expires, signature).text}"')
    until = datetime.fromtimestamp(expires, UTC)
    click.echo(f"{text_id(node_id)} is admitted to {found.name} until {until:%Y-%m-%d}", err=True)


def _read_key(file: Path) -> CharterKey:
    check_private(file, file.stat(), 0o600)
    try:
        return CharterKey.from_pem(file.read_bytes())
    except ValueError as error:
        raise KeyStoreError(f"{file} is no charter key: {error}") from None
