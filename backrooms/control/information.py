"""What GETINFO and GETCONF answer."""

from __future__ import annotations

import json
import os
import pwd
import re
import resource
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TypeAlias

from backrooms.control.auth import Refusal
from backrooms.control.formats import (
    EVENT_NAMES,
    circuit_text,
    relay_lines,
    stream_text,
    version_text,
)
from backrooms.control.view import (
    AddressInfo,
    CircuitInfo,
    LinkInfo,
    ListenerKind,
    NodeView,
    RelayInfo,
    StreamInfo,
    clean_nickname,
)
from backrooms.errors import BackroomsError
from backrooms.node.accounting import AccountingState
from backrooms.node.guards import GuardStatus

SIGNALS = {
    "RELOAD": "RELOAD",
    "HUP": "RELOAD",
    "SHUTDOWN": "SHUTDOWN",
    "INT": "SHUTDOWN",
    "HALT": "HALT",
    "TERM": "HALT",
    "NEWNYM": "NEWNYM",
}
"""What SIGNAL understands, and what it means by it."""
FEATURES = ("VERBOSE_NAMES", "EXTENDED_EVENTS")
"""What USEFEATURE understands; both are always on."""

NO_ACCOUNT = AccountingState("awake", 0, 0, 0, 0, 0.0, 0.0, 0.0)
"""What tor, too, answers when there is no limit."""
ENOUGH_DIRECTORY = 75
"""Bootstrap percent from which there are enough relays for a path."""

Value: TypeAlias = str | tuple[str, ...]
"""A value on the key's line, or the lines of a `250+` block."""

_FINGERPRINT = re.compile(r"\$?([0-9A-Fa-f]{40})(?:[~=][A-Za-z0-9]{1,19})?")
_NOT_PLAIN = re.compile(r'[\s"\\]')


class Information:
    """Answers from a node. `control_listeners` tells where the control port itself listens."""

    def __init__(self, view: NodeView, control_listeners: Callable[[], Iterable[str]]) -> None:
        self._view = view
        self._control = control_listeners
        self._keys: dict[str, tuple[Callable[[], Value], str]] = {
            "version": (lambda: version_text(view.version), "The version, after that of tor."),
            "config-file": (lambda: view.config_file, "The configuration file."),
            "config/names": (self._config_names, "The options that GETCONF knows, with their types."),
            "circuit-status": (lambda: _listing(map(circuit_text, view.circuits())), "Our circuits."),
            "stream-status": (lambda: _listing(map(stream_text, view.streams())), "Our streams."),
            "ns/all": (lambda: _routers(view.relays()), "Router status entries of all relays."),
            "entry-guards": (lambda: tuple(map(_guard, view.guards())), "Entry guards, the one that is used first."),
            "address-mappings/all": (lambda: "", "Address mappings; there are none."),
            "status/circuit-established": (self._circuit_established, "Whether a circuit is ready."),
            "status/enough-dir-info": (self._enough_relays, "Whether enough relays are known."),
            "status/bootstrap-phase": (self._bootstrap_phase, "How far the start has come."),
            "dormant": (lambda: "01"[view.dormant()], "Whether the node sleeps, unused for long."),
            "uptime": (lambda: str(self._uptime()), "Seconds since the start."),
            "fingerprint": (self._fingerprint, "The fingerprint of this relay."),
            "process/pid": (lambda: str(os.getpid()), "The number of the process."),
            "process/user": (_user, "The user of the process."),
            "process/descriptor-limit": (_descriptor_limit, "How many files the process may open."),
            "traffic/read": (lambda: str(view.traffic()[0]), "Bytes read since the start."),
            "traffic/written": (lambda: str(view.traffic()[1]), "Bytes written since the start."),
            "accounting/enabled": (lambda: str(int(view.accounting() is not None)), "Whether bytes are accounted."),
            "accounting/hibernating": (lambda: self._account().hibernating, "awake, soft or hard."),
            "accounting/bytes": (self._account_bytes, "Bytes read and written in this period."),
            "accounting/bytes-left": (self._account_left, "How many may still be read and written."),
            "accounting/interval-start": (lambda: _time(self._account().start), "When the period began, in UTC."),
            "accounting/interval-wake": (lambda: _time(self._account().wake), "When the node woke, or will."),
            "accounting/interval-end": (lambda: _time(self._account().end), "When the period ends."),
            "net/listeners/socks": (lambda: self._listeners("socks"), "Where SOCKS is listened to."),
            "net/listeners/http": (lambda: self._listeners("http"), "Where HTTP CONNECT is listened to."),
            "net/listeners/httptunnel": (lambda: self._listeners("http"), "The same under tor's name."),
            "net/listeners/or": (lambda: self._listeners("or"), "Where links are listened to."),
            "net/listeners/control": (lambda: _quoted(self._control()), "Where controllers are listened to."),
            "events/names": (lambda: " ".join(EVENT_NAMES), "What SETEVENTS knows."),
            "signal/names": (lambda: " ".join(SIGNALS), "What SIGNAL knows."),
            "features/names": (lambda: " ".join(FEATURES), "What USEFEATURE knows."),
            "info/names": (self._info_names, "This list."),
            "backrooms/status": (self._status, "The node at a glance, as JSON."),
            "backrooms/circuits": (lambda: _json_list(map(_circuit_json, view.circuits())), "Circuits, as JSON."),
            "backrooms/streams": (lambda: _json_list(map(_fields, view.streams())), "Streams, as JSON."),
            "backrooms/relays": (
                lambda: _json_list(map(_fields, [*view.relays(), *view.revoked()])),
                "Relays, as JSON.",
            ),
            "backrooms/investigation": (self._investigation, "The investigation that runs, or the last one, as JSON."),
            "backrooms/scores": (lambda: _json_list(map(dict, view.scores())), "Relays found bad, as JSON."),
            "backrooms/levels": (lambda: _json_list(map(dict, view.levels())), "What each level gives, as JSON."),
            "backrooms/view": (lambda: json.dumps(view.network_view()), "The view of the network, as JSON."),
            "backrooms/limits": (self._limits, "What was refused or ended, and how often."),
            "backrooms/memory": (lambda: "{} {}".format(*view.waiting()), "Bytes in queues, and how many may be."),
            "backrooms/links": (lambda: _json_list(map(_fields, view.links())), "Links, as JSON."),
        }
        self._families: dict[str, tuple[Callable[[str], Value], str]] = {
            "ns/id/": (self._by_id, "The router status entry with this fingerprint."),
            "ns/name/": (self._by_name, "The router status entry with this nickname."),
            "backrooms/explain/": (self._explain, "Why a path is chosen: level:L,to:HOST:PORT,top:N or all, as JSON."),
            "backrooms/path/": (self._path, "The relays of the circuit with this number, as JSON."),
            "ip-to-country/": (self._country, "The country of an address, by the local table."),
        }
        self._options: dict[str, tuple[str, Callable[[], list[str]]]] = {
            "Nickname": ("String", lambda: [view.nickname]),
            "SocksPort": ("LineList", lambda: self._ports(view.listeners("socks"))),
            "HTTPTunnelPort": ("LineList", lambda: self._ports(view.listeners("http"))),
            "ORPort": ("LineList", lambda: self._ports(view.listeners("or"))),
            "ControlPort": ("LineList", lambda: self._ports(self._control())),
        }
        self._canonical = {name.lower(): name for name in self._options}

    def get(self, key: str) -> Value | None:
        """The value of a GETINFO key, None when there is no such key; `Refusal` when it has no value now."""
        if found := self._keys.get(key):
            return found[0]()
        for prefix, (answer, _) in self._families.items():
            if key.startswith(prefix):
                return answer(key.removeprefix(prefix))
        return None

    def option(self, name: str) -> tuple[str, list[str]] | None:
        """An option by its name in any case: its proper name and its values; None when there is none."""
        canonical = self._canonical.get(name.lower())
        return None if canonical is None else (canonical, self._options[canonical][1]())

    # -- single keys --

    def _circuit_established(self) -> str:
        return str(int(any(circuit.status == "BUILT" for circuit in self._view.circuits())))

    def _enough_relays(self) -> str:
        return str(int(self._view.bootstrap()[0] >= ENOUGH_DIRECTORY))

    def _bootstrap_phase(self) -> str:
        percent, tag, summary = self._view.bootstrap()
        quoted = summary.replace("\\", "\\\\").replace('"', '\\"')
        return f'NOTICE BOOTSTRAP PROGRESS={percent} TAG={tag} SUMMARY="{quoted}"'

    def _uptime(self) -> int:
        return max(0, int(time.time() - self._view.started))

    def _account(self) -> AccountingState:
        return self._view.accounting() or NO_ACCOUNT

    def _account_bytes(self) -> str:
        state = self._account()
        return f"{state.read} {state.written}"

    def _account_left(self) -> str:
        state = self._account()
        return f"{state.read_left} {state.written_left}"

    def _fingerprint(self) -> str:
        if not self._view.fingerprint:
            raise Refusal(551, "Not running in server mode")
        return self._view.fingerprint

    def _listeners(self, kind: ListenerKind) -> str:
        return _quoted(self._view.listeners(kind))

    def _config_names(self) -> Value:
        return tuple(f"{name} {kind}" for name, (kind, _) in self._options.items())

    def _info_names(self) -> Value:
        names = [f"{key} -- {text}" for key, (_, text) in self._keys.items()]
        names += [f"{prefix}* -- {text}" for prefix, (_, text) in self._families.items()]
        return tuple(sorted(names))

    def _by_id(self, text: str) -> Value:
        match = _FINGERPRINT.fullmatch(text)
        if match is None:
            raise Refusal(551, "Data not decodable as hex")
        wanted = match[1].upper()
        return self._one(f"ns/id/{text}", lambda relay: relay.fingerprint == wanted)

    def _by_name(self, text: str) -> Value:
        return self._one(f"ns/name/{text}", lambda relay: clean_nickname(relay.nickname).lower() == text.lower())

    def _one(self, key: str, wanted: Callable[[RelayInfo], bool]) -> Value:
        for relay in self._view.relays():
            if wanted(relay):
                return relay_lines(relay)
        raise Refusal(552, f'Unrecognized key "{key}"')

    def _limits(self) -> Value:
        return _listing(f"{kind}={count}" for kind, count in sorted(self._view.refused().items()))

    def _explain(self, text: str) -> Value:
        words = [word.partition(":") for word in text.split(",") if word]
        try:
            found = self._view.explain_path({key: value for key, _, value in words})
        except BackroomsError as error:
            raise Refusal(551, f"Cannot explain: {error}") from None
        return tuple(json.dumps(found, indent=1).splitlines())

    def _path(self, text: str) -> Value:
        if not (text.isascii() and text.isdecimal() and len(text) <= 12):
            raise Refusal(551, "The number of a circuit was expected")
        try:
            return tuple(json.dumps(self._view.inspect_path(int(text)), indent=1).splitlines())
        except BackroomsError as error:
            raise Refusal(551, f"Cannot inspect: {error}") from None

    def _country(self, address: str) -> Value:
        try:
            found = self._view.country(address)
        except ValueError:
            raise Refusal(552, f'Unrecognized key "ip-to-country/{address}"') from None
        if found is None:
            raise Refusal(551, "GeoIP data not loaded")
        return found.lower() or "??"

    def _investigation(self) -> Value:
        return tuple(json.dumps(self._view.investigation(), indent=1).splitlines())

    def _status(self) -> str:
        view = self._view
        percent, tag, summary = view.bootstrap()
        read, written = view.traffic()
        waiting, limit = view.waiting()
        circuits = list(view.circuits())
        relays = list(view.relays())
        return json.dumps(
            {
                "version": view.version,
                "pid": os.getpid(),
                "nickname": view.nickname,
                "fingerprint": view.fingerprint,
                "level": view.level,
                "config_file": view.config_file,
                "uptime": self._uptime(),
                "bootstrap": {"percent": percent, "tag": tag, "summary": summary},
                "circuits": {
                    "built": sum(circuit.status == "BUILT" for circuit in circuits),
                    "building": sum(circuit.status in ("LAUNCHED", "EXTENDED") for circuit in circuits),
                },
                "streams": sum(1 for _ in view.streams()),
                "relays": {"known": len(relays), "exits": sum(relay.exit for relay in relays)},
                "links": sum(1 for _ in view.links()),
                "traffic": {"read": read, "written": written},
                "addresses": list(map(_fields, view.own_addresses())),
                "timers": view.timers(),
                "memory": {"waiting": waiting, "limit": limit},
                "refused": dict(view.refused()),
                "view": dict(view.network_view()),
                "path": view.path_status(),
                "listeners": {
                    "socks": list(view.listeners("socks")),
                    "http": list(view.listeners("http")),
                    "or": list(view.listeners("or")),
                    "control": list(self._control()),
                },
            }
        )

    @staticmethod
    def _ports(addresses: Iterable[str]) -> list[str]:
        return [f'unix:"{a[5:]}"' if a.startswith("unix:") and " " in a else a for a in addresses] or ["0"]


def _listing(lines: Iterable[str]) -> Value:
    """A block, or an empty value on the key's line when there is nothing: an empty block confuses them."""
    return tuple(lines) or ""


def _routers(relays: Iterable[RelayInfo]) -> Value:
    return tuple(line for relay in relays for line in relay_lines(relay))


def _guard(guard: GuardStatus) -> str:
    name = f"~{clean_nickname(guard.nickname)}" if guard.nickname else ""
    told = guard.since is not None and guard.status in ("down", "unusable")
    return f"${guard.fingerprint}{name} {guard.status}" + (f" {_time(guard.since or 0.0)}" if told else "")


def _fields(info: CircuitInfo | StreamInfo | RelayInfo | LinkInfo | AddressInfo) -> dict[str, object]:
    return {name: getattr(info, name) for name in info.__slots__}


def _circuit_json(info: CircuitInfo) -> dict[str, object]:
    path = [{"fingerprint": fingerprint, "nickname": nickname} for fingerprint, nickname in info.path]
    return _fields(info) | {"path": path}


def _json_list(items: Iterable[object]) -> Value:
    """A JSON array with one element on each line, so that no line grows with the network."""
    lines = [json.dumps(item) for item in items]
    return ("[", *(f"{line}," for line in lines[:-1]), *lines[-1:], "]")


def _quoted(addresses: Iterable[str]) -> str:
    return " ".join('"' + _NOT_PLAIN.sub(lambda m: "\\" + m[0], address) + '"' for address in addresses)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return ""


def _descriptor_limit() -> str:
    return str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
