"""The table of all fuzz targets, by name."""

from __future__ import annotations

from tests.fuzz import circuits, forwards, links, places, ports, signed, texts, values
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (values, texts, places, signed, links, circuits, ports, forwards)
    for target in module.targets()
}
