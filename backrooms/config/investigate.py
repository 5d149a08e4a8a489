"""`[investigate]`: probes that find relays which do harm."""

from __future__ import annotations

from dataclasses import dataclass

from backrooms.config.reader import option


@dataclass(frozen=True, slots=True, kw_only=True)
class InvestigateOptions:
    """`[investigate]`: `rate` is in background probes per hour; `avoid` keeps relays found bad off new paths."""

    rate: float = option(30.0, least=0, most=3600)
    avoid: bool = True
