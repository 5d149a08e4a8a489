"""How many relays a circuit has, who shares one, and when there are new ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest

from tests.live.network import CANARY, Network, wait_until
from tests.live.site import Site

pytestmark = pytest.mark.live


def proxy(network: Network, user: str = "", way: str = "socks") -> list[str]:
    """curl's options. The user name is quoted in a URL, for curl ends it at a colon elsewhere."""
    login = f"{quote(user)}:x@" if user else ""
    if way == "socks":
        return ["--proxy", f"socks5h://{login}{network.socks}"]
    return ["--proxytunnel", "--proxy", f"http://{login}{network.http}"]


@contextmanager
def circuit(network: Network, site: Site, user: str = "", way: str = "socks") -> Iterator[dict[str, Any]]:
    """The circuit of an open stream of this user."""
    with network.open_stream(site.url("slow"), *proxy(network, user, way)) as download:
        yield download.circuit


@pytest.mark.parametrize(
    ("user", "level", "hops"),
    [
        ("", "medium", 3),
        ("level=none", "none", 1),
        ("level=low", "low", 2),
        ("level=medium", "medium", 3),
        ("level=high", "high", 4),
        ("level=custom:1", "custom:1", 1),
        ("level=custom:5", "custom:5", 5),
        (f"{CANARY},level=custom:6", "custom:6", 6),
    ],
)
def test_b6_w6_the_level_in_the_user_name_is_the_length_of_the_circuit(
    network: Network, site: Site, user: str, level: str, hops: int
) -> None:
    with circuit(network, site, user) as found:
        assert (found["level"], len(found["path"])) == (level, hops)
        assert len({hop["fingerprint"] for hop in found["path"]}) == hops, "all relays are distinct"
        assert network.relay_at(found["path"][-1])["exit"]
        with network.control() as control:
            lines = control.info("circuit-status").splitlines()
        line = next(line for line in lines if line.startswith(f"{found['id']} BUILT "))
        assert len(line.split()[2].split(",")) == hops


def test_b6_levels_over_http_connect(network: Network, site: Site) -> None:
    with circuit(network, site, "level=low", "http") as found:
        assert (found["level"], len(found["path"])) == ("low", 2)


@pytest.mark.parametrize("level", ["max", "custom:0", "custom:13", "strong"])
def test_b6_a_level_that_cannot_be_had_is_refused(network: Network, site: Site, level: str) -> None:
    done = network.curl(*proxy(network, f"level={level}"), site.url("x"))
    assert done.returncode == 97
    assert done.stdout == b""
    done = network.curl(*proxy(network, f"level={level}", "http"), site.url("x"))
    assert done.returncode == 56
    assert done.stdout == b""


def test_b6_more_hops_than_relays_fail_at_once_and_are_not_shortened(network: Network, site: Site) -> None:
    assert network.fetch(site.url("first"))  # the list of relays may have to settle
    done = network.curl(*proxy(network, "level=custom:7"), site.url("x"), seconds=20)
    assert done.returncode == 97
    assert all(len(one["path"]) <= 6 for one in network.ask("circuits"))


def test_two_users_never_share_a_circuit(network: Network, site: Site) -> None:
    with (
        circuit(network, site, "alice") as alice,
        circuit(network, site, "bob") as bob,
        circuit(network, site) as nobody,
        circuit(network, site, "", "http") as web,
        circuit(network, site, "alice") as again,
    ):
        circuits = [alice["id"], bob["id"], nobody["id"], web["id"]]
        assert len(set(circuits)) == 4
        assert again["id"] == alice["id"]
        assert again["isolation"] == alice["isolation"]
        isolations = {one["isolation"] for one in (alice, bob, nobody, web)}
        assert len(isolations) == 4
        assert all(text and "alice" not in text for text in isolations)


def test_newnym_gives_new_circuits_and_leaves_old_streams_alone(network: Network, site: Site) -> None:
    with circuit(network, site, "carol") as old:
        network.signal("NEWNYM")
        with circuit(network, site, "carol") as new:
            assert new["id"] != old["id"]
            assert new["created"] > 0
            streams = network.ask("streams")
            assert {one["circuit_id"] for one in streams} >= {old["id"], new["id"]}, "the old stream goes on"
    assert wait_until(lambda: old["id"] not in {one["id"] for one in network.ask("circuits")}, 10)
