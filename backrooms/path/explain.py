"""Why a path is as it is: what the choice itself said of each relay, position by position.

Nothing is decided here. `Choice.refusal` chose the path, and is asked again about every relay, after what had been
chosen before it. So what is told is what was done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from backrooms.crypto.keys import text_id
from backrooms.netdir.descriptor import Descriptor
from backrooms.path.roster import Candidate
from backrooms.path.selector import Choice


@dataclass(frozen=True, slots=True)
class Standing:
    """One relay at one position."""

    row: Candidate
    weight: float
    """Its part of the weight of all who may ever stand there, after all caps."""
    chance: float
    """How likely it is to be drawn there, after what was chosen before."""
    reason: str
    """Why it cannot be; empty if it can."""
    chosen: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One position, in the order in which they are filled."""

    index: int
    """From 0, the entry."""
    position: str
    left: float
    """The part of the network's weight for this position that the rules for known entities leave."""
    fitting: float
    """The part of what is left that also fits what was chosen before."""
    excluded: dict[str, int]
    """How many relays could not be, by the reason, most first."""
    relays: list[Standing]
    """Every known relay, the likeliest first."""


def explain(choice: Choice, path: Sequence[Descriptor] | None) -> list[Step]:
    """What was asked at each position. Without a path each position is judged as if it were filled first."""
    rows = choice.selector.roster.by_id
    chosen: dict[int, Candidate] = {}
    steps = []
    for index in choice.order:
        table = choice.tables[index]
        weights = {row.id: weight for row, weight in zip(table.rows, table.weights, strict=True)}
        reasons = {row.id: choice.refusal(row, index, chosen) for row in rows.values()}
        free = sum(weight for one, weight in weights.items() if reasons.get(one) is None)
        taken = path[index].id if path is not None else None
        relays = [
            Standing(
                row,
                weights.get(row.id, 0.0) / (table.total or 1.0),
                weights.get(row.id, 0.0) / (free or 1.0) if reasons[row.id] is None else 0.0,
                reasons[row.id] or "",
                row.id == taken,
            )
            for row in rows.values()
        ]
        relays.sort(key=lambda one: (not one.chosen, -one.chance, -one.weight, one.row.id))
        steps.append(
            Step(
                index,
                choice.positions[index].value,
                choice.selector.left(choice.positions[index]),
                free / (table.total or 1.0),
                dict(Counter(reason for reason in reasons.values() if reason is not None).most_common()),
                relays,
            )
        )
        if taken is not None and taken in rows:
            chosen[index] = rows[taken]
    return steps


def describe(row: Candidate, first_seen: float | None = None) -> dict[str, object]:
    """What a client knows of one relay, for JSON."""
    relay = row.relay
    return {
        "nickname": relay.nickname,
        "fingerprint": relay.fingerprint,
        "id": text_id(relay.id),
        "operator": relay.operator,
        "family": sorted([text_id(one) for one in row.kin] + [key.hex() for key in relay.family_keys]),
        "nets": sorted(row.subnets),
        "countries": sorted({place.country for place in row.places if place.country}),
        "asns": sorted(row.asns),
        "as_names": sorted({place.as_name for place in row.places if place.as_name}),
        "exit": relay.is_exit,
        "capacity": relay.capacity,
        "first_seen": first_seen,
    }


def step_json(step: Step, most: int | None) -> dict[str, object]:
    """A step for JSON, with so many of its relays, the likeliest first; None for all."""
    return {
        "index": step.index,
        "position": step.position,
        "left": round(step.left, 6),
        "fitting": round(step.fitting, 6),
        "candidates": sum(not one.reason for one in step.relays),
        "excluded": step.excluded,
        "relays": [
            {
                "nickname": one.row.relay.nickname,
                "fingerprint": one.row.relay.fingerprint,
                "weight": round(one.weight, 6),
                "chance": round(one.chance, 6),
                "reason": one.reason,
                "chosen": one.chosen,
            }
            for one in step.relays[:most]
        ],
    }
