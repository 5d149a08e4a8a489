"""Whether this node may be in its network: by the version it speaks, its admission, and its keys."""

from __future__ import annotations

from twisted.logger import Logger

from backrooms.crypto.keys import text_id
from backrooms.errors import ConfigError
from backrooms.netdir.certificate import NotAdmittedError, check_admission
from backrooms.netdir.descriptor import PROTOCOL_VERSION
from backrooms.netdir.directory import Directory
from backrooms.netdir.network import NetworkFile
from backrooms.node.timers import Timers
from backrooms.wire.admission import Admission

log = Logger()

SOON = 14 * 86400
"""Seconds before the end of an admission from which on its relay's log says so."""
AGAIN = 86400.0
"""Seconds between two lines of one kind."""


def check_version(network: NetworkFile) -> None:
    """`ConfigError` if the network requires a newer protocol than this code speaks."""
    if network.required > PROTOCOL_VERSION:
        raise ConfigError(
            f"the network {network.name} requires protocol version {network.required}, and this Backrooms speaks "
            f"version {PROTOCOL_VERSION}: install a newer one"
        )


def read_admission(text: str) -> Admission | None:
    """The option `relay.admission`; None where it is empty."""
    try:
        return Admission.parse(text) if text else None
    except ValueError as error:
        raise ConfigError(f"relay.admission: {error}") from None


class Membership:
    """What keeps this node out of its network, in words. `my_id` is None on a client."""

    def __init__(self, timers: Timers, network: NetworkFile, directory: Directory, my_id: bytes | None) -> None:
        self.admission: Admission | None = None
        self._timers = timers
        self._network = network
        self._directory = directory
        self._my_id = my_id
        self._told: dict[str, float] = {}

    def kept_out(self) -> str | None:
        """Why nobody takes this relay's descriptor, and what to do; None where nothing speaks against it."""
        if self._my_id is None:
            return None
        if self._directory.is_revoked(self._my_id):
            return "this relay's keys are revoked, nobody uses it any more: make new keys (`backrooms keys new`)"
        if not self._network.charter:
            return None
        try:
            check_admission(self.admission, self._my_id, self._network.id, self._network.charter, self._timers.wall())
        except NotAdmittedError as error:
            return (
                f"the network {self._network.name} does not let this relay in: {error.reason}; send its id "
                f"{text_id(self._my_id)} to somebody with a charter key, and put what `backrooms charter admit` "
                "prints into relay.admission"
            )
        return None

    def advice(self) -> str | None:
        """What will keep this node out some day."""
        network = self._network
        if network.recommended > PROTOCOL_VERSION:
            return (
                f"the network {network.name} recommends protocol version {network.recommended}, and this Backrooms "
                f"speaks version {PROTOCOL_VERSION}: install a newer one"
            )
        if network.charter and self.admission is not None and self._my_id is not None:
            days = (self.admission.expires - self._timers.wall()) / 86400
            if 0 <= days * 86400 < SOON:
                return f"this relay's admission expires in {days:.0f} days: ask for a new one"
        return None

    def tell(self) -> None:
        """Say it in the log, at most once a day each."""
        now = self._timers.now()
        for text, say in ((self.kept_out(), log.error), (self.advice(), log.warn)):
            if text is not None and now - self._told.get(text.partition(":")[0], -AGAIN) >= AGAIN:
                self._told[text.partition(":")[0]] = now
                say("{text}", text=text)
