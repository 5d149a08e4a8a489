"""Choosing the relays of a circuit (docs/protocol.md, "Paths").

The exit is chosen first, then the entry, then the middles, each by capped capacity among those that fit what
is chosen already. Chance may lead into a dead end, so a few whole attempts are made, and then all
combinations are searched. What remains impossible is a `PathError` with numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from backrooms.errors import LocalProtocolError, PathError
from backrooms.interfaces import Rng
from backrooms.netdir.descriptor import Descriptor
from backrooms.path.constraints import Constraints, Target, allows, compatible, fits, may_exit, usable
from backrooms.path.weights import WeightTable, exit_damping

MAX_HOPS = 12
ANYWHERE = Target()
"""For circuits that are built before anybody says what for: any exit will do."""
_ATTEMPTS = 8
_SEARCH_BUDGET = 50_000
"""Pairs of relays that the full search looks at before it gives up: about 50 ms."""
_MAX_EXIT_TABLES = 128


class PathSelector:
    """Paths over one list of relays under one set of constraints. Make a new one when either changes."""

    def __init__(self, relays: Sequence[Descriptor], constraints: Constraints) -> None:
        self.constraints = constraints
        self._known = len(relays)
        self._excluded = sum(relay.id in constraints.exclude for relay in relays)
        self._relays = [relay for relay in relays if usable(relay, constraints)]
        self._any = WeightTable(self._relays, exit_damping(self._relays))
        self._exits: dict[tuple[int | None, bool], WeightTable] = {}

    def select(
        self,
        hops: int,
        target: Target,
        rng: Rng,
        *,
        exit_required: bool = True,
        avoid: Collection[bytes] = (),
    ) -> list[Descriptor]:
        """`hops` relays, the entry first. `avoid` holds ids that this one path may not use.

        With `exit_required` the last is an exit whose policy allows the target; a path of one relay then
        needs one that allows single hops. `PathError` when nothing fits.
        """
        if not 1 <= hops <= MAX_HOPS:
            raise LocalProtocolError(f"a path of {hops} relays, allowed are 1 to {MAX_HOPS}")
        if exit_required:
            last_table = self._exit_table(target.port, hops == 1)
        else:
            last_table = self._any

        def fits_last(relay: Descriptor) -> bool:
            return relay.id not in avoid and (not exit_required or allows(relay, target))

        for _ in range(_ATTEMPTS):
            path = self._attempt(hops, last_table, fits_last, avoid, rng)
            if path is not None:
                return path
        lasts = [relay for relay in last_table.relays if fits_last(relay)]
        path, finished = self._search(hops, lasts, avoid, rng)
        if path is not None:
            return path
        raise PathError(self._explain(hops, target, exit_required, avoid, len(lasts), finished))

    def _exit_table(self, port: int | None, single_hop: bool) -> WeightTable:
        """The exits that open this port to some address; the cap counts among them."""
        key = port, single_hop
        table = self._exits.get(key)
        if table is None:
            if len(self._exits) >= _MAX_EXIT_TABLES:
                del self._exits[next(iter(self._exits))]
            exits = [relay for relay in self._relays if may_exit(relay, port, single_hop=single_hop)]
            table = self._exits[key] = WeightTable(exits)
        return table

    def _attempt(
        self,
        hops: int,
        last_table: WeightTable,
        fits_last: Callable[[Descriptor], bool],
        avoid: Collection[bytes],
        rng: Rng,
    ) -> list[Descriptor] | None:
        """One path by chance, or None where it came to a dead end."""
        last = last_table.draw_fitting(fits_last, rng)
        if last is None:
            return None
        chosen = [last]
        while len(chosen) < hops:
            relay = self._any.draw_fitting(
                lambda relay: relay.id not in avoid and fits(relay, chosen, self.constraints), rng
            )
            if relay is None:
                return None
            chosen.append(relay)
        return [*chosen[1:], last]

    def _search(
        self, hops: int, lasts: Sequence[Descriptor], avoid: Collection[bytes], rng: Rng
    ) -> tuple[list[Descriptor] | None, bool]:
        """Look at all combinations in random order: a path, if any, and whether all were looked at."""
        budget = _SEARCH_BUDGET

        def extend(chosen: list[Descriptor], left: list[Descriptor]) -> list[Descriptor] | None:
            nonlocal budget
            if len(chosen) == hops:
                return chosen
            for index, relay in enumerate(left):
                others = left[index + 1 :]
                if len(others) + 1 < hops - len(chosen) or budget <= 0:
                    return None
                budget -= len(others) + 1
                found = extend(
                    [*chosen, relay],
                    [other for other in others if compatible(relay, other, self.constraints)],
                )
                if found is not None:
                    return found
            return None

        order = _shuffled([relay for relay in self._relays if relay.id not in avoid], rng)
        for last in _shuffled(lasts, rng):
            budget -= len(order)
            found = extend([last], [relay for relay in order if compatible(last, relay, self.constraints)])
            if found is not None:
                return [*_shuffled(found[1:], rng), last], True
            if budget <= 0:
                return None, False
        return None, True

    def _explain(
        self,
        hops: int,
        target: Target,
        exit_required: bool,
        avoid: Collection[bytes],
        lasts: int,
        finished: bool,
    ) -> str:
        """Why there is no path, in numbers and without the destination's name."""
        parts = [f"{self._known} relays known", f"{self._excluded} excluded"]
        unknown = self._known - self._excluded - len(self._relays)
        if unknown > 0:
            parts.append(f"{unknown} of unknown subnet")
        if avoid:
            parts.append(f"{len(avoid)} avoided this time")
        if exit_required:
            exits = sum(relay.is_exit for relay in self._relays)
            what = "single hops and the target" if hops == 1 else "the target"
            port = "" if target.port is None else f" (port {target.port})"
            parts.append(f"{exits} usable exits, of which {lasts} allow {what}{port}")
        if hops > 1:
            left = [relay for relay in self._relays if relay.id not in avoid]
            parts.append(f"{len(left)} usable relays")
            if self.constraints.distinct_subnets:
                subnets = {net for relay in left for net in relay.subnets()}
                parts.append(f"in {len(subnets)} subnets")
            if self.constraints.distinct_families:
                parts.append("families must differ")
        if not finished:
            parts.append("the search was ended before all combinations were seen")
        relays = "1 relay" if hops == 1 else f"{hops} relays"
        return f"no path of {relays}: {', '.join(parts)}; nothing was relaxed"


def _shuffled(items: Sequence[Descriptor], rng: Rng) -> list[Descriptor]:
    return sorted(items, key=lambda _: rng.random())


def select_path(
    relays: Sequence[Descriptor],
    hops: int,
    target: Target,
    constraints: Constraints,
    rng: Rng,
    exit_required: bool = True,
) -> list[Descriptor]:
    """One path, the entry first. Who chooses often keeps a `PathSelector`, which remembers its weights."""
    return PathSelector(relays, constraints).select(hops, target, rng, exit_required=exit_required)
