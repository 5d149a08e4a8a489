"""Why a connection could not be made, in words for the operator."""

from __future__ import annotations

from OpenSSL import SSL

from backrooms.errors import BackroomsError


class TransportError(BackroomsError):
    """A connection that could not be made, was refused or broke. The text says why."""


_NO_TLS13 = (
    "unsupported protocol",
    "protocol version",
    "wrong version number",
    "version too low",
    "no protocols available",
)
_NO_GROUP = ("no suitable key share", "no suitable groups", "no shared group", "handshake failure", "bad key share")


def reasons(error: SSL.Error) -> str:
    """OpenSSL's own words."""
    if isinstance(error, SSL.SysCallError):
        return str(error.args[-1])
    parts = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return ", ".join(part[-1] for part in parts if part[-1]) or "unknown error"


def explain(error: SSL.Error) -> str:
    """Why a handshake failed, in words for the operator."""
    said = reasons(error)
    if any(words in said for words in _NO_TLS13):
        return f"TLS 1.3 is required, the peer does not speak it ({said})"
    if any(words in said for words in _NO_GROUP):
        return f"no key exchange group in common ({said})"
    return f"TLS handshake failed: {said}"
