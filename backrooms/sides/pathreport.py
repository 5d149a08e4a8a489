"""What people are told about paths: why one is chosen, what a circuit goes through, and what levels give."""

from __future__ import annotations

from collections.abc import Mapping

from backrooms.errors import ConfigError, PathError
from backrooms.levels import LEVELS, Level, parse_level
from backrooms.netdir.directory import Directory
from backrooms.node.circuits import Circuits
from backrooms.path.constraints import Target
from backrooms.path.explain import describe, explain, step_json
from backrooms.path.route import Route
from backrooms.path.selector import Choice
from backrooms.proxy.isolation import RouteRules
from backrooms.wire.names import ip_literal

TOP = 10
"""Relays shown for each position unless more are asked for."""


class PathReport:
    """Reports of one client, as values for JSON."""

    def __init__(self, circuits: Circuits, directory: Directory, routes: RouteRules) -> None:
        self._circuits = circuits
        self._directory = directory
        self._routes = routes

    def explain(self, options: Mapping[str, str]) -> dict[str, object]:
        """The path that a stream would get now if a circuit were built for it, and why.

        `options`: `level`, `to` (HOST:PORT), `top` (a number, or "all"). `ConfigError` says what is wrong with them. A
        guard may be added to the sample, as by a circuit; nothing is sent.
        """
        unknown = set(options) - {"level", "to", "top"}
        if unknown:
            raise ConfigError(f"no option {sorted(unknown)[0]!r}; there are level, to and top")
        host, port = _destination(options.get("to", ""))
        top = _top(options.get("top", str(TOP)))
        requested = parse_level(options["level"]) if options.get("level") else None
        rule = self._routes.find(host, port) if host else None
        default = self._circuits.options.level
        route = rule.route(requested, default) if rule is not None else None
        route = route or Route(requested or default)
        target = Target(host if host and ip_literal(host) else None, port)
        paths = self._circuits.paths
        if not paths.selectors.ready:
            raise PathError("the list of relays is being read; ask again in a moment")
        selector = paths.selectors.get(route)
        selector.last = None
        path, error = None, ""
        try:
            path = paths.choose(route, target)
            error = "" if path is not None else "no guard can be reached now: the next try is made in a while"
        except PathError as why:
            error = str(why)
        choice = selector.last or Choice(selector, route.level.hops, target)  # a path may fail for want of a guard
        steps = explain(choice, path)
        return {
            "to": options.get("to", ""),
            "level": route.level.name,
            "hops": route.level.hops,
            "rule": route.name,
            "avoid": list(route.avoid),
            "exit": list(route.exit),
            "known": len(selector.rows),
            "path": [self._relay(relay.id) for relay in path or ()],
            "error": error,
            "warnings": list(paths.selectors.warnings.values()),
            "gaps": paths.selectors.gaps(route),
            "steps": [step_json(step, top) for step in steps],
        }

    def inspect(self, number: int) -> dict[str, object]:
        """The relays of one of our circuits; `ConfigError` if there is none of that number."""
        circuit = self._circuits.circuits.get(number)
        if circuit is None:
            raise ConfigError(f"no circuit {number}")
        return {
            "id": number,
            "status": circuit.status,
            "level": circuit.level.name,
            "rule": circuit.route.name,
            "created": circuit.created_at,
            "path": [self._relay(relay.id) for relay in circuit.path],
        }

    def levels(self) -> list[dict[str, object]]:
        """What each level gives and does not give, here and now."""
        used = [*LEVELS.values(), *(one for one in self._used() if one.name not in LEVELS)]
        return [
            {
                "level": level.name,
                "hops": level.hops,
                "default": level == self._circuits.options.level,
                "gives": level.gives,
                "lacks": [*level.lacks, *self._circuits.paths.selectors.gaps(Route(level))],
            }
            for level in used
        ]

    def status(self) -> dict[str, object]:
        """What the level of most streams does not give, and what rules leave too little."""
        level = self._circuits.options.level
        selectors = self._circuits.paths.selectors
        return {
            "level": level.name,
            "gives": level.gives,
            "lacks": list(level.lacks),
            "gaps": selectors.gaps(Route(level)),
            "warnings": list(selectors.warnings.values()),
        }

    def _used(self) -> list[Level]:
        rules = (rule.level for rule in self._routes.rules if rule.level is not None)
        return list(dict.fromkeys([self._circuits.options.level, *rules]))

    def _relay(self, relay_id: bytes) -> dict[str, object]:
        row = self._circuits.paths.selectors.roster.by_id.get(relay_id)
        if row is None:
            return {"gone": True}
        return describe(row, self._circuits.paths.selectors.first_seen(relay_id))


def _destination(text: str) -> tuple[str, int | None]:
    """Host and port; an empty host and no port if nothing is given."""
    if not text:
        return "", None
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) <= 65535):
        raise ConfigError(f"{text[:80]!r} is not HOST:PORT, such as example.org:443")
    return host.lower(), int(port)


def _top(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdecimal() and 0 < len(text) <= 6):
        raise ConfigError(f"top: {text[:20]!r} is neither a number nor 'all'")
    return int(text)
