"""Routes: what a stream asks of the path of its circuit (docs/protocol.md, "Paths")."""

from __future__ import annotations

from dataclasses import dataclass, field

from backrooms.levels import Level


@dataclass(frozen=True, slots=True)
class Route:
    """A level, and rules beyond those of the node. Streams of equal routes may share circuits, others never."""

    level: Level
    avoid: tuple[str, ...] = ()
    """Rules of `path.entities`: relays that fit one are in no position of the path."""
    exit: tuple[str, ...] = ()
    """Rules of `path.entities`: the exit must fit one of them. Empty for any exit."""
    name: str = field(default="", compare=False)
    """Where it comes from, for people: "routes[2]", "http listener". It does not tell routes apart."""

    @property
    def isolate_host(self) -> bool:
        """Whether streams to different hosts must not share a circuit, whatever else says so."""
        return self.level.isolate_host
