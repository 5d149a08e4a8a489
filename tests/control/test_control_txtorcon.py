"""txtorcon, unchanged, as a controller of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import txtorcon
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString
from twisted.internet.task import deferLater

from backrooms.control.view import LogLine
from tests.control.fakes import HOPS, Served


async def test_connect_ask_listen_and_signal(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        endpoint = clientFromString(reactor, f"unix:{served.socket}")  # type: ignore[no-untyped-call]
        tor: Any = await txtorcon.connect(reactor, endpoint)
        protocol = tor.protocol
        assert str(tor.version).startswith("0.4.9.11")
        assert "NEWNYM" in protocol.valid_signals

        config = await tor.get_config()
        assert list(config.SocksPort) == ["127.0.0.1:9050", "unix:/run/socks"]
        assert config.Nickname == "Tester"
        assert await tor.is_ready() is True

        answer = await protocol.get_info("traffic/read", "circuit-status")
        assert answer["traffic/read"] == "1234"
        assert f"7 BUILT ${HOPS[0][0]}~relay1," in answer["circuit-status"]

        heard: list[str] = []
        await protocol.add_event_listener("NOTICE", heard.append)
        await protocol.add_event_listener("SIGNAL", heard.append)
        await protocol.signal("NEWNYM")
        served.view.publish(LogLine("NOTICE", "caf\xe9"))
        assert served.view.asked == ["newnym"]
        assert await protocol.get_info_single("dormant") == "0"
        assert heard == ["NEWNYM", "caf\\xe9"]

        information = txtorcon.TorInfo(protocol)
        await information.post_bootstrap
        assert await information.traffic.written() == "5678"
        protocol.transport.loseConnection()
        await deferLater(reactor, 0)
