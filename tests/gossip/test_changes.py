"""The log of changes, against a log that keeps everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backrooms.gossip.changes import ChangeLog, Page

HERE = b"i" * 16
events = st.lists(st.tuples(st.integers(0, 9).map(lambda n: bytes([n]) * 32), st.booleans()), max_size=60)


def follow(log: ChangeLog, revision: int, limit: int) -> tuple[list[Page], int]:
    """All pages from a revision on."""
    pages = []
    while True:
        page = log.since(HERE, revision, limit)
        assert page is not None
        assert len(page.changed) + len(page.gone) <= limit
        pages.append(page)
        revision = page.revision
        if not page.more:
            return pages, revision


@given(events, st.integers(0, 60), st.integers(1, 7))
def test_whoever_follows_has_what_is_there(history: list[tuple[bytes, bool]], split: int, limit: int) -> None:
    log = ChangeLog(HERE)
    there: set[bytes] = set()
    held: set[bytes] = set()
    revision = 0
    for part in (history[:split], history[split:]):
        before = set(there)
        for node_id, stays in part:
            log.note(node_id, stays)
            (there.add if stays else there.discard)(node_id)
        pages, revision = follow(log, revision, limit)
        changed = [one for page in pages for one in page.changed]
        gone = [one for page in pages for one in page.gone]
        assert len(set(changed)) == len(changed)
        assert set(changed) | set(gone) == {one for one, _ in part}
        held = (held | set(changed)) - set(gone)
        assert held == there
        assert before | set(changed) >= there
    assert revision == log.revision == len(history)


def test_only_the_last_change_of_an_id_is_told() -> None:
    log = ChangeLog(HERE)
    for _ in range(5000):
        log.note(b"a", True)
    log.note(b"b", True)
    log.note(b"b", False)
    page = log.since(HERE, 0, 10)
    assert page == Page([b"a"], [b"b"], 5002, False)
    assert len(log._ids) < 2000, "changes of the past are not kept for ever"


def test_what_is_forgotten_or_never_was_is_not_told() -> None:
    log = ChangeLog(HERE, limit=3)
    for number in range(5):
        log.note(bytes([number]), True)
    assert log.forgotten == 2
    assert len(log) == 3
    assert log.since(HERE, 1, 10) is None
    page = log.since(HERE, 2, 10)
    assert page is not None
    assert page.changed == [b"\2", b"\3", b"\4"]
    assert log.since(HERE, 6, 10) is None
    assert log.since(b"x" * 16, 3, 10) is None
    assert log.since(HERE, 5, 10) == Page([], [], 5, False)
