"""What a relay tells about its list on directory streams: the list, documents, what has changed, and its view."""

from __future__ import annotations

import hashlib
from typing import Any

from backrooms.gossip.changes import ChangeLog
from backrooms.gossip.view import View, Views
from backrooms.interfaces import Rng
from backrooms.netdir.descriptor import Descriptor
from backrooms.netdir.directory import Directory
from backrooms.node.dirstreams import DirServer, ServedConnection
from backrooms.node.timers import Timers
from backrooms.wire.documents import DirectoryMessage, DirFetch, DirListRequest
from backrooms.wire.views import (
    INSTANCE_SIZE,
    MAX_CHANGES,
    MAX_IDS,
    SHORT_DIGEST,
    BucketsRequest,
    Change,
    Changes,
    ChangesRequest,
    IdsRequest,
    ViewBuckets,
    ViewIds,
    ViewRequest,
    ViewRoot,
)


def record_digest(record_raw: bytes) -> bytes:
    """The short digest of a signed record."""
    return hashlib.sha3_256(record_raw).digest()[:SHORT_DIGEST]


def change_of(relay: Descriptor) -> Change:
    """What CHANGES says of a relay."""
    certificate = relay.certificate.digest[:SHORT_DIGEST]
    return Change(relay.id, relay.record.revision, certificate, record_digest(relay.record_raw))


class DirServing:
    """Answers the questions of clients."""

    def __init__(self, directory: Directory, views: Views, timers: Timers, rng: Rng, server: DirServer) -> None:
        self._directory = directory
        self._views = views
        self._timers = timers
        self.log = ChangeLog(rng.randbytes(INSTANCE_SIZE))
        for relay in directory.everything():
            self.log.note(relay.id, True)
        directory.on_change.append(lambda node_id, relay: self.log.note(node_id, relay is not None))
        questions: list[tuple[Any, Any]] = [
            (DirListRequest, directory.answer_list),
            (DirFetch, directory.answer_fetch),
            (ChangesRequest, self._changes),
            (ViewRequest, self._root),
            (BucketsRequest, self._buckets),
            (IdsRequest, self._ids),
        ]
        for kind, answer in questions:
            server.handlers[kind.TYPE] = self._handler(kind, answer)

    def _handler(self, kind: Any, answer: Any) -> Any:
        def handle(connection: ServedConnection, payload: bytes) -> None:
            message: DirectoryMessage = answer(kind.decode(payload))
            connection.send(message)

        return handle

    def _changes(self, request: ChangesRequest) -> Changes:
        page = self.log.since(request.instance, request.since, MAX_CHANGES)
        if page is None:
            return Changes(self.log.instance, self.log.revision, anew=True)
        relays = [self._directory.held(node_id) for node_id in sorted(page.changed)]
        changed = tuple(change_of(relay) for relay in relays if relay is not None)
        return Changes(self.log.instance, page.revision, changed, tuple(sorted(page.gone)), page.more)

    def _view(self, epoch: int) -> View | None:
        return self._views.view(epoch, self._timers.wall())

    def _root(self, request: ViewRequest) -> ViewRoot:
        view = self._view(request.epoch)
        if view is None:
            return ViewRoot(request.epoch)
        return ViewRoot(request.epoch, True, len(view), view.root)

    def _buckets(self, request: BucketsRequest) -> ViewBuckets:
        view = self._view(request.epoch)
        return ViewBuckets(request.epoch, view.buckets if view is not None else ())

    def _ids(self, request: IdsRequest) -> ViewIds:
        view = self._view(request.epoch)
        if view is None:
            return ViewIds(request.epoch)
        ids, more = view.page(request.parts, request.after, MAX_IDS)
        return ViewIds(request.epoch, tuple(ids), more)
