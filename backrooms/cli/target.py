"""Which node a command is for: `--control`, `--testnet` and `-c`, and where to look without them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from backrooms.errors import BackroomsError, ConfigError

if TYPE_CHECKING:
    from backrooms.cli.client import ControlAddress, ControlClient

CONTROL_VARIABLE = "BACKROOMS_CONTROL"
DEFAULT_CONFIG = "backrooms.toml"
"""Looked for in the current folder, then in /etc/backrooms."""
SYSTEM_CONFIG = Path("/etc/backrooms") / DEFAULT_CONFIG

EXIT_ERROR = 1
EXIT_NOT_RUNNING = 3

P = ParamSpec("P")
R = TypeVar("R")


class Failure(click.ClickException):
    """Ends a command with a text and the exit status for errors."""

    exit_code = EXIT_ERROR


class NoNode(click.ClickException):
    """Ends a command because the node it is for is not running."""

    exit_code = EXIT_NOT_RUNNING


def node_options(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options that choose a node; it gets them as one `open_node` argument.

    `with open_node() as client:` connects and authenticates.
    """

    @click.option("--control", metavar="ADDRESS", help="The control port: unix:/path or 127.0.0.1:PORT.")
    @click.option("--testnet", "folder", metavar="DIR", help="The client of the local network in DIR.")
    @click.option("-c", "--config", metavar="FILE", help="The node that runs with this configuration.")
    @click.option(
        "--timeout",
        default=10.0,
        show_default=True,
        type=click.FloatRange(min=0.1),
        metavar="SECONDS",
        help="How long to wait for an answer.",
    )
    @wraps(function)
    def wrapper(
        *args: Any, control: str | None, folder: str | None, config: str | None, timeout: float, **kwargs: Any
    ) -> R:
        if sum(choice is not None for choice in (control, folder, config)) > 1:
            raise click.UsageError("--control, --testnet and -c all say which node; give one of them")

        @contextmanager
        def open_node() -> Iterator[ControlClient]:
            from backrooms.cli.client import ControlClient, NotRunning

            try:
                with ControlClient(find_node(control, folder, config), timeout) as client:
                    yield client
            except NotRunning as error:
                raise NoNode(str(error)) from None
            except BackroomsError as error:
                raise Failure(str(error)) from None

        return function(*args, open_node=open_node, **kwargs)

    return wrapper


def find_node(control: str | None, folder: str | None, config: str | None) -> ControlAddress:
    """The control port that the options, the environment or a configuration file names."""
    from backrooms.cli.client import ControlAddress

    if control is None and folder is None and config is None:
        control = os.environ.get(CONTROL_VARIABLE) or None
    if control is not None:
        return ControlAddress.parse(control)
    if folder is not None:
        return ControlAddress.parse(_testnet_control(Path(folder)))
    if config is not None:
        return _configured(Path(config))
    for path in (Path(DEFAULT_CONFIG), SYSTEM_CONFIG):
        if path.exists():
            return _configured(path)
    raise ConfigError(
        f"which node? Give --control, --testnet or -c, or set {CONTROL_VARIABLE} "
        f"(there is no {DEFAULT_CONFIG} here nor in {SYSTEM_CONFIG.parent})"
    )


def _configured(path: Path) -> ControlAddress:
    """The first control port in a configuration file."""
    from backrooms.cli.client import ControlAddress
    from backrooms.config import Config

    listen = Config.load(path).control.listen
    if not listen:
        raise ConfigError(f"{path}: control.listen is empty, so this node has no control port")
    return ControlAddress.parse(listen[0])


def _testnet_control(folder: Path) -> str:
    from backrooms.cli.client import NotRunning

    file = folder / "testnet.json"
    try:
        control = json.loads(file.read_text(encoding="utf-8"))["control"]
    except FileNotFoundError:
        raise NotRunning(
            f"no local network in {folder}: there is no {file.name}; start one with `backrooms testnet --dir {folder}`"
        ) from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f'{file}: is not what `backrooms testnet` writes: no "control" in it') from None
    if not isinstance(control, str):
        raise ConfigError(f'{file}: "control" must be a string')
    return control
