"""Signing link proofs in threads."""

from __future__ import annotations

from typing import Any

from twisted.internet import threads
from twisted.logger import Logger
from twisted.python.failure import Failure

from backrooms.channel.events import SignRequest
from backrooms.errors import CircuitError
from backrooms.node.admission import Admission
from backrooms.node.link import Link

log = Logger()


class Signer:
    """Signs with a node's identity. RSA and ML-DSA take milliseconds and release the GIL."""

    def __init__(self, reactor: Any, admission: Admission, keystore: Any) -> None:
        self._reactor = reactor
        self._admission = admission
        self._keystore = keystore
        self._identity = keystore.identity()

    def sign(self, link: Link, request: SignRequest) -> None:
        """Give the link's channel its signatures: at once on links that we opened, else when it is their turn."""
        ticket = link.driver.tcp.ticket
        if ticket is None:
            self._start(link, request, 0)
        else:
            ticket.wait_to_sign(lambda: self._start(link, request, 1))

    def _start(self, link: Link, request: SignRequest, places: int) -> None:
        """`places` is how many of those for accepted links it takes."""
        admission = self._admission
        timers = admission.timers

        def work() -> tuple[dict[str, bytes], float]:
            began = timers.cpu()
            return self._keystore.sign(request.message, request.algorithms), timers.cpu() - began

        def finished(result: Any) -> Any:
            admission.signing -= places
            admission.wake()
            return result

        def signed(result: tuple[dict[str, bytes], float]) -> None:
            signatures, cost = result
            if places:
                admission.links.charge(cost, timers.now())
            if not link.driver.lost:
                link.channel.signed(self._identity, signatures, timers.now())
                link.driver.dirty()

        def failed(failure: Failure) -> None:
            log.failure("the link proof could not be signed", failure)
            link.driver.fail(CircuitError("the link proof could not be signed"))

        admission.signing += places
        signing = threads.deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work)
        signing.addBoth(finished)
        signing.addCallback(signed)
        signing.addErrback(failed)
