"""An honest peer: links to a relay every so often from an address of its own, and prints each time the milliseconds.

`python -m bench.flood.peer NETWORK ID ADDRESS EACH SECONDS`; -1 stands for no link within ten seconds.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor as global_reactor

from backrooms.crypto.keys import parse_id
from backrooms.errors import BackroomsError
from backrooms.netdir.network import NetworkFile
from backrooms.node.channels import Channels
from backrooms.node.driver import Turn
from backrooms.node.timers import Timers
from bench.flood.crafted import FromAddress, run_to_end

SOURCE = "127.77.77.77"

reactor: Any = global_reactor


async def probe(network: NetworkFile, relay_id: bytes, address: str, each: float, seconds: float) -> None:
    """Link in again and again, each time as somebody new."""
    timers, turn = Timers(reactor), Turn(reactor)
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        transport = FromAddress(network.id)
        transport.source = SOURCE
        channels = Channels(reactor, timers, turn, random.Random(), network.id, {"tls": transport}, lambda _: [address])
        try:
            await channels.link(relay_id)
            print(f"{(time.monotonic() - began) * 1000:.1f}", flush=True)
        except BackroomsError:
            print("-1", flush=True)
        await channels.stop()
        await timers.sleep(max(0.01, began + each - time.monotonic()))


def main() -> None:
    """The command line."""
    path, relay, address, each, seconds = sys.argv[1:]
    network = NetworkFile.parse(Path(path).read_text())

    run_to_end(probe(network, parse_id(relay), address, float(each), float(seconds)))


if __name__ == "__main__":
    main()
