"""Networks whose client asks relays for their directories only when a test has it ask."""

from __future__ import annotations

from backrooms.node.dirstreams import DirServer
from backrooms.sides.client import ClientSide
from tests.simnet.node import SimNetwork, SimNode


def client(network: SimNetwork) -> ClientSide:
    """The client's half of the client."""
    found = network.client.node._client_side
    assert found is not None
    return found


def server(node: SimNode) -> DirServer:
    """What serves directory streams at a relay."""
    side = node.node._relay_side
    assert side is not None
    return side.dirserver


def by_hand(network: SimNetwork) -> SimNetwork:
    """Have the client ask nobody of itself, over links or circuits."""
    side = client(network)
    side._keeper.rest()
    side.dirclient.stop()
    side.viewcheck.stop()
    side.hearsay.stop()
    side.dirstreams.rest()
    network.net.run(2)
    side.dirstreams.resume()
    return network
