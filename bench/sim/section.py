"""One simulation's outcome, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Section:
    """A table with what it shows in words, and the same for programs."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    """What was simulated and how, and what must hold, a sentence or two each."""
    data: dict[str, Any] = field(default_factory=dict)
    """What goes into sim.json under this section's name."""
    failures: Sequence[str] = ()
    """What was to hold and did not: the command then ends with 1."""
