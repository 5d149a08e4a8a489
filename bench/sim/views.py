"""Views of the network that somebody splits, liars that cry wolf, and what a client's list costs over circuits.

Views, comparisons, logs of changes and messages are the real ones. Circuits and documents are only counted.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from math import comb
from typing import Any

from backrooms.gossip.changes import ChangeLog
from backrooms.gossip.comparing import ALARM_RELAYS, COMPARED, Shown, alarming, look
from backrooms.gossip.view import View
from backrooms.node.dirclient import KNOWN_SOURCES, NEW_SOURCE, POLL_LEAST, POLL_MOST, SOURCE_LIFE, SOURCES, next_pause
from backrooms.node.viewcheck import EVERY
from backrooms.wire.cell import CELL_SIZE
from backrooms.wire.documents import DirFetch, Parts
from backrooms.wire.frames import FRAME_HEADER_SIZE
from backrooms.wire.relay import MAX_DATA
from backrooms.wire.views import (
    MAX_CHANGES,
    Change,
    Changes,
    ChangesRequest,
    IdsRequest,
    ViewBuckets,
    ViewIds,
    ViewRoot,
)
from bench.sim.relays import make_relay
from bench.sim.section import Section

RELAYS = 1000
CLIENTS = 100
HIDDEN = 0.2
"""Part of the relays that each half is not told of."""
EPOCH = 2_000_000
ROUNDS = 12
LIARS = (0.0, 0.2, 0.4, 0.6)
DAY = 86_400.0
RENEWAL = 18 * 3600.0
"""Seconds between two records of a relay."""
GOSSIP_TIME = 10.0
BUILD_CELLS = 2 * 3 + 1
"""Cells on the client's link for a circuit of three relays, and to end it."""


class Peer:
    """A relay that shows a view."""

    def __init__(self, view: View) -> None:
        self.view = view

    async def root(self, epoch: int) -> ViewRoot:
        return ViewRoot(epoch, True, len(self.view), self.view.root)

    async def buckets(self, epoch: int) -> ViewBuckets:
        return ViewBuckets(epoch, self.view.buckets)

    async def ids(self, request: IdsRequest) -> ViewIds:
        ids, more = self.view.page(request.parts, request.after, 1800)
        return ViewIds(request.epoch, tuple(ids), more)


def now(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("it waits")


@cache
def _view(ids: frozenset[bytes]) -> View:
    return View(EPOCH, ids)


@cache
def _shown(mine: frozenset[bytes], theirs: frozenset[bytes]) -> Shown:
    """The comparison of two views, made once for all clients that have the same."""
    shown = now(look(Peer(_view(theirs)), _view(mine)))
    assert isinstance(shown, Shown)
    return shown


class Client:
    """A client's list, and what it compares."""

    def __init__(self, ids: frozenset[bytes]) -> None:
        self.ids = ids
        self.alarm = False
        self.noticed: int | None = None

    def compare(self, number: int, shows: Callable[[bytes], frozenset[bytes]], rng: random.Random) -> None:
        """One comparison: what is shown is sound here, so the union is taken."""
        before = self.ids
        results = []
        for relay in rng.sample(sorted(before), COMPARED):
            shown = _shown(before, shows(relay))
            results.append((len(shown.others), shown.count))
            self.ids |= shown.others
        self.alarm = alarming(results)
        if self.alarm and self.noticed is None:
            self.noticed = number


def split(liars: float, defence: bool) -> tuple[float, float, float, float]:
    """Two views for two halves. Liars show each client the view that it was given; honest relays show all.

    Shares of clients that have noticed after one and after all rounds, the mean round, and the share of relays that
    clients still lack in the end.
    """
    rng = random.Random(f"split {liars}")
    everybody = frozenset(rng.randbytes(32) for _ in range(RELAYS))
    shuffled = rng.sample(sorted(everybody), RELAYS)
    hidden = int(HIDDEN * RELAYS)
    halves = everybody - set(shuffled[:hidden]), everybody - set(shuffled[hidden : 2 * hidden])
    lying = set(rng.sample(shuffled, int(liars * RELAYS)))
    clients = [Client(halves[number % 2]) for number in range(CLIENTS)]
    if defence:
        for number in range(1, ROUNDS + 1):
            for index, client in enumerate(clients):
                given = halves[index % 2]
                client.compare(number, lambda relay, given=given: given if relay in lying else everybody, rng)  # type: ignore[misc]
    noticed = [client.noticed for client in clients if client.noticed is not None]
    first = sum(number == 1 for number in noticed) / CLIENTS
    mean = sum(noticed) / len(noticed) if noticed else float("nan")
    lacked = sum(1 - len(client.ids) / RELAYS for client in clients) / CLIENTS
    return first, len(noticed) / CLIENTS, mean, lacked


def cry_wolf(liars: int | float, comparisons: int) -> float:
    """The share of comparisons that raise an alarm when liars show 5 % new relays with good documents each time.

    `liars` of the eight that are asked lie, or a share of all relays.
    """
    rng = random.Random(f"wolf {liars}")
    everybody = frozenset(rng.randbytes(32) for _ in range(RELAYS))
    new = frozenset(rng.randbytes(32) for _ in range(RELAYS // 20))
    alarms = 0
    for _ in range(comparisons):
        drawn = rng.sample(sorted(everybody), COMPARED)
        if isinstance(liars, int):
            lying = set(drawn[:liars])
        else:
            lying = {relay for relay in drawn if rng.random() < liars}
        results = []
        for relay in drawn:
            shown = _shown(everybody, everybody | new if relay in lying else everybody)
            results.append((len(shown.others), shown.count))
        alarms += alarming(results)
    return alarms / comparisons


def expected(share: float) -> float:
    """The probability that enough of those drawn are liars, computed."""
    few = (comb(COMPARED, k) * share**k * (1 - share) ** (COMPARED - k) for k in range(ALARM_RELAYS))
    return 1 - sum(few)


# what it costs


class Source:
    """A relay whose changes a client asks for."""

    def __init__(self, number: int) -> None:
        self.log = ChangeLog(number.to_bytes(16, "big"))


def cells(payload: int) -> int:
    """Cells that a message takes on a circuit."""
    return -(-(payload + FRAME_HEADER_SIZE) // MAX_DATA)


def day(relays: int) -> dict[str, float]:
    """Bytes in cells, both ways, that a client's list takes in a day in which every relay renews its record.

    The client has the list when the day begins. One relay in a hundred is new that day.
    """
    rng = random.Random(f"day {relays}")
    sample = make_relay(1)
    record, certificate = len(sample.record_raw), len(sample.certificate.raw)
    ids = sorted(rng.randbytes(32) for _ in range(relays))
    sources = [Source(number) for number in range(KNOWN_SOURCES * 8)]
    for source in sources:
        for node_id in ids:
            source.log.note(node_id, True)
    events = sorted(
        [(rng.random() * RENEWAL + lap * RENEWAL, node_id, False) for node_id in ids for lap in (0, 1)]
        + [(rng.random() * DAY, rng.randbytes(32), True) for _ in range(relays // 100)]
    )
    events = [event for event in events if event[0] < DAY]
    known: OrderedDict[int, int] = OrderedDict()
    open_: list[tuple[int, float]] = []
    lacking: dict[bytes, bool] = {}
    spent: Counter[str] = Counter()
    at, clock, fresh = 0, 0.0, 0
    while clock < DAY:
        while at < len(events) and events[at][0] <= clock:
            for source in sources:
                source.log.note(events[at][1], True)
            lacking[events[at][1]] = events[at][2]
            at += 1
        open_ = [one for one in open_ if one[1] > clock]
        if len(open_) < SOURCES:
            spent["circuits"] += BUILD_CELLS + 1
            remembered = [one for one in known if one not in dict(open_)]
            if len(remembered) >= SOURCES and rng.random() >= NEW_SOURCE:
                number = rng.choice(remembered)
            else:
                number, fresh = fresh, fresh + 1
            open_.append((number, clock + SOURCE_LIFE * (0.5 + rng.random())))
        else:
            open_.append(open_.pop(0))
        number = open_[-1][0]
        _ask(sources[number].log, number, known, lacking, spent, record, certificate)
        clock += POLL_MOST * (0.75 + rng.random() / 2)
    comparisons = DAY / EVERY
    spent["comparisons"] = round(comparisons * COMPARED * (BUILD_CELLS + 2))
    return {"total": float(sum(spent.values()) * CELL_SIZE)} | {
        name: float(count * CELL_SIZE) for name, count in spent.items()
    }


def _ask(
    log: ChangeLog,
    number: int,
    known: OrderedDict[int, int],
    lacking: dict[bytes, bool],
    spent: Counter[str],
    record: int,
    certificate: int,
) -> None:
    """One question for changes with all that follows."""
    since = known.pop(number, 0)
    while True:
        page = log.since(log.instance, since, MAX_CHANGES)
        assert page is not None
        changed = tuple(Change(one, 7, bytes(16), bytes(16)) for one in sorted(page.changed))
        answer = Changes(log.instance, page.revision, changed, (), page.more).encode()
        spent["changes"] += cells(len(ChangesRequest(log.instance, since).encode())) + cells(len(answer))
        _fetch([one for one in page.changed if one in lacking], lacking, spent, record, certificate)
        since = page.revision
        if not page.more:
            break
    known[number] = since
    while len(known) > KNOWN_SOURCES:
        known.popitem(last=False)


def _fetch(
    wanted: Sequence[bytes], lacking: dict[bytes, bool], spent: Counter[str], record: int, certificate: int
) -> None:
    for is_new, what in ((False, Parts.RECORD), (True, Parts.BOTH)):
        ids = sorted(one for one in wanted if lacking[one] is is_new)
        size = 36 + record + certificate * is_new
        most = min(128, 59_998 // size)
        for start in range(0, len(ids), most):
            part = tuple(ids[start : start + most])
            spent["documents"] += cells(len(DirFetch(part, what).encode())) + cells(2 + size * len(part))
    for one in wanted:
        del lacking[one]


def churn() -> tuple[float, float, float]:
    """How long a client takes to know of new relays in a network of 60 of which half are replaced in ten minutes.

    Mean and 95th percentile in seconds over half an hour, and the mean share of the live relays that it knows.
    Relays tell each other within `GOSSIP_TIME`; a source that is gone is replaced when it is asked in vain.
    """
    rng = random.Random("churn")
    alive = [rng.randbytes(32) for _ in range(60)]
    log = ChangeLog(bytes(16))
    born: dict[bytes, float] = {}
    delays: list[float] = []
    shares: list[float] = []
    known = set(alive)
    sources = rng.sample(alive, SOURCES)
    asked: dict[bytes, int] = {}
    pause, due, clock, next_birth = POLL_LEAST, 10.0, 0.0, 20.0
    waiting: list[tuple[float, bytes]] = []
    while clock < 1800:
        clock += 1
        if clock >= next_birth:
            next_birth += 20
            alive.pop(rng.randrange(len(alive)))
            new = rng.randbytes(32)
            alive.append(new)
            born[new] = clock
            waiting.append((clock + GOSSIP_TIME, new))
        while waiting and waiting[0][0] <= clock:
            log.note(waiting.pop(0)[1], True)
        shares.append(sum(one in known for one in alive) / len(alive))
        if clock >= due:
            sources = [one for one in sources if one in alive]
            while len(sources) < SOURCES:
                sources.append(rng.choice([one for one in alive if one in known and one not in sources]))
            sources.append(sources.pop(0))
            page = log.since(log.instance, asked.get(sources[0], 0), MAX_CHANGES)
            assert page is not None
            asked[sources[0]] = page.revision
            fresh = set(page.changed) - known
            known |= fresh
            delays += [clock - born[one] for one in fresh]
            pause = next_pause(pause, len(fresh), len(known))
            due = clock + pause * (0.75 + rng.random() / 2)
    delays.sort()
    return sum(delays) / len(delays), delays[int(0.95 * len(delays))], sum(shares) / len(shares)


def _percent(share: float) -> str:
    return f"{share:.1%}"


def run() -> Section:
    """Both attacks with the defence on and off, and the bytes of a day."""
    rows: list[list[str]] = []
    data: dict[str, Any] = {"split": {}, "liars": {}, "day": {}}
    failures: list[str] = []
    for liars in LIARS:
        for defence in (False, True):
            first, ever, mean, lacked = split(liars, defence)
            what = f"two views for two halves, {HIDDEN:.0%} hidden, {liars:.0%} of the relays help"
            rows.append(
                [
                    what,
                    "on" if defence else "off",
                    _percent(first),
                    _percent(ever),
                    f"{mean:.1f}" if ever else "never",
                    _percent(lacked),
                ]
            )
            data["split"][f"{liars} {'on' if defence else 'off'}"] = {
                "first": first, "ever": ever, "mean_round": mean if ever else None, "lacked": lacked
            }  # fmt: skip
            if defence and liars <= 0.2 and ever < 0.99:
                failures.append(f"{what}: {ever:.1%} of the clients noticed")
    for count in (1, 2, 3, COMPARED):
        alarms = cry_wolf(count, 20)
        rows.append([f"{count} of the {COMPARED} relays that are asked lie", "on", _percent(alarms), "", "", ""])
        data["liars"][f"{count} of 8"] = alarms
        if alarms and count < ALARM_RELAYS:
            failures.append(f"{count} liars of {COMPARED} raise an alarm")
    for share in (0.001, 0.05, 0.1, 0.2, 0.3):
        alarms = cry_wolf(share, 1000)
        what = f"{share:.1%} of all relays lie at each comparison"
        rows.append([what, "on", _percent(alarms), f"computed {_percent(expected(share))}", "", ""])
        data["liars"][f"share {share}"] = alarms
    mean, late, share = churn()
    rows.append(
        [
            "60 relays, half of them replaced in 10 minutes: a client knows a new one",
            "",
            f"after {mean:.0f} s, 95 % within {late:.0f} s",
            "",
            "",
            _percent(1 - share),
        ]
    )
    data["churn"] = {"mean": mean, "p95": late, "known": share}
    for relays in (100, 1000, 10_000):
        spent = day(relays)
        parts = ", ".join(f"{name} {size / 1e6:.2f}" for name, size in spent.items() if name != "total")
        rows.append([f"a client's day, {relays:,} relays: {spent['total'] / 1e6:.2f} MB", "", parts, "", "", ""])
        data["day"][str(relays)] = spent
    return Section(
        "Views of the network",
        ["case", "defence", "noticed at once", "noticed in the end", "mean comparison", "relays lacked in the end"],
        rows,
        notes=[
            f"{RELAYS:,} relays, {CLIENTS} clients, {ROUNDS} comparisons with {COMPARED} relays each. Each half of the "
            "clients was kept from another fifth of the relays; relays that help show each client what it was given. "
            "Who noticed nothing had fewer than three honest ones among the eight, and took what it lacked from these.",
            "Liars show 5 % relays that are new each time and have good documents; noted is how often that alarms. "
            "Fewer than three of eight must never raise one.",
            "A day: MB in whole cells on the client's link, both ways, by the client's rules for asking. Records are "
            "made anew each 18 h, one relay in a hundred is new. Padding, and what tells who is alive, are not in it.",
        ],
        data=data,
        failures=failures,
    )
