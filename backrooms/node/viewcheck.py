"""Compares this client's view of the network with those of random relays, over circuits (docs/protocol.md, "Views").

A difference is reconciled first: what others have and we lack is fetched and verified. Only if several relays show much
that we lacked, somebody has kept it from us: then levels above `medium` refuse until a comparison finds nothing more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from backrooms.crypto.keys import text_id
from backrooms.errors import BackroomsError, RemoteProtocolError
from backrooms.gossip.comparing import ALARM_RELAYS, ALARM_SHARE, COMPARED, alarming, is_much, look
from backrooms.gossip.neighbours import unrelated
from backrooms.gossip.view import View, Views, epoch_at
from backrooms.interfaces import Rng
from backrooms.levels import MEDIUM, Level
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory
from backrooms.node.circuits import Circuits
from backrooms.node.dirclient import EXCHANGE_TIME, DirectoryClient
from backrooms.node.dirstreams import AskingConnection, DirStreams
from backrooms.node.evidence import Evidence
from backrooms.node.schedule import Schedule
from backrooms.node.timers import Timers
from backrooms.path.constraints import Position
from backrooms.path.roster import Candidate, conflict
from backrooms.wire.documents import MAX_FETCH_IDS, DirFetch
from backrooms.wire.relay import EndReason
from backrooms.wire.views import BucketsRequest, IdsRequest, ViewBuckets, ViewIds, ViewRequest, ViewRoot

log = Logger()

FIRST = 60.0
"""Seconds from the start, about, until views are compared."""
EVERY = 4 * 3600.0
"""Seconds between comparisons, about."""
SOON = 90.0
"""Seconds until the next one, about, after an alarm or when too few relays answered."""
SOON_MOST = 1800.0
DRAWS = 3 * COMPARED
"""Relays that are tried until so many have answered."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of one comparison."""

    at: float
    """Unix seconds."""
    epoch: int
    root: bytes
    compared: int
    """Relays that showed their view."""
    same: int
    """Those of them that showed our root at once."""
    lacked: int
    """Relays that are settled elsewhere, that we did not know and do now."""
    showed_much: int
    """Relays that showed more than a fiftieth that we lacked."""
    silent: int
    """Relays that did not answer, or have no view of this epoch."""
    faulty: int
    """Relays that contradicted themselves or broke the rules."""


def report(views: Views, evidence: Evidence, checker: ViewChecker | None, wall: float) -> dict[str, object]:
    """What a node tells of its view: the epoch, the first half of the root, and what comparisons came to."""
    epoch = epoch_at(wall)
    settled = views.view(epoch, wall)
    view = settled or views.fresh(epoch)
    last = checker.last if checker is not None else None
    return {
        "epoch": view.epoch,
        "root": view.root.hex()[:16],
        "relays": len(view),
        "settled": settled is not None,
        "alarm": checker.alarm if checker is not None else "",
        "comparisons": dict(checker.counts) if checker is not None else {},
        "last": {**asdict(last), "root": last.root.hex()[:16]} if last is not None else None,
        "two-faced": [text_id(one) for one in sorted(evidence.proofs)],
    }


class _Asked:
    """A relay's view, asked over a connection (`gossip.comparing.Peer`)."""

    def __init__(self, connection: AskingConnection) -> None:
        self._connection = connection

    async def root(self, epoch: int) -> ViewRoot:
        return await self._connection.ask(ViewRequest(epoch), ViewRoot)

    async def buckets(self, epoch: int) -> ViewBuckets:
        return await self._connection.ask(BucketsRequest(epoch), ViewBuckets)

    async def ids(self, request: IdsRequest) -> ViewIds:
        return await self._connection.ask(request, ViewIds)


class ViewChecker:
    """Compares views now and then. `refuses` says which levels may not be used meanwhile."""

    def __init__(
        self,
        timers: Timers,
        directory: Directory,
        circuits: Circuits,
        streams: DirStreams,
        client: DirectoryClient,
        views: Views,
        evidence: Evidence,
        rng: Rng,
    ) -> None:
        self.last: Comparison | None = None
        self.alarm = ""
        """Why levels above `medium` refuse; empty when they do not."""
        self.counts: Counter[str] = Counter()
        """Comparisons, and what came of them."""
        self._timers = timers
        self._directory = directory
        self._circuits = circuits
        self._streams = streams
        self._client = client
        self._views = views
        self._evidence = evidence
        self._rng = rng
        self._equivocators_of: tuple[int, frozenset[bytes]] = -1, frozenset()
        self._apart = 0
        """Relays with two faces that are unrelated to each other, as of that list and these proofs."""
        self._soon = SOON
        self._schedule = Schedule(timers, "the comparison of views")

    def start(self) -> None:
        """Compare soon, and from then on."""
        self._later(FIRST)

    def stop(self) -> None:
        """Compare no more."""
        self._schedule.stop()

    def rest(self) -> None:
        """Compare nothing until `resume`."""
        self._schedule.rest()

    def resume(self) -> None:
        """Go on; what is overdue is compared at once."""
        self._schedule.resume()

    def _later(self, seconds: float) -> None:
        self._schedule.set("compare", seconds * (0.75 + self._rng.random() / 2), self._run)

    def refuses(self, level: Level) -> str | None:
        """Why a level may not be used now."""
        if level.hops <= MEDIUM.hops:
            return None
        return self.alarm or self._equivocators() or None

    def _equivocators(self) -> str:
        """Few relays with two faces are just avoided: no one of them may stop anybody.

        Those of one network or family count once, since it costs nothing to make many there.
        """
        key = self._directory.revision, self._evidence.ids()
        if key != self._equivocators_of:
            self._equivocators_of, apart = key, list[Descriptor]()
            for relay in filter(None, map(self._directory.get, sorted(key[1]))):
                if all(unrelated(relay, other) for other in apart):
                    apart.append(relay)
            self._apart = len(apart)
        if self._apart >= ALARM_RELAYS and is_much(self._apart, len(self._directory)):
            return (
                f"{self._apart} of {len(self._directory)} relays, of different networks and families, have signed two "
                "records of one revision"
            )
        return ""

    # comparing

    async def _run(self) -> None:
        again = await self.compare()
        if again:
            self._later(self._soon)
            self._soon = min(SOON_MOST, self._soon * 1.5)
        else:
            self._soon = SOON
            self._later(EVERY)

    async def compare(self) -> bool:
        """Compare once; whether it should be done again soon."""
        if not await self._client.update():
            return True
        view = self._views.fresh(epoch_at(self._timers.wall()))
        before = {relay.id for relay in self._directory.relays()}
        drawn = self._draw()
        results: list[tuple[int, int, bool]] = []
        failed: Counter[str] = Counter()
        works = [
            Deferred.fromCoroutine(self._work(drawn, view, before, results, failed))
            for _ in range(min(COMPARED, len(drawn)))
        ]
        await DeferredList(works, consumeErrors=False)
        showed_much = sum(is_much(lacked, count) for lacked, count, _ in results)
        self.last = Comparison(
            self._timers.wall(),
            view.epoch,
            view.root,
            len(results),
            sum(same for *_, same in results),
            max((lacked for lacked, *_ in results), default=0),
            showed_much,
            failed["silent"],
            failed["faulty"],
        )
        self.counts["comparisons"] += 1
        return self._judge([(lacked, count) for lacked, count, _ in results])

    def _judge(self, shown: list[tuple[int, int]]) -> bool:
        """Raise or end the alarm; whether to compare again soon."""
        if alarming(shown):
            much = sum(is_much(lacked, count) for lacked, count in shown)
            self.alarm = (
                f"{much} of {len(shown)} relays showed more than {ALARM_SHARE:.0%} of the network that this client "
                "lacked, so somebody has hidden it; until views agree again, levels above medium are not used"
            )
            self.counts["alarms"] += 1
            log.error("{alarm}", alarm=self.alarm)
            self._circuits.wake()
            return True
        if self.alarm and len(shown) >= ALARM_RELAYS:
            self.alarm = ""
            log.info("the views of the network agree again")
            self._circuits.directory_changed()
        return bool(self.alarm) or len(shown) < min(ALARM_RELAYS, len(self._directory))

    def _draw(self) -> list[Descriptor]:
        """Random relays of distinct networks and families, the next one to ask at the end."""
        selector = self._circuits.paths.selectors.get(self._circuits.default)
        rows = selector.roster.by_id
        constraints = self._circuits.options.constraints
        left = [one for one in self._directory.relays() if one.id not in constraints.exclude]
        bad = self._client.bad()
        chosen: list[Candidate] = []
        while left and len(chosen) < DRAWS:
            number = self._rng.randrange(0, len(left))
            left[number], left[-1] = left[-1], left[number]
            row = rows.get(left.pop().id)
            if row is None or row.id in bad or not selector.may_stand(row.id, Position.MIDDLE):
                continue
            if all(conflict(row, other, constraints) is None for other in chosen):
                chosen.append(row)
        return [row.relay for row in reversed(chosen)]

    async def _work(
        self,
        drawn: list[Descriptor],
        view: View,
        before: set[bytes],
        results: list[tuple[int, int, bool]],
        failed: Counter[str],
    ) -> None:
        """Ask one relay after the other until one has shown its view."""
        while drawn:
            relay = drawn.pop()
            connection = None
            try:
                connection = await self._streams.connect(relay.id)
                found = await self._ask(connection, view, before)
            except RemoteProtocolError as error:
                failed["faulty"] += 1
                if connection is not None:
                    self._client.blame(connection, error)
            except BackroomsError:
                failed["silent"] += 1
            else:
                if found is not None:
                    results.append(found)
                    return
                failed["silent"] += 1
            finally:
                if connection is not None:
                    connection.close()

    async def _ask(self, connection: AskingConnection, view: View, before: set[bytes]) -> tuple[int, int, bool] | None:
        """How many settled ids a relay showed that we lacked, how many it has, and whether its root was ours."""
        end = self._timers.now() + EXCHANGE_TIME
        late = self._timers.at(end, partial(connection.lost, EndReason.TIMEOUT))
        try:
            shown = await look(_Asked(connection), view)
            if shown is None:
                return None
            strange = sorted(shown.others - before)
            missing = [one for one in strange if one not in self._directory]
            for start in range(0, len(missing), MAX_FETCH_IDS):
                await self._client.fetch(connection, DirFetch(tuple(missing[start : start + MAX_FETCH_IDS])), end)
        finally:
            late.cancel()
        # Only what is proven by documents counts: nobody can make us lack relays that there are not.
        return sum(one in self._directory for one in strange), shown.count, shown.same
