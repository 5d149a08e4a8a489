"""Programs that know nothing of us: txtorcon as an application and as a controller. And our own command."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import txtorcon
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import deferLater
from twisted.web.client import HTTPConnectionPool, readBody
from txtorcon import socks, web

from tests.live.network import CANARY, Network
from tests.live.site import Site

pytestmark = [
    pytest.mark.live,
    # txtorcon's and Twisted's agent's own
    pytest.mark.filterwarnings("ignore:Using readBody with a transport:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:twisted.internet.defer.Deferred.callbacks:DeprecationWarning"),
]


def endpoint(address: str) -> TCP4ClientEndpoint:
    host, _, port = address.partition(":")
    return TCP4ClientEndpoint(reactor, host, int(port))


# as applications


async def test_txtorcons_agent_fetches_by_host_name(network: Network, site: Site) -> None:
    pool = HTTPConnectionPool(reactor, persistent=False)  # type: ignore[no-untyped-call]
    agent: Any = web.tor_agent(reactor, endpoint(network.socks), pool=pool)
    for path in ("/agent", "/again"):
        response: Any = await agent.request(b"GET", site.url(path[1:]).encode())
        assert response.code == 200
        assert await readBody(response) == path.encode()


async def test_look_ups_are_made_by_the_exit(network: Network) -> None:
    assert str(await socks.resolve(endpoint(network.socks), "localhost")) in ("127.0.0.1", "::1")
    assert await socks.resolve_ptr(endpoint(network.socks), "127.0.0.1")  # what the machine's resolver calls it


async def test_a_look_up_that_fails(network: Network) -> None:
    with pytest.raises(socks.SocksError):
        await socks.resolve(endpoint(network.socks), f"{CANARY}.invalid")
    with pytest.raises(socks.SocksError):
        await socks.resolve_ptr(endpoint(network.socks), "127.9.9.9")


# as a controller


async def test_txtorcon_connects_to_the_control_port_and_follows_a_stream(network: Network, site: Site) -> None:
    tor: Any = await txtorcon.connect(reactor, endpoint(network.state["control"]))
    assert await tor.is_ready() is True
    routers = await tor.protocol.get_info_single("ns/all")
    assert routers.count("\nr ") + routers.startswith("r ") == len(network.state["relays"])
    statuses: list[str] = []
    await tor.protocol.add_event_listener("STREAM", lambda line: statuses.append(line.split()[1]))
    agent: Any = web.tor_agent(reactor, endpoint(network.socks))
    response: Any = await agent.request(b"GET", site.url("followed").encode())
    assert await readBody(response) == b"/followed"
    for _ in range(100):
        if "CLOSED" in statuses:
            break
        await deferLater(reactor, 0.05)
    assert statuses == ["NEW", "SENTCONNECT", "SUCCEEDED", "CLOSED"]
    statuses.clear()
    with pytest.raises(Exception, match="refused"):
        await agent.request(b"GET", b"http://localhost:1/")
    await deferLater(reactor, 0.1)
    assert statuses == ["NEW", "SENTCONNECT", "FAILED"]
    await tor.protocol.signal("NEWNYM")
    assert await tor.protocol.get_info_single("status/circuit-established") == "1"
    tor.protocol.transport.loseConnection()
    await deferLater(reactor, 0.1)


# our own command


def backrooms(network: Network, *arguments: str) -> str:
    command = [sys.executable, "-m", "backrooms.cli.main", *arguments, "--testnet", str(network.folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def test_status(network: Network) -> None:
    shown = backrooms(network, "status")
    assert "100 %" in shown
    assert network.socks in shown
    state = json.loads(backrooms(network, "status", "--json"))
    assert state["pid"] == network.state["client"]["pid"]
    assert state["relays"] == {"known": 6, "exits": 2}
    assert state["bootstrap"]["percent"] == 100


def test_circuits_and_newnym(network: Network, site: Site) -> None:
    assert network.fetch(site.url("x"), CANARY)
    circuits = json.loads(backrooms(network, "circuits", "--json"))
    used = [one for one in circuits if one["isolation"]]
    assert used
    shown = backrooms(network, "circuits")
    assert all(str(one["id"]) in shown and one["isolation"] in shown for one in used)
    assert "new circuits" in backrooms(network, "newnym")
    assert network.fetch(site.url("x"), CANARY)
    now = {one["id"] for one in json.loads(backrooms(network, "circuits", "--json")) if one["isolation"]}
    assert now.isdisjoint(one["id"] for one in used)
