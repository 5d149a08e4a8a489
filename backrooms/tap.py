"""The `backrooms` subcommand of twistd: `twistd -n backrooms --config FILE`."""

from __future__ import annotations

import os

from twisted.application.service import IService
from twisted.python import usage

from backrooms.config import Config
from backrooms.errors import BackroomsError, ConfigError


class Options(usage.Options):
    """The command line: the configuration file has everything else."""

    synopsis = "[options] backrooms --config FILE"
    longdesc = "An onion router: a client by default, a relay or an exit by configuration."
    optParameters = [  # noqa: RUF012 (Twisted's own way to declare options)
        ["config", "c", None, "The configuration file, see backrooms.toml(5)."],
    ]

    configuration: Config
    """What `--config` says, once the options are parsed."""

    def postOptions(self) -> None:
        """Read the configuration here, where an error is one clean line."""
        if not self["config"]:
            raise usage.UsageError("--config FILE is needed; see etc/backrooms.toml for an example")
        try:
            self.configuration = Config.load(self["config"])
        except ConfigError as error:
            raise usage.UsageError(str(error)) from None


def makeService(options: Options) -> IService:
    """The whole node as one service; exits with one line when it cannot be made."""
    from backrooms.service import make_service  # late: --help and wrong options need not load the node

    prefer_throughput()
    try:
        service: IService = make_service(options.configuration)
    except BackroomsError as error:
        raise SystemExit(f"backrooms: {error}") from None
    return service


def prefer_throughput() -> None:
    """Ask Linux not to let this process interrupt others whenever a packet comes (SCHED_BATCH).

    Where relays share cores they then find more cells at each wake-up: measured 8 % less CPU per byte and 8 % more
    throughput (docs/decisions/010-batch-scheduling.md). On a machine with idle cores it changes nothing.
    """
    if hasattr(os, "SCHED_BATCH"):
        try:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        except OSError:
            pass  # a container may forbid it; it is a preference only
