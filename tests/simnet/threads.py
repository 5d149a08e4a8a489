"""A thread pool without threads."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from twisted.logger import Logger
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from tests.simnet.network import SimNet

_log = Logger()


class InlinePool:
    """Does work when it is given, and delivers the result in a later call.

    Blocking look-ups of the socket module answer from the simulated names meanwhile: no work done here may
    reach a real resolver.
    """

    def __init__(self, net: SimNet) -> None:
        self.done = 0
        self._net = net

    def callInThread(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.callInThreadWithCallback(None, func, *args, **kwargs)

    def callInThreadWithCallback(
        self, onResult: Callable[[bool, Any], Any] | None, func: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> None:
        self.done += 1
        try:
            with self._simulated_names():
                result, success = func(*args, **kwargs), True
        except Exception:
            result, success = Failure(), False  # type: ignore[no-untyped-call]
            if onResult is None:
                _log.failure("in a simulated thread")
        if onResult is not None:
            onResult(success, result)

    def adjustPoolsize(self, minthreads: int | None = None, maxthreads: int | None = None) -> None:
        """There are no threads."""

    @contextlib.contextmanager
    def _simulated_names(self) -> Iterator[None]:
        with (
            patch("socket.gethostbyaddr", self._gethostbyaddr),
            patch("socket.gethostbyname", self._gethostbyname),
        ):
            yield

    def _gethostbyaddr(self, ip: str) -> tuple[str, list[str], list[str]]:
        for name, addresses in self._net.names.items():
            if ip in addresses:
                return name, [], list(addresses)
        raise socket.herror(1, "Unknown host")

    def _gethostbyname(self, name: str) -> str:
        for ip in self._net.names.get(name.lower().rstrip("."), []):
            if ":" not in ip:
                return ip
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
