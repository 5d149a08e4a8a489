"""Every error Backrooms raises on purpose.

`RemoteProtocolError` is the peer's fault: it closes the circuit or the link it happened on.
`LocalProtocolError` is our own bug: it is logged and never blamed on a peer.
"""

from __future__ import annotations


class BackroomsError(Exception):
    """The root of all errors of this project."""


class ConfigError(BackroomsError):
    """A value in the configuration is wrong. The text says which key and what to do."""


class KeyStoreError(BackroomsError):
    """A key file cannot be used: missing, damaged, or readable by others."""


class StateError(BackroomsError):
    """The folder of a node's state cannot be used: somebody has it, or a newer version wrote it."""


class ProtocolError(BackroomsError):
    """Somebody broke the protocol."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol. `reason` is a short text without addresses, fit for a log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WireError(RemoteProtocolError):
    """Bytes that are not what they claim to be. Parsers raise nothing else."""


class CryptoError(RemoteProtocolError):
    """A signature, MAC or handshake did not verify."""


class LocalProtocolError(ProtocolError):
    """We were about to break the protocol: a bug here."""


class PathError(BackroomsError):
    """No path fits the constraints. The text has the numbers; nothing was relaxed."""


class CircuitError(BackroomsError):
    """A circuit could not be built or was lost."""


class StreamError(BackroomsError):
    """A stream could not be opened. `reason` is an `EndReason`."""

    def __init__(self, reason: int, text: str = "") -> None:
        super().__init__(text or f"stream ended, reason {reason}")
        self.reason = reason
