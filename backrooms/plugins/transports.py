"""The transports that come with Backrooms. Each is asked by `configured(...)` for one that serves a network."""

from backrooms.transport.tls import TlsTransport

tls = TlsTransport()
