"""Choosing the relays of a circuit (docs/protocol.md, "Paths").

Positions that only some relays may take are filled first, then the exit, the entry, and the middles, each by capped
weight among those that fit what is chosen already. Chance may lead into a dead end, so a few whole attempts are
made, and then all combinations are searched. What remains impossible is a `PathError` with numbers.

Whether a relay may stand somewhere is decided by `PathSelector.unfit` and `Choice.unsuited` alone, which give a reason:
`path.explain` shows these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from functools import partial

from backrooms.errors import LocalProtocolError, PathError
from backrooms.interfaces import Rng
from backrooms.levels import MAX_HOPS
from backrooms.netdir.descriptor import Descriptor
from backrooms.path.constraints import Constraints, Position, Target, allows, may_exit
from backrooms.path.entities import Exclusions
from backrooms.path.roster import Candidate, Roster, conflict
from backrooms.path.shortage import why_not
from backrooms.path.weights import WeightTable, exit_damping

ANYWHERE = Target()
"""For circuits that are built before anybody says what for: any exit will do."""
WARN_SHARE = 0.2
"""Rules that leave less than this of a position's weight are warned of;"""
LEAST_SHARE = 0.01
"""those that leave less than this are refused: so few relays tell whose circuit it is."""
POSITIONS = (Position.ENTRY, Position.MIDDLE, Position.EXIT)
_ATTEMPTS = 8
_SEARCH_BUDGET = 50_000
"""Pairs of relays that the full search looks at before it gives up: about 50 ms."""
_MAX_TABLES = 128
_LATELY = 8

Port = tuple[int | None, bool]
"""A port that an exit must open, and whether for circuits of one relay."""


class PathSelector:
    """Paths over one list of relays under one set of rules. Make a new one when either changes."""

    def __init__(
        self,
        roster: Roster,
        constraints: Constraints,
        exclusions: Exclusions | None = None,
        exits: Mapping[bytes, str] | None = None,
        *,
        strict: bool = False,
        network: PathSelector | None = None,
    ) -> None:
        """`exits` are the only ones allowed. `strict` keeps entry and exit in different countries and blocs.

        `network` is the selector of the same roster without rules, whose tables are used as far as they are the same.
        """
        self.constraints = constraints
        self.roster = roster
        self.exits = exits
        self.strict = strict
        self.exclusions = exclusions or Exclusions()
        self.rows = roster.rows()
        self.version = roster.version
        """Of the roster, when this was made."""
        self._excluded = {
            Position.ENTRY: self.exclusions.entry,
            Position.MIDDLE: self.exclusions.middle,
            Position.EXIT: self.exclusions.exit,
            Position.ONLY: {**self.exclusions.exit, **self.exclusions.entry},
        }
        self._tables: dict[tuple[Position, Port | None], WeightTable] = {}
        self._network = network
        self._left: dict[Position, float] = {}
        self._damping: float | None = None
        self._prepared: tuple[Position, Port | None, list[Candidate]] | None = None
        self.last: Choice | None = None
        """What was asked for last, to explain it."""

    @classmethod
    def over(cls, relays: Sequence[Descriptor], constraints: Constraints) -> PathSelector:
        """A selector over just these relays, without rules."""
        return cls(Roster.of(relays), constraints)

    # what decides

    def unfit(self, row: Candidate, position: Position, port: Port | None = None) -> str | None:
        """Why a relay may not stand at a position, whatever else is on the path; None if it may."""
        if row.id in self.constraints.exclude:
            return "this node itself"
        rule = self._excluded[position].get(row.id)
        if rule is not None:
            return f"excluded by the rule {rule}"
        if self.constraints.distinct_subnets and not row.subnets:
            return "of unknown subnet"
        if self.strict and position is not Position.MIDDLE and row.regions is None:
            return "in an unknown country, which this level needs to know"
        if port is None:
            return None
        number, single_hop = port
        if not row.is_exit:
            return "no exit"
        if self.exits is not None and row.id not in self.exits:
            return "not among the exits that the route allows"
        if not may_exit(row.relay, number, single_hop=single_hop):
            return "refuses circuits of one hop, or the port" if single_hop else "refuses the port"
        return None

    def table(self, position: Position, port: Port | None = None) -> WeightTable:
        """Who may stand at a position, with weights. An exit is one for a `port`; caps count among those."""
        key = position, port
        table = self._tables.get(key)
        if table is None:
            table = self._same_position(position, port)
            if table is None:
                if len(self._tables) >= _MAX_TABLES:
                    del self._tables[next(iter(self._tables))]
                factor = self._exit_factor() if port is None else 1.0
                table = WeightTable(self._fit(position, port), factor, subnets=self.constraints.distinct_subnets)
            self._tables[key] = table
        return table

    def make(self, position: Position, port: Port | None = None) -> Iterator[None]:
        """Make a table in steps of a few milliseconds, so that `table` has it; pauses after each."""
        self._exit_factor()
        yield
        if self._same_position(position, port) is None and (position, port) not in self._tables:
            self._prepared = position, port, self._fit(position, port)
            yield
        self.table(position, port)
        yield

    def _fit(self, position: Position, port: Port | None) -> list[Candidate]:
        """Who may stand at a position."""
        if self._prepared is not None and self._prepared[:2] == (position, port):
            rows, self._prepared = self._prepared[2], None
            return rows
        return [row for row in self.rows if self.unfit(row, position, port) is None]

    def asked(self) -> list[tuple[Position, Port | None]]:
        """What tables were asked for, the last ones last."""
        return list(self._tables)[-_LATELY:]

    def _same_position(self, position: Position, port: Port | None) -> WeightTable | None:
        """A table that is there already and is the same."""
        if port is None and not self.strict:
            for other in (Position.ENTRY, Position.MIDDLE):
                if (other, None) in self._tables and self._excluded[other] == self._excluded[position]:
                    return self._tables[other, None]
        free = not self._excluded[position] and not self.strict and (port is None or self.exits is None)
        return self._network.table(position, port) if self._network is not None and free else None

    def _exit_factor(self) -> float:
        if self._damping is None:
            self._damping = self._network._exit_factor() if self._network is not None else exit_damping(self.rows)
        return self._damping

    def left(self, position: Position) -> float:
        """The part of the network's weight for a position that rules leave. Limits of a route's exits are no rule."""
        if self._network is None or not self._excluded[position]:
            return 1.0
        found = self._left.get(position)
        if found is None:
            table = self._network.table(position, (None, False) if position is Position.EXIT else None)
            excluded = self._excluded[position]
            left = [weight for row, weight in zip(table.rows, table.weights, strict=True) if row.id not in excluded]
            found = self._left[position] = sum(left) / table.total if table.total else 1.0
        return found

    def warning(self, positions: Collection[Position] = POSITIONS) -> str:
        """What is wrong with how much the rules leave; an empty string when nothing is."""
        parts = []
        for position in positions:
            left = self.left(position)
            if left < WARN_SHARE:
                excluded = sum(one in self.roster.by_id for one in self._excluded[position])
                parts.append(
                    f"{excluded} of {len(self.rows)} relays, {left:.1%} of the weight left, as {position.value}"
                )
        text = f"the rules exclude {'; '.join(parts)}" if parts else ""
        if self.exits is not None and self._network is not None and Position.EXIT in positions:
            table = self._network.table(Position.EXIT, (None, False))
            weight = sum(one for row, one in zip(table.rows, table.weights, strict=True) if row.id in self.exits)
            if weight < WARN_SHARE * table.total:
                text = f"{text}; " if text else ""
                text += f"the exits that the route allows have {weight / table.total:.1%} of the weight of all exits"
        return text

    def ruled_out(self, position: Position) -> list[tuple[str, int]]:
        """The rules that exclude known relays from a position, and how many each, most first."""
        excluded = self._excluded[position]
        return Counter(rule for one, rule in excluded.items() if one in self.roster.by_id).most_common()

    # choosing

    def select(
        self,
        hops: int,
        target: Target,
        rng: Rng,
        *,
        exit_required: bool = True,
        avoid: Collection[bytes] = (),
        first: Sequence[Descriptor] | None = None,
        second: Sequence[Descriptor] | None = None,
    ) -> list[Descriptor]:
        """`hops` relays, the entry first. `avoid` holds ids that this one path may not use.

        `first` and `second` are the only relays that may stand in these positions; all other rules still hold.
        With `exit_required` the last is an exit whose policy allows the target; a path of one relay then
        needs one that allows single hops. `PathError` when nothing fits.
        """
        self.last = Choice(self, hops, target, exit_required, avoid, first, second)
        return self.last.path(rng)

    def draw(self, position: Position, rng: Rng, avoid: Container[bytes] = ()) -> Descriptor | None:
        """One relay for a position, whatever the rest of the path; None if all are excluded or avoided."""
        row = self.table(position).draw_fitting(lambda row: row.id not in avoid, rng)
        return None if row is None else row.relay

    def may_stand(self, relay_id: bytes, position: Position) -> bool:
        """Whether a relay is known and no rule excludes it from a position."""
        row = self.roster.by_id.get(relay_id)
        return row is not None and self.unfit(row, position) is None


class Choice:
    """What one path is asked to be, and how it is found."""

    def __init__(
        self,
        selector: PathSelector,
        hops: int,
        target: Target = ANYWHERE,
        exit_required: bool = True,
        avoid: Collection[bytes] = (),
        first: Sequence[Descriptor] | None = None,
        second: Sequence[Descriptor] | None = None,
    ) -> None:
        if not 1 <= hops <= MAX_HOPS:
            raise LocalProtocolError(f"a path of {hops} relays, allowed are 1 to {MAX_HOPS}")
        if second is not None and hops < 3:
            raise LocalProtocolError(f"second hops given for a path of {hops}")
        self.selector = selector
        self.hops = hops
        self.target = target
        self.exit_required = exit_required
        self.avoid = avoid
        last = hops - 1
        self.positions = [Position.ENTRY, *[Position.MIDDLE] * (hops - 1)] if hops > 1 else [Position.ONLY]
        if exit_required and hops > 1:
            self.positions[last] = Position.EXIT
        elif hops == 1 and not exit_required:
            self.positions[0] = Position.ENTRY
        self.port: Port | None = (target.port, hops == 1) if exit_required else None
        self.only = {0: first, 1: second}
        self.limits = {
            index: frozenset(relay.id for relay in relays) for index, relays in self.only.items() if relays is not None
        }
        limited = sorted(self.limits)
        self.order = [*limited, *(index for index in (last, *range(last)) if index not in self.limits)]
        """The order in which positions are filled."""
        self.tables = [
            self._limited(index) if index in self.limits else selector.table(position, self._port(index))
            for index, position in enumerate(self.positions)
        ]

    def _port(self, index: int) -> Port | None:
        return self.port if index == self.hops - 1 else None

    def _limited(self, index: int) -> WeightTable:
        """The relays that are given for a position, as far as no rule excludes them."""
        rows = [self.selector.roster.by_id.get(relay_id) for relay_id in sorted(self.limits[index])]
        position, port = self.positions[index], self._port(index)
        return WeightTable([row for row in rows if row and self.selector.unfit(row, position, port) is None])

    def refusal(self, row: Candidate, index: int, chosen: Mapping[int, Candidate]) -> str | None:
        """Why a relay cannot be at a position after these were chosen; None if it can."""
        return self.selector.unfit(row, self.positions[index], self._port(index)) or self.unsuited(row, index, chosen)

    def unsuited(self, row: Candidate, index: int, chosen: Mapping[int, Candidate]) -> str | None:
        """Why a relay that may stand at a position may not do so on this path; None if it may."""
        if row.id in self.avoid:
            return "avoided this time"
        if self.selector.roster.by_id.get(row.id) is not row:
            return "changed a moment ago"
        if index in self.limits and row.id not in self.limits[index]:
            return "not among the guards" if index == 0 else "not among the second guards"
        if self.exit_required and index == self.hops - 1 and not allows(row.relay, self.target):
            return "refuses the destination"
        for place, other in chosen.items():
            why = conflict(row, other, self.selector.constraints)
            if why is not None:
                return why
            ends = self.selector.strict and {index, place} == {0, self.hops - 1}
            if ends and (row.regions is None or other.regions is None or row.regions & other.regions):
                return "in the country or bloc of the " + ("exit" if index == 0 else "entry")
        return None

    def path(self, rng: Rng) -> list[Descriptor]:
        """The relays, the entry first; `PathError` when there are none that fit."""
        self._check_left()
        for _ in range(_ATTEMPTS):
            chosen = self._attempt(rng)
            if chosen is not None:
                break
        else:
            chosen, finished = self._search(rng)
            if chosen is None:
                raise PathError(why_not(self, finished))
        return [chosen[index].relay for index in range(self.hops)]

    def _check_left(self) -> None:
        positions = {Position.ENTRY, Position.EXIT} if self.hops == 1 else set(self.positions)
        for position in positions:
            if self.selector.left(position) < LEAST_SHARE:
                warning = self.selector.warning([position])
                raise PathError(f"{warning}: at least {LEAST_SHARE:.0%} must be left; nothing was relaxed")

    def _suits(self, index: int, chosen: Mapping[int, Candidate], row: Candidate) -> bool:
        return self.unsuited(row, index, chosen) is None

    def _attempt(self, rng: Rng) -> dict[int, Candidate] | None:
        """One path by chance, or None where it came to a dead end."""
        chosen: dict[int, Candidate] = {}
        for index in self.order:
            row = self.tables[index].draw_fitting(partial(self._suits, index, chosen), rng)
            if row is None:
                return None
            chosen[index] = row
        return chosen

    def _search(self, rng: Rng) -> tuple[dict[int, Candidate] | None, bool]:
        """Look at all combinations in random order: a path, if any, and whether all were looked at."""
        budget = _SEARCH_BUDGET

        def extend(
            chosen: dict[int, Candidate], order: Sequence[int], left: Mapping[int, Sequence[Candidate]]
        ) -> dict[int, Candidate] | None:
            nonlocal budget
            if not order:
                return chosen
            index, rest = order[0], order[1:]
            # Middles are alike: what was tried at one need not be tried at the next.
            alike = [one for one in rest if self.tables[one] is self.tables[index] and self._alike(one, index)]
            for number, row in enumerate(left[index]):
                if budget <= 0:
                    return None
                now = {**chosen, index: row}
                then: dict[int, Sequence[Candidate]] = {}
                for one in rest:
                    if one not in alike or one == alike[0]:
                        rows = left[index][number + 1 :] if one in alike else left[one]
                        budget -= len(rows) + 1
                        then[one] = [other for other in rows if self.unsuited(other, one, {index: row}) is None]
                    else:
                        then[one] = then[alike[0]]
                if all(then[one] for one in rest) and (not alike or len(then[alike[0]]) >= len(alike)):
                    found = extend(now, rest, then)
                    if found is not None:
                        return found
            return None

        left: dict[int, Sequence[Candidate]] = {}
        for index in self.order:
            rows = [row for row in self.tables[index].rows if self.unsuited(row, index, {}) is None]
            left[index] = sorted(rows, key=lambda _: rng.random())
        for index in self.order[1:]:
            for other in self.order[: self.order.index(index)]:
                if self.tables[other] is self.tables[index] and self._alike(other, index):
                    left[index] = left[other]
        found = extend({}, self.order, left)
        return found, found is not None or budget > 0

    def _alike(self, a: int, b: int) -> bool:
        return a not in self.limits and b not in self.limits and self.positions[a] is self.positions[b]
