"""Chooses the paths of this client's circuits: through its guards, around what has just failed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial

from backrooms.errors import CircuitError, PathError
from backrooms.interfaces import Rng
from backrooms.netdir.descriptor import Descriptor
from backrooms.node.channels import Channels
from backrooms.node.guards import Guards
from backrooms.node.timers import Timers
from backrooms.path.constraints import Position, Target
from backrooms.path.roster import conflict
from backrooms.path.route import Route
from backrooms.path.selector import ANYWHERE, PathSelector
from backrooms.path.selectors import Selectors

SUSPICION = 30.0
"""Seconds for which relays at which a circuit failed are avoided, if there are others."""


class Paths:
    """Paths by route. A circuit of more than one relay enters by a guard, whatever it is for."""

    def __init__(self, timers: Timers, channels: Channels, selectors: Selectors, guards: Guards, rng: Rng) -> None:
        self.selectors = selectors
        self.guards = guards
        self.shun: list[Callable[[], Collection[bytes]]] = []
        """Each gives ids of relays to avoid in new paths if there are others; guards are never among them."""
        self._timers = timers
        self._channels = channels
        self._rng = rng
        self._suspects: dict[bytes, float] = {}

    def choose(
        self, route: Route, target: Target = ANYWHERE, avoid: Collection[bytes] = (), *, exit_required: bool = True
    ) -> list[Descriptor] | None:
        """A path, around relays that have just failed if there are others. None: all that can be done is to wait.

        `avoid` holds ids that may not be used behind the guard. No constraint is ever relaxed; `PathError` says that
        nothing fits.
        """
        if not self.selectors.ready:
            return None
        selector = self.selectors.get(route)
        hops = route.level.hops

        def select(
            shunned: Collection[bytes], first: list[Descriptor] | None, second: list[Descriptor] | None = None
        ) -> list[Descriptor]:
            return selector.select(
                hops,
                target,
                self._rng,
                exit_required=exit_required,
                avoid=_without(first, shunned, avoid),
                first=first,
                second=second,
            )

        if hops == 1:
            return _first_that_works(partial(select, shunned, None) for shunned in self._shunned(()))
        seconds = self.guards.second(selector) if route.level.layer2 and hops > 2 else None
        groups = self.entries(selector)
        if not groups:
            return None
        failure: PathError | None = None
        for group in groups:
            for shunned in self._shunned({one.id for one in group}):
                try:
                    return select(shunned, group, seconds)
                except PathError as error:
                    failure = failure or error
            if seconds is not None:
                # None of the second hops goes with this entry, or with the route: one more that does is kept.
                try:
                    path = select((), group)
                except PathError:
                    continue
                if self.guards.add_second(path[1]):
                    return path
            elif group is groups[0]:
                select((), None)  # tells at once, and why, if no entry at all would help
        assert failure is not None
        raise failure

    def to(self, route: Route, last: Descriptor, avoid: Collection[bytes] = ()) -> list[Descriptor] | None:
        """A path of the route's length that ends at this relay, exit or not; None: all that can be done is to wait."""
        hops = route.level.hops
        selector = self.selectors.get(route)
        row = selector.roster.by_id.get(last.id)
        if row is None:
            raise PathError("a relay that is not in the list ends no path")
        if not selector.may_stand(last.id, Position.MIDDLE):
            raise PathError("a relay that rules exclude ends no path")
        if hops == 1:
            return [last]
        others = selector.roster.by_id.values()
        unfit = {one.id for one in others if conflict(one, row, selector.constraints) is not None}
        groups = self.entries(selector)
        if not groups:
            return None
        tries = (
            partial(
                selector.select,
                hops - 1,
                ANYWHERE,
                self._rng,
                exit_required=False,
                avoid=_without(group, shunned, avoid) | unfit | {last.id},
                first=group,
            )
            for group in groups
            for shunned in self._shunned({one.id for one in group})
        )
        return [*_first_that_works(tries), last]

    def entries(self, selector: PathSelector) -> list[list[Descriptor]]:
        """First hops that may be used now, as groups to try one after the other; none: there is nothing but to wait."""
        resting = self._channels.resting()
        for relay_id in resting:
            self.guards.missed(relay_id)
        groups = ([one for one in group if one.id not in resting] for group in self.guards.first(selector))
        return [group for group in groups if group]

    def _shunned(self, spared: Collection[bytes]) -> Iterator[set[bytes]]:
        """What to avoid, if a path can be had without: less and less of it."""
        now = self._timers.now()
        self._suspects = {one: until for one, until in self._suspects.items() if until > now}
        resting = set(self._channels.resting()).difference(spared)
        doubted = self.doubted().difference(spared)
        suspects = set(self._suspects).difference(spared)
        last: set[bytes] | None = None
        for shunned in (resting | suspects | doubted, resting | doubted, resting, set[bytes]()):
            if shunned != last:
                yield shunned
            last = shunned

    def is_due(self, circuit_entry: bytes, route: Route) -> bool:
        """Whether a circuit should be built to see if a better guard than this one is back."""
        due = self.guards.due_before(circuit_entry, self.selectors.get(route))
        return bool(due) and not self._channels.resting().keys() >= set(due)

    def doubted(self) -> set[bytes]:
        """Relays that somebody has reason to avoid."""
        return {relay_id for ask in self.shun for relay_id in ask()}

    def suspect(self, relays: Iterable[Descriptor]) -> None:
        """A circuit failed at one of these."""
        until = self._timers.now() + SUSPICION
        for relay in relays:
            self._suspects[relay.id] = until

    def trust(self, relays: Iterable[Descriptor]) -> None:
        """A circuit came up along these."""
        for relay in relays:
            self._suspects.pop(relay.id, None)


def _without(spared: Iterable[Descriptor] | None, *avoided: Collection[bytes]) -> set[bytes]:
    """All that is avoided, but for those spared."""
    return set[bytes]().union(*avoided).difference(one.id for one in spared or ())


def _first_that_works(tries: Iterable[Callable[[], list[Descriptor]]]) -> list[Descriptor]:
    """The result of the first that raises no `PathError`; the last one's error if all do."""
    failure: PathError | None = None
    for attempt in tries:
        try:
            return attempt()
        except PathError as error:
            failure = error
    raise failure or CircuitError("there is no path to try")
