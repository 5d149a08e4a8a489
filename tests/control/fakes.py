"""A node that exists only for its control port."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path

from twisted.internet import reactor

from backrooms.control.server import ControlServer
from backrooms.control.view import (
    AddressInfo,
    CircuitInfo,
    LinkInfo,
    ListenerKind,
    NodeEvent,
    NodeView,
    RelayInfo,
    SignalReceived,
    StreamInfo,
)
from backrooms.errors import ConfigError
from backrooms.node.accounting import AccountingState
from backrooms.node.driver import Turn
from backrooms.node.guards import GuardStatus
from backrooms.node.timers import Timers

HOPS = tuple((f"{number:02X}" * 20, f"relay{number}") for number in range(1, 6))
CREATED = 1_800_000_000.25


def circuit(number: int = 7, **changes: object) -> CircuitInfo:
    values: dict[str, object] = {
        "id": number,
        "status": "BUILT",
        "path": HOPS[:3],
        "level": "medium",
        "created": CREATED,
        "build_ms": 12.4,
    }
    return CircuitInfo(**{**values, **changes})  # type: ignore[arg-type]


def stream(number: int = 3, **changes: object) -> StreamInfo:
    values: dict[str, object] = {
        "id": number,
        "status": "SUCCEEDED",
        "circuit_id": 7,
        "target": "example.com:443",
        "source": "127.0.0.1:50123",
        "protocol": "SOCKS5",
    }
    return StreamInfo(**{**values, **changes})  # type: ignore[arg-type]


def relay(number: int, **changes: object) -> RelayInfo:
    values: dict[str, object] = {
        "id": f"id{number}",
        "fingerprint": HOPS[number][0],
        "nickname": HOPS[number][1],
        "addresses": (f"tls:192.0.2.{number + 1}:9001", f"tls:[2001:db8::{number + 1}]:9002"),
        "exit": number > 2,
        "capacity": 10_000_000,
        "revision": CREATED,
    }
    return RelayInfo(**{**values, **changes})  # type: ignore[arg-type]


class FakeView:
    """A `NodeView` whose answers are plain attributes."""

    def __init__(self) -> None:
        self.version = "0.1.0"
        self.nickname = "Tester"
        self.fingerprint = ""
        self.level = "medium"
        self.config_file = "/etc/backrooms/backrooms.toml"
        self.started = CREATED
        self.circuit_list = [circuit(7), circuit(8, status="EXTENDED", path=HOPS[:1], build_ms=None)]
        self.stream_list = [stream()]
        self.relay_list = [relay(number) for number in range(5)]
        self.guard_list: list[GuardStatus] = []
        self.link_list = [LinkInfo(HOPS[0][0], "192.0.2.1:9001", True, 0.012, 1000, 2000)]
        self.addresses: dict[str, list[str]] = {
            "socks": ["127.0.0.1:9050", "unix:/run/socks"],
            "http": ["[::1]:9080"],
            "or": [],
        }
        self.address_list = [
            AddressInfo("tls:auto:9001", "tls:192.0.2.7:9001", "reachable", True, ""),
            AddressInfo("tls:[2001:db8::7]:9001", "tls:[2001:db8::7]:9001", "unreachable", False, "no answer"),
        ]
        self.phase = (100, "done", "Done")
        self.bytes = (1234, 5678)
        self.refusals: dict[str, int] = {}
        self.view_of_network: dict[str, object] = {
            "epoch": 7,
            "root": "00112233445566aa",
            "alarm": "",
            "last": None,
            "two-faced": [],
        }
        self.explanation: dict[str, object] = {"level": "high", "path": [], "error": ""}
        self.countries: dict[str, str] = {}
        self.queued = (0, 1 << 30)
        self.account: AccountingState | None = None
        self.reload_error = ""
        self.asked: list[str] = []
        self.found: dict[str, object] | None = None
        self.subscribers: list[Callable[[NodeEvent], None]] = []

    def circuits(self) -> list[CircuitInfo]:
        return self.circuit_list

    def streams(self) -> list[StreamInfo]:
        return self.stream_list

    def relays(self) -> list[RelayInfo]:
        return self.relay_list

    def revoked(self) -> list[RelayInfo]:
        return []

    def guards(self) -> list[GuardStatus]:
        return self.guard_list

    def links(self) -> list[LinkInfo]:
        return self.link_list

    def listeners(self, kind: ListenerKind) -> list[str]:
        return self.addresses[kind]

    def traffic(self) -> tuple[int, int]:
        return self.bytes

    def accounting(self) -> AccountingState | None:
        return self.account

    def refused(self) -> dict[str, int]:
        return self.refusals

    def waiting(self) -> tuple[int, int]:
        return self.queued

    def country(self, address: str) -> str | None:
        ip_address(address)
        return self.countries.get(address, "") if self.countries else None

    def network_view(self) -> dict[str, object]:
        return self.view_of_network

    def explain_path(self, options: Mapping[str, str]) -> dict[str, object]:
        if options.get("level") == "max":
            raise ConfigError("level 'max' needs mixing")
        return {**self.explanation, "asked": dict(options)}

    def inspect_path(self, circuit: int) -> dict[str, object]:
        if circuit != 7:
            raise ConfigError(f"no circuit {circuit}")
        return {"id": 7, "status": "BUILT", "level": "high", "rule": "routes[0]", "path": self.explanation["path"]}

    def levels(self) -> list[dict[str, object]]:
        return [
            {"level": "none", "hops": 1, "default": False, "gives": "A little.", "lacks": ["much"]},
            {"level": "low", "hops": 2, "default": True, "gives": "More.", "lacks": ["some", "other things"]},
        ]

    def path_status(self) -> dict[str, object] | None:
        return {"level": "medium", "gives": "", "lacks": ["padding"], "gaps": ["places"], "warnings": ["little left"]}

    def bootstrap(self) -> tuple[int, str, str]:
        return self.phase

    def own_addresses(self) -> list[AddressInfo]:
        return self.address_list

    def timers(self) -> int:
        return 12

    def dormant(self) -> bool:
        return False

    def newnym(self) -> None:
        self.asked.append("newnym")
        self.publish(SignalReceived("NEWNYM"))

    def reload(self) -> None:
        if self.reload_error:
            raise ConfigError(self.reload_error)
        self.asked.append("reload")

    def shutdown(self, now: bool) -> None:
        self.asked.append(f"shutdown now={now}")

    def close_circuit(self, circuit_id: int, if_unused: bool) -> bool:
        self.asked.append(f"close {circuit_id} if_unused={if_unused}")
        return any(info.id == circuit_id for info in self.circuit_list)

    def investigate(self, target: str, minutes: float, url: str, guarded: bool) -> None:
        if target == "nobody":
            raise ConfigError("'nobody': no relays are called so")
        self.asked.append(f"investigate {target} minutes={minutes:g} url={url} guarded={guarded}")

    def stop_investigation(self) -> bool:
        return self.found is not None

    def forget_scores(self, target: str) -> int:
        self.asked.append(f"forget {target}")
        return 2

    def investigation(self) -> dict[str, object] | None:
        return self.found

    def scores(self) -> list[dict[str, object]]:
        return []

    def subscribe(self, callback: Callable[[NodeEvent], None]) -> None:
        self.subscribers.append(callback)

    def unsubscribe(self, callback: Callable[[NodeEvent], None]) -> None:
        self.subscribers.remove(callback)

    def publish(self, event: NodeEvent) -> None:
        for callback in list(self.subscribers):
            callback(event)


def a_node_view() -> NodeView:
    """Only so that mypy compares the fake with the protocol."""
    return FakeView()


class Served:
    """A real control port on loopback that belongs to a `FakeView`."""

    def __init__(self, folder: Path, *endpoints: str, cookie: bool = True, allow_remote: bool = False) -> None:
        self.view = FakeView()
        self.socket = folder / "control.sock"
        self.cookie_path = folder / "control_auth_cookie"
        self.timers = Timers(reactor)
        self.server = ControlServer(
            self.view,
            endpoints or (f"unix:{self.socket}",),
            self.cookie_path,
            self.timers,
            Turn(reactor),
            reactor,
            cookie=cookie,
            allow_remote=allow_remote,
        )

    async def __aenter__(self) -> Served:
        try:
            await self.server.start()
        except BaseException:
            self.timers.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop()
        self.timers.close()
