"""Selectors by route over a list of relays that changes (docs/protocol.md, "Paths").

In a long list nothing is done at once: rows, rules and weights are brought up to date in steps of a few milliseconds by
`work`, and meanwhile paths are chosen by the last weights, among relays that are still as they were then. A short list
is simply worked through when a selector is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from backrooms.errors import ConfigError, PathError
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory
from backrooms.path.constraints import Constraints, Position
from backrooms.path.entities import Exclusions, KnownEntities, PlacesOf, Rule, Rules, parse_rules, required
from backrooms.path.roster import Roster
from backrooms.path.route import Route
from backrooms.path.rules import Kind
from backrooms.path.selector import POSITIONS, PathSelector, Port

SHORT = 1000
"""Relays whose rows and weights may be made at once: about 20 milliseconds."""
STEP_ROWS = 60
"""Rows that are made in one step: about 5 milliseconds, most of that to look up where relays are in a text table."""
STEP_RULES = 700
"""Relays that are judged by rules in one step: as long."""
WEIGH_AGAIN = 3600.0
"""Seconds after which the ages of relays are looked at again."""
MAX_SELECTORS = 64


class Judged:
    """What rules say of the relays of a roster, relay by relay."""

    def __init__(self, rules: Rules, exits: tuple[Rule, ...], roster: Roster, places: PlacesOf) -> None:
        self._rules = rules
        self._exits = exits
        self._roster = roster
        self._places = places
        parts = (*rules.any, *rules.entry, *rules.middle, *rules.exit, *exits)
        self._families = any(rule.kind is Kind.FAMILY for rule in parts)
        self._nothing = not parts
        everywhere: dict[bytes, str] = {}
        split = rules.entry or rules.middle or rules.exit
        self._entry, self._middle, self._exit = ({}, {}, {}) if split else (everywhere,) * 3
        self.exclusions = Exclusions(self._entry, self._middle, self._exit)
        self.allowed: dict[bytes, str] | None = {} if exits else None
        """The exits that the route allows; None for all."""
        self.pending: set[bytes] = set()
        if not self._nothing:
            self.pending.update(roster.by_id)

    def changed(self, relay_id: bytes) -> None:
        """A relay came, changed or went."""
        if not self._nothing:
            self.pending.add(relay_id)

    def work(self, count: int) -> bool:
        """Judge some of those that have changed; whether there are more."""
        if not self.pending:
            return False
        if self._families:  # one relay may change what others' families are
            ids = [*self.pending.union(self._roster.by_id)]
        else:
            ids = list(self.pending)[:count]
        self.pending.difference_update(ids)
        rows = [self._roster.by_id[one] for one in ids if one in self._roster.by_id]
        relays: list[Descriptor] = [row.relay for row in rows]
        found = self._rules.exclusions(relays, self._places)
        pairs = [(self._entry, found.entry), (self._middle, found.middle), (self._exit, found.exit)]
        allowed = required(self._exits, relays, self._places) if self._exits else {}
        for kept, new in (*pairs, *([(self.allowed, allowed)] if self.allowed is not None else [])):
            for one in ids:
                kept.pop(one, None)
            kept.update(new)
        return bool(self.pending)


Key = tuple[Rules, tuple[Rule, ...], bool]
_PLAIN: Key = (Rules(), (), False)
_FIRST_TABLES: tuple[tuple[Position, Port | None], ...] = (
    (Position.MIDDLE, None),
    (Position.ENTRY, None),
    (Position.EXIT, (None, False)),
)


class Selectors:
    """Gives each route its selector; routes that differ in nothing but length have the same one."""

    def __init__(
        self,
        directory: Directory,
        constraints: Constraints,
        entities: KnownEntities | None = None,
        *,
        seen: Mapping[bytes, float] | None = None,
        wall: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`seen` tells since when each relay is known, unix seconds, and `wall` what time it is."""
        self.on_stale: Callable[[], None] | None = None
        """Called when `work` has something to do. None: everything is done at once when a selector is asked for."""
        self.on_warning: Callable[[str], None] = lambda text: None
        """Told once when rules leave little of the network."""
        self._directory = directory
        self._seen = {} if seen is None else seen
        self._wall = wall
        directory.on_change.append(self._changed)
        self.configure(constraints, entities or KnownEntities())

    def configure(self, constraints: Constraints, entities: KnownEntities) -> None:
        """Take new rules: everything is judged again."""
        self.constraints = constraints
        self.entities = entities
        knowledge = entities.knowledge
        table = knowledge.table
        self.has_countries = table is not None and table.has_countries
        self.strict_holds = self.has_countries and constraints.distinct_subnets
        """Whether entry and exit are kept in different countries: only where addresses tell countries."""
        self.has_asns = table is not None and table.has_asns
        self.roster = Roster(entities.places, knowledge.all_blocs())
        self.roster.changed.append(self._row_changed)
        self._dirty = dict.fromkeys(relay.id for relay in self._directory.relays())
        self._keys: dict[Route, Key] = {}
        self._judged: dict[tuple[Rules, tuple[Rule, ...]], Judged] = {}
        self._made: dict[Key, PathSelector] = {}
        self._wanted: dict[Key, None] = {}
        self.warnings: dict[Key, str] = {}
        """What is wrong now with how much the rules of some routes leave."""
        self._weighed = float("-inf")
        self._steps: Iterator[None] | None = None
        self._tell()

    # what is asked

    @property
    def ready(self) -> bool:
        """Whether all known relays are in the roster: before that, paths would be chosen from a part of them."""
        return not self._dirty or self.on_stale is None or len(self._dirty) <= SHORT

    def get(self, route: Route) -> PathSelector:
        """The selector for a route, over the relays that are known now. `PathError` if it has a wrong rule.

        Before all is `ready` it is one over the relays looked at so far: good for asking about them, not for choosing.
        """
        try:
            key = self._key(route)
        except ConfigError as error:  # it was right when the configuration was read, but a file may have changed
            raise PathError(str(error)) from None
        selector = self._made.get(key)
        if selector is not None and self._is_current(key):
            return selector
        if not self.ready:
            self._tell()
            return selector or self._make(key)
        if selector is None or self.on_stale is None or len(self._directory) <= SHORT:
            for _ in self._catch_up():
                pass
            return self._made[key] if self._is_current(key) else self._make(key)
        self._wanted[key] = None
        self._tell()
        return selector

    def keep(self, route: Route) -> None:
        """Have a route's selector ready before it is asked for. `ConfigError` for a wrong rule."""
        self._wanted[self._key(route)] = None
        self._tell()

    def gaps(self, route: Route) -> list[str]:
        """What cannot be held for want of a table, in words."""
        gaps = []
        if route.level.strict and not self.strict_holds:
            why = "no table of countries is installed (`backrooms geo import`)"
            if self.has_countries:
                why = "path.distinct_subnets is off, as for a network on one machine"
            gaps.append(f"{why}, so entry and exit may be in one country or bloc")
        if not self.has_asns and route.level.hops > 1:
            gaps.append("no table of AS numbers is installed, so relays of one path may be in one autonomous system")
        return gaps

    def first_seen(self, relay_id: bytes) -> float | None:
        """Since when a relay is known, unix seconds; None if that is not known."""
        return self._seen.get(relay_id)

    # keeping up

    def work(self) -> bool:
        """Do one step of what has to be done; whether there is more."""
        if self._steps is None:
            self._steps = self._catch_up(list(self._wanted), slowly=True)
            self._wanted.clear()
        try:
            next(self._steps)
            return True
        except StopIteration:
            self._steps = None
            return bool(self._dirty or self._wanted)

    def _catch_up(self, keys: list[Key] | None = None, *, slowly: bool = False) -> Iterator[None]:
        """Bring rows, judgements and weights up to date, then the selectors of `keys`; pauses after each step."""
        while self._dirty:
            for relay_id in list(self._dirty)[: STEP_ROWS if slowly else None]:
                relay = self._directory.get(relay_id)
                self.roster.put(relay_id, None if relay is None or relay.revoked else relay)
                self._dirty.pop(relay_id, None)
            yield
        for judged in list(self._judged.values()):
            while judged.work(STEP_RULES):
                yield
        if self._wall() - self._weighed >= WEIGH_AGAIN or not slowly:
            self._weigh()
            yield
        for key in [_PLAIN, *keys] if keys else []:
            if not self._is_current(key):
                yield from self._make_slowly(key)

    def _weigh(self) -> None:
        self._weighed = self._wall()
        self.roster.weigh(self._seen, self._weighed)

    def _changed(self, relay_id: bytes, relay: Descriptor | None) -> None:
        self._dirty[relay_id] = None
        self._tell()

    def _row_changed(self, relay_id: bytes) -> None:
        for judged in self._judged.values():
            judged.changed(relay_id)

    def _tell(self) -> None:
        if self.on_stale is not None:
            self.on_stale()

    def _key(self, route: Route) -> Key:
        key = self._keys.get(route)
        if key is None:
            where = route.name or "route"
            rules = self.entities.rules_for(route.level.name, route.avoid, f"{where}.avoid")
            exits = parse_rules(route.exit, f"{where}.exit", self.entities.knowledge)
            if len(self._keys) >= MAX_SELECTORS:
                for old in (self._keys, self._judged, self._made, self._wanted, self.warnings):
                    old.clear()
            key = self._keys[route] = rules, exits, route.level.strict and self.strict_holds
        return key

    def _judge(self, key: Key) -> Judged:
        """What the rules of a selector say."""
        judged = self._judged.get(key[:2])
        if judged is None:
            judged = self._judged[key[:2]] = Judged(*key[:2], self.roster, self.entities.places)
        return judged

    def _is_current(self, key: Key) -> bool:
        old = self._wall() - self._weighed >= WEIGH_AGAIN
        return not self._dirty and not old and key in self._made and self._made[key].version == self.roster.version

    def _new(self, key: Key) -> PathSelector:
        if key == _PLAIN:
            return PathSelector(self.roster, self.constraints)
        judged = self._judge(key)
        if _PLAIN not in self._made or self._made[_PLAIN].version != self.roster.version:
            self._keep(_PLAIN, PathSelector(self.roster, self.constraints))
        return PathSelector(
            self.roster, self.constraints, judged.exclusions, judged.allowed, strict=key[2], network=self._made[_PLAIN]
        )

    def _keep(self, key: Key, selector: PathSelector) -> PathSelector:
        self._made[key] = selector
        warning = selector.warning() if key != _PLAIN else ""
        if warning and key not in self.warnings:
            self.on_warning(warning)
        self.warnings[key] = warning
        if not warning:
            del self.warnings[key]
        return selector

    def _make(self, key: Key) -> PathSelector:
        judged = self._judge(key)
        while judged.work(STEP_RULES):
            pass
        return self._keep(key, self._new(key))

    def _make_slowly(self, key: Key) -> Iterator[None]:
        """Make a selector with the tables that the last one had been asked for, one in each step."""
        old = self._made.get(key)
        while self._judge(key).work(STEP_RULES):
            yield
        new = self._new(key)
        yield
        for table in [*_FIRST_TABLES, *(old.asked() if old is not None else ())]:
            yield from new.make(*table)
        for position in POSITIONS:
            new.left(position)
            yield
        self._keep(key, new)
