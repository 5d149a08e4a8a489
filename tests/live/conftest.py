"""One network and one web server for all tests that do no harm to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.network import Network, start
from tests.live.site import Site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.stop()


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory, require: Any) -> Iterator[Network]:
    """Six relays, two of them exits. Whatever is done with it, nothing must be in its logs that should not."""
    require("curl")
    made = start(tmp_path_factory.mktemp("network") / "net")
    yield made
    made.stop()
    assert made.faults() == []
