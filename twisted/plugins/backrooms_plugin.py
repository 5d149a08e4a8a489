"""Makes twistd know `backrooms`. Twisted imports this file to list its plugins, so it imports nothing of ours."""

from twisted.application.service import ServiceMaker

backrooms = ServiceMaker(  # type: ignore[no-untyped-call]
    "Backrooms",
    "backrooms.tap",
    "An onion router: client, relay, exit.",
    "backrooms",
)
