"""A few lines of Tor's control protocol: enough to ask a node which circuits carry our streams."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

FIELD = re.compile(r'(?<!\S)([A-Za-z_]+)=("(?:[^"\\]|\\.)*"|\S*)')
HOP = re.compile(r"\$?([0-9A-Za-z+/]+)(?:[~=]([A-Za-z0-9_-]+))?")


class ControlError(Exception):
    """The node refused a command, or what it said is not the control protocol."""


@dataclass(frozen=True, slots=True)
class Circuit:
    """A line of `GETINFO circuit-status`. `path` holds relay identities, `fields` the `KEY=value` words."""

    id: str
    state: str
    path: tuple[str, ...]
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """A line of `GETINFO stream-status`."""

    id: str
    state: str
    circuit: str
    target: str


def parse_circuit(line: str) -> Circuit:
    """`ID STATE [$IDENTITY~name,...] KEY=value...` as a Circuit."""
    words = line.split(" ", 3)
    if len(words) < 2:
        raise ControlError(f"not a circuit: {line!r}")
    path: list[str] = []
    if len(words) > 2 and FIELD.fullmatch(words[2]) is None:
        for word in words[2].split(","):
            hop = HOP.fullmatch(word)
            if hop is None:
                raise ControlError(f"not a hop: {word!r} in {line!r}")
            path.append(hop[1])
    fields = {key: value.strip('"') for key, value in FIELD.findall(line)}
    return Circuit(words[0], words[1], tuple(path), fields)


def parse_stream(line: str) -> Stream:
    """`ID STATE CIRCUIT TARGET ...` as a Stream."""
    words = line.split(" ")
    if len(words) < 4:
        raise ControlError(f"not a stream: {line!r}")
    return Stream(*words[:4])


def circuits_of_streams(circuits: list[Circuit], streams: list[Stream], port: int) -> list[Circuit]:
    """The circuits of open streams to `port`, with the other legs of a conflux set (same CONFLUX_ID)."""
    carrying = {s.circuit for s in streams if s.state == "SUCCEEDED" and s.target.endswith(f":{port}")}
    sets = {c.fields["CONFLUX_ID"] for c in circuits if c.id in carrying and "CONFLUX_ID" in c.fields}
    return [c for c in circuits if c.id in carrying or c.fields.get("CONFLUX_ID") in sets]


def connect(address: str, timeout: float = 10.0) -> socket.socket:
    """A socket to `host:port`, `/path` of a unix socket, or either as Twisted spells it (`tcp:`, `unix:`)."""
    address = address.removeprefix("unix:").removeprefix("tcp:")
    if address.startswith("/"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        sock.connect(address)
        return sock
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout)


class Control:
    """A blocking, authenticated connection to a control port."""

    def __init__(self, address: str, timeout: float = 10.0) -> None:
        self._sock = connect(address, timeout)
        self._lines: BinaryIO = self._sock.makefile("rb")
        try:
            self._authenticate()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._sock.close()

    def command(self, line: str) -> list[str]:
        """Send one command; the lines of its reply without codes, a data block joined to its first line."""
        self._sock.sendall(line.encode() + b"\r\n")
        return read_reply(self._lines, line)

    def getinfo(self, key: str) -> str:
        """The value of one GETINFO key; a value of several lines has them joined by newlines."""
        for item in self.command(f"GETINFO {key}"):
            name, equals, value = item.partition("=")
            if equals and name == key:
                return value.removeprefix("\n")
        raise ControlError(f"no answer to GETINFO {key}")

    def circuits(self) -> list[Circuit]:
        """All circuits of the node."""
        return [parse_circuit(line) for line in self.getinfo("circuit-status").splitlines() if line]

    def streams(self) -> list[Stream]:
        """All streams of the node."""
        return [parse_stream(line) for line in self.getinfo("stream-status").splitlines() if line]

    def _authenticate(self) -> None:
        info = "\n".join(self.command("PROTOCOLINFO 1"))
        methods = re.search(r"METHODS=(\S+)", info)
        offered = methods[1].split(",") if methods else []
        if "NULL" in offered:
            self.command("AUTHENTICATE")
            return
        cookie = re.search(r'COOKIEFILE="((?:[^"\\]|\\.)*)"', info)
        if "COOKIE" not in offered or cookie is None:
            raise ControlError(f"neither NULL nor COOKIE authentication is offered: {info!r}")
        path = re.sub(r"\\(.)", r"\1", cookie[1])
        self.command(f"AUTHENTICATE {Path(path).read_bytes().hex()}")


def read_reply(lines: BinaryIO, command: str) -> list[str]:
    """One reply; events (650) before it are skipped. Any code but 250 is a ControlError."""
    items: list[str] = []
    while True:
        raw = lines.readline()
        if not raw.endswith(b"\n"):
            raise ControlError(f"the control port hung up during {command.split()[0]}")
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        code, mark, text = line[:3], line[3:4], line[4:]
        if mark == "+":
            block = []
            while (data := lines.readline()) not in (b".\r\n", b".\n"):
                if not data:
                    raise ControlError(f"the control port hung up during {command.split()[0]}")
                block.append(data.decode("utf-8", "replace").rstrip("\r\n").removeprefix("."))
            text += "\n" + "\n".join(block)
        if code == "650":
            continue
        if code != "250":
            raise ControlError(f"{command.split()[0]}: {line}")
        items.append(text)
        if mark == " ":
            return items
