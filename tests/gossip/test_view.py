"""Views: what is settled, parts and pages, and comparing them with honest nodes and with liars."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backrooms.errors import WireError
from backrooms.gossip.comparing import ALARM_RELAYS, COMPARED, Shown, alarming, is_much, look
from backrooms.gossip.view import EPOCH, SETTLE, View, Views, epoch_at
from backrooms.wire.views import BUCKETS, IdsRequest, ViewBuckets, ViewIds, ViewRoot
from tests.gossip.test_merkle import slow_root

ids = st.frozensets(st.binary(min_size=32, max_size=32).filter(any), max_size=20)


def some(count: int, seed: int = 0) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(32) for _ in range(count)]


# settled


def test_an_id_is_settled_when_it_was_known_for_two_whole_epochs() -> None:
    start = 1000 * EPOCH
    since: dict[bytes, float] = {}
    views = Views(since, 0)
    since[b"a" * 32] = start
    since[b"b" * 32] = start + 1
    assert [epoch_at(one) for one in (start, start + EPOCH - 1, start + EPOCH)] == [1000, 1000, 1001]
    for epoch, expected in ((1000 + SETTLE - 1, []), (1000 + SETTLE, [b"a" * 32]), (1003, [b"a" * 32, b"b" * 32])):
        view = views.view(epoch, epoch * EPOCH + 5)
        assert view is not None
        assert view.ids == expected


def test_who_was_not_up_for_long_enough_has_no_view() -> None:
    views = Views({b"a" * 32: 5}, 1000 * EPOCH + 1)
    assert views.view(1002, 1002 * EPOCH) is None
    assert views.fresh(1002).ids == [b"a" * 32]
    assert views.view(1003, 1003 * EPOCH) is not None
    assert views.view(1005, 1003 * EPOCH) is None
    assert views.view(1001, 1003 * EPOCH) is None


def test_a_view_that_was_given_stays_and_old_ones_are_forgotten() -> None:
    since: dict[bytes, float] = {}
    views = Views(since, 0)
    for one in some(5):
        since[one] = 0
    first = views.view(1000, 1000 * EPOCH)
    assert first is not None
    assert len(first) == 5
    del since[some(5)[0]]
    assert views.view(1000, 1000 * EPOCH) is first
    later = views.view(1001, 1001 * EPOCH)
    assert later is not None
    assert len(later) == 4
    for epoch in range(1001, 1020):
        views.view(epoch, epoch * EPOCH)
    assert len(views._views) <= 3


def test_an_id_that_went_has_to_settle_again() -> None:
    since: dict[bytes, float] = {}
    views = Views(since, 0)
    since[b"a" * 32] = 0
    del since[b"a" * 32]
    since[b"a" * 32] = 1000 * EPOCH
    view = views.view(1001, 1001 * EPOCH)
    assert view is not None
    assert not len(view)


# parts


@given(ids, st.integers(0, 2**32 - 1))
def test_the_root_holds_epoch_and_sorted_ids(found: frozenset[bytes], epoch: int) -> None:
    view = View(epoch, found)
    assert view.root == slow_root([epoch.to_bytes(4, "big"), *sorted(found)])
    for number in range(BUCKETS):
        part = sorted(one for one in found if one[0] == number)
        assert list(view.part(number)) == part
        assert view.buckets[number] == slow_root(part)[:16]


@given(ids, ids)
def test_parts_that_differ_are_those_of_ids_that_differ(mine: frozenset[bytes], theirs: frozenset[bytes]) -> None:
    assert View(1, mine).differing(View(1, theirs).buckets) == {one[0] for one in mine ^ theirs}


@given(ids, st.frozensets(st.integers(0, 255)), st.integers(1, 5))
def test_pages_together_are_the_parts(found: frozenset[bytes], parts: frozenset[int], limit: int) -> None:
    view = View(1, found)
    got: list[bytes] = []
    more, after = True, bytes(32)
    while more:
        page, more = view.page(parts, after, limit)
        got += page
        after = page[-1] if page else after
        assert not more or len(page) == limit
    assert got == sorted(one for one in found if one[0] in parts and one > bytes(32))


# comparing


class Honest:
    """A node that shows its view."""

    def __init__(self, found: Iterable[bytes], epoch: int = 7, page: int = 5) -> None:
        self.view = View(epoch, found)
        self.page = page
        self.asked: list[Any] = []

    async def root(self, epoch: int) -> ViewRoot:
        self.asked.append("root")
        return ViewRoot(epoch, True, len(self.view), self.view.root)

    async def buckets(self, epoch: int) -> ViewBuckets:
        self.asked.append("buckets")
        return ViewBuckets(epoch, self.view.buckets)

    async def ids(self, request: IdsRequest) -> ViewIds:
        self.asked.append("ids")
        found, more = self.view.page(request.parts, request.after, self.page)
        return ViewIds(request.epoch, tuple(found), more)


def compare(peer: Any, mine: Iterable[bytes], epoch: int = 7) -> Shown | None:
    return asyncio.run(look(peer, View(epoch, mine)))


def test_equal_views_cost_one_question() -> None:
    peer = Honest(some(100))
    assert compare(peer, some(100)) == Shown(100, frozenset(), True)
    assert peer.asked == ["root"]


@given(ids, ids)
def test_what_the_other_has_more_is_found(mine: frozenset[bytes], theirs: frozenset[bytes]) -> None:
    shown = compare(Honest(theirs), mine)
    assert shown == Shown(len(theirs), theirs - mine, mine == theirs)


def test_only_parts_that_differ_are_fetched() -> None:
    peer = Honest(some(3000), page=1000)
    shown = compare(peer, some(3000)[:-3])
    assert shown is not None
    assert shown.others == set(some(3000)[-3:])
    assert peer.asked == ["root", "buckets", "ids"]


def test_a_node_without_a_view_is_no_liar() -> None:
    class Young(Honest):
        async def root(self, epoch: int) -> ViewRoot:
            return ViewRoot(epoch)

    assert compare(Young([]), some(3)) is None


class Liar(Honest):
    """Changes one answer."""

    def __init__(self, what: str, found: Iterable[bytes]) -> None:
        super().__init__(found)
        self.what = what

    async def root(self, epoch: int) -> ViewRoot:
        true = await super().root(epoch)
        made = {
            "another epoch": ViewRoot(epoch + 1, True, true.count, true.root),
            "made-up root": ViewRoot(epoch, True, true.count, b"x" * 32),
            "wrong size": ViewRoot(epoch, True, true.count + 1, true.root),
        }
        return made.get(self.what, true)

    async def buckets(self, epoch: int) -> ViewBuckets:
        true = await super().buckets(epoch)
        made = {
            "no parts": ViewBuckets(epoch),
            "parts of another epoch": ViewBuckets(epoch + 1, true.digests),
            "made-up parts": ViewBuckets(epoch, (b"x" * 16,) * BUCKETS),
            "parts that do not differ": ViewBuckets(epoch, View(epoch, some(20)).buckets),
        }
        return made.get(self.what, true)

    async def ids(self, request: IdsRequest) -> ViewIds:
        true = await super().ids(request)
        other = (
            next(number for number in range(BUCKETS) if number not in request.parts) if len(request.parts) < 256 else 0
        )
        made = {
            "ids of another epoch": ViewIds(request.epoch + 1, true.ids),
            "ids nobody asked for": ViewIds(request.epoch, (bytes([other]) * 32,)),
            "the same page again": ViewIds(request.epoch, self.view.page(request.parts, bytes(32), 5)[0], True),  # type: ignore[arg-type]
            "ids left out": ViewIds(request.epoch, true.ids[1:]),
            "ids added": ViewIds(request.epoch, tuple(sorted({*true.ids, bytes([min(request.parts)]) + b"\xff" * 31}))),
        }
        if self.what == "without end":
            start = int.from_bytes(request.after, "big") + 1
            first = max(start, min(request.parts) << 248)
            page = tuple((first + number).to_bytes(32, "big") for number in range(1800))
            return ViewIds(request.epoch, page, True)
        return made.get(self.what, true)


@pytest.mark.parametrize(
    "what",
    [
        "another epoch",
        "made-up root",
        "no parts",
        "parts of another epoch",
        "made-up parts",
        "parts that do not differ",
        "ids of another epoch",
        "ids nobody asked for",
        "the same page again",
        "ids left out",
        "ids added",
        "without end",
    ],
)
def test_a_liar_is_found_out(what: str) -> None:
    with pytest.raises(WireError):
        compare(Liar(what, some(40)), some(20))


def test_a_root_of_ours_with_another_size_is_a_lie() -> None:
    with pytest.raises(WireError, match="size"):
        compare(Liar("wrong size", some(20)), some(20))


# the verdict


@pytest.mark.parametrize("liars", range(COMPARED + 1))
def test_fewer_than_three_can_stop_nobody(liars: int) -> None:
    shown: Sequence[tuple[int, int]] = [(1000, 1000)] * liars + [(0, 1000)] * (COMPARED - liars)
    assert alarming(shown) == (liars >= ALARM_RELAYS)


def test_a_fiftieth_is_not_much() -> None:
    assert not is_much(2, 100)
    assert is_much(3, 100)
    assert not is_much(0, 0)
    assert not alarming([(20, 1000)] * 8)
