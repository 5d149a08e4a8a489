"""How circuits, streams and relays are written down for controllers, in the words of tor 0.4.9."""

from __future__ import annotations

import base64
import ipaddress
import re
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import quote as percent_encode

from backrooms.control.grammar import Reply, reply
from backrooms.control.view import (
    Bandwidth,
    CircuitChanged,
    CircuitInfo,
    InvestigationProgress,
    LogLine,
    NodeEvent,
    RelayInfo,
    SignalReceived,
    StreamChanged,
    StreamInfo,
    clean_nickname,
)

TOR_VERSION = "0.4.9.11"
"""The tor whose control port this one looks like; controllers switch features on by it."""

_PORT = re.compile(r"[0-9]{1,5}")


def version_text(version: str) -> str:
    """Our `version` in the only form that all controllers understand."""
    return f"{TOR_VERSION} (backrooms-{token(version)})"


def token(text: str) -> str:
    """`text` as one word of a `K=V` line: whatever could end or split it is percent-encoded."""
    return percent_encode(text, safe=":@/+,[]*", errors="replace")


def long_name(fingerprint: str, nickname: str) -> str:
    return f"${fingerprint}~{clean_nickname(nickname)}"


def host_port(text: str) -> tuple[str, int]:
    """`HOST:PORT` taken apart, port 0 when there is none."""
    host, colon, port = text.rpartition(":")
    if colon and _PORT.fullmatch(port) and int(port) < 65536:
        return host, int(port)
    return text, 0


def circuit_text(info: CircuitInfo) -> str:
    """A circuit as in `GETINFO circuit-status` and after `650 CIRC`."""
    words = [str(info.id), info.status]
    if info.path:
        words.append(",".join(long_name(*hop) for hop in info.path))
    created = datetime.fromtimestamp(info.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    # paths are chosen by capacity, always
    words += ["BUILD_FLAGS=NEED_CAPACITY", f"PURPOSE={token(info.purpose)}", f"TIME_CREATED={created}"]
    if info.status in ("FAILED", "CLOSED"):
        words.append(f"REASON={token(info.reason or 'NONE')}")
    words.append(f"LEVEL={token(info.level)}")
    if info.build_ms is not None:
        words.append(f"BUILD_MS={info.build_ms:.0f}")
    if info.isolation:
        words.append(f"ISOLATION={token(info.isolation)}")
    return " ".join(words)


def stream_text(info: StreamInfo) -> str:
    """A stream as in `GETINFO stream-status` and after `650 STREAM`."""
    host, port = host_port(info.target)
    words = [str(info.id), info.status, str(info.circuit_id), f"{token(host)}:{port}"]
    if info.status in ("FAILED", "CLOSED"):
        words.append(f"REASON={token(info.reason or 'MISC')}")
    if host_port(info.source)[1]:
        words.append(f"SOURCE_ADDR={token(info.source)}")
    words.append("PURPOSE=USER")
    if info.protocol:
        words.append(f"CLIENT_PROTOCOL={token(info.protocol)}")
    return " ".join(words)


@lru_cache(maxsize=4096)  # controllers ask for the whole list again and again, and it hardly changes
def relay_lines(info: RelayInfo) -> tuple[str, ...]:
    """A relay as a router status entry: lines `r`, `a`, `s` and `w`, as in `GETINFO ns/all`.

    An `r` line must have an IPv4 address, 0.0.0.0 when there is none. The digest in it is zero: tor's names a
    document that does not exist here.
    """
    ipv4, ipv6 = ("0.0.0.0", 0), []
    for address in reversed(info.addresses):
        host, port = host_port(address.partition(":")[2])
        try:
            parsed = ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            continue
        if parsed.version == 4:
            ipv4 = (str(parsed), port)
        else:
            ipv6.append(f"a [{parsed}]:{port}")
    published = datetime.fromtimestamp(info.revision, UTC).strftime("%Y-%m-%d %H:%M:%S")
    identity = _unpadded(bytes.fromhex(info.fingerprint))
    digest = _unpadded(bytes(20))
    flags = ["Exit"] * info.exit + ["Fast", "Running", "Stable", "Valid"]
    return (
        f"r {clean_nickname(info.nickname)} {identity} {digest} {published} {ipv4[0]} {ipv4[1]} 0",
        *reversed(ipv6),
        f"s {' '.join(flags)}",
        f"w Bandwidth={max(1, info.capacity // 1000)}",
    )


EVENT_NAMES = ("CIRC", "STREAM", "BW", "NOTICE", "WARN", "ERR", "SIGNAL", "INVESTIGATION")
"""What SETEVENTS knows."""


def event_reply(event: NodeEvent) -> tuple[str, Reply]:
    """The name of an event and its `650` line."""
    match event:
        case CircuitChanged(info):
            name, text = "CIRC", circuit_text(info)
        case StreamChanged(info):
            name, text = "STREAM", stream_text(info)
        case LogLine(severity, text):
            name = severity
        case Bandwidth(read, written):
            name, text = "BW", f"{read} {written}"
        case SignalReceived(signal):
            name, text = "SIGNAL", signal
        case InvestigationProgress(state, progress, probes, bad):
            name, text = "INVESTIGATION", f"STATE={state} PROGRESS={progress:.2f} PROBES={probes} BAD={bad}"
    return name, reply(650, [f"{name} {text}"])


def _unpadded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii").rstrip("=")
