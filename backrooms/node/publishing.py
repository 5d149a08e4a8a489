"""Makes and renews what this relay publishes of itself, and sees to it that others have it."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import DeferredList
from twisted.logger import Logger

from backrooms.errors import BackroomsError, RemoteProtocolError
from backrooms.netdir.certificate import ShelfError
from backrooms.netdir.descriptor import CLOCK_TOLERANCE, Descriptor
from backrooms.netdir.directory import Directory
from backrooms.netdir.network import NetworkFile
from backrooms.node.channels import Channels
from backrooms.node.gossip import Gossiping
from backrooms.node.logs import Seldom
from backrooms.node.questions import Questions
from backrooms.node.schedule import Schedule
from backrooms.node.timers import Timers
from backrooms.wire.documents import DirPublish, DirPublished, PublishStatus

log = Logger()

PUBLISH_INTERVAL = 18 * 3600.0
PUBLISH_RETRY = 2.0
PUBLISH_RETRY_MAX = 600.0


class Publishing:
    """Renews our own descriptor with `describe(last)`, and tells others while `may_publish` allows it.

    Gossip spreads it. Only who knows nobody yet gives it to the contacts of the network file.
    """

    def __init__(
        self,
        timers: Timers,
        channels: Channels,
        directory: Directory,
        network: NetworkFile,
        questions: Questions,
        schedule: Schedule,
        gossip: Gossiping,
        describe: Callable[[Descriptor | None], Descriptor],
        may_publish: Callable[[], bool],
    ) -> None:
        self._timers = timers
        self._channels = channels
        self._directory = directory
        self._contacts = [contact.id for contact in network.contacts if contact.id != channels.my_id]
        self._questions = questions
        self._schedule = schedule
        self._gossip = gossip
        self._describe = describe
        self._may_publish = may_publish
        self._own: Descriptor | None = None
        self._seldom = Seldom()
        self._pause = PUBLISH_RETRY
        self._untold: set[bytes] = set()
        self._published_at = 0.0
        self._stopped = False

    def stop(self) -> None:
        """Publish no more."""
        self._stopped = True

    def republish(self) -> None:
        """Something that we publish has changed."""
        if not self._stopped and self._may_publish():
            self._renew()
            self._pause = PUBLISH_RETRY
            self._schedule.set("publish", 0.0, self._publish)

    def _knows_others(self) -> bool:
        return len(self._gossip.machine.partners) > 0

    def _renew(self) -> None:
        wall = self._timers.wall()
        last = self._own or self._directory.get(self._channels.my_id or b"")
        if last is not None and last.record.revision > wall + CLOCK_TOLERANCE:
            last = None  # made while our clock was ahead: nobody has taken it
            self._directory.expire(wall)
        self._own = self._describe(last)
        try:
            self._directory.insert(self._own, wall)
        except RemoteProtocolError as error:  # it is full: contacts may have room, and we go on without
            log.warn("our own descriptor is not in our list: {reason}", reason=error.reason)
        self._published_at = self._timers.now()
        self._untold = set() if self._knows_others() else set(self._contacts)
        self._gossip.news(self._own.id)

    async def _publish(self) -> None:
        if not self._may_publish():
            return
        if self._timers.now() - self._published_at >= PUBLISH_INTERVAL:
            self._renew()
        assert self._own is not None
        await DeferredList([self._channels.link(contact) for contact in self._untold], consumeErrors=True)
        if not self._may_publish() or self._stopped:
            return  # their links told what time it is, and ours is wrong
        try:
            message = DirPublish(self._own.certificate.raw, self._own.record_raw)
        except ShelfError:  # the disk has lost our certificate: make it anew
            self._directory.drop(self._own.id)
            self._renew()
            message = DirPublish(self._own.certificate.raw, self._own.record_raw)
        for contact in list(self._untold):
            try:
                answer = await self._questions.ask(await self._channels.link(contact), message, DirPublished)
            except BackroomsError as error:
                if self._seldom.is_due(f"publish {error}", self._timers.now()):
                    log.info("a contact did not take our descriptor: {error}", error=str(error))
                continue
            if answer.status in (PublishStatus.ACCEPTED, PublishStatus.UNCHANGED):
                self._untold.discard(contact)
            else:
                log.warn("a contact refused our descriptor: {text}", text=answer.text)
        pause = PUBLISH_INTERVAL
        if self._knows_others():
            self._untold.clear()  # gossip tells all
        if self._untold:
            pause = self._pause
            self._pause = min(self._pause * 1.5, PUBLISH_RETRY_MAX)
        self._schedule.set("publish", pause, self._publish)
